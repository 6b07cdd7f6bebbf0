//! Media keys: each member of a session has one of its own, and gives it to the others' devices
//! ([MSC4143], `m.per_member`).
//!
//! In (`handle_..`): who is in the session and by which devices, what became of each send, key
//! messages of others, each with the moment; random bytes. Out (`poll_..`): which key goes to exactly
//! which devices, and what the application's frame cryptor is to be told. No clock, no I/O.
//!
//! The rules for our own key:
//! - The first one is used at once: there is nothing else to use.
//! - Who may have the newest key and leaves is followed by another one. It goes to all, and is used
//!   [`KeyConfig::use_after`] later, so that it is there before the media are. Who leaves in between
//!   is followed by one more when that is over, however many they are.
//! - Who joins within [`KeyConfig::grace`] after the newest key was made is sent that one; later, all
//!   are sent another, as the newcomer may not know what was said before.
//! - Where nobody who is there has the key in use, there is nobody to wait for, and the next one is
//!   used at once: so the first to join somebody who was alone hears them from the start.
//! - Nothing is sent before our own membership is seen: nobody could tell whose key it is.
//! - What could not be sent is tried again, for those devices alone. Who has left gets nothing.
//! - Only a device that is proven to be a member's ([`MemberDevice::is_proven`](super::Device::is_proven))
//!   is sent anything.
//!
//! The rules for the keys of others: the message was Olm-encrypted; whoever sent it, by the device that
//! decryption shows, is who encrypted the membership that it names. What comes before its membership
//! waits for it, and who is gone and comes back is known by the keys from before.
//!
//! A frame cryptor is fed by a stream, so that nothing calls back into the application:
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
//! What is not promised: keys are overwritten when they are dropped here, but not the copies that a
//! message is made of, nor those of the application.
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

/// A key that media are encrypted with. Cheap to clone; overwritten when the last clone is dropped.
#[derive(Clone)]
pub struct MediaKey(Arc<Zeroizing<Vec<u8>>>);

impl MediaKey {
    /// The length of ours, in bytes.
    pub const LENGTH: usize = 32;

    fn new(bytes: Zeroizing<Vec<u8>>) -> Self {
        Self(Arc::new(bytes))
    }

    /// The key: 32 bytes, or what an Element Call client sent, 16 to 64. Not to be logged.
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

/// Whose media a key is for: a member, and its device.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[non_exhaustive]
pub struct Participant {
    /// The user.
    pub user_id: OwnedUserId,
    /// The id of the member.
    pub member_id: String,
    /// The device, as is proven.
    pub device_id: OwnedDeviceId,
}

impl Participant {
    /// A member's device.
    pub fn new(
        user_id: impl Into<OwnedUserId>,
        member_id: impl Into<String>,
        device_id: impl Into<OwnedDeviceId>,
    ) -> Self {
        Self { user_id: user_id.into(), member_id: member_id.into(), device_id: device_id.into() }
    }

    /// What a LiveKit SFU calls it ([MSC4195]): a hash, so that the SFU does not learn who it is.
    ///
    /// [MSC4195]: https://github.com/matrix-org/matrix-spec-proposals/pull/4195
    pub fn livekit_identity(&self) -> String {
        let Self { user_id, member_id, device_id } = self;
        let parts = [user_id.as_str(), device_id.as_str(), member_id];
        let text = serde_json::Value::from(parts.as_slice()).to_string();
        Base64::<Standard, _>::new(Sha256::digest(text)).encode()
    }
}

/// A member who may have our key, and whose keys we take.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Peer {
    /// Who, and by which device.
    pub participant: Participant,
    /// Since when it is there ([`Member::since_ms`]). One that is there since later than before has
    /// been away, and may have lost its keys.
    pub since_ms: u64,
    /// The messages that it reads.
    pub reads: Dialect,
}

impl Peer {
    /// A peer, of whom somebody else knows that the device is the member's.
    pub fn new(participant: Participant, since_ms: u64, reads: Dialect) -> Self {
        Self { participant, since_ms, reads }
    }

