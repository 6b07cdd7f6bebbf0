//! Where all of it runs: a tokio runtime of the library's own, or that of whoever brings their client.
//!
//! In: what is to be done, from a thread of an application that knows no tokio. Out: what it gave. What is
//! awaited runs on the runtime's threads, and not on the one that awaits, which may be the one that draws.

use std::{
    io,
    mem::ManuallyDrop,
    ops::Deref,
    panic::resume_unwind,
    sync::{Arc, LazyLock},
};

use tokio::{
    runtime::{Builder, Handle, Runtime},
    sync::watch,
};
use tokio_util::task::AbortOnDropHandle;

/// The runtime was shut down, and nothing can be done any more.
#[derive(Clone, Copy, Debug, thiserror::Error)]
#[error("the runtime that it ran on has been shut down")]
pub(crate) struct Stopped;

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
#[derive(Debug)]
pub(crate) struct Started<T> {
    value: watch::Sender<Option<Arc<T>>>,
    turn: tokio::sync::Mutex<()>,
}

/// It has been started before.
#[derive(Clone, Copy, Debug, thiserror::Error)]
#[error("it has been started already: make another one")]
pub(crate) struct Again;

impl<T> Default for Started<T> {
    fn default() -> Self {
        Self { value: watch::Sender::new(None), turn: tokio::sync::Mutex::default() }
    }
}

impl<T> Started<T> {
    /// What is there, if it is.
    pub(crate) fn get(&self) -> Option<Arc<T>> {
        self.value.borrow().clone()
    }

    /// What will be there; never, if it is never started.
    pub(crate) fn wait(&self) -> impl Future<Output = Arc<T>> + Send + 'static + use<T>
    where
        T: Send + Sync + 'static,
    {
        let mut value = self.value.subscribe();
        async move {
            let there = value.wait_for(Option::is_some).await;
            match there.ok().and_then(|there| there.clone()) {
                Some(value) => value,
                None => std::future::pending().await,
            }
        }
    }

    /// Starts it, unless it has been. One that has failed can be tried again.
    pub(crate) async fn start<E: From<Again>>(
        &self,
        start: impl Future<Output = Result<T, E>>,
    ) -> Result<(), E> {
        let _turn = self.turn.lock().await;
        if self.get().is_some() {
            return Err(Again.into());
        }
        self.value.send_replace(Some(Arc::new(start.await?)));
        Ok(())
    }
}
