//! Generates `gateway/src/proto` from `gateway/proto`: `make gateway-protos`. Needs no protoc.

use std::{error::Error, fs, path::Path};

use prost::Message;

const FILES: [&str; 4] =
    ["inference.proto", "tensorflow_serving.proto", "health.proto", "reflection.proto"];

fn main() -> Result<(), Box<dyn Error>> {
    let gateway = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let target = gateway.join("src/proto");
    let descriptors = protox::compile(FILES, [gateway.join("proto")])?;
    // Reflection hands these out. Comments and positions are of no use there.
    let mut stripped = descriptors.clone();
    for file in &mut stripped.file {
        file.source_code_info = None;
    }
    fs::write(target.join("descriptors.bin"), stripped.encode_to_vec())?;
    prost_build::Config::new()
        // Tensors are slices of the received message, not copies.
        .bytes(["."])
        // Maps are encoded in one order, so that equal replies are equal bytes.
        .btree_map(["."])
        .out_dir(&target)
        .compile_fds(stripped)?;
    Ok(())
}
