//! Where all of it runs: a tokio runtime of the library's own, or that of whoever brings their client.
//!
//! In: what is to be done, from a thread of an application that knows no tokio. Out: what it gave. What is
//! awaited runs on the runtime's threads, and not on the one that awaits, which may be the one that draws.

use std::{
    error::Error,
    fmt, io,
    mem::ManuallyDrop,
    ops::Deref,
    panic::resume_unwind,
    pin::pin,
    sync::{Arc, LazyLock, Mutex, MutexGuard, PoisonError},
};

use futures_util::future::{Either, select};
use tokio::{
    runtime::{Builder, Handle, Runtime},
    sync::watch,
};
use tokio_util::task::AbortOnDropHandle;

/// The runtime was shut down, and nothing can be done any more.
#[derive(Clone, Copy, Debug, thiserror::Error)]
#[error("the runtime that it ran on has been shut down")]
pub(crate) struct Stopped;

/// Has errors say something of ours in words, in this variant of theirs.
macro_rules! in_words {
    ($what:ident as $variant:ident: $($error:ident),+) => {
        $(impl From<$crate::runtime::$what> for $error {
            fn from(what: $crate::runtime::$what) -> Self {
                Self::$variant { reason: what.to_string() }
            }
        })+
    };
}
pub(crate) use in_words;

/// An error and its causes, in words. A cause that the words before it have is left out.
pub(crate) fn with_causes(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let cause_text = cause.to_string();
        if !text.contains(&cause_text) {
            text = format!("{text}: {cause_text}");
        }
        source = cause.source();
    }
    text
}

/// The library's own runtime.
///
/// # Errors
///
/// When the system gives no threads.
pub(crate) fn own() -> Result<Handle, String> {
    static OWN: LazyLock<io::Result<Runtime>> =
        LazyLock::new(|| Builder::new_multi_thread().thread_name("sticky").enable_all().build());
    match &*OWN {
        Ok(runtime) => Ok(runtime.handle().clone()),
        Err(error) => Err(error.to_string()),
    }
}

/// Runs a future there. Who gives up waiting ends it.
pub(crate) async fn on<T: Send + 'static>(
    runtime: &Handle,
    future: impl Future<Output = T> + Send + 'static,
) -> Result<T, Stopped> {
    match AbortOnDropHandle::new(runtime.spawn(future)).await {
        Ok(value) => Ok(value),
        Err(error) => match error.try_into_panic() {
            Ok(panic) => resume_unwind(panic),
            Err(_) => Err(Stopped),
        },
    }
}

/// Something of matrix-sdk's that an application's thread holds, and may drop: its stores close their
/// connections on the runtime that they are dropped in, and panic where there is none.
#[derive(Debug)]
pub(crate) struct Held<T> {
    value: ManuallyDrop<T>,
    runtime: Handle,
}

impl<T> Held<T> {
    pub(crate) fn new(runtime: &Handle, value: T) -> Self {
        Self { value: ManuallyDrop::new(value), runtime: runtime.clone() }
    }

    pub(crate) fn runtime(&self) -> &Handle {
        &self.runtime
    }
}

impl<T> Deref for Held<T> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.value
    }
}

impl<T> Drop for Held<T> {
    fn drop(&mut self) {
        let _entered = self.runtime.enter();
        #[expect(unsafe_code, reason = "a field cannot be dropped within something else otherwise")]
        // SAFETY: it is dropped once, here, and nobody sees it any more.
        unsafe {
            ManuallyDrop::drop(&mut self.value);
        }
    }
}

/// What an application holds before it is there, and what is there from then on.
///
/// Why is it not simply what the call that starts it gives? Where the language gives up waiting at the
/// moment at which the answer is there, UniFFI loses it without dropping it: a member would stay for as long
/// as the process lives. So the application holds this from the beginning, and only waits for it.
pub(crate) struct Started<T> {
    stage: watch::Sender<Stage<T>>,
    /// What is to be done to it once it is there, in order.
    later: Mutex<Vec<Act<T>>>,
    turn: tokio::sync::Mutex<()>,
}

