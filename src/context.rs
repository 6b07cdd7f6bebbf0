//! Context: what belongs to one client, and to one room of it.
//!
//! In: a client, its settings. Out: the maps, the clock, the outbox and the tables that all verbs
//! share. Never: a verb. Sending, heartbeats and sessions stand above, and each takes a
//! [`RoomContext`].

use std::{
    any::{Any, TypeId},
    collections::{HashMap, HashSet},
    fmt,
    sync::{Arc, Mutex, MutexGuard, PoisonError, Weak},
};

use eyeball::SharedObservable;
use matrix_sdk::{Client, Room};
use ruma::{EventId, OwnedEventId, OwnedRoomId, RoomId, exports::http::Extensions};

use crate::{
    delayed::{DelayedEvents, ServerSupport},
    driver::{Task, Timer},
    outbox::{ATTEMPT_TIMEOUT, KeyLocks, Outbox, RequestError},
    sync::state::{SyncSource, SyncState, Unsupported},
    view::{EphemeralMaps, View},
    wire::names,
};

/// What all handles of a client share.
pub(crate) struct ClientContext {
    pub(crate) client: Client,
    pub(crate) maps: EphemeralMaps,
    pub(crate) timer: Arc<dyn Timer>,
    pub(crate) state: SharedObservable<SyncState>,
    pub(crate) wanted_source: SyncSource,
    pub(crate) source: SharedObservable<SyncSource>,
    /// The task that receives.
    pub(crate) task: Mutex<Option<Task>>,
    key_locks: KeyLocks,
    /// Memberships of ours that are removed, or were: see [`RoomContext::claim_removal`].
    removals: Mutex<HashSet<OwnedEventId>>,
    support: Arc<Mutex<ServerSupport>>,
    /// What a module above keeps for each client, by its type.
    extensions: Mutex<Extensions>,
    /// See [`RoomContext::shared`].
    shared: Mutex<HashMap<(OwnedRoomId, TypeId), Weak<dyn Any + Send + Sync>>>,
}

impl ClientContext {
    pub(crate) fn new(
        client: Client,
        maps: EphemeralMaps,
        timer: Arc<dyn Timer>,
        wanted_source: SyncSource,
    ) -> Self {
        Self {
            client,
            maps,
            timer,
            state: SharedObservable::new(SyncState::Connecting),
            wanted_source,
            source: SharedObservable::new(wanted_source),
            task: Mutex::default(),
            key_locks: KeyLocks::default(),
            removals: Mutex::default(),
            support: Arc::default(),
            extensions: Mutex::default(),
            shared: Mutex::default(),
        }
    }

    pub(crate) fn outbox(&self) -> Outbox {
        Outbox::new(self.client.clone(), self.timer.clone())
    }

    pub(crate) fn delayed_events(&self) -> DelayedEvents {
        DelayedEvents::new(self.outbox(), self.support.clone())
    }

    /// Returns what a module above keeps for this client. It starts as the default.
    ///
    /// Why not a field? The context would name the modules that stand above it.
    pub(crate) fn extension<T: Clone + Default + Send + Sync + 'static>(&self) -> T {
        let mut extensions = self.extensions.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(value) = extensions.get::<T>() {
            return value.clone();
        }
        let value = T::default();
        extensions.insert(value.clone());
        value
    }

    /// Returns a view of the entries of all rooms. It keeps the context, and so the task, alive.
    pub(crate) fn events(self: &Arc<Self>) -> View {
        self.maps.view().with_keeper(self.clone())
    }
}

/// A room, and the context of its client. Cheap to clone.
#[derive(Clone)]
pub(crate) struct RoomContext {
    room: Room,
    client: Arc<ClientContext>,
}

impl RoomContext {
    pub(crate) fn new(room: Room, client: Arc<ClientContext>) -> Self {
        Self { room, client }
    }

    pub(crate) fn room(&self) -> &Room {
        &self.room
    }

    pub(crate) fn room_id(&self) -> &RoomId {
        self.room.room_id()
    }

    pub(crate) fn client(&self) -> &Arc<ClientContext> {
        &self.client
    }

    pub(crate) fn timer(&self) -> &Arc<dyn Timer> {
        &self.client.timer
    }

    pub(crate) fn outbox(&self) -> Outbox {
        self.client.outbox()
    }

    pub(crate) fn delayed_events(&self) -> DelayedEvents {
        self.client.delayed_events()
    }

    /// Returns a view of the room's entries.
    pub(crate) fn events(&self) -> View {
        self.client.events().in_room(self.room_id())
    }

    /// Returns what all handles of the room share of one type, for as long as one of them holds it.
    pub(crate) fn shared<T: Any + Default + Send + Sync>(&self) -> Arc<T> {
        let key = (self.room_id().to_owned(), TypeId::of::<T>());
        let mut all = self.client.shared.lock().unwrap_or_else(PoisonError::into_inner);
        let known = all.get(&key).and_then(Weak::upgrade);
        if let Some(known) = known.and_then(|known| known.downcast().ok()) {
            return known;
        }
        all.retain(|_, it| it.strong_count() > 0);
        let new = Arc::new(T::default());
        let any: Arc<dyn Any + Send + Sync> = new.clone();
        all.insert(key, Arc::downgrade(&any));
        new
    }

    pub(crate) fn key_locks(&self) -> &KeyLocks {
        &self.client.key_locks
    }

    /// Whether the caller is to remove this event of ours: the first caller who asks is. Each stream
    /// of a room sees the same memberships.
    pub(crate) fn claim_removal(&self, event_id: OwnedEventId) -> bool {
        self.removals().insert(event_id)
    }

    /// The removal came to nothing: another caller may try again.
    pub(crate) fn disclaim_removal(&self, event_id: &EventId) {
        self.removals().remove(event_id);
    }

    fn removals(&self) -> MutexGuard<'_, HashSet<OwnedEventId>> {
        self.client.removals.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Makes sure that the server knows sticky events. A server that does not ignores what makes an
    /// event sticky, and sends it as an ordinary one.
    ///
    /// # Errors
    ///
    /// [`EnsureError`]: the server does not, or could not be asked.
    pub(crate) async fn ensure_sticky_events(&self) -> Result<(), EnsureError> {
        if let SyncState::Live | SyncState::CatchingUp | SyncState::Incomplete { .. } =
            self.client.state.get()
        {
            return Ok(());
        }
        let outbox = self.outbox();
        let features = outbox.unstable_features(outbox.deadline(ATTEMPT_TIMEOUT)).await?;
        if features.get(names::FEATURE).is_some_and(|has| has == true) {
            return Ok(());
        }
        Err(EnsureError::Unsupported(Unsupported::StickyEvents))
    }
}

/// Why it is not sure that the server knows sticky events.
#[derive(Debug)]
pub(crate) enum EnsureError {
    Unsupported(Unsupported),
    Request(RequestError),
}

impl From<RequestError> for EnsureError {
    fn from(error: RequestError) -> Self {
        Self::Request(error)
    }
}

impl fmt::Debug for RoomContext {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RoomContext").field("room_id", &self.room_id()).finish_non_exhaustive()
    }
}
