//! The tests of the screen of `watch`: pictures of one room, at a clock that is wound by hand.

use std::{
    error::Error,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use futures_util::FutureExt as _;
use matrix_sdk::ruma::{OwnedUserId, room_id};
use matrix_sdk_sticky::{
    Changes, Encryption, EphemeralMaps,
    event::{EncryptionDetails, Verification},
    map::{Limits, ReceivedVia},
    time::Clock,
    view::{Arrival, Delivery},
};
use ratatui::{Terminal, backend::TestBackend};
use serde_json::{Value, json, value::to_raw_value};

use super::*;
use crate::terminal::as_text;

type TestResult<T = ()> = std::result::Result<T, Box<dyn Error>>;

const MEMBER: &str = "org.matrix.msc4143.rtc.member";
const PRESENCE: &str = "com.example.presence";
const HAND: &str = "com.example.hand";

/// A clock that is wound by hand.
#[derive(Clone, Debug, Default)]
struct Hand(Arc<AtomicU64>);

impl Clock for Hand {
    fn now(&self) -> Moment {
        let since_start = Duration::from_secs(self.0.load(Ordering::Relaxed));
        Moment::new(since_start, Duration::from_secs(1_764_000_000) + since_start)
    }
}

/// A sent event: the sender, the type, the key, the seconds that it is sticky, the content.
type Sent<'a> = (&'a str, &'a str, &'a str, u64, Value);

/// One room, and the screen that shows it.
struct Stage {
    clock: Hand,
    maps: EphemeralMaps,
    changes: Changes,
    model: Model,
    sent: u64,
}

impl Stage {
    fn new() -> Self {
        let clock = Hand::default();
        let maps = EphemeralMaps::new(clock.clone(), Limits::default());
        let Subscription { snapshot, changes, .. } = maps.view().subscribe();
        let user = "@alice:example.org".to_owned();
        let server = "https://matrix.example.org/".to_owned();
        let mut model = Model::new(user, server, snapshot, Only::default());
        model.state = SyncState::Live;
        model.room_names = [(Self::room_id(), "Stand-up".to_owned())].into();
        Self { clock, maps, changes, model, sent: 0 }
    }

    fn room_id() -> OwnedRoomId {
        room_id!("!pWnkgSbYrMEaLcGdxv:example.org").to_owned()
    }

    fn handle(&mut self, arrival: Arrival) {
        self.maps.handle([Delivery {
            room_id: Self::room_id(),
            received: self.clock.now(),
            via: ReceivedVia::Section,
            arrivals: vec![arrival],
        }]);
        self.look();
    }

    fn look(&mut self) {
        self.maps.advance();
        self.model.snapshot = self.maps.view().snapshot();
        while let Some(change) = self.changes.next().now_or_never().flatten() {
            self.model.handle_change(&change);
        }
    }

    /// Presses a key; `false` if it ends the program.
    fn press(&mut self, key: Key) -> bool {
        self.model.handle_key(key, self.clock.now())
    }

    fn pass(&mut self, seconds: u64) {
        self.clock.0.fetch_add(seconds, Ordering::Relaxed);
        self.look();
    }

    fn event(&mut self, (sender, event_type, key, seconds, content): Sent<'_>) -> Value {
        self.sent += 1;
        let mut content = content;
        content["msc4354_sticky_key"] = json!(key);
        json!({
            "event_id": format!("$event{}", self.sent),
            "sender": sender,
            "type": event_type,
            "origin_server_ts": self.clock.now().unix_ms(),
            "content": content,
            "msc4354_sticky": { "duration_ms": seconds * 1_000 },
        })
    }

    fn send(&mut self, sent: Sent<'_>) -> TestResult {
        let event = self.event(sent);
        self.handle(Arrival::Event(to_raw_value(&event)?));
        Ok(())
    }

    fn send_encrypted(&mut self, sent: Sent<'_>) -> TestResult {
        let owner = OwnedUserId::try_from(sent.0)?;
        let details = EncryptionDetails::new(owner, None, Verification::Verified);
        let mut event = self.event(sent);
        let clear = to_raw_value(&event)?;
        event["type"] = json!("m.room.encrypted");
        event["content"] = json!({ "algorithm": "m.megolm.v1.aes-sha2" });
        self.handle(Arrival::Decrypted {
            outer: to_raw_value(&event)?,
            clear,
            encryption: Encryption::Encrypted(details.into()),
        });
        Ok(())
    }

