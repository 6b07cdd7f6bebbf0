//! Members: who is in a session, who is a candidate, and why that one does not count.
//!
//! Plain values, which the roster makes and shares.

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
    /// The device's id.
    pub device_id: OwnedDeviceId,
    /// How it is known.
    pub known_by: KnownBy,
}

/// How a member's device is known.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum KnownBy {
    /// The device encrypted the membership.
    Decryption(Verification),
    /// The membership names the device, which may be a lie.
    Claim,
}

impl MemberDevice {
    /// Returns whether the device encrypted the membership.
    pub fn is_proven(&self) -> bool {
        matches!(self.known_by, KnownBy::Decryption(_))
    }
}

/// Whose membership it is. A roster has at most one for each key.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct Key {
    pub(super) sender: OwnedUserId,
    pub(super) place: MembershipPlace,
}

impl Key {
    /// The lowest key that a user can have.
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

/// A member of a session. Cheap to clone.
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
    /// Returns the user, who sent the membership.
    pub fn user_id(&self) -> &UserId {
        &self.inner.key.sender
    }

    /// Returns the device, and how it is known. `None` if the membership names none.
    pub fn device(&self) -> Option<&MemberDevice> {
        self.inner.device.as_ref()
    }

    /// Returns the id of the member. Two users may have members of the same id.
    pub fn member_id(&self) -> &str {
        &self.inner.member_id
    }

    /// Returns the id of the slot that the membership names.
    pub fn slot_id(&self) -> &str {
        &self.inner.slot_id
    }

    /// Returns the form in which the membership was written.
    pub fn form(&self) -> MembershipForm {
        self.inner.join.form
    }

    /// Returns the application, with what the member says of it. It has up to 4 KB, and each call reads it anew.
    pub fn application(&self) -> RtcApplication {
        self.inner.join.application()
    }

    /// Returns what the member is there for; see [`RtcApplication::intent`].
    pub fn intent(&self) -> Option<&str> {
        self.inner.join.intent.as_deref()
    }

    /// Returns how the member's media can be had. It has up to 4 KB, and each call reads it anew.
    pub fn transports(&self) -> Transports {
        self.inner.join.transports()
    }

    /// Returns since when the member is in the session, in milliseconds since the Unix epoch. It is when its
    /// first known membership was sent, as the server says, or what that membership says itself.
    pub fn since_ms(&self) -> u64 {
        self.inner.since_ms
    }

    /// Returns the id of the event that is the membership now.
    pub fn event_id(&self) -> &OwnedEventId {
        &self.inner.event_id
    }

    /// Returns the sticky event that is the membership now. `None` for a membership in the state.
    pub fn event(&self) -> Option<&Arc<StickyEvent>> {
        self.inner.event.as_ref()
    }

    /// Returns for how long the member stays if no event follows. Zero once that is over.
    pub fn expires_in(&self, now: Moment) -> Duration {
        match (&self.inner.event, self.inner.ends) {
            (Some(event), _) => event.expires_in(now),
            (None, Some(ends)) => ends.left(now),
            (None, None) => Duration::ZERO,
        }
    }
}

/// Members are equal if a list shows them alike.
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

/// A membership that does not count, or does not any more.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Candidate {
    /// The key of the membership: it is a member or a candidate, and never both.
    pub(super) key: Arc<Key>,
    /// The user, who sent the membership.
    pub user_id: OwnedUserId,
    /// The id of the member, if the membership has one, or else its sticky key.
    pub member_id: Option<String>,
    /// The id of the slot, if the membership names one.
    pub slot_id: Option<String>,
    /// The device, and how it is known. `None` if the membership names none.
    pub device: Option<MemberDevice>,
    /// The id of the event that is the membership.
    pub event_id: OwnedEventId,
    /// Why the membership does not count.
    pub reason: NotJoined,
}

/// Why a membership does not count. If several reasons hold, it is the first of them, in this order.
/// [`Expired`](Self::Expired), [`Redacted`](Self::Redacted) and the reasons after them come first of all: their
/// membership is not there any more.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum NotJoined {
    /// This field of the membership is missing or malformed: the user id or device of somebody else, an id that
    /// is not the sticky key, a wrong type, more than 4 KB of text, or an id of more than 255 bytes.
    Malformed(&'static str),
    /// The membership's application is not the slot's.
    OtherApplication,
    /// The member left, for this reason.
    Left(LeaveReason),
    /// The room is encrypted, and the membership is not. It can end a member of the same sender, and never makes
    /// one.
    NotEncrypted,
    /// The sender is not in the room, or was out of it after sending the membership.
    NotInRoom,
    /// The slot is not open.
    Slot(ClosedBy),
    /// The same proven device has joined the session again, as another member.
    Superseded {
        /// The later member's id.
        by: String,
    },
    /// The membership's time was over, and no other event followed.
    Expired,
    /// The membership was redacted, which MatrixRTC reads as leaving.
    Redacted,
    /// The sender is ignored.
    Ignored,
    /// We are not in the room any more.
    RoomLeft,
    /// The membership names another slot now.
    Moved,
}

impl NotJoined {
    /// Whether a member who left for this reason stays listed as a candidate for a while.
    pub(super) fn is_told_for_a_while(&self) -> bool {
        !matches!(self, Self::Ignored | Self::RoomLeft | Self::Moved)
    }

    /// Returns a stable, machine-readable name of the reason, such as `not_in_room`.
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
