//! Our own log lines, at every level, of the test that asks.
//!
//! One subscriber for the process, and a buffer for each thread: a test runs on a thread of its
//! own, with all its tasks.

use std::{cell::RefCell, io, sync::Once};

use tracing_subscriber::{EnvFilter, fmt::MakeWriter};

thread_local! {
    static LINES: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
}

/// Starts to keep the log.
pub(super) fn start() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        tracing_subscriber::fmt()
            .with_env_filter(EnvFilter::new("matrix_sdk_sticky=trace"))
            .with_ansi(false)
            .with_writer(ToThisThread)
            .init();
    });
}

/// What was logged so far.
pub(crate) fn log() -> String {
    LINES.with_borrow(|lines| String::from_utf8(lines.clone()).unwrap())
}

struct ToThisThread;

impl<'a> MakeWriter<'a> for ToThisThread {
    type Writer = Self;

    fn make_writer(&'a self) -> Self {
        Self
    }
}

impl io::Write for ToThisThread {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        // A thread that is ending has none any more.
        let _ = LINES.try_with(|lines| lines.borrow_mut().extend_from_slice(line));
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
