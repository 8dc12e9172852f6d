//! Inference with large inputs: they go through shared memory, past the daemon, and large outputs come back that way.

use std::sync::Arc;

use bytes::Bytes;

use super::{
    ALIGNMENT, Area, Daemon, DaemonError, FIRST_AREA, InferReply, InferRequest, InputHeader, Lease, ModelRef,
    OutputHeader, RequestHeader, microseconds,
};
use crate::tensor::{Datatype, Tensor, byte_count};

/// From this size of all inputs on, shared memory costs less than transmission.
pub const LARGE_BYTES: usize = 64 << 10;

/// Smaller outputs are transmitted.
const LARGE_OUTPUT_BYTES: usize = 4 << 10;

/// What decides which outputs a request has: a model, and its signature.
pub type OutputsKey = (ModelRef, Option<String>);

/// Names and sizes of the outputs that the last large request had.
pub type LargeOutputs = Arc<Vec<(String, usize)>>;

/// Where the tensors of a request are in its region.
pub struct Layout {
    /// Offsets of the inputs; None for those in frames.
    pub inputs: Vec<Option<usize>>,
    /// Names, offsets and sizes of the outputs that may be there.
    pub outputs: Vec<(String, usize, usize)>,
    pub end: usize,
}

impl Layout {
    /// Places inputs of these sizes, None for those in frames, and outputs of these names and sizes.
    pub fn new(inputs: impl Iterator<Item = Option<usize>>, outputs: &[(String, usize)]) -> Self {
        Self::behind(FIRST_AREA, inputs, outputs)
    }

    /// As `new`, from an offset on.
    fn behind(offset: usize, inputs: impl Iterator<Item = Option<usize>>, outputs: &[(String, usize)]) -> Self {
        let mut end = offset.next_multiple_of(ALIGNMENT);
        let mut place = |bytes: usize| {
            let offset = end;
            end = (end + bytes).next_multiple_of(ALIGNMENT);
            offset
        };
        let inputs = inputs.map(|bytes| bytes.map(&mut place)).collect();
        let outputs = outputs.iter().map(|(name, bytes)| (name.clone(), place(*bytes), *bytes)).collect();
        Layout { inputs, outputs, end }
    }
}

/// Strings cannot be in shared memory.
fn is_placed(input: &Tensor) -> bool {
    input.datatype != Datatype::Bytes && !input.data.is_empty()
}

/// Whether a request is worth shared memory.
pub fn is_large(request: &InferRequest) -> bool {
    let placed = request.inputs.iter().filter(|input| is_placed(input));
    placed.map(|input| input.data.len()).sum::<usize>() >= LARGE_BYTES
}

impl Daemon {
    /// Runs a model with its large inputs in a region. Returns None if they have to be transmitted instead.
    pub(super) async fn infer_in_region(&self, request: &InferRequest) -> Option<Result<InferReply, DaemonError>> {
        let key = (request.model.clone(), request.signature_name.clone());
        let known = self.inner.large_outputs.get(&key).unwrap_or_default();
        let (lease, layout) = match self.received_layout(request, &known) {
            Some(received) => received,
            None => self.written_layout(request, &known)?,
        };
        let (mut areas, mut frames) = (Vec::with_capacity(request.inputs.len()), Vec::new());
        for (input, offset) in request.inputs.iter().zip(&layout.inputs) {
            if offset.is_none() {
                frames.push(input.data.clone());
            }
            areas.push(offset.map(|offset| lease.area(offset, input.data.len())));
        }
        let inputs = request.inputs.iter().zip(&areas).map(|(input, area)| InputHeader {
            name: &input.name,
            datatype: input.datatype,
            shape: &input.shape,
            area: area.as_ref(),
        });
        let outputs = layout.outputs.into_iter().map(|(name, offset, bytes)| (name, lease.area(offset, bytes)));
        let timeout = self.timeout(request.timeout);
        let header = RequestHeader {
            model: &request.model,
            inputs: &inputs.collect::<Vec<_>>(),
            outputs: &request.outputs,
            areas: &outputs.collect::<Vec<(String, Area)>>(),
            signature_name: request.signature_name.as_deref(),
            priority: request.priority,
            timeout_us: microseconds(timeout),
        };
        let header = header.to_bytes().into();
        lease.sent();
        let outcome = self.infer_in_areas(header, frames, timeout).await;
        lease.ended(&outcome);
        let reply = match outcome {
            Err(error) if self.regions().is_refusal(&error) => return None,
            Err(error) => return Some(Err(error)),
            Ok(reply) => reply,
        };
        let header = match self.reply_header(&reply) {
            Ok(header) => header,
            Err(error) => return Some(Err(error)),
        };
        let large = large_outputs(&header.outputs);
        self.regions().remember_outputs(large.iter().map(|(_, bytes)| bytes.next_multiple_of(ALIGNMENT)).sum());
        if *known != large {
            self.inner.large_outputs.insert(key, Arc::new(large));
        }
        let outputs = tensors(&header.outputs, reply.tensors, &lease);
        let (model_name, model_version) = (header.model_name.clone(), header.model_version.clone());
        Some(outputs.map(|outputs| InferReply { model_name, model_version, outputs }))
    }

