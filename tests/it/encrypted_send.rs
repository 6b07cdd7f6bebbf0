//! Sending into an encrypted room, to a server that will not give keys, or take them, or that loses
//! its answers.

use matrix_sdk::ruma::{device_id, user_id};
use matrix_sdk_base::crypto::{OlmMachine, types::requests::AnyOutgoingRequest};
use matrix_sdk_sticky::{EncryptError, PrepareError, RoomSticky, SendError, Sent, SyncState};
use serde_json::{Value, json};
use tokio::task::JoinHandle;

use crate::support::{ALICE, Ask, ME, ROOM, World, log, membership, secs, within};

const QUERY: &str = "/keys/query";
const CLAIM: &str = "/keys/claim";
const TO_DEVICE: &str = "/sendToDevice/";

/// Who is live, in an encrypted room with alice, and can encrypt for her; their door to the room.
pub(crate) async fn at_the_door() -> (World, RoomSticky, Ask) {
    let mut world = World::encrypting().await;
    world.server.ask().await.page("pos-1", "batch-1", ROOM, vec![]).await;
    let poll = world.server.ask().await;
    world.until(&SyncState::Live).await;

    let answers = world.server.answers();
    let algorithm = json!({ "algorithm": "m.megolm.v1.aes-sha2" });
    answers.set("/state/m.room.encryption/", 200, algorithm);
    let mut alice = membership("join", 86_400_000);
    alice["sender"] = json!(ALICE);
    alice["state_key"] = json!(ALICE);
    alice["event_id"] = json!("$alice");
    let members = [membership("join", 86_400_000), alice].map(|mut event| {
        event["room_id"] = json!(ROOM);
        event
    });
    answers.set("/members", 200, json!({ "chunk": members }));

    let machine = OlmMachine::new(user_id!("@alice:hs"), device_id!("ALICES")).await;
    let requests = machine.outgoing_requests().await.unwrap();
    let upload = requests.iter().find_map(|request| match request.request() {
        AnyOutgoingRequest::KeysUpload(upload) => Some(upload),
        _ => None,
    });
    let upload = upload.unwrap();
    let keys = json!({ "device_keys": { ME: {}, ALICE: { "ALICES": upload.device_keys } } });
    answers.set(QUERY, 200, keys);
    let one_time_key = upload.one_time_keys.iter().next().unwrap();
    let (id, key) = (one_time_key.0.to_string(), one_time_key.1);
    let one_time_keys = json!({ "one_time_keys": { ALICE: { "ALICES": { id: key } } } });
    answers.set(CLAIM, 200, one_time_keys);
    answers.set(TO_DEVICE, 200, json!({}));

    let door = world.is_in(ROOM).await;
    (world, door, poll)
}

type Sending = JoinHandle<Result<Sent, SendError>>;

fn send(door: &RoomSticky) -> Sending {
    let content = json!({ "status": "secret" });
    let Value::Object(content) = content else { unreachable!() };
    tokio::spawn(door.send_raw("com.example.t", content).with_sticky_key("k").into_future())
}

async fn outcome(sending: Sending) -> Result<Sent, SendError> {
    within("the send to end", sending).await.unwrap()
}

fn assert_encrypted(ask: &Ask) {
    assert!(ask.path.contains("/send/m.room.encrypted/"), "{}", ask.path);
    assert_eq!(ask.body["algorithm"], "m.megolm.v1.aes-sha2");
    assert!(!ask.body.to_string().contains("secret"), "{}", ask.body);
    assert_eq!(ask.param("org.matrix.msc4354.sticky_duration_ms"), Some("3600000"));
}

async fn take(ask: Ask) {
    ask.answer(200, json!({ "event_id": "$sent" }).to_string()).await;
}

#[tokio::test]
async fn the_room_key_is_sent_once_and_a_lost_answer_brings_the_same_ciphertext_again() {
    let (mut world, door, _poll) = at_the_door().await;
    let sending = send(&door);
    let first = world.server.sent().await;
    assert_encrypted(&first);
    assert_eq!(world.server.asked_for(TO_DEVICE).len(), 1);
    let what = (first.path.clone(), first.query.clone(), first.body.clone());
    drop(first);
    world.settle().await;
    world.sleep_over().await;
    let again = world.server.sent().await;
    assert_eq!((again.path.clone(), again.query.clone(), again.body.clone()), what);
    take(again).await;
    outcome(sending).await.unwrap();

    world.clock.advance(secs(1));
    let sending = send(&door);
    let next = world.server.sent().await;
    assert_encrypted(&next);
    assert_eq!(next.body["session_id"], what.2["session_id"]);
    assert_ne!(next.body["ciphertext"], what.2["ciphertext"]);
    take(next).await;
    outcome(sending).await.unwrap();
    for path in [TO_DEVICE, CLAIM] {
        assert_eq!(world.server.asked_for(path).len(), 1, "{path}: nothing that was needed again");
    }
    assert!(!log().contains("secret"));
}

