//! Send: sticky events, removals and sticky redactions, as sentences:
//! `room.sticky().send(content).with_sticky_key("laptop").await`.
//!
//! In: content, key, duration. Out: one request under one transaction id, tried until it is
//! answered or hopeless. It never touches the map: what was sent comes back from the server like
//! anybody's.
//!
//! Never plaintext by accident: in an encrypted room that we cannot encrypt for, or one of which
//! nobody knows whether it is, nothing is sent.

use std::{
    collections::HashMap,
    fmt,
    future::IntoFuture,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use matrix_sdk::{Client, EncryptionState, HttpError, Room, config::RequestConfig};
use ruma::{
    EventId, OwnedEventId, OwnedRoomId, TransactionId,
    api::{
        client::{
            discovery::get_supported_versions, message::send_message_event, redact::redact_event,
        },
        error::{ErrorKind, RetryAfter},
    },
    events::sticky::StickyDurationMs,
    exports::http::StatusCode,
    serde::Raw,
};
use serde::Serialize;
use serde_json::{
    Map, Value,
    value::{RawValue, to_raw_value},
};

#[cfg(feature = "e2e-encryption")]
use crate::encrypt::{EncryptError, Encrypted, Encryptor};
use crate::{
    driver::{BoxFuture, Timer, jittered},
    event::StickyKey,
    ext::RoomSticky,
    readers::Readers,
    sync::Unsupported,
    time::{self, MAX_STICKY, Moment},
    view::StickyContent,
    wire::{insert_sticky_key, names},
};

/// How long one try may take.
pub(crate) const TRY: Duration = Duration::from_secs(15);

/// How often a send is tried.
pub(crate) const TRIES: u32 = 6;

/// The wait after the first try that brought no answer, on average; it doubles with each further
/// one.
pub(crate) const FIRST_WAIT: Duration = Duration::from_millis(250);

/// The longest wait that a server may ask for before a send is tried again. Who is told to wait
/// longer is told so: [`SendError::RateLimited`].
pub(crate) const LONGEST_RETRY_AFTER: Duration = Duration::from_secs(30);

/// The time between two sends of a key. [MSC4354] asks for at least 1 ms, as the order of two
/// events of the same millisecond is chance.
///
/// [MSC4354]: https://github.com/matrix-org/matrix-spec-proposals/pull/4354
const BETWEEN_SENDS: Duration = Duration::from_millis(2);

/// The shortest duration that is sent: the server accepts 0, and delivers it to nobody.
pub(crate) const SHORTEST: Duration = Duration::from_millis(1);

/// What was sent.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Sent {
    /// The event's id.
    pub event_id: OwnedEventId,
    /// For how long it is sticky, if it is.
    pub sticky: Option<Duration>,
}

/// Why a sticky event was not sent.
#[derive(Debug)]
#[non_exhaustive]
pub enum SendError {
    /// The server does not know sticky events, and would send it as an ordinary one.
    Unsupported(Unsupported),
    /// The room is encrypted, and the client's base client, which is what encrypts, is not known.
    /// Nothing was sent.
    NoBaseClient,
    /// The room is encrypted, and the event could not be. Nothing was sent.
    #[cfg(feature = "e2e-encryption")]
    Encrypt(EncryptError),
    /// The room became encrypted while the event was tried in plaintext, without an answer. Whether
    /// the server has it nobody knows; it is not tried again. Send it again, and it is encrypted.
    BecameEncrypted,
    /// Nobody knows whether the room is encrypted, as the server did not say. Nothing was sent; try
    /// again when the server can be reached.
    EncryptionUnknown(Box<matrix_sdk::Error>),
    /// The content is no JSON object.
    Content(serde_json::Error),
    /// The server wants fewer requests.
    RateLimited {
        /// When it will take another, if it said so.
        retry_after: Option<Duration>,
    },
    /// The server refuses it, and will again.
    Refused(Box<HttpError>),
    /// The server cannot be reached, or answers with errors, after several tries. Whether it has
    /// the event nobody knows; sending it again makes a second one of the same key, of which the
    /// later one counts.
    Unreachable(Box<HttpError>),
}

