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
    heartbeat::HeartbeatState,
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
    own: Option<HeartbeatState>,
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

    pub(crate) fn own(&mut self, state: HeartbeatState) {
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
                if self.ticks.is_multiple_of(NAMES_EVERY) {
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
        !matches!(self.own, None | Some(HeartbeatState::Left | HeartbeatState::Failed(_)))
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
        HeartbeatState::Joined if has_just_beaten => ("♥", Color::Green),
        HeartbeatState::Joined => ("♡", Color::Green),
        HeartbeatState::ProbablyLeft { .. } | HeartbeatState::Failed(_) => ("✗", Color::Red),
        HeartbeatState::Left => ("♡", Color::Reset),
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
#[path = "screen_tests.rs"]
mod tests;
