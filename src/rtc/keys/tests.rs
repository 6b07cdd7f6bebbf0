//! Keys in simulated time: the proposal's two diagrams as stories of steps, what goes wrong, and a model in
//! which exactly those who are there ever get a key.

mod inbound;
mod messages;
mod outbound;
mod simulation;

use std::collections::{BTreeMap, BTreeSet};

use ruma::{owned_room_id, user_id};
use serde_json::{Value, json};

use super::*;
use crate::{
    event::{Encryption, EncryptionDetails},
    map::{Limits, ReceivedVia},
    rtc::Roster,
    testing::{ALICE, ManualClock, debug, event, secs, start},
    view::{Arrival, Delivery, EphemeralMaps},
};

const ROOM: &str = "!room:hs";

fn participant(name: &str) -> Participant {
    participant_as(name, &format!("m-{name}"))
}

fn participant_as(name: &str, member_id: &str) -> Participant {
    let user_id = UserId::parse(format!("@{name}:hs")).unwrap();
    Participant::new(user_id, member_id, format!("D-{name}"))
}

fn peer(name: &str) -> Peer {
    Peer::new(participant(name), 0, Dialect::Msc4143)
}

/// Random bytes that are not: each key is another number.
fn dice() -> RandomBytes {
    let mut next = 0_u8;
    Box::new(move |bytes| {
        next = next.wrapping_add(1);
        bytes.fill(next);
    })
}

/// Us, in a session with others, as time passes. Sends are answered at once unless told.
struct Story {
    began: Moment,
    now: Moment,
    keys: KeyExchange,
    peers: BTreeMap<Participant, Peer>,
    /// Who cannot be sent anything, and how that is told.
    broken: BTreeMap<Participant, KeySendFailure>,
    /// Whether answers are held back.
    is_slow: bool,
    unanswered: Vec<(Sending, BTreeMap<Participant, KeySendFailure>)>,
    /// Who has which key, and who may have.
    has: BTreeMap<u8, BTreeSet<Participant>>,
    may_have: BTreeMap<u8, BTreeSet<Participant>>,
    /// What was sent to whom, since the test last looked.
    sent: Vec<String>,
    /// What the cryptor was told, since the test last looked.
    told: Vec<String>,
}

impl Story {
    fn with(names: &[&str]) -> Self {
        Self::configured(KeyConfig::default(), names)
    }

    fn configured(config: KeyConfig, names: &[&str]) -> Self {
        let room_id = owned_room_id!("!room:hs");
        let keys = KeyExchange::new(room_id, participant("us"), config, dice(), 7);
        let mut story = Self {
            began: start(),
            now: start(),
            keys,
            peers: BTreeMap::new(),
            broken: BTreeMap::new(),
            is_slow: false,
            unanswered: Vec::new(),
            has: BTreeMap::new(),
            may_have: BTreeMap::new(),
            sent: Vec::new(),
            told: Vec::new(),
        };
        for name in names {
            story.peers.insert(participant(name), peer(name));
        }
        story.update();
        story
    }

    fn update(&mut self) {
        let all = self.peers.values().cloned().chain([peer("us")]);
        self.keys.handle_peers(self.now, Some(0), all);
        self.pump();
    }

    fn joins(&mut self, name: &str) {
        self.peers.insert(participant(name), peer(name));
        self.update();
    }

    fn leaves(&mut self, name: &str) {
        self.peers.remove(&participant(name)).unwrap();
        self.update();
    }

    /// Lets time pass until so many seconds after the start, from deadline to deadline.
    fn at(&mut self, seconds: u64) {
        let end = self.began.advanced(secs(seconds));
        loop {
            let deadline = self.keys.next_deadline();
            let Some(left) = deadline.map(|it| it.left(self.now)) else { break };
            if left > end.since(self.now) {
                break;
            }
            // It is due: else this would not end.
            self.now = self.now.advanced(left);
            self.pump();
            assert!(
                self.keys.next_deadline() != deadline,
                "a deadline that passed and changed nothing"
            );
        }
        self.now = end;
        self.pump();
    }

    fn pump(&mut self) {
        while let Some(sending) = self.keys.poll_send(self.now) {
            let names: Vec<_> = sending.to.iter().map(|(to, _)| to.user_id.localpart()).collect();
            self.sent.push(format!("{} to {}", sending.index, names.join(" ")));
            for (to, _) in &sending.to {
                assert!(self.peers.contains_key(to), "{to:?} is not there");
                let failure = self.broken.get(to);
                if failure != Some(&KeySendFailure::NotSent) {
                    self.may_have.entry(sending.index).or_default().insert(to.clone());
                }
                if failure.is_none() {
                    self.has.entry(sending.index).or_default().insert(to.clone());
                }
            }
            self.unanswered.push((sending, self.broken.clone()));
        }
        if !self.is_slow {
            self.answer();
        }
        while let Some(change) = self.keys.poll_change(self.now) {
            self.told.push(words(&change));
        }
    }

    fn answer(&mut self) {
        for (sending, failures) in std::mem::take(&mut self.unanswered) {
            self.keys.handle_sent(self.now, sending.id, &failures);
        }
    }

    /// What was sent and told since the last look.
    #[track_caller]
    fn expect(&mut self, sent: &[&str], told: &[&str]) {
        assert_eq!(self.sent, sent, "sent");
        assert_eq!(self.told, told, "told");
        (self.sent, self.told) = Default::default();
    }

    /// A message with this key.
    fn receives(&mut self, from: &Sender, message: KeyMessage) {
        self.keys.handle_message(self.now, from.clone(), message);
        self.pump();
    }

    #[track_caller]
    fn expect_discards(&self, reasons: &[&str]) {
        let discards = self.keys.discards();
        let last: Vec<_> = discards.last.iter().map(|it| it.reason.to_string()).collect();
        assert_eq!(last, reasons);
        assert_eq!(discards.total, reasons.len() as u64);
    }
}

fn words(change: &KeyChange) -> String {
    match change {
        KeyChange::Reset => "reset".to_owned(),
        KeyChange::Own { participant, index, key } => {
            assert_eq!(participant.user_id, "@us:hs");
            assert_eq!(key.as_bytes().len(), MediaKey::LENGTH);
            format!("use {index}")
        }
        KeyChange::Peer { participant, index, key } => {
            format!("{} {index}={}", participant.user_id.localpart(), key.as_bytes()[0])
        }
        KeyChange::Gone { participant } => format!("{} gone", participant.user_id.localpart()),
    }
}

fn sender(name: &str) -> Sender {
    let Participant { user_id, device_id, .. } = participant(name);
    Sender::new(user_id, device_id, format!("curve-{name}"), Verification::UnverifiedIdentity)
}

fn message(member_id: &str, index: u8, byte: u8) -> KeyMessage {
    KeyMessage {
        room_id: owned_room_id!("!room:hs"),
        member_id: Some(member_id.to_owned()),
        claimed_device: None,
        index,
        key: MediaKey::new(Zeroizing::new(vec![byte; 32])),
        sent_ms: None,
    }
}
