//! Keys in simulated time: the proposal's two diagrams as stories of steps, what goes wrong, and a
//! model in which exactly those who are there ever get a key.

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

#[test]
fn the_first_key_is_used_at_once_and_sent_to_all() {
    let mut story = Story::with(&["a", "b"]);
    story.expect(&["0 to a b"], &["use 0"]);
    story.update();
    story.at(3_000);
    story.expect(&[], &[]);
}

/// The first diagram of the proposal.
#[test]
fn leaves_during_the_delay_are_gathered_into_one_rotation_at_its_end() {
    let mut story = Story::with(&["a", "b", "c", "d"]);
    story.at(100);
    story.expect(&["0 to a b c d"], &["use 0"]);

    story.leaves("a");
    story.expect(&["1 to b c d"], &[]);
    story.at(102);
    story.leaves("b");
    story.at(104);
    story.leaves("c");
    story.expect(&[], &[]);
    story.at(105);
    story.expect(&["2 to d"], &["use 1"]);
    story.at(109);
    story.expect(&[], &[]);
    story.at(110);
    story.expect(&[], &["use 2"]);
    story.at(1_000);
    story.expect(&[], &[]);
}

/// The second diagram of the proposal.
#[test]
fn who_joins_within_the_grace_gets_the_same_key_and_who_joins_later_makes_a_new_one() {
    let mut story = Story::with(&["before"]);
    story.at(100);
    story.expect(&["0 to before"], &["use 0"]);

    story.joins("a");
    story.expect(&["1 to a before"], &[]);
    story.at(102);
    story.joins("b");
    story.expect(&["1 to b"], &[]);
    story.at(105);
    story.expect(&[], &["use 1"]);
    story.at(107);
    story.joins("c");
    story.expect(&["1 to c"], &[]);
    story.at(111);
    story.expect(&[], &[]);
    story.joins("d");
    story.expect(&["2 to a b before c d"], &[]);
    story.at(116);
    story.expect(&[], &["use 2"]);
}

#[test]
fn who_joins_one_who_was_alone_hears_them_from_the_start() {
    let mut story = Story::with(&[]);
    story.expect(&[], &["use 0"]);
    story.at(100);
    // Nothing that was said before can be read, and nobody has to wait.
    story.joins("a");
    story.expect(&["1 to a"], &["use 1"]);
    // The last one left: the same.
    story.at(200);
    story.leaves("a");
    story.expect(&[], &["use 2"]);
}

#[test]
fn what_could_not_be_sent_is_tried_again_for_those_devices_alone() {
    let mut story = Story::with(&[]);
    story.broken.insert(participant("b"), KeySendFailure::Unknown);
    story.joins("a");
    story.joins("b");
    story.expect(&["0 to a", "0 to b"], &["use 0"]);
    story.at(60);
    // After about 1, 2, 4, 8, 16 and 32 s.
    assert!((5..=6).contains(&story.sent.len()), "{:?}", story.sent);
    assert!(story.sent.iter().all(|sent| sent == "0 to b"), "{:?}", story.sent);
    story.sent.clear();
    story.at(600);
    assert!((9..15).contains(&story.sent.len()), "{:?}", story.sent);
    story.sent.clear();

    story.broken.clear();
    story.at(660);
    story.expect(&["0 to b"], &[]);
    story.at(3_000);
    story.expect(&[], &[]);
}

#[test]
fn news_of_a_device_is_a_reason_to_try_again_now() {
    let mut story = Story::with(&[]);
    story.broken.insert(participant("a"), KeySendFailure::NotSent);
    story.joins("a");
    story.at(100);
    story.sent.clear();
    story.keys.handle_devices_change(user_id!("@b:hs"));
    story.pump();
    story.expect(&[], &["use 0"]);
    story.broken.clear();
    story.keys.handle_devices_change(user_id!("@a:hs"));
    story.pump();
    story.expect(&["0 to a"], &[]);
}

#[test]
fn who_has_left_gets_nothing_more_and_who_never_had_the_key_leaves_it_as_it_is() {
    let mut story = Story::with(&[]);
    story.broken.insert(participant("b"), KeySendFailure::NotSent);
    story.joins("a");
    story.joins("b");
    story.expect(&["0 to a", "0 to b"], &["use 0"]);
    story.leaves("b");
    story.at(600);
    story.expect(&[], &[]);

    // One that may have it is another matter.
    story.broken.insert(participant("c"), KeySendFailure::Unknown);
    story.joins("c");
    story.expect(&["1 to a c"], &[]);
    story.leaves("c");
    story.at(605);
    story.expect(&["2 to a"], &["use 1"]);
}

