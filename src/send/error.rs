//! Why a sticky event was not sent.

use std::time::Duration;

use crate::{
    context::EnsureError,
    outbox::{PrepareError, PutError, RequestError},
    request::rate_limited,
};

/// Why a sticky event, a removal or a redaction was not sent.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SendError {
    /// The event could not be made ready. Nothing was sent.
    #[error("nothing was sent: {0}")]
    Prepare(#[from] PrepareError),
    /// The room became encrypted while the event was being tried in plaintext, without an answer.
    /// Nobody knows whether the server has it. It is not tried again in plaintext. Send it again, and it
    /// is encrypted.
    #[error("the room became encrypted while the event was being sent in plaintext: send it again")]
    BecameEncrypted,
    /// The server wants fewer requests.
    #[error("{}", rate_limited(*.retry_after))]
    RateLimited {
        /// When it will take another, if it says so.
        retry_after: Option<Duration>,
    },
    /// There is no access token, or it is not valid any more: log in, or refresh it.
    #[error("there is no access token, or it is not valid any more: log in, or refresh it")]
    NotLoggedIn,
    /// The server refuses the event, and will again.
    #[error("the server refuses the event: {}", refusal(*.status, .errcode.as_deref(), .message.as_deref()))]
    Refused {
        /// The status of HTTP.
        status: u16,
        /// The code of Matrix: `M_FORBIDDEN` if the user may not send this in the room.
        errcode: Option<String>,
        /// The server's words, at most 200 characters.
        message: Option<String>,
    },
    /// The server cannot be reached, or answers with errors, after several tries. Nobody knows whether
    /// it has the event. Sending it again makes a second event of the same key, and the later one counts.
    #[error("the server cannot be reached: {error}")]
    Unreachable {
        /// What went wrong, in words.
        error: String,
    },
}

impl From<RequestError> for SendError {
    fn from(error: RequestError) -> Self {
        match error {
            RequestError::NotRecognized => {
                Self::Unreachable { error: "the server does not know the request".to_owned() }
            }
            RequestError::RateLimited { retry_after } => Self::RateLimited { retry_after },
            RequestError::Unreachable { error, .. } => Self::Unreachable { error },
            RequestError::NotLoggedIn => Self::NotLoggedIn,
            RequestError::Blocked { status } => Self::Unreachable {
                error: format!("something before the homeserver answers with status {status}"),
            },
            RequestError::Refused { status, errcode, message } => {
                Self::Refused { status, errcode, message }
            }
        }
    }
}

impl From<EnsureError> for SendError {
    fn from(error: EnsureError) -> Self {
        match error {
            EnsureError::Unsupported(what) => PrepareError::Unsupported(what).into(),
            EnsureError::Request(error) => error.into(),
        }
    }
}

impl From<PutError> for SendError {
    fn from(error: PutError) -> Self {
        match error {
            PutError::BecameEncrypted => Self::BecameEncrypted,
            PutError::Request(error) => error.into(),
        }
    }
}

impl SendError {
    /// Whether another try of the same may succeed, and how long the server asks to wait before it.
    pub(super) fn worth_another_try(&self) -> Option<Option<Duration>> {
        match self {
            Self::Unreachable { .. } => Some(None),
            Self::RateLimited { retry_after } => Some(*retry_after),
            // The keys of the room's members were asked for, and the server did not answer.
            #[cfg(feature = "e2e-encryption")]
            Self::Prepare(PrepareError::Encrypt(error)) => error.worth_another_try(),
            _ => None,
        }
    }
}

fn refusal(status: u16, errcode: Option<&str>, message: Option<&str>) -> String {
    let mut text = match errcode {
        Some(errcode) => format!("{status} {errcode}"),
        None => format!("status {status}"),
    };
    if let Some(message) = message {
        text.push_str(": ");
        text.push_str(message);
    }
    text
}
