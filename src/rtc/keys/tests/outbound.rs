//! Our own key: when there is another one, who is sent it, and when it is used.

use super::*;

/// It is sent to all.
#[test]
fn the_first_key_is_used_at_once() {
    let mut story = Story::with(&["a", "b"]);
    story.expect(&["0 to a b"], &["use 0"]);
    story.update();
    story.at(3_000);
    story.expect(&[], &[]);
}

/// The first diagram of the proposal.
#[test]
fn leaves_during_the_delay_make_one_rotation() {
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
fn a_join_after_the_grace_makes_a_key() {
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

/// Nobody has the key in use, so nobody is waited for.
#[test]
fn the_first_to_join_hears_everything() {
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
fn failed_sends_are_retried_for_those_devices_alone() {
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
fn a_device_change_retries_at_once() {
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

/// A member who has left gets nothing more.
#[test]
fn a_leaver_without_the_key_rotates_nothing() {
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
fn another_member_id_is_a_leave_and_join() {
    let mut story = Story::with(&["a", "b"]);
    story.at(100);
    story.expect(&["0 to a b"], &["use 0"]);
    story.peers.remove(&participant("a"));
    let again = participant_as("a", "m-again");
    story.peers.insert(again.clone(), Peer::new(again, 1, Dialect::Msc4143));
    story.update();
    story.expect(&["1 to a b"], &[]);
}

/// The member is back under the same id.
#[test]
fn a_later_since_is_a_leave_and_join() {
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
fn our_return_sends_the_key_to_all() {
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

/// The others are still heard.
#[test]
fn our_next_member_has_another_key() {
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
fn nothing_is_sent_before_our_membership_is_seen() {
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

/// Or without a limit, if that is wanted.
#[test]
fn a_key_is_used_for_an_hour() {
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

/// Or after 10 s.
#[test]
fn the_delay_begins_with_the_last_answer() {
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
fn a_leaver_is_not_waited_for() {
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

/// The dialect is the one that the peer reads now.
#[test]
fn a_key_goes_in_the_peers_dialect() {
    let mut story = Story::with(&[]);
    story.broken.insert(participant("a"), KeySendFailure::NotSent);
    story.joins("a");
    story.peers.get_mut(&participant("a")).unwrap().reads = Dialect::ElementCall;
    story.is_slow = true;
    story.update();
    story.at(5);
    assert_eq!(story.unanswered[0].0.to, [(participant("a"), Dialect::ElementCall)]);
}

/// This one does not, whatever its member id.
#[test]
fn our_other_devices_get_the_key() {
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
fn settings_are_clamped_to_their_range() {
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
fn the_policy_decides_which_devices_are_trusted() {
    use Verification::{
        Unproven, UnsignedDevice, UnverifiedIdentity, VerificationViolation, Verified,
    };
    let all = [Verified, UnverifiedIdentity, VerificationViolation, UnsignedDevice, Unproven];
    let allowed = |policy: DevicePolicy| all.map(|it| policy.allows(it));
    assert_eq!(allowed(DevicePolicy::Any), [true, true, true, true, false]);
    assert_eq!(allowed(DevicePolicy::CrossSigned), [true, true, false, false, false]);
    assert_eq!(allowed(DevicePolicy::Verified), [true, false, false, false, false]);
}
