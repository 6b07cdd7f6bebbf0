//! The terminal view: the room's sessions, their members with their devices and the time that their
//! memberships last, the users that are refused and why, the pulse of our heartbeat, and what happened.

use std::{
    collections::{BTreeSet, VecDeque},
    time::Duration,
};

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
    names::Names,
    plain,
    terminal::{
        Log, Parts, Screen, bar_of, clock, color_of, divide, draw_help, draw_left, fit, harmless,
        keys,
    },
};

/// When to draw again though nothing changed: time passes, and the lease runs.
const TICK: Duration = Duration::from_millis(250);

/// For how many ticks back the pulse is drawn, if there is room.
const PULSE: usize = 24;

/// After how many ticks the users' names are read again, as people rename themselves.
const NAMES_EVERY: u32 = 40;

/// What each key does.
const HELP: [(&str, &str); 9] = [
    ("j", "join the call"),
    ("l", "leave it, and go on looking"),
    ("?", "this help, or back"),
    ("q Esc", "leave the call, and end"),
    ("", ""),
    ("♥", "ourselves; a beat of our heart"),
    ("🔒 DEVICE", "the device is proven, by encryption"),
    ("DEVICE?", "the device is what the member says"),
    ("† x", "crashed or cut off; is refused"),
];

/// What the user asks for.
pub(crate) enum Key {
    Join,
    Leave,
    Quit,
    Help,
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
    names: Names,
    log: Log,
    /// What did not work.
    note: Option<String>,
    has_help: bool,
}

pub(crate) struct View {
    screen: Screen,
    room: Room,
    ticks: u32,
    keys: mpsc::UnboundedReceiver<Key>,
    tick: Interval,
    model: Model,
}

impl View {
    pub(crate) fn open(room: &Room, delay: Duration, snapshot: RtcSnapshot) -> Result<Self> {
        let mut tick = interval(TICK);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let name = room.cached_display_name().map(|name| name.to_string());
        let name = name.unwrap_or_else(|| room.room_id().to_string());
        let model = Model::new(room.own_user_id(), &name, delay, snapshot);
        let (screen, room) = (Screen::open()?, room.clone());
        Ok(Self { screen, room, ticks: 0, keys: keys(key_of), tick, model })
    }

    pub(crate) async fn update(&mut self, change: RtcUpdate) {
        // The names first, so that the log has them.
        self.read_names(&change.snapshot).await;
        self.model.update(change);
    }