impl fmt::Display for SendError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unsupported(what) => write!(f, "nothing was sent: {what}"),
            Self::NoBaseClient if cfg!(feature = "e2e-encryption") => f.write_str(
                "nothing was sent: the room is encrypted, and what encrypts is not known: build the \
                 client with matrix_sdk_sticky::BaseClientBuilder, or give the base client that it \
                 is built on with Sticky::builder(&client).with_base_client(base)",
            ),
            Self::NoBaseClient => f.write_str(
                "nothing was sent: the room is encrypted, and matrix-sdk-sticky was built without \
                 its feature `e2e-encryption`",
            ),
            #[cfg(feature = "e2e-encryption")]
            Self::Encrypt(error) => {
                write!(f, "nothing was sent: it could not be encrypted: {error}")
            }
            Self::BecameEncrypted => f.write_str(
                "the room became encrypted while the event was being sent in plaintext: send it \
                 again",
            ),
            Self::EncryptionUnknown(error) => {
                write!(f, "nothing was sent: whether the room is encrypted is not known: {error}")
            }
            Self::Content(error) => write!(f, "the content is no JSON object: {error}"),
            Self::RateLimited { retry_after } => write_rate_limited(f, *retry_after),
            Self::Refused(error) => write!(f, "the server refuses the event: {error}"),
            Self::Unreachable(error) => write!(f, "the server cannot be reached: {error}"),
        }
    }
}

impl std::error::Error for SendError {}

/// What every error says of a server that wants fewer requests.
pub(crate) fn write_rate_limited(
    f: &mut fmt::Formatter<'_>,
    retry_after: Option<Duration>,
) -> fmt::Result {
    match retry_after {
        Some(wait) => write!(f, "the server takes no more for now; try again in {wait:?}"),
        None => f.write_str("the server takes no more for now; try again later"),
    }
}

impl SendError {
    /// Whether the same would fail the same way again.
    pub(crate) fn is_final(&self) -> bool {
        match self {
            Self::Unsupported(_) | Self::NoBaseClient | Self::Content(_) | Self::Refused(_) => true,
            #[cfg(feature = "e2e-encryption")]
            Self::Encrypt(error) => {
                matches!(error, EncryptError::NotJoined | EncryptError::Algorithm)
            }
            _ => false,
        }
    }
}

/// A sticky event to be sent. Awaiting it sends it; made by [`RoomSticky::send`].
#[must_use = "it is sent when it is awaited"]
pub struct SendSticky {
    sticky: RoomSticky,
    room: Room,
    event_type: String,
    content: Result<Map<String, Value>, serde_json::Error>,
    duration: Option<Duration>,
}

impl SendSticky {
    pub(crate) fn new<C: StickyContent + Serialize>(
        sticky: RoomSticky,
        room: Room,
        content: &C,
    ) -> Self {
        let content = as_object(content);
        Self { sticky, room, event_type: C::TYPE.to_owned(), content, duration: None }
    }

    pub(crate) fn raw(
        sticky: RoomSticky,
        room: Room,
        event_type: &str,
        content: Map<String, Value>,
    ) -> Self {
        let event_type = event_type.to_owned();
        Self { sticky, room, event_type, content: Ok(content), duration: None }
    }

    /// The key that it is an entry of; one that the content has is replaced. Without any it is an
    /// entry of its own, which nothing can update or remove.
    pub fn with_sticky_key(mut self, sticky_key: impl Into<String>) -> Self {
        if let Ok(content) = &mut self.content {
            insert_sticky_key(content, &sticky_key.into());
        }
        self
    }

    /// For how long it is sticky, from 1 ms to 1 h; what is out of that is clamped. [MSC4354]
    /// advises against less than 5 minutes, as servers' clocks differ.
    ///
    /// Unless told, as long as what was last sent for the key, else 1 h: an event with a shorter
    /// duration than the one before it may end before that, and lose to it.
    ///
    /// [MSC4354]: https://github.com/matrix-org/matrix-spec-proposals/pull/4354
    pub fn with_sticky_duration(mut self, duration: Duration) -> Self {
        self.duration = Some(duration.clamp(SHORTEST, MAX_STICKY));
        self
    }

