//! Snapshots: the sessions of a room at one moment, shared with the roster and never copied.

use std::sync::Arc;

use imbl::OrdMap;
use ruma::UserId;

use super::{
    dialect::{Dialect, MembershipForm},
    member::{Candidate, Key, Member},
    slot::{ClosedBy, RtcApplication, Slot},
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
    /// The one that is shown, and another that the session has by its older name. Shared, as a view is
    /// copied where a snapshot was taken before.
    pub(super) slots: Vec<Arc<Slot>>,
    /// Why the first is not open, as it was told.
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
    /// The sessions, by their slot ids in order: those with members, those that somebody would be in,
    /// and slots that are known, whether anybody is there or not.
    pub fn sessions(&self) -> impl Iterator<Item = SessionSnapshot> {
        self.sessions.iter().map(|(slot_id, view)| self.of(slot_id.clone(), view.clone()))
    }

    /// One session; empty where nothing is known of it.
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

    /// Memberships that name no slot, and so belong to no session.
    pub fn strays(&self) -> impl Iterator<Item = &Candidate> {
        self.strays.values()
    }

    /// Whether the room is encrypted, so that memberships in plaintext do not count.
    pub fn is_encrypted(&self) -> bool {
        self.is_encrypted
    }

    /// Whether the room's state is known: a slot that is not there is missing, then. It is not where the
    /// server could not be asked yet. It is asked again, and what that changes is told; that nothing has
    /// changed is not.
    pub fn is_state_known(&self) -> bool {
        self.is_state_known
    }

    /// When it was taken; what [`Member::expires_in`] asks for.
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
    /// The id of the slot.
    pub fn slot_id(&self) -> &str {
        &self.slot_id
    }

    /// The slot, as the room's state has it; `None` where it has none. A call can have two, one of them
    /// under its older name ([`Slot::id`]): then the one that is open, or else the newer.
    pub fn slot(&self) -> Option<&Slot> {
        self.view.slots.first().map(|slot| &**slot)
    }

    /// The slot with this id, where the session has two.
    pub(super) fn slot_called(&self, slot_id: &str) -> Option<&Slot> {
        self.view.slots.iter().map(|slot| &**slot).find(|slot| slot.id() == slot_id)
    }

    /// The id of the slot in which a membership of this dialect would be. To Element Call one that is
    /// missing is open, and it looks at the newer name alone: it takes the older one where the newer is
    /// closed, and that is open.
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

    /// Why the slot is not open, by the rules of MSC4143. Members who follow Element Call may be there
    /// all the same: to them a slot that is missing is open.
    pub fn closed_by(&self) -> Option<ClosedBy> {
        match self.slot() {
            None => Some(ClosedBy::Missing),
            Some(slot) => slot.closed_by(self.is_encrypted),
        }
    }

    /// Whether a membership in this dialect would count.
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
        application: &RtcApplication,
    ) -> Option<Obstacle> {
        let slot = self.slot_called(slot_id);
        if let Some(closed) = closed_to(dialect, slot, self.is_encrypted) {
            return Some(Obstacle::Closed(closed));
        }
        let of_slot = &slot?.application.as_ref()?.application_type;
        (*of_slot != application.application_type)
            .then(|| Obstacle::OtherApplication(of_slot.clone()))
    }

    /// Who is there, in the order of their user ids, and of one user's in that of the member ids.
    pub fn members(&self) -> impl Iterator<Item = &Member> {
        self.view.members.values()
    }

    /// How many are there.
    pub fn len(&self) -> usize {
        self.view.members.len()
    }

    /// Whether nobody is there.
    pub fn is_empty(&self) -> bool {
        self.view.members.is_empty()
    }

    /// Who is not there, and why, in the same order. Who left is among them for as long as the leave is
    /// sticky, or for an hour.
    pub fn candidates(&self) -> impl Iterator<Item = &Candidate> {
        self.view.candidates.values()
    }

    /// The member of this user with this id.
    pub fn member(&self, user_id: &UserId, member_id: &str) -> Option<&Member> {
        let from = Key::first_of(user_id);
        let of_user = self.view.members.range::<_, Key>(&from..).map(|(_, member)| member);
        of_user.take_while(|it| it.user_id() == user_id).find(|it| it.member_id() == member_id)
    }

    /// Whether the room is encrypted, so that memberships in plaintext do not count.
    pub fn is_encrypted(&self) -> bool {
        self.is_encrypted
    }

    /// The dialect that the room already speaks: what who is there reads; and if nobody is, MSC4143
    /// where the slot is open by its rules, and Element Call's otherwise, as there one that is missing
    /// is open.
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

    /// Whether the room's state is known: a slot that is not there is missing, then. It is not where the
    /// server could not be asked yet. It is asked again, and what that changes is told; that nothing has
    /// changed is not.
    pub fn is_state_known(&self) -> bool {
        self.is_state_known
    }

    /// When it was taken; what [`Member::expires_in`] asks for.
    pub fn taken_at(&self) -> Moment {
        self.taken_at
    }
}

/// Why a membership in this dialect would not count there.
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
