//! The terminal view: rooms, their entries, the time that each has left, and the last changes. Enter
//! opens an entry.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use futures_util::StreamExt as _;
use matrix_sdk::{
    Client,
    ruma::{OwnedEventId, OwnedRoomId, RoomId, UserId},
};
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
    names::Names,
    only::Only,
    opened::{Opened, is_same, remember},
    plain::{in_short, summary},
    terminal::{
        Log, Parts, Screen, clock, divide, draw_help, draw_left, fit, fit_middle, harmless, keys,
    },
};

/// When to draw again though nothing changed: time passes.
const TICK: Duration = Duration::from_secs(1);

/// After how many ticks the names of rooms and users are read again, as people rename themselves.
const NAMES_EVERY: u32 = 10;

/// Of how many entries the events that lost are remembered.
const MAX_LOSERS: usize = 1_000;

/// What each key does.
const HELP: [(&str, &str); 11] = [
    ("↑ ↓", "select an entry"),
    ("PgUp PgDn", "ten entries further"),
    ("Home End", "the first, the last entry"),
    ("Enter", "open it: ids, encryption, JSON"),
    ("Esc", "back; in the list: leave"),
    ("t", "show its type alone, or all again"),
    ("s", "show its sender alone, or all again"),
    ("a", "show everything again"),
    ("p", "pause, or go on: nothing is lost"),
    ("?", "this help, or back"),
    ("q Ctrl-C", "leave"),
];

/// All that is drawn, but for the time.
struct Model {
    user: String,
    server: String,
    state: SyncState,
    counts: Counts,
    snapshot: Snapshot,
    only: Only,
    room_names: BTreeMap<OwnedRoomId, String>,
    names: BTreeMap<OwnedRoomId, Names>,
    log: Log,
    /// The events that lost to an entry since the program started, by the event that is the entry now.
    losers: BTreeMap<OwnedEventId, Vec<OwnedEventId>>,
    selected: Option<Entry>,
    /// How many rows of the list are above the first that is shown.
    scroll: usize,
    opened: Option<Opened>,
    has_help: bool,
    /// Since when the picture stands still.
    paused: Option<Moment>,
}

/// What does not show in the list.
#[derive(Clone, Copy, Default)]
struct Counts {
    /// Events that wait for their room key.
    waiting: usize,
    /// Events that were dropped because their sender has sent too many.
    dropped: u64,
}

/// Shows a view until the user leaves.
pub(crate) async fn show(client: &Client, sticky: &Sticky, view: &View, only: Only) -> Result {
    let Subscription { snapshot, mut changes, .. } = view.subscribe();
    let mut states = std::pin::pin!(sticky.subscribe_state());
    let user = client.user_id().map(ToString::to_string).unwrap_or_default();
    let mut model = Model::new(user, client.homeserver().to_string(), snapshot, only);
    model.state = sticky.state();

    let mut keys = keys(key_of);
    let mut tick = interval(TICK);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut ticks = 0_u32;
    let mut screen = Screen::open()?;
    loop {
        let now = sticky.now();
        if model.paused.is_none() {
            model.snapshot = view.snapshot();
        }
        screen.draw(|frame| draw(frame, &mut model, now))?;
        tokio::select! {
            _ = tick.tick() => {
                model.counts = count(client, sticky);
                if ticks.is_multiple_of(NAMES_EVERY) {
                    model.read_names(client, &[]).await;
                }
                ticks = ticks.wrapping_add(1);
            }
            // A paused screen is a slow subscriber: what it misses comes as one merged change.
            Some(change) = changes.next(), if model.paused.is_none() => {
                // The names first, so that the log has them.
                model.read_new_names(client, &change).await;
                model.handle_change(&change);
            }
            Some(state) = states.next() => model.state = state,
            key = keys.recv() => match key {
                Some(key) if model.handle_key(key, now) => {}
                _ => return Ok(()),
            },
        }
    }
}

