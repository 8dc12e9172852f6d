//! Inference with large binary tensors: they are received into shared memory, and outputs are sent from there.

use std::sync::{Arc, PoisonError};
use std::time::Duration;

use ::http::header;
use bytes::{Bytes, BytesMut};
use http_body::Body;

use super::infer::{Endpoint, Plan};
use super::request_tensors::Source;
use crate::compression::Compression;
use crate::context::Context;
use crate::http::{BodyReader, Request, Response};
use crate::mt1::{
    Area, DaemonError, FIRST_AREA, LARGE_BYTES, Layout, Lease, OutputHeader, RawReply, ReplyHeader, large_outputs,
    microseconds,
};
use crate::tensor::Datatype;

/// A longer JSON has data in it, or very many tensors.
const MAX_JSON_BYTES: usize = 64 << 10;

/// Memory that is reserved for a body before its bytes have come.
const RESERVED_BYTES: usize = 1 << 20;

/// Whether the body of a request is worth shared memory, and of a form that allows it.
pub fn is_large(request: &Request, json_bytes: usize) -> bool {
    let Some(total) = request.body().size_hint().exact() else { return false };
    let plain = !request.headers().contains_key(header::CONTENT_ENCODING);
    plain && total >= LARGE_BYTES as u64 && (1..=MAX_JSON_BYTES).contains(&json_bytes) && total >= json_bytes as u64
}

