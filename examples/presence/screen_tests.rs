//! The tests of the screen of `presence`: pictures of one call, at a clock that is wound by hand.

use std::{
    error::Error,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use matrix_sdk::ruma::{OwnedRoomId, room_id, user_id};
use matrix_sdk_sticky::{
    Encryption, EphemeralMaps,
    event::{EncryptionDetails, Verification},
    heartbeat::HeartbeatFailure,
    map::{Limits, ReceivedVia},
    rtc::{ROOM_CALL, Roster},
    time::Clock,
    view::{Arrival, Delivery},
};
use ratatui::{Terminal, backend::TestBackend};
use serde_json::{Value, json, value::to_raw_value};

use super::*;
use crate::{json::Json, terminal::as_text};

type TestResult<T = ()> = std::result::Result<T, Box<dyn Error>>;

const HOUR: u64 = 3_600;

/// A clock that is wound by hand.
#[derive(Clone, Debug, Default)]
struct Hand(Arc<AtomicU64>);

impl Clock for Hand {
    fn now(&self) -> Moment {
        let since_start = Duration::from_millis(self.0.load(Ordering::Relaxed));
        Moment::new(since_start, Duration::from_secs(1_764_000_000) + since_start)
    }
}

/// An encrypted room with an open slot, and the screen that shows its call.
struct Stage {
    clock: Hand,
    maps: EphemeralMaps,
    roster: Roster,
    model: Model,
    sent: u64,
}

impl Stage {
    fn new() -> Self {
        let clock = Hand::default();
        let mut roster = Roster::new();
        roster.handle_encryption(true);
        let maps = EphemeralMaps::new(clock.clone(), Limits::default());
        let (alice, room) = (user_id!("@alice:example.org"), "Stand-up !p:example.org");
        let nothing = roster.snapshot(clock.now());
        let mut model = Model::new(alice, room, Duration::from_secs(4), nothing);
        model.sync = SyncState::Live;
        let mut stage = Self { clock, maps, roster, model, sent: 0 };
        stage.open("m.call", ROOM_CALL);
        stage
    }

    fn room_id() -> OwnedRoomId {
        room_id!("!p:example.org").to_owned()
    }

    fn open(&mut self, application: &str, slot_id: &str) {
        self.sent += 1;
        let slot = json!({
            "type": "org.matrix.msc4143.rtc.slot",
            "state_key": slot_id,
            "sender": "@alice:example.org",
            "event_id": format!("$event{}", self.sent),
            "origin_server_ts": self.clock.now().unix_ms(),
            "content": {
                "status": "open",
                "application": { "type": application },
                "encryption": { "type": "org.matrix.msc4143.per_member" },
            },
        });
        self.roster.handle_state_event(self.clock.now(), &slot.to_string());
        self.look();
    }

    fn look(&mut self) {
        let now = self.clock.now();
        self.maps.advance();
        self.roster.handle_snapshot(&self.maps.view().snapshot());
        for user_id in self.roster.poll_unknown() {
            self.roster.handle_in_room(&user_id, true);
        }
        for change in self.roster.poll_changes(now) {
            self.model.log(&change.change, now);
        }
        self.model.snapshot = self.roster.snapshot(now);
    }

    fn pass(&mut self, ms: u64) {
        self.clock.0.fetch_add(ms, Ordering::Relaxed);
        self.look();
    }

    /// A membership, with what it says of the member.
    fn send(&mut self, user: &str, device: Option<&str>, id: &str, content: Value) -> TestResult {
        self.sent += 1;
        let mut content = content;
        content["msc4354_sticky_key"] = json!(id);
        content["slot_id"] = json!(ROOM_CALL);
        content["member"]["id"] = json!(id);
        let mut event = json!({
            "event_id": format!("$event{}", self.sent),
            "sender": user,
            "type": "org.matrix.msc4143.rtc.member",
            "origin_server_ts": self.clock.now().unix_ms(),
            "content": content,
            "msc4354_sticky": { "duration_ms": HOUR * 1_000 },
        });
        let arrival = match device {
            None => Arrival::Event(to_raw_value(&event)?),
            Some(device) => {
                let (owner, device) = (UserId::parse(user)?, device.into());
                let details = EncryptionDetails::new(owner, Some(device), Verification::Verified);
                let clear = to_raw_value(&event)?;
                event["type"] = json!("m.room.encrypted");
                event["content"] = json!({ "algorithm": "m.megolm.v1.aes-sha2" });
                let encryption = Encryption::Encrypted(details.into());
                Arrival::Decrypted { outer: to_raw_value(&event)?, clear, encryption }
            }
        };
        self.maps.handle([Delivery {
            room_id: Self::room_id(),
            received: self.clock.now(),
            via: ReceivedVia::Section,
            arrivals: vec![arrival],
        }]);
        self.look();
        Ok(())
    }

    fn join(&mut self, user: &str, device: Option<&str>, id: &str) -> TestResult {
        let claimed = device.unwrap_or("CLAIMED");
        let join = json!({
            "member": { "membership": "join", "user_id": user, "device_id": claimed },
            "application": { "type": "m.call", "m.call.intent": "video" },
            "transports": { "published": [], "can_subscribe": [] },
            "versions": [],
        });
        self.send(user, device, id, join)
    }

    fn leave(&mut self, user: &str, device: &str, id: &str, code: &str) -> TestResult {
        let why = json!({ "code": code });
        let leave = json!({ "member": { "membership": "leave" }, "leave_reason": why });
        self.send(user, Some(device), id, leave)
    }

    fn picture(&self, width: u16, height: u16) -> TestResult<String> {
        let mut terminal = Terminal::new(TestBackend::new(width, height))?;
        terminal.draw(|frame| draw(frame, &self.model, self.clock.now()))?;
        Ok(as_text(terminal.backend().buffer()))
    }

    fn assert_shows(&self, parts: &[&str]) -> TestResult {
        let picture = self.picture(110, 24)?;
        for part in parts {
            assert!(picture.contains(part), "no {part:?} in\n{picture}");
        }
        Ok(())
    }
}

/// Half a minute of a call: carol's crash is seen, bob leaves, and eve would be there.
fn call() -> TestResult<Stage> {
    let (bob, carol) = ("@bob:example.org", "@carol:example.org");
    let mut stage = Stage::new();
    stage.join("@alice:example.org", Some("ALICE"), "a1")?;
    stage.model.own_id = Some("a1".to_owned());
    stage.pass(1_000);
    stage.join(bob, Some("BOB"), "b1")?;
    stage.join(carol, Some("CAROL"), "c1")?;
    stage.pass(9_000);
    stage.leave(carol, "CAROL", "c1", LeaveReason::DELAYED)?;
    stage.pass(5_000);
    stage.leave(bob, "BOB", "b1", LeaveReason::ON_PURPOSE)?;
    stage.pass(5_000);
    stage.join(carol, Some("CAROL"), "c2")?;
    stage.join("@eve:example.org", None, "a1")?;
    stage.pass(10_000);
    Ok(stage)
}

#[test]
fn shows_members_refusals_and_what_happened() -> TestResult {
    call()?.assert_shows(&[
        "@alice:example.org in Stand-up !p:example.org",
        "● live   encrypted room",
        "♡ we are not in",
        "m.call#ROOM m.call, open: 2 there",
        "♥ @alice:example.org",
        "🔒 ALICE",
        "video             for 0:30",
        "  @carol:example.org",
        "x @eve:example.org is not there: not encrypted",
        "0:10 ago + @carol:example.org by CAROL joined",
        "0:15 ago - @bob:example.org by BOB left",
        "0:20 ago † @carol:example.org by CAROL is gone: crashed or cut off: its server said so",
        "0:30 ago + @alice:example.org by ALICE joined",
    ])
}

#[test]
fn another_slot_is_shown_too() -> TestResult {
    let mut stage = call()?;
    stage.open("com.example.draw", "com.example.draw#board");
    stage.assert_shows(&[
        "com.example.draw#board com.example.draw, open: nobody there",
        "m.call#ROOM m.call, open: 2 there",
    ])
}

#[test]
fn the_pulse_shows_beats_and_the_lease() -> TestResult {
    let mut stage = call()?;
    stage.model.own = Some(HeartbeatState::Joined);
    for _ in 0..3 {
        let armed_until = stage.clock.now().deadline(Duration::from_secs(4));
        stage.model.look_at_lease(Some(armed_until));
        for _ in 0..5 {
            stage.model.tick();
            stage.pass(250);
        }
    }
    let beats = format!("{:·>24}", "♥····♥····♥····");
    let shown = format!("♡ we: joined         {beats}  the leave fires in ██████▉    2.8 s");
    stage.assert_shows(&[&shown])?;
    stage.model.look_at_lease(Some(stage.clock.now().deadline(Duration::from_secs(4))));
    stage.assert_shows(&["♥ we: joined", "the leave fires in ██████████ 4.0 s"])?;
    // The seconds are there on each width.
    for (width, shown) in [(80, "██████████ 4.0 s"), (40, "♥ joined, leave in 4.0 s")]
    {
        let picture = stage.picture(width, 24)?;
        assert!(picture.contains(shown), "no {shown:?} in\n{picture}");
    }
    Ok(())
}

#[test]
fn a_small_terminal_shows_members_before_the_log() -> TestResult {
    let mut stage = call()?;
    for (width, height) in [(40, 12), (20, 6)] {
        let picture = stage.picture(width, height)?;
        assert!(picture.contains("@alice:") && picture.contains("@carol:"), "{picture}");
    }
    for number in 0..3 {
        stage.join(&format!("@u{number}:example.org"), Some("D"), "m")?;
    }
    let picture = stage.picture(40, 12)?;
    let parts = ["@alice:", "@carol:", "@u0:", "@u1:", "@u2:", "@eve:"];
    assert!(parts.iter().all(|part| picture.contains(part)), "{picture}");
    assert!(!picture.contains("What happened"), "{picture}");
    Ok(())
}

#[test]
fn display_names_are_shown_where_they_are_clear() -> TestResult {
    let mut stage = call()?;
    let [alice, carol] = [user_id!("@alice:example.org"), user_id!("@carol:example.org")];
    stage.model.names.set([(alice.to_owned(), "Alice".to_owned())]);
    stage.leave("@carol:example.org", "CAROL", "c2", LeaveReason::ON_PURPOSE)?;
    stage.assert_shows(&[
        "♥ Alice  ",
        " presence  Alice in",
        "@carol:example.org by CAROL left",
    ])?;
    let twins = [alice, carol].map(|user| (user.to_owned(), "Twin".to_owned()));
    stage.model.names.set(twins);
    stage.assert_shows(&["♥ Twin (@alice:example.org)"])
}

#[test]
fn the_hint_is_true_in_each_state() -> TestResult {
    let mut stage = call()?;
    stage.assert_shows(&[" j join   q quit   ? help"])?;
    for own in [HeartbeatState::Joining, HeartbeatState::Joined, HeartbeatState::Degraded] {
        stage.model.own = Some(own);
        stage.assert_shows(&[" l leave   q quit   ? help"])?;
    }
    stage.model.own = Some(HeartbeatState::Left);
    stage.assert_shows(&[" j join   q quit"])
}

#[test]
fn while_cut_off_the_time_runs_out() -> TestResult {
    let mut stage = call()?;
    let since = stage.clock.now().deadline(Duration::from_secs(1));
    stage.model.look_at_lease(Some(since));
    stage.model.tick();
    stage.model.own = Some(HeartbeatState::ProbablyLeft { since });
    for _ in 0..30 {
        stage.model.tick();
        stage.pass(250);
    }
    let shown =
        format!("✗ we: probably left  {}  the leave fires in            0.0 s", "·".repeat(24));
    stage.assert_shows(&[&shown])?;
    stage.model.look_at_lease(None);
    stage.model.own = Some(HeartbeatState::Failed(HeartbeatFailure::NotInRoom));
    stage.assert_shows(&["✗ we: failed"])
}

#[test]
fn any_size_is_drawn() -> TestResult {
    let mut stage = call()?;
    for size in 1..30 {
        stage.picture(size, size)?;
    }
    stage.model.has_help = true;
    stage.assert_shows(&["j          join the call", "? back"])?;
    stage.model.has_help = false;
    for number in 0..12 {
        stage.join(&format!("@u{number}:example.org"), Some("D"), "m")?;
    }
    stage.assert_shows(&["    and 4 more"])?;
    stage.model.note = Some("the slot is closed: open it first".to_owned());
    stage.assert_shows(&[" ! the slot is closed: open it first"])
}

#[test]
fn control_characters_do_not_reach_the_terminal() -> TestResult {
    let evil = "\u{1b}[2J\u{7}\n\u{202e}";
    let mut stage = Stage::new();
    let device = format!("D{evil}");
    let join = json!({
        "member": { "membership": "join", "user_id": "@eve:example.org", "device_id": device },
        "application": { "type": "m.call", "m.call.intent": evil },
        "transports": { "published": [], "can_subscribe": [] },
        "versions": [],
    });
    stage.send("@eve:example.org", Some(&device), "e1", join)?;
    let leave = json!({ "member": { "membership": "leave" }, "leave_reason": { "code": evil } });
    let picture = stage.picture(100, 20)?;
    assert!(picture.contains("@eve:example.org"));
    stage.send("@eve:example.org", Some(&device), "e1", leave)?;
    let picture = format!("{picture}{}", stage.picture(100, 20)?);
    assert!(picture.contains(" - @eve:example.org"), "{picture}");
    assert!(!picture.chars().any(|c| "\u{1b}\u{7}\u{202e}".contains(c)), "{picture:?}");
    Ok(())
}

#[test]
fn scripts_are_told_nothing_twice() -> TestResult {
    let mut stage = Stage::new();
    let mut json = Json::default();
    let now = |stage: &Stage| stage.model.snapshot.session(ROOM_CALL);
    let members = |line: Option<String>| -> serde_json::Result<Value> {
        serde_json::from_str(&line.unwrap_or_default())
    };
    let nobody = json!({ "kind": "members", "members": [], "candidates": [] });
    assert_eq!(members(json.members(&now(&stage)))?, nobody);
    assert_eq!(json.members(&now(&stage)), None);
    stage.join("@bob:example.org", Some("BOB"), "b1")?;
    let line = members(json.members(&now(&stage)))?;
    let bob = json!({
        "user_id": "@bob:example.org", "device_id": "BOB", "member_id": "b1", "form": "both",
        "proven": true, "intent": "video",
    });
    assert_eq!(line, json!({ "kind": "members", "members": [bob], "candidates": [] }));
    // A refresh changes nothing that scripts are told.
    stage.pass(60_000);
    stage.join("@bob:example.org", Some("BOB"), "b1")?;
    assert_eq!(json.members(&now(&stage)), None);

    assert_eq!(
        json.own(HeartbeatState::Joining).as_deref(),
        Some(r#"{"kind":"own","state":"joining"}"#)
    );
    assert_eq!(json.own(HeartbeatState::Joining), None);
    assert_eq!(json.own(HeartbeatState::Leaving), None);
    let left = r#"{"kind":"own","state":"left"}"#;
    assert_eq!(json.own(HeartbeatState::Failed(HeartbeatFailure::Redacted)).as_deref(), Some(left));
    assert_eq!(json.own(HeartbeatState::Left), None);
    let failed = r#"{"kind":"own","state":"failed"}"#;
    assert_eq!(
        json.own(HeartbeatState::Failed(HeartbeatFailure::LeaveRefused)).as_deref(),
        Some(failed)
    );
    Ok(())
}