/// Adds up what waits and what was dropped in all joined rooms.
fn count(client: &Client, sticky: &Sticky) -> Counts {
    let mut counts = Counts::default();
    for room in client.joined_rooms() {
        if let Some(room) = sticky.room(room.room_id()) {
            let stats = room.stats();
            counts.waiting += stats.pending_decryption;
            counts.dropped += stats.dropped;
        }
    }
    counts
}

impl Model {
    fn new(user: String, server: String, snapshot: Snapshot, only: Only) -> Self {
        Self {
            user,
            server,
            state: SyncState::Connecting,
            counts: Counts::default(),
            snapshot,
            only,
            room_names: BTreeMap::new(),
            names: BTreeMap::new(),
            log: Log::default(),
            losers: BTreeMap::new(),
            selected: None,
            scroll: 0,
            opened: None,
            has_help: false,
            paused: None,
        }
    }

    fn handle_change(&mut self, change: &Change) {
        for change_of_entry in &change.entries {
            self.handle_entry(change_of_entry, change.told_at);
        }
    }

    fn handle_entry(&mut self, change: &EntryChange, at: Moment) {
        let entry = change.entry();
        match change {
            EntryChange::Updated { previous, .. } => {
                let mut lost = self.losers.remove(previous.event_id()).unwrap_or_default();
                remember(&mut lost, previous, entry);
                if self.losers.len() < MAX_LOSERS && !lost.is_empty() {
                    self.losers.insert(entry.event_id().to_owned(), lost);
                }
            }
            EntryChange::Removed { .. } => drop(self.losers.remove(entry.event_id())),
            _ => {}
        }
        if let Some(opened) = &mut self.opened {
            opened.handle_change(change);
        }
        if let Some(selected) = self.selected.as_mut().filter(|selected| is_same(selected, entry)) {
            *selected = entry.clone();
        }
        if !self.only.lets_through(entry) {
            return;
        }
        let (mark, what, color) = match change {
            EntryChange::Added(_) => ('+', "added", Color::Green),
            EntryChange::Removed { reason, .. } => ('-', reason.as_str(), Color::Red),
            _ => ('~', "updated", Color::Yellow),
        };
        let sender = self.name_of(entry.room_id(), entry.sender());
        self.log.push(at, mark, color, format!("{what:<8} {}", in_short(&sender, entry)));
    }

    /// Does what a key asks for; `false` if it asks to leave.
    fn handle_key(&mut self, key: Key, now: Moment) -> bool {
        match key {
            Key::Leave => return false,
            Key::Back if self.has_help => self.has_help = false,
            Key::Back if self.opened.is_some() => self.opened = None,
            Key::Back => return false,
            Key::Help => self.has_help = !self.has_help,
            Key::Move(rows) => match &mut self.opened {
                Some(opened) => opened.scroll = opened.scroll.saturating_add_signed(rows),
                None => self.select(rows),
            },
            Key::Open => {
                if let Some(entry) = self.selected.clone() {
                    let lost = self.losers.get(entry.event_id()).cloned().unwrap_or_default();
                    self.opened = Some(Opened::new(entry, lost));
                }
            }
            Key::Type => {
                if let Some(entry) = &self.selected {
                    self.only.toggle_type(entry.event_type());
                }
            }
            Key::Sender => {
                if let Some(entry) = &self.selected {
                    self.only.toggle_sender(entry.sender());
                }
            }
            Key::All => self.only = Only::default(),
            Key::Pause => self.paused = if self.paused.is_some() { None } else { Some(now) },
            Key::Redraw => {}
        }
        true
    }

    /// Selects another entry, so many further.
    fn select(&mut self, by: isize) {
        let entries: Vec<Entry> = self.entries().collect();
        let at = self
            .selected
            .as_ref()
            .and_then(|selected| entries.iter().position(|entry| is_same(entry, selected)));
        let last = entries.len().saturating_sub(1);
        let to =
            at.map_or(if by > 1 { last } else { 0 }, |at| at.saturating_add_signed(by).min(last));
        self.selected = entries.into_iter().nth(to);
    }