    #[track_caller]
    fn assert_shows(&mut self, width: u16, height: u16, parts: &[&str]) -> TestResult {
        let picture = self.picture(width, height)?;
        for part in parts {
            assert!(picture.contains(part), "no {part:?} in\n{picture}");
        }
        Ok(())
    }

    fn picture(&mut self, width: u16, height: u16) -> TestResult<String> {
        let mut terminal = Terminal::new(TestBackend::new(width, height))?;
        let now = self.clock.now();
        terminal.draw(|frame| draw(frame, &mut self.model, now))?;
        Ok(as_text(terminal.backend().buffer()))
    }
}

/// Half a minute of a stand-up.
fn stand_up() -> TestResult<Stage> {
    let (bob, carol, dave) = ("@bob:example.org", "@carol:example.org", "@dave:example.org");
    let call = || json!({ "slot_id": "m.call#room" });
    let status = |text: &str| json!({ "status": text });
    let mut stage = Stage::new();
    stage.send_encrypted((bob, MEMBER, "wZyLLXjoVD", 3_600, call()))?;
    stage.send_encrypted((dave, MEMBER, "hQ3fT9cBbe", 1_500, call()))?;
    stage.send((bob, PRESENCE, "laptop", 60, status("in a call")))?;
    stage.send((carol, PRESENCE, "laptop", 120, status("available")))?;
    stage.send((dave, HAND, "hand", 12, json!({ "raised": true })))?;
    stage.pass(9);
    stage.send((carol, PRESENCE, "phone", 25, status("on the train")))?;
    stage.pass(3);
    stage.send((carol, HAND, "hand", 45, json!({ "raised": true })))?;
    stage.pass(7);
    stage.send((carol, PRESENCE, "laptop", 120, status("in a call")))?;
    stage.pass(5);
    stage.send_encrypted((dave, MEMBER, "hQ3fT9cBbe", 1_500, json!({})))?;
    stage.pass(2);
    Ok(stage)
}

/// Also the README's picture: `WATCH_PICTURE=FILE cargo test --test watch_screen` writes it.
#[test]
fn shows_rooms_entries_time_and_changes() -> TestResult {
    let mut stage = stand_up()?;
    let picture = stage.picture(120, 19)?;
    if let Some(file) = std::env::var_os("WATCH_PICTURE") {
        std::fs::write(file, &picture)?;
    }
    let parts = [
        "@alice:example.org on https://matrix.example.org",
        "● live",
        "Stand-up !pWnkgSbYrMEaLcGdxv:example.org",
        "org.matrix.msc4143.rtc.member",
        "🔒 slot_id: m.call#room",
        "███▎        0:08",
        "█████▋      0:34",
        "0:02 ago - removed  @dave:example.org org.matrix.msc4143.rtc.member[hQ3fT9cBbe] 🔒",
        "0:07 ago ~ updated  @carol:example.org com.example.presence[laptop]",
        "0:14 ago - expired  @dave:example.org com.example.hand[hand]",
        "? help   q leave   ↑ ↓ select   p pause",
    ];
    stage.assert_shows(120, 19, &parts)
}

#[test]
fn a_small_terminal_shows_entries_before_the_log() -> TestResult {
    let mut stage = stand_up()?;
    let picture = stage.picture(40, 12)?;
    for sender in ["@bob", "@carol"] {
        assert!(picture.contains(sender), "{picture}");
    }
    assert!(picture.contains(" rows 1-6 of 6"), "{picture}");
    stage.assert_shows(20, 6, &["@bob", "@carol"])
}

#[test]
fn the_list_scrolls_to_the_selected_entry() -> TestResult {
    let mut stage = stand_up()?;
    stage.press(Key::Move(isize::MAX));
    stage.assert_shows(80, 6, &["rows 2-6 of 6", "Enter open"])?;
    stage.press(Key::Move(isize::MIN));
    stage.assert_shows(80, 6, &["rows 1-5 of 6", "Stand-up"])
}

