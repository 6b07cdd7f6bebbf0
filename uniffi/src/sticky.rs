//! The front door: the sticky events of a client, and those of one room.

use std::{
    sync::Arc,
    time::{Duration, SystemTime},
};

use futures_util::{StreamExt as _, stream};
use matrix_sdk::{
    Client,
    ruma::{EventId, RoomId},
};
use matrix_sdk_sticky::{
    PrepareError, RoomSticky, SendError as SdkSendError, Sticky as SdkSticky, StickyKey,
    SyncSource as SdkSource, SyncState as SdkState, matrix_sdk_base::BaseClient,
};
use serde_json::{Map, Value};
use tokio::runtime::Handle;
use tracing::warn;

use crate::{
    entries::{self, Entry, EntryFilter, EntryListener, FilterError},
    heartbeat::{Heartbeat, HeartbeatConfig, HeartbeatError},
    listen::{ListenerError, Listening},
    rtc::{DiscoveredTransports, Rtc, TransportsError},
    runtime::{self, Held, in_words},
};

/// Where sticky events come from.
#[derive(Clone, Copy, Debug, uniffi::Enum)]
pub enum SyncSource {
    /// Sliding sync where the server has it, else v3.
    Auto,
    /// A sliding-sync connection of its own.
    Sliding,
    /// v3 `/sync`, behind the client's main loop.
    V3,
}

impl From<SyncSource> for SdkSource {
    fn from(source: SyncSource) -> Self {
        match source {
            SyncSource::Auto => Self::Auto,
            SyncSource::Sliding => Self::Sliding,
            SyncSource::V3 => Self::V3,
        }
    }
}

/// How current the maps are, for an application to show.
#[derive(Clone, Debug, uniffi::Enum)]
pub enum SyncState {
    /// Nothing has come yet.
    Connecting,
    /// Pages come, and more are to come.
    CatchingUp,
    /// All that is sticky is there, and what changes comes at once.
    Live,
    /// As live, but for these rooms, of which something may be missing for up to an hour.
    Incomplete {
        /// The rooms.
        rooms: Vec<String>,
    },
    /// The server cannot be reached, or answers with errors. Tries go on.
    Offline {
        /// Since when, by this machine's clock.
        since: SystemTime,
        /// What went wrong last.
        reason: String,
    },
    /// The server lacks what is needed. It is asked again every 10 minutes.
    Unsupported {
        /// What it lacks.
        reason: String,
    },
    /// The access token is not valid any more: log in again.
    LoggedOut,
}

impl From<SdkState> for SyncState {
    fn from(state: SdkState) -> Self {
        match state {
            SdkState::CatchingUp => Self::CatchingUp,
            SdkState::Live => Self::Live,
            SdkState::Incomplete { rooms } => {
                Self::Incomplete { rooms: rooms.iter().map(ToString::to_string).collect() }
            }
            SdkState::Offline { since, error } => Self::Offline { since, reason: error },
            SdkState::Unsupported(what) => Self::Unsupported { reason: what.to_string() },
            SdkState::LoggedOut => Self::LoggedOut,
            _ => Self::Connecting,
        }
    }
}

/// Is told how current the maps are: now, and each time that it changes.
#[uniffi::export(with_foreign)]
pub trait SyncStateListener: Send + Sync {
    /// The state from now on. The first call tells the state as it is.
    fn on_state(&self, state: SyncState) -> Result<(), ListenerError>;
}

/// The client does not know this room.
#[derive(Clone, Debug, thiserror::Error, uniffi::Error)]
pub enum RoomError {
    /// It is no room id.
    #[error("{reason}")]
    RoomId {
        /// What is wrong with it.
        reason: String,
    },
    /// The client's main loop has not brought this room: join it, or wait until it has.
    #[error("{reason}")]
    Unknown {
        /// The same in words.
        reason: String,
    },
}

/// Why an event was not sent.
#[derive(Clone, Debug, thiserror::Error, uniffi::Error)]
pub enum SendError {
    /// The content is no JSON object.
    #[error("{reason}")]
    Content {
        /// What is wrong with it.
        reason: String,
    },
    /// It is no event id.
    #[error("{reason}")]
    EventId {
        /// What is wrong with it.
        reason: String,
    },
    /// The server lacks what it takes.
    #[error("{reason}")]
    Unsupported {
        /// What it lacks.
        reason: String,
    },
    /// The room is encrypted, and what encrypts is not known; see [`Sticky::can_encrypt`].
    #[error("{reason}")]
    CannotEncrypt {
        /// What to do.
        reason: String,
    },
    /// It could not be encrypted. Nothing was sent.
    #[error("{reason}")]
    Encrypt {
        /// Why.
        reason: String,
    },
    /// The server takes no more for now.
    #[error("{reason}")]
    RateLimited {
        /// When it will take another, if it said so.
        retry_after: Option<Duration>,
        /// The same in words.
        reason: String,
    },
    /// The server refuses the event, and will again.
    #[error("{reason}")]
    Refused {
        /// What it said.
        reason: String,
    },
    /// The server cannot be reached. It may have been sent.
    #[error("{reason}")]
    Unreachable {
        /// Why.
        reason: String,
    },
    /// The library has been shut down.
    #[error("{reason}")]
    Stopped {
        /// How that is.
        reason: String,
    },
}

