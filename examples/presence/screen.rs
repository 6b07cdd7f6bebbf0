//! The terminal view: the room's sessions, who is in them, by which device and for how long their
//! memberships last, who is refused and why, the pulse of our heartbeat, and what happened.

use std::{collections::VecDeque, time::Duration};

use matrix_sdk::{
    Room,
    ruma::{OwnedUserId, UserId},
};
use matrix_sdk_sticky::{
    Sticky, SyncState,
    heartbeat::State,
    rtc::{
        Candidate, LeaveReason, Member, NotJoined, OwnMembership, RtcSnapshot, RtcUpdate,
        SessionChange, SessionSnapshot,
    },
    time::{Deadline, MAX_STICKY_DURATION, Moment},
};
use ratatui::{
    Frame,
    crossterm::event::{Event, KeyCode, KeyEventKind, KeyModifiers},
    layout::{Constraint, Layout, Rect},
    style::{Color, Style, Stylize as _},
    text::{Line, Span},
};
use tokio::{
    sync::mpsc,
    time::{Interval, MissedTickBehavior, interval},
};

use crate::{
    common::Result,
    plain,
    terminal::{Screen, bar_of, clock, color_of, draw_left, fit, harmless, keys},
};

/// When to draw again though nothing changed: time passes, and the lease runs.
const TICK: Duration = Duration::from_millis(250);

/// How many of the last changes are remembered.
const CHANGES: usize = 50;

/// For how many ticks back the pulse is drawn.
const PULSE: usize = 24;

/// What the user asks for.
pub(crate) enum Key {
    Join,
    Leave,
    Quit,
    Redraw,
}

/// All that is drawn, but for the time.
struct Model {
    user_id: OwnedUserId,
    room: String,
    snapshot: RtcSnapshot,
    sync: SyncState,
    own: Option<State>,
    /// Which of our user's members we are.
    own_id: Option<String>,
    /// The longest time from a beat to the leave.
    delay: Duration,
    armed_until: Option<Deadline>,
    /// Whether our heart beat, for each of the last ticks; the newest last.
    pulse: VecDeque<bool>,
    has_beaten: bool,
    /// The newest first, and when it was.
    changes: VecDeque<(Told, Moment)>,
    /// What did not work.
    note: Option<String>,
}

/// A change, as it is shown.
struct Told {
    mark: char,
    color: Color,
    text: String,
}

pub(crate) struct View {
    screen: Screen,
    keys: mpsc::UnboundedReceiver<Key>,
    tick: Interval,
    model: Model,
}

impl View {
    pub(crate) fn open(room: &Room, delay: Duration, snapshot: RtcSnapshot) -> Result<Self> {
        let mut tick = interval(TICK);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let name = room.cached_display_name().map(|name| name.to_string()).unwrap_or_default();
        let model =
            Model::new(room.own_user_id(), &format!("{name} {}", room.room_id()), delay, snapshot);
        Ok(Self { screen: Screen::open()?, keys: keys(key_of), tick, model })
    }

    pub(crate) fn update(&mut self, change: RtcUpdate) {
        self.model.update(change);
    }

    pub(crate) fn own(&mut self, state: State) {
        self.model.note = None;
        self.model.own = Some(state);
    }

    pub(crate) fn note(&mut self, note: &str) {
        self.model.note = Some(harmless(note));
    }

    pub(crate) fn draw(&mut self, sticky: &Sticky, membership: Option<&OwnMembership>) -> Result {
        self.model.sync = sticky.state();
        self.model.own_id = membership.map(OwnMembership::member_id);
        self.model.look_at_lease(membership.and_then(OwnMembership::armed_until));
        let (now, model) = (sticky.now(), &self.model);
        self.screen.draw(|frame| draw(frame, model, now))?;
        Ok(())
    }

