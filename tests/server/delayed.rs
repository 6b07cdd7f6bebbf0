//! Delayed events on a real server.

use std::time::{Duration, Instant};

use matrix_sdk::ruma::RoomId;
use matrix_sdk_sticky::{
    DelayId, DelayedError, DelayedEvents, PrepareError, RemovalReason, RoomSticky, Unsupported,
    delayed::{PreparedEvent, ScheduledEvent},
};
use serde_json::{Value, json};
use xtask::{api::encode, homeserver::Options};

use crate::{
    proxy::Proxy,
    support::{LONG, Person, TYPE, Watcher, devices_are_there, presence, start, status},
};

/// As soon as a test can do something in between.
const SOON: Duration = Duration::from_millis(1_500);

const HOUR: Duration = Duration::from_secs(3_600);

/// Who schedules in a room, and who watches it.
struct Pair {
    alice: Person,
    watcher: Watcher,
    door: RoomSticky,
    events: DelayedEvents,
    /// The client that the door belongs to.
    _alice: Watcher,
}

impl Pair {
    async fn new() -> Self {
        let (alice, bob) = (Person::new("alice"), Person::new("bob"));
        let room = alice.room_with(&[&bob]);
        let client = Watcher::of(&alice, &[&room]).await;
        let watcher = Watcher::of(&bob, &[&room]).await;
        let (door, events) = (client.room(&room), client.sticky.delayed_events());
        Self { alice, watcher, door, events, _alice: client }
    }

    async fn schedule(&self, key: &str, delay: Duration) -> DelayId {
        let schedule = self.door.schedule(&presence("later"), delay).with_sticky_key(key);
        schedule.with_sticky_duration(LONG).await.unwrap()
    }

    /// What comes afterwards comes, so whatever was before would have come as well.
    async fn assert_nothing_came(&mut self, room: &RoomId) {
        self.alice.send(room, "after", "", LONG);
        self.watcher.added("after").await;
        self.watcher.assert_silent();
    }

    fn room(&self) -> matrix_sdk::ruma::OwnedRoomId {
        self.door.room_id().to_owned()
    }

