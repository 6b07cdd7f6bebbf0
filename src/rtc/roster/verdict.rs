//! Verdicts: whether a membership counts, by the room as it is. Pure, and blind to every other membership.

use super::membership::MembershipRecord;
use crate::rtc::{
    content::Says,
    dialect::{Dialect, MembershipForm},
    member::NotJoined,
    slot::Slot,
    snapshot::closed_to,
    stay::Stay,
};

/// What the room says about one membership.
pub(super) struct Rules<'a> {
    pub(super) is_encrypted: bool,
    /// The sender's stay in the room. Nobody knows yet if it is `None`.
    pub(super) stay: Option<&'a Stay>,
    /// The slot that the membership names, if the room has it.
    pub(super) slot: Option<&'a Slot>,
}

impl Rules<'_> {
    /// Whether a membership counts, the other memberships of its device apart. The reasons are checked in
    /// the order of [`NotJoined`].
    pub(super) fn verdict(&self, membership: &MembershipRecord) -> Result<(), NotJoined> {
        if let Some(ended) = &membership.ended {
            return Err(ended.clone());
        }
        let join = match &membership.reading.says {
            Says::Join(join) => join,
            Says::Leave(leave) => return Err(NotJoined::Left(leave.clone())),
            Says::OtherApplication => return Err(NotJoined::OtherApplication),
            Says::Malformed(field) => return Err(NotJoined::Malformed(field)),
        };
        if membership.outlived.is_some() {
            return Err(NotJoined::Redacted);
        }
        if self.is_encrypted && !membership.is_encrypted {
            return Err(NotJoined::NotEncrypted);
        }
        if self.stay.is_some_and(|stay| !stay.counts(membership.origin_server_ts_ms)) {
            return Err(NotJoined::NotInRoom);
        }
        let by = |dialect| self.slot_verdict(dialect, &join.application_type);
        match join.form {
            MembershipForm::Msc4143 => by(Dialect::Msc4143),
            MembershipForm::ElementCall
            | MembershipForm::RtcTransports
            | MembershipForm::CallMember => by(Dialect::ElementCall),
            // It counts by the rules of either. If it does not, the proposal's reason is told.
            MembershipForm::Both => {
                by(Dialect::Msc4143).or_else(|reason| by(Dialect::ElementCall).map_err(|_| reason))
            }
        }
    }

    fn slot_verdict(&self, dialect: Dialect, application_type: &str) -> Result<(), NotJoined> {
        if let Some(closed) = closed_to(dialect, self.slot, self.is_encrypted) {
            return Err(NotJoined::Slot(closed));
        }
        let of_slot = self.slot.and_then(|slot| slot.application.as_ref());
        match of_slot {
            Some(of_slot) if of_slot.application_type != application_type => {
                Err(NotJoined::OtherApplication)
            }
            _ => Ok(()),
        }
    }
}
