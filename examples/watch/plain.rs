//! Texts for people: what entries have to say, in little room and harmless to a terminal.

use std::time::Duration;

use matrix_sdk_sticky::{event::StickyEvent, view::EntryChange};
use serde_json::{Map, Value};

use crate::terminal::{clock, harmless};

/// The first of the plain lines.
pub(crate) fn ready(sync: &str) -> String {
    format!("live, by {sync} sync")
}

/// The plain line of a change, whose entry has `left` left.
pub(crate) fn line(change: &EntryChange, left: Duration) -> serde_json::Result<String> {
    let entry = change.entry();
    let what = match change {
        EntryChange::Added(_) => format!("added, {} left", clock(left)),
        EntryChange::Removed { reason, .. } => reason.as_str().to_owned(),
        _ => format!("updated, {} left", clock(left)),
    };
    let room = harmless(entry.room_id().as_str());
    Ok(format!("{room} {}: {what}", in_short(entry)))
}

/// Who, what, under which key, and the content.
pub(crate) fn in_short(event: &StickyEvent) -> String {
    let sender = harmless(event.sender().as_str());
    let key = event.sticky_key().map(|key| format!("[{}]", harmless(key)));
    let lock = if event.is_encrypted() { " 🔒" } else { "" };
    format!(
        "{sender} {}{}{lock} {}",
        short_type(event.event_type()),
        key.unwrap_or_default(),
        summary(event)
    )
}

/// The last two parts of a type: `rtc.member` of `org.matrix.msc4143.rtc.member`.
pub(crate) fn short_type(event_type: &str) -> String {
    let start = event_type.rmatch_indices('.').nth(1).map_or(0, |(dot, _)| dot + 1);
    harmless(event_type.get(start..).unwrap_or(event_type))
}

/// The content without the sticky key, as `name: value, ..`.
pub(crate) fn summary(event: &StickyEvent) -> String {
    // Whoever sends a content can make it as large as a server allows.
    const MOST: usize = 200;

    let content: Map<String, Value> = event.content().unwrap_or_default();
    let mut text = String::new();
    for (name, value) in &content {
        if matches!(name.as_str(), "sticky_key" | "msc4354_sticky_key") {
            continue;
        }
        if text.len() > MOST {
            break;
        }
        let between = if text.is_empty() { "" } else { ", " };
        match value {
            Value::String(value) => text.extend([between, name, ": ", value]),
            value => text.extend([between, name, ": ", &value.to_string()]),
        }
    }
    harmless(&text.chars().take(MOST).collect::<String>())
}