    fn entries(&self) -> impl Iterator<Item = Entry> + '_ {
        self.snapshot.iter().filter(|entry| self.only.lets_through(entry))
    }

    /// The rows of the list: each room, and below it its entries.
    fn rows(&self) -> Vec<Row> {
        let mut rows = Vec::new();
        let mut last_room = None;
        for entry in self.entries() {
            if last_room.as_deref() != Some(entry.room_id()) {
                last_room = Some(entry.room_id().to_owned());
                rows.push(Row::Room(entry.room_id().to_owned()));
            }
            rows.push(Row::Entry(entry));
        }
        rows
    }

    fn name_of(&self, room_id: &RoomId, user: &UserId) -> String {
        let names = self.names.get(room_id);
        names.map_or_else(|| harmless(user.as_str()), |names| names.of(user))
    }

    /// Reads the names of rooms and of senders, from the client's store: of the snapshot, and of what is
    /// new since then.
    async fn read_names(&mut self, client: &Client, new: &[EntryChange]) {
        let mut senders: BTreeMap<OwnedRoomId, BTreeSet<_>> = BTreeMap::new();
        for entry in self.snapshot.iter().chain(new.iter().map(|change| change.entry().clone())) {
            let of_room = senders.entry(entry.room_id().to_owned()).or_default();
            of_room.insert(entry.sender().to_owned());
        }
        self.names.retain(|room_id, _| senders.contains_key(room_id));
        self.room_names.retain(|room_id, _| senders.contains_key(room_id));
        for (room_id, senders) in senders {
            let Some(room) = client.get_room(&room_id) else { continue };
            if let Some(name) = room.cached_display_name() {
                self.room_names.insert(room_id.clone(), name.to_string());
            }
            self.names.entry(room_id).or_default().read(&room, senders).await;
        }
    }

    /// Reads the names if somebody has come.
    async fn read_new_names(&mut self, client: &Client, change: &Change) {
        if change.entries.iter().any(|change| matches!(change, EntryChange::Added(_))) {
            self.read_names(client, &change.entries).await;
        }
    }
}

enum Row {
    Room(OwnedRoomId),
    Entry(Entry),
}

/// Draws all of it. The list is scrolled to what is selected, and no further than there are rows.
fn draw(frame: &mut Frame<'_>, model: &mut Model, now: Moment) {
    // A picture that stands still shows the time at which it was taken.
    let shown_at = model.paused.unwrap_or(now);
    let rows = model.rows();
    let wanted = if model.opened.is_some() { usize::MAX } else { rows.len() };
    let Parts { title, head, list, log, hint } = divide(frame.area(), 2, wanted);
    frame.render_widget(title_line(model), title);
    frame.render_widget(state_line(model, now), head);

    let mut position = String::new();
    if model.has_help {
        draw_help(frame, list, &HELP);
    } else if model.opened.is_some() {
        position = draw_opened(frame, list, model, shown_at);
    } else if rows.is_empty() {
        let text = match model.only.is_empty() {
            true => "  no sticky events at the moment",
            false => "  nothing that the filters let through; a shows everything",
        };
        frame.render_widget(Line::from(text).dim(), list);
    } else {
        position = draw_list(frame, list, model, &rows, shown_at);
    }
    model.log.draw(frame, log, " Last changes", shown_at);
    draw_hint(frame, hint, model, &position);
}

fn title_line(model: &Model) -> Line<'static> {
    let mut title = vec![
        " watch ".bold().reversed(),
        format!(" {} ", harmless(&model.user)).bold(),
        format!("on {}", harmless(&model.server)).into(),
    ];
    let Only { types, senders } = &model.only;
    let only = types.iter().cloned().chain(senders.iter().map(ToString::to_string));
    let only: Vec<_> = only.map(|only| harmless(&only)).collect();
    if !only.is_empty() {
        title.push(format!("   only {}", only.join(", ")).yellow());
    }
    Line::from(title)
}

