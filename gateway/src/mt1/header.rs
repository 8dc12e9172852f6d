//! The headers of inference: written for requests, read for replies.

use serde::Deserialize;
use serde_json::Value;

use super::error::DaemonError;
use super::messages::ModelRef;
use crate::tensor::Datatype;

/// Where a tensor is in a shared-memory region.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Area {
    pub region: String,
    pub offset: usize,
    pub bytes: usize,
}

/// An input in the header of a request.
#[derive(Clone, Debug)]
pub struct InputHeader<'a> {
    pub name: &'a str,
    pub datatype: Datatype,
    pub shape: &'a [i64],
    pub area: Option<&'a Area>,
}

/// What a request's header consists of.
#[derive(Clone, Debug)]
pub struct RequestHeader<'a> {
    pub model: &'a ModelRef,
    pub inputs: &'a [InputHeader<'a>],
    /// The wanted outputs; empty: all.
    pub outputs: &'a [String],
    /// Where outputs may be written, by name. If any is given and `outputs` is empty, all are wanted all the same.
    pub areas: &'a [(String, Area)],
    pub signature_name: Option<&'a str>,
    pub priority: Option<u64>,
    pub timeout_us: u64,
}

impl RequestHeader<'_> {
    /// Returns the header's bytes. Equal requests have equal bytes: the daemon caches what it makes of them.
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut text = Vec::with_capacity(256);
        text.extend_from_slice(b"{\"model_name\":");
        put_string(&mut text, &self.model.name);
        if let Some(version) = self.model.version.as_deref().filter(|version| !version.is_empty()) {
            text.extend_from_slice(b",\"model_version\":");
            put_string(&mut text, version);
        }
        text.extend_from_slice(b",\"inputs\":[");
        for (index, input) in self.inputs.iter().enumerate() {
            text.extend_from_slice(if index == 0 { b"{\"name\":" } else { b",{\"name\":" });
            put_string(&mut text, input.name);
            text.extend_from_slice(b",\"datatype\":\"");
            text.extend_from_slice(input.datatype.name().as_bytes());
            text.extend_from_slice(b"\",\"shape\":");
            put_shape(&mut text, input.shape);
            if let Some(area) = input.area {
                put_area(&mut text, area);
            }
            text.push(b'}');
        }
        text.push(b']');
        self.put_outputs(&mut text);
        text.extend_from_slice(b",\"parameters\":{");
        if self.outputs.is_empty() && !self.areas.is_empty() {
            text.extend_from_slice(b"\"all_outputs\":true,");
        }
        text.extend_from_slice(b"\"timeout\":");
        text.extend_from_slice(self.timeout_us.to_string().as_bytes());
        if let Some(priority) = self.priority.filter(|&priority| priority != 0) {
            text.extend_from_slice(b",\"priority\":");
            text.extend_from_slice(priority.to_string().as_bytes());
        }
        for (key, value) in [("signature_name", self.signature_name), ("version_label", self.model.label.as_deref())] {
            if let Some(value) = value.filter(|value| !value.is_empty()) {
                text.extend_from_slice(b",\"");
                text.extend_from_slice(key.as_bytes());
                text.extend_from_slice(b"\":");
                put_string(&mut text, value);
            }
        }
        text.extend_from_slice(b"}}");
        text
    }

    fn put_outputs(&self, text: &mut Vec<u8>) {
        let area = |name: &str| self.areas.iter().find(|(known, _)| known == name).map(|(_, area)| area);
        let all = self.areas.iter().map(|(name, _)| name).take(if self.outputs.is_empty() { usize::MAX } else { 0 });
        let mut opened = false;
        for name in self.outputs.iter().chain(all) {
            text.extend_from_slice(if opened { b",{\"name\":" } else { b",\"outputs\":[{\"name\":" });
            opened = true;
            put_string(text, name);
            if let Some(area) = area(name) {
                put_area(text, area);
            }
            text.push(b'}');
        }
        if opened {
            text.push(b']');
        }
    }
}

/// Appends a JSON string.
fn put_string(text: &mut Vec<u8>, value: &str) {
    if value.bytes().all(|byte| byte >= 0x20 && byte != b'"' && byte != b'\\') {
        text.push(b'"');
        text.extend_from_slice(value.as_bytes());
        text.push(b'"');
    } else {
        text.extend_from_slice(Value::from(value).to_string().as_bytes());
    }
}

/// Appends a shape as a JSON list.
pub fn put_shape(text: &mut Vec<u8>, shape: &[i64]) {
    text.push(b'[');
    for (index, dimension) in shape.iter().enumerate() {
        if index > 0 {
            text.push(b',');
        }
        text.extend_from_slice(dimension.to_string().as_bytes());
    }
    text.push(b']');
}

fn put_area(text: &mut Vec<u8>, area: &Area) {
    text.extend_from_slice(b",\"parameters\":{\"shared_memory_region\":");
    put_string(text, &area.region);
    text.extend_from_slice(
        format!(",\"shared_memory_offset\":{},\"shared_memory_byte_size\":{}}}", area.offset, area.bytes).as_bytes(),
    );
}

/// The header of a reply.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ReplyHeader {
    pub model_name: String,
    pub model_version: String,
    pub outputs: Vec<OutputHeader>,
}

