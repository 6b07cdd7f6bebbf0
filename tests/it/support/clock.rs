//! Clock: stands still until a test advances it.

use std::{
    collections::BTreeMap,
    future::{Future, poll_fn},
    pin::Pin,
    sync::{Arc, Mutex},
    task::{Context, Poll, Waker},
    time::Duration,
};

use matrix_sdk_sticky::{
    Timer,
    time::{Clock, Deadline, Moment},
};

/// The wall clock at which the tests begin, in milliseconds.
pub(crate) const START_MS: u64 = 1_700_000_000_000;

/// A clock that stands still. All clones are one clock.
#[derive(Clone, Debug)]
pub(crate) struct ManualClock(Arc<Mutex<State>>);

#[derive(Debug)]
struct State {
    now: Moment,
    next_id: u64,
    sleepers: BTreeMap<u64, Sleeper>,
    /// Wakes the test that waits for a sleeper.
    watcher: Option<Waker>,
}

#[derive(Debug)]
struct Sleeper {
    until: Deadline,
    waker: Waker,
}

impl ManualClock {
    pub(crate) fn new() -> Self {
        Self(Arc::new(Mutex::new(State {
            now: Moment::new(Duration::from_secs(1_000), Duration::from_millis(START_MS)),
            next_id: 0,
            sleepers: BTreeMap::new(),
            watcher: None,
        })))
    }

    /// Lets time pass, all at once, and wakes the sleepers that are due.
    pub(crate) fn advance(&self, by: Duration) {
        let due: Vec<Waker> = {
            let mut state = self.0.lock().unwrap();
            state.now = state.now.advanced(by);
            let now = state.now;
            let due = state.sleepers.values().filter(|s| s.until.is_over(now));
            due.map(|sleeper| sleeper.waker.clone()).collect()
        };
        due.into_iter().for_each(Waker::wake);
    }

    /// Lets time pass without waking anybody, as after a suspend that no timer has noticed yet.
    pub(crate) fn jump_unnoticed(&self, by: Duration) {
        let mut state = self.0.lock().unwrap();
        state.now = state.now.advanced(by);
    }

    /// Waits for a sleeper, and returns how long the next one to wake still sleeps.
    pub(crate) async fn next_sleep(&self) -> Duration {
        poll_fn(|cx| {
            let mut state = self.0.lock().unwrap();
            let left = state.sleepers.values().map(|s| s.until.left(state.now));
            match left.filter(|left| !left.is_zero() && *left < AN_ENTRYS).min() {
                Some(left) => Poll::Ready(left),
                None => {
                    state.watcher = Some(cx.waker().clone());
                    Poll::Pending
                }
            }
        })
        .await
    }

    /// Returns how many sleepers there are.
    pub(crate) fn sleepers(&self) -> usize {
        self.0.lock().unwrap().sleepers.len()
    }
}

/// A sleep of at least this length lasts until an entry ends. No wait for a server is so long.
const AN_ENTRYS: Duration = Duration::from_secs(1_800);

impl Clock for ManualClock {
    fn now(&self) -> Moment {
        self.0.lock().unwrap().now
    }
}

impl Timer for ManualClock {
    fn sleep_until(&self, deadline: Deadline) -> Pin<Box<dyn Future<Output = ()> + Send>> {
        Box::pin(Sleep { clock: self.clone(), deadline, id: None })
    }
}

struct Sleep {
    clock: ManualClock,
    deadline: Deadline,
    id: Option<u64>,
}

impl Future for Sleep {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        let clock = self.clock.clone();
        let mut state = clock.0.lock().unwrap();
        if self.deadline.is_over(state.now) {
            return Poll::Ready(());
        }
        let id = *self.id.get_or_insert(state.next_id);
        state.next_id = state.next_id.max(id + 1);
        let sleeper = Sleeper { until: self.deadline, waker: cx.waker().clone() };
        state.sleepers.insert(id, sleeper);
        if let Some(watcher) = state.watcher.take() {
            watcher.wake();
        }
        Poll::Pending
    }
}

impl Drop for Sleep {
    fn drop(&mut self) {
        if let Some(id) = self.id {
            self.clock.0.lock().unwrap().sleepers.remove(&id);
        }
    }
}
