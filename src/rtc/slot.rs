//! Slots: where a session can take place, and whether it is open ([MSC4143], "Slots").
//!
//! Plain values, which are read from the content of a state event.
//!
//! [MSC4143]: https://github.com/matrix-org/matrix-spec-proposals/pull/4143

use std::fmt;

use serde::Serialize;
use serde_json::{Map, Value};

use crate::wire::names;

/// The slot of a room's call ([MSC4196]).
///
/// [MSC4196]: https://github.com/matrix-org/matrix-spec-proposals/pull/4196
pub const ROOM_CALL: &str = "m.call#ROOM";

/// The name that an earlier version of MSC4196 gave [`ROOM_CALL`]. It is the same session.
const OLD_ROOM_CALL: &str = "m.call#room";

/// The session that a slot id belongs to. Each slot has a session of its own, but one slot has two names.
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
    /// The application that runs in the slot, e.g. `m.call`, with its fields. A closed slot may have it too.
    pub application: Option<RtcApplication>,
    /// How the media are encrypted, e.g. `m.per_member`. `None` if they are not.
    pub encryption: Option<String>,
    id: String,
    closed: Option<ClosedBy>,
}

/// Why a slot is not open.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ClosedBy {
    /// Its `status` says that it is closed.
    Status,
    /// The room has no slot with this id.
    Missing,
    /// This field of it is missing or malformed, so that it counts as closed.
    Malformed(&'static str),
    /// The room is encrypted, and the slot does not say how media are.
    NotEncrypted,
}

impl fmt::Display for ClosedBy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Status => f.write_str("the slot is closed"),
            Self::Missing => f.write_str("the room has no such slot"),
            Self::Malformed(field) => write!(f, "the slot is malformed: `{field}`"),
            Self::NotEncrypted => f.write_str("the slot does not say how media are encrypted"),
        }
    }
}

/// An application, as a slot or a membership names it.
#[derive(Clone, Debug, PartialEq)]
pub struct RtcApplication {
    /// The type, e.g. `m.call`.
    pub application_type: String,
    /// All other fields, without `type`.
    pub fields: Map<String, Value>,
}

impl RtcApplication {
    /// Creates an application that has nothing but its type.
    pub fn new(application_type: impl Into<String>) -> Self {
        Self { application_type: application_type.into(), fields: Map::new() }
    }

    /// Sets all other fields. A `type` among them is left out.
    ///
    /// # Errors
    ///
    /// The fields are not a JSON object, or cannot be written as one.
    pub fn with_fields(mut self, fields: &impl Serialize) -> serde_json::Result<Self> {
        self.fields = without_type(fields)?;
        Ok(self)
    }

    /// Returns what the member is there for, e.g. `audio` or `video` (`m.call.intent`, [MSC4196]). It proves
    /// nothing.
    ///
    /// [MSC4196]: https://github.com/matrix-org/matrix-spec-proposals/pull/4196
    pub fn intent(&self) -> Option<&str> {
        self.fields.get(names::CALL_INTENT).and_then(Value::as_str)
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

/// The fields of a JSON object, without `type`.
pub(super) fn without_type(fields: &impl Serialize) -> serde_json::Result<Map<String, Value>> {
    let mut fields: Map<String, Value> = serde_json::from_value(serde_json::to_value(fields)?)?;
    fields.remove("type");
    Ok(fields)
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

    /// Returns the slot's id. It is the session's, except for the room's call if the room still has that under
    /// the name that an earlier version of MSC4196 gave it, `m.call#room`.
    pub fn id(&self) -> &str {
        &self.id
    }

    /// Returns why the slot is not open by the rules of MSC4143. `None` if it is open. `encrypted` says whether
    /// the room is encrypted.
    pub fn closed_by(&self, encrypted: bool) -> Option<ClosedBy> {
        match &self.closed {
            None if encrypted && self.encryption.is_none() => Some(ClosedBy::NotEncrypted),
            closed => closed.clone(),
        }
    }

    /// Why it is closed to clients that do not look at its encryption, such as Element Call.
    pub(super) fn closed_to_element_call(&self) -> Option<ClosedBy> {
        match &self.closed {
            Some(ClosedBy::Malformed("encryption.type")) => None,
            closed => closed.clone(),
        }
    }
}
