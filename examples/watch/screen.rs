//! The terminal view: rooms, their entries, the time that each has left, and the last changes.

use std::{
    collections::{BTreeMap, VecDeque},
    time::Duration,
};

use futures_util::StreamExt as _;
use matrix_sdk::{Client, ruma::OwnedRoomId};
use matrix_sdk_sticky::{
    Sticky, SyncState,
    time::Moment,
    view::{Change, Entry, EntryChange, Snapshot, Subscription, View},
};
use ratatui::{
    Frame,
    crossterm::event::{Event, KeyCode, KeyEventKind, KeyModifiers},
    layout::{Constraint, Layout, Rect},
    style::{Color, Style, Stylize as _},
    text::{Line, Span},
};
use tokio::time::{MissedTickBehavior, interval};

use crate::{
    common::Result,
    plain::{in_short, short_type, summary},
    terminal::{Screen, clock, draw_left, fit, harmless, keys},
};

/// When to draw again though nothing changed: time passes.
const TICK: Duration = Duration::from_secs(1);

/// How many of the last changes are remembered.
const CHANGES: usize = 50;

/// All that is drawn, but for the time.
struct Model {
    user: String,
    server: String,
    state: SyncState,
    snapshot: Snapshot,
    room_names: BTreeMap<OwnedRoomId, String>,
    /// The newest first, and when each was told.
    changes: VecDeque<(EntryChange, Moment)>,
    /// How many rows of the list are above the first that is shown.
    scroll: usize,
}

/// Shows a view until the user leaves.
pub(crate) async fn show(client: &Client, sticky: &Sticky, view: &View) -> Result {
    let Subscription { snapshot, mut changes, .. } = view.subscribe();
    let mut states = std::pin::pin!(sticky.subscribe_state());
    let mut model = Model {
        user: client.user_id().map(ToString::to_string).unwrap_or_default(),
        server: client.homeserver().to_string(),
        state: sticky.state(),
        snapshot,
        room_names: BTreeMap::new(),
        changes: VecDeque::new(),
        scroll: 0,
    };

    let mut keys = keys(key_of);
    let mut tick = interval(TICK);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut screen = Screen::open()?;
    loop {
        model.snapshot = view.snapshot();
        model.name_rooms(client);
        let now = sticky.now();
        screen.draw(|frame| model.scroll = draw(frame, &model, now))?;
        tokio::select! {
            _ = tick.tick() => {}
            Some(change) = changes.next() => model.handle_change(change),
            Some(state) = states.next() => model.state = state,
            key = keys.recv() => match key {
                Some(Key::Scroll(rows)) => model.scroll = model.scroll.saturating_add_signed(rows),
                Some(Key::Redraw) => {}
                Some(Key::Leave) | None => return Ok(()),
            },
        }
    }
}

impl Model {
    fn handle_change(&mut self, change: Change) {
        for entry in change.entries {
            self.changes.push_front((entry, change.told_at));
        }
        self.changes.truncate(CHANGES);
    }

    fn name_rooms(&mut self, client: &Client) {
        for entry in self.snapshot.iter() {
            if !self.room_names.contains_key(entry.room_id())
                && let Some(room) = client.get_room(entry.room_id())
                && let Some(name) = room.cached_display_name()
            {
                self.room_names.insert(entry.room_id().to_owned(), name.to_string());
            }
        }
    }

    /// The rows of the list: each room, and below it its entries.
    fn rows(&self) -> Vec<Row> {
        let mut rows = Vec::new();
        let mut last_room = None;
        for entry in self.snapshot.iter() {
            if last_room.as_deref() != Some(entry.room_id()) {
                last_room = Some(entry.room_id().to_owned());
                rows.push(Row::Room(entry.room_id().to_owned()));
            }
            rows.push(Row::Entry(entry));
        }
        rows
    }
}

enum Row {
    Room(OwnedRoomId),
    Entry(Entry),
}

