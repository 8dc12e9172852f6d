//! gRPC's health checking protocol: this server as a whole (`""`), and each of its services.

use std::time::Duration;

use futures_util::stream;
use prost::Message;

use super::call::draining;
use super::{Answer, Call, SERVICES, decode, encode, framed, unknown_method};
use crate::context::Context;
use crate::mt1::{Code, DaemonError};
use crate::proto::health::health_check_response::ServingStatus;
use crate::proto::health::{HealthCheckRequest, HealthCheckResponse};

/// How often a watched status is looked at, and how old it may be: those who watch share what they see.
const WATCH_INTERVAL: Duration = Duration::from_secs(1);
const WATCHED_AGE: Duration = Duration::from_millis(500);

/// How long the daemon may take to say whether it is ready.
const ANSWER_WITHIN: Duration = Duration::from_secs(1);

/// Answers a call of `grpc.health.v1.Health`.
pub async fn answer(call: Call, method: &str) -> Result<Answer, DaemonError> {
    let (context, compression) = (call.context.clone(), call.reply_compression());
    match method {
        "Check" => {
            let service = decode::<HealthCheckRequest>(&call.message().await?)?.service;
            if !is_known(&service) {
                let message = format!("this server has no service {service}");
                return Err(DaemonError::new(Code::NotFound, "service_unknown", message));
            }
            Ok(encode(&HealthCheckResponse { status: status(&context, Duration::ZERO).await.into() }))
        }
        "Watch" => {
            let service = decode::<HealthCheckRequest>(&call.message().await?)?.service;
            let changes = stream::unfold(Some(None), move |state| {
                let (context, known) = (context.clone(), is_known(&service));
                async move {
                    let before = state?;
                    let Some(status) = next_status(&context, known, before).await else {
                        return Some((Err(draining()), None));
                    };
                    let message = HealthCheckResponse { status: status.into() }.encode_to_vec();
                    Some((framed(vec![message.into()], compression).await, Some(Some(status))))
                }
            });
            Ok(Answer::Stream(Box::pin(changes)))
        }
        _ => Err(unknown_method("grpc.health.v1.Health", method)),
    }
}

/// Waits until the status differs from the one before. Returns None if this process drains and nothing differs.
async fn next_status(context: &Context, known: bool, before: Option<ServingStatus>) -> Option<ServingStatus> {
    loop {
        // No service is added while this process runs.
        let now = if known { status(context, WATCHED_AGE).await } else { ServingStatus::ServiceUnknown };
        if before != Some(now) {
            return Some(now);
        }
        if context.is_draining() {
            return None;
        }
        tokio::select! {
            () = tokio::time::sleep(WATCH_INTERVAL) => {}
            () = context.until_draining() => {}
        }
    }
}

fn is_known(service: &str) -> bool {
    service.is_empty() || SERVICES.contains(&service)
}

/// Whether the daemon is ready, and neither it nor this process drains. A daemon that does not answer is not ready.
///
/// `age` is how long ago the daemon may have been asked; 0: now.
async fn status(context: &Context, age: Duration) -> ServingStatus {
    if context.is_draining() {
        return ServingStatus::NotServing;
    }
    let ready = match age {
        Duration::ZERO => context.daemon.is_ready(ANSWER_WITHIN).await,
        age => context.daemon.was_ready(age, ANSWER_WITHIN).await,
    };
    if ready { ServingStatus::Serving } else { ServingStatus::NotServing }
}

#[cfg(test)]
mod tests {
    use super::is_known;

    #[test]
    fn the_server_and_its_services_are_known() {
        for (service, known) in [
            ("", true),
            ("inference.GRPCInferenceService", true),
            ("tensorflow.serving.PredictionService", true),
            ("tensorflow.serving.ModelService", true),
            ("tensorflow.serving.SessionService", false),
        ] {
            assert_eq!(is_known(service), known, "{service}");
        }
    }
}
