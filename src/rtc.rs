//! MatrixRTC ([MSC4143]): who is in which call, or in whatever else takes place in a room's slots.
//!
//! In: the memberships in the room's ephemeral map, and the room's state. Out: sessions, each with its members,
//! and with the candidates whose membership does not count, and why. The pure part, [`Roster`], has no clock and
//! does no I/O.
//!
//! A *slot* is where a session can take place: a state event, which users with the right to do so open and
//! close. A *membership* is a sticky event, which says that a *member* is joined to a slot. One user may have
//! several members, from several devices. A *session* is all members that are joined to one slot at a time.
//!
//! # Dialects
//!
//! Two dialects are in use, and both are read at once ([`Dialect`]): what the proposal says, and what
//! matrix-js-sdk and Element Call send and accept. Two older forms are read as well ([`MembershipForm`]): sticky
//! events with `rtc_transports`, and the state events `org.matrix.msc3401.call.member`. What this crate writes
//! is right for both dialects.
//!
//! # What to trust
//!
//! - The user is the sender, as the servers say. A membership that names another user is not one.
//! - The device is proven if it encrypted the membership ([`KnownBy::Decryption`]). Otherwise it is what the
//!   membership claims, which may be a lie ([`KnownBy::Claim`]). A proven device has one member. A claimed device
//!   hides nobody, and so may have more than one.
//! - In an encrypted room a membership in plaintext makes no member. It can end a member of the same sender:
//!   matrix-js-sdk leaves like that.
//! - A redacted membership has left, also if the map falls back to an earlier event of the same key. A client
//!   that comes later and never saw the redacted event cannot know of it. The member's own client leaves when it
//!   sees that its join, or a refresh of it, was redacted.
//! - A membership ends when its sender leaves the room, or is kicked or banned. It does not come back with them:
//!   a user who returns to the room has to join the session again.
//!
//!   The room's state says that somebody was out, as far as the server gives it. One sign is a `join` whose
//!   predecessor was not a `join`: the predecessor is `unsigned.prev_content`, or the event that
//!   `unsigned.replaces_state` names. The other sign is a leave by somebody of the user's own server. Either has
//!   to be later than the membership. A change of name is neither. If the state cannot tell, the membership
//!   counts.
//!
//!   A device of this crate that returns to a room removes what it had left there, once somebody looks at the
//!   room's sessions on it.
//!
//! # Media keys
//!
//! In an encrypted room each member has a key of its own for its media. It gives the key to the devices of the
//! other members, and to nobody else. With the feature `media-keys` the module `keys` does that.
//!
//! # Examples
//!
//! ```no_run
//! # #[cfg(feature = "client")]
//! # async fn example(room: matrix_sdk::Room) {
//! use matrix_sdk_sticky::{StickyRoomExt as _, rtc::ROOM_CALL};
//!
//! let call = room.sticky().rtc().session(ROOM_CALL).snapshot().await;
//! for member in call.members() {
//!     println!("{} is in the call", member.user_id());
//! }
//! for candidate in call.candidates() {
//!     println!("{} is not: {}", candidate.user_id, candidate.reason);
//! }
//! # }
//! ```
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
mod feed;
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
#[cfg(feature = "client")]
pub use self::{
    discovery::{Discovered, DiscoveredFrom, TransportsError},
    join::{JoinError, JoinSession},
    open::{OpenSlot, SlotError},
    own_membership::OwnMembership,
    session::{
        Rtc, RtcChanges, RtcSubscription, RtcUpdate, Session, SessionChanges, SessionSubscription,
        SessionUpdate,
    },
};
pub use crate::heartbeat::InBackground;

#[cfg(test)]
mod tests;
