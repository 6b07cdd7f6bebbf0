//! Dialects: the two ways in which clients speak MatrixRTC, and the forms in which memberships are written.
//!
//! Plain values, which the reading of contents, the roster and the media keys share.

/// The dialect that a membership of ours is written in, and what is expected of the slot.
///
/// The contents are the same: one that both sides read right. They differ in this: to MSC4143 a
/// session takes place only in a slot that is open, to Element Call also where there is no slot. Only
/// to MSC4143 a slot of an encrypted room has to say how media are encrypted. And the media keys go
/// out in messages of their own.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Dialect {
    /// [MSC4143](https://github.com/matrix-org/matrix-spec-proposals/pull/4143), as of July 2026.
    Msc4143,
    /// What matrix-js-sdk 43 and Element Call send and accept.
    ElementCall,
}

/// The form in which a membership was written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum MembershipForm {
    /// As MSC4143 has it, and not as Element Call does.
    Msc4143,
    /// As Element Call has it, and not as MSC4143 does.
    ElementCall,
    /// Right for both. Such a one is there if it is by the rules of either.
    Both,
    /// A sticky event of an earlier version of MSC4143, with `rtc_transports`.
    RtcTransports,
    /// A state event, as before sticky events: `org.matrix.msc3401.call.member`.
    CallMember,
}

impl MembershipForm {
    /// Whether the client that wrote it reads that dialect.
    pub fn reads(self, dialect: Dialect) -> bool {
        match dialect {
            Dialect::Msc4143 => matches!(self, Self::Msc4143 | Self::Both),
            Dialect::ElementCall => !matches!(self, Self::Msc4143),
        }
    }
}
