//! Decodes the rows in a file as a tensor of FP32, and writes it as JSON again, with the modules of the gateway.
//!
//! `json-decoding FILE COUNT` prints a line of JSON: the milliseconds of each decoding and of each writing.

#![allow(dead_code, unused_imports)]

#[path = "../../../gateway/src/json/mod.rs"]
mod json;
#[path = "../../../gateway/src/tensor/mod.rs"]
mod tensor;

use std::error::Error;
use std::time::Instant;

use json::{BytesAs, Decoder, Dialect, Scanner, Values};
use tensor::{Datatype, Tensor};

fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [file, count] = &arguments[..] else { return Err("usage: json-decoding FILE COUNT".into()) };
    let text = std::fs::read(file)?;
    let (mut decoding, mut writing) = (Vec::new(), Vec::new());
    let mut checksum = 0.0;
    for _ in 0..count.parse()? {
        let start = Instant::now();
        let mut decoder = Decoder::new(Datatype::Fp32, Dialect::TensorflowServing);
        let shape: Vec<i64> = decoder.value(&mut Scanner::lenient(&text))?.iter().map(|size| *size as i64).collect();
        let data = decoder.finish();
        decoding.push(start.elapsed().as_secs_f64() * 1e3);
        checksum = data.as_chunks::<4>().0.iter().map(|bytes| f64::from(f32::from_le_bytes(*bytes))).sum();
        let tensor = Tensor { name: String::new(), datatype: Datatype::Fp32, shape, data };
        let start = Instant::now();
        let mut out = Vec::with_capacity(3 * tensor.data.len());
        let mut values = Values::new(&tensor, BytesAs::Text).map_err(|error| error.to_string())?;
        values.write(&mut out, &tensor.shape).map_err(|error| error.to_string())?;
        writing.push(start.elapsed().as_secs_f64() * 1e3);
        std::hint::black_box(&out);
    }
    println!("{{\"decoding_ms\": {decoding:?}, \"writing_ms\": {writing:?}, \"checksum\": {checksum:?}}}");
    Ok(())
}
