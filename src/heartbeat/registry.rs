//! Registry: the heartbeats of a client, as data.
//!
//! In: keys that become live or free, delay ids that are armed or over. Out: who is live. Never: a
//! request. What is done with them stands above, in `run` and `retire`.

use std::{
    collections::HashMap,
    fmt,
    sync::{Arc, Mutex, MutexGuard, PoisonError, atomic::AtomicU64},
    time::Duration,
};

use ruma::RoomId;
use tokio::sync::mpsc;

use super::{
    request::Wish,
    store::{HeartbeatKey, Ours},
    turns::Turns,
};
use crate::delayed::DelayId;

/// The heartbeats of a client: who is live, and what is armed. Cheap to clone.
#[derive(Clone, Default)]
pub(crate) struct Registry {
    pub(super) turns: Arc<Mutex<Turns>>,
    /// The number of the next heartbeat.
    pub(super) next: Arc<AtomicU64>,
    pub(super) live: Arc<Mutex<HashMap<HeartbeatKey, Owner>>>,
    pub(super) ours: Arc<Ours>,
    /// What the live ones have armed, as far as is known.
    pub(super) delay_ids: Arc<Mutex<HashMap<DelayId, HeartbeatKey>>>,
}

/// Whom to tell what the owner wants, and how long after a crash the member is seen.
pub(super) type Owner = (mpsc::UnboundedSender<Wish>, Duration);

/// The one live owner of a key, for as long as this is.
pub(super) struct Live {
    registry: Registry,
    key: HeartbeatKey,
}

impl Registry {
    pub(super) fn live(
        &self,
        key: &HeartbeatKey,
        wishes: &mpsc::UnboundedSender<Wish>,
        delay: Duration,
    ) -> Option<Live> {
        let mut live = lock(&self.live);
        if live.contains_key(key) {
            return None;
        }
        live.insert(key.clone(), (wishes.clone(), delay));
        Some(Live { registry: self.clone(), key: key.clone() })
    }

    pub(super) fn is_live(&self, key: &HeartbeatKey) -> bool {
        lock(&self.live).contains_key(key)
    }

    /// Whether a heartbeat of this client has this key.
    pub(crate) fn has(&self, room_id: &RoomId, event_type: &str, sticky_key: &str) -> bool {
        let (event_type, sticky_key) = (event_type.to_owned(), sticky_key.to_owned());
        self.is_live(&HeartbeatKey { room_id: room_id.to_owned(), event_type, sticky_key })
    }

    pub(super) fn is_idle(&self) -> bool {
        lock(&self.live).is_empty()
    }
}

impl fmt::Debug for Registry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Registry").field("live", &lock(&self.live).len()).finish_non_exhaustive()
    }
}

impl Drop for Live {
    fn drop(&mut self) {
        {
            let mut live = lock(&self.registry.live);
            live.remove(&self.key);
            if live.is_empty() {
                self.registry.ours.release();
            }
        }
        // What it had armed is for the next heartbeat to find.
        lock(&self.registry.delay_ids).retain(|_, key| *key != self.key);
    }
}

pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
