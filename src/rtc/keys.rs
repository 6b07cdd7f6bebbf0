//! Media keys: each member of a session has a key of its own, and gives it to the devices of the others
//! ([MSC4143], `m.per_member`).
//!
//! In (`handle_..`): who is in the session and by which devices, what became of each send, key messages of
//! others, each with the moment; random bytes. Out (`poll_..`): which key goes to exactly which devices, and what
//! the application's frame cryptor does next. Never: a clock, I/O.
//!
//! The rules for our own key:
//! - The first key is used at once: there is nothing else to use.
//! - When a member leaves who may have the newest key, everybody else is sent a new key. It is used
//!   [`KeyConfig::use_after`] later, so that it is there before the media are. If more members leave meanwhile,
//!   one further rotation follows.
//! - A member who joins within [`KeyConfig::grace`] after the newest key was made is sent that key. After a later
//!   join everybody is sent a new key, because the newcomer may not know what was said before.
//! - If no member has the key in use, there is nobody to wait for, and the next key is used at once. So the first
//!   to join somebody who was alone hears them from the start.
//! - Nothing is sent before our own membership is seen: nobody could tell whose key it is.
//! - A send that failed is tried again for those devices alone. A member who has left gets nothing.
//! - Only a device that is proven to be a member's ([`MemberDevice::is_proven`](super::MemberDevice::is_proven))
//!   is sent anything.
//!
//! The rules for the keys of others: the message was Olm-encrypted, and the device that decryption shows is the
//! one that encrypted the membership that the message names. Messages that precede their membership wait for it.
//! A member who leaves and returns keeps their earlier keys.
//!
//! # Examples
//!
//! A stream feeds the frame cryptor, so that nothing calls back into the application:
//!
//! ```no_run
//! # #[cfg(feature = "media-keys")]
//! # async fn example(membership: matrix_sdk_sticky::rtc::OwnMembership) -> Result<(), Box<dyn std::error::Error>> {
//! use futures_util::StreamExt as _;
//! use matrix_sdk_sticky::rtc::keys::{KeyChange, KeyConfig, MediaKey};
//!
//! # struct Cryptor;
//! # impl Cryptor {
//! #     fn clear(&mut self) {}
//! #     fn encrypt_with(&mut self, _: u8, _: &MediaKey) {}
//! #     fn decrypt_with(&mut self, _: String, _: u8, _: &MediaKey) {}
//! #     fn forget(&mut self, _: String) {}
//! # }
//! # let mut cryptor = Cryptor;
//! let keys = membership.media_keys(KeyConfig::default()).await?;
//! let mut changes = keys.changes();
//! while let Some(change) = changes.next().await {
//!     match change {
//!         KeyChange::Reset => cryptor.clear(),
//!         KeyChange::Own { index, key, .. } => cryptor.encrypt_with(index, &key),
//!         KeyChange::Peer { participant, index, key } => {
//!             cryptor.decrypt_with(participant.livekit_identity(), index, &key);
//!         }
//!         KeyChange::Gone { participant } => cryptor.forget(participant.livekit_identity()),
//!         _ => {}
//!     }
//! }
//! # Ok(()) }
//! ```
//!
//! Not promised: keys are overwritten when they are dropped here, but not the copies of which a message is made,
//! nor those of the application.
//!
//! [MSC4143]: https://github.com/matrix-org/matrix-spec-proposals/pull/4143

#[cfg(feature = "media-keys")]
mod handle;
mod inbound;
#[cfg(feature = "media-keys")]
mod inbox;
mod message;
mod outbound;
#[cfg(feature = "media-keys")]
mod perform;
#[cfg(feature = "media-keys")]
mod run;
#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
mod tests;

use std::{
    collections::{BTreeMap, VecDeque},
    fmt,
    sync::Arc,
    time::Duration,
};

use ruma::{
    OwnedDeviceId, OwnedRoomId, OwnedUserId, RoomId, UserId,
    serde::{Base64, base64::Standard},
};
use sha2::{Digest as _, Sha256};
use zeroize::Zeroizing;