in_words!(Stopped as Stopped: SendError);

impl From<SdkSendError> for SendError {
    fn from(error: SdkSendError) -> Self {
        let reason = error.to_string();
        match error {
            SdkSendError::Prepare(PrepareError::Unsupported(_)) => Self::Unsupported { reason },
            SdkSendError::Prepare(PrepareError::NoBaseClient) => Self::CannotEncrypt { reason },
            SdkSendError::Prepare(
                PrepareError::Encrypt(_) | PrepareError::EncryptionUnknown(_),
            )
            | SdkSendError::BecameEncrypted => Self::Encrypt { reason },
            SdkSendError::Prepare(PrepareError::Content(_)) => Self::Content { reason },
            SdkSendError::RateLimited { retry_after } => Self::RateLimited { retry_after, reason },
            SdkSendError::Refused { .. } => Self::Refused { reason },
            _ => Self::Unreachable { reason },
        }
    }
}

/// The sticky events of all rooms of a client.
#[derive(Debug, uniffi::Object)]
pub struct Sticky {
    sticky: Held<SdkSticky>,
}

/// Why there are no sticky events of a client.
#[derive(Clone, Debug, thiserror::Error, uniffi::Error)]
pub enum StartError {
    /// The client's sticky events are in use already, or the base client is not the client's.
    #[error("{reason}")]
    Start {
        /// Which, and what to do.
        reason: String,
    },
}

/// For a library of one's own, around a client of matrix-sdk and this.
impl Sticky {
    /// The sticky events of a client that exists, on the runtime that the client lives on.
    ///
    /// `base_client` is what the client was built on ([`ClientBuilder::base_client`]), and what
    /// encrypts. Without it nothing can be sent into encrypted rooms, which [`can_encrypt`] says, and a
    /// warning in the log: matrix-sdk 0.19 has no other way.
    ///
    /// # Errors
    ///
    /// [`StartError`].
    ///
    /// [`ClientBuilder::base_client`]: matrix_sdk::ClientBuilder::base_client
    /// [`can_encrypt`]: Self::can_encrypt
    pub fn new(
        client: &Client,
        base_client: Option<BaseClient>,
        source: SyncSource,
        runtime: &Handle,
    ) -> Result<Arc<Self>, StartError> {
        let _entered = runtime.enter();
        let mut builder = SdkSticky::builder(client).with_source(source.into());
        if let Some(base_client) = base_client {
            builder = builder.with_base_client(base_client);
        }
        let sticky =
            builder.start().map_err(|error| StartError::Start { reason: error.to_string() })?;
        if !sticky.can_encrypt() {
            warn!(
                "sticky events cannot be sent into encrypted rooms: the client's base client was not given"
            );
        }
        Ok(Arc::new(Self { sticky: Held::new(runtime, sticky) }))
    }
}

#[uniffi::export]
impl Sticky {
    /// Whether events can be sent into encrypted rooms. If not, sends there fail with
    /// `CannotEncrypt`; into others they go.
    pub fn can_encrypt(&self) -> bool {
        self.sticky.can_encrypt()
    }

    /// How current the maps are.
    pub fn state(&self) -> SyncState {
        self.sticky.state().into()
    }

    /// Tells a listener how current the maps are.
    pub fn listen_to_state(&self, listener: Arc<dyn SyncStateListener>) -> Arc<Listening> {
        let mut states = self.sticky.subscribe_state();
        let now = states.next_now();
        let states = stream::once(async move { now }).chain(states);
        Listening::to(self.sticky.runtime(), states, listener, |listener, state| {
            listener.on_state(state.into())
        })
    }

    /// What is sticky now.
    pub fn entries(&self, filter: EntryFilter) -> Result<Vec<Entry>, FilterError> {
        let view = filter.narrow(self.sticky.events())?;
        Ok(entries::entries(&view.snapshot()))
    }

    /// Tells a listener what is sticky, and what changes.
    pub fn listen(
        &self,
        filter: EntryFilter,
        listener: Arc<dyn EntryListener>,
    ) -> Result<Arc<Listening>, FilterError> {
        let view = filter.narrow(self.sticky.events())?;
        Ok(entries::listen(self.sticky.runtime(), &view, listener))
    }

    /// One room.
    pub fn room(&self, room_id: String) -> Result<Arc<StickyRoom>, RoomError> {
        let id = RoomId::parse(&room_id)
            .map_err(|error| RoomError::RoomId { reason: error.to_string() })?;
        let room = self.sticky.room(&id).ok_or_else(|| RoomError::Unknown {
            reason: format!(
                "the client does not know the room {room_id}: join it, or wait until it has synced"
            ),
        })?;
        Ok(Arc::new(StickyRoom { room: Held::new(self.sticky.runtime(), room) }))
    }

