//! stderr: one line for each warning, and one for the error that ended the program.
//!
//! Warnings are held back while they would be in the way: before it is clear that the program
//! starts at all, so that the reason why it does not is all that is said; and while a terminal view
//! owns the screen.

use std::{
    io::{self, Write as _},
    sync::{Mutex, MutexGuard, PoisonError},
};

use tracing_subscriber::EnvFilter;

/// The lines that are held back; `None` while they go through.
static HELD: Mutex<Option<String>> = Mutex::new(None);

/// How many bytes are held back at most. The rest is lost.
const MAX_HELD: usize = 1 << 20;

/// Starts to log: as `RUST_LOG` says, or else this crate's warnings, held back until the first
/// [`release`].
pub(crate) fn start() {
    let filter = match std::env::var("RUST_LOG") {
        Ok(directives) if !directives.trim().is_empty() => EnvFilter::new(directives),
        _ => {
            hold();
            EnvFilter::new("matrix_sdk_sticky=warn")
        }
    };
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_ansi(false)
        .with_writer(|| Stderr)
        .init();
}

/// Holds the log back from now on.
pub(crate) fn hold() {
    held().get_or_insert_default();
}

/// Prints what was held back, and whatever comes from now on.
pub(crate) fn release() {
    let mut held = held();
    if let Some(lines) = held.take() {
        let _ = io::stderr().write_all(lines.as_bytes());
    }
}

/// Says what did not work. The program goes on.
pub(crate) fn warn(why: &str) {
    let line = on_one_line(&format!("warning: {why}"));
    match held().as_mut() {
        Some(lines) => lines.push_str(&line),
        None => drop(io::stderr().write_all(line.as_bytes())),
    }
}

/// Prints why the program ends. What is still held back is not said any more.
pub(crate) fn last_line(line: &str) {
    held().get_or_insert_default();
    let _ = io::stderr().write_all(on_one_line(line).as_bytes());
}

fn held() -> MutexGuard<'static, Option<String>> {
    HELD.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Texts that come from others may contain line breaks, or what a terminal obeys.
fn on_one_line(text: &str) -> String {
    let mut line = text.trim_end().replace(char::is_control, " ");
    line.push('\n');
    line
}

struct Stderr;

impl io::Write for Stderr {
    /// The subscriber writes a whole event at a time.
    fn write(&mut self, event: &[u8]) -> io::Result<usize> {
        let line = on_one_line(&String::from_utf8_lossy(event));
        match held().as_mut() {
            Some(lines) if lines.len() < MAX_HELD => lines.push_str(&line),
            Some(_) => {}
            None => io::stderr().write_all(line.as_bytes())?,
        }
        Ok(event.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