#[cfg(feature = "media-keys")]
pub use self::handle::{KeyChanges, MediaKeys, MediaKeysError};
#[cfg(feature = "media-keys")]
pub(super) use self::inbox::KeyInbox;
use self::{inbound::Inbound, outbound::Outbound};
pub use self::{
    inbound::{DiscardReason, Discarded, Discards, Sender},
    message::KeyMessage,
    outbound::{KeySendFailure, SendId, Sending},
};
use super::{
    dialect::{Dialect, MembershipForm},
    member::Member,
    snapshot::SessionSnapshot,
};
use crate::{
    event::Verification,
    time::{Deadline, Moment},
};

/// A key for the encryption of media. Cheap to clone, and overwritten when the last clone is dropped.
#[derive(Clone)]
pub struct MediaKey(Arc<Zeroizing<Vec<u8>>>);

impl MediaKey {
    /// The length of our own keys, in bytes.
    pub const LENGTH: usize = 32;

    fn new(bytes: Zeroizing<Vec<u8>>) -> Self {
        Self(Arc::new(bytes))
    }

    /// Returns the key: 32 bytes, or the 16 to 64 bytes that an Element Call client sent. Keep it out of logs.
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }

    fn is_same(&self, other: &Self) -> bool {
        self.0.as_slice() == other.0.as_slice()
    }
}

impl fmt::Debug for MediaKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("MediaKey(..)")
    }
}

/// A member and its device, for whose media a key is.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[non_exhaustive]
pub struct Participant {
    /// The user.
    pub user_id: OwnedUserId,
    /// The id of the member.
    pub member_id: String,
    /// The device, which is proven.
    pub device_id: OwnedDeviceId,
}

impl Participant {
    /// Creates a participant.
    pub fn new(
        user_id: impl Into<OwnedUserId>,
        member_id: impl Into<String>,
        device_id: impl Into<OwnedDeviceId>,
    ) -> Self {
        Self { user_id: user_id.into(), member_id: member_id.into(), device_id: device_id.into() }
    }

    /// Returns the name of the participant on a LiveKit SFU ([MSC4195]). It is a hash, so that the SFU does not
    /// learn who the participant is.
    ///
    /// [MSC4195]: https://github.com/matrix-org/matrix-spec-proposals/pull/4195
    pub fn livekit_identity(&self) -> String {
        let Self { user_id, member_id, device_id } = self;
        let parts = [user_id.as_str(), device_id.as_str(), member_id];
        let text = serde_json::Value::from(parts.as_slice()).to_string();
        Base64::<Standard, _>::new(Sha256::digest(text)).encode()
    }
}

/// Another member, who may have our key, and whose keys we take.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Peer {
    /// The member and its device.
    pub participant: Participant,
    /// Since when the member is in the session, in milliseconds since the Unix epoch ([`Member::since_ms`]). If
    /// that becomes later, the member has been away, and may have lost its keys.
    pub since_ms: u64,
    /// The dialect of the key messages that the member reads.
    pub reads: Dialect,
}

impl Peer {
    /// Creates a peer. The caller vouches that the device is the member's.
    pub fn new(participant: Participant, since_ms: u64, reads: Dialect) -> Self {
        Self { participant, since_ms, reads }
    }

    /// Returns a member as a peer, in a session that speaks this dialect. `None` if the device is not proven, and
    /// for memberships in the state, which are in plaintext.
    ///
    /// A member whose membership is right for both dialects is sent what the session speaks. It may have a client
    /// of ours, which reads both. In a session of Element Call it may have a newer version of that client, which
    /// reads its own dialect.
    pub fn of(member: &Member, session: Dialect) -> Option<Self> {
        let device = member.device().filter(|device| device.is_proven())?;
        let reads = match member.form() {
            MembershipForm::CallMember => return None,
            MembershipForm::Both => session,
            MembershipForm::Msc4143 => Dialect::Msc4143,
            MembershipForm::ElementCall | MembershipForm::RtcTransports => Dialect::ElementCall,
        };
        let participant =
            Participant::new(member.user_id(), member.member_id(), device.device_id.clone());
        Some(Self { participant, since_ms: member.since_ms(), reads })
    }
}

