//! Child processes and Ctrl-C. In goes a command; out comes how it ended, or that it was ended.

use std::{
    io::{BufRead as _, BufReader},
    process::{Child, Command, ExitStatus, Stdio},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use anyhow::Context as _;

/// When to look again for the end of a child, and for Ctrl-C.
const LOOK_EVERY: Duration = Duration::from_millis(30);

/// When to hand Ctrl-C on to a child in our group: in a terminal it has come to it too, and a second
/// one would cut its goodbye short.
const HAND_ON_AFTER: Duration = Duration::from_secs(2);

/// When to kill a child that was asked to end.
const END_WITHIN: Duration = Duration::from_secs(5);

/// Whether Ctrl-C was pressed, or the process was asked to end (SIGTERM, SIGHUP).
#[derive(Clone)]
pub(crate) struct Interrupt(Arc<AtomicBool>);

impl Interrupt {
    pub(crate) fn listen() -> anyhow::Result<Self> {
        let flag = Arc::new(AtomicBool::new(false));
        let set = Arc::clone(&flag);
        ctrlc::set_handler(move || set.store(true, Ordering::SeqCst))
            .context("cannot listen for Ctrl-C")?;
        Ok(Self(flag))
    }

    pub(crate) fn came(&self) -> bool {
        self.0.load(Ordering::SeqCst)
    }

    /// Waits for it, but not longer than that.
    pub(crate) fn came_within(&self, duration: Duration) -> bool {
        let deadline = Instant::now() + duration;
        while !self.came() && Instant::now() < deadline {
            thread::sleep(LOOK_EVERY);
        }
        self.came()
    }

    /// Does something long in a thread of its own; `None` if Ctrl-C came first.
    pub(crate) fn or<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> Option<T> {
        let work = thread::spawn(work);
        while !work.is_finished() {
            if self.came() {
                return None;
            }
            thread::sleep(LOOK_EVERY);
        }
        work.join().ok()
    }
}

/// How a child ended.
pub(crate) enum End {
    /// By itself.
    Exited(ExitStatus),
    /// By us, as Ctrl-C came.
    Interrupted,
}

/// Runs a command to its end, or to Ctrl-C.
///
/// The child leads a process group, so that what it starts in turn (cargo's test binaries) is ended
/// with it; Ctrl-C is handed on. It has no stdin: from that group it could not read a terminal.
pub(crate) fn run(mut command: Command, interrupt: &Interrupt) -> anyhow::Result<End> {
    command.stdin(Stdio::null());
    #[cfg(unix)]
    std::os::unix::process::CommandExt::process_group(&mut command, 0);
    supervise(command, interrupt, Duration::ZERO, signal_group)
}

/// Runs a command that may have the terminal: it stays in our group, so that it can read keys and
/// draw.
pub(crate) fn run_in_terminal(command: Command, interrupt: &Interrupt) -> anyhow::Result<End> {
    supervise(command, interrupt, HAND_ON_AFTER, signal_one)
}

/// A child that somebody else's story is about. Dropping it ends it by force.
pub(crate) struct Extra {
    child: Child,
    has_said: Arc<AtomicBool>,
}

impl Extra {
    /// Starts it, in a process group of its own: Ctrl-C is ours to hand on. What it prints is looked
    /// through for a line.
    pub(crate) fn start(mut command: Command, line: &'static str) -> anyhow::Result<Self> {
        let name = command.get_program().to_string_lossy().into_owned();
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null());
        #[cfg(unix)]
        std::os::unix::process::CommandExt::process_group(&mut command, 0);
        let mut child = command.spawn().with_context(|| format!("cannot run {name}"))?;
        let has_said = Arc::new(AtomicBool::new(false));
        if let Some(stdout) = child.stdout.take() {
            let found = has_said.clone();
            // It ends with the child.
            thread::spawn(move || {
                for said in BufReader::new(stdout).lines().map_while(Result::ok) {
                    found.fetch_or(said == line, Ordering::SeqCst);
                }
            });
        }
        Ok(Self { child, has_said })
    }

    /// Whether it has printed that line.
    pub(crate) fn has_said(&self) -> bool {
        self.has_said.load(Ordering::SeqCst)
    }

    /// Ends it as Ctrl-C does, and by force if that takes too long.
    pub(crate) fn leave(mut self) {
        end(&mut self.child, signal_one);
    }

    /// Ends it by force, from one moment to the next: it cannot say goodbye.
    pub(crate) fn crash(self) {}
}

