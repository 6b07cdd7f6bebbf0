//! Sending to a server that loses its answers, refuses, or does not say what must be known first.

use std::{collections::HashMap, time::Duration};

use matrix_sdk::ruma::event_id;
use matrix_sdk_sticky::{PrepareError, RoomSticky, SendError, SendSticky, Sent, StickyContent};
use serde::{Deserialize, Serialize};
use serde_json::json;
use tokio::task::JoinHandle;

use crate::support::{Ask, ME, ROOM, World, event, millis, secs, within};

#[derive(Serialize, Deserialize)]
struct Presence {
    status: String,
}

impl StickyContent for Presence {
    const TYPE: &str = "com.example.t";
}

fn presence() -> Presence {
    Presence { status: "here".to_owned() }
}

/// Returns a world that is live, its door to the room, and the long poll that is held.
async fn at_the_door() -> (World, RoomSticky, Ask) {
    let (world, poll) = World::live(vec![]).await;
    let door = world.is_in(ROOM).await;
    (world, door, poll)
}

type Sending = JoinHandle<Result<Sent, SendError>>;

fn send(door: &RoomSticky) -> Sending {
    start(door.send(&presence()).with_sticky_key("k"))
}

fn start(send: SendSticky) -> Sending {
    tokio::spawn(send.into_future())
}

async fn outcome(sending: Sending) -> Result<Sent, SendError> {
    within("the send to end", sending).await.unwrap()
}

/// Nothing is sent any more, however long one waits.
async fn assert_no_more(world: &mut World) {
    for _ in 0..3 {
        world.settle().await;
        world.clock.advance(secs(60));
    }
    world.settle().await;
    assert!(!world.server.is_sent_more());
}

/// The events that a server has made of what it was sent: under one transaction id, one.
#[derive(Default)]
struct Events(HashMap<String, String>);

impl Events {
    /// The event's id.
    fn take(&mut self, ask: &Ask) -> String {
        let next = format!("$event-{}", self.0.len());
        self.0.entry(ask.path.clone()).or_insert(next).clone()
    }
}

/// The send is tried again as the same request.
#[tokio::test]
async fn a_lost_answer_makes_one_event() {
    for lost in ["hung up", "half of it", "a gateway's error"] {
        let (mut world, door, poll) = at_the_door().await;
        let mut events = Events::default();
        let sending = send(&door);
        let first = world.server.sent().await;
        let event_id = events.take(&first);
        let answer = json!({ "event_id": event_id }).to_string();
        let what = (first.path.clone(), first.query.clone(), first.body.clone());
        match lost {
            "hung up" => drop(first),
            "half of it" => first.answer_half(&answer).await,
            _ => first.refuse(502, "M_UNKNOWN").await,
        }
        world.settle().await;
        let wait = world.sleep_over().await;
        assert!(wait <= millis(375), "{lost}: {wait:?}");

        let again = world.server.sent().await;
        assert_eq!((again.path.clone(), again.query.clone(), again.body.clone()), what, "{lost}");
        assert_eq!(again.param("org.matrix.msc4354.sticky_duration_ms"), Some("3600000"));
        assert_eq!(events.take(&again), event_id);
        again.answer(200, answer).await;
        assert_eq!(outcome(sending).await.unwrap().event_id, *event_id);
        assert_no_more(&mut world).await;
        assert_eq!(events.0.len(), 1, "{lost}");

        let mut own = event("event-0");
        own["sender"] = json!(ME);
        poll.page("pos-2", "batch-2", ROOM, vec![own]).await;
        world.until_event_ids(&[&event_id]).await;

        // The next send is another one.
        let sending = send(&door);
        let next = world.server.sent().await;
        let next_id = events.take(&next);
        assert_ne!(next_id, event_id);
        next.answer(200, json!({ "event_id": next_id }).to_string()).await;
        outcome(sending).await.unwrap();
    }
}

#[tokio::test]
async fn a_lost_answer_repeats_the_same_redaction() {
    let (mut world, door, _poll) = at_the_door().await;
    let redaction = door.redact(event_id!("$gone")).with_reason("wrong room");
    let sending = tokio::spawn(redaction.into_future());
    let first = world.server.sent().await;
    let what = (first.path.clone(), first.query.clone(), first.body.clone());
    drop(first);
    world.settle().await;
    world.sleep_over().await;
    let again = world.server.sent().await;
    assert_eq!((again.path.clone(), again.query.clone(), again.body.clone()), what);
    again.answer(200, json!({ "event_id": "$redaction" }).to_string()).await;
    assert_eq!(outcome(sending).await.unwrap().event_id, "$redaction");
}

