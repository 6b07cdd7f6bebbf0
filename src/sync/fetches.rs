//! Fetches: the single rooms whose sticky events are to be fetched, and when.
//!
//! In: rooms that were joined, or whose timeline has a gap; what became of a fetch. Out: the rooms of
//! the next fetch, one at a time. Never: a clock, I/O.

use std::{collections::BTreeSet, time::Duration};

use ruma::{OwnedRoomId, RoomId};

use super::connection::doubled;
use crate::time::{Deadline, Moment};

/// How long gaps in the main loop's timelines are gathered before their rooms are fetched. A busy room
/// can have a gap in each response.
pub(super) const GATHER_INTERVAL: Duration = Duration::from_secs(2);

/// The rooms to fetch. One fetch is under way at a time.
#[derive(Debug, Default)]
pub(super) struct Fetches {
    wanted: BTreeSet<OwnedRoomId>,
    is_fetching: bool,
    /// How often in a row a fetch failed.
    failures: u32,
    /// When to start the next fetch.
    due: Option<Deadline>,
}

impl Fetches {
    pub(super) fn want(&mut self, rooms: impl IntoIterator<Item = OwnedRoomId>) {
        self.wanted.extend(rooms);
    }

    pub(super) fn forget(&mut self, room_id: &RoomId) {
        self.wanted.remove(room_id);
    }

    pub(super) fn retain(&mut self, is_kept: impl FnMut(&OwnedRoomId) -> bool) {
        self.wanted.retain(is_kept);
    }

    pub(super) fn wants(&self, room_id: &RoomId) -> bool {
        self.wanted.contains(room_id)
    }

    /// Whether nothing is under way, and nothing is to come.
    pub(super) fn is_done(&self) -> bool {
        !self.is_fetching && self.wanted.is_empty()
    }

    /// Whether a fetch is under way or has failed.
    pub(super) fn is_unsettled(&self) -> bool {
        self.is_fetching || self.failures > 0
    }

    /// Starts the next fetch as soon as the server can be asked.
    pub(super) fn hurry(&mut self, now: Moment) {
        self.due = Some(now.deadline(Duration::ZERO));
    }

    /// Starts the next fetch after a wait for further rooms, of at least `least`, if any room is wanted
    /// and nothing is under way. `jitter` spreads the wait.
    pub(super) fn gather(
        &mut self,
        now: Moment,
        least: Duration,
        jitter: impl FnOnce(Duration) -> Duration,
    ) {
        if !self.wanted.is_empty() && !self.is_fetching && self.due.is_none() {
            let wait = jitter(doubled(GATHER_INTERVAL, self.failures));
            self.due = Some(now.deadline(least.saturating_add(wait)));
        }
    }

    /// Takes the end of the fetch that was under way.
    pub(super) fn handle_end(&mut self) {
        self.is_fetching = false;
    }

    /// Takes that the fetch brought all that it was to bring.
    pub(super) fn handle_success(&mut self) {
        self.failures = 0;
    }

    /// Takes the rooms that could not be fetched.
    pub(super) fn handle_failure(&mut self, rooms: impl IntoIterator<Item = OwnedRoomId>) {
        self.failures = self.failures.saturating_add(1);
        self.wanted.extend(rooms);
    }

    /// Returns the rooms to fetch now. While the server cannot be asked they wait until it is back.
    pub(super) fn poll(&mut self, now: Moment, can_ask: bool) -> Option<BTreeSet<OwnedRoomId>> {
        self.due.filter(|due| due.is_over(now))?;
        self.due = None;
        if !can_ask || self.is_fetching || self.wanted.is_empty() {
            return None;
        }
        self.is_fetching = true;
        Some(std::mem::take(&mut self.wanted))
    }

    pub(super) fn next_deadline(&self) -> Option<Deadline> {
        self.due
    }
}
