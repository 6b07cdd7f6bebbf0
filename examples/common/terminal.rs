//! What the terminal views share: the terminal itself, its keys, and texts that are short and harmless.

use std::{io, time::Duration};

use matrix_sdk_sticky::time::MAX_STICKY_DURATION;
use ratatui::{
    DefaultTerminal, Frame,
    crossterm::event::{self, Event},
    layout::Rect,
    style::{Color, Style},
    text::Span,
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

/// What the terminal tells, read by a thread that ends with the program; as far as somebody wants to
/// know.
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

/// A text of somebody else's without what a terminal would obey: control characters, and those that
/// turn the direction of what follows.
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
