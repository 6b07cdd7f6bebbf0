//! Sending in plaintext.

use std::time::Duration;

use matrix_sdk_sticky::{PrepareError, RemovalReason, RoomSticky, SendError, Unsupported};
use serde_json::json;
use xtask::{api::encode, homeserver::Options};

use crate::{
    proxy::Proxy,
    support::{LONG, Person, TYPE, Watcher, presence, start, status},
};

const HOUR: Duration = Duration::from_secs(3_600);

/// Two who watch a room, and the first one's door to it.
async fn two_in(person: &Person, other: &Person) -> (Watcher, Watcher, RoomSticky) {
    let room = person.room_with(&[other]);
    let sender = Watcher::of(person, &[&room]).await;
    let other = Watcher::of(other, &[&room]).await;
    let door = sender.room(&room);
    (sender, other, door)
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_sent_is_seen_updated_and_removed_by_a_second_client() {
    let (alice, bob) = (Person::new("alice"), Person::new("bob"));
    let (mut alice, mut bob, room) = two_in(&alice, &bob).await;

    let sent = room.send(&presence("here")).with_sticky_key("k").await.unwrap();
    let entry = bob.added("k").await;
    assert_eq!(entry.event_id(), sent.event_id);
    assert_eq!((status(&entry), entry.sticky_duration()), ("here".into(), HOUR));
    assert_eq!(sent.sticky_duration, Some(HOUR));
    let raw: serde_json::Value = entry.content().unwrap();
    assert_eq!((&raw["sticky_key"], &raw["msc4354_sticky_key"]), (&json!("k"), &json!("k")));
    alice.added("k").await;

    room.send(&presence("away")).with_sticky_key("k").await.unwrap();
    assert_eq!(status(&bob.updated("k").await), "away");
    room.remove(TYPE, "k").await.unwrap();
    assert_eq!(bob.removed("k").await, RemovalReason::Removed);

    // Without a key it is an entry of its own.
    let unkeyed = room.send(&presence("note")).await.unwrap();
    bob.added(unkeyed.event_id.as_str()).await;
    bob.assert_silent();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_keeps_its_duration_unless_told_otherwise() {
    let (alice, bob) = (Person::new("alice"), Person::new("bob"));
    let (_alice, mut bob, room) = two_in(&alice, &bob).await;

    let told = room.send(&presence("1")).with_sticky_key("k").with_sticky_duration(LONG);
    assert_eq!(told.await.unwrap().sticky_duration, Some(LONG));
    let kept = room.send(&presence("2")).with_sticky_key("k").await.unwrap();
    assert_eq!(kept.sticky_duration, Some(LONG));
    let other = room.send(&presence("3")).with_sticky_key("other").await.unwrap();
    assert_eq!(other.sticky_duration, Some(HOUR));
    let removed = room.remove(TYPE, "k").await.unwrap();
    assert_eq!(removed.sticky_duration, Some(LONG), "a shorter one would lose to what it removes");
    bob.until_keys(&["other"]).await;

    let clamped = room.send(&presence("4")).with_sticky_key("far").with_sticky_duration(HOUR * 9);
    assert_eq!(clamped.await.unwrap().sticky_duration, Some(HOUR));
}

#[tokio::test(flavor = "multi_thread")]
async fn sends_of_one_key_keep_their_order_also_when_started_at_once() {
    let (alice, bob) = (Person::new("alice"), Person::new("bob"));
    let (_alice, mut bob, room) = two_in(&alice, &bob).await;
    let sends = (0..10).map(|n| {
        let sent = room.send(&presence(&n.to_string())).with_sticky_key("k");
        sent.into_future()
    });
    let sent = futures_util::future::join_all(sends).await;
    let mut times = Vec::new();
    for sent in sent {
        let event_id = sent.unwrap().event_id;
        let raw = alice_event(&alice, &room, event_id.as_str());
        times.push(raw["origin_server_ts"].as_u64().unwrap());
    }
    assert!(times.is_sorted_by(|a, b| a < b), "each in a millisecond of its own: {times:?}");
    while status(&bob.next("the last one").await.entry().clone()) != "9" {}
}

fn alice_event(alice: &Person, room: &RoomSticky, event_id: &str) -> serde_json::Value {
    alice.api.event(room.room_id().as_str(), event_id).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_send_whose_answers_are_lost_is_tried_again_as_the_same_and_makes_one_event() {
    let (alice, bob) = (Person::new("alice"), Person::new("bob"));
    let room = alice.room_with(&[&bob]);
    let proxy = Proxy::before(alice.url()).await;
    let sender = Watcher::with(alice.client_through(&proxy).await, &[&room]).await;
    let mut watcher = Watcher::of(&bob, &[&room]).await;

    proxy.lose_answers(2);
    let sent = sender.room(&room).send(&presence("here")).with_sticky_key("k").await.unwrap();
    let sends = proxy.sends();
    assert_eq!(sends.len(), 3, "two lost their answer: {sends:?}");
    assert!(sends.iter().all(|send| *send == sends[0]), "one transaction id: {sends:?}");

    let messages = format!("rooms/{}/messages?dir=b&limit=100", encode(room.as_str()));
    let history = alice.api.get(&messages).unwrap();
    let of_type = |event: &&serde_json::Value| event["type"] == TYPE;
    let events: Vec<_> = history["chunk"].as_array().unwrap().iter().filter(of_type).collect();
    let ids: Vec<_> = events.iter().map(|event| event["event_id"].as_str().unwrap()).collect();
    assert_eq!(ids, [sent.event_id.as_str()], "the server has one event");
    assert_eq!(watcher.added("k").await.event_id(), sent.event_id);
    alice.send(&room, "after", "", LONG);
    watcher.added("after").await;
    watcher.assert_silent();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_redaction_is_sticky_where_the_rooms_version_has_that() {
    let (alice, bob) = (Person::new("alice"), Person::new("bob"));
    let (mut alice_watch, mut bob_watch, room) = two_in(&alice, &bob).await;
    let sent = room.send(&presence("oops")).with_sticky_key("k").with_sticky_duration(LONG);
    let sent = sent.await.unwrap();
    bob_watch.added("k").await;
    // How long it is sticky is known from one's own map.
    alice_watch.added("k").await;
    let redaction = room.redact(sent.event_id).with_reason("wrong room").await.unwrap();
    assert_eq!(redaction.sticky_duration, Some(LONG), "as long as what it redacts");
    // Two things in whichever order: the entry leaves, and the redaction, which is a sticky event
    // without a key, is one of its own.
    let changes = bob_watch.until_keys(&[redaction.event_id.as_str()]).await;
    let why = changes.iter().find_map(|change| match change {
        matrix_sdk_sticky::EntryChange::Removed { reason, .. } => Some(*reason),
        _ => None,
    });
    assert_eq!(why, Some(RemovalReason::Redacted));

    let old = alice.room_of(&json!({ "preset": "public_chat", "room_version": "10" }));
    bob.join(&old);
    let alice = Watcher::of(&alice, &[&old]).await;
    let room = alice.room(&old);
    let sent = room.send(&presence("oops")).with_sticky_key("old").await.unwrap();
    bob_watch.next("the event of the old room").await;
    let redaction = room.redact(sent.event_id).await.unwrap();
    assert_eq!(redaction.sticky_duration, None);
}

#[tokio::test(flavor = "multi_thread")]
async fn in_an_encrypted_room_nothing_is_sent_without_a_base_client_and_the_error_says_how_to_get_one()
 {
    let (alice, bob) = (Person::new("alice"), Person::new("bob"));
    let room = alice.encrypted_room_with(&[&bob]);
    let sender = Watcher::of(&alice, &[&room]).await;
    let mut watcher = Watcher::of(&bob, &[&room]).await;
    let refused = sender.room(&room).send(&presence("secret")).with_sticky_key("k").await;
    let error = refused.unwrap_err();
    assert!(matches!(error, SendError::Prepare(PrepareError::NoBaseClient)), "{error:?}");
    assert!(error.to_string().contains("the room is encrypted"), "{error}");
    assert!(error.to_string().contains("BaseClientBuilder"), "how to get one: {error}");
    // What comes afterwards comes, so that would have come as well.
    alice.send(&room, "after", "", LONG);
    watcher.added("after").await;
    watcher.assert_silent();
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_rate_limits_refuse_is_sent_when_they_allow_it() {
    let server = start(&Options { rate_limits: true, ..Options::default() });
    let alice = Person::on(&server, "alice");
    let room = alice.room();
    let watcher = Watcher::of(&alice, &[&room]).await;
    let door = watcher.room(&room);
    let mut waited = Duration::ZERO;
    for n in 0..12 {
        let before = std::time::Instant::now();
        door.send(&presence(&n.to_string())).with_sticky_key("k").await.unwrap();
        waited = waited.max(before.elapsed());
    }
    assert!(waited > Duration::from_secs(1), "the limits never bit: {waited:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_without_sticky_events_is_not_sent_ordinary_ones() {
    let server = start(&Options { sticky: false, ..Options::default() });
    let alice = Person::on(&server, "alice");
    let room = alice.room();
    let client = alice.client().await;
    client.sync_once(Default::default()).await.unwrap();
    let door = matrix_sdk_sticky::StickyRoomExt::sticky(&client.get_room(&room).unwrap());
    let error = door.send(&presence("here")).with_sticky_key("k").await.unwrap_err();
    assert!(
        matches!(error, SendError::Prepare(PrepareError::Unsupported(Unsupported::StickyEvents))),
        "{error:?}"
    );
    assert!(error.to_string().contains("MSC4354"));
}
