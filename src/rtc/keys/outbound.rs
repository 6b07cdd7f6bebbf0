//! Outbound: our own key, when another one follows, and who has it.
//!
//! In: the members, what became of each send. Out: sends, and which key is used from when on. Never: a send to a
//! device that left, or was not there.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    fmt,
    time::Duration,
};

use ruma::UserId;
use zeroize::Zeroizing;

use super::{KeyConfig, MediaKey, Participant, Peer, RandomBytes};
use crate::{
    rtc::dialect::Dialect,
    time::{Deadline, Moment},
};

/// How much longer than [`KeyConfig::use_after`] a new key waits at most, if sending it takes long. The delay begins
/// when everybody's first send is answered, or after this.
const MAX_SEND_WAIT: Duration = Duration::from_secs(10);

/// The wait after the first failed send. It doubles with each further one.
const MIN_RETRY_INTERVAL: Duration = Duration::from_secs(1);

/// The longest wait after a failed send.
const MAX_RETRY_INTERVAL: Duration = Duration::from_secs(60);

/// The number of a send.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SendId(u64);

/// A key that is sent to exactly these members.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Sending {
    /// The number of this send.
    pub id: SendId,
    /// The key's index.
    pub index: u8,
    /// The key.
    pub key: MediaKey,
    /// The recipients, each with the dialect that they read.
    pub to: Vec<(Participant, Dialect)>,
}

/// Why a member was not sent a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum KeySendFailure {
    /// Nothing was sent: the device is unknown, or not trusted.
    NotSent,
    /// Nobody knows whether it was sent: the server may have it.
    Unknown,
}

impl fmt::Display for KeySendFailure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::NotSent => "not sent: the device is unknown, or not trusted",
            Self::Unknown => "perhaps not sent: the server did not answer",
        })
    }
}

pub(super) struct Outbound {
    config: KeyConfig,
    random_bytes: RandomBytes,
    rng: fastrand::Rng,
    newest: Option<OwnKey>,
    /// The key in use, if that is not the newest.
    older: Option<(u8, MediaKey)>,
    /// What the newest key waits for before it is used.
    wait: Option<Wait>,
    /// Whether a member left who may have the newest key, before that was used.
    rotate_then: bool,
    peers: BTreeMap<Participant, Share>,
    sends: HashMap<SendId, Vec<Participant>>,
    next_send: u64,
    /// Whether the next key is the first one of another member.
    is_to_begin: bool,
    /// Keys that came into use, and that have not been reported.
    used: Vec<(u8, MediaKey)>,
}

struct OwnKey {
    index: u8,
    key: MediaKey,
    /// Until when newcomers are sent this key.
    grace: Deadline,
    /// When another key follows in any case.
    ends: Option<Deadline>,
}

struct Wait {
    until: Deadline,
    /// The members whose first send is not answered yet.
    unanswered: BTreeSet<Participant>,
}

/// How far one peer has the newest key.
struct Share {
    since_ms: u64,
    reads: Dialect,
    /// Whether the peer may have it.
    is_exposed: bool,
    failures: u32,
    state: ShareState,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum ShareState {
    /// To be sent, at once or from then on.
    Owed(Option<Deadline>),
    Sending {
        id: SendId,
        was_exposed: bool,
    },
    Sent,
}

impl Share {
    fn owe(&mut self) {
        self.state = ShareState::Owed(None);
        self.failures = 0;
    }
}

impl Outbound {
    pub(super) fn new(config: KeyConfig, random_bytes: RandomBytes, seed: u64) -> Self {
        Self {
            config,
            random_bytes,
            rng: fastrand::Rng::with_seed(seed),
            newest: None,
            older: None,
            wait: None,
            rotate_then: false,
            peers: BTreeMap::new(),
            sends: HashMap::new(),
            next_send: 0,
            is_to_begin: false,
            used: Vec::new(),
        }
    }

    pub(super) fn handle_peers(&mut self, now: Moment, peers: &BTreeMap<Participant, Peer>) {
        self.advance(now);
        let mut has_left = false;
        self.peers.retain(|participant, share| match peers.get(participant) {
            // An earlier moment only means that we know more of the past.
            Some(peer) if peer.since_ms <= share.since_ms => {
                share.since_ms = peer.since_ms;
                share.reads = peer.reads;
                true
            }
            _ => {
                has_left |= share.is_exposed;
                false
            }
        });
        let mut has_joined = false;
        for (participant, peer) in peers {
            self.peers.entry(participant.clone()).or_insert_with(|| {
                has_joined = true;
                Share {
                    since_ms: peer.since_ms,
                    reads: peer.reads,
                    is_exposed: false,
                    failures: 0,
                    state: ShareState::Owed(None),
                }
            });
        }
        if let Some(wait) = &mut self.wait {
            wait.unanswered.retain(|participant| peers.contains_key(participant));
        }
        self.begin_delay(now);
        match &self.newest {
            None => self.make_key(now),
            Some(_) if self.is_to_begin => self.make_key(now),
            // The waiting key has encrypted nothing yet, so rotating can wait until it is in use.
            Some(_) if self.wait.is_some() => self.rotate_then |= has_left,
            Some(newest) if has_left || (has_joined && newest.grace.is_over(now)) => {
                self.make_key(now);
            }
            Some(_) => {}
        }
    }

    pub(super) fn handle_devices_change(&mut self, user_id: &UserId) {
        self.retry_now(|participant| participant.user_id == user_id);
    }

    pub(super) fn handle_devices_missed(&mut self) {
        self.retry_now(|_| true);
    }