#[test]
fn one_who_is_back_as_another_member_has_left_and_joined() {
    let mut story = Story::with(&["a", "b"]);
    story.at(100);
    story.expect(&["0 to a b"], &["use 0"]);
    story.peers.remove(&participant("a"));
    let again = participant_as("a", "m-again");
    story.peers.insert(again.clone(), Peer::new(again, 1, Dialect::Msc4143));
    story.update();
    story.expect(&["1 to a b"], &[]);
}

#[test]
fn one_who_is_back_as_the_same_member_has_left_and_joined_too() {
    let mut story = Story::with(&["a", "b"]);
    story.at(100);
    story.expect(&["0 to a b"], &["use 0"]);
    story.peers.get_mut(&participant("a")).unwrap().since_ms = 5;
    story.update();
    story.expect(&["1 to a b"], &[]);
    story.at(200);
    story.expect(&[], &["use 1"]);
    // That it was there even before is no news of that kind.
    story.peers.get_mut(&participant("a")).unwrap().since_ms = 3;
    story.update();
    story.expect(&[], &[]);
    story.peers.get_mut(&participant("a")).unwrap().since_ms = 4;
    story.update();
    story.expect(&["2 to a b"], &[]);
}

#[test]
fn when_we_are_back_all_are_sent_the_key_again() {
    let mut story = Story::with(&["a"]);
    story.at(100);
    story.expect(&["0 to a"], &["use 0"]);
    story.keys.handle_peers(story.now, None, story.peers.values().cloned());
    story.pump();
    story.expect(&[], &[]);
    story.update();
    story.expect(&["0 to a"], &[]);
    // Also where it is only seen that we are there anew.
    for (since_ms, sent) in [(5, &["0 to a"][..]), (5, &[]), (4, &[])] {
        story.keys.handle_peers(story.now, Some(since_ms), story.peers.values().cloned());
        story.pump();
        story.expect(sent, &[]);
    }
    // Joining at first is not coming back.
    let mut story = Story::with(&["a"]);
    story.update();
    story.expect(&["0 to a"], &["use 0"]);
}

#[test]
fn as_another_member_we_have_another_key_and_the_others_are_still_heard() {
    let mut story = Story::with(&["a", "b"]);
    story.receives(&sender("a"), message("m-a", 0, 1));
    story.at(100);
    story.leaves("b");
    story.expect(&["0 to a b", "1 to a"], &["use 0", "a 0=1"]);
    story.keys.handle_joined_as("m-again");
    story.keys.handle_peers(story.now, None, story.peers.values().cloned());
    story.pump();
    // Nobody who would see us has a key of that member.
    story.expect(&[], &["use 2"]);
    let all: Vec<_> = story.keys.all().iter().map(words).collect();
    assert_eq!(all, ["reset", "use 2", "a 0=1"]);
    assert_eq!(story.keys.own().member_id, "m-again");
    story.keys.handle_peers(story.now, Some(7), story.peers.values().cloned());
    story.pump();
    story.expect(&["2 to a"], &[]);
    story.at(1_000);
    story.expect(&[], &[]);
}

#[test]
fn nothing_is_sent_before_we_are_seen_to_be_there() {
    let mut story = Story::with(&[]);
    story.keys = KeyExchange::new(
        owned_room_id!("!room:hs"),
        participant("us"),
        KeyConfig::default(),
        dice(),
        7,
    );
    story.told.clear();
    story.peers.insert(participant("a"), peer("a"));
    story.keys.handle_peers(story.now, None, story.peers.values().cloned());
    story.at(100);
    story.expect(&[], &["use 0"]);
    story.update();
    story.expect(&["0 to a"], &[]);
}

#[test]
fn a_key_is_used_for_an_hour_at_most_and_forever_if_that_is_wanted() {
    let mut story = Story::with(&["a"]);
    story.expect(&["0 to a"], &["use 0"]);
    story.at(3_599);
    story.expect(&[], &[]);
    story.at(3_600);
    story.expect(&["1 to a"], &[]);
    story.at(7_300);
    story.expect(&["2 to a"], &["use 1", "use 2"]);

    let mut story = Story::configured(KeyConfig::default().with_rotate_every(None), &["a"]);
    story.expect(&["0 to a"], &["use 0"]);
    story.at(1_000_000);
    story.expect(&[], &[]);
}

