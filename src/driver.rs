//! Driver: the thin shell. It reads the clocks, sleeps, rolls the dice and spawns the one task;
//! nothing else in the crate does, and `clippy.toml` sees to it.
//!
//! In: a deadline to wait for, a future to run. Out: the moment. It decides nothing.

#![expect(
    clippy::disallowed_methods,
    reason = "this is the shell: the only place that reads clocks, sleeps and spawns"
)]

use std::{
    fmt,
    fs::{File, OpenOptions, TryLockError},
    future::Future,
    io,
    path::Path,
    pin::Pin,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use serde::{Deserialize, Serialize};
use tokio::task::JoinHandle;

use crate::time::{Clock, Deadline, Moment};

/// A future in a box.
pub(crate) type BoxFuture<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// The longest sleep where no timer counts the time that the machine is suspended: after waking up
/// it takes no longer than this until what has ended is told. (It is not *shown* even before: every
/// reader looks at the clock.)
const LONGEST_SLEEP: Duration = Duration::from_secs(60);

/// A clock that can also be waited for. [`SystemClock`] unless a simulation brings another.
pub trait Timer: Clock {
    /// Waits until `deadline` has come on this clock; at once if it has.
    fn sleep_until(&self, deadline: Deadline) -> Pin<Box<dyn Future<Output = ()> + Send>>;
}

/// The machine's clocks. Deadlines count on one that goes on while the machine is suspended:
/// `CLOCK_BOOTTIME` on Linux and Android; elsewhere what [`std::time::Instant`] reads does so.
#[derive(Clone, Copy, Debug, Default)]
#[non_exhaustive]
pub struct SystemClock;

impl Clock for SystemClock {
    fn now(&self) -> Moment {
        // A wall clock before 1970 is as good as one at 1970: every event is of the future then,
        // and ends by its duration.
        let since_epoch = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        Moment::new(since_boot(), since_epoch)
    }
}

impl Timer for SystemClock {
    fn sleep_until(&self, deadline: Deadline) -> BoxFuture<'static, ()> {
        Box::pin(async move {
            #[cfg(any(target_os = "linux", target_os = "android"))]
            if boot_timer::sleep(deadline.left(SystemClock.now())).await.is_ok() {
                return;
            }
            loop {
                let left = deadline.left(SystemClock.now());
                if left.is_zero() {
                    return;
                }
                tokio::time::sleep(left.min(LONGEST_SLEEP)).await;
            }
        })
    }
}

#[cfg(any(target_os = "linux", target_os = "android"))]
fn since_boot() -> Duration {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::Boottime);
    Duration::try_from(time).unwrap_or_default()
}

#[cfg(not(any(target_os = "linux", target_os = "android")))]
fn since_boot() -> Duration {
    use std::{sync::OnceLock, time::Instant};

    /// Any start is as good as another: deadlines are only compared with each other.
    static START: OnceLock<Instant> = OnceLock::new();
    START.get_or_init(Instant::now).elapsed()
}

/// A timer of the kernel's that counts the time that the machine is suspended, and so fires right
/// when it wakes up. tokio's own timer stands still meanwhile.
#[cfg(any(target_os = "linux", target_os = "android"))]
mod boot_timer {
    use std::{io, time::Duration};

    use rustix::time::{
        Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec, timerfd_create,
        timerfd_settime,
    };
    use tokio::io::{Interest, unix::AsyncFd};