    async fn send(self) -> Result<Sent, SendError> {
        let Self { sticky, room, event_type, content, duration } = self;
        let content = content.map_err(SendError::Content)?;
        sticky.ensure_supported().await?;

        let sticky_key = content.get(names::STICKY_KEY[1]).and_then(Value::as_str);
        let key = sticky_key
            .map(|sticky_key| StickyKey::new(room.own_user_id(), event_type.clone(), sticky_key));
        let turns = sticky.turns().clone();
        let timer = sticky.timer().clone();
        // One send of a key at a time, so that they arrive in the order in which they were sent.
        let turn = key.as_ref().map(|key| turns.of(room.room_id().to_owned(), key.clone()));
        let mut last = match &turn {
            Some(turn) => Some(turn.lock().await),
            None => None,
        };
        if let Some(sent_at) = last.as_ref().and_then(|last| last.sent_at) {
            timer.sleep_until(sent_at.deadline(BETWEEN_SENDS)).await;
        }
        let duration = duration
            .or_else(|| last.as_ref()?.duration)
            .or_else(|| Some(sticky.get(key.as_ref()?)?.duration().clamp(SHORTEST, MAX_STICKY)))
            .unwrap_or(MAX_STICKY);

        // Not before it is our turn: who came meanwhile shall be able to read it, and the room may
        // have become encrypted. From here on it stays as it is, so that every try is the same.
        let outgoing = Outgoing::retrying(&*timer, &room, &event_type, &content).await?;
        let mut request = send_message_event::v3::Request::new_raw(
            room.room_id().to_owned(),
            TransactionId::new(),
            outgoing.event_type.into(),
            Raw::from_json(outgoing.content),
        );
        request.sticky_duration_ms = Some(millis(duration));
        let is_plaintext = outgoing.session_id.is_none();
        let sent = retrying(&*timer, || async {
            // A try may come a minute after the first. Why not encrypt it then, and try that? The
            // same transaction id would stand for two bodies, another one for two events.
            if is_plaintext && room.encryption_state().is_encrypted() {
                return Err(Failure::Final(SendError::BecameEncrypted));
            }
            let request = room.client().send(request.clone()).with_request_config(one_try());
            Ok(request.await?)
        })
        .await;
        if let Some(last) = &mut last {
            // Also after a failure: the server may have it all the same.
            last.sent_at = Some(timer.now());
            last.duration = Some(duration);
        }
        Ok(Sent { event_id: sent?.event_id, sticky: Some(duration) })
    }
}

impl IntoFuture for SendSticky {
    type Output = Result<Sent, SendError>;
    type IntoFuture = BoxFuture<'static, Self::Output>;

    fn into_future(self) -> Self::IntoFuture {
        Box::pin(self.send())
    }
}

impl fmt::Debug for SendSticky {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SendSticky")
            .field("event_type", &self.event_type)
            .field("duration", &self.duration)
            .finish_non_exhaustive()
    }
}

/// A redaction to be sent. Awaiting it sends it; made by [`RoomSticky::redact`].
#[must_use = "it is sent when it is awaited"]
pub struct RedactSticky {
    sticky: RoomSticky,
    room: Room,
    event_id: OwnedEventId,
    reason: Option<String>,
    duration: Option<Duration>,
}

impl RedactSticky {
    pub(crate) fn new(sticky: RoomSticky, room: Room, event_id: OwnedEventId) -> Self {
        Self { sticky, room, event_id, reason: None, duration: None }
    }

    /// Why, in words for people.
    pub fn with_reason(mut self, reason: impl Into<String>) -> Self {
        self.reason = Some(reason.into());
        self
    }

    /// For how long the redaction is sticky, from 1 ms to 1 h; what is out of that is clamped.
    /// Unless told, as long as the event that it redacts was to be, where that is known, else 1 h:
    /// [MSC4354] ("Redaction") asks for no less.
    ///
    /// [MSC4354]: https://github.com/matrix-org/matrix-spec-proposals/pull/4354
    pub fn with_sticky_duration(mut self, duration: Duration) -> Self {
        self.duration = Some(duration.clamp(SHORTEST, MAX_STICKY));
        self
    }

    async fn send(self) -> Result<Sent, SendError> {
        let Self { sticky, room, event_id, reason, duration } = self;
        let timer = sticky.timer().clone();
        let rules = room.clone_info().room_version_rules_or_default();
        if !rules.redaction.content_field_redacts {
            // Before room version 11 the redacted event is named outside of the content, where only
            // the redaction endpoint can put it; and that one makes nothing sticky.
            let mut request = redact_event::v3::Request::new(
                room.room_id().to_owned(),
                event_id,
                TransactionId::new(),
            );
            request.reason = reason;
            let sent = retrying(&*timer, || async {
                let request = room.client().send(request.clone()).with_request_config(one_try());
                Ok(request.await?)
            })
            .await?;
            return Ok(Sent { event_id: sent.event_id, sticky: None });
        }

        sticky.ensure_supported().await?;
        let duration =
            duration.or_else(|| known_duration(&sticky, &event_id)).unwrap_or(MAX_STICKY);
        let mut content = Map::new();
        content.insert("redacts".to_owned(), event_id.as_str().into());
        if let Some(reason) = reason {
            content.insert("reason".to_owned(), reason.into());
        }
        let body = Raw::from_json(to_raw_value(&content).map_err(SendError::Content)?);
        // Redactions are sent in plaintext, in encrypted rooms too: servers act on them.
        let mut request = send_message_event::v3::Request::new_raw(
            room.room_id().to_owned(),
            TransactionId::new(),
            "m.room.redaction".into(),
            body,
        );
        request.sticky_duration_ms = Some(millis(duration));
        let sent = retrying(&*timer, || async {
            let request = room.client().send(request.clone()).with_request_config(one_try());
            Ok(request.await?)
        })
        .await?;
        Ok(Sent { event_id: sent.event_id, sticky: Some(duration) })
    }
}

