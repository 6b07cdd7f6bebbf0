//! Snapshots: the sessions of a room at one moment, shared with the roster and never copied.

use std::sync::Arc;

use imbl::OrdMap;
use ruma::UserId;

use super::{
    dialect::{Dialect, MembershipForm},
    member::{Candidate, Key, Member},
    slot::{ClosedBy, Slot},
};
use crate::time::Moment;

/// The sessions of a room at one moment. Cheap to take and to clone.
#[derive(Clone, Debug)]
pub struct RtcSnapshot {
    pub(super) sessions: OrdMap<Arc<str>, SessionView>,
    pub(super) strays: OrdMap<Arc<Key>, Candidate>,
    pub(super) is_encrypted: bool,
    pub(super) is_state_known: bool,
    pub(super) taken_at: Moment,
}

/// Why others would not count a membership in a slot.
#[cfg(feature = "client")]
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Obstacle {
    Closed(ClosedBy),
    /// The slot is for this application.
    OtherApplication(String),
}

/// What is shown of one session.
#[derive(Clone, Debug, Default)]
pub(super) struct SessionView {
    /// The slot that is shown, and another one that the session has by its older name. They are shared, because
    /// a view is copied after each snapshot.
    pub(super) slots: Vec<Arc<Slot>>,
    /// Why the first slot is not open, as it was reported.
    pub(super) closed: Option<ClosedBy>,
    pub(super) members: OrdMap<Arc<Key>, Member>,
    pub(super) candidates: OrdMap<Arc<Key>, Candidate>,
}

impl SessionView {
    pub(super) fn is_empty(&self) -> bool {
        self.slots.is_empty() && self.members.is_empty() && self.candidates.is_empty()
    }
}

impl RtcSnapshot {
    /// Returns the sessions in the order of their slot ids: those with members or candidates, and those whose
    /// slot the room has.
    pub fn sessions(&self) -> impl Iterator<Item = SessionSnapshot> {
        self.sessions.iter().map(|(slot_id, view)| self.of(slot_id.clone(), view.clone()))
    }

    /// Returns one session. It is empty if nothing is known of it.
    pub fn session(&self, slot_id: &str) -> SessionSnapshot {
        let slot_id = super::slot::session_of(slot_id);
        match self.sessions.get_key_value(slot_id) {
            Some((slot_id, view)) => self.of(slot_id.clone(), view.clone()),
            None => self.of(slot_id.into(), SessionView::default()),
        }
    }

    fn of(&self, slot_id: Arc<str>, view: SessionView) -> SessionSnapshot {
        SessionSnapshot {
            slot_id,
            view,
            is_encrypted: self.is_encrypted,
            is_state_known: self.is_state_known,
            taken_at: self.taken_at,
        }
    }

    /// Returns the memberships that name no slot, and so belong to no session.
    pub fn strays(&self) -> impl Iterator<Item = &Candidate> {
        self.strays.values()
    }

    /// Returns whether the room is encrypted, so that memberships in plaintext do not count.
    pub fn is_encrypted(&self) -> bool {
        self.is_encrypted
    }

    /// Returns whether the room's state is known, so that an absent slot is missing. `false` until the server has
    /// answered. The query is retried, and an unchanged result emits nothing.
    pub fn is_state_known(&self) -> bool {
        self.is_state_known
    }

    /// Returns when the snapshot was taken, for [`Member::expires_in`].
    pub fn taken_at(&self) -> Moment {
        self.taken_at
    }
}

/// A session at one moment: its slot, and the members that are joined to it.
#[derive(Clone, Debug)]
pub struct SessionSnapshot {
    slot_id: Arc<str>,
    view: SessionView,
    is_encrypted: bool,
    is_state_known: bool,
    taken_at: Moment,
}

impl SessionSnapshot {
    /// Returns the id of the session's slot.
    pub fn slot_id(&self) -> &str {
        &self.slot_id
    }

    /// Returns the slot, as the room's state has it. `None` if the room has none. A call can have two slots, one
    /// of them under its older name ([`Slot::id`]): then it is the open one, or else the newer one.
    pub fn slot(&self) -> Option<&Slot> {
        self.view.slots.first().map(|slot| &**slot)
    }

    /// The slot with this id, if the session has two.
    pub(super) fn slot_called(&self, slot_id: &str) -> Option<&Slot> {
        self.view.slots.iter().map(|slot| &**slot).find(|slot| slot.id() == slot_id)
    }

