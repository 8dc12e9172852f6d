//! HTTP, whatever its bodies mean: requests, responses, compression, and errors. gRPC uses its bodies, too.

mod encoding;
mod error;
mod read_body;
mod request_body;
mod response;
mod response_body;
mod timeout;

pub use encoding::of_response;
pub use error::{REASON, error_body, error_response, path_unknown, unwritable};
pub use read_body::{BodyReader, SLOWEST_BYTES_PER_S, next_piece_until, read_body};
pub use request_body::RequestBody;
pub use response::{Response, compressed, json_response, response};
pub use response_body::{Body, BodyError};
pub use timeout::stated_timeout;

/// A request whose head has been read.
pub type Request = http::Request<RequestBody>;
