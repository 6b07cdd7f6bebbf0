//! Bounds the bytes that a session keeps of a membership of 60 KB, whatever is in it.
#![allow(clippy::unwrap_used)]

use std::sync::Arc;

use matrix_sdk_sticky::rtc::Roster;
use serde_json::{Value, json};
use sticky_benches::{
    SetClock, Watched, corpus,
    memory::{Counted, live_bytes},
    watched::NOW_MS,
};

#[global_allocator]
static COUNTED: Counted = Counted;

const MEMBERS: i64 = 10;

/// In bytes, beyond the event's own text.
const AT_MOST: i64 = 65_536;

fn content(key: &str) -> Value {
    json!({
        "slot_id": "m.call#ROOM",
        "member": { "id": key, "membership": "join", "user_id": "@mallory:hs", "device_id": "D" },
        "application": { "type": "m.call" },
        "transports": { "published": [], "can_subscribe": [] },
        "versions": [],
        "msc4354_sticky_key": key,
    })
}

/// 60 KB of JSON that repeats this part.
fn many(part: &str) -> Value {
    let count = 60_000 / (part.len() + 1);
    serde_json::from_str(&format!("[{}]", vec![part; count].join(","))).unwrap()
}

/// As much of this part as the crate just reads.
fn some(part: &str) -> Value {
    let count = 4_000 / (part.len() + 1);
    serde_json::from_str(&format!("[{}]", vec![part; count].join(","))).unwrap()
}

fn bytes_of(set: impl Fn(&mut Value, &str)) -> i64 {
    let mut watched = Watched::new(Arc::new(SetClock::new(NOW_MS)));
    let mut changes = Vec::new();
    for n in 0..MEMBERS {
        let key = format!("key-{n}");
        let mut content = content(&key);
        set(&mut content, &key);
        let event = json!({
            "type": "org.matrix.msc4143.rtc.member",
            "sender": "@mallory:hs",
            "event_id": format!("$event-{n}"),
            "origin_server_ts": NOW_MS,
            "content": content,
            "msc4354_sticky": { "duration_ms": 3_600_000 },
            "unsigned": { "msc4354_sticky_duration_ttl_ms": 3_600_000 },
        });
        changes.extend(watched.arrives(watched.delivery(corpus::raw(&event))));
    }
    let now = watched.look();
    assert!(now.is_none());
    let before = live_bytes();
    let mut roster = Roster::new();
    roster.handle_encryption(false);
    for change in &changes {
        roster.handle_change(change);
    }
    let told = roster.poll_changes(changes[0].told_at);
    assert_eq!(told.len(), usize::try_from(MEMBERS).unwrap());
    let snapshot = roster.snapshot(changes[0].told_at);
    let bytes = (live_bytes() - before) / MEMBERS;
    drop((told, snapshot));
    bytes
}

/// One test: the allocator counts all threads together.
#[test]
fn a_hostile_membership_costs_at_most_64_kb() {
    let set = |pointer: &'static str, value: Value| {
        bytes_of(move |content, _| *content.pointer_mut(pointer).unwrap() = value.clone())
    };
    let mut all = Vec::new();
    for part in ["[]", "{}", "{\"a\":0}", "0", "\"\"", "{\"type\":\"\"}"] {
        let application = |list: Value| json!({ "type": "m.call", "x": list });
        all.push((part, "application", set("/application", application(many(part)))));
        all.push((part, "application, short", set("/application", application(some(part)))));
        all.push((part, "published", set("/transports/published", many(part))));
        all.push((part, "published, short", set("/transports/published", some(part))));
        all.push((part, "can_subscribe", set("/transports/can_subscribe", many(part))));
        all.push((part, "versions", set("/versions", many(part))));
        all.push((part, "member", set("/member", json!({ "id": "a", "x": many(part) }))));
        all.push((part, "more", bytes_of(|content, _| content["more"] = many(part))));
    }
    let long = |n: &str| format!("{n}{}", "x".repeat(60_000));
    all.push(("text", "slot_id", set("/slot_id", json!(long("m.call#")))));
    all.push(("text", "type", set("/application/type", json!(long("")))));
    all.push(("text", "device", set("/member/device_id", json!(long("")))));
    all.push(("text", "member id", set("/member/id", json!(long("")))));
    all.push((
        "text",
        "key",
        bytes_of(|content, key| {
            content["msc4354_sticky_key"] = json!(long(key));
        }),
    ));
    all.push((
        "text",
        "key and id",
        bytes_of(|content, key| {
            content["member"]["id"] = json!(long(key));
            content["msc4354_sticky_key"] = json!(long(key));
        }),
    ));
    all.push(("text", "leave", bytes_of(|content, key| {
        let reason = json!({ "code": "x".repeat(30_000), "reason": "y".repeat(30_000) });
        *content = json!({ "slot_id": "m.call#ROOM", "leave_reason": reason, "msc4354_sticky_key": key });
    })));
    all.push(("text", "leave, short", bytes_of(|content, key| {
        let reason = json!({ "code": "x".repeat(2_000), "reason": "y".repeat(2_000) });
        *content = json!({ "slot_id": "m.call#ROOM", "leave_reason": reason, "msc4354_sticky_key": key });
    })));
    let most = all.iter().max_by_key(|(.., bytes)| *bytes).unwrap();
    assert!(all.iter().all(|(.., bytes)| *bytes <= AT_MOST), "at most {most:?}: {all:#?}");
}
