//! What the unit tests share: events as a server writes them, and a clock that jumps.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::{
    fmt,
    sync::{Arc, Mutex},
    time::Duration,
};

use serde_json::{Value, json, value::RawValue};

use crate::time::{Clock, Moment};

/// The wall clock at which the tests begin, in milliseconds.
pub(crate) const START_MS: u64 = 1_700_000_000_000;

pub(crate) const ALICE: &str = "@alice:hs";
pub(crate) const BOB: &str = "@bob:hs";

/// The moment at which the tests begin.
pub(crate) fn start() -> Moment {
    Moment::new(Duration::from_secs(1_000), Duration::from_millis(START_MS))
}

pub(crate) fn secs(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

pub(crate) fn raw(text: impl Into<String>) -> Box<RawValue> {
    RawValue::from_string(text.into()).unwrap()
}

/// An event as a server writes it: alice's, of `com.example.t`, with the key `k`, sent at the start,
/// sticky for a minute. The whole minute remains.
pub(crate) fn event(event_id: &str) -> EventJson {
    EventJson(json!({
        "event_id": event_id,
        "sender": ALICE,
        "type": "com.example.t",
        "origin_server_ts": START_MS,
        "msc4354_sticky": { "duration_ms": 60_000 },
        "content": { "msc4354_sticky_key": "k", "body": event_id },
        "unsigned": { "msc4354_sticky_duration_ttl_ms": 60_000 },
    }))
}

#[derive(Clone)]
pub(crate) struct EventJson(Value);

/// An event without any of the proposal's names.
impl Default for EventJson {
    fn default() -> Self {
        event("$a").without("/msc4354_sticky").with("/content", json!({})).without_ttl()
    }
}

impl EventJson {
    pub(crate) fn by(self, sender: &str) -> Self {
        self.with("/sender", sender)
    }

    pub(crate) fn of_type(self, event_type: &str) -> Self {
        self.with("/type", event_type)
    }

    pub(crate) fn key(self, key: &str) -> Self {
        self.with("/content/msc4354_sticky_key", key)
    }

    /// Without a key: an entry of its own.
    pub(crate) fn unkeyed(self) -> Self {
        self.with("/content", json!({ "body": "unkeyed" }))
    }

    /// With nothing but the key.
    pub(crate) fn removal(self) -> Self {
        let key = self.0["content"]["msc4354_sticky_key"].clone();
        self.with("/content", json!({ "msc4354_sticky_key": key }))
    }

    /// Encrypted with this session.
    pub(crate) fn encrypted(self, session_id: &str) -> Self {
        let content = json!({ "algorithm": "m.megolm.v1.aes-sha2", "session_id": session_id });
        self.of_type("m.room.encrypted").with("/content", content)
    }

    /// Sent this many seconds after the start.
    pub(crate) fn sent(self, seconds: u64) -> Self {
        self.with("/origin_server_ts", START_MS + seconds * 1_000)
    }

    /// Sticky for this many milliseconds. All of them remain.
    pub(crate) fn lasting(self, ms: u64) -> Self {
        self.with("/msc4354_sticky/duration_ms", ms).ttl(ms)
    }

    pub(crate) fn ttl(self, ms: impl Into<Value>) -> Self {
        self.with("/unsigned/msc4354_sticky_duration_ttl_ms", ms)
    }

    pub(crate) fn without_ttl(self) -> Self {
        self.with("/unsigned", json!({}))
    }

    /// With this value at a JSON pointer. The last part of the pointer may be new.
    pub(crate) fn with(mut self, pointer: &str, value: impl Into<Value>) -> Self {
        let (parent, name) = pointer.rsplit_once('/').unwrap();
        let parent = self.0.pointer_mut(parent).unwrap();
        parent[name] = value.into();
        self
    }

    /// Without the value at a JSON pointer.
    pub(crate) fn without(mut self, pointer: &str) -> Self {
        let (parent, name) = pointer.rsplit_once('/').unwrap();
        let parent = self.0.pointer_mut(parent).unwrap();
        parent.as_object_mut().unwrap().remove(name);
        self
    }

    pub(crate) fn text(&self) -> String {
        self.0.to_string()
    }

    pub(crate) fn raw(&self) -> Box<RawValue> {
        raw(self.text())
    }
}

/// A clock that stands still until it is moved. All clones are one.
#[derive(Clone, Debug)]
pub(crate) struct ManualClock(Arc<Mutex<Moment>>);

impl ManualClock {
    pub(crate) fn new() -> Self {
        Self(Arc::new(Mutex::new(start())))
    }

    pub(crate) fn jump(&self, by: Duration) {
        let mut now = self.0.lock().unwrap();
        *now = now.advanced(by);
    }
}

impl Clock for ManualClock {
    fn now(&self) -> Moment {
        *self.0.lock().unwrap()
    }
}

/// Both forms of the `Debug` output of a value.
pub(crate) fn debug(value: &impl fmt::Debug) -> String {
    format!("{value:?}\n{value:#?}")
}
