//! Events that miss their room key.

use super::*;

#[test]
fn an_encrypted_event_waits_and_shows_nothing() {
    let mut room = Room::new();
    assert_eq!(room.section(&event("$e").encrypted("s1")), Admission::Kept);
    assert_eq!(room.live(), [""; 0]);
    assert_eq!(room.changes(), [""; 0]);
    assert_eq!(room.map.pending_len(), 1);
}

fn needs(room: &Room, event_id: &str, sender: &str) -> bool {
    let sender = <&UserId>::try_from(sender).unwrap();
    room.map.needs_decryption(<&EventId>::try_from(event_id).unwrap(), sender)
}

#[test]
fn what_is_known_wants_no_decryption() {
    let mut room = Room::new();
    assert!(needs(&room, "$e", ALICE));
    let outer = event("$e").encrypted("s");
    room.section(&outer);
    assert!(needs(&room, "$e", ALICE), "it waits");
    room.decrypted(&outer, &event("$e"));
    assert!(!needs(&room, "$e", ALICE));
    room.redact("$early");
    assert!(!needs(&room, "$early", ALICE));
    room.pass(secs(60));
    assert_eq!(room.live(), [""; 0]);
    assert!(!needs(&room, "$e", ALICE), "it is over");
}

/// Otherwise the event would be decrypted and logged each time that a cache delivers it again.
#[test]
fn a_malformed_inside_is_decrypted_once() {
    for waits_first in [false, true] {
        let mut room = Room::keeping(2);
        for (n, inside) in [r#"{"content":{}}"#, r#"{"type":"t","content":[]}"#].iter().enumerate()
        {
            let id = format!("$e{n}");
            let outer = event(&id).encrypted("s");
            if waits_first {
                room.section(&outer);
            }
            let mut decrypt = || {
                let (outer, clear) = (outer.raw(), raw(*inside));
                let encryption = Encryption::Plaintext;
                room.map.handle_decrypted(room.now, ReceivedVia::Section, &outer, clear, encryption)
            };
            assert_eq!(decrypt().unwrap_err().event_id.as_deref(), Some(&*id));
            assert_eq!(decrypt(), Ok(Admission::Repeated));
            assert_eq!(room.map.poll_warning(), n == 0, "once of a sender");
            assert!(!needs(&room, &id, ALICE));
            assert_eq!(room.section(&outer), Admission::Repeated);
        }
        assert_eq!((room.map.pending_len(), room.live().len(), room.map.known()), (0, 0, 2));
        // Such events take quota, and end like any other.
        assert_eq!(room.section(&event("$c")), Admission::Full { first: true });
        room.pass(secs(60));
        assert_eq!((room.live().len(), room.map.known()), (0, 0));
        assert_eq!(room.section(&event("$d")), Admission::Kept);
    }
}

#[test]
fn what_a_full_quota_dropped_is_decrypted_once() {
    let mut room = Room::keeping(10);
    let outer = |n: usize| {
        event(&format!("$e{n}")).encrypted("s").lasting(if n < 5 { 1_000 } else { 60_000 })
    };
    let clear = |n: usize| event(&format!("$e{n}")).key(&n.to_string());
    for n in 0..20 {
        assert!(needs(&room, &format!("$e{n}"), ALICE));
        room.decrypted(&outer(n), &clear(n));
    }
    assert_eq!(room.map.dropped(), 10);
    for n in 0..20 {
        assert!(!needs(&room, &format!("$e{n}"), ALICE), "{n}");
        room.section(&outer(n));
    }
    // Another event could refresh a key, unless the map dropped more than it remembers.
    assert!(!needs(&room, "$refresh", ALICE));
    assert!(needs(&room, "$e11", BOB), "another's");
    // As soon as there is room, a dropped event may come in.
    room.pass(secs(1));
    assert_eq!(room.live().len(), 5);
    assert!(needs(&room, "$e11", ALICE));

    let mut room = Room::keeping(10);
    for n in 0..19 {
        room.decrypted(&outer(n), &clear(n));
    }
    assert!(needs(&room, "$refresh", ALICE));
    let refresh = event("$refresh").encrypted("s").sent(1);
    assert_eq!(room.decrypted(&refresh, &event("$refresh").key("7")), Admission::Kept);
}

#[test]
fn malformed_events_warn_once_a_sender_and_hour() {
    let mut room = Room::new();
    let warns = |room: &mut Room, sender: &str| {
        let odd = event("$x").by(sender).with("/content", json!([]));
        room.map.handle_event(room.now, ReceivedVia::Section, odd.raw()).unwrap_err();
        room.map.poll_warning()
    };
    assert!(warns(&mut room, ALICE));
    assert!(!warns(&mut room, ALICE) && warns(&mut room, BOB) && !warns(&mut room, BOB));
    assert!(!room.map.is_empty(), "it is remembered");
    room.pass(secs(3_600));
    room.changes();
    assert!(room.map.is_empty());
    assert!(warns(&mut room, ALICE));
}

#[test]
fn waiting_events_are_found_by_their_session() {
    let mut room = Room::new();
    room.section(&event("$1").encrypted("s1"));
    room.section(&event("$2").encrypted("s2"));
    room.section(&event("$3").encrypted("s2").without("/content/session_id"));
    assert_eq!(room.map.pending(Some("s2")).len(), 1);
    assert_eq!(room.map.pending(Some("s2"))[0].event_id(), "$2");
    assert_eq!(room.map.pending(None).len(), 3);
    assert_eq!(room.map.pending(Some("s3")).len(), 0);
}

#[test]
fn the_outer_event_gives_the_rank() {
    let mut room = Room::new();
    let outer = event("$e").encrypted("s").sent(10);
    room.section(&outer);
    room.section(&event("$plain").sent(5));
    // The inside says otherwise, and does not count.
    room.decrypted(&outer, &event("$other_id").by(BOB).sent(0).lasting(1));
    assert_eq!(room.live(), ["$e"]);
    let entry = &room.map.entries(room.now)[0];
    assert_eq!((entry.sender().as_str(), entry.event_type()), (ALICE, "com.example.t"));
    assert!(entry.content_raw().unwrap().get().contains("$other_id"));
    assert_eq!(room.map.pending_len(), 0);
}

#[test]
fn an_event_decrypted_at_receipt_never_waits() {
    let mut room = Room::new();
    room.decrypted(&event("$e").encrypted("s"), &event("$e"));
    assert_eq!(room.live(), ["$e"]);
    assert_eq!(room.section(&event("$e").encrypted("s")), Admission::Repeated);
    assert_eq!(room.live(), ["$e"]);
}

#[test]
fn decryption_keeps_the_earliest_end() {
    let mut room = Room::new();
    let outer = event("$e").encrypted("s");
    room.section(&outer.clone().ttl(60_000));
    room.section(&outer.clone().ttl(20_000));
    room.pass(secs(10));
    room.decrypted(&outer.ttl(60_000), &event("$e"));
    room.pass(secs(9));
    assert_eq!(room.live(), ["$e"]);
    room.pass(secs(1));
    assert_eq!(room.live(), [""; 0]);
}

#[test]
fn an_event_that_ended_waiting_stays_away() {
    let mut room = Room::new();
    let outer = event("$e").encrypted("s");
    room.section(&outer);
    room.pass(secs(60));
    assert_eq!(room.decrypted(&outer, &event("$e")), Admission::NotSticky);
    assert_eq!(room.live(), [""; 0]);
    assert_eq!(room.map.pending_len(), 0);
    assert_eq!(room.map.known(), 0);
}

#[test]
fn an_event_redacted_while_waiting_stays_away() {
    let mut room = Room::new();
    let outer = event("$e").encrypted("s");
    room.section(&outer);
    room.redact("$e");
    assert_eq!(room.map.pending_len(), 0, "nobody needs to decrypt it");
    assert_eq!(room.decrypted(&outer, &event("$e")), Admission::NotSticky);
    assert_eq!(room.decrypted(&outer, &event("$e")), Admission::NotSticky);
    assert_eq!(room.live(), [""; 0]);
}

#[test]
fn an_event_redacted_before_receipt_stays_away() {
    let mut room = Room::new();
    room.redact("$e");
    let outer = event("$e").encrypted("s");
    assert_eq!(room.section(&outer), Admission::NotSticky);
    assert_eq!(room.decrypted(&outer, &event("$e")), Admission::NotSticky);
}

#[test]
fn decrypting_gives_the_place_that_waiting_took() {
    let mut room = Room::keeping(1);
    let outer = event("$e").encrypted("s");
    room.section(&outer);
    assert_eq!(room.decrypted(&outer, &event("$e")), Admission::Kept);
    assert_eq!(room.live(), ["$e"]);
}

#[test]
fn a_decrypted_removal_removes() {
    let mut room = Room::new();
    room.section(&event("$a"));
    room.changes();
    let outer = event("$e").encrypted("s").sent(1);
    room.section(&outer);
    room.decrypted(&outer, &event("$e").removal());
    assert_eq!(room.changes(), ["-$a removed"]);
}

#[test]
fn a_malformed_inside_waits_no_more() {
    let mut room = Room::new();
    let outer = event("$e").encrypted("s");
    room.section(&outer);
    let clear = event("$e").without("/content").raw();
    let clear = raw(clear.get().replace("$e", "$inside"));
    let malformed = room
        .map
        .handle_decrypted(
            room.now,
            ReceivedVia::Section,
            &outer.raw(),
            clear,
            Encryption::Plaintext,
        )
        .expect_err("no content");
    assert_eq!(malformed.event_id.as_deref(), Some("$e"), "not what stands inside");
    assert_eq!(room.map.pending_len(), 0);
}

#[test]
fn a_decrypted_redaction_redacts_nothing() {
    let mut room = Room::new();
    room.section(&event("$a"));
    let inside = event("$e").of_type("m.room.redaction").with("/content/redacts", "$a");
    room.decrypted(&event("$e").encrypted("s").by(BOB), &inside.with("/redacts", "$a"));
    assert!(room.live().contains(&"$a".to_owned()));
}

#[test]
fn a_proven_session_updates_its_event() {
    let details = |owner: &str, verification| {
        let owner = UserId::parse(owner).unwrap();
        Arc::new(EncryptionDetails::new(owner, None, verification))
    };
    let proven = |owner| Encryption::Encrypted(details(owner, Verification::UnsignedDevice));
    let unproven = Encryption::ForeignSession(details(ALICE, Verification::Unproven));
    let id = |id| <&EventId>::try_from(id).unwrap();
    let mut room = Room::new();
    for n in ["$a", "$b"] {
        let outer = event(n).encrypted("s");
        room.decrypted_with(&outer, &event(n).key(n), unproven.clone());
    }
    room.decrypted_with(&event("$c").encrypted("s"), &event("$c").key("c"), proven(ALICE));
    room.changes();
    let mut events = room.map.unproven();
    events.sort_by_key(|(event, _)| event.event_id().to_owned());
    let found: Vec<_> = events.iter().map(|(it, id)| (it.event_id_str(), &**id)).collect();
    assert_eq!(found, [("$a", "s"), ("$b", "s")]);

    // The same news again, an unknown event, and another user's session.
    room.map.handle_encryption(id("$a"), unproven);
    room.map.handle_encryption(id("$other"), proven(ALICE));
    assert_eq!(room.changes(), [""; 0]);
    room.map.handle_encryption(id("$a"), proven(ALICE));
    room.map.handle_encryption(id("$b"), proven(BOB));
    assert_eq!(room.changes(), ["$a>$a", "$b>$b"]);
    let is_encrypted = |room: &mut Room| {
        let entries = room.map.entries(room.now);
        entries.iter().map(|event| event.is_encrypted()).collect::<Vec<_>>()
    };
    assert_eq!(is_encrypted(&mut room), [true, false, true]);
    assert_eq!(room.map.unproven_len(), 0);
    // The rest stays the same.
    assert_eq!(room.section(&event("$a").encrypted("s")), Admission::Repeated);
    room.redact("$a");
    assert_eq!(room.changes(), ["-$a redacted"]);
    room.pass(secs(60));
    assert_eq!(room.changes(), ["-$b expired", "-$c expired"]);
    assert_eq!(room.map.known(), 0);
}

#[test]
fn only_the_senders_own_session_counts_as_encrypted() {
    let details = |owner: &str| {
        Arc::new(EncryptionDetails::new(
            UserId::parse(owner).unwrap(),
            None,
            Verification::Unproven,
        ))
    };
    let outer = event("$e").encrypted("s");
    for (said, read) in [
        (Encryption::Plaintext, Encryption::Plaintext),
        (Encryption::Encrypted(details(ALICE)), Encryption::Encrypted(details(ALICE))),
        (Encryption::Encrypted(details(BOB)), Encryption::ForeignSession(details(BOB))),
        (Encryption::ForeignSession(details(BOB)), Encryption::ForeignSession(details(BOB))),
        (Encryption::ForeignSession(details(ALICE)), Encryption::ForeignSession(details(ALICE))),
    ] {
        let mut room = Room::new();
        room.decrypted_with(&outer, &event("$e"), said);
        let entry = &room.map.entries(room.now)[0];
        assert_eq!(entry.encryption(), read);
        let is_encrypted = matches!(read, Encryption::Encrypted(_));
        assert_eq!((entry.is_encrypted(), read.is_encrypted()), (is_encrypted, is_encrypted));
    }
}

#[test]
fn a_plaintext_event_competes_and_is_marked() {
    let mut room = Room::new();
    room.decrypted(&event("$e").encrypted("s"), &event("$e"));
    room.section(&event("$plain").sent(1));
    assert_eq!(room.live(), ["$plain"]);
    assert_eq!(room.map.entries(room.now)[0].encryption(), Encryption::Plaintext);
}