#[test]
fn the_index_begins_anew_after_255() {
    let config = KeyConfig::default().with_rotate_every(Some(secs(60)));
    let mut story = Story::configured(config, &["a"]);
    story.at(60 * 257 + 10);
    assert_eq!(story.told[255..], ["use 255", "use 0", "use 1"]);
}

#[test]
fn the_delay_begins_when_the_sends_are_answered_and_no_later_than_after_10_s() {
    let mut story = Story::with(&["a", "b", "c"]);
    story.at(100);
    story.is_slow = true;
    story.leaves("a");
    story.at(107);
    story.expect(&["0 to a b c", "1 to b c"], &["use 0"]);
    story.answer();
    story.at(111);
    story.expect(&[], &[]);
    story.at(112);
    story.expect(&[], &["use 1"]);

    // Nobody answers: who has left is locked out all the same.
    story.leaves("b");
    story.at(126);
    story.expect(&["2 to c"], &[]);
    story.at(127);
    story.expect(&[], &["use 2"]);
}

#[test]
fn who_leaves_while_a_key_is_on_its_way_is_not_waited_for() {
    let mut story = Story::with(&["a", "b", "c"]);
    story.at(100);
    story.is_slow = true;
    story.leaves("a");
    story.at(102);
    story.leaves("c");
    story.at(103);
    story.expect(&["0 to a b c", "1 to b c"], &["use 0"]);
    story.answer();
    story.at(107);
    story.expect(&[], &[]);
    story.at(108);
    story.expect(&["2 to b"], &["use 1"]);
}

#[test]
fn a_key_goes_in_the_dialect_that_is_read_now() {
    let mut story = Story::with(&[]);
    story.broken.insert(participant("a"), KeySendFailure::NotSent);
    story.joins("a");
    story.peers.get_mut(&participant("a")).unwrap().reads = Dialect::ElementCall;
    story.is_slow = true;
    story.update();
    story.at(5);
    assert_eq!(story.unanswered[0].0.to, [(participant("a"), Dialect::ElementCall)]);
}

#[test]
fn another_device_of_ours_gets_the_key_and_this_one_does_not_whatever_its_member_id() {
    let mut story = Story::with(&[]);
    let us = participant("us");
    let other = Participant::new(us.user_id.clone(), "m-other", "D-other");
    let stale = Participant::new(us.user_id.clone(), "m-stale", us.device_id.clone());
    for participant in [other, stale] {
        story.peers.insert(participant.clone(), Peer::new(participant, 0, Dialect::Msc4143));
    }
    story.update();
    story.expect(&["0 to us"], &["use 0"]);
}

#[test]
fn what_is_out_of_range_becomes_the_nearest_that_is_not() {
    let config = KeyConfig::default()
        .with_use_after(secs(100))
        .with_grace(secs(1_000))
        .with_rotate_every(Some(secs(1)));
    assert_eq!(config.use_after(), secs(30));
    assert_eq!(config.grace(), secs(300));
    assert_eq!(config.rotate_every(), Some(secs(60)));
    assert_eq!(config.devices(), DevicePolicy::CrossSigned);
}

#[test]
fn only_devices_that_the_policy_trusts_are_let_through() {
    use Verification::{
        Unproven, UnsignedDevice, UnverifiedIdentity, VerificationViolation, Verified,
    };
    let all = [Verified, UnverifiedIdentity, VerificationViolation, UnsignedDevice, Unproven];
    let allowed = |policy: DevicePolicy| all.map(|it| policy.allows(it));
    assert_eq!(allowed(DevicePolicy::Any), [true, true, true, true, false]);
    assert_eq!(allowed(DevicePolicy::CrossSigned), [true, true, false, false, false]);
    assert_eq!(allowed(DevicePolicy::Verified), [true, false, false, false, false]);
}

#[test]
fn a_key_of_a_member_is_taken_and_told_once() {
    let mut story = Story::with(&["a"]);
    story.expect(&["0 to a"], &["use 0"]);
    story.receives(&sender("a"), message("m-a", 3, 1));
    story.receives(&sender("a"), message("m-a", 3, 1));
    story.expect(&[], &["a 3=1"]);
    // The same index again: a newer key replaces it.
    story.receives(&sender("a"), message("m-a", 3, 2));
    story.receives(&sender("a"), message("m-a", 4, 3));
    story.expect(&[], &["a 3=2", "a 4=3"]);
    let all: Vec<_> = story.keys.all().iter().map(words).collect();
    assert_eq!(all, ["reset", "use 0", "a 3=2", "a 4=3"]);
    story.leaves("a");
    story.expect(&[], &["a gone", "use 1"]);
    story.expect_discards(&[]);
}