/// An output in the header of a reply.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OutputHeader {
    pub name: String,
    pub datatype: Datatype,
    pub shape: Vec<i64>,
    /// Where the output is, if not in a frame.
    pub area: Option<Area>,
}

impl ReplyHeader {
    /// Reads the header of an `MT1:ok` reply to `MT1:infer`.
    pub fn from_bytes(text: &[u8]) -> Result<Self, DaemonError> {
        let unreadable = |what: &str| DaemonError::internal(format!("the daemon's reply cannot be read: {what}"));
        let read: JsonReply = serde_json::from_slice(text).map_err(|error| unreadable(&error.to_string()))?;
        let mut outputs = Vec::with_capacity(read.outputs.len());
        for output in read.outputs {
            let datatype = Datatype::from_name(&output.datatype).ok_or_else(|| unreadable("an unknown datatype"))?;
            let area = output.parameters.and_then(JsonArea::into_area);
            outputs.push(OutputHeader { name: output.name, datatype, shape: output.shape, area });
        }
        Ok(Self { model_name: read.model_name, model_version: read.model_version.unwrap_or_default(), outputs })
    }

    /// The outputs that have frames.
    pub fn framed(&self) -> usize {
        self.outputs.iter().filter(|output| output.area.is_none()).count()
    }
}

#[derive(Deserialize)]
struct JsonReply {
    model_name: String,
    model_version: Option<String>,
    outputs: Vec<JsonOutput>,
}

#[derive(Deserialize)]
struct JsonOutput {
    name: String,
    datatype: String,
    shape: Vec<i64>,
    parameters: Option<JsonArea>,
}

#[derive(Deserialize)]
struct JsonArea {
    shared_memory_region: Option<String>,
    #[serde(default)]
    shared_memory_offset: usize,
    #[serde(default)]
    shared_memory_byte_size: usize,
}

impl JsonArea {
    fn into_area(self) -> Option<Area> {
        Some(Area {
            region: self.shared_memory_region?,
            offset: self.shared_memory_offset,
            bytes: self.shared_memory_byte_size,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mt1::Code;

    fn text(header: &RequestHeader<'_>) -> String {
        String::from_utf8(header.to_bytes()).unwrap()
    }

    #[test]
    fn headers_are_as_the_protocol_says() {
        let model = ModelRef::latest("m");
        let inputs = [InputHeader { name: "x\"\n", datatype: Datatype::Fp32, shape: &[2, 3], area: None }];
        let mut header = RequestHeader {
            model: &model,
            inputs: &inputs,
            outputs: &[],
            areas: &[],
            signature_name: None,
            priority: None,
            timeout_us: 30_000_000,
        };
        let expected = r#"{"model_name":"m","inputs":[{"name":"x\"\n","datatype":"FP32","shape":[2,3]}],"parameters":{"timeout":30000000}}"#;
        assert_eq!(text(&header), expected);

        let model = ModelRef { name: "m".into(), version: Some("3".into()), label: Some("stable".into()) };
        let area = Area { region: "mt-1-2-ab".into(), offset: 64, bytes: 8 };
        let inputs = [InputHeader { name: "x", datatype: Datatype::Int8, shape: &[], area: Some(&area) }];
        let areas = [("y".to_owned(), area.clone())];
        header = RequestHeader {
            model: &model,
            inputs: &inputs,
            areas: &areas,
            signature_name: Some("s"),
            priority: Some(1),
            ..header
        };
        let read: Value = serde_json::from_slice(&header.to_bytes()).unwrap();
        let placed = serde_json::json!({"shared_memory_region": "mt-1-2-ab", "shared_memory_offset": 64,
                                        "shared_memory_byte_size": 8});
        let expected = serde_json::json!({
            "model_name": "m", "model_version": "3",
            "inputs": [{"name": "x", "datatype": "INT8", "shape": [], "parameters": placed}],
            "outputs": [{"name": "y", "parameters": placed}],
            "parameters": {"all_outputs": true, "timeout": 30_000_000, "priority": 1, "signature_name": "s",
                           "version_label": "stable"}});
        assert_eq!(read, expected);

        let outputs = ["z".to_owned(), "y".to_owned()];
        let read: Value = serde_json::from_slice(&RequestHeader { outputs: &outputs, ..header }.to_bytes()).unwrap();
        assert_eq!(read["outputs"], serde_json::json!([{"name": "z"}, {"name": "y", "parameters": placed}]));
        assert!(read["parameters"].get("all_outputs").is_none());
    }

    #[test]
    fn replies_are_read() {
        let header = br#"{"model_name": "m", "model_version": "3", "new": 1, "outputs": [
            {"name": "y", "datatype": "FP32", "shape": [2]},
            {"name": "z", "datatype": "BYTES", "shape": [], "parameters": {"shared_memory_region": "r",
             "shared_memory_byte_size": 8}}]}"#;
        let reply = ReplyHeader::from_bytes(header).unwrap();
        assert_eq!((reply.model_version.as_str(), reply.framed()), ("3", 1));
        assert_eq!(reply.outputs[1].area, Some(Area { region: "r".into(), offset: 0, bytes: 8 }));
        for wrong in [&b""[..], b"[]", br#"{"model_name":"m","outputs":[{"name":"y","datatype":"FP33","shape":[]}]}"#] {
            assert_eq!(ReplyHeader::from_bytes(wrong).unwrap_err().code, Code::Internal);
        }
    }
}
