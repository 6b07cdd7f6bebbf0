//! Requests: the settings of one request, and what its failure means.
//!
//! In: how long a request may take; an error of matrix-sdk's HTTP client. Out: the settings, a
//! [`Verdict`] on another attempt, and the error in words that are safe to show. Never: a retry by
//! itself, or a word of the request or of the answer's text.

use std::{error::Error, iter::successors, time::Duration};

use matrix_sdk::{
    HttpError, RefreshTokenError,
    authentication::oauth::{OAuthError, error::OAuthRequestError},
    config::RequestConfig,
    reqwest,
};
use ruma::{
    api::error::{ErrorKind, FromHttpResponseError, RetryAfter},
    exports::http::StatusCode,
};

/// When to give up on one attempt of a request. Callers with a reason for another time name their
/// own.
pub(crate) const REQUEST_TIMEOUT: Duration = Duration::from_secs(15);

/// The longest description of an error, in characters: some proxies answer with a whole page.
const MAX_ERROR_CHARS: usize = 200;

/// Returns the settings for one attempt that ends after `timeout`. This crate decides when to try
/// again, and the SDK does not.
pub(crate) fn one_try(timeout: Duration) -> RequestConfig {
    RequestConfig::new().timeout(timeout).disable_retry()
}

/// Returns the settings for attempts that the SDK repeats up to `retries` times. Each ends after
/// `timeout`.
pub(crate) fn with_retries(timeout: Duration, retries: usize) -> RequestConfig {
    RequestConfig::new().timeout(timeout).retry_limit(retries)
}

/// Whether another attempt of the same request may succeed.
pub(crate) enum Verdict {
    /// It may.
    Again,
    /// The server wants fewer requests. It may say how long to wait.
    RateLimited(Option<Duration>),
    /// The server refuses the request, and will again.
    Hopeless,
}

impl Verdict {
    pub(crate) fn of(error: &HttpError) -> Self {
        let Some(api_error) = error.as_client_api_error() else { return Self::Again };
        match api_error.error_kind() {
            Some(ErrorKind::LimitExceeded(limit)) => Self::RateLimited(match limit.retry_after {
                Some(RetryAfter::Delay(wait)) => Some(wait),
                _ => None,
            }),
            // A proxy before the server speaks no Matrix, and says it with the status alone.
            _ => match api_error.status_code {
                StatusCode::TOO_MANY_REQUESTS => Self::RateLimited(None),
                StatusCode::REQUEST_TIMEOUT => Self::Again,
                // The page of something in between, such as a firewall, says nothing about the
                // server.
                _ if api_error.error_kind().is_none() => Self::Again,
                status if status.is_client_error() => Self::Hopeless,
                _ => Self::Again,
            },
        }
    }
}

/// Whether the server refused to refresh the access token. Only then is the session over: without
/// an answer, the server may just have been away.
pub(crate) fn is_refresh_refused(error: &RefreshTokenError) -> bool {
    match error {
        RefreshTokenError::RefreshTokenRequired => true,
        RefreshTokenError::MatrixAuth(error) => {
            matches!(
                error.client_api_error_kind(),
                Some(ErrorKind::UnknownToken(_) | ErrorKind::MissingToken | ErrorKind::Forbidden)
            )
        }
        RefreshTokenError::OAuth(error) => {
            matches!(**error, OAuthError::RefreshToken(OAuthRequestError::ServerResponse(_)))
        }
    }
}

/// Describes what went wrong in at most 200 characters, without control characters. The request is
/// left out, as [`describe_network`] does. The answer is left out too, because it may hold
/// somebody's text.
pub(crate) fn describe(error: &HttpError) -> String {
    match error {
        HttpError::Reqwest(error) => describe_network(error),
        HttpError::Api(error) if matches!(**error, FromHttpResponseError::Deserialization(_)) => {
            "the server's answer cannot be read".into()
        }
        error => shorten(&error.to_string()),
    }
}

/// Describes why no answer came, in at most 200 characters. The error's own text would show the URL,
/// and with it a delay id, so only its causes are named.
pub(crate) fn describe_network(error: &reqwest::Error) -> String {
    let causes = successors(error.source(), |&error| error.source());
    shorten(&causes.map(ToString::to_string).collect::<Vec<_>>().join(": "))
}

/// Returns at most 200 characters of a text, without control characters.
pub(crate) fn shorten(text: &str) -> String {
    if text.is_empty() {
        return "the request failed".into();
    }
    text.chars().map(|c| if c.is_control() { ' ' } else { c }).take(MAX_ERROR_CHARS).collect()
}

/// Returns what each error says when the server wants fewer requests.
pub(crate) fn rate_limited(retry_after: Option<Duration>) -> String {
    match retry_after {
        Some(wait) => format!("the server takes no more for now; try again in {wait:?}"),
        None => "the server takes no more for now; try again later".to_owned(),
    }
}
