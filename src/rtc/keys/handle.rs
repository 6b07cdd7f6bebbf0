//! Handle: the media keys of one membership of ours, as the application holds them.
//!
//! In: a session, its inbox, and what the application asks for. Out: a stream for the frame cryptor. Never:
//! a decision; the machine makes them.

use std::{
    collections::{HashMap, VecDeque},
    fmt,
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    task::{Context, Poll, Waker},
};

use futures_core::Stream;
use matrix_sdk::{Client, Room};
use tracing::warn;

use super::{
    DevicePolicy, Discards, KeyChange, KeyConfig, KeyExchange, Participant, inbox::KeyInbox,
    perform::Performer, run::Run,
};
use crate::{
    driver::{Task, Timer, random_bytes, random_seed},
    rtc::snapshot::SessionSnapshot,
};

/// How many changes beyond one for each key a subscriber may lag behind. Then a reset replaces its queue.
const MAX_EXTRA_CHANGES: usize = 64;

/// Why there are no media keys.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum MediaKeysError {
    /// The room is not encrypted, and MSC4143 has keys in encrypted rooms only. Send media without, or switch on
    /// encryption in the room.
    #[error(
        "the room is not encrypted, and media keys are for encrypted rooms only: send media without, or \
         switch on encryption in the room"
    )]
    NotEncrypted,
    /// The server did not say whether the room is encrypted. Try again when the server can be reached.
    #[error("nobody knows whether the room is encrypted: try again when the server can be reached")]
    EncryptionUnknown(#[source] Box<matrix_sdk::Error>),
    /// The client is not logged in. Log in first.
    #[error("the client is not logged in: log in first")]
    NotLoggedIn,
    /// The call came from outside a tokio runtime. Call it inside one.
    #[error("media keys need a tokio runtime: call this inside one")]
    NoRuntime,
}

/// The media keys of one membership of ours. Dropping it ends the exchange, and the streams.
///
/// # Examples
///
/// ```no_run
/// # use matrix_sdk_sticky::rtc::{OwnMembership, keys::{KeyChange, KeyConfig, MediaKeysError}};
/// # async fn example(membership: OwnMembership) -> Result<(), MediaKeysError> {
/// use futures_util::StreamExt as _;
///
/// let keys = membership.media_keys(KeyConfig::default()).await?;
/// let mut changes = keys.changes();
/// while let Some(change) = changes.next().await {
///     if let KeyChange::Own { index, .. } = change {
///         println!("our media are encrypted with key {index}");
///     }
/// }
/// # Ok(()) }
/// ```
pub struct MediaKeys {
    shared: Arc<Shared>,
    _task: Task,
}

impl MediaKeys {
    /// Makes sure that there can be media keys in the room.
    pub(in crate::rtc) async fn ensure(
        room: &Room,
        config: &KeyConfig,
    ) -> Result<(), MediaKeysError> {
        let client = room.client();
        client.session_meta().ok_or(MediaKeysError::NotLoggedIn)?;
        let encryption = room.latest_encryption_state().await;
        match encryption.map_err(|error| MediaKeysError::EncryptionUnknown(Box::new(error)))? {
            state if state.is_encrypted() => {}
            _ => return Err(MediaKeysError::NotEncrypted),
        }
        if config.devices() != DevicePolicy::Any {
            warn_if_not_signed(&client).await;
        }
        Ok(())
    }

    /// Starts the exchange, with what has come into `inbox` since it was opened. `sessions` gives our member's
    /// id and who is in its session, the first time at once. [`ensure`](Self::ensure) has to come first.
    pub(in crate::rtc) fn start<S>(
        room: Room,
        inbox: KeyInbox,
        sessions: S,
        config: KeyConfig,
        timer: Arc<dyn Timer>,
    ) -> Result<Self, MediaKeysError>
    where
        S: Stream<Item = (String, SessionSnapshot)> + Send + 'static,
    {
        let client = room.client();
        let meta = client.session_meta().ok_or(MediaKeysError::NotLoggedIn)?;
        // The member id comes with the first snapshot.
        let own = Participant::new(&*meta.user_id, "", &*meta.device_id);
        let exchange = KeyExchange::new(
            room.room_id().to_owned(),
            own,
            config,
            Box::new(random_bytes),
            random_seed(),
        );
        let state = State { exchange: Some(exchange), subscribers: HashMap::new(), next: 0 };
        let shared = Arc::new(Shared { state: Mutex::new(state), timer });

        let run = Run::new(shared.clone(), Performer::new(room, config.devices()));
        let task = Task::spawn(run.run(Box::pin(sessions), inbox));
        let task = task.ok_or(MediaKeysError::NoRuntime)?;
        Ok(Self { shared, _task: task })
    }

    /// Returns all keys that count now, and each change from here on, for a frame cryptor. The stream begins
    /// with [`KeyChange::Reset`], and ends when the exchange does.
    pub fn changes(&self) -> KeyChanges {
        let mut state = self.shared.state();
        let untold = state.exchange.as_ref().map(|it| it.all().into()).unwrap_or_default();
        let id = state.next;
        state.next += 1;
        state.subscribers.insert(id, Subscriber { untold, waker: None });
        KeyChanges { shared: self.shared.clone(), id }
    }

    /// Returns the index of our key in use. `None` until the session is known.
    pub fn own_index(&self) -> Option<u8> {
        self.shared.state().exchange.as_ref()?.own_index()
    }