    /// Sleeps.
    ///
    /// # Errors
    ///
    /// When the kernel has no such timer, or no file descriptor is left: nothing was waited for.
    pub(super) async fn sleep(duration: Duration) -> io::Result<()> {
        if duration.is_zero() {
            return Ok(());
        }
        let timer = timerfd_create(
            TimerfdClockId::Boottime,
            TimerfdFlags::NONBLOCK | TimerfdFlags::CLOEXEC,
        )?;
        let once = Itimerspec {
            it_interval: Timespec { tv_sec: 0, tv_nsec: 0 },
            it_value: Timespec::try_from(duration).map_err(io::Error::other)?,
        };
        timerfd_settime(&timer, TimerfdTimerFlags::empty(), &once)?;
        #[expect(unsafe_code, reason = "tokio has no safe way to register a descriptor any more")]
        // SAFETY: an `OwnedFd` owns its descriptor, always gives the same one, and closes it only
        // when it is dropped.
        let timer = unsafe { AsyncFd::register_with_interest(timer, Interest::READABLE) }?;
        timer.readable().await.map(drop)
    }
}

/// A duration between half of `middle` and one and a half times it, so that many clients that lost
/// the same server do not come back at the same instant.
pub(crate) fn jittered(middle: Duration) -> Duration {
    middle.mul_f64(rand::random_range(0.5..1.5))
}

/// What a future gives, if it does so before the deadline; then it is dropped.
pub(crate) async fn before<T>(
    timer: &dyn Timer,
    deadline: Deadline,
    future: impl Future<Output = T>,
) -> Option<T> {
    tokio::select! {
        biased;
        () = timer.sleep_until(deadline) => None,
        value = future => Some(value),
    }
}

/// A short random name for a connection.
pub(crate) fn random_name() -> String {
    format!("sticky-{:08x}", rand::random::<u32>())
}

/// A name that nobody has had before, or can guess.
pub(crate) fn unique_name() -> String {
    format!("{:032x}", rand::random::<u128>())
}

/// Fills with bytes that nobody can guess: for keys.
#[cfg(feature = "media-keys")]
pub(crate) fn random_bytes(bytes: &mut [u8]) {
    rand::Rng::fill_bytes(&mut rand::rng(), bytes);
}

/// A number to seed with.
pub(crate) fn random_seed() -> u64 {
    rand::random()
}

/// Where a process number means the same process: while a machine is up, in one of its containers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Machine {
    /// Names this run of the machine, from its start to its shutdown.
    pub(crate) boot: String,
    /// Names the container, as far as process numbers go.
    processes: String,
}

impl Machine {
    /// Where we are; `None` where the system does not tell.
    pub(crate) fn this() -> Option<Self> {
        let boot = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").ok()?;
        let processes = std::fs::read_link("/proc/self/ns/pid").ok()?;
        let processes = processes.to_string_lossy().into_owned();
        Some(Self { boot: boot.trim().to_owned(), processes })
    }
}

/// Whether a process of this machine is gone that started at `started`; `None` where the system does
/// not tell.
pub(crate) fn is_gone(process: u32, started: Option<u64>) -> Option<bool> {
    if started.is_some() {
        return Some(process_started(process) != started);
    }
    #[cfg(target_vendor = "apple")]
    {
        use rustix::{
            io::Errno,
            process::{Pid, test_kill_process},
        };
        // Whoever is there may be another one, so that only "nobody" says anything.
        let process = i32::try_from(process).ok().and_then(Pid::from_raw)?;
        (test_kill_process(process) == Err(Errno::SRCH)).then_some(true)
    }
    #[cfg(not(target_vendor = "apple"))]
    None
}

/// Locks a file for as long as it is open, which is until this process ends at the latest. `None` if
/// somebody else has locked it: another process, or this one.
///
/// # Errors
///
/// When the file cannot be made, or its file system has no locks.
pub(crate) fn lock_file(path: &Path) -> io::Result<Option<File>> {
    let file = OpenOptions::new().create(true).truncate(false).write(true).open(path)?;
    match file.try_lock() {
        Ok(()) => Ok(Some(file)),
        Err(TryLockError::WouldBlock) => Ok(None),
        Err(TryLockError::Error(error)) => Err(error),
    }
}

