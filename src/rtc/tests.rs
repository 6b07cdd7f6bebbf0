//! A room as its clients see it: sticky events come through the maps of all rooms, state events as a
//! server gives them. After each step what was told is compared with what is shown.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod forms;
mod hostile;
mod order;
mod reasons;
#[cfg(feature = "client")]
mod stays;

use std::{
    collections::{BTreeMap, HashSet},
    sync::Arc,
};

use ruma::{EventId, OwnedRoomId, UserId, room_id};
use serde_json::{Value, json};

use super::{
    change::{RtcChange, SessionChange},
    member::{Candidate, Key, Member, NotJoined},
    roster::{Pending, Roster},
    slot::{ROOM_CALL, Slot},
    snapshot::{RtcSnapshot, SessionSnapshot},
};
use crate::{
    event::{Encryption, EncryptionDetails, Verification},
    map::{Limits, ReceivedVia},
    testing::{ALICE, BOB, ManualClock, START_MS, event, raw, secs},
    time::Clock,
    view::{Arrival, Changes, Delivery, EphemeralMaps, Subscription},
};

/// The type of a membership, as everybody writes it today.
const MEMBER: &str = "org.matrix.msc4143.rtc.member";
const CALL_MEMBER: &str = "org.matrix.msc3401.call.member";

fn room() -> OwnedRoomId {
    room_id!("!room:hs").to_owned()
}

/// A membership as a sticky event, sent at the start, sticky for an hour.
#[derive(Clone, Debug)]
struct Sent {
    event_id: String,
    by: String,
    event_type: String,
    content: Value,
    at_ms: u64,
    lasting_ms: u64,
    device: Option<(String, Verification)>,
    owner: Option<String>,
}

fn sent(event_id: &str, content: Value) -> Sent {
    Sent {
        event_id: event_id.to_owned(),
        by: ALICE.to_owned(),
        event_type: MEMBER.to_owned(),
        content,
        at_ms: START_MS,
        lasting_ms: 3_600_000,
        device: None,
        owner: None,
    }
}

/// A join of alice's that is right for both dialects.
fn join(event_id: &str, member_id: &str) -> Sent {
    sent(event_id, both(ALICE, member_id))
}

/// A leave as MSC4143 has it.
fn leave(event_id: &str, member_id: &str) -> Sent {
    sent(
        event_id,
        json!({
            "slot_id": ROOM_CALL,
            "member": { "id": member_id, "membership": "leave" },
            "msc4354_sticky_key": member_id,
        }),
    )
}

impl Sent {
    fn by(mut self, user_id: &str) -> Self {
        self.by = user_id.to_owned();
        if let Some(said) = self.content.pointer_mut("/member/user_id") {
            *said = user_id.into();
        }
        self
    }

    /// Sent by them, whatever the content says.
    fn by_as_it_is(mut self, user_id: &str) -> Self {
        self.by = user_id.to_owned();
        self
    }

    /// Encrypted by this device, whatever the content says.
    fn encrypted_by_as_it_is(mut self, device_id: &str) -> Self {
        self.device = Some((device_id.to_owned(), Verification::UnverifiedIdentity));
        self
    }

    /// This many seconds after the start.
    fn at(mut self, seconds: u64) -> Self {
        self.at_ms = START_MS + seconds * 1_000;
        self
    }

    fn lasting(mut self, seconds: u64) -> Self {
        self.lasting_ms = seconds * 1_000;
        self
    }

    fn of_type(mut self, event_type: &str) -> Self {
        self.event_type = event_type.to_owned();
        self
    }

    fn in_slot(self, slot_id: &str) -> Self {
        self.with("/slot_id", slot_id)
    }

    /// Encrypted by this device, which is what the content says too, if it says one.
    fn encrypted_by(mut self, device_id: &str) -> Self {
        if let Some(said) = self.content.pointer_mut("/member/device_id") {
            *said = device_id.into();
        }
        self.device = Some((device_id.to_owned(), Verification::UnverifiedIdentity));
        self
    }

    fn verification(mut self, verification: Verification) -> Self {
        self.device = self.device.map(|(device_id, _)| (device_id, verification));
        self
    }

    /// With this at a place of the content, given as a JSON pointer; its last part may be new.
    fn with(mut self, pointer: &str, value: impl Into<Value>) -> Self {
        set(&mut self.content, pointer, Some(value.into()));
        self
    }

    fn without(mut self, pointer: &str) -> Self {
        set(&mut self.content, pointer, None);
        self
    }

