//! The body of the target `rtc`: one room, seen twice. The first roster gets everything; the second one
//! nothing that mallory says in sticky events, in the state under her own key, or in key messages.
//!
//! The invariant: whatever mallory says, everybody else stays the same. Members and candidates have the
//! same event, the same device and the same media keys. Both rosters get what the server vouches for:
//! slots, who is in the room, encryption, redactions.

use std::{
    collections::{BTreeSet, HashSet},
    sync::{Arc, Mutex},
    time::Duration,
};

use arbitrary::{Result, Unstructured};
use matrix_sdk_sticky::{
    event::{Encryption, EncryptionDetails, Verification},
    map::{Limits, ReceivedVia},
    rtc::{ROOM_CALL, Roster, RtcSnapshot},
    time::{Clock, Moment},
    view::{Arrival, Changes, Delivery, EphemeralMaps, Subscription},
};
use ruma::{EventId, OwnedUserId, RoomId, UserId, room_id};
use serde_json::{Value, json, value::RawValue};

const START_MS: u64 = 1_700_000_000_000;
const STEPS: usize = 40;

/// The last one is mallory.
const USERS: [&str; 3] = ["@alice:hs", "@bob:far", "@mallory:hs"];
const MALLORY: usize = 2;
const DEVICES: [&str; 2] = ["PHONE", "LAPTOP"];
const KEYS: [&str; 3] = ["a", "b", "@alice:hs:PHONE"];
const SLOTS: [&str; 4] = [ROOM_CALL, "m.call#room", "m.game#x", ""];
const MEMBERSHIPS: [&str; 5] = ["join", "leave", "ban", "invite", "knock"];

fn room() -> &'static RoomId {
    room_id!("!room:hs")
}

/// Panics if mallory changes somebody else.
pub(crate) fn run(data: &[u8]) {
    let mut u = Unstructured::new(data);
    let mut worlds = [World::new(), World::new()];
    let mut number = 0;
    for _ in 0..STEPS {
        if u.is_empty() {
            return;
        }
        let Ok(step) = step(&mut u, &mut number) else { return };
        let [whole, without] = &mut worlds;
        whole.handle(&step, true);
        without.handle(&step, false);
        let [whole, without] = [whole.others(), without.others()];
        assert_eq!(whole, without, "after {step:?}");
    }
}

#[derive(Debug)]
enum Step {
    Response(Vec<Sticky>),
    Redaction(String),
    State { by: usize, is_own: bool, text: String },
    InRoom(usize, bool),
    Encryption(bool),
    Ignore(HashSet<OwnedUserId>),
    Leave,
    Pass(u64),
    Key(Key),
}

#[derive(Debug)]
struct Sticky {
    by: usize,
    outer: Value,
    clear: Option<(Value, Encryption)>,
}

/// A key message.
#[derive(Debug)]
#[cfg_attr(not(feature = "media-keys"), allow(dead_code, reason = "there are no media keys"))]
struct Key {
    by: usize,
    device: &'static str,
    verification: Verification,
    is_element_call: bool,
    content: Value,
}

fn step(u: &mut Unstructured<'_>, number: &mut usize) -> Result<Step> {
    *number += 1;
    Ok(match u.int_in_range(0..=15)? {
        0..=5 => {
            let count = u.int_in_range(1..=3)?;
            let stickies = (0..count).map(|n| sticky(u, &format!("{number}-{n}")));
            Step::Response(stickies.collect::<Result<_>>()?)
        }
        6 => {
            let (of, n) = (u.int_in_range(1..=*number)?, u.int_in_range(0..=2)?);
            Step::Redaction(format!("$sticky-{of}-{n}"))
        }
        7 => {
            let status = *u.choose(&["open", "closed", "ajar"])?;
            let mut content = json!({ "status": status, "application": { "type": "m.call" } });
            if u.arbitrary()? {
                content["encryption"] = json!({ "type": "m.per_member" });
            }
            let kind = *u.choose(&["org.matrix.msc4143.rtc.slot", "m.rtc.slot"])?;
            let slot_id = SLOTS[u.int_in_range(0..=2)?];
            state(u, *number, kind, slot_id, content)?
        }
        8 | 9 => {
            let user = *u.choose(&USERS)?;
            let content = json!({ "membership": *u.choose(&MEMBERSHIPS)? });
            state(u, *number, "m.room.member", user, content)?
        }
        10 => call_member(u, *number)?,
        11 => Step::InRoom(u.int_in_range(0..=2)?, u.arbitrary()?),
        12 => match u.int_in_range(0..=3)? {
            0 => Step::Leave,
            1 => Step::Ignore(USERS[..u.int_in_range(0..=2)?].iter().map(user_id).collect()),
            _ => Step::Encryption(u.arbitrary()?),
        },
        13 => Step::Pass(*u.choose(&[1, 1_000, 60_000, 600_000, 3_600_000])?),
        _ => Step::Key(key(u)?),
    })
}

