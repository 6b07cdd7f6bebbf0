//! MatrixRTC ([MSC4143]): who is in which call, or whatever else takes place in a room's slots.
//!
//! In: the memberships in the room's ephemeral map, and the room's state. Out: sessions, each with its
//! members, and with everybody who does not count and why. The pure part, [`Roster`], has no clock and
//! does no I/O.
//!
//! A *slot* is where a session can take place: a state event, which who has the right opens and
//! closes. A *membership* is a sticky event, which says that a *member* is joined to a slot; one user
//! may be there more than once, from several devices. A *session* is all who are joined to one slot
//! at a time.
//!
//! # Dialects
//!
//! Two are in use, and both are read at once: what the proposal says, and what matrix-js-sdk and
//! Element Call send and accept ([`Dialect`]); and two older [`MembershipForm`]s, sticky events with
//! `rtc_transports` and the state events `org.matrix.msc3401.call.member`. What this crate writes is
//! right for both.
//!
//! # What to trust
//!
//! - The user is the sender, as the servers say. A membership that names another is none.
//! - The device is proven where the membership was encrypted by it ([`KnownBy::Decryption`]); else it is
//!   what the membership says, which may be a lie ([`KnownBy::Claim`]). A device that is proven is there
//!   once. One that is only claimed hides nobody, and so may be there more than once.
//! - In an encrypted room a membership in plaintext makes no member. It can end one of the same sender:
//!   matrix-js-sdk leaves like that.
//! - A redacted membership is one that has left: also where the map falls back to an earlier event of
//!   the same key. Who comes later and never saw the redacted event cannot know of it. The member's own
//!   client leaves when it sees that its join, or a refresh of it, was redacted.
//!
//! - A membership ends when its sender leaves the room, or is kicked or banned. It does not come back with
//!   them: whoever returns to the room has to join the session again. The room's state tells that somebody
//!   was out, as far as the server gives it: a `join` whose predecessor (`unsigned.prev_content`, or the
//!   event that `unsigned.replaces_state` names) was no `join`, or a leave by somebody of the user's own
//!   server, either of them later than the membership. A change of name is no such thing. Where the state
//!   cannot tell, the membership counts. A device of this crate that returns removes what it had left there,
//!   once somebody looks at the room's sessions there.
//!
//! # Media keys
//!
//! In encrypted rooms each member has a key of its own for its media, which it gives to the devices of
//! the others, and to nobody else. With the feature `media-keys` that is done here: the module `keys`.
//!
//! [MSC4143]: https://github.com/matrix-org/matrix-spec-proposals/pull/4143

#[cfg(any(test, feature = "client"))]
mod attendance;
mod change;
mod content;
mod dialect;
#[cfg(feature = "client")]
mod discovery;
#[cfg(feature = "client")]
mod join;
#[cfg(any(test, feature = "media-keys"))]
pub mod keys;
mod leave;
mod member;
#[cfg(feature = "client")]
mod open;
#[cfg(feature = "client")]
mod own;
#[cfg(feature = "client")]
mod own_membership;
#[cfg(feature = "client")]
mod room_state;
mod roster;
#[cfg(feature = "client")]
mod session;
mod slot;
mod snapshot;
mod stay;
mod transport;
#[cfg(feature = "client")]
mod watch;

#[cfg(feature = "client")]
pub(crate) use self::discovery::discover;
#[cfg(feature = "client")]
pub use self::{
    attendance::InBackground,
    discovery::{Discovered, DiscoveredFrom, TransportsError},
    join::{JoinError, JoinSession},
    open::{OpenSlot, SlotError},
    own_membership::OwnMembership,
    session::{
        Rtc, RtcChanges, RtcSubscription, RtcUpdate, Session, SessionChanges, SessionSubscription,
        SessionUpdate,
    },
};
pub use self::{
    change::{RtcChange, SessionChange},
    dialect::{Dialect, MembershipForm},
    leave::LeaveReason,
    member::{Candidate, KnownBy, Member, MemberDevice, NotJoined},
    roster::Roster,
    slot::{ClosedBy, ROOM_CALL, RtcApplication, Slot},
    snapshot::{RtcSnapshot, SessionSnapshot},
    transport::{LiveKit, RtcTransport, Transports},
};

#[cfg(test)]
mod tests;