#[tokio::test]
async fn keys_that_the_server_does_not_give_are_asked_for_again_before_anything_is_sent() {
    for path in [QUERY, CLAIM, TO_DEVICE] {
        let (mut world, door, _poll) = at_the_door().await;
        let answers = world.server.answers();
        let good = answers.get(path);
        answers.set(path, 500, json!({ "errcode": "M_UNKNOWN", "error": "no" }));
        let sending = send(&door);
        world.settle().await;
        let wait = within("a sleep", world.clock.next_sleep()).await;
        assert!(!world.server.is_sent_more(), "{path}");
        answers.set(path, 200, good);
        world.clock.advance(wait);
        let ask = world.server.sent().await;
        assert_encrypted(&ask);
        take(ask).await;
        outcome(sending).await.unwrap();
        if path == TO_DEVICE {
            let mut sent = world.server.asked_for(path);
            sent.dedup();
            assert_eq!(sent.len(), 2, "a key that may not have come is not used: {sent:?}");
        }
    }
}

#[tokio::test]
async fn keys_that_the_server_refuses_are_told_and_nothing_is_sent() {
    for path in [QUERY, CLAIM, TO_DEVICE] {
        let (mut world, door, _poll) = at_the_door().await;
        world.server.answers_to(path, 403, json!({ "errcode": "M_FORBIDDEN", "error": "no" }));
        let error = outcome(send(&door)).await.unwrap_err();
        let SendError::Prepare(PrepareError::Encrypt(EncryptError::Server(_))) = error else {
            panic!("{path}: {error:?}")
        };
        assert!(error.to_string().starts_with("nothing was sent"), "{error}");
        world.settle().await;
        assert!(!world.server.is_sent_more(), "{path}");
    }
}

#[tokio::test]
async fn after_six_tries_it_is_told_that_nothing_was_sent() {
    let (mut world, door, _poll) = at_the_door().await;
    world.server.answers_to(QUERY, 500, json!({ "errcode": "M_UNKNOWN", "error": "no" }));
    let sending = send(&door);
    for _ in 1..6 {
        assert!(!sending.is_finished());
        world.settle().await;
        world.sleep_over().await;
    }
    let error = outcome(sending).await.unwrap_err();
    assert!(
        matches!(error, SendError::Prepare(PrepareError::Encrypt(EncryptError::Server(_)))),
        "{error:?}"
    );
    assert!(!world.server.is_sent_more());
}

#[tokio::test]
async fn a_plaintext_event_is_not_tried_again_once_the_room_is_encrypted() {
    let (mut world, door, _poll) = at_the_door().await;
    let answers = world.server.answers();
    let not_there = json!({ "errcode": "M_NOT_FOUND", "error": "no such state" });
    answers.set("/state/m.room.encryption/", 404, not_there);
    let sending = send(&door);
    let ask = world.server.sent().await;
    assert!(ask.path.contains("/send/com.example.t/"), "{}", ask.path);
    drop(ask);
    world.settle().await;
    let wait = within("a sleep", world.clock.next_sleep()).await;
    let encryption = json!({
        "event_id": "$encryption",
        "sender": ALICE,
        "type": "m.room.encryption",
        "state_key": "",
        "origin_server_ts": 1,
        "content": { "algorithm": "m.megolm.v1.aes-sha2" },
    });
    world.main_loop(json!({ "join": { ROOM: { "timeline": { "events": [encryption] } } } })).await;
    world.clock.advance(wait);
    let error = outcome(sending).await.unwrap_err();
    assert!(matches!(error, SendError::BecameEncrypted), "{error:?}");
    assert!(!world.server.is_sent_more());

    world.clock.advance(secs(1));
    let sending = send(&door);
    let ask = world.server.sent().await;
    assert_encrypted(&ask);
    take(ask).await;
    outcome(sending).await.unwrap();
}