fn user_id(user: &&str) -> OwnedUserId {
    UserId::parse(*user).unwrap()
}

/// When something was sent, in milliseconds.
fn sent_ms(u: &mut Unstructured<'_>) -> Result<u64> {
    Ok(START_MS + u64::from(u.int_in_range(0..=60_u8)?) * 1_000)
}

/// Something that a user sends, about anybody.
fn sticky(u: &mut Unstructured<'_>, number: &str) -> Result<Sticky> {
    let by = u.int_in_range(0..=2)?;
    let key = *u.choose(&KEYS)?;
    let slot_id = *u.choose(&SLOTS)?;
    let claimed_user = if u.ratio(1, 4)? { *u.choose(&USERS)? } else { USERS[by] };
    let device = *u.choose(&DEVICES)?;
    let leave = json!({ "slot_id": slot_id, "msc4354_sticky_key": key });
    let mut content = match u.int_in_range(0..=7)? {
        0 => leave,
        1 => json!({ "msc4354_sticky_key": key }),
        kind => json!({
            "slot_id": slot_id,
            "member": {
                "id": if kind == 2 { *u.choose(&KEYS)? } else { key },
                "membership": if kind == 3 { "leave" } else { "join" },
                "user_id": claimed_user,
                "device_id": device,
            },
            "application": { "type": "m.call" },
            "transports": { "published": [], "can_subscribe": [] },
            "versions": [],
            "sticky_key": key,
            "msc4354_sticky_key": key,
        }),
    };
    if u.ratio(1, 6)? {
        let path =
            *u.choose(&["/member/membership", "/member/device_id", "/transports", "/slot_id"])?;
        let all_odd = [json!(null), json!(1), json!([]), json!({}), json!("join")];
        if let Some(value) = content.pointer_mut(path) {
            *value = u.choose(&all_odd)?.clone();
        }
    }
    let stable = u.ratio(1, 8)?;
    let event_type = if stable { "m.rtc.member" } else { "org.matrix.msc4143.rtc.member" };
    let mut outer = json!({
        "type": event_type,
        "sender": USERS[by],
        "event_id": format!("$sticky-{number}"),
        "origin_server_ts": sent_ms(u)?,
        "content": content,
        "msc4354_sticky": { "duration_ms": u.choose(&[3_600_000, 600_000, 1_000])? },
        "unsigned": { "msc4354_sticky_duration_ttl_ms": 3_600_000 },
    });
    let clear = if u.arbitrary()? {
        // Whatever is sealed in it besides, it is a message.
        let mut clear = json!({ "type": event_type, "content": content, "room_id": room() });
        if u.ratio(1, 4)? {
            clear["state_key"] = json!(*u.choose(&USERS)?);
            clear["redacts"] = json!("$sticky-1-0");
        }
        outer["type"] = json!("m.room.encrypted");
        outer["content"] = json!({
            "algorithm": "m.megolm.v1.aes-sha2",
            "ciphertext": "x",
            "session_id": "session",
            "device_id": "X",
            "sender_key": "key",
        });
        let owner = if u.ratio(1, 8)? { user_id(u.choose(&USERS)?) } else { user_id(&USERS[by]) };
        let device = Some((*u.choose(&DEVICES)?).into());
        let verification = *u.choose(&[
            Verification::UnverifiedIdentity,
            Verification::UnsignedDevice,
            Verification::Unproven,
        ])?;
        let details = EncryptionDetails::new(owner, device, verification);
        Some((clear, Encryption::Encrypted(Arc::new(details))))
    } else {
        None
    };
    Ok(Sticky { by, outer, clear })
}

