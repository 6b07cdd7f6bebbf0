//! The terminal view: who is in the call, how long their memberships have left, how our heartbeat
//! beats, and who left or is refused, and why.

use std::{collections::VecDeque, time::Duration};

use matrix_sdk::Client;
use matrix_sdk_sticky::{
    Sticky, SyncState,
    heartbeat::State,
    rtc::{Leave, Member, Membership, NotJoined, SessionSnapshot, SessionUpdate, What},
    time::{MAX_STICKY, Moment},
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
    terminal::{Screen, bar_of, clock, color_of, fit, harmless, keys},
};

/// When to draw again though nothing changed: time passes, and the pulse beats.
const TICK: Duration = Duration::from_millis(500);

/// How many of the last changes are remembered.
const CHANGES: usize = 50;

/// What the user asks for.
pub(crate) enum Key {
    Join,
    Leave,
    Quit,
    Redraw,
}

/// All that is drawn, but for the time.
struct Model {
    title: String,
    snapshot: SessionSnapshot,
    own: Option<State>,
    /// Which of the members we are.
    own_id: Option<String>,
    sync: SyncState,
    /// The newest first: a mark, the text, its colour, and when it was.
    changes: VecDeque<(char, String, Color, Moment)>,
    /// What did not work.
    note: Option<String>,
    beats: u64,
}

pub(crate) struct View {
    screen: Screen,
    keys: mpsc::UnboundedReceiver<Key>,
    tick: Interval,
    model: Model,
}

impl View {
    pub(crate) fn open(client: &Client, room: &str, snapshot: SessionSnapshot) -> Result<Self> {
        let mut tick = interval(TICK);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let user = client.user_id().map(ToString::to_string).unwrap_or_default();
        let title = format!("{} in {}", harmless(&user), harmless(room));
        Ok(Self {
            screen: Screen::open()?,
            keys: keys(key_of),
            tick,
            model: Model {
                title,
                snapshot,
                own: None,
                own_id: None,
                sync: SyncState::Connecting,
                changes: VecDeque::new(),
                note: None,
                beats: 0,
            },
        })
    }

    pub(crate) fn update(&mut self, update: SessionUpdate) {
        self.model.update(update);
    }

    pub(crate) fn own(&mut self, state: State) {
        self.model.note = None;
        self.model.own = Some(state);
    }

    pub(crate) fn note(&mut self, note: &str) {
        self.model.note = Some(harmless(note));
    }

    pub(crate) fn draw(&mut self, sticky: &Sticky, membership: Option<&Membership>) -> Result {
        self.model.sync = sticky.state();
        self.model.own_id = membership.map(Membership::member_id);
        let (now, model) = (sticky.now(), &self.model);
        self.screen.draw(|frame| draw(frame, model, now))?;
        Ok(())
    }

    pub(crate) async fn next(&mut self) -> Key {
        tokio::select! {
            key = self.keys.recv() => key.unwrap_or(Key::Quit),
            _ = self.tick.tick() => {
                self.model.beats = self.model.beats.wrapping_add(1);
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
    fn update(&mut self, update: SessionUpdate) {
        let at = update.snapshot.taken_at();
        for change in &update.changes {
            let Some(text) = plain::line(change) else { continue };
            let (mark, color) = match change {
                What::Joined(_) => ('+', Color::Green),
                What::Left { reason: NotJoined::Left(leave), .. }
                    if leave.code.as_deref() != Some(Leave::DELAYED) =>
                {
                    ('-', Color::Yellow)
                }
                What::Left { .. } => ('†', Color::Red),
                What::Refused(_) => ('x', Color::Magenta),
                _ => ('~', Color::Cyan),
            };
            self.changes.push_front((mark, text, color, at));
        }
        self.changes.truncate(CHANGES);
        self.snapshot = update.snapshot;
    }
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
        format!(" {} ", model.title).bold(),
        format!("slot {}", harmless(model.snapshot.slot_id())).into(),
    ]);
    frame.render_widget(title, header);
    frame.render_widget(state_line(model), state);
    frame.render_widget(own_line(model), own);

    if model.snapshot.is_empty() {
        frame.render_widget(Line::from("  nobody is there").dim(), list);
    }
    for (member, area) in model.snapshot.members().zip(list.rows()) {
        draw_member(frame, area, model, member, now);
    }

    let refused = model.snapshot.candidates().count();
    let heading_line =
        format!(" What happened   ({refused} who are not there, with a reason each)");
    frame.render_widget(Line::from(heading_line).bold(), heading);
    for ((mark, text, color, at), area) in model.changes.iter().zip(changes.rows()) {
        let ago = Duration::from_millis(now.unix_ms().saturating_sub(at.unix_ms()));
        let line = Line::from(vec![
            format!(" {:>5} ago ", clock(ago)).dim(),
            format!("{mark} ").fg(*color),
            fit(text.clone(), area.width.saturating_sub(14)).into(),
        ]);
        frame.render_widget(line, area);
    }
    let there = format!("{} there ", model.snapshot.len());
    let [left, right] = footer.layout(&Layout::horizontal([Constraint::Fill(1); 2]));
    frame.render_widget(Line::from(" j join   l leave   q quit").dim(), left);
    frame.render_widget(Line::from(there).dim().right_aligned(), right);
}

fn state_line(model: &Model) -> Line<'static> {
    let (text, color) = match &model.sync {
        SyncState::Live | SyncState::Incomplete { .. } => ("live", Color::Green),
        SyncState::Offline { .. } => ("offline", Color::Red),
        SyncState::Unsupported(_) | SyncState::LoggedOut => ("over", Color::Red),
        _ => ("catching up", Color::Yellow),
    };
    let slot = match model.snapshot.closed_by() {
        None => "slot open".to_owned(),
        Some(closed) => plain::why(&NotJoined::Slot(closed))
            .replace("slot missing", "no slot: open to Element Call"),
    };
    let room = if model.snapshot.is_encrypted() { "encrypted room" } else { "plain room" };
    Line::from(vec![format!(" ● {text}").fg(color), format!("   {room}   {slot}").dim()])
}

/// Ourselves, and a pulse as long as the heart beats.
fn own_line(model: &Model) -> Line<'static> {
    if let Some(note) = &model.note {
        return Line::from(format!(" ! {note}")).fg(Color::Red);
    }
    let Some(own) = model.own else {
        return Line::from(" ♡ not in the call").dim();
    };
    let beats = model.beats.is_multiple_of(2);
    let (heart, color) = match own {
        State::Joined | State::Degraded if beats => ("♥", Color::Green),
        State::Joined | State::Degraded => ("♡", Color::Green),
        State::ProbablyLeft { .. } => ("✗", Color::Red),
        State::Left | State::Failed(_) => ("♡", Color::Reset),
        _ => ("…", Color::Yellow),
    };
    Line::from(format!(" {heart} we: {}", own.as_str().replace('_', " "))).fg(color)
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
    if model.own_id.as_deref() == Some(member.member_id()) {
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
    let left = member.expires_in(now);
    let part = left.as_secs_f64() / MAX_STICKY.as_secs_f64();
    let color = plain.fg(color_of(part));
    put(bar_of(part, bar.width), color, bar);
    put(format!("{:>5}", clock(left)), color, time);
}