    pub(crate) async fn next(&mut self) -> Key {
        tokio::select! {
            key = self.keys.recv() => key.unwrap_or(Key::Quit),
            _ = self.tick.tick() => {
                self.model.tick();
                Key::Redraw
            }
        }
    }
}

fn key_of(event: Event) -> Option<Key> {
    Some(match event {
        Event::Resize(..) => Key::Redraw,
        Event::Key(key) if key.kind == KeyEventKind::Press => match key.code {
            KeyCode::Char('q') | KeyCode::Esc => Key::Quit,
            KeyCode::Char('c') if key.modifiers.contains(KeyModifiers::CONTROL) => Key::Quit,
            KeyCode::Char('j') => Key::Join,
            KeyCode::Char('l') => Key::Leave,
            _ => return None,
        },
        _ => return None,
    })
}

impl Model {
    fn new(user_id: &UserId, room: &str, delay: Duration, snapshot: RtcSnapshot) -> Self {
        Self {
            user_id: user_id.to_owned(),
            room: harmless(room.trim()),
            snapshot,
            sync: SyncState::Connecting,
            own: None,
            own_id: None,
            delay,
            armed_until: None,
            pulse: VecDeque::new(),
            has_beaten: false,
            changes: VecDeque::new(),
            note: None,
        }
    }

    fn update(&mut self, change: RtcUpdate) {
        let at = change.snapshot.taken_at();
        for change in &change.changes {
            if let Some(told) = told(&change.change) {
                self.changes.push_front((told, at));
            }
        }
        self.changes.truncate(CHANGES);
        self.snapshot = change.snapshot;
    }

    /// A beat is what moves the end of the lease on.
    fn look_at_lease(&mut self, armed_until: Option<Deadline>) {
        self.has_beaten |= armed_until > self.armed_until;
        self.armed_until = armed_until;
    }

    fn tick(&mut self) {
        self.pulse.push_back(std::mem::take(&mut self.has_beaten));
        while self.pulse.len() > PULSE {
            self.pulse.pop_front();
        }
    }

    fn is_us(&self, member: &Member) -> bool {
        member.user_id() == self.user_id && self.own_id.as_deref() == Some(member.member_id())
    }

    /// The rows of the list: each session, and below it who is there, and who is refused.
    fn rows(&self) -> Vec<Row> {
        let mut rows = Vec::new();
        for session in self.snapshot.sessions() {
            rows.push(Row::Session(session.clone()));
            rows.extend(session.members().cloned().map(Row::Member));
            let refused = session.candidates().filter(|it| is_refused(&it.reason));
            rows.extend(refused.cloned().map(Row::Refused));
        }
        let strays = self.snapshot.strays().filter(|it| is_refused(&it.reason));
        rows.extend(strays.cloned().map(Row::Refused));
        rows
    }
}

enum Row {
    Session(SessionSnapshot),
    Member(Member),
    Refused(Candidate),
}

/// Who is gone is told of once, with what happened; who says to be there and does not count stays.
fn is_refused(reason: &NotJoined) -> bool {
    !matches!(
        reason,
        NotJoined::Left(_)
            | NotJoined::Expired
            | NotJoined::Redacted
            | NotJoined::Moved
            | NotJoined::RoomLeft
    )
}

fn told(change: &SessionChange) -> Option<Told> {
    let (mark, color) = match change {
        SessionChange::Joined(_) => ('+', Color::Green),
        SessionChange::Left { reason: NotJoined::Left(leave), .. }
            if leave.code.as_deref() != Some(LeaveReason::DELAYED) =>
        {
            ('-', Color::Yellow)
        }
        SessionChange::Left { .. } => ('†', Color::Red),
        SessionChange::Refused(_) => ('x', Color::Magenta),
        _ => ('~', Color::Cyan),
    };
    plain::line(change).map(|text| Told { mark, color, text })
}

