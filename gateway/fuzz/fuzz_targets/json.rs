//! Any text is read or refused: by the scanner, and as a tensor of each datatype. What was read can be written, and reads
//! as the same bytes again.

#![no_main]
#![allow(dead_code, unused_imports)]

#[path = "../../src/json/mod.rs"]
mod json;
#[path = "../../src/tensor/mod.rs"]
mod tensor;

use json::{BytesAs, Decoder, Dialect, Scanner, Values};
use libfuzzer_sys::fuzz_target;
use tensor::{Datatype, Tensor};

fuzz_target!(|text: &[u8]| {
    let _ = Scanner::strict(text).skip();
    let valid = Scanner::lenient(text).skip().is_ok();
    for datatype in Datatype::ALL {
        let Some((shape, data)) = decode(datatype, text) else { continue };
        assert!(valid, "skip refuses what the decoder reads");
        if matches!(datatype, Datatype::Complex64 | Datatype::Complex128) {
            // They have no form in JSON; only an empty list is read as one.
            continue;
        }
        let tensor = Tensor { name: String::new(), datatype, shape, data };
        let mut out = Vec::new();
        let written =
            Values::new(&tensor, BytesAs::TextOrBase64).and_then(|mut values| values.write(&mut out, &tensor.shape));
        assert!(written.is_ok(), "{written:?}");
        let (shape, data) = decode(datatype, &out).expect("what was written can be read");
        assert_eq!(shape, tensor.shape);
        // NaN has more than one form.
        assert!(data == tensor.data || out.windows(3).any(|part| part == b"NaN"));
    }
});

fn decode(datatype: Datatype, text: &[u8]) -> Option<(Vec<i64>, bytes::Bytes)> {
    let mut decoder = Decoder::new(datatype, Dialect::TensorflowServing);
    let shape = decoder.value(&mut Scanner::lenient(text)).ok()?.iter().map(|size| *size as i64).collect();
    Some((shape, decoder.finish()))
}
