//! An answer of the server, and what it means whatever was asked: pure.

use std::time::{Duration, SystemTime};

use ruma::{
    OwnedEventId,
    api::error::RetryAfter,
    exports::http::{HeaderMap, StatusCode, header},
};
use serde::de::DeserializeOwned;
use serde_json::{Map, Value};

use super::RequestError;
use crate::request::shorten;

/// An answer, whatever it says. It has no `Debug`: a server may say a delay id anywhere in it.
pub(crate) struct Answer {
    status: StatusCode,
    retry_after: Option<RetryAfter>,
    body: Vec<u8>,
    refusal: Refusal,
}

/// What a refusal says. All of it is optional, and may be of any type.
#[derive(Default)]
pub(crate) struct Refusal {
    /// Without a code the answer is not Matrix at all.
    pub(crate) errcode: Option<String>,
    /// The words for people. They may hold a delay id.
    pub(crate) error: String,
    retry_after: Option<Duration>,
    body: Map<String, Value>,
}

impl Refusal {
    fn read(body: &[u8]) -> Self {
        let Ok(body) = serde_json::from_slice::<Map<String, Value>>(body) else {
            return Self::default();
        };
        let text = |name: &str| body.get(name).and_then(Value::as_str).map(ToOwned::to_owned);
        let retry_after = body.get("retry_after_ms").and_then(Value::as_u64);
        Self {
            errcode: text("errcode"),
            error: text("error").unwrap_or_default(),
            retry_after: retry_after.map(Duration::from_millis),
            body,
        }
    }

    /// Returns what else it says under this name.
    pub(crate) fn get(&self, name: &str) -> Option<&Value> {
        self.body.get(name)
    }
}

impl Answer {
    pub(crate) fn new(status: StatusCode, headers: &HeaderMap, body: Vec<u8>) -> Self {
        let retry_after =
            headers.get(header::RETRY_AFTER).and_then(|value| RetryAfter::try_from(value).ok());
        let refusal = if status.is_success() { Refusal::default() } else { Refusal::read(&body) };
        Self { status, retry_after, body, refusal }
    }

    pub(crate) fn status(&self) -> StatusCode {
        self.status
    }

    pub(crate) fn is_success(&self) -> bool {
        self.status.is_success()
    }

    pub(crate) fn refusal(&self) -> &Refusal {
        &self.refusal
    }

    /// Whether the server does not know the endpoint, in this form. Only then is another form
    /// tried: nothing can have happened.
    ///
    /// A 404 with another code of Matrix is about the event. A 404 without one comes from a proxy
    /// that knows no such path.
    pub(crate) fn is_unrecognized(&self) -> bool {
        match self.refusal.errcode.as_deref() {
            Some(errcode) => errcode == "M_UNRECOGNIZED",
            None => {
                matches!(self.status, StatusCode::NOT_FOUND | StatusCode::METHOD_NOT_ALLOWED)
            }
        }
    }

    /// Whether another access token might do, or none.
    pub(crate) fn is_about_the_token(&self) -> bool {
        self.status == StatusCode::UNAUTHORIZED
    }

    /// Returns the body as what it should be.
    pub(crate) fn read<T: DeserializeOwned>(&self) -> Option<T> {
        serde_json::from_slice(&self.body).ok()
    }

    /// Returns the body, if it is a JSON object: a portal in the way answers with a page.
    pub(crate) fn object(&self) -> Option<Map<String, Value>> {
        self.read()
    }

    /// Returns the event id of what was sent.
    ///
    /// # Errors
    ///
    /// The answer cannot be read, so it is not the homeserver's.
    pub(crate) fn event_id(&self) -> Result<OwnedEventId, RequestError> {
        let body = self.object().ok_or_else(RequestError::unreadable)?;
        let event_id = body.get("event_id").and_then(Value::as_str);
        event_id.and_then(|id| id.try_into().ok()).ok_or_else(RequestError::unreadable)
    }

    /// Returns what an answer means that is not a success.
    pub(crate) fn error(&self, now: SystemTime) -> RequestError {
        match self.status {
            StatusCode::TOO_MANY_REQUESTS => {
                RequestError::RateLimited { retry_after: self.retry_after(now) }
            }
            StatusCode::UNAUTHORIZED => RequestError::NotLoggedIn,
            // A server or a proxy that gave up may have done it all the same.
            status
                if status.is_server_error() && status != StatusCode::NOT_IMPLEMENTED
                    || status == StatusCode::REQUEST_TIMEOUT =>
            {
                RequestError::Unreachable {
                    error: format!("the server answers with status {}", status.as_u16()),
                    may_have_happened: true,
                }
            }
            _ if self.is_unrecognized() => RequestError::NotRecognized,
            status
                if status == StatusCode::NOT_IMPLEMENTED
                    || status.is_client_error() && self.refusal.errcode.is_none() =>
            {
                RequestError::Blocked { status: status.as_u16() }
            }
            status if status.is_client_error() => RequestError::Refused {
                status: status.as_u16(),
                errcode: self.refusal.errcode.clone().filter(|code| is_errcode(code)),
                message: (!self.refusal.error.is_empty()).then(|| shorten(&self.refusal.error)),
            },
            _ => RequestError::unreadable(),
        }
    }

    /// Returns how long the server wants to be left alone: as the body says, else the header.
    pub(crate) fn retry_after(&self, now: SystemTime) -> Option<Duration> {
        self.refusal.retry_after.or_else(|| match self.retry_after.as_ref()? {
            RetryAfter::Delay(wait) => Some(*wait),
            RetryAfter::DateTime(time) => Some(time.duration_since(now).unwrap_or_default()),
        })
    }
}

/// Whether it is the code of an error, and not a text.
fn is_errcode(code: &str) -> bool {
    let of_a_code = |b: u8| b.is_ascii_uppercase() || b.is_ascii_digit() || b"_.".contains(&b);
    code.len() <= 64 && code.bytes().all(of_a_code)
}
