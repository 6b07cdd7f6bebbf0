//! One place of the map: the known events of a key, highest rank first.
//!
//! In: events of that key, and which of them are redacted. Out: which one is the value, and why
//! one that was shown is not any more. No deadlines: whoever owns the slot removes what has ended.

use std::{collections::HashSet, sync::Arc};

use ruma::OwnedUserId;
use smallvec::{SmallVec, smallvec};

use crate::event::{Kind, Place, RemovalReason, StickyEvent};

/// A known event of the slot.
#[derive(Clone)]
pub(super) struct Record {
    pub(super) event: Arc<StickyEvent>,
    /// Redacted: it is not sticky, and is only kept so that a late copy of it does not count.
    pub(super) redacted: bool,
}

pub(super) struct Slot {
    /// Highest rank first. Nearly always exactly one.
    records: SmallVec<[Record; 1]>,
    /// The value as the last change told it.
    pub(super) shown: Option<Arc<StickyEvent>>,
}

impl Slot {
    pub(super) fn new(event: Arc<StickyEvent>) -> Self {
        Self { records: smallvec![Record { event, redacted: false }], shown: None }
    }

    /// The place of this slot. A slot has a record, or something shown whose end must still be
    /// told; without either it is removed.
    pub(super) fn place(&self) -> Place<'_> {
        match (self.records.first(), &self.shown) {
            (Some(Record { event, .. }), _) | (None, Some(event)) => event.place(),
            (None, None) => Place::NOWHERE,
        }
    }

    /// Any event of this slot.
    pub(super) fn sample(&self) -> Option<&Arc<StickyEvent>> {
        self.records.first().map(|record| &record.event).or(self.shown.as_ref())
    }

    /// Whether no event of this slot is known any more.
    pub(super) fn is_vacant(&self) -> bool {
        self.records.is_empty()
    }

    /// Adds an event that is not there yet. Whether it is the highest of those that count.
    pub(super) fn insert(&mut self, event: Arc<StickyEvent>) -> bool {
        let rank = event.rank();
        let at = self.records.partition_point(|record| record.event.rank() > rank);
        let counts = self.records.iter().take(at).all(|record| record.redacted);
        self.records.insert(at, Record { event, redacted: false });
        counts
    }

    /// Removes an event. Whether the value may be another now.
    pub(super) fn remove(&mut self, event: &Arc<StickyEvent>) -> bool {
        let Some(at) = self.records.iter().position(|record| Arc::ptr_eq(&record.event, event))
        else {
            return false;
        };
        let record = self.records.remove(at);
        !record.redacted && self.records.iter().take(at).all(|record| record.redacted)
    }

    pub(super) fn redact(&mut self, event_id: &str) {
        for record in &mut self.records {
            record.redacted |= record.event.event_id_str() == event_id;
        }
    }

    pub(super) fn is_redacted(&self, event: &Arc<StickyEvent>) -> bool {
        self.records.iter().any(|record| record.redacted && Arc::ptr_eq(&record.event, event))
    }

    /// The record to give up where there are more than `most`: the lowest redacted one, as it only
    /// guards against late copies, else the lowest.
    pub(super) fn excess(&self, most: usize) -> Option<Record> {
        if self.records.len() <= most {
            return None;
        }
        let redacted = self.records.iter().rev().find(|record| record.redacted);
        redacted.or(self.records.last()).cloned()
    }

    /// The event that is live under this slot's key, unless that is a tombstone, or nobody knows
    /// yet what it is, or its sender is ignored.
    pub(super) fn value(&self, ignored: &HashSet<OwnedUserId>) -> Option<&Arc<StickyEvent>> {
        let event = self.highest()?;
        (event.kind() == Kind::Value && !ignored.contains(event.sender())).then_some(event)
    }

    /// Why `gone`, which was the value, left and nothing took its place; `None` if it is not known
    /// any more.
    pub(super) fn reason(
        &self,
        gone: &Arc<StickyEvent>,
        ignored: &HashSet<OwnedUserId>,
    ) -> Option<RemovalReason> {
        if ignored.contains(gone.sender()) {
            return Some(RemovalReason::Ignored);
        }
        let record = self.records.iter().find(|record| Arc::ptr_eq(&record.event, gone))?;
        Some(if record.redacted { RemovalReason::Redacted } else { RemovalReason::Removed })
    }

    fn highest(&self) -> Option<&Arc<StickyEvent>> {
        self.records.iter().find(|record| !record.redacted).map(|record| &record.event)
    }
}
