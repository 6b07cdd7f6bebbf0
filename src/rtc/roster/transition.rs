//! Transitions: what is shown in another way than before, and the net effect of several of them.
//!
//! In: transitions, in their order. Out: changes, from what a subscriber saw last to what is shown now. Never: a
//! change that nobody can see.

use std::{collections::BTreeMap, sync::Arc};

use super::{diff::Diff, membership::Shown};
use crate::rtc::{
    change::{RtcChange, SessionChange},
    member::{Candidate, Key, NotJoined},
    slot::{ClosedBy, Slot},
};

/// Something that is shown in another way than before.
#[derive(Clone, Debug)]
pub(in crate::rtc) enum Transition {
    Slot { session: Arc<str>, before: ShownSlots, now: ShownSlots },
    Membership(Arc<Key>, Box<Step>),
}

/// The slots of a session as they are shown, the one that counts first, and why that is closed.
#[derive(Clone, Debug, Default, PartialEq)]
pub(in crate::rtc) struct ShownSlots {
    pub(super) slots: Vec<Arc<Slot>>,
    pub(super) closed: Option<ClosedBy>,
}

/// What one subscriber has not been told yet. It takes no more memory than what there is to show, and what there
/// was when the subscriber was told last.
#[derive(Debug, Default)]
pub(in crate::rtc) struct Pending {
    slots: BTreeMap<Arc<str>, (ShownSlots, ShownSlots)>,
    memberships: BTreeMap<Arc<Key>, Step>,
}

/// How a membership was shown, and how it is shown.
#[derive(Clone, Debug)]
pub(in crate::rtc) struct Step {
    pub(super) before: Shown,
    pub(super) now: Shown,
    /// Why the membership does not count, if so.
    pub(super) reason: Option<NotJoined>,
    /// The candidate that is not listed any more, or not at all, because a quota was full.
    pub(super) forgotten: Option<Candidate>,
}

impl Pending {
    /// Adds a transition.
    pub(in crate::rtc) fn add(&mut self, transition: Transition) {
        match transition {
            Transition::Slot { session, before, now } => {
                self.slots.entry(session).or_insert_with(|| (before, ShownSlots::default())).1 =
                    now;
            }
            Transition::Membership(key, step) => {
                let Step { before, now, reason, forgotten } = *step;
                // Somebody who has left was listed until now.
                let listed = match &before {
                    Shown::Candidate(_, candidate) => Some(candidate.clone()),
                    Shown::Not | Shown::Member(..) => None,
                };
                let step = self.memberships.entry(key).or_insert_with(|| Step {
                    before,
                    now: Shown::Not,
                    reason: None,
                    forgotten: None,
                });
                (step.now, step.reason, step.forgotten) = (now, reason, forgotten.or(listed));
            }
        }
    }

    /// Takes out the changes: slots first, then by user.
    pub(in crate::rtc) fn take_changes(&mut self) -> Vec<RtcChange> {
        let mut changes = Vec::new();
        for (session, (before, now)) in std::mem::take(&mut self.slots) {
            if before != now {
                let slot = now.slots.into_iter().next().map(Arc::unwrap_or_clone);
                let change = SessionChange::Slot(slot);
                changes.push(RtcChange { slot_id: Some(session), change });
            }
        }
        for (_, Step { before, now, reason, forgotten }) in std::mem::take(&mut self.memberships) {
            // Somebody who was listed meanwhile left for the reason that was listed.
            let listed = forgotten.filter(|_| now == Shown::Not);
            let reason = listed.as_ref().map(|it| it.reason.clone()).or(reason);
            changes.extend(Diff::between(&before, &now, reason).changes(&before, &now));
            // A member who leaves counts as listed, until this says that it is not.
            if let (Shown::Member(session, _), Some(candidate)) = (before, listed) {
                let change = SessionChange::Forgotten(candidate);
                changes.push(RtcChange { slot_id: Some(session), change });
            }
        }
        changes
    }
}
