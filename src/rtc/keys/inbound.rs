//! Inbound: the keys of the others, each checked against the membership that it belongs to.
//!
//! In: the members and their devices, key messages with their sender as decryption shows. Out: keys for the frame
//! cryptor, and why a message was rejected. Never: a key of somebody else than the member, or memory without
//! bounds.

use std::{
    collections::{BTreeMap, HashMap, VecDeque},
    fmt,
    time::Duration,
};

use ruma::{OwnedDeviceId, OwnedUserId};
use tracing::debug;

use super::{DevicePolicy, KeyChange, KeyMessage, Participant, Peer};
use crate::{
    event::Verification,
    time::{Deadline, Moment},
};

/// How long a message waits for its membership, and the keys of a member who is gone for its return.
const PENDING_TIMEOUT: Duration = Duration::from_secs(600);

/// How many messages of one user wait.
const MAX_PENDING_OF_ONE: usize = 32;

/// How many messages wait in all.
const MAX_PENDING: usize = 1_024;

/// How many keys of one member are kept: the newest. One is in use, and a second one while they change. The others
/// are for members who rotate quickly.
const MAX_KEYS_OF_ONE: usize = 16;

/// How many rejected messages are remembered, with the reason.
const MAX_DISCARDS: usize = 32;

/// The sender of a message, as its decryption shows.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Sender {
    /// The user.
    pub user_id: OwnedUserId,
    /// The device.
    pub device_id: OwnedDeviceId,
    /// The device's Curve25519 key, in base64. A device id alone proves nothing: another device may claim it as long
    /// as the right one is not known.
    pub curve25519: String,
    /// How far the device is known to be its owner's.
    pub verification: Verification,
}

impl Sender {
    /// Creates a sender.
    pub fn new(
        user_id: impl Into<OwnedUserId>,
        device_id: impl Into<OwnedDeviceId>,
        curve25519: impl Into<String>,
        verification: Verification,
    ) -> Self {
        Self {
            user_id: user_id.into(),
            device_id: device_id.into(),
            curve25519: curve25519.into(),
            verification,
        }
    }
}

/// Why a key message was rejected.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum DiscardReason {
    /// The message came in plaintext.
    NotEncrypted,
    /// This field is missing or malformed.
    Malformed(&'static str),
    /// The SDK does not know the device that sent it.
    UnknownDevice,
    /// The sender had no member of that id whose device is proven, and got none within 10 minutes.
    NoMember,
    /// Another user has the member of that id. The sender had none, and got none within 10 minutes.
    OtherUser,
    /// The member is another device's than the sender's.
    OtherDevice,
    /// [`DevicePolicy`] did not allow the device, and did not within 10 minutes.
    NotTrusted,
    /// A newer key of that index is known.
    Outdated,
    /// Too many others wait for their memberships.
    TooMany,
}

impl DiscardReason {
    /// Returns a stable, machine-readable name of the reason, such as `not_trusted`.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::NotEncrypted => "not_encrypted",
            Self::Malformed(_) => "malformed",
            Self::UnknownDevice => "unknown_device",
            Self::NoMember => "no_member",
            Self::OtherUser => "other_user",
            Self::OtherDevice => "other_device",
            Self::NotTrusted => "not_trusted",
            Self::Outdated => "outdated",
            Self::TooMany => "too_many",
        }
    }
}

impl fmt::Display for DiscardReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Malformed(field) => write!(f, "malformed: `{field}`"),
            _ => f.write_str(&self.as_str().replace('_', " ")),
        }
    }
}

/// A key message that was rejected.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Discarded {
    /// The user who sent it.
    pub user_id: OwnedUserId,
    /// The member that it names, if it names one.
    pub member_id: Option<String>,
    /// Why it was rejected.
    pub reason: DiscardReason,
}

/// Key messages that were rejected.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Discards {
    /// How many there were in all.
    pub total: u64,
    /// The last 32 of them, the oldest first.
    pub last: VecDeque<Discarded>,
}

pub(super) struct Inbound {
    policy: DevicePolicy,
    /// By user and member id.
    peers: BTreeMap<(OwnedUserId, String), PeerKeys>,
    /// The oldest first.
    waiting: VecDeque<PendingKey>,
    discards: Discards,
}

struct PeerKeys {
    device_id: OwnedDeviceId,
    /// The oldest first.
    keys: VecDeque<Received>,
}

struct Received {
    sender: Sender,
    message: KeyMessage,
}

struct PendingKey {
    received: Received,
    until: Deadline,
    /// Whether the key was taken before, and waits for a member who may come back.
    was_taken: bool,
}

/// What to do with a message now.
enum Verdict {
    Take((OwnedUserId, String)),
    Wait(DiscardReason),
    Discard(DiscardReason),
}

