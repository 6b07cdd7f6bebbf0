//! Nothing secret in our log, at any level, nor in the `Debug` of anything public.

use std::fmt::Debug;

use futures_util::{FutureExt as _, StreamExt as _};
use matrix_sdk::ruma::RoomId;
use matrix_sdk_sticky::{
    Sticky, StickyContent, StickyKey, SyncState, SystemClock,
    event::EncryptionDetails,
    map::{EphemeralMap, Limits, ReceivedVia},
    time::Clock as _,
    view::{Arrival, Delivery, EphemeralMaps},
    wire,
};
use serde::Deserialize;
use serde_json::{json, value::RawValue};

use crate::support::{
    ALICE, Homeserver, REFRESH_TOKEN, ROOM, TOKEN, World, client_builder, event, log, log_in,
    until_state,
};

/// Stands in the content of an event.
const TEXT: &str = "what nobody else may read";
/// Stands in the `unsigned` of the sender's own copy of a fired delayed event.
const DELAY_ID: &str = "syd_the_delay_id";

const SECRETS: [&str; 4] = [TOKEN, REFRESH_TOKEN, TEXT, DELAY_ID];

fn secret_event(id: &str) -> serde_json::Value {
    let mut event = event(id);
    event["content"]["body"] = json!(TEXT);
    event["unsigned"]["org.matrix.msc4140.delay_id"] = json!(DELAY_ID);
    event
}

#[track_caller]
fn assert_no_secret(what: &str, text: &str) {
    for secret in SECRETS {
        assert!(!text.contains(secret), "{what} tells {secret:?}: {text}");
    }
}

#[tokio::test]
async fn no_log_line_has_a_token_or_text() {
    let server = Homeserver::start().await;
    let refused = json!({ "errcode": "M_UNKNOWN_TOKEN", "error": "no" });
    server.answers_to("/refresh", 401, refused);
    let client = client_builder(&server).handle_refresh_tokens().build().await.unwrap();
    log_in(&client, Some(REFRESH_TOKEN)).await;
    let mut world = World::of(server, client);

    // Good ones, malformed ones in each way, and one that nobody has the key of.
    let mut events = vec![secret_event("good"), json!(TEXT), json!([TEXT]), json!({ TEXT: TEXT })];
    for field in ["sender", "type", "origin_server_ts", "event_id", "content"] {
        for value in [json!(null), json!(5), json!({ "a": TEXT }), json!([TEXT])] {
            let mut event = secret_event("malformed");
            event[field] = value;
            events.push(event);
        }
    }
    let mut encrypted = secret_event("encrypted");
    encrypted["type"] = json!("m.room.encrypted");
    encrypted["content"] = json!({
        "algorithm": "m.megolm.v1.aes-sha2", "session_id": "S", "ciphertext": TEXT,
    });
    events.push(encrypted);
    let mut huge = secret_event("huge");
    huge["content"]["huge"] = json!(TEXT.repeat(50_000));
    events.push(huge);
    world.server.ask().await.page("pos-1", "batch-1", ROOM, events).await;

    // Answers that cannot be read, with a text at each place where the reader may stop.
    let broken = secret_event("broken").to_string();
    for cut in [1, broken.len() / 2, broken.len() - 1] {
        world.ask_sometime().await.answer(200, &broken[..cut]).await;
    }
    for answer in [format!("\"{TEXT}\""), format!("[\"{TEXT}\"]"), format!("{TEXT}{{}}")] {
        world.ask_sometime().await.answer(200, answer).await;
    }
    world.ask_sometime().await.answer_half(&broken).await;
    world.ask_sometime().await.refuse(500, "M_UNKNOWN").await;
    let page = vec![secret_event("last")];
    world.ask_sometime().await.page("pos-2", "batch-2", ROOM, page).await;
    let poll = world.server.ask().await;
    world.until(&SyncState::Live).await;
    poll.refuse(401, "M_UNKNOWN_TOKEN").await;
    world.until(&SyncState::LoggedOut).await;

    let log = log();
    assert!(log.contains("DEBUG") && log.contains("$malformed"), "it was logged: {log}");
    assert_no_secret("the log", &log);
}

#[derive(Deserialize)]
struct Greeting {}

