//! Dialects: the two ways in which clients speak MatrixRTC, and the forms in which memberships are written.
//!
//! Plain values, which the reading of contents, the roster and the media keys share.

/// The dialect of a membership of ours, and what it expects of the slot.
///
/// Both dialects write the same content, which both sides read right. They differ in three things. To MSC4143 a
/// session takes place only in an open slot, to Element Call also in a missing one. Only to MSC4143 the slot of
/// an encrypted room has to say how media are encrypted. And each has messages of its own for media keys.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Dialect {
    /// [MSC4143](https://github.com/matrix-org/matrix-spec-proposals/pull/4143), as of July 2026.
    Msc4143,
    /// What matrix-js-sdk 43 and Element Call send and accept.
    ElementCall,
}

/// The form in which a client wrote a membership.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum MembershipForm {
    /// Right for MSC4143, and not for Element Call.
    Msc4143,
    /// Right for Element Call, and not for MSC4143.
    ElementCall,
    /// Right for both. It counts if it does by the rules of either.
    Both,
    /// A sticky event of an earlier version of MSC4143, with `rtc_transports`.
    RtcTransports,
    /// A state event from before sticky events: `org.matrix.msc3401.call.member`.
    CallMember,
}

impl MembershipForm {
    /// Returns whether the client that wrote the membership reads that dialect.
    pub fn reads(self, dialect: Dialect) -> bool {
        match dialect {
            Dialect::Msc4143 => matches!(self, Self::Msc4143 | Self::Both),
            Dialect::ElementCall => !matches!(self, Self::Msc4143),
        }
    }
}
