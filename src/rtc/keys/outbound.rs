//! Outbound: our own key, when there is another one, and who has it.
//!
//! In: who is there, what became of each send. Out: sends, and from when on which key is used. What is
//! never here: a device that left, or was not there.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    time::Duration,
};

use ruma::UserId;
use zeroize::Zeroizing;

use super::{KeyConfig, MediaKey, Participant, Peer, RandomBytes};
use crate::{
    rtc::dialect::Dialect,
    time::{Deadline, Moment},
};

/// How much longer than [`KeyConfig::use_after`] a new key waits at most where sending it takes its
/// time: the delay begins when everybody's first send is answered, or after this.
const SLOW_SENDS: Duration = Duration::from_secs(10);

/// The wait after the first send that failed; it doubles with each further one.
const FIRST_WAIT: Duration = Duration::from_secs(1);

/// The longest such wait.
const LONGEST_WAIT: Duration = Duration::from_secs(60);

/// The number of a send.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SendId(u64);

/// A key to be sent, to exactly these.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Sending {
    /// Which.
    pub id: SendId,
    /// The key's index.
    pub index: u8,
    /// The key.
    pub key: MediaKey,
    /// To whom, and in which dialect.
    pub to: Vec<(Participant, Dialect)>,
}

/// Why somebody was not sent a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum KeySendFailure {
    /// Nothing was sent to the device: it is not known, or not trusted.
    NotSent,
    /// Nobody knows: the server may have it.
    Unknown,
}

pub(super) struct Outbound {
    config: KeyConfig,
    random_bytes: RandomBytes,
    rng: fastrand::Rng,
    newest: Option<OwnKey>,
    /// The key in use, where that is not the newest.
    older: Option<(u8, MediaKey)>,
    /// Until when the newest key is not used.
    wait: Option<Wait>,
    /// Somebody left who may have the newest key, before that was used.
    rotate_then: bool,
    peers: BTreeMap<Participant, Share>,
    sends: HashMap<SendId, Vec<Participant>>,
    next_send: u64,
    /// Whether the next key is the first one of another member.
    is_to_begin: bool,
    /// Keys that came into use, and that nobody was told of yet.
    used: Vec<(u8, MediaKey)>,
}

struct OwnKey {
    index: u8,
    key: MediaKey,
    /// Until when it is given to who joins.
    grace: Deadline,
    /// When there is another one in any case.
    ends: Option<Deadline>,
}

struct Wait {
    until: Deadline,
    /// Whose first send is not answered yet.
    unanswered: BTreeSet<Participant>,
}

/// How the newest key stands with one peer.
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
    /// To be sent, from then on where that is said.
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
            // An earlier one is one that was there before and is known only now.
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
            // What it has not been used for it does not give away.
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

    /// What could not be sent to these is tried again at once.
    fn retry_now(&mut self, is_one: impl Fn(&Participant) -> bool) {
        for (participant, share) in &mut self.peers {
            if is_one(participant)
                && let ShareState::Owed(again_at) = &mut share.state
            {
                *again_at = None;
            }
        }
    }

    /// We are another member: nobody has a key of that one. The index goes on, for those who tell our
    /// keys apart by our device.
    pub(super) fn begin_anew(&mut self) {
        self.peers.clear();
        self.wait = None;
        self.older = None;
        self.rotate_then = false;
        self.is_to_begin = self.newest.is_some();
    }

    /// Everybody may have forgotten the key.
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
            // Else it is of an older key, or of one who has left, or it was to be sent anew.
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
            let wait = FIRST_WAIT.saturating_mul(1 << share.failures.min(16)).min(LONGEST_WAIT);
            share.failures = share.failures.saturating_add(1);
            // So that many who lost the same server do not come back at the same instant.
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

    /// The keys that came into use since it was last asked.
    pub(super) fn take_used(&mut self) -> Vec<(u8, MediaKey)> {
        std::mem::take(&mut self.used)
    }

    /// The key that our media are encrypted with.
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
                until: now.deadline(SLOW_SENDS + self.config.use_after),
                unanswered: self.peers.keys().cloned().collect(),
            });
        } else {
            self.begin_use();
        }
    }

    /// Where everybody's first send is answered, the delay begins.
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