#[test]
fn a_key_that_says_that_it_is_older_does_not_replace_one_of_the_same_index() {
    let mut story = Story::with(&["a"]);
    story.told.clear();
    let sent = |ms, byte| KeyMessage { sent_ms: Some(ms), ..message("m-a", 0, byte) };
    story.receives(&sender("a"), sent(20, 1));
    story.receives(&sender("a"), sent(10, 2));
    assert_eq!(story.told, ["a 0=1"]);
    story.receives(&sender("a"), sent(20, 3));
    assert_eq!(story.told, ["a 0=1", "a 0=3"]);
    story.expect_discards(&["outdated"]);
}

#[test]
fn a_key_that_comes_before_its_member_waits_for_it() {
    let mut story = Story::with(&[]);
    story.receives(&sender("a"), message("m-a", 0, 1));
    story.receives(&sender("a"), message("m-a", 1, 2));
    story.at(599);
    story.expect(&[], &["use 0"]);
    story.joins("a");
    story.expect(&["1 to a"], &["a 0=1", "a 1=2", "use 1"]);

    story.receives(&sender("b"), message("m-b", 0, 1));
    story.receives(&sender("b"), message("m-a", 0, 1));
    story.at(1_198);
    story.expect_discards(&[]);
    story.at(1_199);
    story.expect_discards(&["no member", "other user"]);
    story.joins("b");
    assert!(!story.told.iter().any(|told| told.starts_with('b')), "{:?}", story.told);
}

#[test]
fn a_key_from_another_device_of_the_same_user_is_not_taken() {
    let mut story = Story::with(&["a"]);
    story.told.clear();
    let mut other = sender("a");
    other.device_id = "D-other".into();
    story.receives(&other, message("m-a", 0, 1));
    // Whatever it claims.
    let claimed = Some("D-a".to_owned());
    story.receives(&other, KeyMessage { claimed_device: claimed, ..message("m-a", 0, 1) });
    let claimed = Some("D-other".to_owned());
    story.receives(&sender("a"), KeyMessage { claimed_device: claimed, ..message("m-a", 0, 1) });
    // Nor one that came before the member did.
    let mut early = sender("b");
    early.device_id = "D-other".into();
    story.receives(&early, message("m-b", 0, 1));
    story.joins("b");
    assert_eq!(story.told, [""; 0]);
    story.expect_discards(&["other device"; 4]);
}

#[test]
fn a_message_without_a_member_id_is_of_the_member_of_its_device() {
    let mut story = Story::with(&["a"]);
    story.told.clear();
    let without =
        KeyMessage { member_id: None, claimed_device: Some("D-a".to_owned()), ..message("", 0, 1) };
    story.receives(&sender("a"), without);
    assert_eq!(story.told, ["a 0=1"]);
}

#[test]
fn a_key_from_a_device_that_is_not_trusted_waits_until_it_is() {
    let mut story = Story::with(&["a"]);
    story.told.clear();
    let mut unsigned = sender("a");
    unsigned.verification = Verification::UnsignedDevice;
    story.receives(&unsigned, message("m-a", 0, 1));
    assert_eq!(story.keys.doubtful(), [unsigned.clone()]);
    // Another device of that name is not the one that sent it.
    let other = Sender { curve25519: "other".to_owned(), ..sender("a") };
    story.keys.handle_verification(&other);
    story.pump();
    assert_eq!(story.told, [""; 0]);
    story.keys.handle_verification(&sender("a"));
    story.pump();
    assert_eq!(story.told, ["a 0=1"]);
    assert_eq!(story.keys.doubtful(), []);

    story.receives(&unsigned, message("m-a", 1, 1));
    story.at(600);
    story.expect_discards(&["not trusted"]);

    let any = KeyConfig::default().with_devices(DevicePolicy::Any);
    let mut story = Story::configured(any, &["a"]);
    story.receives(&unsigned, message("m-a", 0, 1));
    assert_eq!(story.told, ["use 0", "a 0=1"]);
}

#[test]
fn one_who_was_gone_only_to_us_is_heard_again_when_it_is_back() {
    let mut story = Story::with(&["a", "b"]);
    story.receives(&sender("a"), message("m-a", 0, 1));
    story.told.clear();
    story.leaves("a");
    assert_eq!(story.told, ["a gone"]);
    story.at(100);
    story.told.clear();
    story.joins("a");
    assert_eq!(story.told, ["a 0=1"]);
    // If it does not come back, that is no message that was not taken.
    story.leaves("a");
    story.at(3_000);
    story.expect_discards(&[]);
}

