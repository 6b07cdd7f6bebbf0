//! State events: one event of the room's state, as the roster reads it.

use ruma::{EventId, OwnedEventId, OwnedUserId, UserId};
use serde::Deserialize;
use serde_json::{Map, Value};
use tracing::debug;

use crate::rtc::stay::Told;

/// An event of the room's state.
#[derive(Deserialize)]
pub(super) struct StateEvent {
    #[serde(rename = "type")]
    pub(super) event_type: String,
    pub(super) state_key: String,
    pub(super) sender: OwnedUserId,
    pub(super) event_id: OwnedEventId,
    /// Whatever it is, the event counts: a slot is closed for everybody or for nobody.
    #[serde(default)]
    pub(super) origin_server_ts: Value,
    #[serde(default)]
    pub(super) content: Map<String, Value>,
    #[serde(default)]
    unsigned: Value,
}

impl StateEvent {
    pub(super) fn read(text: &str) -> Option<Self> {
        let event = serde_json::from_str(text).ok();
        if event.is_none() {
            debug!("a state event that is malformed is ignored");
        }
        event
    }

    /// Who is in the room by it or not, if the event says that.
    pub(super) fn stay(&self) -> Option<(&UserId, Told)> {
        if self.event_type != "m.room.member" {
            return None;
        }
        let user_id = <&UserId>::try_from(&*self.state_key).ok()?;
        let before = self.unsigned.get("prev_content").and_then(|it| it.get("membership"));
        let replaced = self.unsigned.get("replaces_state").and_then(Value::as_str);
        let told = Told {
            event_id: self.event_id.clone(),
            is_in: self.content.get("membership").is_some_and(|it| it == "join"),
            at_ms: self.origin_server_ts.as_u64(),
            is_of_own_server: self.sender.server_name() == user_id.server_name(),
            was_in: before.map(|before| before == "join"),
            replaced: replaced.and_then(|replaced| EventId::parse(replaced).ok()),
        };
        Some((user_id, told))
    }
}
