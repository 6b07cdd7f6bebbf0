//! Lists: the entries of a view as an ordered list, for user interfaces built on `eyeball-im`.
//!
//! In: a [`Subscription`]. Out: its entries, and the diffs that keep them up to date.

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

/// The entries as a list, and the diffs that follow it. Both are taken under one lock.
///
/// # Examples
///
/// ```no_run
/// use futures_util::StreamExt as _;
/// use matrix_sdk_sticky::view::{ListSubscription, View};
///
/// async fn follow(view: &View) {
///     let ListSubscription { mut entries, mut diffs, .. } = view.subscribe_list();
///     while let Some(batch) = diffs.next().await {
///         for diff in batch {
///             diff.apply(&mut entries);
///         }
///         println!("{} entries", entries.len());
///     }
/// }
/// ```
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

/// A stream of batches of [`VectorDiff`]s. One change is one batch. A batch is never empty; apply its
/// diffs in their order. The stream never fails, never lags and never ends. Dropping it ends the
/// subscription.
///
/// # Cancel safety
///
/// `next()` is cancel safe: a batch that was not taken stays, merged with what follows.
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
            // Unreachable: a removal only names an entry that the subscriber knows of.
            (EntryChange::Removed { .. }, Err(_)) => {
                VectorDiff::Reset { values: self.entries.clone() }
            }
        }
    }
}

/// Returns where the entry of this order is, or else where it belongs.
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
