//! Slots: where a session can take place, and whether it is open ([MSC4143], "Slots").
//!
//! [MSC4143]: https://github.com/matrix-org/matrix-spec-proposals/pull/4143

use serde_json::{Map, Value};

use crate::wire::names;

/// The slot of a room's call ([MSC4196]).
///
/// [MSC4196]: https://github.com/matrix-org/matrix-spec-proposals/pull/4196
pub const ROOM_CALL: &str = "m.call#ROOM";

/// The field in which a member says what it is there for ([MSC4196]).
///
/// [MSC4196]: https://github.com/matrix-org/matrix-spec-proposals/pull/4196
pub(super) const INTENT: &str = "m.call.intent";

/// What an earlier version of MSC4196 called [`ROOM_CALL`]: the same session.
const OLD_ROOM_CALL: &str = "m.call#room";

/// The session that a slot id belongs to: of its own, but for the one slot that has two names.
pub(super) fn session_of(slot_id: &str) -> &str {
    if slot_id == OLD_ROOM_CALL { ROOM_CALL } else { slot_id }
}

/// The ids of the slots in which a session's members may be: see [`session_of`].
pub(super) fn slots_of(session: &str) -> impl Iterator<Item = &str> {
    [session].into_iter().chain((session == ROOM_CALL).then_some(OLD_ROOM_CALL))
}

/// A slot, as the room's state has it.
#[derive(Clone, Debug, PartialEq)]
pub struct Slot {
    /// The application that runs in it, e.g. `m.call`, with what belongs to it. Also of a closed
    /// slot, where it is still said.
    pub application: Option<RtcApplication>,
    /// How the media are encrypted, e.g. `m.per_member`; `None` where they are not.
    pub encryption: Option<String>,
    id: String,
    closed: Option<ClosedBy>,
}

/// Why a slot is not open.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ClosedBy {
    /// It was closed: its `status` says so.
    Status,
    /// The room has no such slot.
    Missing,
    /// This field of it is missing, or not what it has to be, so that it counts as closed.
    Malformed(&'static str),
    /// It says nothing of encryption, in an encrypted room.
    NotEncrypted,
}

/// An application, as a slot or a membership says it.
#[derive(Clone, Debug, PartialEq)]
pub struct RtcApplication {
    /// Its type, e.g. `m.call`.
    pub application_type: String,
    /// What else it says, without the `type`.
    pub fields: Map<String, Value>,
}

impl RtcApplication {
    /// An application that says nothing but its type.
    pub fn new(application_type: impl Into<String>) -> Self {
        Self { application_type: application_type.into(), fields: Map::new() }
    }

    /// What the member is there for, e.g. `audio` or `video` (`m.call.intent`, [MSC4196]). It proves
    /// nothing.
    ///
    /// [MSC4196]: https://github.com/matrix-org/matrix-spec-proposals/pull/4196
    pub fn intent(&self) -> Option<&str> {
        self.fields.get(INTENT).and_then(Value::as_str)
    }

    pub(super) fn from_json(value: &Value) -> Option<Self> {
        let mut fields = value.as_object()?.clone();
        let Some(Value::String(application_type)) = fields.remove("type") else { return None };
        Some(Self { application_type, fields })
    }

    pub(super) fn to_json(&self) -> Value {
        let mut object = self.fields.clone();
        object.insert("type".to_owned(), Value::String(self.application_type.clone()));
        Value::Object(object)
    }
}

impl Slot {
    /// Reads the content of a slot's state event.
    pub(super) fn read(slot_id: &str, content: &Map<String, Value>) -> Self {
        let application = content.get("application").and_then(RtcApplication::from_json);
        let encryption = content.get("encryption");
        let encryption_type =
            encryption.and_then(|it| it.get("type")).and_then(Value::as_str).map(str::to_owned);
        let is_of_it = |application: &RtcApplication| {
            slot_id
                .strip_prefix(&*application.application_type)
                .is_some_and(|rest| rest.starts_with('#'))
        };
        let closed = match content.get("status").and_then(Value::as_str) {
            Some("open") => match &application {
                None => Some(ClosedBy::Malformed("application")),
                Some(application) if !is_of_it(application) => {
                    Some(ClosedBy::Malformed("application.type"))
                }
                Some(_) if encryption.is_some() && encryption_type.is_none() => {
                    Some(ClosedBy::Malformed("encryption.type"))
                }
                Some(_) => None,
            },
            Some("closed") => Some(ClosedBy::Status),
            _ => Some(ClosedBy::Malformed("status")),
        };
        Self { application, encryption: encryption_type, id: slot_id.to_owned(), closed }
    }

    /// Its id: the session's, but for a call's that the room still has under the name that an earlier
    /// version of MSC4196 gave it, `m.call#room`.
    pub fn id(&self) -> &str {
        &self.id
    }

    /// Whether members are there, by the rules of MSC4143; `encrypted` is the room.
    pub fn closed_by(&self, encrypted: bool) -> Option<ClosedBy> {
        match &self.closed {
            None if encrypted && self.encryption.is_none() => Some(ClosedBy::NotEncrypted),
            closed => closed.clone(),
        }
    }

    /// Whether it is closed to clients that ask nothing of its encryption, as Element Call.
    pub(super) fn closed_to_element_call(&self) -> Option<ClosedBy> {
        match &self.closed {
            Some(ClosedBy::Malformed("encryption.type")) => None,
            closed => closed.clone(),
        }
    }
}
