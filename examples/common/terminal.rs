//! What the terminal views share: the terminal itself, its keys, how little room is divided, the log of
//! what happened, the help, and texts that are short and harmless.

use std::{collections::VecDeque, io, time::Duration};

use matrix_sdk_sticky::time::{MAX_STICKY_DURATION, Moment};
use ratatui::{
    DefaultTerminal, Frame,
    crossterm::event::{self, Event},
    layout::{Constraint, Layout, Rect},
    style::{Color, Style, Stylize as _},
    text::{Line, Span},
};
use tokio::sync::mpsc;

use crate::common;

/// The terminal while it is ours. Dropping it gives it back as it was.
pub(crate) struct Screen {
    terminal: DefaultTerminal,
}

impl Screen {
    pub(crate) fn open() -> io::Result<Self> {
        let terminal = ratatui::try_init()?;
        // From here on a line on stderr would stand across the picture.
        common::hold();
        Ok(Self { terminal })
    }

    pub(crate) fn draw(&mut self, draw: impl FnOnce(&mut Frame<'_>)) -> io::Result<()> {
        self.terminal.draw(draw).map(drop)
    }
}

impl Drop for Screen {
    fn drop(&mut self) {
        ratatui::restore();
        common::release();
    }
}

/// Returns the terminal's events that `wanted` takes, as keys. A thread that ends with the program
/// reads them.
pub(crate) fn keys<K: Send + 'static>(
    wanted: impl Fn(Event) -> Option<K> + Send + 'static,
) -> mpsc::UnboundedReceiver<K> {
    let (sender, keys) = mpsc::unbounded_channel();
    std::thread::spawn(move || {
        while let Ok(event) = event::read() {
            if let Some(key) = wanted(event)
                && sender.send(key).is_err()
            {
                break;
            }
        }
    });
    keys
}

/// The parts of a screen, from top to bottom. A part of no height is not drawn.
pub(crate) struct Parts {
    pub(crate) title: Rect,
    /// What is to be known of the sync, and of ourselves.
    pub(crate) head: Rect,
    pub(crate) list: Rect,
    pub(crate) log: Rect,
    pub(crate) hint: Rect,
}

/// Divides a screen. The list, which has `rows` rows, comes before the log: a small terminal shows
/// members rather than what happened. A tiny one shows the list alone, and the hint.
pub(crate) fn divide(area: Rect, head: u16, rows: usize) -> Parts {
    /// Below this height there is room for the list alone.
    const TINY: u16 = 8;
    /// From this height on the log keeps a quarter, however long the list is.
    const TALL: u16 = 20;

    let rows = u16::try_from(rows.max(1)).unwrap_or(u16::MAX);
    let (title, head) = if area.height < TINY { (0, 0) } else { (1, head) };
    let rest = area.height.saturating_sub(title + head + 1);
    let least = if area.height < TALL { 0 } else { area.height / 4 };
    let wanted = area.height / 3 + 1;
    let log = wanted.min(rest.saturating_sub(rows)).max(least);
    // A heading and nothing below it says nothing.
    let log = if log < 2 || area.height < TINY { 0 } else { log };
    let [title, head, list, log, hint] = area.layout(&Layout::vertical([
        Constraint::Length(title),
        Constraint::Length(head),
        Constraint::Fill(1),
        Constraint::Length(log),
        Constraint::Length(1),
    ]));
    Parts { title, head, list, log, hint }
}

/// How many of the last changes are remembered.
const MAX_LOGGED: usize = 50;

/// What happened, the newest first.
#[derive(Default)]
pub(crate) struct Log(VecDeque<Logged>);

struct Logged {
    at: Moment,
    mark: char,
    color: Color,
    text: String,
}

impl Log {
    /// Adds what happened. The text is harmless already.
    pub(crate) fn push(&mut self, at: Moment, mark: char, color: Color, text: String) {
        self.0.push_front(Logged { at, mark, color, text });
        self.0.truncate(MAX_LOGGED);
    }

    pub(crate) fn draw(
        &self,
        frame: &mut Frame<'_>,
        area: Rect,
        heading: &'static str,
        now: Moment,
    ) {
        let mut areas = area.rows();
        if let Some(area) = areas.next() {
            frame.render_widget(Line::from(heading).bold(), area);
        }
        for (logged, area) in self.0.iter().zip(areas) {
            let ago = Duration::from_millis(now.unix_ms().saturating_sub(logged.at.unix_ms()));
            let line = Line::from(vec![
                format!(" {:>5} ago ", clock(ago)).dim(),
                format!("{} ", logged.mark).fg(logged.color),
                fit(logged.text.clone(), area.width.saturating_sub(14)).into(),
            ]);
            frame.render_widget(line, area);
        }
    }
}