fn state(
    u: &mut Unstructured<'_>,
    number: usize,
    event_type: &str,
    key: &str,
    content: Value,
) -> Result<Step> {
    let by = u.int_in_range(0..=2)?;
    let mut unsigned = json!({});
    if u.arbitrary()? {
        unsigned["prev_content"] = json!({ "membership": *u.choose(&MEMBERSHIPS)? });
    }
    if u.arbitrary()? {
        unsigned["replaces_state"] = json!(format!("$state-{}", number.saturating_sub(1)));
    }
    let event = json!({
        "type": event_type,
        "state_key": key,
        "sender": USERS[by],
        "event_id": format!("$state-{number}"),
        "origin_server_ts": sent_ms(u)?,
        "content": content,
        "unsigned": unsigned,
    });
    Ok(Step::State { by, is_own: false, text: event.to_string() })
}

/// A membership in the state, which a server lets its sender set under their own key alone.
fn call_member(u: &mut Unstructured<'_>, number: usize) -> Result<Step> {
    let content = match u.int_in_range(0..=3)? {
        0 => json!({}),
        1 => json!({ "application": "m.call", "call_id": 1 }),
        _ => json!({
            "application": "m.call",
            "call_id": "",
            "device_id": *u.choose(&DEVICES)?,
            "membershipID": *u.choose(&KEYS)?,
            "created_ts": START_MS,
            "expires": 3_600_000,
            "focus_active": { "type": "livekit" },
            "foci_preferred": [],
        }),
    };
    let Step::State { by, text, .. } =
        state(u, number, "org.matrix.msc3401.call.member", "", content)?
    else {
        return Err(arbitrary::Error::IncorrectFormat);
    };
    let mut event: Value = serde_json::from_str(&text).unwrap();
    event["state_key"] = json!(format!("_{}_{}", USERS[by], *u.choose(&DEVICES)?));
    Ok(Step::State { by, is_own: true, text: event.to_string() })
}

fn key(u: &mut Unstructured<'_>) -> Result<Key> {
    let by = u.int_in_range(0..=2)?;
    let device = *u.choose(&DEVICES)?;
    let member_id = *u.choose(&KEYS)?;
    let index = u.int_in_range(0..=3_u8)?;
    let letter = char::from(u.int_in_range(b'A'..=b'D')?);
    let is_element_call = u.arbitrary()?;
    let content = if is_element_call {
        json!({
            "room_id": room(),
            "keys": { "index": index, "key": letter.to_string().repeat(22) },
            "member": { "id": member_id, "claimed_device_id": *u.choose(&DEVICES)? },
            "sent_ts": sent_ms(u)?,
        })
    } else {
        json!({
            "room_id": room(),
            "member_id": member_id,
            "media_key": { "index": index, "key": letter.to_string().repeat(43) },
            "format": 0,
        })
    };
    let verification = *u.choose(&[Verification::UnsignedDevice, Verification::Unproven])?;
    Ok(Key { by, device, verification, is_element_call, content })
}

#[derive(Clone, Debug)]
struct ManualClock(Arc<Mutex<u64>>);

impl Clock for ManualClock {
    fn now(&self) -> Moment {
        let passed = Duration::from_millis(*self.0.lock().unwrap());
        Moment::new(passed, Duration::from_millis(START_MS) + passed)
    }
}

struct World {
    clock: ManualClock,
    maps: EphemeralMaps,
    changes: Changes,
    roster: Roster,
    #[cfg(feature = "media-keys")]
    keys: matrix_sdk_sticky::rtc::keys::KeyExchange,
}

impl World {
    fn new() -> Self {
        let clock = ManualClock(Arc::default());
        let maps = EphemeralMaps::new(clock.clone(), Limits::default());
        let Subscription { changes, .. } = maps.view().in_room(room()).subscribe();
        Self {
            clock,
            maps,
            changes,
            roster: Roster::new(),
            #[cfg(feature = "media-keys")]
            keys: keys::exchange(),
        }
    }

