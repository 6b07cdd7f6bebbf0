//! Listeners: what changes, told to an application.
//!
//! In: a stream. Out: calls of a listener, one after another, each on a thread on which it may take its
//! time, wait, and call back. What it throws is logged, and ends nothing.

use std::{
    fmt,
    mem::ManuallyDrop,
    sync::{
        Arc, PoisonError, RwLock, TryLockError,
        atomic::{AtomicBool, Ordering::SeqCst},
    },
    time::Duration,
};

use futures_util::{FutureExt as _, Stream, StreamExt as _, stream};
use matrix_sdk_sticky::{SystemClock, time::Clock as _};
use tokio::{
    runtime::Handle,
    task::{AbortHandle, spawn_blocking},
};
use tracing::warn;

/// Whether listeners may still be called: a language that is about to end may not be called into any more.
static IS_OPEN: AtomicBool = AtomicBool::new(true);

/// Held to read by whoever calls into the language.
static GATE: RwLock<()> = RwLock::new(());

/// How long to wait for listeners that are being called, at the end.
const END_WITHIN: Duration = Duration::from_secs(5);

/// When to look again whether they have come back.
const LOOK_EVERY: Duration = Duration::from_millis(2);

/// No listener is called any more, in the whole process: for who is about to end. Waits for those that are
/// being called, 5 s at most. Python's package does this by itself.
#[uniffi::export]
pub fn shut_down() {
    IS_OPEN.store(false, SeqCst);
    let clock = SystemClock::default();
    let deadline = clock.now().deadline(END_WITHIN);
    while matches!(GATE.try_write(), Err(TryLockError::WouldBlock))
        && !deadline.is_over(clock.now())
    {
        #[expect(clippy::disallowed_methods, reason = "it is called by a thread that ends")]
        std::thread::sleep(LOOK_EVERY);
    }
}

/// Calls into the language, if it may be called.
fn through_the_gate<T>(call: impl FnOnce() -> T) -> Option<T> {
    let _inside = GATE.read().unwrap_or_else(PoisonError::into_inner);
    IS_OPEN.load(SeqCst).then(call)
}

/// A listener of the application's, which is neither called nor let go of once the gate is shut: both run
/// code of a language that may have ended.
struct Foreign<L: ?Sized>(ManuallyDrop<Arc<L>>);

impl<L: ?Sized> Foreign<L> {
    fn call(
        &self,
        call: impl FnOnce(&L) -> Result<(), ListenerError>,
    ) -> Result<(), ListenerError> {
        through_the_gate(|| call(&self.0)).unwrap_or(Ok(()))
    }
}

impl<L: ?Sized> Drop for Foreign<L> {
    fn drop(&mut self) {
        through_the_gate(|| {
            #[expect(unsafe_code, reason = "a field cannot be kept from being dropped otherwise")]
            // SAFETY: it is dropped once, here, and nobody sees it any more.
            unsafe {
                ManuallyDrop::drop(&mut self.0);
            }
        });
    }
}

/// What a listener may throw. It is logged, and nothing else comes of it: the next call comes all the
/// same.
#[derive(Debug, thiserror::Error, uniffi::Error)]
pub enum ListenerError {
    /// It has thrown.
    #[error("{reason}")]
    Threw {
        /// What it threw, in words.
        reason: String,
    },
}

impl From<uniffi::UnexpectedUniFFICallbackError> for ListenerError {
    fn from(error: uniffi::UnexpectedUniFFICallbackError) -> Self {
        // Kotlin gives its whole stack.
        let reason = error.reason.lines().next().unwrap_or_default().to_owned();
        Self::Threw { reason }
    }
}

/// What a listener is told of a thing: first all that there is, then what changes.
pub(crate) enum News<R, C> {
    Reset(R),
    Changes(Vec<C>),
}

impl<R: Send + 'static, C: Send + 'static> News<R, C> {
    pub(crate) fn all(
        reset: impl Future<Output = R> + Send + 'static,
        changes: impl Stream<Item = Vec<C>> + Send + 'static,
    ) -> impl Stream<Item = Self> + Send + 'static {
        stream::once(reset.map(Self::Reset)).chain(changes.map(Self::Changes))
    }
}

/// A listener that is told of what changes, for as long as this is there. Dropping it ends that, as
/// [`stop`](Self::stop) does.
#[derive(uniffi::Object)]
pub struct Listening {
    is_stopped: Arc<AtomicBool>,
    task: AbortHandle,
}

#[uniffi::export]
impl Listening {
    /// The listener is not called any more, but for a call that has begun. May be called by the listener
    /// itself, and more than once.
    pub fn stop(&self) {
        self.is_stopped.store(true, SeqCst);
        self.task.abort();
    }

    /// Whether it is called no more.
    pub fn is_stopped(&self) -> bool {
        self.is_stopped.load(SeqCst)
    }
}

impl Listening {
    /// Tells what the stream gives, one after another.
    pub(crate) fn to<T: Send + 'static, L: ?Sized + Send + Sync + 'static>(
        runtime: &Handle,
        stream: impl Stream<Item = T> + Send + 'static,
        listener: Arc<L>,
        tell: fn(&L, T) -> Result<(), ListenerError>,
    ) -> Arc<Self> {
        let is_stopped = Arc::new(AtomicBool::new(false));
        let stopped = is_stopped.clone();
        let listener = Arc::new(Foreign(ManuallyDrop::new(listener)));
        let task = runtime.spawn(async move {
            let mut stream = Box::pin(stream);
            while let Some(news) = stream.next().await {
                let (listener, stopped) = (listener.clone(), stopped.clone());
                // The task may be aborted while the call is under way, but the next one is made by nobody
                // else: so that there are never two at a time.
                let told = spawn_blocking(move || match stopped.load(SeqCst) {
                    true => Ok(()),
                    false => listener.call(|listener| tell(listener, news)),
                });
                match told.await {
                    Ok(Ok(())) => {}
                    Ok(Err(error)) => warn!("a listener has thrown: {error}"),
                    Err(error) => warn!("a listener could not be told: {error}"),
                }
            }
            // What it listened to is gone.
            stopped.store(true, SeqCst);
        });
        Arc::new(Self { is_stopped, task: task.abort_handle() })
    }
}

impl Drop for Listening {
    fn drop(&mut self) {
        self.stop();
    }
}

impl fmt::Debug for Listening {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Listening").field("is_stopped", &self.is_stopped()).finish_non_exhaustive()
    }
}
