//! What can go wrong with delayed events, and what to do next.

use std::time::Duration;

use super::DelayId;
use crate::{
    outbox::{MAX_RETRY_AFTER, PrepareError, PutError, RequestError},
    request::rate_limited,
};

/// Why a delayed event was not scheduled, restarted, sent or cancelled.
///
/// No variant holds a delay id, nor the server's own words, which may have one.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DelayedError {
    /// The server does not know delayed events (MSC4140). Send the event when it is time, or let a
    /// sticky event end soon.
    #[error("{}", not_supported(*.may_have_been_sent))]
    NotSupported {
        /// Whether the server has taken the event for an ordinary one, and sent it at once.
        may_have_been_sent: bool,
    },
    /// The server knows delayed events, and its administrator has not allowed any.
    #[error(
        "the homeserver's administrator has not allowed delayed events: send by yourself when it is \
         time, or let a sticky event end soon"
    )]
    Disabled,
    /// The server takes sticky delayed events only by an endpoint that has not been seen to keep them
    /// sticky. Such a leave would remove nobody, so nothing was scheduled: let a sticky event end soon.
    #[error(
        "the homeserver's endpoint for delayed events has not been seen to keep them sticky, and \
         nothing was scheduled: send by yourself when it is time, or let a sticky event end soon"
    )]
    ForgetsStickiness,
    /// The delay is longer than the server allows: ask for less.
    #[error("{}", too_long(*.max))]
    TooLong {
        /// The longest delay that the server allows, if it says so.
        max: Option<Duration>,
    },
    /// The user has as many delayed events as the server allows: cancel some
    /// ([`DelayedEvents::list`](super::DelayedEvents::list)), or wait until one is due.
    #[error("{}", quota_full(*.retry_after))]
    QuotaFull {
        /// When the next of them is due, if the server says so.
        retry_after: Option<Duration>,
    },
    /// There is no such event any more: it was sent or cancelled, or never was. Only the room tells
    /// which.
    #[error(
        "there is no such delayed event any more: it was sent or cancelled, or never was; look into \
         the room, and schedule another"
    )]
    Gone,
    /// The event was sent already, and cannot be cancelled.
    #[error("the delayed event was sent already")]
    AlreadySent,
    /// The event was cancelled already, and cannot be sent.
    #[error("the delayed event was cancelled already: schedule another")]
    AlreadyCancelled,
    /// The server wants fewer requests.
    #[error("{}", rate_limited(*.retry_after))]
    RateLimited {
        /// When it will take another, if it says so.
        retry_after: Option<Duration>,
    },
    /// The server cannot be reached, does not answer in time, or answers with errors.
    #[error("{}", unreachable(.error, *.may_have_happened))]
    Unreachable {
        /// What went wrong, in words.
        error: String,
        /// Whether it may have been done all the same: the request may have arrived. To know, ask
        /// again: schedule the same [`PreparedEvent`](super::PreparedEvent), or restart.
        may_have_happened: bool,
    },
    /// There is no access token, or it is not valid any more: log in, or refresh it.
    #[error("there is no access token, or it is not valid any more: log in, or refresh it")]
    NotLoggedIn,
    /// Something before the homeserver has answered, such as the page of a firewall or a portal. The
    /// homeserver has done nothing: try again.
    #[error(
        "nothing was done, as something before the homeserver has answered with status {status}: try \
         again"
    )]
    Blocked {
        /// The status of HTTP.
        status: u16,
    },
    /// The server refuses, and will again.
    #[error("the server refuses, and will again: {}", refusal(*.status, .errcode.as_deref()))]
    Refused {
        /// The status of HTTP.
        status: u16,
        /// The code of Matrix: `M_FORBIDDEN` if the user may not do this in the room.
        errcode: Option<String>,
    },
    /// The room has become encrypted since the event was prepared in plaintext. It is not asked for
    /// any more. An earlier request may have scheduled it:
    /// [`DelayedEvents::list`](super::DelayedEvents::list) tells. Prepare another.
    #[error(
        "the room has become encrypted since the event was prepared in plaintext: prepare another, \
         and cancel this one if it is listed"
    )]
    BecameEncrypted,
    /// The event could not be made ready, and nothing was scheduled.
    #[error("nothing was scheduled: {0}")]
    Prepare(#[from] PrepareError),
}