impl IntoFuture for RedactSticky {
    type Output = Result<Sent, SendError>;
    type IntoFuture = BoxFuture<'static, Self::Output>;

    fn into_future(self) -> Self::IntoFuture {
        Box::pin(self.send())
    }
}

impl fmt::Debug for RedactSticky {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RedactSticky").field("event_id", &self.event_id).finish_non_exhaustive()
    }
}

/// What was last sent for each key of ours, and whose turn it is.
#[derive(Clone, Debug, Default)]
pub(crate) struct Turns(Arc<Mutex<HashMap<(OwnedRoomId, StickyKey), Turn>>>);

type Turn = Arc<tokio::sync::Mutex<Last>>;

#[derive(Debug, Default)]
pub(crate) struct Last {
    sent_at: Option<Moment>,
    duration: Option<Duration>,
}

/// How many keys are remembered before the ones that nobody is sending for are forgotten. What is
/// still live of them is in the map.
const REMEMBERED_KEYS: usize = 1_000;

impl Turns {
    fn of(&self, room_id: OwnedRoomId, key: StickyKey) -> Turn {
        let mut turns = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if turns.len() >= REMEMBERED_KEYS {
            turns.retain(|_, turn| Arc::strong_count(turn) > 1);
        }
        turns.entry((room_id, key)).or_default().clone()
    }
}

/// A content as the object that it has to be.
pub(crate) fn as_object(content: &impl Serialize) -> Result<Map<String, Value>, serde_json::Error> {
    serde_json::to_value(content).and_then(serde_json::from_value)
}

/// Makes sure that the server knows sticky events.
pub(crate) async fn ensure_sticky_events(client: &Client) -> Result<(), SendError> {
    let request = get_supported_versions::Request::new();
    match client.send(request).with_request_config(one_try()).await {
        Ok(versions) if versions.unstable_features.get(names::FEATURE) == Some(&true) => Ok(()),
        Ok(_) => Err(SendError::Unsupported(Unsupported::StickyEvents)),
        Err(error) => Err(SendError::Unreachable(Box::new(error))),
    }
}

/// One try. When to try again is decided here, not in the SDK.
pub(crate) fn one_try() -> RequestConfig {
    RequestConfig::new().timeout(TRY).disable_retry()
}

/// An event as it goes over the wire.
pub(crate) struct Outgoing {
    pub(crate) event_type: String,
    pub(crate) content: Box<RawValue>,
    /// The megolm session that it is encrypted with; none in plaintext.
    pub(crate) session_id: Option<String>,
    /// The devices that hold the room key; nobody in plaintext, where everybody can read it.
    pub(crate) reached: Readers,
}

impl Outgoing {
    /// Makes it what the room asks for: never plaintext where the room is encrypted, or may be. One
    /// try, of what the server has to be asked for.
    ///
    /// It is as the room is *now*. Whoever keeps it looks again whether the room has become
    /// encrypted, before a plaintext one is sent.
    pub(crate) async fn of(
        room: &Room,
        event_type: &str,
        content: &Map<String, Value>,
    ) -> Result<Self, SendError> {
        // Never by the cached state: unknown would read as not encrypted.
        let state = room.latest_encryption_state().await;
        let state = state.map_err(|error| SendError::EncryptionUnknown(Box::new(error)))?;
        let is_plaintext = matches!(state, EncryptionState::NotEncrypted);
        // The sticky key with all else: MSC4354 has it inside of the encryption.
        let content = to_raw_value(content).map_err(SendError::Content)?;
        if is_plaintext {
            let (event_type, reached) = (event_type.to_owned(), Readers::default());
            return Ok(Self { event_type, content, session_id: None, reached });
        }
        Self::encrypted(room, event_type, content).await
    }