/// Then the same request is sent again.
#[tokio::test]
async fn a_rate_limit_is_waited_for() {
    let (mut world, door, _poll) = at_the_door().await;
    let sending = send(&door);
    let first = world.server.sent().await;
    let path = first.path.clone();
    first.limit(5_000).await;
    world.settle().await;
    let wait = within("a sleep", world.clock.next_sleep()).await;
    assert_eq!(wait, secs(5));
    world.clock.advance(wait - millis(1));
    world.settle().await;
    assert!(!world.server.is_sent_more(), "not before the time is over");
    world.clock.advance(millis(1));
    let again = world.server.sent().await;
    assert_eq!(again.path, path);

    // A proxy that speaks no Matrix says it with the status alone.
    again.answer(429, "<html>slow down</html>").await;
    world.settle().await;
    assert!(world.sleep_over().await <= millis(750));
    let again = world.server.sent().await;
    assert_eq!(again.path, path);
    again.answer(200, json!({ "event_id": "$sent" }).to_string()).await;
    assert_eq!(outcome(sending).await.unwrap().event_id, "$sent");
}

/// A limit of more than 30 s is not waited for, and the error has the wait.
#[tokio::test]
async fn a_long_rate_limit_is_an_error() {
    let (mut world, door, _poll) = at_the_door().await;
    let sending = send(&door);
    world.server.sent().await.limit(30_001).await;
    let error = outcome(sending).await.unwrap_err();
    let SendError::RateLimited { retry_after } = error else { panic!("{error:?}") };
    assert_eq!(retry_after, Some(millis(30_001)));
    assert_no_more(&mut world).await;

    // Just that is still waited for.
    let sending = send(&door);
    world.server.sent().await.limit(30_000).await;
    world.settle().await;
    assert_eq!(world.sleep_over().await, secs(30));
    let ask = world.server.sent().await;
    ask.answer(200, json!({ "event_id": "$sent" }).to_string()).await;
    outcome(sending).await.unwrap();
}

/// The error comes after six attempts.
#[tokio::test]
async fn an_endless_rate_limit_is_an_error() {
    let (mut world, door, _poll) = at_the_door().await;
    let sending = send(&door);
    for tried in 1..=6 {
        world.server.sent().await.limit(1_000).await;
        if tried < 6 {
            world.settle().await;
            assert!(world.sleep_over().await >= secs(1));
        }
    }
    let error = outcome(sending).await.unwrap_err();
    assert!(
        matches!(error, SendError::RateLimited { retry_after: Some(wait) } if wait == secs(1)),
        "{error:?}"
    );
    assert_no_more(&mut world).await;
}

/// The error comes after one request.
#[tokio::test]
async fn a_refusal_is_an_error_at_once() {
    for (status, errcode) in [
        (403, "M_FORBIDDEN"),
        (400, "M_INVALID_PARAM"),
        (413, "M_TOO_LARGE"),
        (401, "M_UNKNOWN_TOKEN"),
    ] {
        let (mut world, door, _poll) = at_the_door().await;
        let sending = send(&door);
        world.server.sent().await.refuse(status, errcode).await;
        // No time passes until it is told.
        let error = outcome(sending).await.unwrap_err();
        let is_told = match errcode {
            "M_UNKNOWN_TOKEN" => matches!(error, SendError::NotLoggedIn),
            _ => matches!(error, SendError::Refused { errcode: Some(code), .. } if code == errcode),
        };
        assert!(is_told, "{errcode}");
        assert_no_more(&mut world).await;
    }
}

#[tokio::test]
async fn six_server_errors_are_unreachable() {
    let (mut world, door, _poll) = at_the_door().await;
    let sending = send(&door);
    let mut paths = Vec::new();
    for (tried, status) in [500, 502, 503, 504, 520, 500].into_iter().enumerate() {
        let ask = world.server.sent().await;
        paths.push(ask.path.clone());
        ask.refuse(status, "M_UNKNOWN").await;
        if tried < 5 {
            assert!(!sending.is_finished());
            world.settle().await;
            let wait = world.sleep_over().await;
            let middle = millis(250 << tried);
            assert!((middle / 2..=middle * 3 / 2).contains(&wait), "{tried}: {wait:?}");
        }
    }
    let error = outcome(sending).await.unwrap_err();
    assert!(matches!(error, SendError::Unreachable { .. }), "{error:?}");
    paths.dedup();
    assert_eq!(paths.len(), 1, "under one transaction id: {paths:?}");
    assert_no_more(&mut world).await;
}

