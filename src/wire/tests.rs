#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use serde_json::{Value, json};

use super::*;
use crate::testing::{ALICE, EventJson, START_MS, event};

fn raw(text: &str) -> &RawValue {
    serde_json::from_str(text).unwrap()
}

fn read(text: &str) -> Result<Wire<'_>, Malformed> {
    super::read(raw(text))
}

fn read_decrypted(text: &str) -> Result<RawClear<'_>, Malformed> {
    super::read_decrypted(raw(text))
}

fn sticky(text: &str) -> RawSticky<'_> {
    match read(text) {
        Ok(Wire::Sticky(raw)) => raw,
        other => panic!("{other:?} of {text}"),
    }
}

fn duration(event: &EventJson) -> Option<u64> {
    match read(&event.text()).unwrap() {
        Wire::Sticky(raw) => Some(raw.duration_ms),
        Wire::NotSticky { redacts: None } => None,
        other => panic!("{other:?}"),
    }
}

fn remaining(event: &EventJson) -> Option<u64> {
    sticky(&event.text()).remaining_ms
}

/// The key, and whether it is a removal.
fn key_of(content: &str) -> (Option<String>, bool) {
    let text = with_content(content);
    match sticky(&text).content {
        RawContent::Clear { sticky_key, removal } => {
            (sticky_key.map(|key| key.into_owned()), removal)
        }
        other @ RawContent::Encrypted { .. } => panic!("{other:?}"),
    }
}