    /// Tries failed sends to these members again at once.
    fn retry_now(&mut self, is_one: impl Fn(&Participant) -> bool) {
        for (participant, share) in &mut self.peers {
            if is_one(participant)
                && let ShareState::Owed(again_at) = &mut share.state
            {
                *again_at = None;
            }
        }
    }

    /// Takes that we are another member, whose key nobody has. The index goes on, for clients that tell our keys apart
    /// by our device.
    pub(super) fn begin_anew(&mut self) {
        self.peers.clear();
        self.wait = None;
        self.older = None;
        self.rotate_then = false;
        self.is_to_begin = self.newest.is_some();
    }

    /// Sends the key to everybody again: they may have forgotten it.
    pub(super) fn send_again(&mut self) {
        self.peers.values_mut().for_each(Share::owe);
    }

    pub(super) fn handle_sent(
        &mut self,
        now: Moment,
        id: SendId,
        failures: &BTreeMap<Participant, KeySendFailure>,
    ) {
        for participant in self.sends.remove(&id).unwrap_or_default() {
            // Otherwise the send was of an older key, or to a member who has left, or was overtaken.
            let Some(share) = self.peers.get_mut(&participant) else { continue };
            let ShareState::Sending { id: sending, was_exposed } = share.state else { continue };
            if sending != id {
                continue;
            }
            if let Some(wait) = &mut self.wait {
                wait.unanswered.remove(&participant);
            }
            let Some(failure) = failures.get(&participant) else {
                share.state = ShareState::Sent;
                continue;
            };
            if *failure == KeySendFailure::NotSent {
                share.is_exposed = was_exposed;
            }
            let wait = MIN_RETRY_INTERVAL
                .saturating_mul(1 << share.failures.min(16))
                .min(MAX_RETRY_INTERVAL);
            share.failures = share.failures.saturating_add(1);
            // Jitter, so that many clients that lost the same server do not come back at the same instant.
            let wait = wait.mul_f64(0.8 + 0.2 * self.rng.f64());
            share.state = ShareState::Owed(Some(now.deadline(wait)));
        }
        self.begin_delay(now);
    }

    pub(super) fn poll_send(&mut self, now: Moment) -> Option<Sending> {
        let OwnKey { index, key, .. } = self.newest.as_ref()?;
        let id = SendId(self.next_send);
        let mut to = Vec::new();
        for (participant, share) in &mut self.peers {
            if let ShareState::Owed(again_at) = share.state
                && again_at.is_none_or(|again_at| again_at.is_over(now))
            {
                share.state = ShareState::Sending { id, was_exposed: share.is_exposed };
                share.is_exposed = true;
                to.push((participant.clone(), share.reads));
            }
        }
        if to.is_empty() {
            return None;
        }
        self.next_send += 1;
        self.sends.insert(id, to.iter().map(|(participant, _)| participant.clone()).collect());
        Some(Sending { id, index: *index, key: key.clone(), to })
    }

    pub(super) fn next_deadline(&self) -> Option<Deadline> {
        let again = self.peers.values().filter_map(|share| match share.state {
            ShareState::Owed(again_at) => again_at,
            _ => None,
        });
        let rotation = self.newest.as_ref().and_then(|newest| newest.ends);
        let wait = self.wait.as_ref().map(|wait| wait.until);
        // While a key waits, no other one is made.
        let next = wait.or(rotation);
        again.chain(next).min()
    }

    /// Takes out the keys that came into use since the last call.
    pub(super) fn take_used(&mut self) -> Vec<(u8, MediaKey)> {
        std::mem::take(&mut self.used)
    }

    /// The key with which our media are encrypted.
    pub(super) fn in_use(&self) -> Option<(u8, MediaKey)> {
        let newest = self.newest.as_ref().map(|newest| (newest.index, newest.key.clone()));
        self.older.clone().or(newest)
    }

    /// Does what is due.
    pub(super) fn advance(&mut self, now: Moment) {
        if self.wait.as_ref().is_some_and(|wait| wait.until.is_over(now)) {
            self.begin_use();
            if std::mem::take(&mut self.rotate_then) {
                self.make_key(now);
            }
        }
        let ends = self.newest.as_ref().and_then(|newest| newest.ends);
        if self.wait.is_none() && ends.is_some_and(|ends| ends.is_over(now)) {
            self.make_key(now);
        }
    }

    fn make_key(&mut self, now: Moment) {
        self.is_to_begin = false;
        let mut bytes = Zeroizing::new(vec![0; MediaKey::LENGTH]);
        (self.random_bytes)(&mut bytes);
        let older = self.newest.take().map(|newest| (newest.index, newest.key));
        let index = older.as_ref().map_or(0, |(index, _)| index.wrapping_add(1));
        self.newest = Some(OwnKey {
            index,
            key: MediaKey::new(bytes),
            grace: now.deadline(self.config.grace),
            ends: self.config.rotate_every.map(|every| now.deadline(every)),
        });
        let is_held = self.peers.values().any(|share| share.is_exposed);
        for share in self.peers.values_mut() {
            share.is_exposed = false;
            share.owe();
        }
        if older.is_some() && is_held {
            self.older = older;
            self.wait = Some(Wait {
                until: now.deadline(MAX_SEND_WAIT + self.config.use_after),
                unanswered: self.peers.keys().cloned().collect(),
            });
        } else {
            self.begin_use();
        }
    }

    /// Begins the delay once everybody's first send is answered.
    fn begin_delay(&mut self, now: Moment) {
        if let Some(wait) = &mut self.wait
            && wait.unanswered.is_empty()
        {
            wait.until = wait.until.min(now.deadline(self.config.use_after));
        }
    }

    fn begin_use(&mut self) {
        self.wait = None;
        self.older = None;
        self.used.extend(self.newest.as_ref().map(|newest| (newest.index, newest.key.clone())));
    }
}