#[test]
fn a_message_of_another_room_is_not_ours_and_nothing_that_was_discarded() {
    let mut story = Story::with(&["a"]);
    story.told.clear();
    let room_id = owned_room_id!("!other:hs");
    story.receives(&sender("a"), KeyMessage { room_id, ..message("m-a", 0, 1) });
    assert_eq!(story.told, [""; 0]);
    story.expect_discards(&[]);
}

#[test]
fn what_waits_is_bounded_and_nobody_pushes_out_another() {
    let mut story = Story::with(&[]);
    story.receives(&sender("quiet"), message("m-quiet", 0, 1));
    for n in 0..100 {
        story.receives(&sender("loud"), message("m-loud", n, n));
    }
    assert_eq!(story.keys.discards().total, 100 - 32);
    for name in 0..100 {
        for n in 0..32 {
            story.receives(&sender(&format!("x{name}")), message("m", n, n));
        }
    }
    assert_eq!(story.keys.discards().total, 1 + 100 + 3_200 - 1_024);
    assert_eq!(story.keys.discards().last.len(), 32);
    story.told.clear();
    story.joins("quiet");
    story.joins("loud");
    let quiet = story.told.iter().filter(|told| told.starts_with("quiet")).count();
    let loud = story.told.iter().filter(|told| told.starts_with("loud")).count();
    assert_eq!(quiet, 1);
    // Cut to what everybody has.
    assert!((5..16).contains(&loud), "{loud}");
}

#[test]
fn of_one_member_the_16_newest_keys_are_kept() {
    let mut story = Story::with(&["a"]);
    for n in 0..=255 {
        story.receives(&sender("a"), message("m-a", n, n));
    }
    let all = story.keys.all();
    assert_eq!(all.len(), 2 + 16);
    assert_eq!(words(&all[2]), "a 240=240");
}

fn content(value: Value) -> serde_json::Map<String, Value> {
    match value {
        Value::Object(content) => content,
        other => panic!("{other}"),
    }
}

fn base64_of(length: usize) -> String {
    Base64::<Standard, _>::new(vec![7; length]).encode()
}

#[test]
fn what_is_written_in_a_dialect_is_read_in_it() {
    let room_id = owned_room_id!("!room:hs");
    let key = MediaKey::new(Zeroizing::new(vec![7; 32]));
    let us = participant("us");
    let write = |dialect| message::write(dialect, &room_id, &us, (9, &key), 17).unwrap();
    let (event_type, text) = write(Dialect::Msc4143);
    assert_eq!(event_type, "org.matrix.msc4143.rtc.encryption_key");
    let written: Value = serde_json::from_str(&text).unwrap();
    assert_eq!(
        written,
        json!({
            "room_id": ROOM,
            "member_id": "m-us",
            "media_key": { "index": 9, "key": base64_of(32) },
            "format": 0,
        })
    );
    let (event_type, text) = write(Dialect::ElementCall);
    assert_eq!(event_type, "io.element.call.encryption_keys");
    let written: Value = serde_json::from_str(&text).unwrap();
    assert_eq!(
        written,
        json!({
            "keys": { "index": 9, "key": base64_of(32) + "=" },
            "room_id": ROOM,
            "member": { "id": "m-us", "claimed_device_id": "D-us" },
            "session": { "application": "m.call", "call_id": "", "scope": "m.room" },
            "sent_ts": 17,
        })
    );
    for dialect in [Dialect::Msc4143, Dialect::ElementCall] {
        let (event_type, text) = write(dialect);
        assert_eq!(KeyMessage::dialect_of(event_type), Some(dialect));
        let read = KeyMessage::read(dialect, serde_json::from_str(&text).unwrap()).unwrap();
        assert_eq!(read.room_id, room_id);
        assert_eq!(read.member_id.as_deref(), Some("m-us"));
        assert_eq!(read.index, 9);
        assert_eq!(read.key.as_bytes(), [7; 32]);
    }
    assert_eq!(KeyMessage::dialect_of("m.rtc.encryption_key"), Some(Dialect::Msc4143));
    assert_eq!(KeyMessage::dialect_of("m.room_key"), None);
}

