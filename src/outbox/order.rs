//! The order of sends: one send of a key at a time, and what was last sent for the key.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use ruma::OwnedRoomId;

use crate::{event::StickyKey, time::Moment};

/// How many keys are remembered before those are forgotten that nobody is sending for. The map still
/// has what is live of them.
const MAX_REMEMBERED_KEYS: usize = 1_000;

/// A lock for each of our own keys. Sends of one key arrive in the order in which they were started.
#[derive(Clone, Debug, Default)]
pub(crate) struct KeyLocks(Arc<Mutex<HashMap<(OwnedRoomId, StickyKey), KeyLock>>>);

type KeyLock = Arc<tokio::sync::Mutex<Sends>>;

/// What was last sent for a key.
#[derive(Debug, Default)]
pub(crate) struct Sends {
    pub(crate) sent_at: Option<Moment>,
    pub(crate) sticky_duration: Option<Duration>,
}

impl KeyLocks {
    /// Returns the lock of a key.
    pub(crate) fn of(&self, room_id: OwnedRoomId, key: StickyKey) -> KeyLock {
        let mut locks = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if locks.len() >= MAX_REMEMBERED_KEYS {
            locks.retain(|_, lock| Arc::strong_count(lock) > 1);
        }
        locks.entry((room_id, key)).or_default().clone()
    }
}
