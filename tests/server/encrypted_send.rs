//! Sending into encrypted rooms: who can read it, and that nothing else goes out.

use std::{collections::BTreeSet, time::Duration};

use futures_util::future::join_all;
use matrix_sdk::{
    Client,
    deserialized_responses::TimelineEventKind,
    ruma::{EventId, OwnedEventId, RoomId},
};
use matrix_sdk_base::{
    BaseClient, DmRoomDefinition,
    crypto::{OlmMachine, types::requests::AnyOutgoingRequest},
    store::StoreConfig,
};
use matrix_sdk_sticky::{
    BaseClientBuilder, EncryptError, Encryption, PrepareError, RemovalReason, RoomSticky,
    SendError, StartError, Sticky, StickyClientExt as _,
};
use serde_json::{Map, Value, json};
use tokio::time::{sleep, timeout};

use crate::{
    proxy::{Claim, Proxy},
    support::{
        Background, LONG, Person, TYPE, Watcher, content, devices_are_there, eventually, in_room,
        keys, status, sync,
    },
};

fn said(key: &str, text: &str) -> Map<String, Value> {
    match content(key, text) {
        Value::Object(content) => content,
        other => panic!("{other}"),
    }
}

/// The event as the server has it.
fn on_the_server(person: &Person, room: &RoomId, event_id: &EventId) -> Value {
    person.api.event(room.as_str(), event_id.as_str()).unwrap()
}

/// The megolm session of an encrypted event.
fn session(person: &Person, room: &RoomId, event_id: &EventId) -> String {
    let event = on_the_server(person, room, event_id);
    assert_eq!(event["type"], "m.room.encrypted");
    event["content"]["session_id"].as_str().unwrap().to_owned()
}

/// Whether a client can read an event.
async fn can_read(client: &Client, room: &RoomId, event_id: &EventId) -> bool {
    let event = client.get_room(room).unwrap().event(event_id, None).await.unwrap();
    matches!(event.kind, TimelineEventKind::Decrypted(_))
}

/// Waits until a client knows somebody's device.
async fn knows_device(watcher: &Watcher, person: &Person) {
    eventually("the client knows the device", async || {
        let devices = watcher.client.encryption().get_user_devices(person.id()).await.unwrap();
        match devices.keys().any(|device| *device == person.device_id()) {
            true => Ok(()),
            false => Err(devices.keys().map(ToString::to_string).collect::<Vec<_>>()),
        }
    })
    .await;
}

/// Two who know each other's device, in an encrypted room.
async fn two_in(
    alice: &Person,
    bob: &Person,
    room: &RoomId,
) -> (Watcher, Watcher, RoomSticky, RoomSticky) {
    let alice_watch = Watcher::encrypting(alice, &[room]).await;
    let bob_watch = Watcher::encrypting(bob, &[room]).await;
    devices_are_there(alice, &[alice, bob]).await;
    let (alice_door, bob_door) = (alice_watch.room(room), bob_watch.room(room));
    (alice_watch, bob_watch, alice_door, bob_door)
}