impl StickyContent for Greeting {
    const TYPE: &'static str = "com.example.t";
}

#[tokio::test]
async fn no_public_debug_has_a_token_or_text() {
    let server = Homeserver::start().await;
    let client = client_builder(&server).build().await.unwrap();
    log_in(&client, Some(REFRESH_TOKEN)).await;
    let builder = Sticky::builder(&client);
    show("StickyBuilder", &builder);
    drop(builder);
    let mut world = World::of(server, client);
    world.server.ask().await.page("pos-1", "batch-1", ROOM, vec![secret_event("a")]).await;
    let poll = world.server.ask().await;
    world.until(&SyncState::Live).await;

    let room_id = <&RoomId>::try_from(ROOM).unwrap();
    let sticky = &world.sticky;
    show("Sticky", sticky);
    let room = world.is_in(ROOM).await;
    show("RoomSticky", &room);
    show("RoomStats", &room.stats());
    show("SyncState", &sticky.state());
    show("View", &sticky.events());
    show("Snapshot", &sticky.events().snapshot());
    let entry = sticky.events().snapshot().iter().next().unwrap();
    assert!(entry.raw().get().contains(TEXT), "it is there for who asks");
    show("Entry", &entry);
    show("StickyEvent", entry.event());
    show("Encryption", &entry.encryption());
    let mut list = sticky.events().subscribe_list();
    show("ListSubscription", &list);
    let mut subscription = sticky.events().subscribe();
    show("Subscription", &subscription);
    // A typed entry shows what the application's own type shows.
    show("TypedView", &sticky.view::<Greeting>());

    poll.page("pos-2", "batch-2", ROOM, vec![secret_event("b")]).await;
    let change = crate::support::next_change(&mut subscription.changes).await;
    show("Change", &change);
    show("VectorDiff", &list.diffs.next().now_or_never().unwrap());
    world.server.ask().await.refuse(500, TEXT).await;
    let _ =
        until_state(sticky, "Offline", |state| matches!(state, SyncState::Offline { .. })).await;

    let text = secret_event("raw").to_string();
    let raw = || RawValue::from_string(text.clone()).unwrap();
    let now = SystemClock::default().now();
    let arrival = Arrival::Event(raw());
    show("Arrival", &arrival);
    let delivery = Delivery {
        room_id: room_id.to_owned(),
        received: now,
        via: ReceivedVia::Section,
        arrivals: vec![arrival],
    };
    show("Delivery", &delivery);
    let maps = EphemeralMaps::new(SystemClock::default(), Limits::default());
    maps.handle([delivery]);
    show("EphemeralMaps", &maps);
    let mut map = EphemeralMap::new(Limits::default());
    map.handle_event(now, ReceivedVia::Section, raw()).unwrap();
    show("EphemeralMap", &map);
    show("Wire", &wire::read(&raw()).unwrap());
    let user_id = matrix_sdk::ruma::UserId::parse(ALICE).unwrap();
    show("StickyKey", &StickyKey::new(user_id.clone(), "t", "k"));
    show(
        "EncryptionDetails",
        &EncryptionDetails::new(user_id, None, matrix_sdk_sticky::event::Verification::Verified),
    );
    for broken in [format!("\"{TEXT}\""), format!("{{\"type\":\"{TEXT}\\ud800\"}}")] {
        let broken = RawValue::from_string(broken).unwrap();
        let malformed = wire::read(&broken).unwrap_err();
        show("Malformed", &malformed);
        assert_no_secret("Malformed's Display", &malformed.to_string());
    }
}

#[test]
fn no_debug_of_a_response_has_text() {
    let rooms = json!({ ROOM: { "events": [secret_event("a")] } });
    let body = crate::support::body("pos", None, rooms.clone());
    show("SlidingResponse", &wire::read_sliding(body.to_string().as_bytes()).unwrap());
    let room = json!({ "sticky": rooms[ROOM], "timeline": rooms[ROOM] });
    let body = json!({ "next_batch": "s1", "rooms": { "join": { ROOM: room } } });
    show("V3Response", &wire::read_v3(body.to_string().as_bytes()).unwrap());
}

#[track_caller]
fn show(what: &str, value: &impl Debug) {
    assert_no_secret(what, &format!("{value:?}\n{value:#?}"));
}
