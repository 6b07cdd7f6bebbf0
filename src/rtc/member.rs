//! Members: who is in a session, who is not though they would like to be, and why.

use std::{fmt, sync::Arc, time::Duration};

use ruma::{OwnedDeviceId, OwnedEventId, OwnedUserId, UserId};

use super::{
    content::Join,
    dialect::MembershipForm,
    leave::LeaveReason,
    slot::{ClosedBy, RtcApplication},
    transport::Transports,
};
use crate::{
    event::{StickyEvent, Verification},
    time::{Deadline, Moment},
};

/// A member's device.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct MemberDevice {
    /// Its id.
    pub device_id: OwnedDeviceId,
    /// How that is known.
    pub known_by: KnownBy,
}

/// How a member's device is known.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum KnownBy {
    /// The membership was decrypted, and this device of its sender encrypted it.
    Decryption(Verification),
    /// The membership says so. It may lie.
    Claim,
}

impl MemberDevice {
    /// Whether the membership was encrypted by this device.
    pub fn is_proven(&self) -> bool {
        matches!(self.known_by, KnownBy::Decryption(_))
    }
}

/// Whose membership it is: at most one is there for each.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct Key {
    pub(super) sender: OwnedUserId,
    pub(super) place: MembershipPlace,
}

impl Key {
    /// The first that a user's can be.
    pub(super) fn first_of(user_id: &UserId) -> Self {
        let place = MembershipPlace::Keyed { sticky_key: String::new(), stable: false };
        Self { sender: user_id.to_owned(), place }
    }
}

/// Where a membership stands.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) enum MembershipPlace {
    /// In the ephemeral map, under a key, in events of the stable or the unstable type.
    Keyed { sticky_key: String, stable: bool },
    /// In the ephemeral map, without a key: under its event id.
    Unkeyed(OwnedEventId),
    /// In the room's state.
    State(String),
}

/// One who is in a session. Cheap to clone.
#[derive(Clone)]
pub struct Member {
    pub(super) inner: Arc<Inner>,
}

pub(super) struct Inner {
    pub(super) key: Arc<Key>,
    pub(super) slot_id: String,
    pub(super) member_id: String,
    pub(super) device: Option<MemberDevice>,
    pub(super) join: Arc<Join>,
    pub(super) since_ms: u64,
    pub(super) event_id: OwnedEventId,
    /// Not of a membership in the state.
    pub(super) event: Option<Arc<StickyEvent>>,
    pub(super) ends: Option<Deadline>,
}

impl Member {
    /// The user: who sent the membership.
    pub fn user_id(&self) -> &UserId {
        &self.inner.key.sender
    }

    /// The device, and how it is known; `None` where the membership names none.
    pub fn device(&self) -> Option<&MemberDevice> {
        self.inner.device.as_ref()
    }

    /// The id of the member, of its user's own: two users may have the same one.
    pub fn member_id(&self) -> &str {
        &self.inner.member_id
    }

    /// The slot, as the membership names it.
    pub fn slot_id(&self) -> &str {
        &self.inner.slot_id
    }

    /// In which form the membership was written.
    pub fn form(&self) -> MembershipForm {
        self.inner.join.form
    }

    /// The application, with what the member says of it: up to 4 KB, and read anew by each call.
    pub fn application(&self) -> RtcApplication {
        self.inner.join.application()
    }

    /// What the member is there for; see [`RtcApplication::intent`].
    pub fn intent(&self) -> Option<&str> {
        self.inner.join.intent.as_deref()
    }

    /// How the member's media can be had: up to 4 KB, and read anew by each call.
    pub fn transports(&self) -> Transports {
        self.inner.join.transports()
    }

    /// Since when it is there, in milliseconds since the Unix epoch: when the first of its
    /// memberships that is known was sent, as the server says, or the membership itself.
    pub fn since_ms(&self) -> u64 {
        self.inner.since_ms
    }

    /// The event that says so now.
    pub fn event_id(&self) -> &OwnedEventId {
        &self.inner.event_id
    }

    /// The sticky event that says so now; `None` for a membership in the state.
    pub fn event(&self) -> Option<&Arc<StickyEvent>> {
        self.inner.event.as_ref()
    }

    /// For how long it is there if nothing follows, zero once that is over.
    pub fn expires_in(&self, now: Moment) -> Duration {
        match (&self.inner.event, self.inner.ends) {
            (Some(event), _) => event.expires_in(now),
            (None, Some(ends)) => ends.left(now),
            (None, None) => Duration::ZERO,
        }
    }
}

