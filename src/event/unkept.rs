//! An event that is being made: its metadata still borrows from the text.

use std::sync::{
    Arc,
    atomic::{AtomicBool, AtomicU64},
};

use serde_json::value::RawValue;

use super::{
    Kind, StickyEvent,
    encryption::Encryption,
    part::{Beside, Part},
    shared::{SharedSender, SharedType},
};
use crate::{
    time::Deadline,
    wire::{RawContent, RawSticky},
};

/// What the map gives an event.
pub(crate) struct Given {
    pub(crate) sender: SharedSender,
    pub(crate) event_type: SharedType,
    pub(crate) id_hash: u64,
    pub(crate) cell: u32,
}

/// An event that still misses its text. Until this is made, the metadata borrows from the text; only
/// afterwards can the text be handed over. That way the text is never copied.
pub(crate) struct Unkept {
    sender: SharedSender,
    event_type: SharedType,
    event_id: Part,
    sticky_key: Part,
    beside: Option<Box<Beside>>,
    origin_server_ts_ms: u64,
    duration_ms: u64,
    id_hash: u64,
    cell: u32,
    ends: Deadline,
    kind: Kind,
    encryption: Encryption,
}

impl Unkept {
    /// Makes an event from its metadata and the text that the metadata points into.
    pub(crate) fn read(
        raw: &RawSticky<'_>,
        text: &str,
        given: Given,
        ends: Deadline,
        encryption: Encryption,
    ) -> Self {
        let (kind, key) = match &raw.content {
            RawContent::Clear { sticky_key, removal } => {
                let kind = if *removal { Kind::Removal } else { Kind::Value };
                (kind, sticky_key.as_deref())
            }
            RawContent::Encrypted { .. } => (Kind::Unreadable, None),
        };
        let event_id = Part::of(raw.event_id.as_str(), text);
        let sticky_key = key.map_or(Part::NONE, |key| Part::of(key, text));
        let is_beside = event_id.is_beside() || sticky_key.is_beside();
        let beside = is_beside.then(|| {
            let event_id = raw.event_id.as_str().into();
            Box::new(Beside { event_id, sticky_key: key.unwrap_or_default().into() })
        });
        let Given { sender, event_type, id_hash, cell } = given;
        Self {
            sender,
            event_type,
            id_hash,
            cell,
            event_id,
            sticky_key,
            beside,
            origin_server_ts_ms: raw.origin_server_ts_ms,
            duration_ms: raw.duration_ms,
            ends,
            kind,
            encryption,
        }
    }

    /// Keeps `text`, which must be the text that the metadata was read from.
    pub(crate) fn keep(self, text: Box<RawValue>) -> Arc<StickyEvent> {
        Arc::new(StickyEvent {
            text,
            sender: self.sender,
            event_type: self.event_type,
            event_id: self.event_id,
            sticky_key: self.sticky_key,
            beside: self.beside,
            origin_server_ts_ms: self.origin_server_ts_ms,
            duration_ms: self.duration_ms,
            id_hash: self.id_hash,
            cell: self.cell,
            ends: AtomicU64::new(self.ends.to_bits()),
            redacted: AtomicBool::new(false),
            kind: self.kind,
            foreign_session: matches!(self.encryption, Encryption::ForeignSession(_)),
            encryption: self.encryption.into_details(),
        })
    }
}
