//! The lines that scripts read. One object each, in the form that the README promises.

use std::time::Duration;

use matrix_sdk::ruma::{EventId, RoomId, UserId};
use matrix_sdk_sticky::view::EntryChange;
use serde::Serialize;
use serde_json::{json, value::RawValue};

#[derive(Serialize)]
struct Line<'a> {
    kind: &'a str,
    room_id: &'a RoomId,
    sender: &'a UserId,
    r#type: &'a str,
    sticky_key: Option<&'a str>,
    event_id: &'a EventId,
    expires_in_ms: u64,
    encrypted: bool,
    /// As it was sent: nothing is parsed, so nothing is changed.
    content: &'a RawValue,
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<&'a str>,
}

/// The first line.
pub(crate) fn ready(sync: &str) -> String {
    json!({ "kind": "ready", "sync": sync }).to_string()
}

/// The line of a change, whose entry has `left` left.
pub(crate) fn line(change: &EntryChange, left: Duration) -> serde_json::Result<String> {
    let (kind, reason) = match change {
        EntryChange::Added(_) => ("added", None),
        EntryChange::Removed { reason, .. } => ("removed", Some(reason.as_str())),
        _ => ("updated", None),
    };
    let entry = change.entry();
    let line = Line {
        kind,
        room_id: entry.room_id(),
        sender: entry.sender(),
        r#type: entry.event_type(),
        sticky_key: entry.sticky_key(),
        event_id: entry.event_id(),
        expires_in_ms: u64::try_from(left.as_millis()).unwrap_or(u64::MAX),
        encrypted: entry.is_encrypted(),
        content: entry.content_raw()?,
        reason,
    };
    // Between the parts of a JSON text line breaks are allowed, within its strings they are not.
    Ok(serde_json::to_string(&line)?.replace(['\n', '\r'], " "))
}
