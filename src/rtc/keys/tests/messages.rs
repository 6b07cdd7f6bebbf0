//! Key messages as they are read and written, participants, and peers.

use super::*;

fn content(value: Value) -> serde_json::Map<String, Value> {
    match value {
        Value::Object(content) => content,
        other => panic!("{other}"),
    }
}

fn base64_of(length: usize) -> String {
    Base64::<Standard, _>::new(vec![7; length]).encode()
}

#[test]
fn each_dialect_reads_what_it_writes() {
    let room_id = owned_room_id!("!room:hs");
    let key = MediaKey::new(Zeroizing::new(vec![7; 32]));
    let us = participant("us");
    let write = |dialect| message::write(dialect, &room_id, &us, (9, &key), 17).unwrap();
    let (event_type, text) = write(Dialect::Msc4143);
    assert_eq!(event_type, "org.matrix.msc4143.rtc.encryption_key");
    let written: Value = serde_json::from_str(&text).unwrap();
    assert_eq!(
        written,
        json!({
            "room_id": ROOM,
            "member_id": "m-us",
            "media_key": { "index": 9, "key": base64_of(32) },
            "format": 0,
        })
    );
    let (event_type, text) = write(Dialect::ElementCall);
    assert_eq!(event_type, "io.element.call.encryption_keys");
    let written: Value = serde_json::from_str(&text).unwrap();
    assert_eq!(
        written,
        json!({
            "keys": { "index": 9, "key": base64_of(32) + "=" },
            "room_id": ROOM,
            "member": { "id": "m-us", "claimed_device_id": "D-us" },
            "session": { "application": "m.call", "call_id": "", "scope": "m.room" },
            "sent_ts": 17,
        })
    );
    for dialect in [Dialect::Msc4143, Dialect::ElementCall] {
        let (event_type, text) = write(dialect);
        assert_eq!(KeyMessage::dialect_of(event_type), Some(dialect));
        let read = KeyMessage::read(dialect, serde_json::from_str(&text).unwrap()).unwrap();
        assert_eq!(read.room_id, room_id);
        assert_eq!(read.member_id.as_deref(), Some("m-us"));
        assert_eq!(read.index, 9);
        assert_eq!(read.key.as_bytes(), [7; 32]);
    }
    assert_eq!(KeyMessage::dialect_of("m.rtc.encryption_key"), Some(Dialect::Msc4143));
    assert_eq!(KeyMessage::dialect_of("m.room_key"), None);
}

#[test]
fn a_malformed_message_names_its_field() {
    let right = json!({
        "room_id": ROOM,
        "member_id": "m",
        "media_key": { "index": 255, "key": base64_of(32) },
        "format": 0,
    });
    let read = |pointer: &str, value: Value| {
        let mut content_of = right.clone();
        match content_of.pointer_mut(pointer) {
            Some(place) => *place = value,
            None => content_of = value,
        }
        KeyMessage::read(Dialect::Msc4143, content(content_of)).map(drop)
    };
    assert_eq!(read("/format", json!(0)), Ok(()));
    assert_eq!(read("/format", json!(1)), Err("format"));
    assert_eq!(read("/format", json!("0")), Err("format"));
    assert_eq!(read("/room_id", json!("room")), Err("room_id"));
    assert_eq!(read("/member_id", json!(1)), Err("member_id"));
    for index in [json!(256), json!(-1), json!(1.5), json!("1"), json!(null)] {
        assert_eq!(read("/media_key/index", index), Err("media_key.index"));
    }
    assert_eq!(read("/media_key/key", json!(base64_of(32) + "=")), Ok(()));
    for key in [json!(base64_of(16)), json!(base64_of(33)), json!("%"), json!(""), json!([7])] {
        assert_eq!(read("/media_key/key", key), Err("media_key.key"));
    }
    assert_eq!(read("-", json!({})), Err("media_key.key"));
}

#[test]
fn element_call_keys_have_16_to_64_bytes() {
    let read = |key: String, member: Value| {
        let keys = json!({ "index": 1, "key": key });
        let message = json!({ "keys": keys, "member": member, "room_id": ROOM });
        KeyMessage::read(Dialect::ElementCall, content(message))
    };
    let member = json!({ "id": "m", "claimed_device_id": "D" });
    for length in [16, 32, 64] {
        let message = read(base64_of(length), member.clone()).unwrap();
        assert_eq!(message.key.as_bytes().len(), length);
        assert_eq!(message.claimed_device.as_deref(), Some("D"));
    }
    for length in [0, 15, 65] {
        assert_eq!(read(base64_of(length), member.clone()).map(drop), Err("keys.key"));
    }
    let without_id = read(base64_of(16), json!({ "claimed_device_id": "D" })).unwrap();
    assert_eq!(without_id.member_id, None);
    let error = read(base64_of(16), json!({ "id": "m" })).map(drop);
    assert_eq!(error, Err("member.claimed_device_id"));
}

