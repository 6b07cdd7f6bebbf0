//! How much a map keeps.

use std::time::Duration;

use crate::time::MAX_STICKY_DURATION_MS;

/// How much the map of a room keeps.
///
/// # Examples
///
/// ```
/// use matrix_sdk_sticky::map::Limits;
///
/// let limits = Limits::default().with_max_events_per_sender(100);
/// assert_eq!(limits.max_events_per_sender, 100);
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Limits {
    /// The quota of one sender in one room, from 0 on: how many keys, removals, unkeyed events and
    /// events that miss their room key the map keeps, all together. A full quota keeps what was there
    /// first, and drops what comes.
    ///
    /// Defaults to 1,000, a thousand times what a call needs. With it, one member can take 64 MB of
    /// text, if each event is as large as a server allows; 33 times that, if they also outrank each
    /// event [`MAX_OTHERS_PER_KEY`] times within the hour.
    pub max_events_per_sender: usize,
}

impl Limits {
    /// Sets the quota of one sender in one room. See
    /// [`max_events_per_sender`](Self::max_events_per_sender).
    #[must_use]
    pub fn with_max_events_per_sender(mut self, events: usize) -> Self {
        self.max_events_per_sender = events;
        self
    }
}

impl Default for Limits {
    fn default() -> Self {
        Self { max_events_per_sender: 1_000 }
    }
}

/// How many events of a key the map keeps besides the value: the highest-ranked ones.
pub const MAX_OTHERS_PER_KEY: usize = 32;

/// How many cells a room can have: enough for 16,000 senders with a full default quota each.
pub(super) const MAX_CELLS: u32 = 1 << 24;

/// How many redactions of unknown events a room remembers: the newest ones, for an hour at most.
pub const MAX_REDACTIONS: usize = 1_000;

/// How long a map remembers an event that is gone. For an hour, a cache on the way may deliver such
/// an event again.
pub(super) const REMEMBERED_FOR: Duration = Duration::from_millis(MAX_STICKY_DURATION_MS);