/// Draws all of it, and returns how far the list is scrolled: no further than there are rows.
fn draw(frame: &mut Frame<'_>, model: &Model, now: Moment) -> usize {
    let changes_height = frame.area().height / 3;
    let [header, state, list, heading, changes, footer] = frame.area().layout(&Layout::vertical([
        Constraint::Length(1),
        Constraint::Length(2),
        Constraint::Fill(1),
        Constraint::Length(1),
        Constraint::Length(changes_height),
        Constraint::Length(1),
    ]));

    let title = Line::from(vec![
        " watch ".bold().reversed(),
        format!(" {} ", harmless(&model.user)).bold(),
        format!("on {}", harmless(&model.server)).into(),
    ]);
    frame.render_widget(title, header);
    frame.render_widget(state_line(&model.state, now), state);

    let rows = model.rows();
    let height = usize::from(list.height);
    let scroll = model.scroll.min(rows.len().saturating_sub(height));
    if rows.is_empty() {
        frame.render_widget(Line::from("  no sticky events at the moment").dim(), list);
    }
    for (row, area) in rows.iter().skip(scroll).zip(list.rows()) {
        match row {
            Row::Room(room_id) => draw_room(frame, area, model, room_id),
            Row::Entry(entry) => draw_entry(frame, area, entry, now),
        }
    }

    frame.render_widget(Line::from(" Last changes").bold(), heading);
    for ((change, told_at), area) in model.changes.iter().zip(changes.rows()) {
        frame.render_widget(change_line(change, *told_at, now), area);
    }

    let shown = format!(
        "rows {}-{} of {}",
        rows.len().min(scroll + 1),
        rows.len().min(scroll + height),
        rows.len()
    );
    let [left, right] = footer.layout(&Layout::horizontal([Constraint::Fill(1); 2]));
    frame.render_widget(Line::from(" q leave   ↑ ↓ PgUp PgDn scroll").dim(), left);
    frame.render_widget(Line::from(shown).dim().right_aligned(), right);
    scroll
}

fn state_line(state: &SyncState, now: Moment) -> Line<'static> {
    let (text, color) = match state {
        SyncState::Live => ("live".to_owned(), Color::Green),
        SyncState::Incomplete { rooms } => {
            (format!("live, but incomplete in {} rooms", rooms.len()), Color::Yellow)
        }
        SyncState::CatchingUp => ("catching up".to_owned(), Color::Yellow),
        SyncState::Connecting => ("connecting".to_owned(), Color::Yellow),
        SyncState::Offline { since, error, .. } => {
            let since = since.duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
            let away = Duration::from_millis(now.unix_ms()).saturating_sub(since);
            (format!("offline for {}: {}", clock(away), harmless(error)), Color::Red)
        }
        SyncState::Unsupported(why) => (harmless(&why.to_string()), Color::Red),
        SyncState::LoggedOut => ("logged out".to_owned(), Color::Red),
        _ => (String::new(), Color::Reset),
    };
    Line::from(format!(" ● {text}")).fg(color)
}

fn draw_room(frame: &mut Frame<'_>, area: Rect, model: &Model, room_id: &OwnedRoomId) {
    let name = model.room_names.get(room_id).map_or("", String::as_str);
    let line = Line::from(vec![
        format!(" {} ", harmless(name)).bold().cyan(),
        harmless(room_id.as_str()).dim(),
    ]);
    frame.render_widget(line, area);
}

fn draw_entry(frame: &mut Frame<'_>, area: Rect, entry: &Entry, now: Moment) {
    let [_, sender, event_type, key, lock, content, bar, time] = area.layout(
        &Layout::horizontal([
            Constraint::Length(1),
            Constraint::Fill(4),
            Constraint::Fill(4),
            Constraint::Fill(3),
            Constraint::Length(2),
            Constraint::Fill(6),
            Constraint::Length(10),
            Constraint::Length(5),
        ])
        .spacing(1),
    );
    let mut put = |text: String, style: Style, area: Rect| {
        frame.render_widget(Span::styled(fit(text, area.width), style), area);
    };
    let plain = Style::new();
    put(harmless(entry.sender().as_str()), plain.bold(), sender);
    put(short_type(entry.event_type()), plain, event_type);
    put(harmless(entry.sticky_key().unwrap_or("")), plain.yellow(), key);
    if entry.is_encrypted() {
        put("🔒".to_owned(), plain, lock);
    }
    put(summary(entry), plain, content);

    draw_left(frame, bar, time, entry.expires_in(now), entry.sticky_duration());
}

fn change_line(change: &EntryChange, told_at: Moment, now: Moment) -> Line<'static> {
    let (mark, what, color) = match change {
        EntryChange::Added(_) => ("+", "added", Color::Green),
        EntryChange::Removed { reason, .. } => ("-", reason.as_str(), Color::Red),
        _ => ("~", "updated", Color::Yellow),
    };
    let ago = Duration::from_millis(now.unix_ms().saturating_sub(told_at.unix_ms()));
    Line::from(vec![
        format!(" {:>5} ago ", clock(ago)).dim(),
        format!("{mark} {what:<8} ").fg(color),
        in_short(change.entry()).into(),
    ])
}