    fn arrival(&self) -> Arrival {
        let outer = event(&self.event_id)
            .by(&self.by)
            .with("/origin_server_ts", self.at_ms)
            .lasting(self.lasting_ms);
        let clear = json!({ "type": self.event_type, "content": self.content });
        match &self.device {
            None => {
                let outer = outer.of_type(&self.event_type).with("/content", self.content.clone());
                Arrival::Event(outer.raw())
            }
            Some((device_id, verification)) => Arrival::Decrypted {
                outer: outer.encrypted("session").raw(),
                clear: raw(clear.to_string()),
                encryption: Encryption::Encrypted(Arc::new(EncryptionDetails::new(
                    UserId::parse(self.owner.as_ref().unwrap_or(&self.by)).unwrap(),
                    Some(device_id.as_str().into()),
                    *verification,
                ))),
            },
        }
    }
}

fn set(content: &mut Value, pointer: &str, value: Option<Value>) {
    let (parent, name) = pointer.rsplit_once('/').unwrap();
    let parent = content.pointer_mut(parent).unwrap().as_object_mut().unwrap();
    match value {
        Some(value) => _ = parent.insert(name.to_owned(), value),
        None => _ = parent.remove(name),
    }
}

/// A join that is right for both dialects.
fn both(user_id: &str, member_id: &str) -> Value {
    let mut content = msc4143(member_id);
    set(&mut content, "/member/user_id", Some(user_id.into()));
    set(&mut content, "/member/device_id", Some("PHONE".into()));
    set(&mut content, "/versions", Some(json!([])));
    content
}

/// A join as MSC4143 has it.
fn msc4143(member_id: &str) -> Value {
    json!({
        "slot_id": ROOM_CALL,
        "member": { "id": member_id, "membership": "join" },
        "application": { "type": "m.call", "m.call.intent": "video" },
        "transports": {
            "published": [{ "type": "livekit", "livekit_service_url": "https://sfu" }],
            "can_subscribe": ["livekit"],
        },
        "sticky_key": member_id,
        "msc4354_sticky_key": member_id,
    })
}

/// A join as Element Call has it.
fn element_call(user_id: &str, member_id: &str) -> Value {
    let mut content = both(user_id, member_id);
    set(&mut content, "/member/membership", None);
    set(&mut content, "/sticky_key", None);
    content
}

/// A join of an earlier version of MSC4143.
fn rtc_transports(user_id: &str, member_id: &str) -> Value {
    json!({
        "slot_id": ROOM_CALL,
        "member": { "id": member_id, "claimed_user_id": user_id, "claimed_device_id": "PHONE" },
        "application": { "type": "m.call" },
        "rtc_transports": [{ "type": "livekit_multi_sfu" }],
        "msc4354_sticky_key": member_id,
    })
}

/// A membership in the state, created at the start, for an hour.
fn call_member(device_id: &str) -> Value {
    json!({
        "application": "m.call",
        "call_id": "",
        "scope": "m.room",
        "device_id": device_id,
        "created_ts": START_MS,
        "expires": 3_600_000,
        "focus_active": { "type": "livekit", "focus_selection": "oldest_membership" },
        "foci_preferred": [{ "type": "livekit", "livekit_alias": "!room:hs" }],
        "m.call.intent": "audio",
    })
}

fn open_slot() -> Value {
    json!({
        "status": "open",
        "application": { "type": "m.call" },
        "encryption": { "type": "m.per_member" },
    })
}

/// A state event as a server gives it.
fn state_event(event_id: &str, event_type: &str, key: &str, by: &str, content: &Value) -> String {
    json!({
        "type": event_type,
        "state_key": key,
        "sender": by,
        "event_id": event_id,
        "origin_server_ts": START_MS,
        "content": content,
    })
    .to_string()
}

/// What was told, put together as a consumer would.
#[derive(Debug, Default)]
struct Told {
    slots: BTreeMap<String, Slot>,
    members: BTreeMap<(String, Arc<Key>), Member>,
    candidates: BTreeMap<(Option<String>, Arc<Key>), Candidate>,
}

impl Told {
    /// The sessions of a snapshot.
    fn from_snapshot(snapshot: &RtcSnapshot) -> Self {
        let mut told = Self::default();
        for (slot_id, view) in &snapshot.sessions {
            assert!(!view.is_empty(), "a session of nothing is shown: {slot_id}");
            told.slots
                .extend(view.slots.first().map(|slot| (slot_id.to_string(), Slot::clone(slot))));
            for (key, member) in &view.members {
                assert_eq!(*key, member.inner.key);
                told.members.insert((slot_id.to_string(), key.clone()), member.clone());
            }
            for (key, candidate) in &view.candidates {
                assert_eq!(*key, candidate.key);
                let place = (Some(slot_id.to_string()), key.clone());
                told.candidates.insert(place, candidate.clone());
            }
        }
        for (key, stray) in &snapshot.strays {
            told.candidates.insert((None, key.clone()), stray.clone());
        }
        told
    }