    /// A member as a peer, in a session that speaks this dialect. `None` where the device is not
    /// proven, and for memberships in the state: those are in plaintext.
    ///
    /// A membership that is right for both dialects is sent what the session speaks. It may be that
    /// of a client of ours, which reads both; or, in a session of Element Call's, of a newer version
    /// of its client, which reads that.
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

/// Which devices are trusted with keys, theirs and ours. Whichever it is, the device has to be that
/// which encrypted the membership.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum DevicePolicy {
    /// Any.
    Any,
    /// One that its owner has cross-signed, and whose owner, once verified by us, has not got another
    /// identity since. The default, as MSC4143 asks for it on receipt, with [MSC4153]: a device that is
    /// not cross-signed may be one that a server has made up. The same for sending, as a key that is
    /// given to such a device is lost just as well.
    ///
    /// [MSC4153]: https://github.com/matrix-org/matrix-spec-proposals/pull/4153
    #[default]
    CrossSigned,
    /// One whose owner we have verified.
    Verified,
}

impl DevicePolicy {
    /// Whether it lets a device have keys, and give them. One that is not known is let by none.
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

/// How keys are made and given out. What is out of range becomes the nearest that is not.
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
    /// How long after a new key was sent it is used; 5 s unless set, as MSC4143 recommends, and 30 s at
    /// most. The shorter, the more of those who are there miss the first media under it; the longer,
    /// the longer who has left can decrypt.
    #[must_use]
    pub fn with_use_after(self, use_after: Duration) -> Self {
        Self { use_after: use_after.min(Duration::from_secs(30)), ..self }
    }

    /// For how long after it was made a key is given to who joins; 10 s unless set, 5 minutes at most.
    /// The longer, the fewer keys there are when many join, and the more of what was said before can
    /// they decrypt.
    #[must_use]
    pub fn with_grace(self, grace: Duration) -> Self {
        Self { grace: grace.min(Duration::from_secs(300)), ..self }
    }

    /// How long a key is used at most, whoever comes or goes; 1 h unless set, from 1 minute to 1 day,
    /// or without end.
    #[must_use]
    pub fn with_rotate_every(self, every: Option<Duration>) -> Self {
        let range =
            |every: Duration| every.clamp(Duration::from_secs(60), Duration::from_secs(24 * 3_600));
        Self { rotate_every: every.map(range), ..self }
    }

    /// Which devices are trusted with keys.
    #[must_use]
    pub fn with_devices(self, devices: DevicePolicy) -> Self {
        Self { devices, ..self }
    }

    /// How long after a new key was sent it is used.
    pub fn use_after(&self) -> Duration {
        self.use_after
    }

    /// For how long after it was made a key is given to who joins.
    pub fn grace(&self) -> Duration {
        self.grace
    }

    /// How long a key is used at most.
    pub fn rotate_every(&self) -> Option<Duration> {
        self.rotate_every
    }

    /// Which devices are trusted with keys.
    pub fn devices(&self) -> DevicePolicy {
        self.devices
    }
}

/// What a frame cryptor is to be told, in this order.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum KeyChange {
    /// Forget all keys; those that count follow. The first that is told, and again where so much was
    /// not asked for that telling it all anew is shorter.
    Reset,
    /// From now on our media are encrypted with this key.
    Own {
        /// We, as the member that we are now.
        participant: Participant,
        /// Its index, which goes with the media.
        index: u8,
        /// The key.
        key: MediaKey,
    },
    /// A member's media may be encrypted with this key from now on, or are already. It replaces the one
    /// of the same member and index.
    Peer {
        /// Whose media.
        participant: Participant,
        /// Its index, which comes with the media.
        index: u8,
        /// The key.
        key: MediaKey,
    },
    /// A member is gone: its keys can be forgotten.
    Gone {
        /// Who.
        participant: Participant,
    },
}

/// Where random bytes come from: it fills them, each time anew. What it gives are keys.
pub type RandomBytes = Box<dyn FnMut(&mut [u8]) + Send>;

/// The pure machine: our key and who has it, and the keys of the others.
pub struct KeyExchange {
    room_id: OwnedRoomId,
    own: Participant,
    /// Since when we are there, where we are.
    own_since_ms: Option<u64>,
    /// Whether we were there before.
    was_there: bool,
    outbound: Outbound,
    inbound: Inbound,
    changes: VecDeque<KeyChange>,
}

impl KeyExchange {
    /// Ours, in this room. The seed is for the waits.
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

    /// The room.
    pub fn room_id(&self) -> &RoomId {
        &self.room_id
    }

