//! A subscriber, and what it has not been told yet.
//!
//! In: a room's deltas. Out: one [`Change`] for all of them, when the subscriber asks. Never: a queue
//! that grows without bound, or a lost entry.

use std::{cmp::Ordering, sync::Arc, task::Waker};

use smallvec::SmallVec;

use super::{
    changes::{Change, EntryChange},
    filter::Filter,
    snapshot::Entry,
};
use crate::{
    event::{RemovalReason, SharedRoom, StickyEvent},
    map::Delta,
    time::Moment,
};

/// A subscriber, with the changes that it has not taken yet.
#[derive(Debug, Default)]
pub(super) struct Subscriber {
    filter: Filter,
    /// Changes in the order in which they came. They are merged when the subscriber asks, and before
    /// they grow beyond bounds: then there are at most as many as the entries that the subscriber
    /// knows of plus those that are there.
    untold: SmallVec<[Untold; 1]>,
    /// The length of `untold` after the last merge.
    merged: usize,
    waker: Option<Waker>,
}

/// One change of one entry, or several merged into one.
#[derive(Debug)]
struct Untold {
    room_id: SharedRoom,
    told: Option<Arc<StickyEvent>>,
    now: Result<Arc<StickyEvent>, RemovalReason>,
}

impl Subscriber {
    pub(super) fn new(filter: Filter) -> Self {
        Self { filter, ..Self::default() }
    }

    /// Takes what changed in a room. Returns the waker of a subscriber that waits for it.
    #[must_use]
    pub(super) fn handle_deltas(
        &mut self,
        room_id: &SharedRoom,
        deltas: &[Delta],
    ) -> Option<Waker> {
        if !self.filter.lets_room_through(room_id) {
            return None;
        }
        for Delta { before, after, .. } in deltas {
            let untold =
                Untold { room_id: room_id.clone(), told: before.clone(), now: after.clone() };
            if untold.event().is_some_and(|event| self.filter.lets_event_through(event)) {
                self.untold.push(untold);
            }
        }
        if self.untold.len() > 2 * self.merged + 64 {
            self.merge();
        }
        if self.untold.is_empty() { None } else { self.waker.take() }
    }

    /// Returns what the subscriber has not been told. If there is nothing, it keeps `waker`, and
    /// leaves the waker from before in its place, so that the caller drops it outside the lock.
    pub(super) fn poll_change(&mut self, now: Moment, waker: &mut Option<Waker>) -> Option<Change> {
        self.merge();
        if self.untold.is_empty() {
            if waker.is_some() {
                std::mem::swap(&mut self.waker, waker);
            }
            return None;
        }
        self.merged = 0;
        let mut entries = Vec::with_capacity(self.untold.len());
        for untold in std::mem::take(&mut self.untold) {
            entries.extend(untold.into_change());
        }
        Some(Change { entries, told_at: now })
    }

    /// Merges all that happened to an entry into one change, and sorts by the order of the entries.
    fn merge(&mut self) {
        if self.untold.len() > 1 {
            // A stable sort: what happened to one entry stays in its order.
            self.untold.sort_by(Untold::cmp_order);
            self.untold.dedup_by(|later, earlier| {
                let is_same = later.cmp_order(earlier).is_eq();
                if is_same {
                    std::mem::swap(&mut earlier.now, &mut later.now);
                }
                is_same
            });
            self.untold.retain(|untold| !untold.is_nothing());
        }
        self.merged = self.untold.len();
    }
}

impl Untold {
    /// Returns an event of the entry.
    fn event(&self) -> Option<&Arc<StickyEvent>> {
        self.now.as_ref().ok().or(self.told.as_ref())
    }

    fn cmp_order(&self, other: &Self) -> Ordering {
        self.room_id.cmp(&other.room_id).then_with(|| match (self.event(), other.event()) {
            (Some(event), Some(other)) => event.cmp_order(other),
            (event, other) => event.is_some().cmp(&other.is_some()),
        })
    }

    /// Returns whether the subscriber knows this already.
    fn is_nothing(&self) -> bool {
        match (&self.told, &self.now) {
            (None, Err(_)) => true,
            // Compares the events, not the allocations: after we leave a room and join it again,
            // the same event comes in another allocation.
            (Some(told), Ok(now)) => told == now && told.encryption() == now.encryption(),
            _ => false,
        }
    }

    fn into_change(self) -> Option<EntryChange> {
        let Self { room_id, told, now } = self;
        Some(match (told, now) {
            (None, Ok(event)) => EntryChange::Added(Entry { room_id, event }),
            (Some(previous), Ok(event)) => {
                EntryChange::Updated { entry: Entry { room_id, event }, previous }
            }
            (Some(event), Err(reason)) => {
                EntryChange::Removed { entry: Entry { room_id, event }, reason }
            }
            (None, Err(_)) => return None,
        })
    }
}