#[tokio::test(flavor = "multi_thread")]
async fn two_clients_of_this_crate_read_what_the_other_sends() {
    let (alice, bob) = (Person::new("alice"), Person::new("bob"));
    let room = alice.encrypted_room_with(&[&bob]);
    let (mut alice_watch, mut bob_watch, alice_door, bob_door) = two_in(&alice, &bob, &room).await;

    let sent = alice_door.send_raw(TYPE, said("a", "secret")).with_sticky_duration(LONG);
    let sent = sent.await.unwrap();
    let raw = on_the_server(&bob, &room, &sent.event_id);
    assert_eq!(raw["type"], "m.room.encrypted");
    assert_eq!(raw["msc4354_sticky"]["duration_ms"], 600_000);
    let outside = raw.to_string();
    assert!(!outside.contains("secret") && !outside.contains("sticky_key"), "{outside}");

    let entry = bob_watch.added("a").await;
    assert_eq!((entry.event_id(), entry.sticky_duration()), (&*sent.event_id, LONG));
    let Encryption::Encrypted(details) = entry.encryption() else {
        panic!("{:?}", entry.encryption());
    };
    assert_eq!(details.owner, alice.id());
    assert_eq!(details.device.as_deref(), alice_watch.client.device_id());
    let inside: Value = entry.content().unwrap();
    assert_eq!(inside, content("a", "secret"), "both spellings of the key are inside");
    assert!(alice_watch.added("a").await.is_encrypted(), "one's own as well");

    bob_door.send_raw(TYPE, Map::new()).with_sticky_key("b").await.unwrap();
    // Nothing but the key is a removal, and nobody sees what was not there.
    bob_door.send_raw(TYPE, said("", "here")).with_sticky_key("b").await.unwrap();
    let entry = alice_watch.added("b").await;
    assert!(entry.is_encrypted());
    assert_eq!(status(&entry), "here");
    bob_watch.added("b").await;

    // It is updated and removed, all of it encrypted.
    alice_door.send_raw(TYPE, said("a", "changed")).await.unwrap();
    assert!(bob_watch.updated("a").await.is_encrypted());
    let removal = alice_door.remove(TYPE, "a").await.unwrap();
    assert_eq!(bob_watch.removed("a").await, RemovalReason::Removed);
    session(&bob, &room, &removal.event_id);
    alice_watch.until_keys(&["b"]).await;

    // A redaction is in plaintext, as the server has to read it.
    let redacted = bob_door.send_raw(TYPE, said("b", "oops")).await.unwrap();
    alice_watch.updated("b").await;
    let redaction = bob_door.redact(redacted.event_id).await.unwrap();
    assert_eq!(on_the_server(&alice, &room, &redaction.event_id)["type"], "m.room.redaction");
    eventually("the one before it is there again", async || {
        match alice_watch.sticky.events().snapshot().iter().find(|e| e.sticky_key() == Some("b")) {
            Some(entry) if status(&entry) == "here" => Ok(()),
            other => Err(format!("{other:?}")),
        }
    })
    .await;
}

/// Ours and the SDK's own sends at once, in a room that rotates its key after so many messages (100
/// unless told); all can be read by the other, and none was refused, nor has any panicked.
///
/// But for so many of the SDK's own: one that comes in the middle of a rotation, whoever rotates, may
/// be encrypted with a session that is not on its way to anybody yet.
async fn all_at_once(rotation: Value, rounds: usize, base: BaseClientBuilder, lost: usize) {
    let (alice, bob) = (Person::new("alice"), Person::new("bob"));
    let room = alice.encrypted_room_of(rotation, &[&bob]);
    let client = alice.encrypting_client_of(base, alice.url()).await;
    let alice_watch = Watcher::with(client, &[&room]).await;
    let mut bob_watch = Watcher::encrypting(&bob, &[&room]).await;
    devices_are_there(&alice, &[&alice, &bob]).await;
    let door = alice_watch.room(&room);
    let sdk_room = alice_watch.client.get_room(&room).unwrap();
    let ours = async {
        let mut sent = Vec::new();
        for n in 0..rounds {
            let key = format!("{n:03}");
            sent.push(door.send_raw(TYPE, said(&key, "ours")).await.unwrap().event_id);
        }
        sent
    };
    let ours_too = async {
        for n in 0..rounds {
            let key = format!("{:03}", n + rounds);
            door.send_raw(TYPE, said(&key, "ours")).await.unwrap();
        }
    };
    let sdks = async {
        let mut sent: Vec<OwnedEventId> = Vec::new();
        for n in 0..rounds {
            let body = json!({ "msgtype": "m.text", "body": n.to_string() });
            let result = sdk_room.send_raw("m.room.message", body).await.unwrap();
            sent.push(result.response.event_id);
        }
        sent
    };
    let (sent, (), sdk_sent) = tokio::join!(ours, ours_too, sdks);
    let wanted: Vec<_> = (0..2 * rounds).map(|n| format!("{n:03}")).collect();
    let wanted: Vec<_> = wanted.iter().map(String::as_str).collect();
    bob_watch.until_keys(&wanted).await;
    assert!(bob_watch.sticky.events().snapshot().iter().all(|entry| entry.is_encrypted()));
    eventually("the SDK's own can be read", async || {
        let mut unread = Vec::new();
        for event_id in &sdk_sent {
            if !can_read(&bob_watch.client, &room, event_id).await {
                unread.push(session(&bob, &room, event_id));
            }
        }
        if unread.len() <= lost { Ok(()) } else { Err(unread) }
    })
    .await;
    let all = sent.iter().chain(&sdk_sent);
    let sessions: BTreeSet<_> = all.map(|event_id| session(&bob, &room, event_id)).collect();
    assert!(sessions.len() > 1, "the key was never rotated");
}