fn draw(frame: &mut Frame<'_>, model: &Model, now: Moment) {
    let changes_height = frame.area().height / 3;
    let [header, state, own, list, heading, changes, footer] =
        frame.area().layout(&Layout::vertical([
            Constraint::Length(1),
            Constraint::Length(1),
            Constraint::Length(2),
            Constraint::Fill(1),
            Constraint::Length(1),
            Constraint::Length(changes_height),
            Constraint::Length(1),
        ]));
    let title = Line::from(vec![
        " presence ".bold().reversed(),
        format!(" {} ", harmless(model.user_id.as_str())).bold(),
        format!("in {}", model.room).into(),
    ]);
    frame.render_widget(title, header);
    frame.render_widget(state_line(model), state);
    frame.render_widget(own_line(model, now), own);

    let rows = model.rows();
    if rows.is_empty() {
        frame.render_widget(Line::from("  no session, and no slot for one").dim(), list);
    }
    let height = usize::from(list.height);
    let is_too_long = rows.len() > height;
    let shown = if is_too_long { height.saturating_sub(1) } else { rows.len() };
    let mut areas = list.rows();
    for (row, area) in rows.iter().take(shown).zip(areas.by_ref()) {
        match row {
            Row::Session(session) => frame.render_widget(session_line(session), area),
            Row::Member(member) => draw_member(frame, area, model, member, now),
            Row::Refused(candidate) => frame.render_widget(refused_line(candidate, area), area),
        }
    }
    if let Some(area) = areas.next().filter(|_| is_too_long) {
        frame.render_widget(Line::from(format!("    and {} more", rows.len() - shown)).dim(), area);
    }

    frame.render_widget(Line::from(" SessionChange happened").bold(), heading);
    for ((told, at), area) in model.changes.iter().zip(changes.rows()) {
        let ago = Duration::from_millis(now.unix_ms().saturating_sub(at.unix_ms()));
        let line = Line::from(vec![
            format!(" {:>5} ago ", clock(ago)).dim(),
            format!("{} ", told.mark).fg(told.color),
            fit(told.text.clone(), area.width.saturating_sub(14)).into(),
        ]);
        frame.render_widget(line, area);
    }
    frame.render_widget(Line::from(" j join   l leave   q quit").dim(), footer);
}

fn state_line(model: &Model) -> Line<'static> {
    let (text, color) = match &model.sync {
        SyncState::Live | SyncState::Incomplete { .. } => ("live", Color::Green),
        SyncState::Offline { .. } => ("offline: what follows may be old", Color::Red),
        SyncState::Unsupported(_) | SyncState::LoggedOut => ("over", Color::Red),
        _ => ("catching up", Color::Yellow),
    };
    let room = if model.snapshot.is_encrypted() { "encrypted room" } else { "plain room" };
    Line::from(vec![format!(" ● {text}").fg(color), format!("   {room}").dim()])
}

/// Ourselves: how we stand, the beats of the last seconds, and what would happen without the next.
fn own_line(model: &Model, now: Moment) -> Line<'static> {
    if let Some(note) = &model.note {
        return Line::from(format!(" ! {note}")).fg(Color::Red);
    }
    let Some(own) = model.own else {
        return Line::from(" ♡ we are not in").dim();
    };
    let has_just_beaten = model.has_beaten || model.pulse.back() == Some(&true);
    let (heart, color) = match own {
        State::Joined if has_just_beaten => ("♥", Color::Green),
        State::Joined => ("♡", Color::Green),
        State::ProbablyLeft { .. } | State::Failed(_) => ("✗", Color::Red),
        State::Left => ("♡", Color::Reset),
        _ => ("♡", Color::Yellow),
    };
    let state = format!(" {heart} we: {:<14} ", own.as_str().replace('_', " ")).fg(color);
    let Some(armed_until) = model.armed_until else { return Line::from(state) };
    let beats: String = model.pulse.iter().map(|beat| if *beat { '♥' } else { '·' }).collect();
    let left = armed_until.left(now);
    let part = left.as_secs_f64() / model.delay.as_secs_f64().max(f64::MIN_POSITIVE);
    Line::from(vec![
        state,
        format!("{beats:·>PULSE$}").fg(color),
        "  the leave fires in ".dim(),
        bar_of(part, 10).fg(color_of(part)),
        format!(" {:.1} s", left.as_secs_f64()).fg(color_of(part)),
    ])
}

