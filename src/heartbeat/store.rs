//! What the client's store has of heartbeats: the leaves that are armed, or may be, and whose process
//! it is that beats.
//!
//! In: a leave that is about to be armed; that it is no more. Out: what an earlier process has left.
//! All under two custom values of matrix-sdk's state store, written before the request goes out: so
//! after a crash at any moment the next process can find, and retire, what may still fire.

use std::sync::Arc;

use matrix_sdk::{Client, StoreError};
use ruma::{OwnedRoomId, TransactionId};
use serde::{Deserialize, Serialize};
use tracing::warn;

use crate::{delayed::PreparedEvent, driver::process_started, time::Moment};

const ARMED: &[u8] = b"matrix-sdk-sticky.heartbeats.armed";
const OWNER: &[u8] = b"matrix-sdk-sticky.heartbeats.owner";

/// For how long a process owns the store after it last said so. One that was killed owns it no
/// longer than until somebody looks, where the system tells which processes there are.
const OWNED_MS: u64 = 60_000;

/// Whose heartbeat it is, in a store: no two of them may beat at once.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub(super) struct Place {
    pub(super) room_id: OwnedRoomId,
    pub(super) event_type: String,
    pub(super) sticky_key: String,
}

/// A leave that is armed, or may be.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Armed {
    pub(super) place: Place,
    pub(super) leave: PreparedEvent,
}

/// The process that beats.
#[derive(Debug, Serialize, Deserialize)]
struct Owner {
    process: u32,
    started: Option<u64>,
    until_unix_ms: u64,
}

/// What heartbeats keep in a client's store.
#[derive(Clone, Debug)]
pub(super) struct Store {
    client: Client,
    /// One reads and writes at a time.
    turn: Arc<tokio::sync::Mutex<()>>,
}

impl Store {
    pub(super) fn new(client: Client, turn: Arc<tokio::sync::Mutex<()>>) -> Self {
        Self { client, turn }
    }

    /// All that may still be armed.
    pub(super) async fn armed(&self) -> Result<Vec<Armed>, StoreError> {
        let _turn = self.turn.lock().await;
        self.read().await
    }

    pub(super) async fn add(&self, armed: Armed) -> Result<(), StoreError> {
        let _turn = self.turn.lock().await;
        let mut all = self.read().await?;
        all.push(armed);
        self.write(&all).await
    }

    pub(super) async fn remove(&self, transaction_id: &TransactionId) -> Result<(), StoreError> {
        let _turn = self.turn.lock().await;
        let mut all = self.read().await?;
        all.retain(|armed| armed.leave.transaction_id() != transaction_id);
        self.write(&all).await
    }

    /// Says that this process beats, for the next minute; `false` while another one does.
    pub(super) async fn own(&self, now: Moment) -> Result<bool, StoreError> {
        let _turn = self.turn.lock().await;
        let process = std::process::id();
        let started = process_started(process);
        let store = self.client.state_store();
        if let Some(owner) = store.get_custom_value(OWNER).await?
            && let Ok(owner) = serde_json::from_slice::<Owner>(&owner)
        {
            let is_us = owner.process == process && owner.started == started;
            let lives = match process_started(owner.process) {
                // The number may have gone to another process since.
                Some(there) => Some(there) == owner.started,
                // The system does not tell, or it is gone: then `owner` would have known when it
                // started.
                None => owner.started.is_none(),
            };
            // Where the system tells that it runs, it need not have said so lately: it may sleep.
            let is_known_to_live = lives && owner.started.is_some();
            let has_said_so = lives && owner.until_unix_ms > now.unix_ms();
            if !is_us && (is_known_to_live || has_said_so) {
                return Ok(false);
            }
        }
        let until_unix_ms = now.unix_ms().saturating_add(OWNED_MS);
        let owner = serde_json::to_vec(&Owner { process, started, until_unix_ms })?;
        store.set_custom_value_no_read(OWNER, owner).await?;
        Ok(true)
    }

    /// Says that this process beats no more, if that is still so when it is its turn to say it.
    pub(super) async fn disown(&self, is_idle: impl Fn() -> bool) {
        let _turn = self.turn.lock().await;
        if !is_idle() {
            return;
        }
        if let Err(error) = self.client.state_store().remove_custom_value(OWNER).await {
            warn!(%error, "the store does not take that no heartbeat beats any more");
        }
    }

    async fn read(&self) -> Result<Vec<Armed>, StoreError> {
        let Some(value) = self.client.state_store().get_custom_value(ARMED).await? else {
            return Ok(Vec::new());
        };
        // What nobody can read must not keep anybody from beating; and it fires by itself.
        Ok(serde_json::from_slice(&value).unwrap_or_else(|error| {
            warn!(%error, "what the store has of heartbeats cannot be read, and is given up");
            Vec::new()
        }))
    }

    async fn write(&self, armed: &[Armed]) -> Result<(), StoreError> {
        let store = self.client.state_store();
        if armed.is_empty() {
            store.remove_custom_value(ARMED).await?;
            return Ok(());
        }
        store.set_custom_value_no_read(ARMED, serde_json::to_vec(armed)?).await
    }
}