fn state_line(model: &Model, now: Moment) -> Line<'static> {
    let (text, color) = match &model.state {
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
    let mut parts = vec![format!(" ● {text}").fg(color)];
    if let Some(since) = model.paused {
        let for_long = Duration::from_millis(now.unix_ms().saturating_sub(since.unix_ms()));
        parts.push(format!("   paused for {}", clock(for_long)).yellow().bold());
    }
    let Counts { waiting, dropped } = model.counts;
    if waiting > 0 {
        parts.push(format!("   {waiting} wait for a room key").yellow());
    }
    if dropped > 0 {
        parts.push(format!("   {dropped} dropped: too many of one sender").red());
    }
    Line::from(parts)
}

/// Draws the rows, and says which of them are shown.
fn draw_list(
    frame: &mut Frame<'_>,
    list: Rect,
    model: &mut Model,
    rows: &[Row],
    now: Moment,
) -> String {
    let height = usize::from(list.height);
    let selected = rows.iter().position(|row| match (row, &model.selected) {
        (Row::Entry(entry), Some(selected)) => is_same(entry, selected),
        _ => false,
    });
    if let Some(at) = selected {
        // The row above is shown too if there is room, so that the first entry of a room has its
        // heading.
        let least = (at + 1).saturating_sub(height);
        model.scroll = model.scroll.clamp(least, at.saturating_sub(1).max(least));
    }
    model.scroll = model.scroll.min(rows.len().saturating_sub(height));
    let longest = model.entries().map(|entry| entry.event_type().chars().count()).max();
    let type_width = u16::try_from(longest.unwrap_or(0)).unwrap_or(u16::MAX);
    for ((at, row), area) in rows.iter().enumerate().skip(model.scroll).zip(list.rows()) {
        match row {
            Row::Room(room_id) => draw_room(frame, area, model, room_id),
            Row::Entry(entry) => {
                let sender = model.name_of(entry.room_id(), entry.sender());
                draw_entry(frame, area, &sender, type_width, entry, now);
                if selected == Some(at) {
                    frame.buffer_mut().set_style(area, Style::new().reversed());
                }
            }
        }
    }
    let (first, last) = (model.scroll + 1, model.scroll + height);
    format!("rows {}-{} of {}", rows.len().min(first), rows.len().min(last), rows.len())
}

fn draw_room(frame: &mut Frame<'_>, area: Rect, model: &Model, room_id: &OwnedRoomId) {
    let name = model.room_names.get(room_id).map_or("", String::as_str);
    let line = Line::from(vec![
        format!(" {} ", harmless(name)).bold().cyan(),
        harmless(room_id.as_str()).dim(),
    ]);
    frame.render_widget(line, area);
}

/// Draws an entry. Its type is whole if there is room for it: `m.rtc.member` and
/// `org.matrix.msc4143.rtc.member` are two types. A narrow terminal has no room for the content.
fn draw_entry(
    frame: &mut Frame<'_>,
    area: Rect,
    sender: &str,
    type_width: u16,
    entry: &Entry,
    now: Moment,
) {
    /// Below this width neither the key, the content nor the bar are shown.
    const NARROW: u16 = 60;
    /// Below this width the type is not shown either.
    const TINY: u16 = 30;

    let is_narrow = area.width < NARROW;
    let wide = |part: Constraint| if is_narrow { Constraint::Length(0) } else { part };
    // The sender comes first.
    let type_width =
        if area.width < TINY { 0 } else { type_width.clamp(10, (area.width * 2 / 5).max(10)) };
    let [_, sender_area, event_type, key, lock, content, bar, time] = area.layout(
        &Layout::horizontal([
            Constraint::Length(1),
            Constraint::Fill(3),
            Constraint::Length(type_width),
            wide(Constraint::Fill(2)),
            Constraint::Length(if is_narrow { 3 } else { 2 }),
            wide(Constraint::Fill(5)),
            wide(Constraint::Length(10)),
            Constraint::Length(5),
        ])
        .spacing(if is_narrow { 0 } else { 1 }),
    );
    let mut put = |text: String, style: Style, area: Rect| {
        frame.render_widget(Span::styled(text, style), area);
    };
    let plain = Style::new();
    put(fit(sender.to_owned(), sender_area.width), plain.bold(), sender_area);
    put(fit_middle(harmless(entry.event_type()), event_type.width), plain, event_type);
    put(fit(harmless(entry.sticky_key().unwrap_or("")), key.width), plain.yellow(), key);
    if entry.is_encrypted() {
        put("🔒".to_owned(), plain, lock);
    }
    put(fit(summary(entry), content.width), plain, content);

    draw_left(frame, bar, time, entry.expires_in(now), entry.sticky_duration());
}