impl Drop for Extra {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn supervise(
    mut command: Command,
    interrupt: &Interrupt,
    hand_on_after: Duration,
    signal: fn(&Child, bool),
) -> anyhow::Result<End> {
    let name = command.get_program().to_string_lossy().into_owned();
    let mut child = command.spawn().with_context(|| format!("cannot run {name}"))?;
    loop {
        if let Some(status) = child.try_wait().with_context(|| format!("cannot wait for {name}"))? {
            return Ok(End::Exited(status));
        }
        if interrupt.came() {
            if !ends_within(&mut child, hand_on_after) {
                end(&mut child, signal);
            }
            return Ok(End::Interrupted);
        }
        thread::sleep(LOOK_EVERY);
    }
}

/// Ends a child: as Ctrl-C does, and by force if that takes too long.
fn end(child: &mut Child, signal: fn(&Child, bool)) {
    signal(child, false);
    ends_within(child, END_WITHIN);
    // Also if the leader has ended: somebody of its group may not have.
    signal(child, true);
    let _ = child.kill();
    let _ = child.wait();
}

/// Whether it ends by itself.
fn ends_within(child: &mut Child, duration: Duration) -> bool {
    let deadline = Instant::now() + duration;
    while Instant::now() < deadline {
        match child.try_wait() {
            Ok(None) => thread::sleep(LOOK_EVERY),
            Ok(Some(_)) | Err(_) => return true,
        }
    }
    false
}

#[cfg(unix)]
fn signal_one(child: &Child, kill: bool) {
    use nix::{
        sys::signal::{Signal, kill as send},
        unistd::Pid,
    };
    // By force is `Child::kill`, which knows whether the process is still ours.
    if !kill && let Ok(id) = i32::try_from(child.id()) {
        let _ = send(Pid::from_raw(id), Signal::SIGINT);
    }
}

#[cfg(not(unix))]
fn signal_one(_: &Child, _: bool) {}

#[cfg(unix)]
fn signal_group(child: &Child, kill: bool) {
    use nix::{
        sys::signal::{Signal, killpg},
        unistd::Pid,
    };
    if let Ok(id) = i32::try_from(child.id()) {
        let signal = if kill { Signal::SIGKILL } else { Signal::SIGINT };
        // It fails when the group is gone, which is what is wanted.
        let _ = killpg(Pid::from_raw(id), signal);
    }
}

#[cfg(not(unix))]
fn signal_group(_: &Child, _: bool) {}

/// A signal for a child that is not to end by force.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Nudge {
    /// As Ctrl-C does.
    Interrupt,
    /// It stops, until it is to go on.
    Stop,
    GoOn,
}

/// Sends a signal to a child that has not been waited for.
#[cfg(unix)]
pub(crate) fn nudge(child: &Child, how: Nudge) {
    use nix::{
        sys::signal::{Signal, kill},
        unistd::Pid,
    };
    let signal = match how {
        Nudge::Interrupt => Signal::SIGINT,
        Nudge::Stop => Signal::SIGSTOP,
        Nudge::GoOn => Signal::SIGCONT,
    };
    if let Ok(id) = i32::try_from(child.id()) {
        let _ = kill(Pid::from_raw(id), signal);
    }
}

#[cfg(not(unix))]
pub(crate) fn nudge(_: &Child, _: Nudge) {}