    fn handle(&mut self, change: &RtcChange) {
        let slot_id = change.slot_id.as_ref().map(ToString::to_string);
        let of = |slot_id: &Option<String>| slot_id.clone().expect("a member without a slot");
        match &change.change {
            SessionChange::Slot(slot) => {
                self.slots.insert(of(&slot_id), slot.clone().expect("no slot ceases to be"));
            }
            SessionChange::Joined(member) => {
                self.candidates.remove(&(slot_id.clone(), member.inner.key.clone()));
                let before =
                    self.members.insert((of(&slot_id), member.inner.key.clone()), member.clone());
                assert_eq!(before, None, "joined twice");
            }
            SessionChange::Updated { member, previous } => {
                let before =
                    self.members.insert((of(&slot_id), member.inner.key.clone()), member.clone());
                assert_eq!(before.as_ref(), Some(previous));
                assert_ne!(member, previous, "nothing visible changed");
            }
            SessionChange::Left { member, reason } => {
                let place = (of(&slot_id), member.inner.key.clone());
                assert_eq!(self.members.remove(&place).as_ref(), Some(member));
                if !matches!(reason, NotJoined::Ignored | NotJoined::RoomLeft | NotJoined::Moved) {
                    let candidate = candidate_of(member, reason.clone());
                    self.candidates.insert((slot_id, place.1), candidate);
                }
            }
            SessionChange::Refused(candidate) => {
                let place = (slot_id, candidate.key.clone());
                let before = self.candidates.insert(place, candidate.clone());
                assert_ne!(before.as_ref(), Some(candidate), "nothing visible changed");
            }
            SessionChange::Forgotten(candidate) => {
                let before = self.candidates.remove(&(slot_id, candidate.key.clone()));
                let before = before.map(|before| (before.key, before.reason));
                assert_eq!(before, Some((candidate.key.clone(), candidate.reason.clone())));
            }
        }
    }

    fn assert_is(&self, snapshot: &RtcSnapshot) {
        let shown = Self::from_snapshot(snapshot);
        assert_eq!(self.slots, shown.slots);
        assert_eq!(self.members, shown.members);
        // Who leaves with another event is told with the member as it was.
        let reasons = |told: &Self| {
            let reason = |(place, it): (&_, &Candidate)| (Clone::clone(place), it.reason.clone());
            told.candidates.iter().map(reason).collect::<BTreeMap<_, _>>()
        };
        assert_eq!(reasons(self), reasons(&shown));
    }
}

/// One room, its maps and its roster, and the clock that they read.
struct World {
    clock: ManualClock,
    maps: EphemeralMaps,
    changes: Changes,
    roster: Roster,
    told: Told,
    /// Somebody who looks at every third change alone.
    slow: (Pending, Told),
    polls: usize,
    state_events: usize,
}

impl World {
    /// A room that is not encrypted, without a slot.
    fn new() -> Self {
        let mut world = Self::not_known_to_be_encrypted();
        world.encryption(false);
        world
    }

    /// An encrypted room with a slot that is open.
    fn encrypted() -> Self {
        let mut world = Self::not_known_to_be_encrypted();
        world.encryption(true);
        world.slot(&open_slot());
        world
    }

    fn not_known_to_be_encrypted() -> Self {
        let clock = ManualClock::new();
        let maps = EphemeralMaps::new(clock.clone(), Limits::default());
        let Subscription { changes, .. } = maps.view().in_room(room()).subscribe();
        let roster = Roster::new();
        Self {
            clock,
            maps,
            changes,
            roster,
            told: Told::default(),
            slow: Default::default(),
            polls: 0,
            state_events: 0,
        }
    }