/// When a process of this machine started, on a clock of the system's, so that it is known from
/// another one that got its number later; `None` where no such process runs, or the system does not
/// tell.
pub(crate) fn process_started(process: u32) -> Option<u64> {
    let stat = std::fs::read_to_string(format!("/proc/{process}/stat")).ok()?;
    // The second part is the program's name in parentheses, and may have any in it.
    let (_, rest) = stat.rsplit_once(')')?;
    let mut rest = rest.split_whitespace();
    // A dead one stays in the list until its parent has looked.
    let runs = !matches!(rest.next()?, "Z" | "X");
    runs.then(|| rest.nth(18)?.parse().ok())?
}

/// What the future that is under way gives; never, while none is.
pub(crate) async fn optional<T>(future: &mut Option<BoxFuture<'_, T>>) -> T {
    match future {
        Some(future) => future.await,
        None => std::future::pending().await,
    }
}

/// Waits until the deadline, if there is one; for ever, if there is none.
pub(crate) async fn until(timer: &dyn Timer, deadline: Option<Deadline>) {
    match deadline {
        Some(deadline) => timer.sleep_until(deadline).await,
        None => std::future::pending().await,
    }
}

/// Waits so long on the machine's own clock.
#[cfg(feature = "e2e-encryption")]
pub(crate) async fn pause(duration: Duration) {
    SystemClock.sleep_until(SystemClock.now().deadline(duration)).await;
}

/// Runs a future to its end, although the caller may give up waiting: then it goes on in the background.
///
/// This is for requests whose answer must not be lost, such as one-time keys that the server gives out
/// once, or a token that is refreshed inside of the request. `None` means that the future took longer
/// than `longest` and was dropped, or that the runtime shut down.
pub(crate) async fn to_its_end<T: Send + 'static>(
    longest: Duration,
    future: impl Future<Output = T> + Send + 'static,
) -> Option<T> {
    let bounded = async move {
        let deadline = SystemClock.now().deadline(longest);
        before(&SystemClock, deadline, future).await
    };
    let Ok(runtime) = tokio::runtime::Handle::try_current() else { return bounded.await };
    match runtime.spawn(bounded).await {
        Ok(value) => value,
        Err(error) => match error.try_into_panic() {
            Ok(panic) => std::panic::resume_unwind(panic),
            Err(_) => None,
        },
    }
}

/// A running task that ends when this is dropped.
pub(crate) struct Task(JoinHandle<()>);

impl Task {
    /// Runs a future in the background; `None` outside a tokio runtime.
    pub(crate) fn spawn(future: impl Future<Output = ()> + Send + 'static) -> Option<Self> {
        let runtime = tokio::runtime::Handle::try_current().ok()?;
        Some(Self(runtime.spawn(future)))
    }

    /// Whether it is running no more: the runtime that it was started on has shut down.
    pub(crate) fn is_finished(&self) -> bool {
        self.0.is_finished()
    }
}

impl Drop for Task {
    fn drop(&mut self) {
        self.0.abort();
    }
}

impl fmt::Debug for Task {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Task(..)")
    }
}

#[cfg(test)]
mod tests {
    use std::{
        future::pending,
        sync::{Arc, Mutex},
    };

    use super::*;

    #[test]
    fn jitter_is_between_half_and_one_and_a_half_times_and_not_always_the_same() {
        let middle = Duration::from_secs(10);
        let waits: Vec<_> = (0..100).map(|_| jittered(middle)).collect();
        assert!(waits.iter().all(|wait| (middle / 2..=middle * 3 / 2).contains(wait)));
        assert!(waits.iter().any(|wait| *wait != waits[0]));
        assert_eq!(jittered(Duration::ZERO), Duration::ZERO);
    }

    #[test]
    fn names_are_as_short_as_a_server_wants_them_and_differ() {
        let names: std::collections::HashSet<_> = (0..100).map(|_| random_name()).collect();
        assert!(names.iter().all(|name| name.len() <= 16));
        assert!(names.len() > 95);
    }