impl Inbound {
    pub(super) fn new(policy: DevicePolicy) -> Self {
        Self {
            policy,
            peers: BTreeMap::new(),
            waiting: VecDeque::new(),
            discards: Discards::default(),
        }
    }

    pub(super) fn handle_peers(
        &mut self,
        now: Moment,
        peers: &BTreeMap<Participant, Peer>,
        changes: &mut VecDeque<KeyChange>,
    ) {
        let mut there = HashMap::new();
        for Participant { user_id, member_id, device_id } in peers.keys() {
            there.insert((user_id.clone(), member_id.clone()), device_id);
        }
        let gone = self.peers.extract_if(.., |who, peer| {
            there.get(who).is_none_or(|device_id| **device_id != peer.device_id)
        });
        let gone: Vec<_> = gone.collect();
        for ((user_id, member_id), PeerKeys { device_id, keys }) in gone {
            if !keys.is_empty() {
                let participant = Participant::new(user_id, member_id, device_id);
                changes.push_back(KeyChange::Gone { participant });
            }
            // The member may be gone to us alone, because its next membership is late. It will not send its keys
            // again.
            for received in keys {
                self.wait(now, received, true);
            }
        }
        let mut is_new = false;
        for (who, device_id) in there {
            self.peers.entry(who).or_insert_with(|| {
                is_new = true;
                PeerKeys { device_id: device_id.clone(), keys: VecDeque::new() }
            });
        }
        if is_new {
            self.look_again(changes);
        }
    }

    pub(super) fn handle_message(
        &mut self,
        now: Moment,
        sender: Sender,
        message: KeyMessage,
        changes: &mut VecDeque<KeyChange>,
    ) {
        let received = Received { sender, message };
        match self.judge(&received) {
            Verdict::Take(who) => self.take(&who, received, changes),
            Verdict::Wait(_) => self.wait(now, received, false),
            Verdict::Discard(reason) => self.discard_received(received, reason),
        }
    }

    pub(super) fn handle_verification(
        &mut self,
        sender: &Sender,
        changes: &mut VecDeque<KeyChange>,
    ) {
        let mut is_new = false;
        for waiting in &mut self.waiting {
            let Sender { user_id, device_id, curve25519, verification } =
                &mut waiting.received.sender;
            if (&*user_id, &*device_id, &*curve25519)
                == (&sender.user_id, &sender.device_id, &sender.curve25519)
                && *verification != sender.verification
            {
                *verification = sender.verification;
                is_new = true;
            }
        }
        if is_new {
            self.look_again(changes);
        }
    }

    pub(super) fn discard(
        &mut self,
        user_id: OwnedUserId,
        member_id: Option<String>,
        reason: DiscardReason,
    ) {
        debug!(%user_id, %reason, "a media key was not taken");
        self.discards.total = self.discards.total.saturating_add(1);
        self.discards.last.push_back(Discarded { user_id, member_id, reason });
        if self.discards.last.len() > MAX_DISCARDS {
            self.discards.last.pop_front();
        }
    }

    pub(super) fn doubtful(&self) -> Vec<Sender> {
        let mut doubtful: Vec<Sender> = Vec::new();
        for PendingKey { received, .. } in &self.waiting {
            if matches!(self.judge(received), Verdict::Wait(DiscardReason::NotTrusted))
                && !doubtful.contains(&received.sender)
            {
                doubtful.push(received.sender.clone());
            }
        }
        doubtful
    }

    pub(super) fn all(&self) -> impl Iterator<Item = KeyChange> {
        self.peers.iter().flat_map(|((user_id, member_id), peer)| {
            peer.keys.iter().map(move |Received { message, .. }| KeyChange::Peer {
                participant: Participant::new(
                    user_id.clone(),
                    member_id.clone(),
                    peer.device_id.clone(),
                ),
                index: message.index,
                key: message.key.clone(),
            })
        })
    }

    #[cfg(feature = "media-keys")]
    pub(super) fn len(&self) -> usize {
        self.peers.values().map(|peer| peer.keys.len()).sum()
    }

    pub(super) fn discards(&self) -> &Discards {
        &self.discards
    }

    pub(super) fn next_deadline(&self) -> Option<Deadline> {
        self.waiting.front().map(|waiting| waiting.until)
    }

    /// Rejects the messages that have waited long enough.
    pub(super) fn advance(&mut self, now: Moment) {
        while let Some(waiting) = self.waiting.pop_front_if(|it| it.until.is_over(now)) {
            let reason = match self.judge(&waiting.received) {
                Verdict::Wait(DiscardReason::NoMember) if self.is_of_another(&waiting.received) => {
                    DiscardReason::OtherUser
                }
                Verdict::Wait(reason) | Verdict::Discard(reason) => reason,
                Verdict::Take(_) => continue,
            };
            self.discard_waiting(waiting, reason);
        }
    }