    /// The events of the tests' type that the room has, as alice's own client sees them.
    fn history(&self) -> Vec<Value> {
        let room = self.room();
        let messages = format!("rooms/{}/messages?dir=b&limit=100", encode(room.as_str()));
        let history = self.alice.api.get(&messages).unwrap();
        let events = history["chunk"].as_array().unwrap().iter();
        events.filter(|event| event["type"] == TYPE).cloned().collect()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_scheduled_event_is_sent_when_it_is_due_and_is_sticky_and_known_by_its_id() {
    let mut pair = Pair::new().await;
    let started = Instant::now();
    let delay_id = pair.schedule("k", SOON).await;
    let entry = pair.watcher.added("k").await;
    assert!(started.elapsed() >= SOON, "it came after {:?}", started.elapsed());
    assert_eq!((status(&entry), entry.sticky_duration()), ("later".into(), LONG));
    let raw: Value = entry.content().unwrap();
    assert_eq!((&raw["sticky_key"], &raw["msc4354_sticky_key"]), (&json!("k"), &json!("k")));
    assert_eq!(DelayId::of_event(entry.raw()), None, "only its sender is told");

    let [own] = &pair.history()[..] else { panic!("one event: {:?}", pair.history()) };
    let own = serde_json::value::to_raw_value(own).unwrap();
    assert_eq!(DelayId::of_event(&own), Some(delay_id.clone()));

    let error = pair.events.restart(&delay_id).await.unwrap_err();
    assert!(matches!(error, DelayedError::Gone), "{error:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_scheduled_removal_removes_what_was_sent() {
    let mut pair = Pair::new().await;
    pair.door.send(&presence("here")).with_sticky_key("k").await.unwrap();
    pair.watcher.added("k").await;
    pair.door.schedule_removal(TYPE, "k", SOON).await.unwrap();
    assert_eq!(pair.watcher.removed("k").await, RemovalReason::Removed);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_event_that_is_not_sticky_is_sent_as_an_ordinary_one() {
    let mut pair = Pair::new().await;
    let content = json!({ "msgtype": "m.text", "body": "the tea is ready" });
    let content = content.as_object().unwrap().clone();
    let reminder = pair.door.schedule_raw("m.room.message", content, HOUR).not_sticky();
    let delay_id = reminder.await.unwrap();
    pair.events.send(&delay_id).await.unwrap();
    let room = pair.room();
    let messages = format!("rooms/{}/messages?dir=b&limit=1", encode(room.as_str()));
    let last = pair.alice.api.get(&messages).unwrap()["chunk"][0].clone();
    assert_eq!(last["content"]["body"], "the tea is ready");
    assert!(last.get("msc4354_sticky").is_none());
    pair.assert_nothing_came(&room).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restart_has_it_wait_for_its_whole_delay_again() {
    let mut pair = Pair::new().await;
    let delay = SOON * 2;
    let delay_id = pair.schedule("k", delay).await;
    let mut restarted = Instant::now();
    for _ in 0..3 {
        tokio::time::sleep(SOON).await;
        restarted = Instant::now();
        pair.events.restart(&delay_id).await.unwrap();
    }
    pair.watcher.assert_silent();
    pair.watcher.added("k").await;
    assert!(restarted.elapsed() >= delay, "it came {:?} after", restarted.elapsed());
}

#[tokio::test(flavor = "multi_thread")]
async fn send_has_it_sent_at_once_and_once() {
    let mut pair = Pair::new().await;
    let delay_id = pair.schedule("k", HOUR).await;
    pair.events.send(&delay_id).await.unwrap();
    assert_eq!(status(&pair.watcher.added("k").await), "later");
    for error in [
        pair.events.send(&delay_id).await.unwrap_err(),
        pair.events.cancel(&delay_id).await.unwrap_err(),
        pair.events.restart(&delay_id).await.unwrap_err(),
    ] {
        assert!(matches!(error, DelayedError::Gone), "{error:?}");
    }
    let room = pair.room();
    pair.assert_nothing_came(&room).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_cancelled_never_comes() {
    let mut pair = Pair::new().await;
    let delay_id = pair.schedule("k", SOON * 2).await;
    pair.events.cancel(&delay_id).await.unwrap();
    let error = pair.events.cancel(&delay_id).await.unwrap_err();
    assert!(matches!(error, DelayedError::Gone), "{error:?}");
    // One that is due later comes.
    pair.schedule("later", SOON * 2 + Duration::from_millis(500)).await;
    pair.watcher.added("later").await;
    let room = pair.room();
    pair.assert_nothing_came(&room).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_scheduled_is_listed_until_it_is_not() {
    let pair = Pair::new().await;
    assert!(pair.events.list().await.unwrap().is_empty());
    let delay_id = pair.schedule("k", HOUR).await;
    let list = pair.events.list().await.unwrap();
    let [ScheduledEvent { delay_id: listed, room_id, event_type, state_key, content, delay, .. }] =
        &list[..]
    else {
        panic!("{list:?}")
    };
    assert_eq!((listed, room_id, &**event_type), (&delay_id, &pair.room(), TYPE));
    assert_eq!((state_key, *delay), (&None, HOUR));
    let content: Value = serde_json::from_str(content.get()).unwrap();
    assert_eq!(content["status"], "later");
    let waits = std::time::SystemTime::now().duration_since(list[0].waits_since).unwrap();
    assert!(waits < LONG, "{waits:?}");
    pair.events.cancel(&delay_id).await.unwrap();
    assert!(pair.events.list().await.unwrap().is_empty());
}

async fn prepare(door: &RoomSticky, delay: Duration) -> PreparedEvent {
    door.schedule(&presence("later"), delay).with_sticky_key("k").prepare().await.unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn the_same_transaction_is_scheduled_once_and_tells_the_same_id_after_it_was_cancelled_too() {
    let pair = Pair::new().await;
    let event = prepare(&pair.door, HOUR).await;
    let delay_id = pair.events.schedule(&event).await.unwrap();
    // As another run of the application finds it in its store.
    let stored = serde_json::to_string(&event).unwrap();
    let found: PreparedEvent = serde_json::from_str(&stored).unwrap();
    assert_eq!(pair.events.schedule(&found).await.unwrap(), delay_id);
    assert_eq!(pair.events.list().await.unwrap().len(), 1);
    pair.events.cancel(&delay_id).await.unwrap();
    assert_eq!(pair.events.schedule(&found).await.unwrap(), delay_id);
    assert!(pair.events.list().await.unwrap().is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_was_restarted_has_the_event_and_has_forgotten_the_transaction() {
    let mut server = start(&Options::default());
    let alice = Person::on(&server, "alice");
    let room = alice.room();
    let watcher = Watcher::of(&alice, &[&room]).await;
    let (door, events) = (watcher.room(&room), watcher.sticky.delayed_events());
    let event = prepare(&door, HOUR).await;
    let first = events.schedule(&event).await.unwrap();
    server.restart().unwrap();
    assert_eq!(events.list().await.unwrap().len(), 1, "it survives");
    // So whoever lost an answer has to look into the list as well.
    let list = events.list().await.unwrap();
    assert!(list.iter().any(|listed| listed.delay_id == first && event.matches(listed)));
    let second = events.schedule(&event).await.unwrap();
    assert_ne!(first, second);
    assert_eq!(events.list().await.unwrap().len(), 2);
    events.cancel(&first).await.unwrap();
    events.cancel(&second).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn an_answer_that_is_lost_is_asked_for_again_and_schedules_one_event() {
    let alice = Person::new("alice");
    let room = alice.room();
    let proxy = Proxy::before(alice.url()).await;
    let watcher = Watcher::with(alice.client_through(&proxy).await, &[&room]).await;
    let (door, events) = (watcher.room(&room), watcher.sticky.delayed_events());
    proxy.lose_answers(2);
    let schedule = door.schedule(&presence("later"), HOUR).with_sticky_key("k");
    let delay_id = schedule.await.unwrap();
    let list = events.list().await.unwrap();
    assert_eq!(list.len(), 1, "{list:?}");
    assert_eq!(list[0].delay_id, delay_id);
    events.cancel(&delay_id).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn limits_are_told_and_more_than_those_is_refused_with_the_reason() {
    let pair = Pair::new().await;
    let day = HOUR * 24;
    let limits = pair.events.limits().await.unwrap().unwrap();
    assert_eq!((limits.max_delay, limits.max_scheduled), (Some(day), Some(100)));

    let too_long = pair.door.schedule(&presence("later"), day + Duration::from_millis(1));
    let error = too_long.await.unwrap_err();
    assert!(matches!(error, DelayedError::TooLong { max: Some(max) } if max == day), "{error:?}");

    for n in 0..100 {
        pair.schedule(&n.to_string(), HOUR).await;
    }
    let one_more = pair.door.schedule(&presence("later"), HOUR).await;
    let error = one_more.unwrap_err();
    let DelayedError::QuotaFull { retry_after: Some(wait) } = error else { panic!("{error:?}") };
    assert!(wait <= HOUR && wait > HOUR / 2, "{wait:?}");
    let list = pair.events.list().await.unwrap();
    assert_eq!(list.len(), 100);
    pair.events.cancel(&list[0].delay_id).await.unwrap();
    pair.schedule("now there is a place", HOUR).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_room_that_one_may_not_send_in_is_found_out_only_when_it_is_sent() {
    let (alice, bob) = (Person::new("alice"), Person::new("bob"));
    let room = alice.room_of(&json!({
        "preset": "public_chat",
        "power_level_content_override": { "events_default": 50 },
    }));
    bob.join(&room);
    let mut bob = Watcher::of(&bob, &[&room]).await;
    let (door, events) = (bob.room(&room), bob.sticky.delayed_events());
    let delay_id = door.schedule(&presence("later"), HOUR).await.unwrap();
    let error = events.send(&delay_id).await.unwrap_err();
    assert!(
        matches!(&error, DelayedError::Refused { status: 403, errcode: Some(code) }
            if code == "M_FORBIDDEN"),
        "{error:?}"
    );
    // The server has forgotten it.
    let error = events.send(&delay_id).await.unwrap_err();
    assert!(matches!(error, DelayedError::Gone), "{error:?}");
    bob.assert_silent();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_allows_none_says_so_and_nothing_is_sent() {
    let server = start(&Options { delayed_events: false, ..Options::default() });
    let alice = Person::on(&server, "alice");
    let room = alice.room();
    let mut watcher = Watcher::of(&alice, &[&room]).await;
    let error = watcher.room(&room).schedule(&presence("later"), SOON).await.unwrap_err();
    assert!(matches!(error, DelayedError::Disabled), "{error:?}");
    alice.send(&room, "after", "", LONG);
    watcher.added("after").await;
    watcher.assert_silent();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_without_sticky_events_is_asked_for_ordinary_ones_only() {
    let server = start(&Options { sticky: false, ..Options::default() });
    let alice = Person::on(&server, "alice");
    let room = alice.room();
    let client = alice.client().await;
    client.sync_once(Default::default()).await.unwrap();
    let door = matrix_sdk_sticky::StickyRoomExt::sticky(&client.get_room(&room).unwrap());
    let error = door.schedule(&presence("later"), HOUR).await.unwrap_err();
    assert!(
        matches!(
            error,
            DelayedError::Prepare(PrepareError::Unsupported(Unsupported::StickyEvents))
        ),
        "{error:?}"
    );
    let delay_id = door.schedule(&presence("later"), HOUR).not_sticky().await.unwrap();
    door.sticky_client().delayed_events().cancel(&delay_id).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_delay_id_is_enough_to_send_after_a_logout() {
    let mut pair = Pair::new().await;
    let delay_id = pair.schedule("k", HOUR).await;
    pair.alice.api.post("logout", &json!({})).unwrap();
    pair.events.send(&delay_id).await.unwrap();
    pair.watcher.added("k").await;
    let error = pair.events.list().await.unwrap_err();
    assert!(matches!(error, DelayedError::NotLoggedIn), "{error:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn in_an_encrypted_room_it_is_scheduled_encrypted_and_read_when_it_comes() {
    let (alice, bob) = (Person::new("alice"), Person::new("bob"));
    let room = alice.encrypted_room_with(&[&bob]);
    let sender = Watcher::encrypting(&alice, &[&room]).await;
    let mut watcher = Watcher::encrypting(&bob, &[&room]).await;
    devices_are_there(&alice, &[&alice, &bob]).await;
    let (door, events) = (sender.room(&room), sender.sticky.delayed_events());
    let content = json!({ "status": "later" }).as_object().unwrap().clone();
    let schedule = door.schedule_raw(TYPE, content, HOUR).with_sticky_key("k");
    let event = schedule.with_sticky_duration(LONG).prepare().await.unwrap();
    assert!(event.is_encrypted() && event.session_id().is_some(), "{event:?}");
    let delay_id = events.schedule(&event).await.unwrap();

    let list = events.list().await.unwrap();
    assert_eq!((&list[0].delay_id, &*list[0].event_type), (&delay_id, "m.room.encrypted"));
    assert!(event.matches(&list[0]));
    assert!(!list[0].content.get().contains("later"));

    events.send(&delay_id).await.unwrap();
    let entry = watcher.added("k").await;
    assert!(entry.is_encrypted());
    assert_eq!((status(&entry), entry.sticky_duration()), ("later".into(), LONG));
    door.schedule_removal(TYPE, "k", SOON).with_sticky_duration(LONG).await.unwrap();
    assert_eq!(watcher.removed("k").await, RemovalReason::Removed);
}