type Act<T> = Box<dyn FnOnce(&T) + Send>;

/// How far it is.
#[derive(Debug)]
pub(crate) enum Stage<T> {
    Before,
    There(Arc<T>),
    /// It was left before it was there, and will not be.
    Left,
    /// Nobody holds it any more.
    Gone,
}

impl<T> Clone for Stage<T> {
    fn clone(&self) -> Self {
        match self {
            Self::Before => Self::Before,
            Self::There(value) => Self::There(value.clone()),
            Self::Left => Self::Left,
            Self::Gone => Self::Gone,
        }
    }
}

/// Why it is not started.
#[derive(Clone, Copy, Debug, thiserror::Error)]
pub(crate) enum NotAgain {
    #[error("it has been started already: make another one")]
    Started,
    #[error("it was left before it had started: make another one")]
    Left,
}

impl<T> Default for Started<T> {
    fn default() -> Self {
        let stage = watch::Sender::new(Stage::Before);
        Self { stage, later: Mutex::default(), turn: tokio::sync::Mutex::default() }
    }
}

impl<T: Send + Sync + 'static> Started<T> {
    pub(crate) fn stage(&self) -> Stage<T> {
        self.stage.borrow().clone()
    }

    /// What is there, if it is.
    pub(crate) fn get(&self) -> Option<Arc<T>> {
        match self.stage() {
            Stage::There(value) => Some(value),
            _ => None,
        }
    }

    /// How far it is, once that is further than the beginning.
    pub(crate) fn wait(&self) -> impl Future<Output = Stage<T>> + Send + 'static + use<T> {
        let mut stage = self.stage.subscribe();
        async move {
            let stage = stage.wait_for(|stage| !matches!(stage, Stage::Before)).await;
            stage.map_or(Stage::Gone, |stage| stage.clone())
        }
    }

    /// Does something to it: now if it is there, and else as soon as it is.
    pub(crate) fn act(&self, act: impl FnOnce(&T) + Send + 'static) {
        let mut later = self.later();
        match self.stage() {
            Stage::There(value) => {
                drop(later);
                act(&value);
            }
            Stage::Before => later.push(Box::new(act)),
            Stage::Left | Stage::Gone => {}
        }
    }

    /// It is over: what is there, to be left; if nothing is, nothing will be.
    pub(crate) fn end(&self) -> Option<Arc<T>> {
        let mut later = self.later();
        let value = self.get();
        if value.is_none() {
            later.clear();
            self.stage.send_replace(Stage::Left);
        }
        value
    }

    /// Starts it, unless it has been. One that has failed can be tried again.
    pub(crate) async fn start<E: From<NotAgain>>(
        &self,
        start: impl Future<Output = Result<T, E>> + Send,
    ) -> Result<(), E> {
        let _turn = self.turn.lock().await;
        if self.get().is_some() {
            return Err(NotAgain::Started.into());
        }
        // Whoever leaves meanwhile does not wait for it, nor is there then.
        let value = match select(pin!(start), pin!(self.wait())).await {
            Either::Left((value, _)) => value?,
            Either::Right(_) => return Err(NotAgain::Left.into()),
        };
        let mut later = self.later();
        if !matches!(self.stage(), Stage::Before) {
            return Err(NotAgain::Left.into());
        }
        later.drain(..).for_each(|act| act(&value));
        self.stage.send_replace(Stage::There(Arc::new(value)));
        Ok(())
    }

    fn later(&self) -> MutexGuard<'_, Vec<Act<T>>> {
        self.later.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<T> Drop for Started<T> {
    fn drop(&mut self) {
        // A listener that waits has a part of it.
        self.stage.send_replace(Stage::Gone);
    }
}

impl<T> fmt::Debug for Started<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Started(..)")
    }
}
