//! How much a map keeps.

use std::time::Duration;

use crate::time::MAX_STICKY_DURATION_MS;

/// How much a map keeps.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Limits {
    /// How many keys, removals, unkeyed events and events that wait for their room key are kept of
    /// one sender in one room, all together. A sender who has used it up keeps what was there
    /// first.
    ///
    /// 1,000 unless set: a thousand times what a call needs, and one member's most is some 64 MB of
    /// text if each event is as large as a server lets it be; 33 times that if they also outrank
    /// each of them [`MAX_OTHERS_PER_KEY`] times within the hour.
    pub per_sender: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self { per_sender: 1_000 }
    }
}

/// Besides the value, the highest-ranked events of a key that are kept.
pub const MAX_OTHERS_PER_KEY: usize = 32;

/// How many cells a room can have: 16,000 senders with all that [`Limits::per_sender`] gives them.
pub(super) const MAX_CELLS: u32 = 1 << 24;

/// How many redactions of events that are not known are remembered, the newest of them.
pub const MAX_REDACTIONS: usize = 1_000;

/// How long an event may be gone and still be delivered again by somebody's cache.
pub(super) const REMEMBERED_FOR: Duration = Duration::from_millis(MAX_STICKY_DURATION_MS);
