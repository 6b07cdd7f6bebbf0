//! Diffs: what to report of a membership that is shown in another way than before, and the sessions that
//! show it.

use std::sync::Arc;

use imbl::OrdMap;

use super::membership::Shown;
use crate::rtc::{
    change::{RtcChange, SessionChange},
    member::{Candidate, Key, NotJoined},
    snapshot::SessionView,
};

/// What to report of one membership, in this order.
#[derive(Debug, Default, PartialEq)]
pub(super) struct Diff {
    /// In the session where it was shown.
    goodbye: Option<SessionChange>,
    /// In the session where it is shown.
    hello: Option<SessionChange>,
}

impl Diff {
    /// Compares how a membership was shown with how it is. `reason` says why it does not count, if so.
    ///
    /// A member who leaves is not refused as well. A candidate who joins, or is refused for another reason in
    /// the same session, is not forgotten first.
    pub(super) fn between(before: &Shown, now: &Shown, reason: Option<NotJoined>) -> Self {
        if before == now {
            return Self::default();
        }
        let is_same_session = before.session() == now.session();
        let goodbye = match (before, now) {
            (Shown::Not, _) => None,
            (Shown::Member(..), Shown::Member(..)) if is_same_session => None,
            (Shown::Member(_, member), now) => {
                // If it is shown elsewhere, it has moved, whatever else is wrong with it.
                let reason = reason.filter(|_| is_same_session || *now == Shown::Not);
                let reason = reason.unwrap_or(NotJoined::Moved);
                Some(SessionChange::Left { member: member.clone(), reason })
            }
            (Shown::Candidate(..), _) if is_same_session => None,
            (Shown::Candidate(_, candidate), _) => {
                Some(SessionChange::Forgotten(candidate.clone()))
            }
        };
        let hello = match (before, now) {
            (_, Shown::Not) => None,
            (Shown::Member(_, previous), Shown::Member(_, member)) if is_same_session => {
                let (member, previous) = (member.clone(), previous.clone());
                Some(SessionChange::Updated { member, previous })
            }
            (_, Shown::Member(_, member)) => Some(SessionChange::Joined(member.clone())),
            (Shown::Member(..), Shown::Candidate(..)) if is_same_session => None,
            (_, Shown::Candidate(_, candidate)) => Some(SessionChange::Refused(candidate.clone())),
        };
        Self { goodbye, hello }
    }

    /// The changes, each with the session that it is in.
    pub(super) fn changes(self, before: &Shown, now: &Shown) -> impl Iterator<Item = RtcChange> {
        let in_session = |shown: &Shown, change: Option<SessionChange>| {
            let slot_id = shown.session().flatten().cloned();
            change.map(|change| RtcChange { slot_id, change })
        };
        let goodbye = in_session(before, self.goodbye);
        goodbye.into_iter().chain(in_session(now, self.hello))
    }
}

impl Shown {
    /// The session in which it is shown, if it is; `Some(None)` among the strays.
    fn session(&self) -> Option<Option<&Arc<str>>> {
        match self {
            Self::Not => None,
            Self::Member(session, _) => Some(Some(session)),
            Self::Candidate(session, _) => Some(session.as_ref()),
        }
    }

    fn is_member(&self) -> bool {
        matches!(self, Self::Member(..))
    }
}

/// What is shown of all sessions. A session is there as long as it shows something.
#[derive(Clone, Debug, Default)]
pub(super) struct Sessions {
    pub(super) views: OrdMap<Arc<str>, SessionView>,
    /// The candidates that name no slot.
    pub(super) strays: OrdMap<Arc<Key>, Candidate>,
}

impl Sessions {
    /// The name of a session, which is there from now on.
    pub(super) fn named(&mut self, session: &str) -> Arc<str> {
        if let Some((slot_id, _)) = self.views.get_key_value(session) {
            return slot_id.clone();
        }
        let slot_id: Arc<str> = session.into();
        self.views.insert(slot_id.clone(), SessionView::default());
        slot_id
    }

    /// Shows a membership in another way than before.
    pub(super) fn show(&mut self, key: &Arc<Key>, before: &Shown, now: &Shown) {
        // What stays where it is is overwritten.
        if before.session() != now.session() || before.is_member() != now.is_member() {
            self.remove(key, before);
        }
        match now {
            Shown::Not => {}
            Shown::Member(session, member) => {
                let session = self.named(session);
                if let Some(view) = self.views.get_mut(&session) {
                    view.members.insert(key.clone(), member.clone());
                }
            }
            Shown::Candidate(None, candidate) => {
                self.strays.insert(key.clone(), candidate.clone());
            }
            Shown::Candidate(Some(session), candidate) => {
                let session = self.named(session);
                if let Some(view) = self.views.get_mut(&session) {
                    view.candidates.insert(key.clone(), candidate.clone());
                }
            }
        }
    }

    fn remove(&mut self, key: &Arc<Key>, shown: &Shown) {
        let session = match shown {
            Shown::Not => return,
            Shown::Candidate(None, _) => return drop(self.strays.remove(key)),
            Shown::Member(session, _) | Shown::Candidate(Some(session), _) => session,
        };
        if let Some(view) = self.views.get_mut(session) {
            match shown.is_member() {
                true => drop(view.members.remove(key)),
                false => drop(view.candidates.remove(key)),
            }
        }
        self.drop_if_empty(session);
    }

    pub(super) fn drop_if_empty(&mut self, session: &Arc<str>) {
        if self.views.get(session).is_some_and(SessionView::is_empty) {
            self.views.remove(session);
        }
    }
}
