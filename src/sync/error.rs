//! Errors: why a request of a source brought nothing.
//!
//! In: an error of matrix-sdk's HTTP client. Out: a [`ConnectionError`], which says what to do next.
//! Never: a word of the request.

use std::time::{Duration, SystemTime};

use matrix_sdk::{HttpError, RefreshTokenError};
use ruma::api::error::{ErrorKind, RetryAfter};

use super::state::Unsupported;
use crate::request::{describe, is_refresh_refused};

/// The longest wait that a server can ask a source for. If the server means more, it gets one request
/// too many.
pub(super) const MAX_SOURCE_RETRY_AFTER: Duration = Duration::from_secs(600);

/// Why a request brought nothing.
#[derive(Debug, thiserror::Error)]
pub(super) enum ConnectionError {
    /// The server does not know the `pos` or the `since` of the request.
    #[error("the server does not know the position")]
    UnknownPos,
    /// The access token is not valid.
    #[error("the access token is not valid")]
    LoggedOut,
    /// The access token was not valid, and was refreshed while the request was on its way. The new
    /// one may be valid.
    #[error("the access token was refreshed meanwhile")]
    TokenChanged,
    /// The server lacks something that the source needs.
    #[error(transparent)]
    Unsupported(Unsupported),
    /// The server wants fewer requests.
    #[error("the server wants fewer requests")]
    RateLimited { retry_after: Option<RetryAfter> },
    /// The server did not answer in time.
    #[error("the server did not answer in time")]
    TimedOut,
    /// Anything else, in words. The next attempt may succeed.
    #[error("{0}")]
    Transient(String),
}

impl ConnectionError {
    /// Returns how long the server wants to be left alone, if it said so.
    pub(super) fn retry_after(&self, now: SystemTime) -> Option<Duration> {
        let Self::RateLimited { retry_after } = self else { return None };
        let wait = match retry_after.as_ref()? {
            RetryAfter::Delay(wait) => *wait,
            RetryAfter::DateTime(at) => at.duration_since(now).unwrap_or_default(),
        };
        Some(wait.min(MAX_SOURCE_RETRY_AFTER))
    }

    /// Reads a failure of `/versions`. Every homeserver has that endpoint, so a server that does not
    /// know it is no homeserver, or is not up yet.
    pub(super) fn of_versions(error: HttpError) -> Self {
        match Self::from(error) {
            Self::Unsupported(_) | Self::UnknownPos => {
                Self::Transient("the server does not answer `/versions` like a homeserver".into())
            }
            error => error,
        }
    }

    /// Reads why the access token was not refreshed.
    fn of_refresh(error: &RefreshTokenError) -> Self {
        if is_refresh_refused(error) {
            Self::LoggedOut
        } else {
            Self::Transient("could not refresh the access token".into())
        }
    }
}

impl From<HttpError> for ConnectionError {
    fn from(error: HttpError) -> Self {
        if let HttpError::RefreshToken(error) = &error {
            return Self::of_refresh(error);
        }
        if matches!(&error, HttpError::Reqwest(error) if error.is_timeout()) {
            return Self::TimedOut;
        }
        let Some(api_error) = error.as_client_api_error() else {
            return Self::Transient(describe(&error));
        };
        match api_error.error_kind() {
            Some(ErrorKind::UnknownPos) => Self::UnknownPos,
            // The server cannot read the token `since`.
            Some(ErrorKind::BadJson | ErrorKind::InvalidParam) => Self::UnknownPos,
            Some(ErrorKind::UnknownToken(_) | ErrorKind::MissingToken) => Self::LoggedOut,
            Some(ErrorKind::Unrecognized) => Self::Unsupported(Unsupported::SlidingSync),
            Some(ErrorKind::LimitExceeded(limit)) => {
                Self::RateLimited { retry_after: limit.retry_after }
            }
            _ => Self::Transient(describe(&error)),
        }
    }
}
