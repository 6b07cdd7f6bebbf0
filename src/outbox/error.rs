//! Why an event was not sent, for all that send.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

#[cfg(feature = "e2e-encryption")]
use crate::encrypt::EncryptError;
use crate::sync::state::Unsupported;

/// Why an event could not be made ready. Nothing was sent.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum PrepareError {
    /// The server does not know sticky events. It would send an ordinary one.
    #[error(transparent)]
    Unsupported(Unsupported),
    /// The room is encrypted, and the client's base client, which encrypts, is not known. Build the
    /// client with [`BaseClientBuilder`](crate::BaseClientBuilder), or give the base client that it is
    /// built on to [`StickyBuilder::with_base_client`](crate::StickyBuilder::with_base_client).
    #[cfg_attr(
        feature = "e2e-encryption",
        error(
            "the room is encrypted, and what encrypts is not known: build the client with \
             matrix_sdk_sticky::BaseClientBuilder, or give the base client that it is built on with \
             Sticky::builder(&client).with_base_client(base)"
        )
    )]
    #[cfg_attr(
        not(feature = "e2e-encryption"),
        error(
            "the room is encrypted, and matrix-sdk-sticky was built without its feature \
             `e2e-encryption`"
        )
    )]
    NoBaseClient,
    /// The room is encrypted, and the event could not be.
    #[cfg(feature = "e2e-encryption")]
    #[error("the event could not be encrypted: {0}")]
    Encrypt(#[source] EncryptError),
    /// The server did not say whether the room is encrypted. Try again when the server can be
    /// reached.
    #[error("whether the room is encrypted is not known: {0}")]
    EncryptionUnknown(#[source] Box<matrix_sdk::Error>),
    /// The content is not a JSON object.
    #[error("the content is not a JSON object: {0}")]
    Content(#[source] serde_json::Error),
}

impl PrepareError {
    /// Whether the same event would fail the same way again.
    pub(crate) fn is_final(&self) -> bool {
        match self {
            Self::Unsupported(_) | Self::NoBaseClient | Self::Content(_) => true,
            #[cfg(feature = "e2e-encryption")]
            Self::Encrypt(error) => {
                matches!(error, EncryptError::NotJoined | EncryptError::Algorithm)
            }
            Self::EncryptionUnknown(_) => false,
        }
    }
}

/// Why one try did not put an event into its room.
#[derive(Debug)]
pub(crate) enum PutError {
    /// The room became encrypted after the event was made ready in plaintext. This try did not go out.
    BecameEncrypted,
    /// There is no answer, or the answer is a refusal.
    Request(RequestError),
}

impl From<RequestError> for PutError {
    fn from(error: RequestError) -> Self {
        Self::Request(error)
    }
}

/// Why one request failed.
#[derive(Debug)]
pub(crate) enum RequestError {
    /// The server does not know the endpoint. Nothing was done.
    NotRecognized,
    /// The server wants fewer requests. It may say how long to wait.
    RateLimited { retry_after: Option<Duration> },
    /// There is no answer of the server, or it reports an error of its own.
    Unreachable { error: String, may_have_happened: bool },
    /// There is no access token, or it is not valid any more.
    NotLoggedIn,
    /// Something before the homeserver has answered, such as a firewall. Nothing was done.
    Blocked { status: u16 },
    /// The server refuses, and will again.
    Refused { status: u16, errcode: Option<String>, message: Option<String> },
}

impl RequestError {
    /// The request did not go out.
    pub(crate) fn not_sent(error: &str) -> Self {
        Self::Unreachable { error: error.to_owned(), may_have_happened: false }
    }

    /// Something answered, and it is not the homeserver.
    pub(crate) fn unreadable() -> Self {
        let error = "the server's answer cannot be read".to_owned();
        Self::Unreachable { error, may_have_happened: true }
    }
}

/// Returns a time of a server, which may be anything.
pub(crate) fn unix(ms: u64) -> SystemTime {
    UNIX_EPOCH.checked_add(Duration::from_millis(ms)).unwrap_or(UNIX_EPOCH)
}