#[tokio::test(flavor = "multi_thread")]
async fn ours_and_the_sdks_own_at_once_can_all_be_read_across_the_100_message_rotation() {
    all_at_once(json!({}), 45, BaseClientBuilder::in_memory(), 0).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn ours_and_the_sdks_own_at_once_can_be_read_where_the_key_rotates_all_the_time() {
    // A store in memory shows how far a session is used at once, this one a little later.
    let folder = tempfile::tempdir().unwrap();
    let base = BaseClientBuilder::sqlite(folder.path(), None);
    all_at_once(json!({ "rotation_period_msgs": 3 }), 15, base, 1).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn ours_are_sent_also_where_each_message_has_a_room_key_of_its_own() {
    let (alice, bob) = (Person::new("alice"), Person::new("bob"));
    let room = alice.encrypted_room_of(json!({ "rotation_period_msgs": 1 }), &[&bob]);
    let (_alice_watch, mut bob_watch, door, _) = two_in(&alice, &bob, &room).await;
    let wanted: Vec<_> = (0..10).map(|n| format!("{n:02}")).collect();
    let sends = wanted.iter().map(|key| door.send_raw(TYPE, said(key, "")).into_future());
    let mut sessions = BTreeSet::new();
    for sent in join_all(sends).await {
        sessions.insert(session(&bob, &room, &sent.unwrap().event_id));
    }
    assert_eq!(sessions.len(), 10);
    let wanted: Vec<_> = wanted.iter().map(String::as_str).collect();
    bob_watch.until_keys(&wanted).await;
}

/// The SDK's own sends panic now and then where two are made at once in such a room, whoever makes
/// the other one. Ours do not.
#[tokio::test(flavor = "multi_thread")]
async fn ours_are_sent_also_where_the_sdks_own_use_up_the_room_key_meanwhile() {
    let (alice, bob) = (Person::new("alice"), Person::new("bob"));
    let room = alice.encrypted_room_of(json!({ "rotation_period_msgs": 1 }), &[&bob]);
    let (alice_watch, mut bob_watch, door, _) = two_in(&alice, &bob, &room).await;
    let sdk_room = alice_watch.client.get_room(&room).unwrap();
    let sdks = Background::run(async move {
        loop {
            let room = sdk_room.clone();
            let body = json!({ "msgtype": "m.text", "body": "" });
            let sent = tokio::spawn(async move { room.send_raw("m.room.message", body).await });
            // It may have panicked.
            let _ = sent.await;
        }
    });
    let wanted: Vec<_> = (0..20).map(|n| format!("{n:02}")).collect();
    for key in &wanted {
        door.send_raw(TYPE, said(key, "")).await.unwrap();
    }
    // Each of theirs brings a room key. On a machine that is busy bob would never be done with them.
    drop(sdks);
    let wanted: Vec<_> = wanted.iter().map(String::as_str).collect();
    bob_watch.until_keys(&wanted).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn who_comes_reads_what_follows_and_who_leaves_does_not() {
    let (alice, bob, carol) = (Person::new("alice"), Person::new("bob"), Person::new("carol"));
    let room = alice.encrypted_room_with(&[&bob]);
    let (alice_watch, mut bob_watch, door, _) = two_in(&alice, &bob, &room).await;
    let before = door.send_raw(TYPE, said("before", "")).await.unwrap().event_id;
    bob_watch.added("before").await;

    // Carol joins with her first device.
    carol.join(&room);
    let mut carol_watch = Watcher::encrypting(&carol, &[&room]).await;
    devices_are_there(&alice, &[&carol]).await;
    eventually("alice's client knows that carol is there", async || {
        let room = alice_watch.client.get_room(&room).unwrap();
        room.get_member_no_sync(carol.id()).await.unwrap().map(drop).ok_or("not yet")
    })
    .await;
    // Her device, too. The client has asked for her devices as soon as she was there, which may have been
    // before she had one; and until the server says that this has changed, nobody asks again.
    knows_device(&alice_watch, &carol).await;
    let during = door.send_raw(TYPE, said("during", "")).await.unwrap().event_id;
    bob_watch.added("during").await;
    carol_watch.until_keys(&["during"]).await;
    assert!(!can_read(&carol_watch.client, &room, &before).await);
    assert_eq!(session(&bob, &room, &before), session(&bob, &room, &during), "no need to rotate");

    // Bob comes with a second device.
    let second = bob.on_another_device();
    let mut second_watch = Watcher::encrypting(&second, &[&room]).await;
    knows_device(&alice_watch, &second).await;
    let both = door.send_raw(TYPE, said("both", "")).await.unwrap().event_id;
    second_watch.until_keys(&["both"]).await;
    carol_watch.until_keys(&["both", "during"]).await;

    // Carol leaves.
    carol.leave(&room);
    eventually("alice's client knows that carol is gone", async || {
        let room = alice_watch.client.get_room(&room).unwrap();
        match room.get_member_no_sync(carol.id()).await.unwrap() {
            Some(member) if member.membership().as_str() == "leave" => Ok(()),
            _ => Err("not yet"),
        }
    })
    .await;
    let after = door.send_raw(TYPE, said("after", "")).await.unwrap().event_id;
    bob_watch.until_keys(&["after", "before", "both", "during"]).await;
    assert_ne!(session(&bob, &room, &both), session(&bob, &room, &after));
    // She is given the event itself, as a server that is not honest would.
    let event = on_the_server(&bob, &room, &after);
    let event =
        matrix_sdk::ruma::serde::Raw::from_json(serde_json::value::to_raw_value(&event).unwrap());
    let carols = carol_watch.client.get_room(&room).unwrap();
    let decrypted = carols.decrypt_event(&event, None).await.unwrap();
    assert!(!matches!(decrypted.kind, TimelineEventKind::Decrypted(_)));
}

#[tokio::test(flavor = "multi_thread")]
async fn every_try_is_the_same_request_with_the_same_ciphertext() {
    let (alice, bob) = (Person::new("alice"), Person::new("bob"));
    let room = alice.encrypted_room_with(&[&bob]);
    let mut bob_watch = Watcher::encrypting(&bob, &[&room]).await;
    let proxy = Proxy::before(alice.url()).await;
    let client = alice.encrypting_client_of(BaseClientBuilder::in_memory(), proxy.url()).await;
    let alice_watch = Watcher::with(client, &[&room]).await;
    devices_are_there(&alice, &[&alice, &bob]).await;

    proxy.lose_answers(2);
    let sent = alice_watch.room(&room).send_raw(TYPE, said("k", "once")).await.unwrap();
    let tries = proxy.sends();
    assert_eq!(tries.len(), 3);
    assert!(tries[0].0.contains("/send/m.room.encrypted/"), "{}", tries[0].0);
    assert!(tries.iter().all(|one| *one == tries[0]));
    assert_eq!(bob_watch.added("k").await.event_id(), sent.event_id);
    // It came once.
    alice_watch.room(&room).send_raw(TYPE, said("last", "")).await.unwrap();
    bob_watch.added("last").await;
    bob_watch.assert_silent();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_late_claim_outlives_callers_who_give_up() {
    let (alice, bob) = (Person::new("alice"), Person::new("bob"));
    let room = alice.encrypted_room_with(&[&bob]);
    let mut bob_watch = Watcher::encrypting(&bob, &[&room]).await;
    let proxy = Proxy::before(alice.url()).await;
    let client = alice.encrypting_client_of(BaseClientBuilder::in_memory(), proxy.url()).await;
    let alice_watch = Watcher::with(client, &[&room]).await;
    devices_are_there(&alice, &[&alice, &bob]).await;
    let door = alice_watch.room(&room);

    proxy.answer_claims([Claim::Late(Duration::from_secs(6))]);
    let mut given_up = 0;
    let sent = loop {
        let send = door.send_raw(TYPE, said("k", "")).into_future();
        // Not so short that the event itself is given up, when its turn has come on a busy machine.
        match timeout(Duration::from_secs(2), send).await {
            Ok(sent) => break sent.unwrap(),
            Err(_) => given_up += 1,
        }
    };
    assert!(given_up > 1, "{given_up}");
    assert_eq!(proxy.claims(), 1);
    bob_watch.until_keys(&["k"]).await;
    assert!(can_read(&bob_watch.client, &room, &sent.event_id).await);
}

/// The SDK asks again for one-time keys of a device that had none, after 15 s, and only when somebody sends.
#[tokio::test(flavor = "multi_thread")]
async fn a_device_that_missed_the_room_key_reads_what_follows() {
    let alice = Person::new("alice");
    let own_server = alice.id().server_name().to_string();
    let missed = async |claim: Claim| {
        let (alice, bob) = (Person::new("alice"), Person::new("bob"));
        let room = alice.encrypted_room_with(&[&bob]);
        let mut bob_watch = Watcher::encrypting(&bob, &[&room]).await;
        let proxy = Proxy::before(alice.url()).await;
        let client = alice.encrypting_client_of(BaseClientBuilder::in_memory(), proxy.url()).await;
        let alice_watch = Watcher::with(client, &[&room]).await;
        devices_are_there(&alice, &[&alice, &bob]).await;
        let door = alice_watch.room(&room);
        proxy.answer_claims([claim]);
        let first = door.send_raw(TYPE, said("first", "")).await.unwrap();
        sleep(Duration::from_secs(16)).await;
        door.send_raw(TYPE, said("second", "")).await.unwrap();
        bob_watch.until_keys(&["second"]).await;
        assert!(!can_read(&bob_watch.client, &room, &first.event_id).await);
        assert_eq!(proxy.claims(), 2);
    };
    tokio::join!(missed(Claim::Empty), missed(Claim::Fails(own_server)));
}

/// Prints how long it takes, for a person to read.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "measures, and takes a minute to make the devices"]
#[expect(clippy::print_stdout, reason = "that is what it is for")]
async fn a_room_of_300_devices_is_encrypted_for() {
    let alice = Person::new("alice");
    let people: Vec<_> = (0..30).map(|n| Person::new(&format!("many{n}"))).collect();
    let room = alice.encrypted_room_with(&people.iter().collect::<Vec<_>>());
    for person in &people {
        for _ in 0..10 {
            let device = person.on_another_device();
            let machine = OlmMachine::new(device.id(), device.device_id().into()).await;
            let requests = machine.outgoing_requests().await.unwrap();
            for request in requests {
                if let AnyOutgoingRequest::KeysUpload(upload) = request.request() {
                    let keys = json!({
                        "device_keys": upload.device_keys,
                        "one_time_keys": upload.one_time_keys,
                    });
                    device.api.post("keys/upload", &keys).unwrap();
                }
            }
        }
    }
    let proxy = Proxy::before(alice.url()).await;
    let client = alice.encrypting_client_of(BaseClientBuilder::in_memory(), proxy.url()).await;
    let alice_watch = Watcher::with(client, &[&room]).await;
    let door = alice_watch.room(&room);
    for what in ["first", "second"] {
        let start = std::time::Instant::now();
        door.send_raw(TYPE, said(what, "")).await.unwrap();
        println!("the {what} event: {:?}, claims so far: {}", start.elapsed(), proxy.claims());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_room_that_becomes_encrypted_gets_no_more_plaintext() {
    let (alice, bob) = (Person::new("alice"), Person::new("bob"));
    let room = alice.room_with(&[&bob]);
    let mut bob_watch = Watcher::encrypting(&bob, &[&room]).await;
    let proxy = Proxy::before(alice.url()).await;
    let client = alice.encrypting_client_of(BaseClientBuilder::in_memory(), proxy.url()).await;
    let alice_watch = Watcher::with(client, &[&room]).await;
    devices_are_there(&alice, &[&alice, &bob]).await;
    let door = alice_watch.room(&room);

    let encryption = json!({ "algorithm": "m.megolm.v1.aes-sha2" });
    let switch = || {
        let path = format!("rooms/{room}/state/m.room.encryption");
        alice.api.put(&path, &encryption).unwrap();
    };
    proxy.lose_answers(100);
    let send = door.send_raw(TYPE, said("k", "while it was in the clear"));
    let sending = tokio::spawn(send.into_future());
    eventually("it was tried", async || match proxy.sends().len() {
        0 => Err("no try"),
        _ => Ok(()),
    })
    .await;
    switch();
    let error = sending.await.unwrap().unwrap_err();
    assert!(matches!(error, SendError::BecameEncrypted), "{error:?}");
    bob_watch.added("k").await;

    proxy.lose_answers(0);
    let before = proxy.sends().len();
    door.send_raw(TYPE, said("k", "secret")).await.unwrap();
    assert!(bob_watch.updated("k").await.is_encrypted());
    for (path, _) in &proxy.sends()[before..] {
        assert!(path.contains("/send/m.room.encrypted/"), "{path}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_base_client_that_the_application_made_is_taken_and_anothers_is_not() {
    let (alice, bob) = (Person::new("alice"), Person::new("bob"));
    let room = alice.encrypted_room_with(&[&bob]);
    let mut bob_watch = Watcher::encrypting(&bob, &[&room]).await;
    let base = || {
        let store =
            StoreConfig::new(matrix_sdk::cross_process_lock::CrossProcessLockConfig::SingleProcess);
        BaseClient::new(store, matrix_sdk::ThreadingSupport::Disabled, DmRoomDefinition::default())
    };
    let own = base();
    let builder = Client::builder().homeserver_url(alice.url()).base_client(own.clone());
    let client = builder.build().await.unwrap();
    let other = Sticky::builder(&client).with_base_client(base()).start();
    assert_eq!(other.unwrap_err(), StartError::OtherBaseClient);

    // Given before the login, it is known for as long as the client lives: here the handle that it
    // was given with is gone at once.
    drop(Sticky::builder(&client).with_base_client(own).start().unwrap());
    client.restore_session(alice.session()).await.unwrap();
    let _main_loop = sync(&client);
    in_room(&client, &room).await;
    devices_are_there(&alice, &[&alice, &bob]).await;
    let door = client.sticky().room(&room).unwrap();
    door.send_raw(TYPE, said("k", "")).await.unwrap();
    assert!(bob_watch.added("k").await.is_encrypted());

    // Who has left may get no room key, nor need one.
    alice.leave(&room);
    eventually("the client knows that it has left", async || {
        match client.get_room(&room).map(|room| room.state()) {
            Some(matrix_sdk::RoomState::Left) => Ok(()),
            state => Err(state),
        }
    })
    .await;
    let error = door.send_raw(TYPE, said("k", "")).await.unwrap_err();
    assert!(
        matches!(error, SendError::Prepare(PrepareError::Encrypt(EncryptError::NotJoined))),
        "{error:?}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn from_an_sqlite_store_it_goes_on_after_a_relaunch() {
    let (alice, bob) = (Person::new("alice"), Person::new("bob"));
    let room = alice.encrypted_room_with(&[&bob]);
    let mut bob_watch = Watcher::encrypting(&bob, &[&room]).await;
    devices_are_there(&alice, &[&bob]).await;
    let folder = tempfile::tempdir().unwrap();
    let launch = async || {
        let base = BaseClientBuilder::sqlite(folder.path(), Some("a passphrase"));
        let client = alice.encrypting_client_of(base, alice.url()).await;
        Watcher::with(client, &[&room]).await
    };

    let mut sessions = BTreeSet::new();
    for (n, key) in ["1", "2", "3"].into_iter().enumerate() {
        let watch = launch().await;
        let door = watch.room(&room);
        let sent = door.send_raw(TYPE, said(key, "")).await.unwrap();
        assert!(bob_watch.added(key).await.is_encrypted());
        sessions.insert(session(&bob, &room, &sent.event_id));
        // What was sent before is still there, and can be read.
        eventually("all of them are there", async || {
            match keys(&watch.sticky.events().snapshot()) {
                found if found.len() == n + 1 => Ok(()),
                found => Err(found),
            }
        })
        .await;
    }
    assert_eq!(sessions.len(), 1, "the room key was kept");
}