    /// Returns how many key messages were rejected, and why the last 32 were.
    pub fn discards(&self) -> Discards {
        let state = self.shared.state();
        state.exchange.as_ref().map(|it| it.discards().clone()).unwrap_or_default()
    }
}

impl Drop for MediaKeys {
    fn drop(&mut self) {
        let wakers: Vec<_> = {
            let mut state = self.shared.state();
            // The keys with it.
            state.exchange = None;
            state.subscribers.values_mut().filter_map(|it| it.waker.take()).collect()
        };
        wakers.into_iter().for_each(Waker::wake);
    }
}

impl fmt::Debug for MediaKeys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let state = self.shared.state();
        f.debug_struct("MediaKeys").field("exchange", &state.exchange).finish_non_exhaustive()
    }
}

/// A stream of [`KeyChange`]s, in the order in which a frame cryptor applies them. A subscriber never lags: a
/// slow one gets a [`KeyChange::Reset`] and all keys that count.
pub struct KeyChanges {
    shared: Arc<Shared>,
    id: u64,
}

impl Stream for KeyChanges {
    type Item = KeyChange;

    fn poll_next(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<KeyChange>> {
        let mut state = self.shared.state();
        if state.exchange.is_none() {
            return Poll::Ready(None);
        }
        let Some(subscriber) = state.subscribers.get_mut(&self.id) else {
            return Poll::Ready(None);
        };
        match subscriber.untold.pop_front() {
            Some(change) => Poll::Ready(Some(change)),
            None => {
                subscriber.waker = Some(cx.waker().clone());
                Poll::Pending
            }
        }
    }
}

impl Drop for KeyChanges {
    fn drop(&mut self) {
        self.shared.state().subscribers.remove(&self.id);
    }
}

impl fmt::Debug for KeyChanges {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("KeyChanges").field("id", &self.id).finish_non_exhaustive()
    }
}

pub(super) struct Shared {
    state: Mutex<State>,
    pub(super) timer: Arc<dyn Timer>,
}

pub(super) struct State {
    /// `None` once the exchange is over.
    pub(super) exchange: Option<KeyExchange>,
    subscribers: HashMap<u64, Subscriber>,
    next: u64,
}

struct Subscriber {
    untold: VecDeque<KeyChange>,
    waker: Option<Waker>,
}

impl Shared {
    pub(super) fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    /// Notifies the subscribers. Returns the wakers of those who wait.
    pub(super) fn publish(&mut self, changes: &[KeyChange]) -> Vec<Waker> {
        let Some(exchange) = &self.exchange else { return Vec::new() };
        if changes.is_empty() {
            return Vec::new();
        }
        let most = exchange.len() + MAX_EXTRA_CHANGES;
        let wakers = self.subscribers.values_mut().filter_map(|subscriber| {
            subscriber.untold.extend(changes.iter().cloned());
            if subscriber.untold.len() > most {
                subscriber.untold = exchange.all().into();
            }
            subscriber.waker.take()
        });
        wakers.collect()
    }
}

/// Warns if our device is not cross-signed. Others who follow MSC4143 to the letter take no keys from it.
async fn warn_if_not_signed(client: &Client) {
    let own = client.encryption().get_own_device().await;
    if own.is_ok_and(|own| own.is_some_and(|own| !own.is_cross_signed_by_owner())) {
        warn!(
            "this device is not cross-signed: others may not take its media keys; set up \
             cross-signing, or verify this device by another one"
        );
    }
}

#[cfg(test)]
mod tests {
    use futures_util::{FutureExt as _, StreamExt as _};
    use ruma::{device_id, owned_room_id, user_id};

    use super::*;
    use crate::{driver::SystemClock, time::Clock as _};

    /// Another subscriber, who is not slow, gets each change.
    #[test]
    fn a_slow_subscriber_gets_a_reset() {
        let timer = SystemClock::default();
        let own = Participant::new(user_id!("@us:hs"), "m", device_id!("D"));
        let config = KeyConfig::default();
        let room_id = owned_room_id!("!room:hs");
        let mut exchange = KeyExchange::new(room_id, own, config, Box::new(random_bytes), 1);
        exchange.handle_peers(timer.now(), Some(0), []);
        let first = exchange.poll_change(timer.now());
        let state = State { exchange: Some(exchange), subscribers: HashMap::new(), next: 0 };
        let shared = Arc::new(Shared { state: Mutex::new(state), timer: Arc::new(timer) });
        let subscribe = |id| {
            let untold = VecDeque::from([KeyChange::Reset]);
            shared.state().subscribers.insert(id, Subscriber { untold, waker: None });
            KeyChanges { shared: shared.clone(), id }
        };
        let (mut slow, mut quick) = (subscribe(0), subscribe(1));
        let mut told = 0;
        for _ in 0..100 {
            drop(shared.state().publish(first.as_slice()));
            while let Some(change) = quick.next().now_or_never() {
                told += usize::from(matches!(change, Some(KeyChange::Own { index: 0, .. })));
            }
        }
        assert_eq!(told, 100);
        assert!(matches!(slow.next().now_or_never(), Some(Some(KeyChange::Reset))));
        let mut left = 0;
        while let Some(Some(KeyChange::Own { .. })) = slow.next().now_or_never() {
            left += 1;
        }
        assert!(left < 66, "{left}");

        // The end of the exchange is the end of the streams.
        shared.state().exchange = None;
        assert!(matches!(slow.next().now_or_never(), Some(None)));
        drop(slow);
        assert_eq!(shared.state().subscribers.len(), 1);
    }
}