impl Plan {
    fn layout(&self) -> Layout {
        let inputs = self.body.inputs.iter().map(|input| match input.source {
            Source::Binary(size) if input.datatype != Datatype::Bytes && size > 0 => Some(size),
            _ => None,
        });
        Layout::new(inputs, &self.large_outputs.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Remembers the outputs that the next request should have areas for.
    fn remember_outputs(&self, outputs: &[OutputHeader]) {
        let large = large_outputs(outputs);
        let mut known = self.large_outputs.lock().unwrap_or_else(PoisonError::into_inner);
        if *known != large {
            *known = large;
        }
    }
}

impl Endpoint {
    /// Answers a request for which `is_large` is true.
    pub async fn infer_large(
        &self,
        context: &Context,
        mut request: Request,
        json_bytes: usize,
        timeout: Option<Duration>,
        accepted: Option<Compression>,
    ) -> Result<Response, DaemonError> {
        let limits = &context.settings.limits;
        let mut body = BodyReader::new(request.body_mut(), limits.max_body_bytes, limits.body_timeout())?;
        let binary_bytes = body.expected() - json_bytes;
        let mut incoming = Pieces { body: &mut body, piece: Bytes::new() };
        let text = incoming.collect(json_bytes).await?;
        let (plan, unknown) = self.plan(context, text, timeout).await?;
        if plan.binary_bytes != binary_bytes {
            return Err(plan.wrong_size(binary_bytes));
        }
        let layout = plan.layout();
        let Some(lease) = context.daemon.regions().take(layout.end - FIRST_AREA) else {
            let tensors = plan.tensors(&incoming.collect(binary_bytes).await?)?;
            drop(request);
            let reply = context.daemon.infer_raw(plan.header.clone(), tensors, plan.timeout).await?;
            self.remember(unknown, &plan);
            let header = context.daemon.reply_header(&reply)?;
            return plan.finish(header, reply, None, accepted).await;
        };
        let mut frames = Vec::new();
        for (input, offset) in plan.body.inputs.iter().zip(&layout.inputs) {
            match (&input.source, offset) {
                (Source::Json(data), _) => frames.push(data.clone()),
                (Source::Binary(size), None) => frames.push(incoming.collect(*size).await?),
                (Source::Binary(size), Some(offset)) => incoming.receive(*size, &lease, *offset).await?,
            }
        }
        drop(request);
        let (reply, lease) = plan.clone().run(context, &layout, frames, lease).await?;
        self.remember(unknown, &plan);
        let header = context.daemon.reply_header(&reply)?;
        plan.finish(header, reply, lease, accepted).await
    }
}

impl Plan {
    /// Runs the model with tensors in a region, or in frames if the daemon cannot open it.
    async fn run(
        self: Arc<Self>,
        context: &Context,
        layout: &Layout,
        frames: Vec<Bytes>,
        lease: Lease,
    ) -> Result<(RawReply, Option<Lease>), DaemonError> {
        let size = |index: usize| match self.body.inputs.get(index).map(|input| &input.source) {
            Some(Source::Binary(size)) => *size,
            _ => 0,
        };
        let inputs = layout.inputs.iter().enumerate();
        let inputs: Vec<Option<Area>> =
            inputs.map(|(index, offset)| offset.map(|offset| lease.area(offset, size(index)))).collect();
        let outputs = layout.outputs.iter().map(|(name, offset, bytes)| (name.clone(), lease.area(*offset, *bytes)));
        let outputs: Vec<(String, Area)> = outputs.collect();
        let header = self.body.header(&self.model, microseconds(self.timeout), &inputs, &outputs);
        lease.sent();
        let outcome = context.daemon.infer_in_areas(header, frames.clone(), self.timeout).await;
        lease.ended(&outcome);
        let error = match outcome {
            Ok(reply) => return Ok((reply, Some(lease))),
            Err(error) => error,
        };
        if !context.daemon.regions().is_refusal(&error) {
            return Err(error);
        }
        let mut frames = frames.into_iter();
        let tensors = layout.inputs.iter().enumerate().filter_map(|(index, offset)| match offset {
            Some(offset) => Some(lease.bytes(*offset, size(index))),
            None => frames.next(),
        });
        let reply = context.daemon.infer_raw(self.header.clone(), tensors.collect(), self.timeout).await?;
        Ok((reply, None))
    }

    /// Returns the response, with outputs from frames and from the region.
    async fn finish(
        self: Arc<Self>,
        header: Arc<ReplyHeader>,
        reply: RawReply,
        lease: Option<Lease>,
        accepted: Option<Compression>,
    ) -> Result<Response, DaemonError> {
        self.remember_outputs(&header.outputs);
        let mut frames = reply.tensors.into_iter();
        let tensors = header.outputs.iter().map(|output| match &output.area {
            None => frames.next(),
            Some(area) => lease.as_ref().and_then(|lease| lease.output(area)),
        });
        let tensors: Option<Vec<Bytes>> = tensors.collect();
        let tensors = tensors.ok_or_else(|| {
            let message = "the daemon's reply refers to shared memory that the request did not have";
            DaemonError::internal(message)
        })?;
        self.respond_with(header, tensors, accepted).await
    }
}

/// The pieces of a body, cut where the caller wants.
struct Pieces<'a, 'b> {
    body: &'a mut BodyReader<'b>,
    piece: Bytes,
}

impl Pieces<'_, '_> {
    /// Returns the next piece, of at most `wanted` bytes.
    async fn next(&mut self, wanted: usize) -> Result<Bytes, DaemonError> {
        if self.piece.is_empty() {
            self.piece = self.body.next().await?.ok_or_else(|| DaemonError::invalid("the body ended early"))?;
        }
        Ok(self.piece.split_to(wanted.min(self.piece.len())))
    }

    async fn collect(&mut self, size: usize) -> Result<Bytes, DaemonError> {
        let mut collected = BytesMut::with_capacity(size.min(RESERVED_BYTES));
        while collected.len() < size {
            let piece = self.next(size - collected.len()).await?;
            collected.extend_from_slice(&piece);
        }
        Ok(collected.freeze())
    }

    async fn receive(&mut self, size: usize, lease: &Lease, offset: usize) -> Result<(), DaemonError> {
        let mut received = 0;
        while received < size {
            let piece = self.next(size - received).await?;
            lease.write(offset + received, &piece);
            received += piece.len();
        }
        Ok(())
    }
}