/// Which devices may get keys and give them. In any case the device has to be the one that encrypted the
/// membership.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum DevicePolicy {
    /// Any device.
    Any,
    /// A device that its owner has cross-signed. If we had verified the owner, they must not have another identity
    /// since. This is the default. MSC4143 asks for it on receipt, with [MSC4153]: a server may have made up a
    /// device that is not cross-signed. It holds for sending too, because a key that is given to such a device is
    /// lost just as well.
    ///
    /// [MSC4153]: https://github.com/matrix-org/matrix-spec-proposals/pull/4153
    #[default]
    CrossSigned,
    /// A device whose owner we have verified.
    Verified,
}

impl DevicePolicy {
    /// Returns whether a device may get keys and give them. No policy allows an unknown device.
    pub fn allows(self, verification: Verification) -> bool {
        match self {
            Self::Any => verification != Verification::Unproven,
            Self::CrossSigned => {
                matches!(verification, Verification::Verified | Verification::UnverifiedIdentity)
            }
            Self::Verified => verification == Verification::Verified,
        }
    }
}

/// How keys are made and given out. A value that is out of range becomes the nearest one in range.
///
/// # Examples
///
/// ```
/// # #[cfg(feature = "media-keys")] {
/// use std::time::Duration;
/// use matrix_sdk_sticky::rtc::keys::{DevicePolicy, KeyConfig};
///
/// let config = KeyConfig::default()
///     .with_grace(Duration::from_secs(30))
///     .with_devices(DevicePolicy::Verified);
/// assert_eq!(config.grace().as_secs(), 30);
/// # }
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KeyConfig {
    use_after: Duration,
    grace: Duration,
    rotate_every: Option<Duration>,
    devices: DevicePolicy,
}

impl Default for KeyConfig {
    fn default() -> Self {
        Self {
            use_after: Duration::from_secs(5),
            grace: Duration::from_secs(10),
            rotate_every: Some(Duration::from_secs(3_600)),
            devices: DevicePolicy::default(),
        }
    }
}

impl KeyConfig {
    /// Sets how long after a new key was sent it is used. Defaults to 5 s, as MSC4143 recommends; 0 to 30 s. If it
    /// is shorter, more members miss the first media under the key. If it is longer, those who left can decrypt
    /// for longer.
    #[must_use]
    pub fn with_use_after(self, use_after: Duration) -> Self {
        Self { use_after: use_after.min(Duration::from_secs(30)), ..self }
    }

    /// Sets for how long after a key was made newcomers are sent that key. Defaults to 10 s; 0 s to 5 minutes. If
    /// it is longer, fewer keys are made when many join, and newcomers can decrypt more of what was said before.
    #[must_use]
    pub fn with_grace(self, grace: Duration) -> Self {
        Self { grace: grace.min(Duration::from_secs(300)), ..self }
    }

    /// Sets how long a key is used at most, even if nobody comes or goes. Defaults to 1 h; 1 minute to 1 day.
    /// `None` sets no limit.
    #[must_use]
    pub fn with_rotate_every(self, every: Option<Duration>) -> Self {
        let range =
            |every: Duration| every.clamp(Duration::from_secs(60), Duration::from_secs(24 * 3_600));
        Self { rotate_every: every.map(range), ..self }
    }

    /// Sets which devices may get keys and give them. Defaults to [`DevicePolicy::CrossSigned`].
    #[must_use]
    pub fn with_devices(self, devices: DevicePolicy) -> Self {
        Self { devices, ..self }
    }

    /// Returns how long after a new key was sent it is used.
    pub fn use_after(&self) -> Duration {
        self.use_after
    }

    /// Returns for how long after a key was made newcomers are sent that key.
    pub fn grace(&self) -> Duration {
        self.grace
    }

    /// Returns how long a key is used at most. `None` if there is no limit.
    pub fn rotate_every(&self) -> Option<Duration> {
        self.rotate_every
    }

    /// Returns which devices may get keys and give them.
    pub fn devices(&self) -> DevicePolicy {
        self.devices
    }
}

