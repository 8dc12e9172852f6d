//! Raw requests (`Inference-Header-Content-Length: 0`): the body is the data of the model's only input.

use std::time::Duration;

use ::http::HeaderValue;
use bytes::Bytes;

use super::infer::Endpoint;
use super::infer_request::InferBody;
use super::infer_response::{whole_response, write_head};
use crate::context::Context;
use crate::http::Response;
use crate::mt1::{DaemonError, InferRequest, OutputHeader, ReplyHeader};
use crate::tensor::{Datatype, Tensor, element_count, push_element};

impl Endpoint {
    /// Answers a raw request with this body.
    pub async fn infer_raw_tensor(
        &self,
        context: &Context,
        body: Bytes,
        timeout: Option<Duration>,
    ) -> Result<Response, DaemonError> {
        let metadata = context.daemon.model_metadata(&self.model).await?;
        let [input] = metadata.inputs.as_slice() else {
            let message = "a raw request needs a model with exactly one input; this one has another number of them";
            return Err(DaemonError::invalid(message));
        };
        let (shape, data) = if input.datatype == Datatype::Bytes {
            let mut data = Vec::with_capacity(body.len() + 4);
            push_element(&mut data, &body);
            (raw_shape(&input.shape, 1), Bytes::from(data))
        } else {
            let size = input.datatype.size().unwrap_or(1);
            let shape = body.len().is_multiple_of(size).then(|| raw_shape(&input.shape, body.len() / size)).flatten();
            (shape, body)
        };
        let shape = shape.ok_or_else(|| {
            let (name, shape) = (&input.name, &input.shape);
            DaemonError::invalid(format!("the body does not fit input '{name}' of shape {shape:?}"))
        })?;
        let request = InferRequest {
            model: self.model.clone(),
            inputs: vec![Tensor { name: input.name.clone(), datatype: input.datatype, shape, data }],
            outputs: Vec::new(),
            signature_name: None,
            priority: None,
            timeout,
        };
        let reply = context.daemon.infer(request).await?;
        let form = InferBody { binary: true, ..InferBody::default() };
        let outputs = reply.outputs.iter().map(|output| OutputHeader {
            name: output.name.clone(),
            datatype: output.datatype,
            shape: output.shape.clone(),
            area: None,
        });
        let header = ReplyHeader {
            model_name: reply.model_name.clone(),
            model_version: reply.model_version.clone(),
            outputs: outputs.collect(),
        };
        let tensors: Vec<Bytes> = reply.outputs.into_iter().map(|output| output.data).collect();
        let text = write_head(&form, &header, &tensors)?;
        let length = HeaderValue::from(text.len());
        Ok(whole_response(text.into(), &tensors, Some(length)))
    }
}

/// Returns the shape that a raw request has: the declared one, where one dimension may be of any size. A batch dimension
/// before another such dimension is 1.
fn raw_shape(declared: &[i64], elements: usize) -> Option<Vec<i64>> {
    let mut shape = declared.to_vec();
    if shape.iter().filter(|&&dimension| dimension < 0).count() > 1 && shape.first().is_some_and(|&first| first < 0) {
        shape[0] = 1;
    }
    let known = element_count(&shape.iter().copied().filter(|&size| size >= 0).collect::<Vec<_>>())?;
    let mut open = shape.iter_mut().filter(|dimension| **dimension < 0);
    match (open.next(), open.next()) {
        (None, _) => (known == elements).then_some(shape),
        (Some(dimension), None) => {
            if known == 0 || !elements.is_multiple_of(known) {
                return None;
            }
            *dimension = i64::try_from(elements / known).ok()?;
            Some(shape)
        }
        (Some(_), Some(_)) => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn raw_requests_have_the_shape_that_fits() {
        type Row = (&'static [i64], usize, Option<&'static [i64]>);
        let table: &[Row] = &[
            (&[2, 3], 6, Some(&[2, 3])),
            (&[2, 3], 5, None),
            (&[-1, 3], 6, Some(&[2, 3])),
            (&[-1, 3], 5, None),
            (&[-1, -1], 5, Some(&[1, 5])),
            (&[-1, 2, -1], 6, Some(&[1, 2, 3])),
            (&[-1, -1, -1], 6, None),
            (&[], 1, Some(&[])),
            (&[-1, 0], 0, None),
        ];
        for (declared, elements, expected) in table {
            assert_eq!(raw_shape(declared, *elements).as_deref(), *expected, "{declared:?} {elements}");
        }
    }
}