    async fn read_names(&mut self, snapshot: &RtcSnapshot) {
        let users = users_of(snapshot).collect();
        self.model.names.read(&self.room, users).await;
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

    pub(crate) fn toggle_help(&mut self) {
        self.model.has_help = !self.model.has_help;
    }

    pub(crate) async fn next(&mut self) -> Key {
        tokio::select! {
            key = self.keys.recv() => key.unwrap_or(Key::Quit),
            _ = self.tick.tick() => {
                self.model.tick();
                if self.ticks % NAMES_EVERY == 0 {
                    let snapshot = self.model.snapshot.clone();
                    self.read_names(&snapshot).await;
                }
                self.ticks = self.ticks.wrapping_add(1);
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
            KeyCode::Char('?' | 'h') => Key::Help,
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
            names: Names::default(),
            log: Log::default(),
            note: None,
            has_help: false,
        }
    }

    fn update(&mut self, change: RtcUpdate) {
        let at = change.snapshot.taken_at();
        for change in &change.changes {
            self.log(&change.change, at);
        }
        self.snapshot = change.snapshot;
    }

    fn log(&mut self, what: &SessionChange, at: Moment) {
        if let Some(text) = plain::line(what, &self.names) {
            let (mark, color) = mark_of(what);
            self.log.push(at, mark, color, text);
        }
    }

    /// Whether we are in the session, or on our way there: `l` leaves, `j` does nothing.
    fn is_in(&self) -> bool {
        !matches!(self.own, None | Some(State::Left | State::Failed(_)))
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

    /// The rows of the list: each session, and below it its members, and the users that are refused.
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

/// All users that a snapshot names.
fn users_of(snapshot: &RtcSnapshot) -> impl Iterator<Item = OwnedUserId> {
    let mut users = BTreeSet::new();
    for session in snapshot.sessions() {
        users.extend(session.members().map(|member| member.user_id().to_owned()));
        users.extend(session.candidates().map(|candidate| candidate.user_id.clone()));
    }
    users.extend(snapshot.strays().map(|candidate| candidate.user_id.clone()));
    users.into_iter()
}

/// Whether the list shows a candidate. One that is gone stands in the log once, with the reason; one
/// that says to be there and does not count stays in the list.
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

fn mark_of(what: &SessionChange) -> (char, Color) {
    match what {
        SessionChange::Joined(_) => ('+', Color::Green),
        SessionChange::Left { reason: NotJoined::Left(leave), .. }
            if leave.code.as_deref() != Some(LeaveReason::DELAYED) =>
        {
            ('-', Color::Yellow)
        }
        SessionChange::Left { .. } => ('†', Color::Red),
        SessionChange::Refused(_) => ('x', Color::Magenta),
        _ => ('~', Color::Cyan),
    }
}

fn draw(frame: &mut Frame<'_>, model: &Model, now: Moment) {
    /// From this height on there is an empty line below the head.
    const ROOMY: u16 = 16;

    let rows = model.rows();
    let wanted = if model.has_help { HELP.len() } else { rows.len() };
    let head = if frame.area().height < ROOMY { 2 } else { 3 };
    let Parts { title, head, list, log, hint } = divide(frame.area(), head, wanted);
    let line = Line::from(vec![
        " presence ".bold().reversed(),
        format!(" {} ", model.names.of(&model.user_id)).bold(),
        format!("in {}", model.room).into(),
    ]);
    frame.render_widget(line, title);
    for (line, area) in
        [state_line(model), own_line(model, now, head.width)].into_iter().zip(head.rows())
    {
        frame.render_widget(line, area);
    }
    if model.has_help {
        draw_help(frame, list, &HELP);
    } else {
        draw_list(frame, list, model, &rows, now);
    }
    model.log.draw(frame, log, " What happened", now);
    let does = if model.is_in() { "l leave" } else { "j join" };
    let help = if model.has_help { "? back" } else { "? help" };
    frame.render_widget(Line::from(format!(" {does}   q quit   {help}")).dim(), hint);
}

fn draw_list(frame: &mut Frame<'_>, list: Rect, model: &Model, rows: &[Row], now: Moment) {
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
            Row::Refused(candidate) => {
                frame.render_widget(refused_line(candidate, &model.names, area), area);
            }
        }
    }
    if let Some(area) = areas.next().filter(|_| is_too_long) {
        frame.render_widget(Line::from(format!("    and {} more", rows.len() - shown)).dim(), area);
    }
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

/// Ourselves: how we stand, the beats of the last seconds, and what would happen without the next. The
/// seconds until then are always there; a narrow terminal shows fewer beats.
fn own_line(model: &Model, now: Moment, width: u16) -> Line<'static> {
    /// Below this width there is neither a pulse nor a bar.
    const NARROW: u16 = 66;
    /// What stands beside the pulse, in cells.
    const BESIDE: u16 = 59;

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
    let state = own.as_str().replace('_', " ");
    let Some(armed_until) = model.armed_until else {
        return Line::from(format!(" {heart} we: {state:<14} ").fg(color));
    };
    let left = armed_until.left(now);
    let part = left.as_secs_f64() / model.delay.as_secs_f64().max(f64::MIN_POSITIVE);
    let seconds = format!(" {:.1} s", left.as_secs_f64()).fg(color_of(part));
    if width < NARROW {
        return Line::from(vec![format!(" {heart} {state}, leave in").fg(color), seconds]);
    }
    let pulse = PULSE.min(usize::from(width.saturating_sub(BESIDE)));
    let beats = model.pulse.iter().skip(model.pulse.len().saturating_sub(pulse));
    let beats: String = beats.map(|beat| if *beat { '♥' } else { '·' }).collect();
    Line::from(vec![
        format!(" {heart} we: {state:<14} ").fg(color),
        format!("{beats:·>pulse$}").fg(color),
        "  the leave fires in ".dim(),
        bar_of(part, 10).fg(color_of(part)),
        seconds,
    ])
}

fn session_line(session: &SessionSnapshot) -> Line<'static> {
    let application = session.slot().and_then(|slot| slot.application.as_ref());
    let application = application.map(|it| format!("{}, ", harmless(&it.application_type)));
    let slot = match (session.slot(), session.closed_by()) {
        (_, None) => "open".to_owned(),
        // If it is missing, Element Call takes it for open.
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

/// Draws a member. A narrow terminal shows the user, the device, and the time left.
fn draw_member(frame: &mut Frame<'_>, area: Rect, model: &Model, member: &Member, now: Moment) {
    /// Below this width the intent, the stay and the bar are not shown.
    const NARROW: u16 = 66;
    /// Below this width the device is not shown either.
    const TINY: u16 = 30;

    let from = |width: u16, part: Constraint| {
        if area.width < width { Constraint::Length(0) } else { part }
    };
    let [_, mark, user, device, intent, since, bar, time] = area.layout(
        &Layout::horizontal([
            Constraint::Length(1),
            Constraint::Length(if area.width < NARROW { 2 } else { 1 }),
            Constraint::Fill(4),
            from(TINY, Constraint::Fill(3)),
            from(NARROW, Constraint::Fill(2)),
            from(NARROW, Constraint::Length(9)),
            from(NARROW, Constraint::Length(10)),
            Constraint::Length(5),
        ])
        .spacing(u16::from(area.width >= NARROW)),
    );
    let mut put = |text: String, style: Style, area: Rect| {
        frame.render_widget(Span::styled(fit(text, area.width), style), area);
    };
    let plain = Style::new();
    if model.is_us(member) {
        put("♥".to_owned(), plain.green(), mark);
    }
    put(model.names.of(member.user_id()), plain.bold(), user);
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

fn refused_line(candidate: &Candidate, names: &Names, area: Rect) -> Line<'static> {
    let text = fit(plain::refused(candidate, names), area.width.saturating_sub(4));
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
        for own in [State::Joining, State::Joined, State::Degraded] {
            stage.model.own = Some(own);
            stage.assert_shows(&[" l leave   q quit   ? help"])?;
        }
        stage.model.own = Some(State::Left);
        stage.assert_shows(&[" j join   q quit"])
    }

    #[test]
    fn while_cut_off_the_time_runs_out() -> TestResult {
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
