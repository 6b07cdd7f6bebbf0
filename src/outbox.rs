//! Outbox: each request that sends a message event goes through here, and the central law of sending
//! stands here once.
//!
//! In: an event, ready to go out ([`ReadyEvent`]), and what the server shall do with it ([`Target`]).
//! Out: the server's answer. Never: a second try, which is for the caller to decide; an event in
//! plaintext after its room became encrypted.
//!
//! **The law.** An event is made ready once. Each try sends the same body under the same transaction
//! id, so that the server takes it once. An event that was made ready in plaintext does not go out any
//! more once the room is known to be encrypted.
//!
//! **The seam.** A matrix-sdk that can send sticky events by itself replaces [`Outbox::put`], and
//! nothing above this module notices.

mod answer;
mod attempts;
mod error;
mod event;
mod order;
mod transport;

use std::{
    sync::Arc,
    time::{Duration, SystemTime},
};

use matrix_sdk::{Client, reqwest::Method};
use ruma::{EventId, OwnedEventId};
use serde_json::{Map, Value, value::RawValue};

pub use self::error::PrepareError;
pub(crate) use self::{
    answer::{Answer, Refusal},
    attempts::{ATTEMPT_TIMEOUT, Attempts, MAX_RETRY_AFTER},
    error::{PutError, RequestError, unix},
    event::{ReadyEvent, as_object},
    order::KeyLocks,
    transport::{Auth, Request},
};
use crate::{driver::Timer, time::Deadline, wire::names};

/// The shortest stickiness that is sent: the server accepts 0, and delivers it to nobody.
pub(crate) const MIN_STICKY: Duration = Duration::from_millis(1);

/// What the server shall do with an event.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Target<'a> {
    /// Send it at once.
    Now,
    /// Send it after so many milliseconds. MSC4140's older form: a send with one parameter more.
    DelayedByQuery(u64),
    /// The same, by MSC4140's newer form: an endpoint of its own.
    DelayedByEndpoint(u64),
    /// Redact this event, by the endpoint that old rooms need. The content is the reason alone.
    Redact(&'a EventId),
}

/// Sends the events of one client. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Outbox {
    client: Client,
    timer: Arc<dyn Timer>,
}

impl Outbox {
    pub(crate) fn new(client: Client, timer: Arc<dyn Timer>) -> Self {
        Self { client, timer }
    }

    pub(crate) fn client(&self) -> &Client {
        &self.client
    }

    pub(crate) fn timer(&self) -> &Arc<dyn Timer> {
        &self.timer
    }

    /// Puts an event into its room, in one try. The server's answer may be a refusal.
    ///
    /// # Errors
    ///
    /// [`PutError::BecameEncrypted`]: this try did not go out. [`PutError::Request`]: there is no
    /// answer.
    pub(crate) async fn put(
        &self,
        event: &ReadyEvent,
        target: Target<'_>,
        deadline: Deadline,
    ) -> Result<Answer, PutError> {
        // A try may come long after the first one. Why not encrypt the event then, and try that? The
        // same transaction id would stand for two bodies, and another id for two events.
        let room = self.client.get_room(event.room_id());
        if room.is_some_and(|room| room.encryption_state().is_encrypted()) && !event.is_protected()
        {
            return Err(PutError::BecameEncrypted);
        }
        Ok(self.ask(&request(event, target), deadline).await?)
    }

    /// Sends an event at once, in one try.
    ///
    /// # Errors
    ///
    /// [`PutError`], also for a refusal.
    pub(crate) async fn send(
        &self,
        event: &ReadyEvent,
        deadline: Deadline,
    ) -> Result<OwnedEventId, PutError> {
        let answer = self.put(event, Target::Now, deadline).await?;
        Ok(self.event_id(&answer)?)
    }

    /// Redacts an event by the endpoint that old rooms need, in one try.
    ///
    /// # Errors
    ///
    /// [`PutError`], also for a refusal.
    pub(crate) async fn redact(
        &self,
        event: &ReadyEvent,
        redacted: &EventId,
        deadline: Deadline,
    ) -> Result<OwnedEventId, PutError> {
        let answer = self.put(event, Target::Redact(redacted), deadline).await?;
        Ok(self.event_id(&answer)?)
    }

    fn event_id(&self, answer: &Answer) -> Result<OwnedEventId, RequestError> {
        if !answer.is_success() {
            return Err(answer.error(self.unix_now()));
        }
        answer.event_id()
    }

    /// Asks for the unstable features that the server names.
    pub(crate) async fn unstable_features(
        &self,
        deadline: Deadline,
    ) -> Result<Map<String, Value>, RequestError> {
        let answer = self.ask(&Request::get(vec!["versions"], Auth::Optional), deadline).await?;
        if !answer.is_success() {
            return Err(answer.error(self.unix_now()));
        }
        let mut versions = answer.object().ok_or_else(RequestError::unreadable)?;
        Ok(match versions.remove("unstable_features") {
            Some(Value::Object(features)) => features,
            _ => Map::new(),
        })
    }

    pub(crate) fn deadline(&self, timeout: Duration) -> Deadline {
        self.timer.now().deadline(timeout)
    }

    pub(crate) fn left(&self, deadline: Deadline) -> Duration {
        deadline.left(self.timer.now())
    }

    /// Returns the time by this machine's wall clock.
    pub(crate) fn unix_now(&self) -> SystemTime {
        unix(self.timer.now().unix_ms())
    }
}

/// Writes the request that puts an event into its room. The same event and target give the same
/// request.
pub(crate) fn request<'a>(event: &'a ReadyEvent, target: Target<'a>) -> Request<'a> {
    let room = event.room_id().as_str();
    let transaction_id = event.transaction_id().as_str();
    let event_type = event.event_type();
    let sticky = event.sticky_ms().map(|ms| (names::STICKY_DURATION, ms.to_string()));
    let content = event.content().get().to_owned();
    let (path, query, body) = match target {
        Target::Now => (
            vec!["v3", "rooms", room, "send", event_type, transaction_id],
            sticky.into_iter().collect(),
            content,
        ),
        Target::DelayedByQuery(delay_ms) => (
            vec!["v3", "rooms", room, "send", event_type, transaction_id],
            [(names::DELAY, delay_ms.to_string())].into_iter().chain(sticky).collect(),
            content,
        ),
        Target::DelayedByEndpoint(delay_ms) => (
            vec![
                "unstable",
                names::DELAYED,
                "rooms",
                room,
                "delayed_event",
                event_type,
                transaction_id,
            ],
            sticky.into_iter().collect(),
            delayed_body(delay_ms, event.content()),
        ),
        Target::Redact(redacted) => (
            vec!["v3", "rooms", room, "redact", redacted.as_str(), transaction_id],
            Vec::new(),
            content,
        ),
    };
    Request { method: Method::PUT, path, query, body: Some(body), auth: Auth::Needed }
}

/// Writes the body of the newer form, with the delay under both its names: ruma's types say `delay`,
/// and the proposal has come to say `delay_ms`.
fn delayed_body(delay_ms: u64, content: &RawValue) -> String {
    format!(r#"{{"delay":{delay_ms},"delay_ms":{delay_ms},"content":{}}}"#, content.get())
}
