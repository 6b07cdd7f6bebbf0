//! The events: memberships of MatrixRTC, the same in each run.

use serde_json::{Value, json, value::RawValue};

/// The room of all events.
pub const ROOM: &str = "!room:example.org";

/// The longest sticky duration, in milliseconds.
pub const HOUR_MS: u64 = 3_600_000;

/// A membership of MatrixRTC as Element Call sends it and Synapse delivers it.
pub fn event(ids: &mut Ids, key: usize, origin_server_ts: u64, left_ms: u64) -> Value {
    let (sticky_key, user) = key_of(key);
    let user = format!("@user-{user:05}:example.org");
    json!({
        "type": "org.matrix.msc4143.rtc.member",
        "sender": user,
        "content": {
            "slot_id": "m.call#ROOM",
            "application": { "type": "m.call", "m.call.intent": "video" },
            "member": {
                "id": sticky_key,
                "membership": "join",
                "user_id": user,
                "device_id": format!("DEVICE{key:05}"),
            },
            "transports": {
                "published": [{
                    "type": "livekit",
                    "livekit_service_url": "https://matrix-rtc.example.org/livekit/jwt",
                }],
                "can_subscribe": ["livekit"],
            },
            "versions": [],
            "msc4354_sticky_key": sticky_key,
            "sticky_key": sticky_key,
        },
        "origin_server_ts": origin_server_ts,
        "msc4354_sticky": { "duration_ms": HOUR_MS },
        "unsigned": { "age": HOUR_MS - left_ms, "msc4354_sticky_duration_ttl_ms": left_ms },
        "event_id": ids.event_id(),
    })
}

/// The sticky key, which looks like a random UUID, and the number of the user: each has two devices.
pub fn key_of(key: usize) -> (String, usize) {
    let mut ids = Ids::new(key as u64 ^ 0xdead_beef);
    let (a, b) = (ids.next(), ids.next());
    let uuid = format!(
        "{:08x}-{:04x}-4{:03x}-a{:03x}-{:012x}",
        a >> 32,
        a >> 16 & 0xffff,
        a & 0xfff,
        b >> 52,
        b & 0xffff_ffff_ffff
    );
    (uuid, key / 2)
}

/// An event as it stands in a response.
#[allow(clippy::expect_used, reason = "a JSON value is JSON text")]
pub fn raw(event: &Value) -> Box<RawValue> {
    RawValue::from_string(event.to_string()).expect("a JSON value is JSON text")
}

/// Numbers that look random, the same in each run: SplitMix64.
#[derive(Debug)]
pub struct Ids(u64);

impl Ids {
    /// From a seed.
    pub fn new(seed: u64) -> Self {
        Self(seed)
    }

    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// An id that no event had before.
    pub fn event_id(&mut self) -> String {
        const ALPHABET: &[u8; 64] =
            b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";
        let mut id = String::from("$");
        for _ in 0..43 {
            id.push(char::from(ALPHABET[(self.next() % 64) as usize]));
        }
        id
    }
}
