//! One event, opened: all that there is to know of it, and its JSON.

use std::{sync::Arc, time::Duration};

use matrix_sdk::ruma::OwnedEventId;
use matrix_sdk_sticky::{
    Encryption, RemovalReason,
    event::{EncryptionDetails, StickyEvent, Verification},
    time::Moment,
    view::{Entry, EntryChange},
};
use serde_json::Value;

use crate::terminal::{clock, harmless};

/// How many events that lost are remembered of an entry.
const MAX_LOST: usize = 32;

/// An entry that is open. It follows the entry: a later value of the key takes its place.
pub(crate) struct Opened {
    entry: Entry,
    /// The events of the same key that the screen has shown before, the newest first.
    lost: Vec<OwnedEventId>,
    gone: Option<RemovalReason>,
    pub(crate) scroll: usize,
}

impl Opened {
    pub(crate) fn new(entry: Entry, lost: Vec<OwnedEventId>) -> Self {
        Self { entry, lost, gone: None, scroll: 0 }
    }

    pub(crate) fn handle_change(&mut self, change: &EntryChange) {
        let entry = change.entry();
        if !is_same(entry, &self.entry) {
            return;
        }
        match change {
            EntryChange::Removed { reason, .. } => self.gone = Some(*reason),
            EntryChange::Updated { previous, .. } => {
                remember(&mut self.lost, previous, entry);
                self.gone = None;
            }
            _ => self.gone = None,
        }
        self.entry = entry.clone();
    }

    /// All lines, harmless to a terminal.
    pub(crate) fn lines(&self, sender: &str, now: Moment) -> Vec<String> {
        let entry = &self.entry;
        let end = match self.gone {
            Some(reason) => format!("gone: {}", reason.as_str()),
            None => format!(
                "in {}, of {}",
                clock(entry.expires_in(now)),
                clock(entry.sticky_duration())
            ),
        };
        let sent_at = Duration::from_millis(entry.origin_server_ts_ms());
        let age = Duration::from_millis(now.unix_ms()).saturating_sub(sent_at);
        let id = entry.sender().as_str();
        let sender = if sender == id { id.to_owned() } else { format!("{sender}, {id}") };
        let mut lines: Vec<String> = [
            ("event id", entry.event_id().to_string()),
            ("room", entry.room_id().to_string()),
            ("sender", sender),
            ("type", entry.event_type().to_owned()),
            ("sticky key", entry.sticky_key().map_or("none".to_owned(), |key| format!("{key:?}"))),
            ("sent", format!("{} ago, by its server's clock", clock(age))),
            ("ends", end),
            ("encryption", encryption(&entry.encryption())),
        ]
        .iter()
        .map(|(name, value)| harmless(&format!("{name:<11} {value}")))
        .collect();
        for lost in &self.lost {
            lines.push(harmless(&format!("{:<11} {lost}, same key, shown earlier", "lost to it")));
        }
        lines.push(String::new());
        let json: Option<Value> = serde_json::from_str(entry.raw().get()).ok();
        let json = json.and_then(|json| serde_json::to_string_pretty(&json).ok());
        lines.extend(json.unwrap_or_else(|| entry.raw().get().to_owned()).lines().map(harmless));
        lines
    }

    pub(crate) fn entry(&self) -> &Entry {
        &self.entry
    }
}

/// Whether two entries are of one key: the same room, sender, type and sticky key. Without a key each
/// event is an entry of its own.
pub(crate) fn is_same(one: &Entry, other: &Entry) -> bool {
    let is_same_event = || one.event_id() == other.event_id();
    one.room_id() == other.room_id()
        && one.sender() == other.sender()
        && one.event_type() == other.event_type()
        && one.sticky_key() == other.sticky_key()
        && (one.sticky_key().is_some() || is_same_event())
}

/// Remembers an event that has lost to another one. An event of which only its encryption became known
/// has lost to nothing.
pub(crate) fn remember(lost: &mut Vec<OwnedEventId>, previous: &Arc<StickyEvent>, now: &Entry) {
    if previous.event_id() != now.event_id() {
        lost.insert(0, previous.event_id().to_owned());
        lost.truncate(MAX_LOST);
    }
}

fn encryption(encryption: &Encryption) -> String {
    match encryption {
        Encryption::Plaintext => "none: sent in plaintext".to_owned(),
        Encryption::Encrypted(details) => format!("by the sender's device {}", device(details)),
        Encryption::ForeignSession(details) => {
            format!("NOT by the sender: a session of {}, device {}", details.owner, device(details))
        }
        _ => "of a kind that this program does not know".to_owned(),
    }
}

fn device(details: &EncryptionDetails) -> String {
    let device = details.device.as_ref().map_or("unknown", |device| device.as_str());
    let verification = match details.verification {
        Verification::Verified => "cross-signed by a user whom we have verified",
        Verification::UnverifiedIdentity => "cross-signed by its owner, whom we have not verified",
        Verification::VerificationViolation => "its owner was verified, and has a new identity now",
        Verification::UnsignedDevice => "not cross-signed by its owner",
        _ => "proven by nothing",
    };
    format!("{device}, {verification}")
}
