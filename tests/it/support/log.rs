//! Log: the crate's own log lines, at every level, of the test that asks.
//!
//! The process has one subscriber, and each thread has a buffer: a test runs on a thread of its own,
//! with all its tasks.

use std::{
    cell::RefCell,
    io,
    sync::{Arc, Mutex, Once},
};

use tracing::subscriber::DefaultGuard;
use tracing_subscriber::{EnvFilter, fmt::MakeWriter};

thread_local! {
    static LINES: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
}

/// Starts keeping the log.
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

/// Returns what was logged so far.
pub(crate) fn log() -> String {
    LINES.with_borrow(|lines| String::from_utf8(lines.clone()).unwrap())
}

/// Keeps what any crate logs on this thread, while this value lives.
pub(crate) struct AllLogs {
    lines: ToBuffer,
    _guard: DefaultGuard,
}

/// Starts keeping what any crate logs, as far as a filter lets it through.
pub(crate) fn all_logs(filter: &str) -> AllLogs {
    // So that lines of the `log` crate come, too.
    start();
    let lines = ToBuffer::default();
    let writer = lines.clone();
    let subscriber = tracing_subscriber::fmt()
        .with_env_filter(EnvFilter::new(filter))
        .with_ansi(false)
        .with_span_events(tracing_subscriber::fmt::format::FmtSpan::FULL)
        .with_writer(move || writer.clone())
        .finish();
    AllLogs { lines, _guard: tracing::subscriber::set_default(subscriber) }
}

impl AllLogs {
    pub(crate) fn text(&self) -> String {
        String::from_utf8(self.lines.0.lock().unwrap().clone()).unwrap()
    }
}

#[derive(Clone, Default)]
struct ToBuffer(Arc<Mutex<Vec<u8>>>);

impl io::Write for ToBuffer {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(line);
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
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
