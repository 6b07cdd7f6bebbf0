//! An event before and after it is scheduled.

use std::{
    fmt,
    time::{Duration, SystemTime},
};

use ruma::{OwnedRoomId, RoomId, TransactionId};
use serde::{Deserialize, Serialize};
use serde_json::{Value, value::RawValue};

use super::DelayId;
use crate::outbox::ReadyEvent;

/// An event that is ready to be scheduled: encrypted if its room is, and with the transaction id of
/// its request. Each request for it is the same, so that the server schedules it once, however
/// often it is asked. The answer, whenever it comes, names the same delay id.
///
/// A server remembers a transaction id for a while: Synapse for at least half an hour, and **not
/// across its own restart**, while the delayed event survives that. After a longer time, or a failure
/// of the server, look into [`DelayedEvents::list`](super::DelayedEvents::list) for an event that it
/// [`matches`](Self::matches) before you schedule another.
///
/// With `serde_json` it can be kept in a store, and scheduled after a crash. It holds the content as
/// it goes over the wire: in plaintext if the room is not encrypted.
///
/// # Examples
///
/// ```no_run
/// # use std::time::Duration;
/// # use matrix_sdk_sticky::{StickyClientExt as _, StickyRoomExt as _};
/// # async fn example(room: matrix_sdk::Room) -> Result<(), Box<dyn std::error::Error>> {
/// let delay = Duration::from_secs(15);
/// let leave = room.sticky().schedule_removal("com.example.presence", "laptop", delay).prepare().await?;
/// // Keep it before the request goes out, so that it can be repeated after a crash.
/// let kept = serde_json::to_string(&leave)?;
/// let delay_id = room.client().sticky().delayed_events().schedule(&leave).await?;
/// # Ok(()) }
/// ```
#[derive(Clone, Serialize, Deserialize)]
pub struct PreparedEvent {
    pub(super) event: ReadyEvent,
    pub(super) delay_ms: u64,
}

impl PreparedEvent {
    /// Returns the room that the event is for.
    pub fn room_id(&self) -> &RoomId {
        self.event.room_id()
    }

    /// Returns the transaction id of its request.
    pub fn transaction_id(&self) -> &TransactionId {
        self.event.transaction_id()
    }

    /// Returns how long the server is asked to wait.
    pub fn delay(&self) -> Duration {
        Duration::from_millis(self.delay_ms)
    }

    /// Returns for how long the event is sticky once it is sent. `None`: it is not a sticky event.
    pub fn sticky_duration(&self) -> Option<Duration> {
        self.event.sticky_ms().map(Duration::from_millis)
    }

    /// Whether it is encrypted.
    pub fn is_encrypted(&self) -> bool {
        self.event.is_encrypted()
    }

    /// Returns the Megolm session that it is encrypted with. A device without that session's key
    /// cannot read the event. Schedule it anew when the room's session is another one.
    pub fn session_id(&self) -> Option<String> {
        #[derive(Deserialize)]
        struct Encrypted {
            session_id: String,
        }
        let content = Some(self.event.content().get()).filter(|_| self.is_encrypted())?;
        Some(serde_json::from_str::<Encrypted>(content).ok()?.session_id)
    }

    /// Whether a scheduled event may be this one: of the same room and type, with the same content and
    /// delay. No two encrypted events are alike. In plaintext, one that was scheduled before may be just
    /// the same.
    pub fn matches(&self, scheduled: &ScheduledEvent) -> bool {
        let value = |content: &RawValue| serde_json::from_str::<Value>(content.get()).ok();
        scheduled.room_id == self.room_id()
            && scheduled.event_type == self.event.event_type()
            && scheduled.state_key.is_none()
            && scheduled.delay == self.delay()
            && value(&scheduled.content) == value(self.event.content())
    }
}

impl fmt::Debug for PreparedEvent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PreparedEvent")
            .field("room_id", &self.room_id())
            .field("event_type", &self.event.event_type())
            .field("delay", &self.delay())
            .field("sticky_duration", &self.sticky_duration())
            .finish_non_exhaustive()
    }
}

/// An event that is scheduled, as the server lists it.
#[derive(Clone)]
#[non_exhaustive]
pub struct ScheduledEvent {
    /// What restarts, sends or cancels it.
    pub delay_id: DelayId,
    /// The room that it is for.
    pub room_id: OwnedRoomId,
    /// Its type: `m.room.encrypted` if it is encrypted.
    pub event_type: String,
    /// Its state key, if it is a state event.
    pub state_key: Option<String>,
    /// Its content, as it was scheduled.
    pub content: Box<RawValue>,
    /// How long the server waits.
    pub delay: Duration,
    /// Since when the server waits, by the server's clock: when the event was scheduled or last
    /// restarted.
    pub waits_since: SystemTime,
}

impl fmt::Debug for ScheduledEvent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ScheduledEvent")
            .field("room_id", &self.room_id)
            .field("event_type", &self.event_type)
            .field("delay", &self.delay)
            .field("waits_since", &self.waits_since)
            .finish_non_exhaustive()
    }
}
