#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::cmp::Ordering;

use super::*;
use crate::{
    map::{EphemeralMap, Limits, ReceivedVia},
    testing::{ALICE, START_MS, debug, event, raw, secs, start},
};

fn kept(text: Box<RawValue>) -> Arc<StickyEvent> {
    let mut map = EphemeralMap::new(Limits::default());
    map.handle_event(start(), ReceivedVia::Section, text).unwrap();
    map.entries(start())[0].clone()
}

#[test]
fn an_entry_says_what_was_sent() {
    let sent = event("$a").sent(5).lasting(7_200_000).ttl(30_000);
    let entry = kept(sent.raw());
    assert_eq!((entry.event_id().as_str(), entry.sender().as_str()), ("$a", ALICE));
    assert_eq!(entry.origin_server_ts_ms(), START_MS + 5_000);
    assert_eq!(entry.sticky_duration(), secs(7_200), "as it stands");
    assert_eq!(entry.expires_in(start().advanced(secs(10))), secs(20));
    assert_eq!(entry.expires_in(start().advanced(secs(40))), Duration::ZERO);
    assert_eq!(entry.raw().get(), sent.text());
    let key = StickyKey::new(entry.sender(), "com.example.t", "k");
    assert_eq!(entry.key(), Some(key));
    assert_eq!(kept(event("$a").unkeyed().raw()).key(), None);
}

#[test]
fn debug_shows_the_metadata_of_an_event() {
    let shown = debug(&kept(event("$a").raw()));
    for part in ["$a", ALICE, "com.example.t", r#"Some("k")"#, "60000", "Value", "Plaintext"] {
        assert!(shown.contains(part), "{part} in {shown}");
    }
}

#[test]
fn only_empty_or_escaped_strings_stand_beside() {
    let plain = event("$a").text();
    let escaped_id = plain.replace(r#":"$a""#, r#":"\u0024a""#);
    let escaped_key = plain.replace(r#":"k""#, r#":"\u006b""#);
    let both = escaped_id.replace(r#":"k""#, r#":"\u006b""#);
    for (text, key, beside) in [
        (plain, "k", false),
        (escaped_id, "k", true),
        (escaped_key, "k", true),
        (both, "k", true),
        (event("$a").key("").text(), "", true),
    ] {
        let entry = kept(raw(&*text));
        let read = (entry.event_id_str(), entry.sticky_key(), entry.beside.is_some());
        assert_eq!(read, ("$a", Some(key), beside), "{text}");
    }
    assert!(kept(event("$a").unkeyed().raw()).beside.is_none());
}

#[test]
fn shared_texts_compare_as_their_texts() {
    // Whether the two share one text or are copies.
    let text = |text: &str| SharedType::from(Box::<str>::from(text));
    let (one, copy, other) = (text("a"), text("a"), text("b"));
    assert!(one == one.clone() && one == copy && one != other);
    for (left, right, order) in [
        (&one, &one, Ordering::Equal),
        (&one, &copy, Ordering::Equal),
        (&one, &other, Ordering::Less),
        (&other, &one, Ordering::Greater),
    ] {
        assert_eq!((left.cmp(right), left.partial_cmp(right)), (order, Some(order)));
    }
}

#[test]
fn entry_order_does_not_depend_on_sharing() {
    // From two maps, so that nothing is shared.
    let (one, other) = (kept(event("$a").raw()), kept(event("$b").raw()));
    assert_eq!(one.cmp_order(&other), Ordering::Equal);
    for (lower, higher) in [
        (event("$a").of_type("a").by("@b:hs").key("b"), event("$a").of_type("b").by("@a:hs")),
        (event("$a").by("@a:hs").key("b"), event("$a").by("@b:hs").key("a")),
        (event("$a").key("a"), event("$a").key("b")),
        (event("$a").key("z"), event("$a").unkeyed()),
        (event("$a").unkeyed(), event("$b").unkeyed()),
    ] {
        let (lower, higher) = (kept(lower.raw()), kept(higher.raw()));
        assert_eq!(lower.cmp_order(&higher), Ordering::Less);
        assert_eq!(higher.cmp_order(&lower), Ordering::Greater);
    }
}

#[test]
fn encryption_and_reasons_are_written_for_people() {
    let owner = UserId::parse(ALICE).unwrap();
    let details = |device: Option<&str>, verification| {
        Arc::new(EncryptionDetails::new(owner.clone(), device.map(Into::into), verification))
    };
    for (encryption, shown) in [
        (Encryption::Plaintext, "sent in plaintext"),
        (
            Encryption::Encrypted(details(Some("PHONE"), Verification::UnsignedDevice)),
            "encrypted by the sender's device PHONE (not cross-signed by its owner)",
        ),
        (
            Encryption::ForeignSession(details(None, Verification::Unproven)),
            "not encrypted by the sender, but by @alice:hs's unknown device (unproven)",
        ),
    ] {
        assert_eq!(encryption.to_string(), shown);
    }
    let words: Vec<_> = [
        Verification::Verified.to_string(),
        Verification::UnverifiedIdentity.to_string(),
        Verification::VerificationViolation.to_string(),
    ]
    .into();
    assert_eq!(
        words,
        [
            "cross-signed by its owner, whom we have verified",
            "cross-signed by its owner, whom we have not verified",
            "its owner was verified, and has another identity now",
        ]
    );
    let reasons = [
        (RemovalReason::Expired, "expired", "its time was over"),
        (RemovalReason::Removed, "removed", "its sender removed it"),
        (RemovalReason::Redacted, "redacted", "it was redacted"),
        (RemovalReason::Ignored, "ignored", "its sender is ignored"),
        (RemovalReason::RoomLeft, "left", "we left the room"),
    ];
    for (reason, name, words) in reasons {
        assert_eq!((reason.as_str(), &*reason.to_string()), (name, words));
    }
}
