//! The keys of others: which are taken, which wait, and which are rejected.

use super::*;

#[test]
fn a_key_is_reported_once() {
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

/// The index is the same, and each says when it was sent.
#[test]
fn an_older_key_replaces_no_newer_one() {
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
fn a_key_waits_for_its_member() {
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

/// Also if the device is the same user's.
#[test]
fn a_key_from_another_device_is_rejected() {
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

/// Older Element Call clients send no member id.
#[test]
fn the_device_names_the_member_without_an_id() {
    let mut story = Story::with(&["a"]);
    story.told.clear();
    let without =
        KeyMessage { member_id: None, claimed_device: Some("D-a".to_owned()), ..message("", 0, 1) };
    story.receives(&sender("a"), without);
    assert_eq!(story.told, ["a 0=1"]);
}

#[test]
fn a_key_waits_for_trust_in_its_device() {
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

/// It was gone to us alone, and will not send its keys again.
#[test]
fn a_returning_member_keeps_its_earlier_keys() {
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

/// It does not count as rejected either.
#[test]
fn a_message_for_another_room_is_ignored() {
    let mut story = Story::with(&["a"]);
    story.told.clear();
    let room_id = owned_room_id!("!other:hs");
    story.receives(&sender("a"), KeyMessage { room_id, ..message("m-a", 0, 1) });
    assert_eq!(story.told, [""; 0]);
    story.expect_discards(&[]);
}

/// Nobody pushes out the messages of a user who has fewer.
#[test]
fn waiting_messages_are_bounded_for_each_user() {
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

/// The newest ones are kept.
#[test]
fn one_member_has_16_keys() {
    let mut story = Story::with(&["a"]);
    for n in 0..=255 {
        story.receives(&sender("a"), message("m-a", n, n));
    }
    let all = story.keys.all();
    assert_eq!(all.len(), 2 + 16);
    assert_eq!(words(&all[2]), "a 240=240");
}