    #[tokio::test]
    async fn a_sleep_is_never_too_short_and_one_that_is_over_is_none() {
        let clock = SystemClock;
        let start = clock.now();
        clock.sleep_until(start.deadline(Duration::ZERO)).await;
        let deadline = start.deadline(Duration::from_millis(30));
        clock.sleep_until(deadline).await;
        assert!(deadline.is_over(clock.now()));
        clock.sleep_until(deadline).await;
    }

    #[tokio::test]
    async fn a_task_ends_when_it_is_dropped_with_all_that_it_holds() {
        let held = Arc::new(Mutex::new(()));
        let task = Task::spawn({
            let held = held.clone();
            async move {
                let _held = held;
                pending::<()>().await;
            }
        });
        let task = task.filter(|task| !task.is_finished());
        assert!(task.is_some());
        drop(task);
        while Arc::strong_count(&held) > 1 {
            tokio::task::yield_now().await;
        }
    }

    #[test]
    #[cfg(any(target_os = "linux", target_os = "android"))]
    fn a_process_is_known_by_when_it_started_and_not_once_it_is_dead() {
        let ours = process_started(std::process::id());
        assert!(ours.is_some());
        assert_eq!(process_started(std::process::id()), ours);
        let mut other = std::process::Command::new("sleep").arg("60").spawn().unwrap();
        // Not later: the system counts in hundredths of a second, and we may be as young.
        assert!(process_started(other.id()) >= ours);
        other.kill().unwrap();
        while process_started(other.id()).is_some() {
            std::thread::yield_now();
        }
        other.wait().unwrap();
        assert_eq!(process_started(other.id()), None);
    }

    #[cfg(feature = "e2e-encryption")]
    #[tokio::test]
    async fn what_runs_to_its_end_outlives_its_caller() {
        let (done, mut is_done) = tokio::sync::oneshot::channel();
        let (go, may_go) = tokio::sync::oneshot::channel();
        let long = Duration::from_secs(600);
        let mut waiting = Box::pin(to_its_end(long, async move {
            may_go.await.unwrap();
            done.send(()).unwrap();
        }));
        assert!(futures_util::poll!(&mut waiting).is_pending());
        drop(waiting);
        tokio::task::yield_now().await;
        assert!(is_done.try_recv().is_err());
        go.send(()).unwrap();
        is_done.await.unwrap();
        assert_eq!(to_its_end(long, async { 1 }).await, Some(1));
    }

    #[cfg(feature = "e2e-encryption")]
    #[tokio::test]
    async fn what_runs_too_long_is_dropped() {
        assert_eq!(to_its_end(Duration::from_millis(1), pending::<()>()).await, None);
    }

    #[cfg(feature = "e2e-encryption")]
    #[tokio::test]
    #[should_panic(expected = "as the future does")]
    async fn a_panic_reaches_the_caller() {
        to_its_end(Duration::from_secs(600), async { panic!("as the future does") }).await;
    }

    #[test]
    #[cfg(any(target_os = "linux", target_os = "android"))]
    fn a_process_is_gone_once_another_has_its_number() {
        let us = std::process::id();
        let started = process_started(us);
        assert_eq!(is_gone(us, started), Some(false));
        assert_eq!(is_gone(us, started.map(|started| started + 1)), Some(true));
        assert_eq!(is_gone(us, None), None, "the system did not tell");
        assert_eq!(Machine::this(), Machine::this());
    }

    #[test]
    fn a_file_is_locked_once_until_it_is_closed() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("lock");
        let first = lock_file(&path).unwrap();
        assert!(first.is_some());
        assert!(lock_file(&path).unwrap().is_none());
        drop(first);
        assert!(lock_file(&path).unwrap().is_some());
        assert!(lock_file(&folder.path().join("no/such/folder")).is_err());
    }

    #[test]
    fn outside_a_runtime_nothing_is_spawned() {
        assert!(Task::spawn(async {}).is_none());
    }
}