/// Draws what each key does, over the list.
pub(crate) fn draw_help(frame: &mut Frame<'_>, area: Rect, keys: &[(&str, &str)]) {
    for ((key, what), area) in keys.iter().zip(area.rows()) {
        let key = format!(" {key:<10} ").bold();
        frame.render_widget(Line::from(vec![key, Span::raw(*what)]), area);
    }
}

/// A bar, to an eighth of a cell.
pub(crate) fn bar_of(part: f64, width: u16) -> String {
    const EIGHTHS: [char; 9] = [' ', '▏', '▎', '▍', '▌', '▋', '▊', '▉', '█'];
    let eighths = (part.clamp(0.0, 1.0) * f64::from(width) * 8.0).round();
    (0..width)
        .map(|cell| {
            let here = (eighths - f64::from(cell) * 8.0).clamp(0.0, 8.0);
            // Between 0 and 8: nothing is cut off.
            EIGHTHS.get(here as usize).copied().unwrap_or(' ')
        })
        .collect()
}

/// From green to red, by the 256 colours that every terminal knows.
pub(crate) fn color_of(part: f64) -> Color {
    const RED_TO_GREEN: [u8; 11] = [196, 202, 208, 214, 220, 226, 190, 154, 118, 82, 46];
    let step = (part.clamp(0.0, 1.0) * 10.0).round();
    Color::Indexed(RED_TO_GREEN.get(step as usize).copied().unwrap_or(46))
}

/// Shortens a text to that many cells.
pub(crate) fn fit(mut text: String, width: u16) -> String {
    let is_too_wide = |text: &str| Span::raw(text).width() > usize::from(width);
    if is_too_wide(&text) {
        text.push('…');
        while is_too_wide(&text) && text != "…" {
            text.pop();
            text.pop();
            text.push('…');
        }
    }
    text
}

/// Shortens a text to that many cells by leaving out its middle. Its ends tell types apart.
pub(crate) fn fit_middle(text: String, width: u16) -> String {
    let chars: Vec<char> = text.chars().collect();
    if Span::raw(&*text).width() <= usize::from(width) {
        return text;
    }
    let kept = usize::from(width).saturating_sub(1);
    let (start, end) = (kept / 3, kept - kept / 3);
    let start = chars.iter().take(start);
    let end = chars.iter().skip(chars.len().saturating_sub(end));
    fit(start.chain(&['…']).chain(end).collect(), width)
}

/// How much of its time an event has left: as a bar, and in minutes and seconds.
pub(crate) fn draw_left(
    frame: &mut Frame<'_>,
    bar: Rect,
    time: Rect,
    left: Duration,
    whole: Duration,
) {
    let whole = whole.min(MAX_STICKY_DURATION);
    let part = left.as_secs_f64() / whole.as_secs_f64().max(f64::MIN_POSITIVE);
    let style = Style::new().fg(color_of(part));
    frame.render_widget(Span::styled(bar_of(part, bar.width), style), bar);
    frame.render_widget(Span::styled(fit(format!("{:>5}", clock(left)), time.width), style), time);
}

/// Minutes and seconds, as `m:ss`.
pub(crate) fn clock(duration: Duration) -> String {
    let seconds = duration.as_secs();
    format!("{}:{:02}", seconds / 60, seconds % 60)
}

/// Returns a text of somebody else's without what a terminal would obey: control characters, and those
/// that turn the direction of what follows.
pub(crate) fn harmless(text: &str) -> String {
    let obeyed = |c: char| {
        c.is_control()
            || matches!(c, '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
    };
    text.replace(obeyed, "\u{fffd}")
}

/// What the terminal shows, as text.
#[cfg(test)]
pub(crate) fn as_text(buffer: &ratatui::buffer::Buffer) -> String {
    let mut text = String::new();
    for row in buffer.area.rows() {
        let mut line = String::new();
        let mut covered = 0;
        for cell in row.positions().filter_map(|at| buffer.cell(at)) {
            if covered == 0 {
                line.push_str(cell.symbol());
                covered = Span::raw(cell.symbol()).width();
            }
            covered = covered.saturating_sub(1);
        }
        text.push_str(line.trim_end());
        text.push('\n');
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_list_comes_before_the_log() {
        let heights = |height, rows| {
            let parts = divide(Rect::new(0, 0, 40, height), 2, rows);
            (parts.title.height, parts.list.height, parts.log.height)
        };
        assert_eq!(heights(24, 3), (1, 11, 9));
        assert_eq!(heights(24, 14), (1, 14, 6));
        assert_eq!(heights(24, 99), (1, 14, 6));
        assert_eq!(heights(12, 3), (1, 3, 5));
        assert_eq!(heights(12, 7), (1, 8, 0));
        assert_eq!(heights(6, 2), (0, 5, 0));
        assert_eq!(heights(1, 2), (0, 0, 0));
    }
}
