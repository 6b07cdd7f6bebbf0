//! What can go wrong with delayed events, and what to do next.

use std::{fmt, time::Duration};

use super::DelayId;
use crate::send::{LONGEST_RETRY_AFTER, SendError, write_rate_limited};

/// Why a delayed event was not scheduled, restarted, sent or cancelled.
///
/// None of them holds a delay id, nor the server's own words, which may have one.
#[derive(Debug)]
#[non_exhaustive]
pub enum DelayedError {
    /// The server does not know delayed events (MSC4140). What is to be said later has to be said by
    /// the client itself, or by a sticky event that ends soon.
    NotSupported {
        /// Whether the server has taken the event for an ordinary one, and sent it at once.
        may_have_been_sent: bool,
    },
    /// The server knows delayed events, and its administrator has not allowed any.
    Disabled,
    /// The server takes what is to be sticky only by an endpoint that has not been seen to keep it so.
    /// What it sent would remove nobody, so nothing was scheduled: let a sticky event end soon.
    ForgetsStickiness,
    /// The delay is longer than the server allows: ask for less.
    TooLong {
        /// The longest that it allows, where it says so.
        max: Option<Duration>,
    },
    /// The user has as many events scheduled as the server allows: cancel some
    /// ([`DelayedEvents::list`](super::DelayedEvents::list)), or wait until one is due.
    QuotaFull {
        /// When the next of them is due, if the server says so.
        retry_after: Option<Duration>,
    },
    /// There is no such event any more: it was sent or cancelled, or never was. Which, only the
    /// room tells.
    Gone,
    /// It was sent already, and cannot be cancelled.
    AlreadySent,
    /// It was cancelled already, and cannot be sent.
    AlreadyCancelled,
    /// The server wants fewer requests.
    RateLimited {
        /// When it will take another, if it said so.
        retry_after: Option<Duration>,
    },
    /// The server cannot be reached, does not answer in time, or answers with errors.
    Unreachable {
        /// What went wrong, in words.
        error: String,
        /// Whether it may have been done all the same: the request may have arrived. To know, ask
        /// again: schedule the same [`PreparedEvent`](super::PreparedEvent), or restart.
        may_have_happened: bool,
    },
    /// There is no access token, or it is not valid any more: log in, or refresh it.
    NotLoggedIn,
    /// Something before the homeserver has answered, such as a firewall's or a portal's page. The
    /// homeserver has done nothing: try again.
    Blocked {
        /// The status of HTTP.
        status: u16,
    },
    /// The server refuses, and will again.
    Refused {
        /// The status of HTTP.
        status: u16,
        /// The code of Matrix: `M_FORBIDDEN`, where the user may not do this in the room.
        errcode: Option<String>,
    },
    /// The room has become encrypted since the event was prepared in plaintext. It is not asked for
    /// any more; an earlier request may have scheduled it, which
    /// [`DelayedEvents::list`](super::DelayedEvents::list) tells. Prepare another.
    BecameEncrypted,
    /// The event could not be made ready, and nothing was scheduled: the content is no object, the
    /// server does not know sticky events, or it could not be encrypted.
    Prepare(SendError),
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
                Some(retry_after.unwrap_or_default()).filter(|wait| *wait <= LONGEST_RETRY_AFTER)
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

impl fmt::Display for DelayedError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotSupported { may_have_been_sent: false } => f.write_str(
                "the homeserver does not support delayed events (MSC4140), and nothing was done: \
                 send by yourself when it is time, or let a sticky event end soon",
            ),
            Self::NotSupported { may_have_been_sent: true } => f.write_str(
                "the homeserver does not support delayed events (MSC4140): it may have sent the \
                 event at once; look into the room, and send again what it has replaced",
            ),
            Self::Disabled => f.write_str(
                "the homeserver's administrator has not allowed delayed events: send by yourself \
                 when it is time, or let a sticky event end soon",
            ),
            Self::ForgetsStickiness => f.write_str(
                "the homeserver's endpoint for delayed events has not been seen to keep them sticky, \
                 and nothing was scheduled: send by yourself when it is time, or let a sticky event \
                 end soon",
            ),
            Self::TooLong { max: Some(max) } => {
                write!(f, "the delay is too long: the server allows {max:?} at most")
            }
            Self::TooLong { max: None } => {
                f.write_str("the delay is longer than the server allows: ask for less")
            }
            Self::QuotaFull { retry_after: Some(wait) } => write!(
                f,
                "the server keeps no more delayed events of this user: cancel some, or wait \
                 {wait:?} until one is due"
            ),
            Self::QuotaFull { retry_after: None } => f.write_str(
                "the server keeps no more delayed events of this user: cancel some, or wait until \
                 one is due",
            ),
            Self::Gone => f.write_str(
                "there is no such delayed event any more: it was sent or cancelled, or never was; \
                 look into the room, and schedule another",
            ),
            Self::AlreadySent => f.write_str("the delayed event was sent already"),
            Self::AlreadyCancelled => {
                f.write_str("the delayed event was cancelled already: schedule another")
            }
            Self::RateLimited { retry_after } => write_rate_limited(f, *retry_after),
            Self::Unreachable { error, may_have_happened: true } => write!(
                f,
                "whether it was done is not known, as the server cannot be reached: {error}; ask \
                 again under the same transaction id, or restart"
            ),
            Self::Unreachable { error, may_have_happened: false } => {
                write!(f, "nothing was done, as the server cannot be reached: {error}; try again")
            }
            Self::NotLoggedIn => f.write_str(
                "there is no access token, or it is not valid any more: log in, or refresh it",
            ),
            Self::Blocked { status } => write!(
                f,
                "nothing was done, as something before the homeserver has answered with status \
                 {status}: try again"
            ),
            Self::Refused { status, errcode: Some(errcode) } => {
                write!(f, "the server refuses, and will again: {status} {errcode}")
            }
            Self::Refused { status, errcode: None } => {
                write!(f, "the server refuses, and will again: status {status}")
            }
            Self::BecameEncrypted => f.write_str(
                "the room has become encrypted since the event was prepared in plaintext: prepare \
                 another, and cancel this one if it is listed",
            ),
            Self::Prepare(error) => error.fmt(f),
        }
    }
}

impl std::error::Error for DelayedError {}
