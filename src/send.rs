//! Send: sticky events, removals and sticky redactions, as sentences:
//! `room.sticky().send(content).with_sticky_key("laptop").await`.
//!
//! In: content, key, duration. Out: one event in the [`outbox`](crate::outbox), tried until it is
//! answered or hopeless. Never: a look at the map for what was sent, which comes back from the server
//! like everybody's; plaintext by accident. In an encrypted room that we cannot encrypt for, and in a
//! room whose encryption is not known, nothing is sent.

mod error;
mod redact;

use std::{fmt, future::IntoFuture, time::Duration};

use ruma::OwnedEventId;
use serde_json::{Map, Value};

pub use self::{error::SendError, redact::RedactSticky};
use crate::{
    context::RoomContext,
    driver::{BoxFuture, jittered},
    event::StickyKey,
    outbox::{ATTEMPT_TIMEOUT, Attempts, MIN_STICKY, Outbox, PrepareError, ReadyEvent},
    time::{MAX_STICKY_DURATION, millis},
    wire::{insert_sticky_key, names},
};

/// The time between two sends of a key. [MSC4354] asks for at least 1 ms, as the order of two
/// events of the same millisecond is chance.
///
/// [MSC4354]: https://github.com/matrix-org/matrix-spec-proposals/pull/4354
const BETWEEN_SENDS: Duration = Duration::from_millis(2);

/// What was sent.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Sent {
    /// The event's id.
    pub event_id: OwnedEventId,
    /// For how long it is sticky. `None`: it is an ordinary event.
    pub sticky_duration: Option<Duration>,
}

/// A sticky event to be sent. Awaiting it sends it, in up to six tries. Made by
/// [`RoomSticky::send`](crate::RoomSticky::send).
///
/// # Cancel safety
///
/// If the future is dropped, the server may have the event or not.
#[must_use = "it is sent when it is awaited"]
pub struct SendSticky {
    room: RoomContext,
    event_type: String,
    content: Result<Map<String, Value>, serde_json::Error>,
    sticky_duration: Option<Duration>,
}

impl SendSticky {
    pub(crate) fn new(
        room: RoomContext,
        event_type: &str,
        content: Result<Map<String, Value>, serde_json::Error>,
    ) -> Self {
        Self { room, event_type: event_type.to_owned(), content, sticky_duration: None }
    }

    /// Sets the key of the ephemeral map that the event is an entry of. It replaces a key in the
    /// content. An event without a key is an entry of its own, which nothing can update or remove.
    pub fn with_sticky_key(mut self, sticky_key: impl Into<String>) -> Self {
        if let Ok(content) = &mut self.content {
            insert_sticky_key(content, &sticky_key.into());
        }
        self
    }

    /// Sets for how long the event is sticky, from 1 ms to 1 h. A duration out of that range is
    /// clamped. [MSC4354] advises against less than 5 minutes, as servers' clocks differ.
    ///
    /// Defaults to the duration that was last sent for the key, else 1 h: an event with a shorter
    /// duration than the one before it may end before that one, and lose to it.
    ///
    /// [MSC4354]: https://github.com/matrix-org/matrix-spec-proposals/pull/4354
    pub fn with_sticky_duration(mut self, duration: Duration) -> Self {
        self.sticky_duration = Some(duration.clamp(MIN_STICKY, MAX_STICKY_DURATION));
        self
    }

    async fn send(self) -> Result<Sent, SendError> {
        let Self { room, event_type, content, sticky_duration } = self;
        let content = content.map_err(PrepareError::Content)?;
        room.ensure_sticky_events().await?;

        let sticky_key = content.get(names::STICKY_KEY[1]).and_then(Value::as_str);
        let own = room.room().own_user_id();
        let key = sticky_key.map(|sticky_key| StickyKey::new(own, event_type.clone(), sticky_key));
        let outbox = room.outbox();
        let timer = outbox.timer();
        // One send of a key at a time, so that they arrive in the order in which they were sent.
        let locks = room.key_locks();
        let lock = key.as_ref().map(|key| locks.of(room.room_id().to_owned(), key.clone()));
        let mut last = match &lock {
            Some(lock) => Some(lock.lock().await),
            None => None,
        };
        if let Some(sent_at) = last.as_ref().and_then(|last| last.sent_at) {
            timer.sleep_until(sent_at.deadline(BETWEEN_SENDS)).await;
        }
        let duration = sticky_duration
            .or_else(|| last.as_ref()?.sticky_duration)
            .or_else(|| {
                let entry = room.events().get(key.as_ref()?)?;
                Some(entry.sticky_duration().clamp(MIN_STICKY, MAX_STICKY_DURATION))
            })
            .unwrap_or(MAX_STICKY_DURATION);

        // Not before it is our turn: whoever came meanwhile shall be able to read it, and the room may
        // have become encrypted.
        let (event, _) = retrying(&outbox, || async {
            let sticky_ms = Some(millis(duration));
            Ok(ReadyEvent::prepare(room.room(), &event_type, &content, sticky_ms).await?)
        })
        .await?;
        let sent = retrying(&outbox, || async {
            Ok(outbox.send(&event, outbox.deadline(ATTEMPT_TIMEOUT)).await?)
        })
        .await;
        if let Some(last) = &mut last {
            // Also after a failure: the server may have it all the same.
            last.sent_at = Some(timer.now());
            last.sticky_duration = Some(duration);
        }
        Ok(Sent { event_id: sent?, sticky_duration: Some(duration) })
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
            .field("sticky_duration", &self.sticky_duration)
            .finish_non_exhaustive()
    }
}

/// Tries until there is an answer, another try is hopeless, or it was tried often enough.
async fn retrying<T, F>(outbox: &Outbox, mut attempt: impl FnMut() -> F) -> Result<T, SendError>
where
    F: Future<Output = Result<T, SendError>>,
{
    let timer = outbox.timer();
    let mut attempts = Attempts::new();
    loop {
        let error = match attempt().await {
            Ok(done) => return Ok(done),
            Err(error) => error,
        };
        let Some(asked) = error.worth_another_try() else { return Err(error) };
        let Some(pause) = attempts.handle_failure(asked) else { return Err(error) };
        let pause = asked.unwrap_or_default().max(jittered(pause));
        timer.sleep_until(timer.now().deadline(pause)).await;
    }
}