    /// One response with these memberships, and what it changes.
    fn receive<'a>(&mut self, sent: impl IntoIterator<Item = &'a Sent>) -> Vec<String> {
        self.deliver(sent.into_iter().map(Sent::arrival).collect())
    }

    fn redact(&mut self, event_id: &str) -> Vec<String> {
        self.deliver(vec![Arrival::Redaction(EventId::parse(event_id).unwrap())])
    }

    fn deliver(&mut self, arrivals: Vec<Arrival>) -> Vec<String> {
        let received = self.clock.now();
        self.maps.handle([Delivery {
            room_id: room(),
            received,
            via: ReceivedVia::Section,
            arrivals,
        }]);
        self.poll()
    }

    fn ignore(&mut self, users: &[&str]) -> Vec<String> {
        let ignored: HashSet<_> = users.iter().map(|it| UserId::parse(it).unwrap()).collect();
        self.maps.handle_ignored(ignored);
        self.poll()
    }

    fn leave_room(&mut self) -> Vec<String> {
        self.maps.handle_left(&room());
        let now = self.clock.now();
        self.roster.handle_room_left(now);
        self.poll()
    }

    fn pass(&mut self, seconds: u64) -> Vec<String> {
        self.clock.jump(secs(seconds));
        self.maps.advance();
        self.poll()
    }

    fn encryption(&mut self, is_encrypted: bool) -> Vec<String> {
        self.roster.handle_encryption(is_encrypted);
        self.poll()
    }

    fn in_room(&mut self, user_id: &str, membership: &str) -> Vec<String> {
        let content = json!({ "membership": membership });
        self.state("m.room.member", user_id, user_id, &content)
    }

    /// A state event of the slot of the room's call.
    fn slot(&mut self, content: &Value) -> Vec<String> {
        self.slot_of(ROOM_CALL, content)
    }

    fn slot_of(&mut self, slot_id: &str, content: &Value) -> Vec<String> {
        self.state("org.matrix.msc4143.rtc.slot", slot_id, ALICE, content)
    }

    /// A state event with a new id.
    fn state(&mut self, event_type: &str, key: &str, by: &str, content: &Value) -> Vec<String> {
        self.state_events += 1;
        let event_id = format!("$state-{}", self.state_events);
        self.state_again(&state_event(&event_id, event_type, key, by, content))
    }

    fn state_again(&mut self, text: &str) -> Vec<String> {
        let now = self.clock.now();
        self.roster.handle_state_event(now, text);
        self.poll()
    }

    /// What the roster makes of it, in words.
    fn poll(&mut self) -> Vec<String> {
        while let Some(change) = self.changes.next_now() {
            self.roster.handle_change(&change);
        }
        let now = self.clock.now();
        let (mut pending, (slow, slow_told)) = (Pending::default(), &mut self.slow);
        for transition in self.roster.poll_transitions(now) {
            pending.add(transition.clone());
            slow.add(transition);
        }
        let changes = pending.take_changes();
        for change in &changes {
            self.told.handle(change);
        }
        self.polls += 1;
        if self.polls.is_multiple_of(3) {
            slow.take_changes().iter().for_each(|change| slow_told.handle(change));
            slow_told.assert_is(&self.roster.snapshot(now));
        }
        self.told.assert_is(&self.snapshot());
        self.roster.assert_consistent();
        assert_eq!(self.roster.poll_changes(now), [], "told twice");
        changes.iter().map(words).collect()
    }

    fn snapshot(&self) -> RtcSnapshot {
        self.roster.snapshot(self.clock.now())
    }

    fn call(&self) -> SessionSnapshot {
        self.snapshot().session(ROOM_CALL)
    }

    /// Who is in the room's call.
    fn members(&self) -> Vec<String> {
        self.call().members().map(who).collect()
    }

    /// Who is not in the room's call, and why.
    fn candidates(&self) -> Vec<String> {
        self.call().candidates().map(candidate).collect()
    }
}

/// Who was a member, and is not any more.
fn candidate_of(member: &Member, reason: NotJoined) -> Candidate {
    Candidate {
        key: member.inner.key.clone(),
        user_id: member.user_id().to_owned(),
        member_id: Some(member.member_id().to_owned()),
        slot_id: Some(member.slot_id().to_owned()),
        device: member.device().cloned(),
        event_id: member.event_id().clone(),
        reason,
    }
}

fn who(member: &Member) -> String {
    format!("{}/{}", member.user_id().localpart(), member.member_id())
}

fn candidate(candidate: &Candidate) -> String {
    let member_id = candidate.member_id.as_deref().unwrap_or("?");
    format!("{}/{member_id}: {}", candidate.user_id.localpart(), candidate.reason)
}

/// A change in words; the session is named where it is not the room's call.
fn words(change: &RtcChange) -> String {
    let told = match &change.change {
        SessionChange::Slot(Some(slot)) => match slot.closed_by(false) {
            None => "open".to_owned(),
            Some(closed) => format!("closed: {closed:?}"),
        },
        SessionChange::Slot(None) => "no slot".to_owned(),
        SessionChange::Joined(member) => format!("+{}", who(member)),
        SessionChange::Updated { member, previous } => {
            assert_eq!(who(member), who(previous));
            format!("{} {}>{}", who(member), previous.event_id(), member.event_id())
        }
        SessionChange::Left { member, reason } => format!("-{}: {reason}", who(member)),
        SessionChange::Refused(refused) => format!("?{}", candidate(refused)),
        SessionChange::Forgotten(forgotten) => format!("!{}", candidate(forgotten)),
    };
    match change.slot_id.as_deref() {
        Some(ROOM_CALL) => told,
        Some(other) => format!("{other} {told}"),
        None => format!("nowhere {told}"),
    }
}
