//! Listing: when to ask the server for the list of the rooms that we are in.
//!
//! In: the rooms that the maps hide, because nobody has said that we are in them. Out: when to ask, and
//! whether a state has to wait for the answer. Never: a clock, I/O.
//!
//! A hidden room may be one that we joined elsewhere a moment ago, or one that we are only invited to:
//! Synapse delivers the sticky events of both.

use std::{collections::HashSet, time::Duration};

use ruma::OwnedRoomId;

use super::fetches::GATHER_INTERVAL;
use crate::time::{Deadline, Moment};

/// When to ask again while the list does not settle a room. The interval doubles up to
/// [`MAX_LIST_INTERVAL`].
const LIST_INTERVAL: Duration = Duration::from_secs(60);

const MAX_LIST_INTERVAL: Duration = Duration::from_secs(600);

/// Where the question for the list stands.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Stage {
    #[default]
    Idle,
    Waiting(Deadline),
    Asking,
}

/// The question for the rooms that we are in.
#[derive(Debug, Default)]
pub(super) struct Listing {
    stage: Stage,
    /// The hidden rooms that made us ask.
    asked_about: HashSet<OwnedRoomId>,
    /// Whether the question waits longer than a newly hidden room would have it wait.
    asks_late: bool,
    /// How often in a row rooms stayed hidden after an answer.
    asked_in_vain: u32,
}

impl Listing {
    /// Takes all rooms that are hidden now. `can_ask` says whether the server can be asked.
    pub(super) fn handle_hidden(&mut self, now: Moment, hidden: Vec<OwnedRoomId>, can_ask: bool) {
        self.asked_about.retain(|room_id| hidden.contains(room_id));
        if hidden.is_empty() {
            self.asked_in_vain = 0;
            self.stage = Stage::Idle;
            return;
        }
        let is_asked = hidden.iter().all(|room_id| self.asked_about.contains(room_id));
        if !can_ask || self.stage != Stage::Idle && (is_asked || !self.asks_late) {
            return;
        }
        let wait = match self.asked_in_vain {
            0 => Duration::ZERO,
            times if is_asked => {
                LIST_INTERVAL.saturating_mul(1 << times.min(4)).min(MAX_LIST_INTERVAL)
            }
            _ => GATHER_INTERVAL,
        };
        self.asks_late = is_asked;
        self.asked_about.extend(hidden);
        self.stage = Stage::Waiting(now.deadline(wait));
    }

    /// Takes that the server has answered, or has not. An answer to a question that was given up
    /// changes nothing.
    pub(super) fn handle_answer(&mut self) {
        if self.stage == Stage::Asking {
            self.stage = Stage::Idle;
            self.asked_in_vain = self.asked_in_vain.saturating_add(1);
        }
    }

    /// Whether what a state would say is not to be seen before the first answer.
    pub(super) fn holds_states(&self) -> bool {
        self.stage != Stage::Idle && self.asked_in_vain == 0
    }

    /// Whether to ask now. The question is then under way.
    pub(super) fn poll(&mut self, now: Moment) -> bool {
        let is_due = matches!(self.stage, Stage::Waiting(due) if due.is_over(now));
        if is_due {
            self.stage = Stage::Asking;
        }
        is_due
    }

    pub(super) fn next_deadline(&self) -> Option<Deadline> {
        match self.stage {
            Stage::Waiting(due) => Some(due),
            Stage::Idle | Stage::Asking => None,
        }
    }
}