/// What a frame cryptor does next, in this order.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum KeyChange {
    /// Forget all keys. Those that count follow. It comes first, and again if a subscriber lags so far that all keys
    /// are fewer than its changes.
    Reset,
    /// Encrypt our media with this key from now on.
    Own {
        /// The member that we are now.
        participant: Participant,
        /// The key's index, which goes with the media.
        index: u8,
        /// The key.
        key: MediaKey,
    },
    /// Decrypt a member's media with this key. It replaces the key of the same member and index.
    Peer {
        /// The member.
        participant: Participant,
        /// The key's index, which comes with the media.
        index: u8,
        /// The key.
        key: MediaKey,
    },
    /// Forget a member's keys: the member is gone.
    Gone {
        /// The member.
        participant: Participant,
    },
}

/// A source of random bytes, which fills a buffer. The bytes are keys, so it has to be cryptographically secure.
pub type RandomBytes = Box<dyn FnMut(&mut [u8]) + Send>;

/// The pure machine: our key and who has it, and the keys of the others.
///
/// To drive it: call a `handle_..` method for each thing that happens. Then perform what
/// [`poll_send`](Self::poll_send) returns until that is `None`, and tell the frame cryptor what
/// [`poll_change`](Self::poll_change) returns until that is `None`. Poll again at [`next_deadline`](Self::next_deadline).
pub struct KeyExchange {
    room_id: OwnedRoomId,
    own: Participant,
    /// Since when we are in the session, if we are.
    own_since_ms: Option<u64>,
    /// Whether we were in the session before.
    was_there: bool,
    outbound: Outbound,
    inbound: Inbound,
    changes: VecDeque<KeyChange>,
}

impl KeyExchange {
    /// Creates the exchange of our member in a room. The seed is for the jitter of retries.
    pub fn new(
        room_id: OwnedRoomId,
        own: Participant,
        config: KeyConfig,
        random_bytes: RandomBytes,
        seed: u64,
    ) -> Self {
        Self {
            room_id,
            own,
            own_since_ms: None,
            was_there: false,
            outbound: Outbound::new(config, random_bytes, seed),
            inbound: Inbound::new(config.devices),
            changes: VecDeque::new(),
        }
    }

    /// Returns the room's id.
    pub fn room_id(&self) -> &RoomId {
        &self.room_id
    }

    /// Returns our own member.
    pub fn own(&self) -> &Participant {
        &self.own
    }

    /// Takes who is in the session. The first call makes the first key. In a room that is not encrypted nothing
    /// happens, as MSC4143 has it: no membership proves whose it is.
    pub fn handle_session(&mut self, now: Moment, session: &SessionSnapshot) {
        if !session.is_encrypted() {
            return;
        }
        let dialect = session.dialect();
        let own = session.member(&self.own.user_id, &self.own.member_id).map(Member::since_ms);
        self.handle_peers(now, own, session.members().filter_map(|it| Peer::of(it, dialect)));
    }

    /// Takes since when we are in the session, if we are, and all members. We may be among them, and are not sent
    /// our own key. If we come back after an absence, others may have forgotten our key, and are sent it again.
    pub fn handle_peers(
        &mut self,
        now: Moment,
        own_since_ms: Option<u64>,
        peers: impl IntoIterator<Item = Peer>,
    ) {
        let is_own = |other: &Participant| {
            let Participant { user_id, member_id, device_id } = &self.own;
            other.user_id == *user_id
                && (other.member_id == *member_id || other.device_id == *device_id)
        };
        let others = peers.into_iter().filter(|peer| !is_own(&peer.participant));
        let others: BTreeMap<_, _> = others.map(|peer| (peer.participant.clone(), peer)).collect();
        let is_back = match (self.own_since_ms, own_since_ms) {
            (None, Some(_)) => self.was_there,
            (Some(before), Some(since)) => since > before,
            (_, None) => false,
        };
        self.was_there |= own_since_ms.is_some();
        self.own_since_ms = own_since_ms;
        self.inbound.handle_peers(now, &others, &mut self.changes);
        self.outbound.handle_peers(now, &others);
        self.note_use();
        if is_back {
            self.outbound.send_again();
        }
    }

