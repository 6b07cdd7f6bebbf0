//! Texts for people: entries in little room, and harmless to a terminal.

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
    let sender = harmless(entry.sender().as_str());
    Ok(format!("{room} {}: {what}", in_short(&sender, entry)))
}

/// The sender, the type, the key and the content. The sender is given as it is to be shown.
pub(crate) fn in_short(sender: &str, event: &StickyEvent) -> String {
    let key = event.sticky_key().map(|key| format!("[{}]", harmless(key)));
    let lock = if event.is_encrypted() { " 🔒" } else { "" };
    format!(
        "{sender} {}{}{lock} {}",
        harmless(event.event_type()),
        key.unwrap_or_default(),
        summary(event)
    )
}

/// The content without the sticky key, as `name: value, ..`.
pub(crate) fn summary(event: &StickyEvent) -> String {
    /// A sender can make a content as large as the server allows.
    const MAX_CHARS: usize = 200;

    let content: Map<String, Value> = event.content().unwrap_or_default();
    let mut text = String::new();
    for (name, value) in &content {
        if matches!(name.as_str(), "sticky_key" | "msc4354_sticky_key") {
            continue;
        }
        if text.len() > MAX_CHARS {
            break;
        }
        let between = if text.is_empty() { "" } else { ", " };
        match value {
            Value::String(value) => text.extend([between, name, ": ", value]),
            value => text.extend([between, name, ": ", &value.to_string()]),
        }
    }
    harmless(&text.chars().take(MAX_CHARS).collect::<String>())
}