fn session_line(session: &SessionSnapshot) -> Line<'static> {
    let application = session.slot().and_then(|slot| slot.application.as_ref());
    let application = application.map(|it| format!("{}, ", harmless(&it.application_type)));
    let slot = match (session.slot(), session.closed_by()) {
        (_, None) => "open".to_owned(),
        // Where it is missing, Element Call takes it for open.
        (None, _) => "no slot, so for Element Call only".to_owned(),
        (_, Some(closed)) => harmless(&NotJoined::Slot(closed).to_string()),
    };
    let there = match session.len() {
        0 => "nobody there".to_owned(),
        there => format!("{there} there"),
    };
    Line::from(vec![
        format!(" {} ", harmless(session.slot_id())).bold().cyan(),
        format!("{}{slot}: {there}", application.unwrap_or_default()).dim(),
    ])
}

fn draw_member(frame: &mut Frame<'_>, area: Rect, model: &Model, member: &Member, now: Moment) {
    let [_, mark, user, device, intent, since, bar, time] = area.layout(
        &Layout::horizontal([
            Constraint::Length(1),
            Constraint::Length(1),
            Constraint::Fill(4),
            Constraint::Fill(3),
            Constraint::Fill(2),
            Constraint::Length(9),
            Constraint::Length(10),
            Constraint::Length(5),
        ])
        .spacing(1),
    );
    let mut put = |text: String, style: Style, area: Rect| {
        frame.render_widget(Span::styled(fit(text, area.width), style), area);
    };
    let plain = Style::new();
    if model.is_us(member) {
        put("♥".to_owned(), plain.green(), mark);
    }
    put(harmless(member.user_id().as_str()), plain.bold(), user);
    let (text, style) = match member.device() {
        Some(known) if known.is_proven() => (format!("🔒 {}", known.device_id), plain),
        Some(known) => (format!("{}?", known.device_id), plain.dim()),
        None => ("no device".to_owned(), plain.dim()),
    };
    put(harmless(&text), style, device);
    put(harmless(member.intent().unwrap_or("")), plain.yellow(), intent);
    let there = Duration::from_millis(now.unix_ms().saturating_sub(member.since_ms()));
    put(format!("for {}", clock(there)), plain.dim(), since);

    let whole = member.event().map_or(MAX_STICKY_DURATION, |event| event.sticky_duration());
    draw_left(frame, bar, time, member.expires_in(now), whole);
}

