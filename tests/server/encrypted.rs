//! Encrypted rooms: keys that come late, or never.

use matrix_sdk::ruma::RoomId;
use matrix_sdk_sticky::{Encryption, RemovalReason, StickyKey};
use serde_json::json;

use crate::{
    attacker::Attacker,
    support::{Encryptor, LONG, Person, TYPE, Watcher, content, eventually, in_room, keys, status},
};

#[tokio::test(flavor = "multi_thread")]
async fn an_encrypted_event_is_shown_decrypted_and_by_whom_it_was_encrypted() {
    let (alice, bob) = (Person::new("alice"), Person::new("bob"));
    let room = bob.encrypted_room_with(&[&alice]);
    let mut watcher = Watcher::of(&alice, &[&room]).await;
    let sender = Encryptor::of(&bob, &room, &[&alice]).await;

    let event_id = sender.send(&room, "k", "first").await;
    let raw = bob.api.event(room.as_str(), event_id.as_str()).unwrap();
    assert_eq!(raw["type"], "m.room.encrypted");
    assert_eq!(raw["msc4354_sticky"]["duration_ms"], 600_000);

    let entry = watcher.added("k").await;
    assert_eq!(entry.event_id(), event_id);
    assert_eq!(entry.event_type(), TYPE);
    assert_eq!(entry.sticky_key(), Some("k"));
    assert_eq!(entry.sticky_duration(), LONG);
    assert_eq!(status(&entry), "first");
    assert!(entry.is_encrypted());
    let Encryption::Encrypted(details) = entry.encryption() else {
        panic!("{:?}", entry.encryption());
    };
    assert_eq!(details.owner, bob.id());
    assert_eq!(details.device.as_deref(), sender.client.device_id());

    // It is updated, removed and redacted like any other.
    let refresh = sender.send(&room, "k", "refresh").await;
    assert_eq!(status(&watcher.updated("k").await), "refresh");
    bob.redact(&room, refresh.as_str());
    assert_eq!(status(&watcher.updated("k").await), "first");
    sender.send_content(&room, json!({ "msc4354_sticky_key": "k", "sticky_key": "k" })).await;
    assert_eq!(watcher.removed("k").await, RemovalReason::Removed);
    watcher.assert_silent();
}

#[tokio::test(flavor = "multi_thread")]
async fn plaintext_in_an_encrypted_room_is_shown_and_marked() {
    let (alice, bob) = (Person::new("alice"), Person::new("bob"));
    let room = bob.encrypted_room_with(&[&alice]);
    let mut watcher = Watcher::of(&alice, &[&room]).await;
    bob.send(&room, "k", "clear", LONG);
    let entry = watcher.added("k").await;
    assert_eq!(entry.encryption(), Encryption::Plaintext);
    assert!(!entry.is_encrypted());

    // The two compete for a key.
    let sender = Encryptor::of(&bob, &room, &[&alice]).await;
    sender.send(&room, "k", "encrypted").await;
    assert!(watcher.updated("k").await.is_encrypted());
    bob.send(&room, "k", "clear again", LONG);
    assert!(!watcher.updated("k").await.is_encrypted());
}

#[tokio::test(flavor = "multi_thread")]
async fn with_a_room_key_of_its_own_for_each_event_none_is_lost() {
    let (alice, bob) = (Person::new("alice"), Person::new("bob"));
    let room = bob.encrypted_room_with(&[&alice]);
    let mut watcher = Watcher::of(&alice, &[&room]).await;
    let sender = Encryptor::of(&bob, &room, &[&alice]).await;
    let wanted: Vec<_> = (0..20).map(|n| format!("{n:02}")).collect();
    for key in &wanted {
        sender.discard_key(&room).await;
        sender.send(&room, key, "").await;
    }
    let wanted: Vec<_> = wanted.iter().map(String::as_str).collect();
    assert_eq!(watcher.until_keys(&wanted).await.len(), 20);
    let snapshot = watcher.sticky.events().snapshot();
    assert!(snapshot.iter().all(|entry| entry.is_encrypted()));
    assert_eq!(watcher.room(&room).stats().pending_decryption, 0);
    watcher.assert_silent();
}

#[tokio::test(flavor = "multi_thread")]
async fn an_event_waits_unseen_for_its_key_and_is_shown_when_that_comes() {
    let (alice, bob) = (Person::new("alice"), Person::new("bob"));
    let room = bob.encrypted_room_with(&[&alice]);
    let mut watcher = Watcher::of(&alice, &[&room]).await;
    let sender = Encryptor::of(&bob, &room, &[&alice]).await;
    sender.send(&room, "readable", "").await;
    watcher.added("readable").await;

    sender.discard_key(&room).await;
    sender.proxy.keep_to_device();
    for n in 0..3 {
        sender.send(&room, "late", &n.to_string()).await;
    }
    // This one nobody will ever be able to read.
    let garbage = json!({
        "algorithm": "m.megolm.v1.aes-sha2",
        "ciphertext": "AwgAEnACgAkLmt6qF84IK++J7UDH2Za1YVchHyprqTqsg2yyOwAtHaZHwhj",
        "session_id": "of nobody",
    });
    let send = |txn| {
        let sent = bob.api.send(room.as_str(), "m.room.encrypted", txn, &garbage, Some(600_000));
        sent.unwrap();
    };
    send("garbage");
    assert_waiting(&watcher, &room, 4).await;
    assert_eq!(keys(&watcher.sticky.events().snapshot()), ["readable"]);
    watcher.assert_silent();

    assert!(sender.proxy.release_to_device().await > 0);
    let late = watcher.added("late").await;
    assert_eq!(status(&late), "2", "the newest of the three, in one change");
    assert!(late.is_encrypted());
    let key = StickyKey::new(bob.id(), TYPE, "late");
    assert!(watcher.room(&room).get(&key).is_some());
    assert_eq!(watcher.room(&room).stats().pending_decryption, 1);
    watcher.assert_silent();

    // What follows in the session is read at once, and the one without a key is in nobody's way.
    sender.send(&room, "late", "3").await;
    assert_eq!(status(&watcher.updated("late").await), "3");
    send("garbage again");
    sender.send(&room, "readable", "still").await;
    watcher.updated("readable").await;
}

