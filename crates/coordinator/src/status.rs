//! Errors as clients see them: a code, one line, and the reason as data (`google.rpc.ErrorInfo`).

use std::collections::HashMap;
use std::time::Duration;

use control::ControlError;
use tonic::{Code, Status};
use tonic_types::{ErrorDetails, StatusExt};
use wire::convert::ConvertError;

use crate::driver::Gone;

/// Whose reasons these are.
const DOMAIN: &str = "fresco";

/// An error with its reason, the field at fault, and when to try again.
pub(crate) fn status(
    code: Code,
    reason: &str,
    message: impl Into<String>,
    field: Option<&str>,
    retry: Option<Duration>,
) -> Status {
    let message = message.into();
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
    const SOON: Duration = Duration::from_secs(5);
    let (code, reason, field, retry) = match error {
        ControlError::NotFound { .. } => (Code::NotFound, "JOB_NOT_FOUND", Some("id"), None),
        ControlError::AlreadyExists { .. } => (Code::AlreadyExists, "REQUEST_ID_USED", Some("request_id"), None),
        ControlError::QueueFull { .. } => (Code::ResourceExhausted, "QUEUE_FULL", None, Some(SOON)),
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

impl From<Gone> for Status {
    fn from(gone: Gone) -> Self {
        status(Code::Unavailable, "ENDING", gone.to_string(), None, Some(Duration::from_secs(1)))
    }
}
