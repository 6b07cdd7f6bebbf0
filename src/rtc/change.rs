//! Changes: what the roster reports, in the order in which it can be applied.

use std::sync::Arc;

use super::{
    member::{Candidate, Member, NotJoined},
    slot::Slot,
};

/// One change of one session.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct RtcChange {
    /// The session, by the id of its slot. `None` for memberships that name no slot.
    pub slot_id: Option<Arc<str>>,
    /// What changed.
    pub change: SessionChange,
}

/// What changed in a session.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub enum SessionChange {
    /// The slot was opened, was closed, or is another application's. If a call has two slots
    /// ([`Slot::id`]), also that the other one was.
    Slot(Option<Slot>),
    /// A member has joined.
    Joined(Member),
    /// A member has another membership, or an earlier first one is known by now.
    Updated {
        /// The member from now on.
        member: Member,
        /// The member as it was.
        previous: Member,
    },
    /// A member is not in the session any more.
    Left {
        /// The member as it was.
        member: Member,
        /// Why it is not.
        reason: NotJoined,
    },
    /// A membership does not count, for a new reason or another one than before. Its sender was not in the
    /// session before either.
    Refused(Candidate),
    /// A candidate is not listed any more.
    Forgotten(Candidate),
}