impl From<RequestError> for DelayedError {
    fn from(error: RequestError) -> Self {
        match error {
            RequestError::NotRecognized => Self::NotSupported { may_have_been_sent: false },
            RequestError::RateLimited { retry_after } => Self::RateLimited { retry_after },
            RequestError::Unreachable { error, may_have_happened } => {
                Self::Unreachable { error, may_have_happened }
            }
            RequestError::NotLoggedIn => Self::NotLoggedIn,
            RequestError::Blocked { status } => Self::Blocked { status },
            // Not with the server's words, which may hold a delay id.
            RequestError::Refused { status, errcode, .. } => Self::Refused { status, errcode },
        }
    }
}

impl From<PutError> for DelayedError {
    fn from(error: PutError) -> Self {
        match error {
            PutError::BecameEncrypted => Self::BecameEncrypted,
            PutError::Request(error) => error.into(),
        }
    }
}

impl DelayedError {
    /// Whether what was asked may have been done all the same.
    pub fn may_have_happened(&self) -> bool {
        match self {
            Self::Unreachable { may_have_happened, .. } => *may_have_happened,
            Self::NotSupported { may_have_been_sent } => *may_have_been_sent,
            _ => false,
        }
    }

    /// How long to wait at least before the same is tried again; `None` when that is hopeless, or
    /// would take too long for somebody who waits.
    pub(super) fn worth_another_try(&self) -> Option<Duration> {
        match self {
            Self::Unreachable { .. } | Self::Blocked { .. } => Some(Duration::ZERO),
            Self::RateLimited { retry_after } => {
                Some(retry_after.unwrap_or_default()).filter(|wait| *wait <= MAX_RETRY_AFTER)
            }
            _ => None,
        }
    }

    /// The error of several tries of the same, of which one may have arrived.
    pub(super) fn after_tries(self, may_have_happened: bool) -> Self {
        match self {
            Self::Unreachable { error, .. } => Self::Unreachable { error, may_have_happened },
            error => error,
        }
    }

    /// The same, if a server has put a delay id where none belongs.
    pub(super) fn without(self, delay_id: &DelayId) -> Self {
        match self {
            Self::Refused { status, errcode } => Self::Refused {
                status,
                errcode: errcode.filter(|code| !code.contains(delay_id.as_secret_str())),
            },
            error => error,
        }
    }
}

fn not_supported(may_have_been_sent: bool) -> &'static str {
    if may_have_been_sent {
        "the homeserver does not support delayed events (MSC4140): it may have sent the event at once; \
         look into the room, and send again what it has replaced"
    } else {
        "the homeserver does not support delayed events (MSC4140), and nothing was done: send by \
         yourself when it is time, or let a sticky event end soon"
    }
}

fn too_long(max: Option<Duration>) -> String {
    match max {
        Some(max) => format!("the delay is too long: the server allows {max:?} at most"),
        None => "the delay is longer than the server allows: ask for less".to_owned(),
    }
}

fn quota_full(retry_after: Option<Duration>) -> String {
    let wait = retry_after.map_or_else(String::new, |wait| format!(" {wait:?}"));
    format!(
        "the server keeps no more delayed events of this user: cancel some, or wait{wait} until one \
         is due"
    )
}

fn unreachable(error: &str, may_have_happened: bool) -> String {
    if may_have_happened {
        format!(
            "whether it was done is not known, as the server cannot be reached: {error}; ask again \
             under the same transaction id, or restart"
        )
    } else {
        format!("nothing was done, as the server cannot be reached: {error}; try again")
    }
}

fn refusal(status: u16, errcode: Option<&str>) -> String {
    match errcode {
        Some(errcode) => format!("{status} {errcode}"),
        None => format!("status {status}"),
    }
}
