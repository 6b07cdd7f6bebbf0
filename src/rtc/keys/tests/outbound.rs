//! Our own key: when there is another one, who is sent it, and when it is used.

use super::*;

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