    /// Returns the region that the request's message was received into, and where its tensors are; None if it was not.
    fn received_layout(&self, request: &InferRequest, outputs: &[(String, usize)]) -> Option<(Lease, Layout)> {
        let mut inputs = Vec::with_capacity(request.inputs.len());
        let mut region: Option<Lease> = None;
        for input in &request.inputs {
            if !is_placed(input) {
                inputs.push(None);
                continue;
            }
            let (lease, offset) = self.regions().find(&input.data)?;
            if region.get_or_insert_with(|| lease.clone()) != &lease {
                return None;
            }
            inputs.push(Some(offset));
        }
        let lease = region?;
        // Outputs without room for them come in frames.
        let Layout { outputs, end, .. } = Layout::behind(lease.filled(), std::iter::empty(), outputs);
        let outputs = if end <= lease.size() { outputs } else { Vec::new() };
        Some((lease, Layout { inputs, outputs, end }))
    }

    /// Writes the request's tensors to a region. Returns None if there is none.
    fn written_layout(&self, request: &InferRequest, outputs: &[(String, usize)]) -> Option<(Lease, Layout)> {
        let placed = request.inputs.iter().map(|input| is_placed(input).then_some(input.data.len()));
        let layout = Layout::new(placed, outputs);
        let lease = self.regions().take(layout.end - FIRST_AREA)?;
        for (input, offset) in request.inputs.iter().zip(&layout.inputs) {
            if let Some(offset) = offset {
                lease.write(*offset, &input.data);
            }
        }
        Some((lease, layout))
    }
}

/// Names and sizes of the outputs that the next request should have areas for.
pub fn large_outputs(outputs: &[OutputHeader]) -> Vec<(String, usize)> {
    let large = outputs.iter().filter_map(|output| {
        let bytes = byte_count(output.datatype, &output.shape)?;
        (bytes >= LARGE_OUTPUT_BYTES).then(|| (output.name.clone(), bytes))
    });
    large.collect()
}

/// Returns the outputs, from frames and from the region.
fn tensors(outputs: &[OutputHeader], frames: Vec<Bytes>, lease: &Lease) -> Result<Vec<Tensor>, DaemonError> {
    let mut frames = frames.into_iter();
    let tensors = outputs.iter().map(|output| {
        let data = match &output.area {
            None => frames.next(),
            Some(area) => lease.output(area),
        };
        let data = data.ok_or_else(|| {
            let message = "the daemon's reply refers to shared memory that the request did not have";
            DaemonError::internal(message)
        })?;
        let (name, datatype, shape) = (output.name.clone(), output.datatype, output.shape.clone());
        Ok(Tensor { name, datatype, shape, data })
    });
    tensors.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tensor(datatype: Datatype, bytes: usize) -> Tensor {
        Tensor { name: "x".to_owned(), datatype, shape: vec![], data: vec![0; bytes].into() }
    }

    #[test]
    fn tensors_are_placed_one_after_the_other() {
        let inputs = [tensor(Datatype::Uint8, 100), tensor(Datatype::Bytes, 100), tensor(Datatype::Fp32, 0), {
            tensor(Datatype::Fp32, 64)
        }];
        let placed = inputs.iter().map(|input| is_placed(input).then_some(input.data.len()));
        let layout = Layout::new(placed, &[("y".to_owned(), 10)]);
        assert_eq!(layout.inputs, [Some(FIRST_AREA), None, None, Some(FIRST_AREA + 128)]);
        assert_eq!(layout.outputs, [("y".to_owned(), FIRST_AREA + 192, 10)]);
        assert_eq!(layout.end, FIRST_AREA + 256);
    }

    fn request(inputs: Vec<Tensor>) -> InferRequest {
        InferRequest {
            model: ModelRef::latest("m"),
            inputs,
            outputs: Vec::new(),
            signature_name: None,
            priority: None,
            timeout: None,
        }
    }

    #[tokio::test]
    async fn tensors_of_a_message_in_a_region_stay_where_they_are() {
        let settings = r#"{"version": "0", "daemon": "/nonexistent/daemon", "listeners": []}"#;
        let daemon = Daemon::start(&serde_json::from_str(settings).unwrap());
        let lease = daemon.regions().take_for_message(1000).unwrap();
        lease.append(&[0; 1000]);
        let message = lease.appended();
        let mut request = request(vec![tensor(Datatype::Bytes, 5), tensor(Datatype::Uint8, 200)]);
        request.inputs[1].data = message.slice(300..500);
        let (region, layout) = daemon.received_layout(&request, &[("y".to_owned(), 70)]).unwrap();
        assert!(region == lease);
        assert_eq!(layout.inputs, [None, Some(FIRST_AREA + 300)]);
        assert_eq!(layout.outputs, [("y".to_owned(), FIRST_AREA + 1024, 70)], "behind the message");
        let (_, layout) = daemon.received_layout(&request, &[("y".to_owned(), region.size())]).unwrap();
        assert!(layout.outputs.is_empty(), "there is no room for it");
        request.inputs.push(tensor(Datatype::Uint8, 200));
        assert!(daemon.received_layout(&request, &[]).is_none(), "one input is elsewhere");
    }

    #[test]
    fn only_large_requests_use_shared_memory() {
        assert!(is_large(&request(vec![tensor(Datatype::Fp32, LARGE_BYTES)])));
        assert!(!is_large(&request(vec![tensor(Datatype::Fp32, LARGE_BYTES - 4)])));
        assert!(!is_large(&request(vec![tensor(Datatype::Bytes, LARGE_BYTES)])));
    }
}
