//! One place of the map: the known events of a key, highest rank first.
//!
//! In: events of that key, and which of them are redacted. Out: which one is the value, and why
//! one that was shown is not any more. No deadlines: whoever owns the slot removes what has ended.

use std::{collections::HashSet, sync::Arc};

use ruma::OwnedUserId;
use smallvec::{SmallVec, smallvec};

use crate::event::{Kind, Place, RemovalReason, StickyEvent};

pub(super) struct Slot {
    /// What is known, redacted events too, highest rank first. Nearly always one, or that and what
    /// it refreshed; so many take no more room here than the place of a list elsewhere does.
    known: SmallVec<[Arc<StickyEvent>; 2]>,
    /// The value as the last change told it.
    pub(super) shown: Option<Arc<StickyEvent>>,
}

impl Slot {
    pub(super) fn new(event: Arc<StickyEvent>) -> Self {
        Self { known: smallvec![event], shown: None }
    }

    /// The place of this slot. A slot has a record, or something shown whose end must still be
    /// told; without either it is removed.
    pub(super) fn place(&self) -> Place<'_> {
        self.sample().map_or(Place::NOWHERE, |event| event.place())
    }

    /// Any event of this slot.
    pub(super) fn sample(&self) -> Option<&Arc<StickyEvent>> {
        self.known.first().or(self.shown.as_ref())
    }

    /// Whether no event of this slot is known any more.
    pub(super) fn is_vacant(&self) -> bool {
        self.known.is_empty()
    }

    /// Adds an event that is not there yet. Whether it is the highest of those that count.
    pub(super) fn insert(&mut self, event: Arc<StickyEvent>) -> bool {
        let rank = event.rank();
        let at = self.known.partition_point(|known| known.rank() > rank);
        let counts = self.known.iter().take(at).all(|known| known.is_redacted());
        self.known.insert(at, event);
        counts
    }

    /// Removes an event. Whether the value may be another now.
    pub(super) fn remove(&mut self, event: &Arc<StickyEvent>) -> bool {
        let Some(at) = self.known.iter().position(|known| Arc::ptr_eq(known, event)) else {
            return false;
        };
        self.known.remove(at);
        !event.is_redacted() && self.known.iter().take(at).all(|known| known.is_redacted())
    }

    /// The event to give up where there are more than `most`: the lowest redacted one, as it only
    /// guards against late copies, else the lowest.
    pub(super) fn excess(&self, most: usize) -> Option<Arc<StickyEvent>> {
        if self.known.len() <= most {
            return None;
        }
        let redacted = self.known.iter().rev().find(|known| known.is_redacted());
        redacted.or(self.known.last()).cloned()
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
        let known = self.known.iter().find(|known| Arc::ptr_eq(known, gone))?;
        Some(if known.is_redacted() { RemovalReason::Redacted } else { RemovalReason::Removed })
    }

    fn highest(&self) -> Option<&Arc<StickyEvent>> {
        self.known.iter().find(|known| !known.is_redacted())
    }
}