fn refused_line(candidate: &Candidate, area: Rect) -> Line<'static> {
    let text = fit(plain::refused(candidate), area.width.saturating_sub(4));
    Line::from(vec!["  x ".fg(Color::Magenta), text.dim()])
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

    use matrix_sdk::ruma::{OwnedRoomId, room_id, user_id};
    use matrix_sdk_sticky::{
        Encryption, EphemeralMaps,
        event::{EncryptionDetails, Verification},
        heartbeat::Failure,
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
            let told = self.roster.poll_changes(now);
            let told = told.iter().filter_map(|change| told_at(&change.change, now));
            told.for_each(|told| self.model.changes.push_front(told));
            self.model.snapshot = self.roster.snapshot(now);
        }

        fn pass(&mut self, ms: u64) {
            self.clock.0.fetch_add(ms, Ordering::Relaxed);
            self.look();
        }

        /// A membership, with what it says of the member.
        fn send(
            &mut self,
            user: &str,
            device: Option<&str>,
            id: &str,
            content: Value,
        ) -> TestResult {
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
                    let details =
                        EncryptionDetails::new(owner, Some(device), Verification::Verified);
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

    fn told_at(change: &SessionChange, now: Moment) -> Option<(Told, Moment)> {
        told(change).map(|told| (told, now))
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
    fn shows_who_is_there_who_is_refused_and_what_happened() -> TestResult {
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
    fn another_slot_of_the_room_is_shown_too() -> TestResult {
        let mut stage = call()?;
        stage.open("com.example.draw", "com.example.draw#board");
        stage.assert_shows(&[
            "com.example.draw#board com.example.draw, open: nobody there",
            "m.call#ROOM m.call, open: 2 there",
        ])
    }

    #[test]
    fn the_pulse_shows_each_beat_and_the_time_to_the_leave() -> TestResult {
        let mut stage = call()?;
        stage.model.own = Some(State::Joined);
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
        stage.assert_shows(&["♥ we: joined", "the leave fires in ██████████ 4.0 s"])
    }

    #[test]
    fn cut_off_there_is_no_beat_and_the_time_runs_out() -> TestResult {
        let mut stage = call()?;
        let since = stage.clock.now().deadline(Duration::from_secs(1));
        stage.model.look_at_lease(Some(since));
        stage.model.tick();
        stage.model.own = Some(State::ProbablyLeft { since });
        for _ in 0..30 {
            stage.model.tick();
            stage.pass(250);
        }
        let shown =
            format!("✗ we: probably left  {}  the leave fires in            0.0 s", "·".repeat(24));
        stage.assert_shows(&[&shown])?;
        stage.model.look_at_lease(None);
        stage.model.own = Some(State::Failed(Failure::NotInRoom));
        stage.assert_shows(&["✗ we: failed"])
    }

    #[test]
    fn a_screen_of_any_size_is_drawn() -> TestResult {
        let mut stage = call()?;
        for size in 1..30 {
            stage.picture(size, size)?;
        }
        for number in 0..9 {
            stage.join(&format!("@u{number}:example.org"), Some("D"), "m")?;
        }
        stage.assert_shows(&["    and 4 more"])?;
        stage.model.note = Some("the slot is closed: open it first".to_owned());
        stage.assert_shows(&[" ! the slot is closed: open it first"])
    }

    #[test]
    fn what_a_terminal_would_obey_is_not_passed_on() -> TestResult {
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
        let leave =
            json!({ "member": { "membership": "leave" }, "leave_reason": { "code": evil } });
        let picture = stage.picture(100, 20)?;
        assert!(picture.contains("@eve:example.org"));
        stage.send("@eve:example.org", Some(&device), "e1", leave)?;
        let picture = format!("{picture}{}", stage.picture(100, 20)?);
        assert!(picture.contains(" - @eve:example.org"), "{picture}");
        assert!(!picture.chars().any(|c| "\u{1b}\u{7}\u{202e}".contains(c)), "{picture:?}");
        Ok(())
    }

    #[test]
    fn to_scripts_nothing_is_said_twice() -> TestResult {
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
        // A refresh is no change of who is there.
        stage.pass(60_000);
        stage.join("@bob:example.org", Some("BOB"), "b1")?;
        assert_eq!(json.members(&now(&stage)), None);

        assert_eq!(
            json.own(State::Joining).as_deref(),
            Some(r#"{"kind":"own","state":"joining"}"#)
        );
        assert_eq!(json.own(State::Joining), None);
        assert_eq!(json.own(State::Leaving), None);
        let left = r#"{"kind":"own","state":"left"}"#;
        assert_eq!(json.own(State::Failed(Failure::Redacted)).as_deref(), Some(left));
        assert_eq!(json.own(State::Left), None);
        let failed = r#"{"kind":"own","state":"failed"}"#;
        assert_eq!(json.own(State::Failed(Failure::LeaveRefused)).as_deref(), Some(failed));
        Ok(())
    }
}
