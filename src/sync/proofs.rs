//! Proofs: when to ask the SDK again who encrypted the events whose sender's device was not known.
//!
//! In: how many events are not proven. Out: when to look. Never: a clock, I/O, an event.

use std::time::Duration;

use crate::time::{Deadline, Moment};

/// When to look again. The interval doubles up to [`MAX_PROOF_INTERVAL`].
const PROOF_INTERVAL: Duration = Duration::from_secs(1);

const MAX_PROOF_INTERVAL: Duration = Duration::from_secs(120);

/// The next look: soon after a further event is not proven, and then less and less often.
#[derive(Debug, Default)]
pub(super) struct Proofs {
    due: Option<Deadline>,
    /// How often in a row a look left an event unproven.
    in_vain: u32,
    /// How many events are not proven.
    unproven: usize,
}

impl Proofs {
    /// Takes how many events are not proven now.
    pub(super) fn handle_unproven(&mut self, now: Moment, unproven: usize) {
        let is_more = unproven > self.unproven;
        self.unproven = unproven;
        if unproven == 0 {
            self.due = None;
        } else if is_more || self.due.is_none() {
            if is_more {
                self.in_vain = 0;
            }
            let wait = PROOF_INTERVAL.saturating_mul(1 << self.in_vain.min(16));
            self.due = Some(now.deadline(wait.min(MAX_PROOF_INTERVAL)));
        }
    }

    /// Whether to look now.
    pub(super) fn poll(&mut self, now: Moment) -> bool {
        let is_due = self.due.is_some_and(|due| due.is_over(now));
        if is_due {
            self.due = None;
            self.in_vain = self.in_vain.saturating_add(1);
        }
        is_due
    }

    pub(super) fn next_deadline(&self) -> Option<Deadline> {
        self.due
    }
}