    /// Takes that we have joined as another member than before, or are about to. That member has another key, which
    /// is used at once. The keys of the others stay.
    pub fn handle_joined_as(&mut self, member_id: impl Into<String>) {
        self.own.member_id = member_id.into();
        self.own_since_ms = None;
        self.was_there = false;
        self.outbound.begin_anew();
    }

    /// Takes a key message, and its sender as decryption shows.
    pub fn handle_message(&mut self, now: Moment, sender: Sender, message: KeyMessage) {
        if message.room_id == self.room_id {
            self.inbound.handle_message(now, sender, message, &mut self.changes);
        }
    }

    /// Takes that a message was rejected before it was read.
    pub fn handle_discarded(&mut self, user_id: OwnedUserId, reason: DiscardReason) {
        self.inbound.discard(user_id, None, reason);
    }

    /// Takes that a user's devices changed: failed sends to them are tried again. Look up the senders of
    /// [`doubtful`](Self::doubtful) too.
    pub fn handle_devices_change(&mut self, user_id: &UserId) {
        self.outbound.handle_devices_change(user_id);
    }

    /// Takes that anybody's devices may have changed: see
    /// [`handle_devices_change`](Self::handle_devices_change).
    pub fn handle_devices_missed(&mut self) {
        self.outbound.handle_devices_missed();
    }

    /// Takes how far the device of a sender is known by now.
    pub fn handle_verification(&mut self, sender: &Sender) {
        self.inbound.handle_verification(sender, &mut self.changes);
    }

    /// Takes what became of a send: which of its recipients were not sent the key, and why.
    pub fn handle_sent(
        &mut self,
        now: Moment,
        id: SendId,
        failures: &BTreeMap<Participant, KeySendFailure>,
    ) {
        self.outbound.handle_sent(now, id, failures);
    }

    /// Returns the senders whose messages wait only because their device is not trusted. Look up more about it.
    pub fn doubtful(&self) -> Vec<Sender> {
        self.inbound.doubtful()
    }

    /// Returns the next send. [`handle_sent`](Self::handle_sent) takes what became of it.
    pub fn poll_send(&mut self, now: Moment) -> Option<Sending> {
        self.advance(now);
        if !self.was_there {
            return None;
        }
        self.outbound.poll_send(now)
    }

    /// Returns the next change for the frame cryptor.
    pub fn poll_change(&mut self, now: Moment) -> Option<KeyChange> {
        self.advance(now);
        self.changes.pop_front()
    }

    /// Returns when to poll again, if nothing happens before.
    pub fn next_deadline(&self) -> Option<Deadline> {
        self.outbound.next_deadline().into_iter().chain(self.inbound.next_deadline()).min()
    }

    /// Returns all keys that count now, for a frame cryptor that has none.
    pub fn all(&self) -> Vec<KeyChange> {
        let own = self.outbound.in_use().map(|(index, key)| self.own_change(index, key));
        let peers = self.inbound.all();
        [KeyChange::Reset].into_iter().chain(own).chain(peers).collect()
    }

    /// The number of keys that count now.
    #[cfg(feature = "media-keys")]
    fn len(&self) -> usize {
        usize::from(self.own_index().is_some()) + self.inbound.len()
    }

    /// Returns the index of our key in use.
    pub fn own_index(&self) -> Option<u8> {
        self.outbound.in_use().map(|(index, _)| index)
    }

    /// Returns how many key messages were rejected, and why the last 32 were.
    pub fn discards(&self) -> &Discards {
        self.inbound.discards()
    }

    fn advance(&mut self, now: Moment) {
        self.outbound.advance(now);
        self.note_use();
        self.inbound.advance(now);
    }

    fn note_use(&mut self) {
        for (index, key) in self.outbound.take_used() {
            self.changes.push_back(self.own_change(index, key));
        }
    }

    fn own_change(&self, index: u8, key: MediaKey) -> KeyChange {
        KeyChange::Own { participant: self.own.clone(), index, key }
    }
}

impl fmt::Debug for KeyExchange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("KeyExchange")
            .field("room_id", &self.room_id)
            .field("own", &self.own)
            .field("own_index", &self.own_index())
            .finish_non_exhaustive()
    }
}