    /// We.
    pub fn own(&self) -> &Participant {
        &self.own
    }

    /// Takes who is in the session, the first time it makes the first key. In a room that is
    /// not encrypted it does nothing, as MSC4143 has it: there no membership proves whose it is.
    pub fn handle_session(&mut self, now: Moment, session: &SessionSnapshot) {
        if !session.is_encrypted() {
            return;
        }
        let dialect = session.dialect();
        let own = session.member(&self.own.user_id, &self.own.member_id).map(Member::since_ms);
        self.handle_peers(now, own, session.members().filter_map(|it| Peer::of(it, dialect)));
    }

    /// Takes since when we are in the session ourselves, where we are, and all who are; we may be among
    /// them, and are not sent our own key. If we are back after we were not there for a while, others may
    /// have forgotten our key, and are sent it again.
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

    /// Takes the news that we have joined, or are about to, as another member than before. That one has
    /// another key, which is used at once; the keys of the others are what they were.
    pub fn handle_joined_as(&mut self, member_id: impl Into<String>) {
        self.own.member_id = member_id.into();
        self.own_since_ms = None;
        self.was_there = false;
        self.outbound.begin_anew();
    }

    /// Takes a key message, and by whom it was sent, as decryption shows.
    pub fn handle_message(&mut self, now: Moment, sender: Sender, message: KeyMessage) {
        if message.room_id == self.room_id {
            self.inbound.handle_message(now, sender, message, &mut self.changes);
        }
    }

    /// Takes a message that is none.
    pub fn handle_discarded(&mut self, user_id: OwnedUserId, reason: DiscardReason) {
        self.inbound.discard(user_id, None, reason);
    }

    /// Takes the news that a user's devices are not as they were: what could not be sent to them is
    /// tried again. Of those whose messages wait, [`doubtful`](Self::doubtful) is to be asked.
    pub fn handle_devices_change(&mut self, user_id: &UserId) {
        self.outbound.handle_devices_change(user_id);
    }

    /// Takes the news that anybody's devices may not be as they were: see
    /// [`handle_devices_change`](Self::handle_devices_change).
    pub fn handle_devices_missed(&mut self) {
        self.outbound.handle_devices_missed();
    }

    /// Takes what is known by now of a device that has sent something.
    pub fn handle_verification(&mut self, sender: &Sender) {
        self.inbound.handle_verification(sender, &mut self.changes);
    }

    /// Takes what became of a send: who of its recipients was not sent it.
    pub fn handle_sent(
        &mut self,
        now: Moment,
        id: SendId,
        failures: &BTreeMap<Participant, KeySendFailure>,
    ) {
        self.outbound.handle_sent(now, id, failures);
    }

    /// Whose messages wait only as their device is not trusted, so that more should be found out of it.
    pub fn doubtful(&self) -> Vec<Sender> {
        self.inbound.doubtful()
    }

    /// What is to be sent now. Each is answered by [`handle_sent`](Self::handle_sent).
    pub fn poll_send(&mut self, now: Moment) -> Option<Sending> {
        self.advance(now);
        if !self.was_there {
            return None;
        }
        self.outbound.poll_send(now)
    }

    /// What the frame cryptor is to be told now.
    pub fn poll_change(&mut self, now: Moment) -> Option<KeyChange> {
        self.advance(now);
        self.changes.pop_front()
    }

    /// When to poll again, if nothing happens before.
    pub fn next_deadline(&self) -> Option<Deadline> {
        self.outbound.next_deadline().into_iter().chain(self.inbound.next_deadline()).min()
    }

    /// All that counts now, as a cryptor that knows nothing is to be told it.
    pub fn all(&self) -> Vec<KeyChange> {
        let own = self.outbound.in_use().map(|(index, key)| self.own_change(index, key));
        let peers = self.inbound.all();
        [KeyChange::Reset].into_iter().chain(own).chain(peers).collect()
    }

    /// How many keys count now.
    #[cfg(feature = "media-keys")]
    fn len(&self) -> usize {
        usize::from(self.own_index().is_some()) + self.inbound.len()
    }

    /// The index of our key in use.
    pub fn own_index(&self) -> Option<u8> {
        self.outbound.in_use().map(|(index, _)| index)
    }

    /// How many key messages were not taken, and why the last ones were not.
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