    /// The id of the slot in which a membership of this dialect would be. Element Call treats a missing slot as
    /// open, and prefers the newer name. It uses the older name only if the newer slot is closed and the older
    /// one is open.
    pub(super) fn slot_for(&self, dialect: Dialect) -> &str {
        let is_open = |slot: Option<&Slot>| closed_to(dialect, slot, self.is_encrypted).is_none();
        let shown = self.slot().map_or(&*self.slot_id, Slot::id);
        match dialect {
            Dialect::Msc4143 => shown,
            Dialect::ElementCall if is_open(self.slot_called(&self.slot_id)) => &self.slot_id,
            Dialect::ElementCall => {
                let mut others = self.view.slots.iter().filter(|slot| is_open(Some(slot)));
                others.next().map_or(&self.slot_id, |slot| slot.id())
            }
        }
    }

    /// Returns why the slot is not open by the rules of MSC4143. Members who follow Element Call may be in the
    /// session all the same: to them a missing slot is open.
    pub fn closed_by(&self) -> Option<ClosedBy> {
        match self.slot() {
            None => Some(ClosedBy::Missing),
            Some(slot) => slot.closed_by(self.is_encrypted),
        }
    }

    /// Returns whether a membership in this dialect would count.
    ///
    /// # Errors
    ///
    /// Why the slot is closed to it: open the slot, or use the other dialect.
    pub fn is_open_to(&self, dialect: Dialect) -> Result<(), ClosedBy> {
        let slot = self.slot_called(self.slot_for(dialect));
        closed_to(dialect, slot, self.is_encrypted).map_or(Ok(()), Err)
    }

    /// Returns why others would not count a membership in this slot of the session, if they would not.
    #[cfg(feature = "client")]
    pub(super) fn obstacle(
        &self,
        slot_id: &str,
        dialect: Dialect,
        application: &super::slot::RtcApplication,
    ) -> Option<Obstacle> {
        let slot = self.slot_called(slot_id);
        if let Some(closed) = closed_to(dialect, slot, self.is_encrypted) {
            return Some(Obstacle::Closed(closed));
        }
        let of_slot = &slot?.application.as_ref()?.application_type;
        (*of_slot != application.application_type)
            .then(|| Obstacle::OtherApplication(of_slot.clone()))
    }

    /// Returns the members in the order of their user ids, and those of one user in the order of their member
    /// ids.
    pub fn members(&self) -> impl Iterator<Item = &Member> {
        self.view.members.values()
    }

    /// Returns the number of members.
    pub fn len(&self) -> usize {
        self.view.members.len()
    }

    /// Returns whether the session has no members.
    pub fn is_empty(&self) -> bool {
        self.view.members.is_empty()
    }

    /// Returns the candidates, whose membership does not count, in the same order. A former member is one for as
    /// long as its leave is sticky, or for an hour.
    pub fn candidates(&self) -> impl Iterator<Item = &Candidate> {
        self.view.candidates.values()
    }

    /// Returns the member of this user with this id.
    pub fn member(&self, user_id: &UserId, member_id: &str) -> Option<&Member> {
        let from = Key::first_of(user_id);
        let of_user = self.view.members.range::<_, Key>(&from..).map(|(_, member)| member);
        of_user.take_while(|it| it.user_id() == user_id).find(|it| it.member_id() == member_id)
    }

    /// Returns whether the room is encrypted, so that memberships in plaintext do not count.
    pub fn is_encrypted(&self) -> bool {
        self.is_encrypted
    }

    /// Returns the dialect that the room already speaks: the one that the members read. If there is no member,
    /// it is MSC4143's if the slot is open by its rules, and else Element Call's, to which a missing slot is
    /// open.
    pub fn dialect(&self) -> Dialect {
        let mut forms =
            self.members().map(Member::form).filter(|form| *form != MembershipForm::Both);
        match forms.next() {
            Some(form) if forms.all(|it| it == form) && form == MembershipForm::Msc4143 => {
                Dialect::Msc4143
            }
            Some(_) => Dialect::ElementCall,
            None if self.closed_by().is_none() => Dialect::Msc4143,
            None => Dialect::ElementCall,
        }
    }

    /// Returns whether the room's state is known, so that an absent slot is missing. `false` until the server has
    /// answered. The query is retried, and an unchanged result emits nothing.
    pub fn is_state_known(&self) -> bool {
        self.is_state_known
    }

    /// Returns when the snapshot was taken, for [`Member::expires_in`].
    pub fn taken_at(&self) -> Moment {
        self.taken_at
    }
}

/// Why a membership in this dialect would not count in a slot.
pub(super) fn closed_to(
    dialect: Dialect,
    slot: Option<&Slot>,
    is_encrypted: bool,
) -> Option<ClosedBy> {
    match (dialect, slot) {
        (Dialect::Msc4143, None) => Some(ClosedBy::Missing),
        (Dialect::Msc4143, Some(slot)) => slot.closed_by(is_encrypted),
        (Dialect::ElementCall, None) => None,
        (Dialect::ElementCall, Some(slot)) => slot.closed_to_element_call(),
    }
}
