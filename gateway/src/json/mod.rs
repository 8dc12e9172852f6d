//! JSON, read and written without an intermediate tree.
//!
//! Numbers, strings and nested lists of a request are decoded straight into the bytes that MT1 sends
//! ([`decoder`]), and results are written straight from the bytes that the daemon answered ([`writer`]).
//! Both REST interfaces use this module: the TensorFlow Serving API and the Open Inference Protocol.
//!
//! Reading takes time and memory in proportion to the text, whatever it contains: the nesting depth is bounded,
//! and nothing in a text announces a size for which memory would be reserved.

mod base64;
mod decoder;
mod error;
mod number;
mod scanner;
mod writer;

pub use base64::{is_base64_object, read_base64};
pub use decoder::{Decoder, Dialect};
pub use error::{Category, Error};
pub use number::Number;
pub use scanner::{Kind, Scanner};
pub use writer::{BytesAs, Values, WriteError, write_float32, write_string};
/// Result of reading JSON.
pub type Result<T> = std::result::Result<T, Error>;

/// The deepest nesting of lists and objects that is read.
pub const MAX_DEPTH: usize = 128;

/// The most dimensions of a tensor, as in MT1.
pub const MAX_RANK: usize = 64;