#[test]
fn enter_opens_an_event_with_what_lost() -> TestResult {
    let mut stage = stand_up()?;
    stage.press(Key::Type);
    assert!(stage.model.only.is_empty(), "nothing is selected yet");
    let is_carols = |entry: &Entry| {
        entry.sticky_key() == Some("laptop") && entry.sender() == "@carol:example.org"
    };
    let selected = stage.model.entries().find(is_carols);
    stage.model.selected = selected;
    stage.press(Key::Open);
    let parts = [
        "event id    $event8",
        "type        com.example.presence",
        r#"sticky key  "laptop""#,
        "sent        0:07 ago",
        "ends        in 1:53, of 2:00",
        "encryption  none: sent in plaintext",
        "lost to it  $event4, same key, shown earlier",
        r#"   "content": {"#,
        "Esc back",
        "lines 1-",
    ];
    stage.assert_shows(100, 24, &parts)?;
    // It follows the entry, and says why it is gone.
    stage.pass(200);
    stage.assert_shows(100, 24, &["ends        gone: expired"])?;
    stage.press(Key::Move(1_000));
    stage.assert_shows(100, 24, &[" }"])?;
    assert!(stage.press(Key::Back) && stage.model.opened.is_none());
    assert!(!stage.press(Key::Back), "from the list it leaves");
    Ok(())
}

#[test]
fn an_open_event_says_who_encrypted_it() -> TestResult {
    let mut stage = stand_up()?;
    stage.press(Key::Move(isize::MAX));
    stage.press(Key::Open);
    let whose = "encryption  by the sender's device unknown, cross-signed by a user whom we";
    stage.assert_shows(100, 24, &["event id    $event1", whose])
}

#[test]
fn filters_hide_types_and_senders() -> TestResult {
    let mut stage = stand_up()?;
    stage.press(Key::Move(1));
    stage.press(Key::Type);
    stage.assert_shows(120, 19, &["rows 1-2 of 2", "only com.example.hand"])?;
    stage.press(Key::Sender);
    stage.press(Key::Type);
    stage.assert_shows(120, 19, &["rows 1-4 of 4", "only @carol:example.org"])?;
    stage.model.only.senders = vec![OwnedUserId::try_from("@nobody:example.org")?];
    stage.assert_shows(120, 19, &["nothing that the filters let through"])?;
    stage.press(Key::All);
    stage.assert_shows(120, 19, &["rows 1-6 of 6"])
}

#[test]
fn a_pause_and_the_help_say_so() -> TestResult {
    let mut stage = stand_up()?;
    stage.press(Key::Pause);
    stage.clock.0.fetch_add(5, Ordering::Relaxed);
    stage.assert_shows(100, 20, &["paused for 0:05", "p go on", "0:34"])?;
    stage.press(Key::Help);
    stage.assert_shows(100, 24, &["Enter      open it", "? back"])?;
    stage.press(Key::Back);
    stage.model.counts = Counts { waiting: 2, dropped: 3 };
    stage.assert_shows(100, 20, &["2 wait for a room key", "3 dropped: too many"])
}

#[test]
fn display_names_are_shown_in_their_room() -> TestResult {
    let mut stage = stand_up()?;
    let bob = OwnedUserId::try_from("@bob:example.org")?;
    stage.model.names.entry(Stage::room_id()).or_default().set([(bob, "Bob".to_owned())]);
    stage.assert_shows(100, 19, &["  Bob ", "  @carol:ex"])
}

#[test]
fn any_size_is_drawn_in_any_state() -> TestResult {
    let mut stage = stand_up()?;
    stage.press(Key::Move(1));
    for key in [Key::Redraw, Key::Open, Key::Help] {
        stage.press(key);
        for size in 1..30 {
            stage.picture(size, size)?;
        }
    }
    stage.press(Key::Help);
    let (since, error) = (std::time::UNIX_EPOCH, "gone".to_owned());
    stage.model.state = SyncState::Offline { since, error };
    stage.assert_shows(100, 20, &["● offline for"])
}

#[test]
fn control_characters_do_not_reach_the_terminal() -> TestResult {
    let evil = "\u{1b}[2J\u{7}\n\u{202e}";
    let mut stage = Stage::new();
    stage.send(("@eve:example.org", evil, evil, 60, json!({ evil: evil })))?;
    let list = stage.picture(100, 20)?;
    stage.press(Key::Move(1));
    stage.press(Key::Open);
    let picture = format!("{list}{}", stage.picture(100, 30)?);
    assert!(picture.contains("@eve:example.org"));
    assert!(!picture.chars().any(|c| "\u{1b}\u{7}\u{202e}".contains(c)), "{picture:?}");
    Ok(())
}