/// What the user asks for.
enum Key {
    Leave,
    Scroll(isize),
    Redraw,
}

fn key_of(event: Event) -> Option<Key> {
    const PAGE: isize = 10;

    Some(match event {
        Event::Resize(..) => Key::Redraw,
        Event::Key(key) if key.kind == KeyEventKind::Press => match key.code {
            KeyCode::Char('q') | KeyCode::Esc => Key::Leave,
            KeyCode::Char('c') if key.modifiers.contains(KeyModifiers::CONTROL) => Key::Leave,
            KeyCode::Up => Key::Scroll(-1),
            KeyCode::Down => Key::Scroll(1),
            KeyCode::PageUp => Key::Scroll(-PAGE),
            KeyCode::PageDown => Key::Scroll(PAGE),
            KeyCode::Home => Key::Scroll(isize::MIN),
            KeyCode::End => Key::Scroll(isize::MAX),
            _ => return None,
        },
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
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

    /// What somebody sends: who, which type, which key, for how many seconds, and what.
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
            let model = Model {
                user: "@alice:example.org".to_owned(),
                server: "https://matrix.example.org/".to_owned(),
                state: SyncState::Live,
                snapshot,
                room_names: [(Self::room_id(), "Stand-up".to_owned())].into(),
                changes: VecDeque::new(),
                scroll: 0,
            };
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
                self.model.handle_change(change);
            }
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

        fn picture(&self, width: u16, height: u16) -> TestResult<String> {
            let mut terminal = Terminal::new(TestBackend::new(width, height))?;
            terminal.draw(|frame| {
                draw(frame, &self.model, self.clock.now());
            })?;
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

    /// Also the README's picture: `WATCH_PICTURE=FILE cargo test --example watch` writes it.
    #[test]
    fn shows_rooms_entries_the_time_left_and_the_last_changes() -> TestResult {
        let picture = stand_up()?.picture(100, 19)?;
        if let Some(file) = std::env::var_os("WATCH_PICTURE") {
            std::fs::write(file, &picture)?;
        }
        for part in [
            "@alice:example.org on https://matrix.example.org",
            "● live",
            "Stand-up !pWnkgSbYrMEaLcGdxv:example.org",
            "🔒 slot_id: m.call#room",
            "status: on the train       ███▎        0:08",
            "status: in a call          █████▋      0:34",
            "0:02 ago - removed  @dave:example.org rtc.member[hQ3fT9cBbe] 🔒",
            "0:07 ago ~ updated  @carol:example.org example.presence[laptop]",
            "0:14 ago - expired  @dave:example.org example.hand[hand]",
        ] {
            assert!(picture.contains(part), "no {part:?} in\n{picture}");
        }
        Ok(())
    }

    #[test]
    fn scrolls_no_further_than_there_are_rows() -> TestResult {
        let mut stage = stand_up()?;
        stage.model.scroll = usize::MAX;
        let mut terminal = Terminal::new(TestBackend::new(80, 9))?;
        let mut scroll = 0;
        terminal.draw(|frame| scroll = draw(frame, &stage.model, stage.clock.now()))?;
        assert_eq!(scroll, 5);
        assert!(as_text(terminal.backend().buffer()).contains("rows 6-6 of 6"));
        Ok(())
    }

    #[test]
    fn a_screen_of_any_size_is_drawn_in_any_state() -> TestResult {
        let mut stage = stand_up()?;
        for size in 1..30 {
            stage.picture(size, size)?;
        }
        let (since, error) = (std::time::UNIX_EPOCH, "gone".to_owned());
        stage.model.state = SyncState::Offline { since, error };
        assert!(stage.picture(100, 20)?.contains("● offline for"));
        Ok(())
    }

    #[test]
    fn what_a_terminal_would_obey_is_not_passed_on() -> TestResult {
        let evil = "\u{1b}[2J\u{7}\n\u{202e}";
        let mut stage = Stage::new();
        stage.send(("@eve:example.org", evil, evil, 60, json!({ evil: evil })))?;
        let picture = stage.picture(100, 20)?;
        assert!(picture.contains("@eve:example.org"));
        assert!(!picture.chars().any(|c| "\u{1b}\u{7}\u{202e}".contains(c)), "{picture:?}");
        Ok(())
    }
}