#[test]
fn a_message_that_is_not_as_it_has_to_be_is_not_read_and_says_which_field_it_was() {
    let right = json!({
        "room_id": ROOM,
        "member_id": "m",
        "media_key": { "index": 255, "key": base64_of(32) },
        "format": 0,
    });
    let read = |pointer: &str, value: Value| {
        let mut content_of = right.clone();
        match content_of.pointer_mut(pointer) {
            Some(place) => *place = value,
            None => content_of = value,
        }
        KeyMessage::read(Dialect::Msc4143, content(content_of)).map(drop)
    };
    assert_eq!(read("/format", json!(0)), Ok(()));
    assert_eq!(read("/format", json!(1)), Err("format"));
    assert_eq!(read("/format", json!("0")), Err("format"));
    assert_eq!(read("/room_id", json!("room")), Err("room_id"));
    assert_eq!(read("/member_id", json!(1)), Err("member_id"));
    for index in [json!(256), json!(-1), json!(1.5), json!("1"), json!(null)] {
        assert_eq!(read("/media_key/index", index), Err("media_key.index"));
    }
    assert_eq!(read("/media_key/key", json!(base64_of(32) + "=")), Ok(()));
    for key in [json!(base64_of(16)), json!(base64_of(33)), json!("%"), json!(""), json!([7])] {
        assert_eq!(read("/media_key/key", key), Err("media_key.key"));
    }
    assert_eq!(read("-", json!({})), Err("media_key.key"));
}

#[test]
fn element_calls_keys_may_be_of_16_to_64_bytes() {
    let read = |key: String, member: Value| {
        let keys = json!({ "index": 1, "key": key });
        let message = json!({ "keys": keys, "member": member, "room_id": ROOM });
        KeyMessage::read(Dialect::ElementCall, content(message))
    };
    let member = json!({ "id": "m", "claimed_device_id": "D" });
    for length in [16, 32, 64] {
        let message = read(base64_of(length), member.clone()).unwrap();
        assert_eq!(message.key.as_bytes().len(), length);
        assert_eq!(message.claimed_device.as_deref(), Some("D"));
    }
    for length in [0, 15, 65] {
        assert_eq!(read(base64_of(length), member.clone()).map(drop), Err("keys.key"));
    }
    let without_id = read(base64_of(16), json!({ "claimed_device_id": "D" })).unwrap();
    assert_eq!(without_id.member_id, None);
    let error = read(base64_of(16), json!({ "id": "m" })).map(drop);
    assert_eq!(error, Err("member.claimed_device_id"));
}

#[test]
fn no_key_is_shown() {
    let mut story = Story::with(&["a"]);
    let message = message("m-a", 0, 251);
    let change =
        KeyChange::Own { participant: participant("us"), index: 0, key: message.key.clone() };
    story.is_slow = true;
    story.joins("b");
    let shown = [
        debug(&message),
        debug(&change),
        debug(&message.key),
        debug(&story.keys),
        debug(&story.unanswered),
    ]
    .concat();
    for secret in ["251", "fb", "[1, 1", "AQEB", "+/v7"] {
        assert!(!shown.contains(secret), "{secret} in {shown}");
    }
}

#[test]
fn the_livekit_identity_is_that_of_matrix_js_sdk() {
    let participant = Participant::new(user_id!("@alice:hs"), "m-1", "DEVICE\"é");
    assert_eq!(participant.livekit_identity(), "CzTP1d8SMurAYVhVOlWH0wJrl2Rj7Hw6Oi/KGp3Z9/U");
}

/// A session with one membership of this content, encrypted by alice's device, as it is proven or not;
/// and what the member is to us, in a session that speaks this dialect.
fn peers_of(content: Value, verification: Verification, dialect: Dialect) -> Vec<Peer> {
    let maps = EphemeralMaps::new(ManualClock::new(), Limits::default());
    let outer = event("$e").encrypted("s").ttl(600_000);
    let clear = event("$e").of_type("org.matrix.msc4143.rtc.member").with("/content", content);
    let alice = UserId::parse(ALICE).unwrap();
    let details = EncryptionDetails::new(alice, Some("D-alice".into()), verification);
    let encryption = match verification {
        Verification::Unproven => Encryption::ForeignSession(Arc::new(details)),
        _ => Encryption::Encrypted(Arc::new(details)),
    };
    maps.handle([Delivery {
        room_id: owned_room_id!("!room:hs"),
        received: start(),
        via: ReceivedVia::Section,
        arrivals: vec![Arrival::Decrypted { outer: outer.raw(), clear: clear.raw(), encryption }],
    }]);
    let mut roster = Roster::new();
    let slot = json!({
        "type": "m.rtc.slot",
        "state_key": "m.call#ROOM",
        "sender": ALICE,
        "event_id": "$slot",
        "content": {
            "status": "open",
            "application": { "type": "m.call" },
            "encryption": { "type": "m.per_member" },
        },
    });
    roster.handle_state_event(start(), &slot.to_string());
    roster.handle_snapshot(&maps.view().snapshot());
    roster.poll_changes(start());
    let session = roster.snapshot(start()).session("m.call#ROOM");
    assert_eq!(session.len() + session.candidates().count(), 1);
    session.members().filter_map(|member| Peer::of(member, dialect)).collect()
}