/// Equal are members that look the same to whoever shows them.
impl PartialEq for Member {
    fn eq(&self, other: &Self) -> bool {
        let (a, b) = (&self.inner, &other.inner);
        Arc::ptr_eq(a, b)
            || (a.key == b.key
                && a.event_id == b.event_id
                && a.since_ms == b.since_ms
                && a.device == b.device)
    }
}

impl Eq for Member {}

impl fmt::Debug for Member {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Member")
            .field("user_id", &self.user_id())
            .field("member_id", &self.member_id())
            .field("slot_id", &self.slot_id())
            .field("device", &self.device())
            .field("form", &self.form())
            .field("event_id", &self.event_id())
            .finish_non_exhaustive()
    }
}

/// One who would be in a session, or was, and is not.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Candidate {
    /// Whose place it is that is told of: who is there or not, one at a time.
    pub(super) key: Arc<Key>,
    /// The user: who sent the membership.
    pub user_id: OwnedUserId,
    /// The id of the member, where the membership says it, or else its sticky key.
    pub member_id: Option<String>,
    /// The slot, where the membership names one.
    pub slot_id: Option<String>,
    /// The device, and how it is known; `None` where the membership names none.
    pub device: Option<MemberDevice>,
    /// The event that says so.
    pub event_id: OwnedEventId,
    /// Why it does not count.
    pub reason: NotJoined,
}

/// Why somebody is not in a session: the first of these that holds, in this order but for
/// [`Expired`](Self::Expired), [`Redacted`](Self::Redacted) and what follows them, of which there is
/// no membership any more.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum NotJoined {
    /// This field of the membership is missing, or not what it has to be: another's user id or
    /// device, an id that is not the sticky key, a wrong type, more than 4 KB of text or, of an id, more
    /// than 255 bytes.
    Malformed(&'static str),
    /// The membership's application is not the slot's.
    OtherApplication,
    /// Left.
    Left(LeaveReason),
    /// The membership is not encrypted, in an encrypted room: such a one can end a member, and make
    /// none.
    NotEncrypted,
    /// The sender is not in the room, or was out of it after they had sent the membership.
    NotInRoom,
    /// The slot is not open.
    Slot(ClosedBy),
    /// The same device, which is proven, has joined the session anew, as the member of this id.
    Superseded {
        /// The later member's id.
        by: String,
    },
    /// The time of the membership was over, and no other one followed.
    Expired,
    /// The membership was redacted, which is a way to leave.
    Redacted,
    /// The sender is ignored.
    Ignored,
    /// We are not in the room any more.
    RoomLeft,
    /// The membership is of another slot now.
    Moved,
}

impl NotJoined {
    /// Whether somebody who left for this reason is told of as a candidate afterwards.
    pub(super) fn is_told_for_a_while(&self) -> bool {
        !matches!(self, Self::Ignored | Self::RoomLeft | Self::Moved)
    }

    /// The reason in a few words, as the examples print it.
    pub fn as_str(&self) -> &'static str {
        match self {
            Self::Malformed(_) => "malformed",
            Self::OtherApplication => "other_application",
            Self::Left(_) => "left",
            Self::NotEncrypted => "not_encrypted",
            Self::NotInRoom => "not_in_room",
            Self::Slot(ClosedBy::Missing) => "slot_missing",
            Self::Slot(_) => "slot_closed",
            Self::Superseded { .. } => "superseded",
            Self::Expired => "expired",
            Self::Redacted => "redacted",
            Self::Ignored => "ignored",
            Self::RoomLeft => "room_left",
            Self::Moved => "moved",
        }
    }
}

impl fmt::Display for NotJoined {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Malformed(field) => write!(f, "malformed: `{field}`"),
            Self::Left(LeaveReason { code: Some(code), reason: Some(reason) }) => {
                write!(f, "left ({code}: {reason})")
            }
            Self::Left(LeaveReason { code: Some(code), .. }) => write!(f, "left ({code})"),
            Self::Slot(ClosedBy::Malformed(field)) => write!(f, "slot malformed: `{field}`"),
            Self::Superseded { by } => write!(f, "superseded by {by}"),
            _ => f.write_str(&self.as_str().replace('_', " ")),
        }
    }
}
