//! When an event ends, and the order in which a map's events do.

use super::{MAX_CELLS, ReceivedVia};
use crate::{
    time::{Deadline, MAX_STICKY_DURATION_MS, Moment, end_by_origin},
    wire::RawSticky,
};

pub(super) fn end_of(received: Moment, via: ReceivedVia, raw: &RawSticky<'_>) -> Deadline {
    match (raw.remaining_ms, via) {
        (Some(remaining_ms), _) => received.deadline_ms(remaining_ms.min(MAX_STICKY_DURATION_MS)),
        (None, ReceivedVia::Section) => {
            end_by_origin(received, raw.origin_server_ts_ms, raw.duration_ms)
        }
        (None, ReceivedVia::Timeline) => received.deadline_ms(0),
    }
}

/// An end, and the number of the cell whose event has it.
///
/// The two take 8 bytes together. They are compared without looking anything up, because each event
/// that comes is sorted in among them. The end has 40 bits of milliseconds, which are 34 years,
/// counted from when the map last knew nothing.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct EndOf(u64);

impl EndOf {
    pub(super) fn new(epoch: Deadline, end: Deadline, cell: u32) -> Self {
        let most = u64::MAX >> MAX_CELLS.ilog2();
        Self(end.millis_after(epoch).min(most) << MAX_CELLS.ilog2() | u64::from(cell))
    }

    pub(super) fn deadline(self, epoch: Deadline) -> Deadline {
        epoch.later(self.0 >> MAX_CELLS.ilog2())
    }

    pub(super) fn cell(self) -> u32 {
        (self.0 % u64::from(MAX_CELLS)) as u32
    }
}