#[test]
fn a_member_whose_device_is_proven_is_a_peer_and_reads_what_its_membership_says() {
    let both = json!({
        "slot_id": "m.call#ROOM",
        "member": {
            "id": "m",
            "membership": "join",
            "user_id": ALICE,
            "device_id": "D-alice",
        },
        "application": { "type": "m.call" },
        "transports": { "published": [], "can_subscribe": [] },
        "versions": [],
        "sticky_key": "m",
        "msc4354_sticky_key": "m",
    });
    let mut msc4143 = both.clone();
    msc4143.as_object_mut().unwrap().remove("versions");
    let mut element_call = both.clone();
    element_call["member"].as_object_mut().unwrap().remove("membership");
    let reads = |content: &Value, session| {
        let peers = peers_of(content.clone(), Verification::UnsignedDevice, session);
        let participant = Participant::new(UserId::parse(ALICE).unwrap(), "m", "D-alice");
        assert_eq!(peers.len(), 1, "{content}");
        assert_eq!(peers[0].participant, participant);
        peers[0].reads
    };
    for session in [Dialect::Msc4143, Dialect::ElementCall] {
        assert_eq!(reads(&both, session), session);
        assert_eq!(reads(&msc4143, session), Dialect::Msc4143);
        assert_eq!(reads(&element_call, session), Dialect::ElementCall);
    }
    // What it claims, it may claim.
    assert_eq!(peers_of(both, Verification::Unproven, Dialect::Msc4143), []);
}

/// Joins, leaves and broken sends at random. At every moment each send goes only to who is there
/// (checked in `pump`); who has left never has a key that is in use 15 s later, and never gets one that
/// was made afterwards; and when all is quiet, all who are there, and nobody else, have the key in use.
#[test]
fn exactly_those_who_are_there_ever_get_keys() {
    for seed in 0..300 {
        model(seed);
    }
}

fn model(seed: u64) {
    let mut rng = fastrand::Rng::with_seed(seed);
    let mut story = Story::with(&[]);
    story.is_slow = true;
    let names = ["a", "b", "c", "d", "e", "f"];
    let mut left_at: BTreeMap<Participant, Moment> = BTreeMap::new();
    let mut in_use = 0;
    let mut seconds = 0;
    for step in 0..200 {
        let is_quiet = step >= 150;
        let name = names[rng.usize(..names.len())];
        let who = participant(name);
        match rng.u8(..6) {
            0 | 1 if !is_quiet && !story.peers.contains_key(&who) => {
                left_at.remove(&who);
                story.joins(name);
            }
            2 if !is_quiet && story.peers.contains_key(&who) => {
                left_at.insert(who, story.now);
                story.leaves(name);
            }
            3 if !is_quiet => {
                let failure =
                    if rng.bool() { KeySendFailure::NotSent } else { KeySendFailure::Unknown };
                story.broken.insert(who, failure);
            }
            _ => {
                story.broken.remove(&who);
            }
        }
        if is_quiet {
            story.broken.clear();
        }
        if is_quiet || rng.bool() {
            story.answer();
        }
        seconds += rng.u64(..4);
        story.at(seconds);
        for told in story.told.drain(..) {
            in_use = told.strip_prefix("use ").unwrap().parse().unwrap();
        }
        // Indices do not come round in so few steps.
        for (who, left_at) in &left_at {
            if story.now.since(*left_at) > secs(31) {
                let having = story.may_have.get(&in_use).is_some_and(|having| having.contains(who));
                assert!(!having, "seed {seed}: {who:?} can decrypt with {in_use}");
            }
        }
    }
    story.is_slow = false;
    story.answer();
    story.at(seconds + 100);
    let having = story.has.remove(&in_use).unwrap_or_default();
    let there: BTreeSet<_> = story.peers.keys().cloned().collect();
    assert!(having.is_superset(&there), "seed {seed}: {having:?} are not all of {there:?}");
    let may_have = story.may_have.remove(&in_use).unwrap_or_default();
    assert!(may_have.is_subset(&there), "seed {seed}: {may_have:?} are more than {there:?}");
}