    /// The MatrixRTC transports that the homeserver offers, with which a session can be joined.
    pub async fn rtc_transports(&self) -> Result<DiscoveredTransports, TransportsError> {
        let sticky = self.sticky.clone();
        let found =
            runtime::on(self.sticky.runtime(), async move { sticky.rtc_transports().await });
        Ok(found.await??.into())
    }

    /// Has all heartbeats and members leave, as before a logout. Returns when the server has it all.
    pub async fn leave_heartbeats(&self) {
        let sticky = self.sticky.clone();
        // Where the runtime is gone nothing beats.
        let _ = runtime::on(self.sticky.runtime(), async move { sticky.leave_heartbeats().await })
            .await;
    }
}

/// The sticky events of one room.
#[derive(Debug, uniffi::Object)]
pub struct StickyRoom {
    room: Held<RoomSticky>,
}

#[uniffi::export]
impl StickyRoom {
    /// The room's id.
    pub fn room_id(&self) -> String {
        self.room.room_id().to_string()
    }

    /// What is sticky in the room now; of one type, if one is given.
    #[uniffi::method(default(event_type = None))]
    pub fn entries(&self, event_type: Option<String>) -> Vec<Entry> {
        entries::entries(&self.view(event_type).snapshot())
    }

    /// The entry of a key, if it is there.
    pub fn get(
        &self,
        event_type: String,
        sender: String,
        sticky_key: String,
    ) -> Result<Option<Entry>, FilterError> {
        let sender = entries::user_id(sender)?;
        let entry = self.room.get(&StickyKey::new(sender, event_type, sticky_key));
        Ok(entry.map(|entry| Entry::of(&entry, self.room.sticky_client().now())))
    }

    /// Tells a listener what is sticky in the room, of one type if one is given, and what changes.
    #[uniffi::method(default(event_type = None))]
    pub fn listen(
        &self,
        listener: Arc<dyn EntryListener>,
        event_type: Option<String>,
    ) -> Arc<Listening> {
        entries::listen(self.room.runtime(), &self.view(event_type), listener)
    }

    /// Sends a sticky event, encrypted where the room is. `content` is a JSON object. With a key it
    /// replaces what we sent under that key before, and with an empty object it removes that; without one
    /// it stands for itself. Sticky for `duration`, 1 h at most: as the one under its key before, unless
    /// told, and else 1 h. Returns the event's id.
    #[uniffi::method(default(sticky_key = None, duration = None))]
    pub async fn send(
        &self,
        event_type: String,
        content: String,
        sticky_key: Option<String>,
        duration: Option<Duration>,
    ) -> Result<String, SendError> {
        let content = object(&content).map_err(|reason| SendError::Content { reason })?;
        let mut send = self.room.send_raw(&event_type, content);
        if let Some(sticky_key) = sticky_key {
            send = send.with_sticky_key(sticky_key);
        }
        if let Some(duration) = duration {
            send = send.with_sticky_duration(duration);
        }
        let sent = runtime::on(self.room.runtime(), send.into_future()).await??;
        Ok(sent.event_id.to_string())
    }

    /// Removes what we sent under a key. Returns the id of the event that does so.
    pub async fn remove(
        &self,
        event_type: String,
        sticky_key: String,
    ) -> Result<String, SendError> {
        let remove = self.room.remove(&event_type, sticky_key);
        let sent = runtime::on(self.room.runtime(), remove.into_future()).await??;
        Ok(sent.event_id.to_string())
    }

    /// Redacts an event. Returns the id of the redaction.
    #[uniffi::method(default(reason = None))]
    pub async fn redact(
        &self,
        event_id: String,
        reason: Option<String>,
    ) -> Result<String, SendError> {
        let event_id = EventId::parse(event_id)
            .map_err(|error| SendError::EventId { reason: error.to_string() })?;
        let mut redact = self.room.redact(event_id);
        if let Some(reason) = reason {
            redact = redact.with_reason(reason);
        }
        let sent = runtime::on(self.room.runtime(), redact.into_future()).await??;
        Ok(sent.event_id.to_string())
    }

    /// A heartbeat: a member, under this key, that is there for as long as the handle is, and that the
    /// server removes when it is not called any more. It is to be started.
    pub fn heartbeat(
        &self,
        sticky_key: String,
        config: HeartbeatConfig,
    ) -> Result<Arc<Heartbeat>, HeartbeatError> {
        let room = RoomSticky::clone(&self.room);
        Ok(Arc::new(Heartbeat::new(self.room.runtime(), room, sticky_key, config)?))
    }

    /// The room's MatrixRTC sessions.
    pub fn rtc(&self) -> Arc<Rtc> {
        Arc::new(Rtc::new(self.room.runtime(), self.room.rtc()))
    }
}

impl StickyRoom {
    fn view(&self, event_type: Option<String>) -> matrix_sdk_sticky::View {
        let view = self.room.events();
        match event_type {
            Some(event_type) => view.of_type(event_type),
            None => view,
        }
    }
}

/// A JSON object, from its text.
pub(crate) fn object(text: &str) -> Result<Map<String, Value>, String> {
    serde_json::from_str(text).map_err(|error| format!("it is no JSON object: {error}"))
}