    #[cfg(feature = "e2e-encryption")]
    async fn encrypted(
        room: &Room,
        event_type: &str,
        content: Box<RawValue>,
    ) -> Result<Self, SendError> {
        let encryptor = Encryptor::of(&room.client()).ok_or(SendError::NoBaseClient)?;
        let encrypted = encryptor.encrypt(room, event_type, content).await;
        let Encrypted { content, session_id, reached } = encrypted.map_err(SendError::Encrypt)?;
        let event_type = "m.room.encrypted".to_owned();
        Ok(Self { event_type, content, session_id: Some(session_id), reached })
    }

    #[cfg(not(feature = "e2e-encryption"))]
    async fn encrypted(_: &Room, _: &str, _: Box<RawValue>) -> Result<Self, SendError> {
        Err(SendError::NoBaseClient)
    }

    #[cfg(not(feature = "e2e-encryption"))]
    async fn retrying(
        _: &dyn Timer,
        room: &Room,
        event_type: &str,
        content: &Map<String, Value>,
    ) -> Result<Self, SendError> {
        Self::of(room, event_type, content).await
    }

    /// As [`of`](Self::of), tried as often as a send is.
    #[cfg(feature = "e2e-encryption")]
    async fn retrying(
        timer: &dyn Timer,
        room: &Room,
        event_type: &str,
        content: &Map<String, Value>,
    ) -> Result<Self, SendError> {
        let made = retrying(timer, || async {
            Self::of(room, event_type, content).await.map_err(|error| match error {
                SendError::Encrypt(EncryptError::Server(error)) => Failure::Http(*error),
                error => Failure::Final(error),
            })
        });
        made.await.map_err(|error| match error {
            // Not "nobody knows whether the server has it": the event was not even sent.
            SendError::Refused(error) | SendError::Unreachable(error) => {
                SendError::Encrypt(EncryptError::Server(error))
            }
            error => error,
        })
    }
}

fn known_duration(sticky: &RoomSticky, event_id: &EventId) -> Option<Duration> {
    let snapshot = sticky.events().snapshot();
    let duration = snapshot.iter().find(|entry| entry.event_id() == event_id)?.duration();
    Some(duration.clamp(SHORTEST, MAX_STICKY))
}

pub(crate) fn millis(duration: Duration) -> StickyDurationMs {
    StickyDurationMs::new_clamped(time::millis(duration))
}

/// Why one try failed.
enum Failure {
    /// What to do next is for the [`Verdict`] to say.
    Http(HttpError),
    /// Another try makes no sense.
    Final(SendError),
}

impl From<HttpError> for Failure {
    fn from(error: HttpError) -> Self {
        Self::Http(error)
    }
}

/// Tries a request until it is answered, it is hopeless, or it was tried often enough. Each try is
/// the same request under the same transaction id, so that the server takes it once.
async fn retrying<T, F>(timer: &dyn Timer, mut request: impl FnMut() -> F) -> Result<T, SendError>
where
    F: Future<Output = Result<T, Failure>>,
{
    let mut wait = FIRST_WAIT;
    let mut tried = 0;
    loop {
        tried += 1;
        let error = match request().await {
            Ok(answer) => return Ok(answer),
            Err(Failure::Final(error)) => return Err(error),
            Err(Failure::Http(error)) => error,
        };
        let asked = match Verdict::of(&error) {
            Verdict::Hopeless => return Err(SendError::Refused(Box::new(error))),
            Verdict::RateLimited(retry_after)
                if tried >= TRIES || retry_after > Some(LONGEST_RETRY_AFTER) =>
            {
                return Err(SendError::RateLimited { retry_after });
            }
            Verdict::Again if tried >= TRIES => {
                return Err(SendError::Unreachable(Box::new(error)));
            }
            Verdict::RateLimited(retry_after) => retry_after,
            Verdict::Again => None,
        };
        let pause = asked.unwrap_or_default().max(jittered(wait));
        timer.sleep_until(timer.now().deadline(pause)).await;
        wait = wait.saturating_mul(2);
    }
}

/// What an error says of another try of the same.
pub(crate) enum Verdict {
    Again,
    RateLimited(Option<Duration>),
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
                // A page of something in between, such as a firewall's, says nothing of the server.
                _ if api_error.error_kind().is_none() => Self::Again,
                status if status.is_client_error() => Self::Hopeless,
                _ => Self::Again,
            },
        }
    }
}