#[tokio::test]
async fn with_unknown_encryption_nothing_is_sent() {
    for (status, errcode) in [(500, "M_UNKNOWN"), (403, "M_FORBIDDEN"), (502, "M_UNKNOWN")] {
        let (mut world, door, _poll) = at_the_door().await;
        let refused = json!({ "errcode": errcode, "error": "as the test wants it" });
        world.server.answers_to(ENCRYPTION, status, refused);
        let error = outcome(send(&door)).await.unwrap_err();
        assert!(
            matches!(error, SendError::Prepare(PrepareError::EncryptionUnknown(_))),
            "{error:?}"
        );
        assert_no_more(&mut world).await;

        // Once it says so, it is sent.
        let not_there = json!({ "errcode": "M_NOT_FOUND", "error": "no such state" });
        world.server.answers_to(ENCRYPTION, 404, not_there);
        let sending = send(&door);
        let ask = world.server.sent().await;
        ask.answer(200, json!({ "event_id": "$sent" }).to_string()).await;
        outcome(sending).await.unwrap();
    }
}

/// The event with the later end wins; of two in one millisecond, whose id is higher.
#[tokio::test]
async fn a_millisecond_has_one_send_per_key() {
    let (mut world, door, _poll) = at_the_door().await;
    let sent =
        |ask: Ask| async { ask.answer(200, json!({ "event_id": "$sent" }).to_string()).await };
    let sending = send(&door);
    sent(world.server.sent().await).await;
    outcome(sending).await.unwrap();

    let sending = send(&door);
    for _ in 0..2 {
        world.settle().await;
        assert!(!world.server.is_sent_more());
        world.clock.advance(millis(1));
    }
    sent(world.server.sent().await).await;
    outcome(sending).await.unwrap();
    // Another key need not wait.
    let sending = start(door.send(&presence()).with_sticky_key("l"));
    sent(world.server.sent().await).await;
    outcome(sending).await.unwrap();
}

/// The next send of its key has the same duration.
///
/// The server may have it all the same, and then a shorter one would lose to it.
#[tokio::test]
async fn a_failed_send_keeps_its_duration() {
    let (mut world, door, _poll) = at_the_door().await;
    let duration =
        |ask: &Ask| ask.param("org.matrix.msc4354.sticky_duration_ms").map(str::to_owned);
    let half_an_hour = secs(1_800);
    let sending =
        start(door.send(&presence()).with_sticky_key("k").with_sticky_duration(half_an_hour));
    let ask = world.server.sent().await;
    assert_eq!(duration(&ask).as_deref(), Some("1800000"));
    ask.refuse(403, "M_FORBIDDEN").await;
    outcome(sending).await.unwrap_err();

    world.clock.advance(secs(1));
    let _sending = send(&door);
    let ask = world.server.sent().await;
    assert_eq!(duration(&ask).as_deref(), Some("1800000"));
}

/// Where the state of a room says that it is encrypted.
const ENCRYPTION: &str = "/state/m.room.encryption/";

#[derive(Serialize, Deserialize)]
struct Bare<T>(T);

impl<T: Serialize + for<'de> Deserialize<'de> + Send + Sync + 'static> StickyContent for Bare<T> {
    const TYPE: &str = "com.example.t";
}

#[tokio::test]
async fn content_that_is_no_object_is_not_sent() {
    let (mut world, door, _poll) = at_the_door().await;
    let no_json = HashMap::from([(vec![1], 2)]);
    let sends = [
        door.send(&Bare("text".to_owned())),
        door.send(&Bare(vec![1, 2])).with_sticky_key("k"),
        door.send(&Bare(5)).with_sticky_duration(Duration::from_secs(60)),
        door.send(&Bare(None::<u8>)),
        door.send(&Bare(no_json)),
    ];
    for send in sends {
        let error = outcome(start(send)).await.unwrap_err();
        assert!(matches!(error, SendError::Prepare(PrepareError::Content(_))), "{error:?}");
    }
    assert_no_more(&mut world).await;
    assert_eq!(world.server.count(ENCRYPTION), 0, "nothing is asked for it either");
}