fn with_content(content: &str) -> String {
    event("$a").with("/content", "CONTENT").text().replace(r#""CONTENT""#, content)
}

fn key(key: &str) -> Option<String> {
    Some(key.to_owned())
}

/// One value of each kind that is not a natural number.
fn odd_numbers() -> Vec<Value> {
    vec![
        json!(-1),
        json!(1.5),
        json!(1000.0),
        json!(-0.0),
        json!(1e25),
        json!("1000"),
        json!(null),
        json!(true),
        json!([1000]),
        json!({ "ms": 1000 }),
    ]
}

#[test]
fn an_event_is_read_without_being_copied() {
    let text = event("$a").text();
    let raw = sticky(&text);
    assert_eq!(
        raw,
        RawSticky {
            event_id: Cow::Borrowed(<&EventId>::try_from("$a").unwrap()),
            sender: Cow::Borrowed(<&UserId>::try_from(ALICE).unwrap()),
            event_type: "com.example.t".into(),
            origin_server_ts_ms: START_MS,
            duration_ms: 60_000,
            remaining_ms: Some(60_000),
            content: RawContent::Clear { sticky_key: Some("k".into()), removal: false },
            redacts: None,
        }
    );
    assert!(matches!(raw.event_id, Cow::Borrowed(_)));
    assert!(matches!(raw.sender, Cow::Borrowed(_)));
    assert!(matches!(raw.event_type, Cow::Borrowed(_)));
    assert!(matches!(raw.content, RawContent::Clear { sticky_key: Some(Cow::Borrowed(_)), .. }));
}

// Both spellings.

#[test]
fn either_spelling_is_read() {
    let stable = EventJson::default()
        .with("/sticky", json!({ "duration_ms": 7 }))
        .with("/unsigned/sticky_duration_remaining_ms", 5)
        .with("/content/sticky_key", "s");
    let text = stable.text();
    let raw = sticky(&text);
    assert_eq!((raw.duration_ms, raw.remaining_ms), (7, Some(5)));
    assert_eq!(raw.content, RawContent::Clear { sticky_key: Some("s".into()), removal: true });
}

#[test]
fn the_unstable_spelling_counts_where_both_are_there() {
    for (stable_first, text) in [
        (true, r#"{"sticky":{"duration_ms":1},"msc4354_sticky":{"duration_ms":2},"#),
        (false, r#"{"msc4354_sticky":{"duration_ms":2},"sticky":{"duration_ms":1},"#),
    ] {
        let rest = EventJson::default().text();
        let text = format!("{text}{}", &rest[1..]);
        assert_eq!(sticky(&text).duration_ms, 2, "stable first: {stable_first}");
    }
    let both = event("$a").with("/unsigned/sticky_duration_remaining_ms", 1).ttl(2);
    assert_eq!(remaining(&both), Some(2));
    let content = r#"{"msc4354_sticky_key":"u","sticky_key":"s","more":1}"#;
    assert_eq!(key_of(content), (key("u"), false));
    let content = r#"{"sticky_key":"s","msc4354_sticky_key":"u"}"#;
    assert_eq!(key_of(content), (key("u"), true));
}

#[test]
fn an_odd_unstable_value_counts_too() {
    let both = event("$a").with("/sticky", json!({ "duration_ms": 1 }));
    assert_eq!(duration(&both.clone().with("/msc4354_sticky", Value::Null)), None);
    assert_eq!(duration(&both.with("/msc4354_sticky/duration_ms", -1)), None);
    let both = event("$a").with("/unsigned/sticky_duration_remaining_ms", 1);
    assert_eq!(remaining(&both.ttl("soon")), None);
    assert_eq!(key_of(r#"{"msc4354_sticky_key":5,"sticky_key":"s"}"#), (None, false));
}

#[test]
fn an_escaped_name_is_that_name() {
    let content = r#"{"msc4354_sticky_\u006bey":"\u006b"}"#;
    assert_eq!(key_of(content), (key("k"), true));
    let text = event("$a")
        .text()
        .replace("msc4354_sticky\":{", r#"msc4354\u005fsticky":{"#)
        .replace("duration_ms\":60000}", r#"duration\u005fms":60000}"#)
        .replace("event_id", r"event\u005fid")
        .replace("_ttl_", r"\u005fttl_");
    assert_ne!(text, event("$a").text());
    let raw = sticky(&text);
    assert_eq!((raw.duration_ms, raw.remaining_ms), (60_000, Some(60_000)));
}

#[test]
fn the_last_of_a_repeated_name_counts() {
    assert_eq!(key_of(r#"{"sticky_key":"a","sticky_key":"b"}"#), (key("b"), true));
    assert_eq!(key_of(r#"{"sticky_key":"a","sticky_key":5}"#), (None, false));
    let text = event("$a").text().replacen('{', r#"{"event_id":"$first","unsigned":5,"#, 1);
    let raw = sticky(&text);
    assert_eq!((raw.event_id.as_str(), raw.remaining_ms), ("$a", Some(60_000)));
}

// Durations.

#[test]
fn a_duration_counts_as_it_stands() {
    for ms in [0, 1, 3_600_000, 3_600_001, 7_200_000, u64::MAX] {
        assert_eq!(duration(&event("$a").lasting(ms)), Some(ms));
    }
}

#[test]
fn a_duration_beyond_u64_saturates() {
    for digits in ["18446744073709551616", &"9".repeat(30), &"9".repeat(400)] {
        let text = event("$a").lasting(60_001).text().replace("60001", digits);
        let raw = sticky(&text);
        assert_eq!((raw.duration_ms, raw.remaining_ms), (u64::MAX, Some(u64::MAX)));
    }
}

#[test]
fn an_invalid_duration_is_not_sticky() {
    for odd in odd_numbers() {
        assert_eq!(duration(&event("$a").with("/msc4354_sticky/duration_ms", odd)), None);
    }
    for odd in [json!(null), json!(60_000), json!([]), json!({}), json!("60000"), json!(true)] {
        assert_eq!(duration(&event("$a").with("/msc4354_sticky", odd)), None);
    }
    let beyond_f64 = event("$a").with("/msc4354_sticky/duration_ms", 60_001).text();
    let beyond_f64 = beyond_f64.replace("60001", "1e999");
    assert_eq!(read(&beyond_f64), Ok(Wire::NotSticky { redacts: None }));
}

#[test]
fn an_odd_remaining_time_counts_as_missing() {
    // It costs nothing else of the event.
    for odd in odd_numbers() {
        assert_eq!(remaining(&event("$a").ttl(odd)), None);
    }
    for odd in [json!(null), json!(5), json!([]), json!("x"), json!(false)] {
        assert_eq!(remaining(&event("$a").with("/unsigned", odd)), None);
    }
    assert_eq!(remaining(&event("$a").without("/unsigned")), None);
    let text = event("$a").ttl(60_001).text().replace("60001", "-1e999");
    assert_eq!(sticky(&text).remaining_ms, None);
}

// Keys.

#[test]
fn a_key_is_any_string() {
    for text in ["", " ", "k", "ü", "\u{0}", "a\"b\\c\n"] {
        let content = json!({ "msc4354_sticky_key": text }).to_string();
        assert_eq!(key_of(&content), (key(text), true));
    }
}

#[test]
fn anything_else_is_no_key_and_no_removal() {
    for odd in ["5", "-1", "1.5", "null", "true", r#"["k"]"#, r#"{"k":1}"#] {
        for name in names::STICKY_KEY {
            assert_eq!(key_of(&format!(r#"{{"{name}":{odd}}}"#)), (None, false));
        }
    }
    assert_eq!(key_of("{}"), (None, false));
    assert_eq!(key_of(r#"{"body":"text"}"#), (None, false));
}

#[test]
fn a_removal_has_nothing_but_the_key() {
    assert!(key_of(r#"{"sticky_key":"k","msc4354_sticky_key":"k"}"#).1);
    for more in ["null", "{}", r#""""#, "false"] {
        assert!(!key_of(&format!(r#"{{"sticky_key":"k","more":{more}}}"#)).1);
    }
    for name in ["session_id", "redacts", "STICKY_KEY"] {
        assert!(!key_of(&format!(r#"{{"sticky_key":"k","{name}":"x"}}"#)).1);
    }
}

#[test]
fn a_key_deeper_down_does_not_count() {
    assert_eq!(key_of(r#"{"m":{"msc4354_sticky_key":"k"}}"#), (None, false));
    let text = event("$a").with("/content", json!({})).with("/msc4354_sticky_key", "k").text();
    assert!(matches!(
        sticky(&text).content,
        RawContent::Clear { sticky_key: None, removal: false }
    ));
}

// Encrypted events.

#[test]
fn an_encrypted_event_shows_only_its_session() {
    let encrypted = event("$a").encrypted("s").with("/content/msc4354_sticky_key", "k").text();
    assert_eq!(sticky(&encrypted).content, RawContent::Encrypted { session_id: Some("s".into()) });
    let odd = event("$a").encrypted("s").with("/content/session_id", 5).text();
    assert_eq!(sticky(&odd).content, RawContent::Encrypted { session_id: None });
}

#[test]
fn of_a_decrypted_event_type_and_content_count() {
    let text = r#"{"type":"t","content":{"sticky_key":"k"},"event_id":5,"sticky":null}"#;
    let clear = read_decrypted(text).unwrap();
    assert_eq!(clear.event_type, "t");
    assert_eq!(clear.content, RawContent::Clear { sticky_key: Some("k".into()), removal: true });
    for (text, field) in [
        (r#"{"content":{}}"#, "type"),
        (r#"{"type":5,"content":{}}"#, "type"),
        (r#"{"type":"t"}"#, "content"),
        (r#"{"type":"t","content":null}"#, "content"),
    ] {
        assert_eq!(read_decrypted(text).unwrap_err().fault, Fault::Field(field));
    }
}

#[test]
fn only_an_encrypted_sticky_event_asks_for_decryption() {
    let id = |event: &EventJson| encrypted_event(&event.raw()).map(|(id, _)| id.to_string());
    assert_eq!(id(&event("$a").encrypted("s")).as_deref(), Some("$a"));
    assert_eq!(id(&event("$a")), None);
    assert_eq!(id(&event("$a").with("/content/body", "m.room.encrypted")), None);
    assert_eq!(id(&event("$a").encrypted("s").without("/msc4354_sticky")), None);
}

// Redactions.

#[test]
fn a_redactions_top_level_target_comes_first() {
    let redaction = event("$r").of_type("m.room.redaction").without("/msc4354_sticky");
    let redacts = |event: &EventJson| match read(&event.text()).unwrap() {
        Wire::NotSticky { redacts } => redacts.map(|event_id| event_id.to_string()),
        other => panic!("{other:?}"),
    };
    let in_content = redaction.with("/content/redacts", "$content");
    assert_eq!(redacts(&in_content).as_deref(), Some("$content"));
    let both = in_content.with("/redacts", "$top");
    assert_eq!(redacts(&both).as_deref(), Some("$top"));
    assert_eq!(redacts(&both.clone().with("/redacts", "no id")), None);
    assert_eq!(redacts(&both.of_type("m.room.message")), None);
}

#[test]
fn a_sticky_redaction_is_both() {
    let text = event("$r").of_type("m.room.redaction").with("/redacts", "$a").text();
    assert_eq!(sticky(&text).redacts.unwrap().as_str(), "$a");
}

#[test]
fn a_redacted_event_is_known_by_redacted_because() {
    let redacted = event("$a").with("/unsigned/redacted_because", json!({ "type": "x" }));
    let is_redacted = |event: &EventJson| matches!(read(&event.text()).unwrap(), Wire::Redacted { event_id } if event_id.as_str() == "$a");
    assert!(is_redacted(&redacted));
    let stripped = redacted.clone().without("/msc4354_sticky").with("/content", json!({}));
    assert!(is_redacted(&stripped));
    assert!(is_redacted(&stripped.without("/sender").without("/origin_server_ts")));
    for odd in [json!(null), json!(false), json!("x"), json!([])] {
        assert!(!is_redacted(&redacted.clone().with("/unsigned/redacted_because", odd)));
    }
}

// Malformed events.

#[test]
fn a_malformed_event_names_the_missing_field() {
    for field in ["sender", "type", "origin_server_ts", "content"] {
        for odd in [json!(null), json!(-5), json!([]), json!(true)] {
            let text = event("$a").with(&format!("/{field}"), odd).text();
            let malformed = read(&text).unwrap_err();
            assert_eq!(malformed.event_id.as_deref(), Some("$a"));
            assert!(matches!(malformed.fault, Fault::Field(_)), "{malformed}");
        }
        let malformed = read(&event("$a").without(&format!("/{field}")).text()).unwrap_err();
        assert_eq!(malformed.fault, Fault::Field(field));
        assert!(malformed.to_string().contains("$a"), "{malformed}");
    }
    for odd in [json!(null), json!(5), json!(""), json!("no dollar"), json!("$".repeat(300))] {
        let malformed = read(&event("$a").with("/event_id", odd).text()).unwrap_err();
        let fault = Fault::Field("event_id");
        assert_eq!(malformed, Malformed { event_id: None, fault });
    }
}

#[test]
fn an_identifier_has_at_most_255_bytes() {
    let event_id = |bytes: usize| format!("${}", "a".repeat(bytes - 1));
    let user_id = |bytes: usize| format!("@{}:hs", "a".repeat(bytes - 4));
    // Spelled plainly, and with an escape.
    for at in ["$", r"\u0024"] {
        let text = |bytes| event("$a").with("/event_id", event_id(bytes)).text().replace('$', at);
        assert_eq!(sticky(&text(255)).event_id.as_str().len(), 255);
        assert_eq!(read(&text(256)).unwrap_err().fault, Fault::Field("event_id"));
    }
    for at in ["@", r"\u0040"] {
        let text = |bytes| event("$a").by(&user_id(bytes)).text().replace('@', at);
        assert_eq!(sticky(&text(255)).sender.as_str().len(), 255);
        assert_eq!(read(&text(256)).unwrap_err().fault, Fault::Field("sender"));
    }
}

#[test]
fn a_malformed_event_says_what_is_wrong() {
    let said = |text: &str| read(text).unwrap_err().to_string();
    let without_sender = event("$a").without("/sender");
    assert_eq!(
        said(&without_sender.text()),
        r#"malformed event "$a": its `sender` is missing or invalid"#
    );
    assert_eq!(
        said(&without_sender.with("/event_id", 5).text()),
        "malformed event without an id: its `sender` is missing or invalid"
    );
    assert_eq!(
        said("{\n  \"type\": \"\\ud800\"}"),
        "malformed event without an id: not a readable JSON object at line 2, column 18"
    );
    let long = said(&format!("[{}]", " ".repeat(MAX_EVENT_BYTES - 1)));
    assert!(long.ends_with("1048577 bytes, more than the 1048576 that are read"), "{long}");
}

#[test]
fn only_sticky_events_are_ever_malformed() {
    for text in ["{}", r#"{"type":5,"content":null,"unsigned":null}"#, r#"{"event_id":[]}"#] {
        assert_eq!(read(text), Ok(Wire::NotSticky { redacts: None }));
    }
}

#[test]
fn what_is_no_object_is_malformed() {
    for text in ["5", "null", "[]", r#""text""#, r#"[{"type":"t"}]"#] {
        let malformed = read(text).unwrap_err();
        assert!(matches!(malformed.fault, Fault::Json { .. }), "{text}: {malformed}");
    }
}

#[test]
fn deep_content_is_no_trouble() {
    for (open, close) in [("[", "]"), (r#"{"a":"#, "}")] {
        let nested = format!("{}1{}", open.repeat(100_000), close.repeat(100_000));
        assert_eq!(key_of(&format!(r#"{{"sticky_key":"k","deep":{nested}}}"#)), (key("k"), false));
        assert_eq!(key_of(&format!(r#"{{"sticky_key":{nested},"more":1}}"#)), (None, false));
        for place in ["unsigned", "prev_content", "sticky"] {
            let text = event("$a").text();
            let text = text.replacen('{', &format!(r#"{{"{place}":{nested},"#), 1);
            assert_eq!(sticky(&text).event_id.as_str(), "$a");
        }
        for place in ["/unsigned", "/redacts", "/unsigned/redacted_because"] {
            let text = event("$a").with(place, "DEEP").text().replace(r#""DEEP""#, &nested);
            read(&text).unwrap();
        }
    }
}

#[test]
fn a_too_long_event_is_only_named() {
    let long = event("$a").with("/content/body", "x".repeat(MAX_EVENT_BYTES)).text();
    let malformed = read(&long).unwrap_err();
    assert_eq!(malformed.event_id.as_deref(), Some("$a"));
    assert_eq!(malformed.fault, Fault::TooLong { bytes: long.len() });

    let room = MAX_EVENT_BYTES - event("$a").with("/content/body", "").text().len();
    let longest = event("$a").with("/content/body", "x".repeat(room)).text();
    assert_eq!(longest.len(), MAX_EVENT_BYTES);
    sticky(&longest);
}

#[test]
fn half_a_surrogate_costs_only_its_event() {
    // The error names the event.
    // In a field that nobody reads, it costs nothing. The same holds for keys.
    let content = r#"{"sticky_key":"k","body":"\ud800","\udfff":1}"#;
    assert_eq!(key_of(content), (key("k"), false));
    // In a field that is read, it is not a string in Rust.
    for content in [r#"{"sticky_key":"\ud800"}"#, r#"{"sticky_key":"\udc00\ud800","a":1}"#] {
        let malformed = read(&with_content(content)).unwrap_err();
        assert_eq!(malformed.event_id.as_deref(), Some("$a"));
    }
    // A whole pair is fine.
    assert_eq!(key_of(r#"{"sticky_key":"\ud83d\ude00"}"#), (key("😀"), true));
}

#[test]
fn an_event_may_be_odd_twice() {
    // Each alone goes to the careful reading, which must accept both.
    let content = r#"{"sticky_key":"k","\udfff":1}"#;
    let text = with_content(content).replace("_ttl_ms\":60000", "_ttl_ms\":-1");
    let raw = sticky(&text);
    assert_eq!(raw.remaining_ms, None);
    assert!(matches!(raw.content, RawContent::Clear { sticky_key: Some(_), removal: false }));
}

#[test]
fn a_fault_names_a_place_and_no_text() {
    let secret = "syd_secret";
    for odd in [json!(5), json!("\u{7}")] {
        let text = event("$a").with("/sender", odd).with("/unsigned/delay_id", secret).text();
        let malformed = read(&text).unwrap_err();
        assert!(!format!("{malformed} {malformed:?}").contains(secret));
    }
    let text = with_content(r#"{"sticky_key":"\ud800","syd_secret":1}"#);
    let malformed = read(&text).unwrap_err();
    assert!(!format!("{malformed} {malformed:?}").contains(secret));
    // An id cannot write a line of its own into a log.
    let text = event("$a").without("/sender").with("/event_id", "$a\nWARN all is well").text();
    assert!(!read(&text).unwrap_err().to_string().contains('\n'));
}

#[test]
fn content_is_the_last_one_as_text() {
    assert_eq!(content(r#"{"a":1,"content":{"b": 2}}"#).unwrap().get(), r#"{"b": 2}"#);
    assert_eq!(content(r#"{"content":1,"content":2,"\ud800":3}"#).unwrap().get(), "2");
    assert!(content("{}").is_err());
}

// Whole responses.

fn events(rooms: &RoomEvents<'_>) -> Vec<(String, Vec<String>)> {
    rooms
        .iter()
        .map(|(room_id, events)| {
            (room_id.to_string(), events.iter().map(|event| event.get().to_owned()).collect())
        })
        .collect()
}

fn one(room_id: &str, texts: &[&str]) -> (String, Vec<String>) {
    (room_id.to_owned(), texts.iter().map(|text| (*text).to_owned()).collect())
}

#[test]
fn a_sliding_response_is_read_in_either_spelling() {
    for name in names::EXTENSION {
        let body = format!(
            r#"{{"pos":"p1","lists":{{}},"extensions":{{"to_device":{{}},"{name}":{{
                "next_batch":"b1","rooms":{{"!a:hs":{{"events":[{{"x":1}},5]}},"!b:hs":{{"events":[]}}}}
            }}}}}}"#
        );
        let response = read_sliding(body.as_bytes()).unwrap();
        assert_eq!(response.pos.as_deref(), Some("p1"));
        assert_eq!(response.next_batch.as_deref(), Some("b1"));
        assert_eq!(
            events(&response.rooms),
            [one("!a:hs", &[r#"{"x":1}"#, "5"]), one("!b:hs", &[])]
        );
    }
}

#[test]
fn nonsense_in_a_sliding_response_costs_nothing_else() {
    let body = r#"{"pos":5,"extensions":{"org.matrix.msc4354.sticky_events":{"next_batch":null,
        "rooms":{"no room":{"events":[1]},"!a:hs":5,"!b:hs":{"events":{}},"!c:hs":{"events":null},
        "!d:hs":{"events":["ok"],"more":[]}}}}}"#;
    let response = read_sliding(body.as_bytes()).unwrap();
    assert_eq!((response.pos, response.next_batch), (None, None));
    let found: Vec<_> =
        events(&response.rooms).into_iter().filter(|(_, events)| !events.is_empty()).collect();
    assert_eq!(found, [one("!d:hs", &[r#""ok""#])]);
    for body in ["", "5", "[]", "null", "<html>", r#"{"pos":"p"#] {
        assert!(read_sliding(body.as_bytes()).is_err(), "{body}");
    }
    for body in ["{}", r#"{"extensions":null}"#, r#"{"extensions":{"sticky_events":[]}}"#] {
        assert!(read_sliding(body.as_bytes()).unwrap().rooms.is_empty(), "{body}");
    }
}

#[test]
fn a_response_that_is_no_object_says_so() {
    for error in [read_sliding(b"5").unwrap_err(), read_v3(b"[]").unwrap_err()] {
        assert!(error.to_string().contains("expected an object at line 1"), "{error}");
    }
}

#[test]
fn a_v3_response_is_read_in_either_spelling() {
    for name in names::SECTION {
        let body = format!(
            r#"{{"next_batch":"s1","rooms":{{"leave":{{"!x:hs":{{"timeline":{{"events":[0]}}}}}},
            "join":{{"!a:hs":{{"{name}":{{"events":[1,2]}},"timeline":{{"events":[3]}}}},
            "!b:hs":{{"state":{{"events":[4]}}}},"!c:hs":null}}}}}}"#
        );
        let response = read_v3(body.as_bytes()).unwrap();
        assert_eq!(response.next_batch.as_deref(), Some("s1"));
        assert_eq!(events(&response.sections), [one("!a:hs", &["1", "2"])]);
        assert_eq!(events(&response.timelines), [one("!a:hs", &["3"])]);
    }
}

#[test]
fn deep_nonsense_in_a_response_costs_nothing_else() {
    let deep = format!("{}{}", "[".repeat(100_000), "]".repeat(100_000));
    let body = format!(
        r#"{{"pos":"p","deep":{deep},"extensions":{{"e2ee":{deep},"sticky_events":{{
            "rooms":{{"!a:hs":{{"events":[{deep},1]}},"!b:hs":{deep}}}}}}}}}"#
    );
    let response = read_sliding(body.as_bytes()).unwrap();
    assert_eq!(response.rooms[0].1.len(), 2);
}

#[test]
fn debug_of_a_response_shows_counts_only() {
    let body = r#"{"pos":"p","extensions":{"sticky_events":{"rooms":{
        "!a:hs":{"events":["secret",2]},"!b:hs":{"events":[3]}}}}}"#;
    let shown = crate::testing::debug(&read_sliding(body.as_bytes()).unwrap());
    assert!(shown.contains("rooms: 2") && shown.contains("events: 3"), "{shown}");
    assert!(!shown.contains("secret"));
    let body = r#"{"rooms":{"join":{
        "!a:hs":{"sticky":{"events":["secret",2]},"timeline":{"events":[3]}},
        "!b:hs":{"sticky":{"events":[4]},"timeline":{"events":[5,6,7]}}}}}"#;
    let shown = crate::testing::debug(&read_v3(body.as_bytes()).unwrap());
    assert!(shown.contains("sections: 3") && shown.contains("timelines: 4"), "{shown}");
    assert!(!shown.contains("secret"));
}