    fn judge(&self, Received { sender, message }: &Received) -> Verdict {
        let claimed = message.claimed_device.as_deref();
        if claimed.is_some_and(|claimed| sender.device_id != *claimed) {
            return Verdict::Discard(DiscardReason::OtherDevice);
        }
        let found = match &message.member_id {
            Some(member_id) => {
                self.peers.get_key_value(&(sender.user_id.clone(), member_id.clone()))
            }
            None => self.peers.iter().find(|((user_id, _), peer)| {
                *user_id == sender.user_id && peer.device_id == sender.device_id
            }),
        };
        match found {
            None => Verdict::Wait(DiscardReason::NoMember),
            Some((_, peer)) if peer.device_id != sender.device_id => {
                Verdict::Discard(DiscardReason::OtherDevice)
            }
            Some((who, _)) if self.policy.allows(sender.verification) => Verdict::Take(who.clone()),
            Some(_) => Verdict::Wait(DiscardReason::NotTrusted),
        }
    }

    fn is_of_another(&self, Received { message, .. }: &Received) -> bool {
        let Some(member_id) = &message.member_id else { return false };
        self.peers.keys().any(|(_, id)| id == member_id)
    }

    fn take(
        &mut self,
        who: &(OwnedUserId, String),
        received: Received,
        changes: &mut VecDeque<KeyChange>,
    ) {
        let Some(peer) = self.peers.get_mut(who) else { return };
        let message = &received.message;
        let known = peer.keys.iter().position(|known| known.message.index == message.index);
        let known = known.map(|at| (at, &peer.keys[at].message));
        if let Some((_, known)) = known
            && known.sent_ms.zip(message.sent_ms).is_some_and(|(known, sent)| sent < known)
        {
            return self.discard_received(received, DiscardReason::Outdated);
        }
        if known.is_none_or(|(_, known)| !known.key.is_same(&message.key)) {
            let (user_id, member_id) = who.clone();
            changes.push_back(KeyChange::Peer {
                participant: Participant::new(user_id, member_id, peer.device_id.clone()),
                index: message.index,
                key: message.key.clone(),
            });
        }
        if let Some((at, _)) = known {
            peer.keys.remove(at);
        }
        peer.keys.push_back(received);
        if peer.keys.len() > MAX_KEYS_OF_ONE {
            peer.keys.pop_front();
        }
    }

    /// Keeps a message. If that is one too many, the oldest one is rejected of the same user, or of the user who has
    /// the most. So nobody can push out the messages of a user who has fewer.
    fn wait(&mut self, now: Moment, received: Received, was_taken: bool) {
        let mut counts: HashMap<&OwnedUserId, usize> = HashMap::new();
        for PendingKey { received, .. } in &self.waiting {
            *counts.entry(&received.sender.user_id).or_default() += 1;
        }
        let own = counts.get(&received.sender.user_id).copied().unwrap_or_default();
        let most = counts.values().copied().max().unwrap_or_default();
        let at = if own >= MAX_PENDING_OF_ONE || (self.waiting.len() >= MAX_PENDING && own == most)
        {
            self.waiting.iter().position(|it| it.received.sender.user_id == received.sender.user_id)
        } else if self.waiting.len() >= MAX_PENDING {
            self.waiting.iter().position(|it| counts[&it.received.sender.user_id] == most)
        } else {
            None
        };
        if let Some(too_many) = at.and_then(|at| self.waiting.remove(at)) {
            self.discard_waiting(too_many, DiscardReason::TooMany);
        }
        self.waiting.push_back(PendingKey {
            received,
            until: now.deadline(PENDING_TIMEOUT),
            was_taken,
        });
    }

    /// Judges the waiting messages again, in the order in which they came.
    fn look_again(&mut self, changes: &mut VecDeque<KeyChange>) {
        for waiting in std::mem::take(&mut self.waiting) {
            match self.judge(&waiting.received) {
                Verdict::Take(who) => self.take(&who, waiting.received, changes),
                Verdict::Wait(_) => self.waiting.push_back(waiting),
                Verdict::Discard(reason) => self.discard_waiting(waiting, reason),
            }
        }
    }

    fn discard_waiting(&mut self, waiting: PendingKey, reason: DiscardReason) {
        if !waiting.was_taken {
            self.discard_received(waiting.received, reason);
        }
    }

    fn discard_received(&mut self, Received { sender, message }: Received, reason: DiscardReason) {
        self.discard(sender.user_id, message.member_id, reason);
    }
}
