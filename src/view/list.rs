//! Lists: the entries of a view as an ordered list and the diffs that keep it, for user interfaces
//! built on `eyeball-im`.

use std::{
    cmp::Ordering,
    fmt,
    pin::Pin,
    task::{Context, Poll},
};

use eyeball_im::{Vector, VectorDiff};
use futures_core::Stream;

use super::{
    changes::{Changes, EntryChange, Subscription},
    snapshot::Entry,
};

/// The entries as a list, and the diffs that follow, taken under one lock.
#[derive(Debug)]
#[non_exhaustive]
pub struct ListSubscription {
    /// The entries at this moment, in the order of entries.
    pub entries: Vector<Entry>,
    /// The diffs that keep `entries` up to date.
    pub diffs: DiffStream,
}

impl ListSubscription {
    pub(super) fn new(subscription: Subscription) -> Self {
        let Subscription { snapshot, changes } = subscription;
        let entries: Vector<Entry> = snapshot.iter().collect();
        Self { entries: entries.clone(), diffs: DiffStream { entries, changes } }
    }
}

/// A stream of batches of `VectorDiff`s. One change is one batch, never empty, each diff to be
/// applied after the one before it. It never fails, never lags and never ends.
pub struct DiffStream {
    /// The list as the subscriber has it.
    entries: Vector<Entry>,
    changes: Changes,
}

impl DiffStream {
    fn diff(&mut self, change: EntryChange) -> VectorDiff<Entry> {
        let found = find(&self.entries, change.entry());
        match (change, found) {
            (EntryChange::Added(value) | EntryChange::Updated { entry: value, .. }, Ok(index)) => {
                self.entries.set(index, value.clone());
                VectorDiff::Set { index, value }
            }
            (EntryChange::Added(value) | EntryChange::Updated { entry: value, .. }, Err(index)) => {
                self.entries.insert(index, value.clone());
                VectorDiff::Insert { index, value }
            }
            (EntryChange::Removed { .. }, Ok(index)) => {
                self.entries.remove(index);
                VectorDiff::Remove { index }
            }
            // Nothing to remove cannot be: a removal is only told of an entry that was.
            (EntryChange::Removed { .. }, Err(_)) => {
                VectorDiff::Reset { values: self.entries.clone() }
            }
        }
    }
}

/// Where an entry of this order is, or where it belongs.
fn find(entries: &Vector<Entry>, wanted: &Entry) -> Result<usize, usize> {
    let (mut low, mut high) = (0, entries.len());
    while low < high {
        let middle = low + (high - low) / 2;
        match entries.get(middle).map(|entry| entry.cmp_order(wanted)) {
            Some(Ordering::Less) => low = middle + 1,
            Some(Ordering::Greater) | None => high = middle,
            Some(Ordering::Equal) => return Ok(middle),
        }
    }
    Err(low)
}

impl Stream for DiffStream {
    type Item = Vec<VectorDiff<Entry>>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let change = std::task::ready!(Pin::new(&mut self.changes).poll_next(cx));
        Poll::Ready(
            change.map(|change| change.entries.into_iter().map(|entry| self.diff(entry)).collect()),
        )
    }
}

impl fmt::Debug for DiffStream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("DiffStream").field("len", &self.entries.len()).finish_non_exhaustive()
    }
}