/// As after each turn of a notification extension, which writes the same store.
#[tokio::test(flavor = "multi_thread")]
async fn a_late_key_counts_after_the_machine_is_remade() {
    let (alice, bob) = (Person::new("alice"), Person::new("bob"));
    let room = bob.encrypted_room_with(&[&alice]);
    let (client, base) = alice.remakeable_client().await;
    let mut watcher = Watcher::with(client, &[&room]).await;
    let sender = Encryptor::of(&bob, &room, &[&alice]).await;
    let mut held = Vec::new();
    for round in 0..4 {
        // Half of the time somebody holds a stream of devices, and with it the old machine.
        if round % 2 == 1 {
            held.push(watcher.client.encryption().devices_stream().await.unwrap());
        }
        base.regenerate_olm(None).await.unwrap();
        sender.discard_key(&room).await;
        sender.proxy.keep_to_device();
        sender.send(&room, &format!("late {round}"), "").await;
        assert_waiting(&watcher, &room, 1).await;
        assert!(sender.proxy.release_to_device().await > 0);
        watcher.added(&format!("late {round}")).await;
    }
    assert!(watcher.sticky.can_encrypt());
    watcher.assert_silent();
}

/// As long as the others have not heard of the device, nothing proves whose session it is.
#[tokio::test(flavor = "multi_thread")]
async fn an_event_is_proven_once_its_device_is_known() {
    let (alice, bob) = (Person::new("alice"), Person::new("bob"));
    let room = bob.encrypted_room_with(&[&alice]);
    let watcher = Watcher::of(&alice, &[&room]).await;
    let mut sender = Attacker::unknown(bob);
    sender.share(&room, &[&alice]).await;
    let message = json!({ "type": TYPE, "content": content("k", "early") });
    let event_id = sender.seal(&room, &message, true);
    let key = StickyKey::new(sender.person.id(), TYPE, "k");
    let until = async |is_encrypted: bool| {
        eventually("it is known how it was encrypted", async || {
            match watcher.room(&room).get(&key) {
                Some(entry) if entry.is_encrypted() == is_encrypted => Ok(entry),
                entry => Err(entry),
            }
        })
        .await
    };
    let entry = until(false).await;
    assert!(matches!(entry.encryption(), Encryption::ForeignSession(_)), "{entry:?}");

    sender.publish();
    let entry = until(true).await;
    assert_eq!(entry.event_id(), event_id);
    let Encryption::Encrypted(details) = entry.encryption() else { panic!("{entry:?}") };
    assert_eq!(details.device.as_deref().unwrap().as_str(), sender.person.device_id());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_waiting_event_that_is_redacted_waits_no_more() {
    let (alice, bob) = (Person::new("alice"), Person::new("bob"));
    let room = bob.encrypted_room_with(&[&alice]);
    let mut watcher = Watcher::of(&alice, &[&room]).await;
    let sender = Encryptor::of(&bob, &room, &[&alice]).await;
    sender.proxy.keep_to_device();
    let event_id = sender.send(&room, "late", "").await;
    assert_waiting(&watcher, &room, 1).await;
    bob.redact(&room, event_id.as_str());
    assert_waiting(&watcher, &room, 0).await;
    sender.proxy.release_to_device().await;
    sender.send(&room, "later", "").await;
    watcher.added("later").await;
    watcher.assert_silent();
}

#[tokio::test(flavor = "multi_thread")]
async fn joining_an_encrypted_room_brings_what_can_be_read_and_keeps_the_rest_waiting() {
    let (alice, bob) = (Person::new("alice"), Person::new("bob"));
    let home = bob.encrypted_room_with(&[&alice]);
    let mut watcher = Watcher::of(&alice, &[&home]).await;
    let room = bob.encrypted_room_with(&[]);
    let sender = Encryptor::of(&bob, &room, &[&alice]).await;
    // Encrypted before alice was there: for nobody, that is.
    sender.send(&room, "before", "").await;
    bob.send(&room, "clear", "", LONG);
    alice.join(&room);
    watcher.added("clear").await;
    in_room(&watcher.client, &room).await;
    assert_waiting(&watcher, &room, 1).await;

    // As a refresh does, by the server's word: the sender's client sees the join, and shares.
    eventually("the sender knows that alice is there", async || {
        let room = sender.client.get_room(&room).unwrap();
        match room.get_member_no_sync(alice.id()).await.unwrap() {
            Some(_) => Ok(()),
            None => Err("not yet"),
        }
    })
    .await;
    sender.send(&room, "after", "").await;
    assert!(watcher.added("after").await.is_encrypted());
}

/// So many events of the room wait for their key, or soon do.
async fn assert_waiting(watcher: &Watcher, room: &RoomId, count: usize) {
    eventually("so many wait", async || match watcher.room(room).stats() {
        stats if stats.pending_decryption == count => Ok(()),
        stats => Err((stats, "wanted", count)),
    })
    .await;
}