/// Draws what is open, and says which of its lines are shown.
fn draw_opened(frame: &mut Frame<'_>, area: Rect, model: &mut Model, now: Moment) -> String {
    let Some(opened) = &model.opened else { return String::new() };
    let entry = opened.entry();
    let lines = opened.lines(&model.name_of(entry.room_id(), entry.sender()), now);
    let height = usize::from(area.height);
    let scroll = opened.scroll.min(lines.len().saturating_sub(height));
    for (line, area) in lines.iter().skip(scroll).zip(area.rows()) {
        frame.render_widget(Line::from(fit(format!(" {line}"), area.width)), area);
    }
    if let Some(opened) = &mut model.opened {
        opened.scroll = scroll;
    }
    let last = lines.len().min(scroll + height);
    format!("lines {}-{last} of {}", last.min(scroll + 1), lines.len())
}

/// The keys that do something now, the most useful ones first: a narrow terminal cuts the rest.
fn draw_hint(frame: &mut Frame<'_>, area: Rect, model: &Model, position: &str) {
    let pause = if model.paused.is_some() { "p go on" } else { "p pause" };
    let hint = if model.has_help {
        " ? back   q leave".to_owned()
    } else if model.opened.is_some() {
        format!(" Esc back   ↑ ↓ scroll   {pause}   ? help")
    } else if model.selected.is_some() {
        format!(" ? help   q leave   Enter open   {pause}   t type   s sender")
    } else {
        format!(" ? help   q leave   ↑ ↓ select   {pause}")
    };
    let width = u16::try_from(position.chars().count() + 1).unwrap_or(0);
    let [left, right] =
        area.layout(&Layout::horizontal([Constraint::Fill(1), Constraint::Length(width)]));
    frame.render_widget(Line::from(hint).dim(), left);
    frame.render_widget(Line::from(position).dim().right_aligned(), right);
}

/// What the user asks for.
#[derive(Clone, Copy)]
enum Key {
    Leave,
    Back,
    Help,
    Move(isize),
    Open,
    Type,
    Sender,
    All,
    Pause,
    Redraw,
}

fn key_of(event: Event) -> Option<Key> {
    const PAGE: isize = 10;

    Some(match event {
        Event::Resize(..) => Key::Redraw,
        Event::Key(key) if key.kind == KeyEventKind::Press => match key.code {
            KeyCode::Char('c') if key.modifiers.contains(KeyModifiers::CONTROL) => Key::Leave,
            KeyCode::Char('q') => Key::Leave,
            KeyCode::Esc | KeyCode::Backspace => Key::Back,
            KeyCode::Char('?' | 'h') => Key::Help,
            KeyCode::Char('t') => Key::Type,
            KeyCode::Char('s') => Key::Sender,
            KeyCode::Char('a') => Key::All,
            KeyCode::Char('p' | ' ') => Key::Pause,
            KeyCode::Enter => Key::Open,
            KeyCode::Up => Key::Move(-1),
            KeyCode::Down => Key::Move(1),
            KeyCode::PageUp => Key::Move(-PAGE),
            KeyCode::PageDown => Key::Move(PAGE),
            KeyCode::Home => Key::Move(isize::MIN),
            KeyCode::End => Key::Move(isize::MAX),
            _ => return None,
        },
        _ => return None,
    })
}

#[cfg(test)]
#[path = "screen_tests.rs"]
mod tests;