/// Several who join and leave, each with its own view of that, over a network that takes its time, in
/// whichever order. In the end all who are there hear each other, and nobody who has left hears anybody.
#[test]
fn in_the_end_all_who_are_there_hear_each_other_and_nobody_else_does() {
    for seed in 0..200 {
        simulate(seed);
    }
}

enum InFlight {
    /// What somebody is shown of who is there.
    View(Vec<Peer>),
    Key(Sender, KeyMessage),
}

fn simulate(seed: u64) {
    let mut rng = fastrand::Rng::with_seed(seed);
    let mut now = start();
    let mut there: BTreeMap<String, (Peer, KeyExchange)> = BTreeMap::new();
    let mut gone: Vec<(Peer, KeyExchange)> = Vec::new();
    let mut in_flight: Vec<(Deadline, Participant, InFlight)> = Vec::new();
    let mut joins = 0;
    for step in 0..600 {
        if step < 120 && step % 3 == 0 {
            let name = ["a", "b", "c", "d", "e"][rng.usize(..5)];
            if let Some((peer, exchange)) = there.remove(name) {
                gone.push((peer, exchange));
            } else {
                joins += 1;
                let own = participant_as(name, &format!("m-{joins}"));
                let mut bytes = fastrand::Rng::with_seed(rng.u64(..));
                let dice: RandomBytes = Box::new(move |key| bytes.fill(key));
                let config = KeyConfig::default();
                let room_id = owned_room_id!("!room:hs");
                let exchange = KeyExchange::new(room_id, own.clone(), config, dice, joins);
                let peer = Peer::new(own, joins, Dialect::Msc4143);
                there.insert(name.to_owned(), (peer, exchange));
            }
            let view: Vec<_> = there.values().map(|(peer, _)| peer.clone()).collect();
            for (peer, _) in there.values() {
                // Views of one client come in their order; what is late is as good as one that is not.
                let at = now.deadline(Duration::from_millis(rng.u64(..900)));
                in_flight.push((at, peer.participant.clone(), InFlight::View(view.clone())));
            }
        }
        now = now.advanced(Duration::from_millis(1_000));
        in_flight.sort_by_key(|(at, ..)| *at);
        let (due, later): (Vec<_>, Vec<_>) =
            in_flight.drain(..).partition(|(at, ..)| at.is_over(now));
        in_flight = later;
        for (_, to, what) in due {
            // Also to who has left: it may have been on its way.
            let all = there.values_mut().chain(&mut gone);
            let Some((_, exchange)) = all.into_iter().find(|(peer, _)| peer.participant == to)
            else {
                continue;
            };
            match what {
                InFlight::View(view) => {
                    let own = view.iter().find(|peer| peer.participant == *exchange.own());
                    exchange.handle_peers(now, own.map(|own| own.since_ms), view.clone());
                }
                InFlight::Key(sender, message) => exchange.handle_message(now, sender, message),
            }
        }
        for (peer, exchange) in there.values_mut() {
            while let Some(Sending { id, index, key, to, .. }) = exchange.poll_send(now) {
                let mut failures = BTreeMap::new();
                for (to, _) in to {
                    if step < 400 && rng.u8(..4) == 0 {
                        failures.insert(to, KeySendFailure::Unknown);
                        continue;
                    }
                    let Participant { user_id, member_id, device_id } = peer.participant.clone();
                    let sender =
                        Sender::new(user_id, device_id, "", Verification::UnverifiedIdentity);
                    let message =
                        KeyMessage { index, key: key.clone(), ..message(&member_id, index, 0) };
                    let at = now.deadline(Duration::from_millis(rng.u64(..4_000)));
                    in_flight.push((at, to, InFlight::Key(sender, message)));
                }
                exchange.handle_sent(now, id, &failures);
            }
            while exchange.poll_change(now).is_some() {}
        }
    }
    for (peer, exchange) in there.values() {
        let (index, key) = exchange.outbound.in_use().unwrap();
        let hears = |other: &KeyExchange| {
            other.all().iter().any(|change| match change {
                KeyChange::Peer { participant, index: of, key: it } => {
                    *participant == peer.participant && *of == index && it.is_same(&key)
                }
                _ => false,
            })
        };
        let has = |other: &KeyExchange| {
            other
                .inbound
                .all()
                .any(|change| matches!(change, KeyChange::Peer { key: it, .. } if it.is_same(&key)))
        };
        for (other, listener) in there.values() {
            if other != peer {
                assert!(hears(listener), "seed {seed}: {other:?} does not hear {peer:?}");
            }
        }
        for (other, listener) in &gone {
            assert!(!has(listener), "seed {seed}: {other:?} still hears {peer:?}");
        }
    }
}