    /// Takes a step, with or without what mallory says.
    fn handle(&mut self, step: &Step, with_mallory: bool) {
        let now = self.clock.now();
        let counts = |by: usize| with_mallory || by != MALLORY;
        match step {
            Step::Response(stickies) => {
                let stickies = stickies.iter().filter(|sticky| counts(sticky.by));
                self.deliver(stickies.map(Sticky::arrival).collect());
            }
            Step::Redaction(event_id) => {
                self.deliver(vec![Arrival::Redaction(EventId::parse(event_id).unwrap())]);
            }
            Step::State { by, is_own, text } => {
                if counts(*by) || !is_own {
                    self.roster.handle_state_event(now, text);
                }
            }
            Step::InRoom(user, is_in) => {
                self.roster.handle_in_room(&user_id(&USERS[*user]), *is_in);
            }
            Step::Encryption(is_encrypted) => self.roster.handle_encryption(*is_encrypted),
            Step::Ignore(users) => self.maps.handle_ignored(users.clone()),
            Step::Leave => {
                self.maps.handle_left(room());
                self.roster.handle_room_left(now);
            }
            Step::Pass(ms) => {
                *self.clock.0.lock().unwrap() += ms;
                self.maps.advance();
            }
            Step::Key(_key) =>
            {
                #[cfg(feature = "media-keys")]
                if counts(_key.by) {
                    keys::send(&mut self.keys, now, _key);
                }
            }
        }
        while let Some(change) = self.changes.next_now() {
            self.roster.handle_change(&change);
        }
        let now = self.clock.now();
        self.roster.poll_changes(now);
        #[cfg(feature = "media-keys")]
        self.keys.handle_session(now, &self.roster.snapshot(now).session(ROOM_CALL));
    }

    fn deliver(&self, arrivals: Vec<Arrival>) {
        let received = self.clock.now();
        let room_id = room().to_owned();
        self.maps.handle([Delivery { room_id, received, via: ReceivedVia::Section, arrivals }]);
    }

    /// Returns everybody but mallory, as the roster shows them, and their keys.
    fn others(&mut self) -> BTreeSet<String> {
        let snapshot: RtcSnapshot = self.roster.snapshot(self.clock.now());
        let mut others = BTreeSet::new();
        for session in snapshot.sessions() {
            let slot_id = session.slot_id();
            others.extend(session.members().filter(|it| it.user_id() != USERS[MALLORY]).map(
                |it| format!("{slot_id}: {it:?} since {}, {:?}", it.since_ms(), it.transports()),
            ));
            let candidates = session.candidates().filter(|it| it.user_id != USERS[MALLORY]);
            others.extend(candidates.map(|it| format!("{slot_id}: {it:?}")));
        }
        let strays = snapshot.strays().filter(|it| it.user_id != USERS[MALLORY]);
        others.extend(strays.map(|it| format!("{it:?}")));
        #[cfg(feature = "media-keys")]
        others.extend(keys::of_others(&mut self.keys, self.clock.now()));
        others
    }
}

impl Sticky {
    fn arrival(&self) -> Arrival {
        let raw = |value: &Value| RawValue::from_string(value.to_string()).unwrap();
        match &self.clear {
            None => Arrival::Event(raw(&self.outer)),
            Some((clear, encryption)) => Arrival::Decrypted {
                outer: raw(&self.outer),
                clear: raw(clear),
                encryption: encryption.clone(),
            },
        }
    }
}

#[cfg(feature = "media-keys")]
mod keys {
    use matrix_sdk_sticky::rtc::{
        Dialect,
        keys::{DevicePolicy, KeyChange, KeyConfig, KeyExchange, KeyMessage, Participant, Sender},
    };

    use super::{Key, MALLORY, Moment, USERS, Value, room, user_id};

    pub(super) fn exchange() -> KeyExchange {
        let own = Participant::new(user_id(&"@us:hs"), "us", "OURS");
        let config = KeyConfig::default().with_devices(DevicePolicy::Any);
        let dice = Box::new(|bytes: &mut [u8]| bytes.fill(7));
        KeyExchange::new(room().to_owned(), own, config, dice, 1)
    }

    pub(super) fn send(keys: &mut KeyExchange, now: Moment, key: &Key) {
        let dialect = if key.is_element_call { Dialect::ElementCall } else { Dialect::Msc4143 };
        let Value::Object(content) = key.content.clone() else { return };
        let message = KeyMessage::read(dialect, content).unwrap();
        let user = USERS[key.by];
        let curve25519 = format!("{user} {}", key.device);
        let sender = Sender::new(user_id(&user), key.device, curve25519, key.verification);
        keys.handle_message(now, sender, message);
    }

    /// Returns the keys of everybody but us and mallory.
    pub(super) fn of_others(keys: &mut KeyExchange, now: Moment) -> Vec<String> {
        while keys.poll_change(now).is_some() {}
        let all = keys.all().into_iter().filter_map(|change| match change {
            KeyChange::Peer { participant, index, key } => Some((participant, index, key)),
            _ => None,
        });
        let others = all.filter(|(participant, ..)| participant.user_id != USERS[MALLORY]);
        others.map(|(who, index, key)| format!("{who:?} {index} {:?}", key.as_bytes())).collect()
    }
}