#[test]
fn no_key_is_shown() {
    let mut story = Story::with(&["a"]);
    let message = message("m-a", 0, 251);
    let change =
        KeyChange::Own { participant: participant("us"), index: 0, key: message.key.clone() };
    story.is_slow = true;
    story.joins("b");
    let shown = [
        debug(&message),
        debug(&change),
        debug(&message.key),
        debug(&story.keys),
        debug(&story.unanswered),
    ]
    .concat();
    for secret in ["251", "fb", "[1, 1", "AQEB", "+/v7"] {
        assert!(!shown.contains(secret), "{secret} in {shown}");
    }
}

#[test]
fn livekit_identities_are_those_of_matrix_js_sdk() {
    let participant = Participant::new(user_id!("@alice:hs"), "m-1", "DEVICE\"é");
    assert_eq!(participant.livekit_identity(), "CzTP1d8SMurAYVhVOlWH0wJrl2Rj7Hw6Oi/KGp3Z9/U");
}

/// A session with one membership of this content, encrypted by alice's device, as it is proven or not;
/// and what the member is to us, in a session that speaks this dialect.
fn peers_of(content: Value, verification: Verification, dialect: Dialect) -> Vec<Peer> {
    let maps = EphemeralMaps::new(ManualClock::new(), Limits::default());
    let outer = event("$e").encrypted("s").ttl(600_000);
    let clear = event("$e").of_type("org.matrix.msc4143.rtc.member").with("/content", content);
    let alice = UserId::parse(ALICE).unwrap();
    let details = EncryptionDetails::new(alice, Some("D-alice".into()), verification);
    let encryption = match verification {
        Verification::Unproven => Encryption::ForeignSession(Arc::new(details)),
        _ => Encryption::Encrypted(Arc::new(details)),
    };
    maps.handle([Delivery {
        room_id: owned_room_id!("!room:hs"),
        received: start(),
        via: ReceivedVia::Section,
        arrivals: vec![Arrival::Decrypted { outer: outer.raw(), clear: clear.raw(), encryption }],
    }]);
    let mut roster = Roster::new();
    let slot = json!({
        "type": "m.rtc.slot",
        "state_key": "m.call#ROOM",
        "sender": ALICE,
        "event_id": "$slot",
        "content": {
            "status": "open",
            "application": { "type": "m.call" },
            "encryption": { "type": "m.per_member" },
        },
    });
    roster.handle_state_event(start(), &slot.to_string());
    roster.handle_snapshot(&maps.view().snapshot());
    roster.poll_changes(start());
    let session = roster.snapshot(start()).session("m.call#ROOM");
    assert_eq!(session.len() + session.candidates().count(), 1);
    session.members().filter_map(|member| Peer::of(member, dialect)).collect()
}

/// The form of the membership says which dialect the peer reads.
#[test]
fn only_a_proven_device_makes_a_peer() {
    let both = json!({
        "slot_id": "m.call#ROOM",
        "member": {
            "id": "m",
            "membership": "join",
            "user_id": ALICE,
            "device_id": "D-alice",
        },
        "application": { "type": "m.call" },
        "transports": { "published": [], "can_subscribe": [] },
        "versions": [],
        "sticky_key": "m",
        "msc4354_sticky_key": "m",
    });
    let mut msc4143 = both.clone();
    msc4143.as_object_mut().unwrap().remove("versions");
    let mut element_call = both.clone();
    element_call["member"].as_object_mut().unwrap().remove("membership");
    let reads = |content: &Value, session| {
        let peers = peers_of(content.clone(), Verification::UnsignedDevice, session);
        let participant = Participant::new(UserId::parse(ALICE).unwrap(), "m", "D-alice");
        assert_eq!(peers.len(), 1, "{content}");
        assert_eq!(peers[0].participant, participant);
        peers[0].reads
    };
    for session in [Dialect::Msc4143, Dialect::ElementCall] {
        assert_eq!(reads(&both, session), session);
        assert_eq!(reads(&msc4143, session), Dialect::Msc4143);
        assert_eq!(reads(&element_call, session), Dialect::ElementCall);
    }
    // What it claims, it may claim.
    assert_eq!(peers_of(both, Verification::Unproven, Dialect::Msc4143), []);
}
