//! Errors as clients see them: a code, one line, and the reason as data (`google.rpc.ErrorInfo`).

use std::collections::HashMap;
use std::time::Duration;

use control::ControlError;
use tonic::{Code, Status};
use tonic_types::{ErrorDetails, StatusExt};
use wire::convert::ConvertError;

use crate::driver::{Refusal, Unanswered};
use crate::report::cut;

/// Whose reasons these are.
const DOMAIN: &str = "fresco";
/// Of a message: it travels in a header, and may repeat what was asked.
const LONGEST_MESSAGE_BYTES: usize = 2048;
const SOON: Duration = Duration::from_secs(1);

/// An error with its reason, the field at fault, and when to try again.
pub(crate) fn status(
    code: Code,
    reason: &str,
    message: impl Into<String>,
    field: Option<&str>,
    retry: Option<Duration>,
) -> Status {
    let message = cut(message.into(), LONGEST_MESSAGE_BYTES);
    let mut details = ErrorDetails::with_error_info(reason, DOMAIN, HashMap::new());
    if let Some(field) = field {
        details.add_bad_request_violation(field, message.clone());
    }
    if retry.is_some() {
        details.set_retry_info(retry);
    }
    Status::with_error_details(code, message, details)
}

pub(crate) fn of_control(error: &ControlError) -> Status {
    let (code, reason, field, retry) = match error {
        ControlError::NotFound { .. } => (Code::NotFound, "JOB_NOT_FOUND", Some("id"), None),
        ControlError::AlreadyExists { .. } => (Code::AlreadyExists, "REQUEST_ID_USED", Some("request_id"), None),
        ControlError::QueueFull { .. } => (Code::ResourceExhausted, "QUEUE_FULL", None, Some(5 * SOON)),
        ControlError::Count { .. } => (Code::InvalidArgument, "COUNT_OUT_OF_RANGE", Some("spec.count"), None),
        ControlError::IsOver { .. } => (Code::FailedPrecondition, "JOB_IS_OVER", Some("id"), None),
        ControlError::NotOver { .. } => (Code::FailedPrecondition, "JOB_IS_NOT_OVER", Some("id"), None),
        ControlError::NothingToRetry { .. } => (Code::FailedPrecondition, "NOTHING_TO_RETRY", Some("id"), None),
    };
    status(code, reason, error.to_string(), field, retry)
}

pub(crate) fn invalid(error: &ConvertError) -> Status {
    status(Code::InvalidArgument, "INVALID_REQUEST", error.to_string(), Some("spec"), None)
}

pub(crate) fn of_refusal(refusal: &Refusal) -> Status {
    match refusal {
        Refusal::Control(error) => of_control(error),
        away => status(Code::Unavailable, "STORE_AWAY", away.to_string(), None, Some(SOON)),
    }
}

impl From<Unanswered> for Status {
    fn from(unanswered: Unanswered) -> Self {
        let reason = match unanswered {
            Unanswered::Gone => "ENDING",
            Unanswered::Busy => "BUSY",
        };
        status(Code::Unavailable, reason, unanswered.to_string(), None, Some(SOON))
    }
}
