//! A client of its own, for an application that has none: log in, sync, log out. With encryption, and a
//! store in SQLite.

use std::{
    fmt,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use matrix_sdk::{
    Client as SdkClient,
    authentication::matrix::MatrixSession,
    config::SyncSettings,
    ruma::{OwnedRoomOrAliasId, api::error::ErrorKind},
};
use matrix_sdk_sticky::{BaseClientBuilder, SystemClock, Timer as _, time::Clock as _};
use tokio::runtime::Handle;
use tokio_util::task::AbortOnDropHandle;
use tracing::debug;

use crate::{
    runtime::{self, Held, in_words},
    sticky::{Sticky, SyncSource},
};

/// In the store, once somebody has logged in: another login would be another device, and its keys' end.
const LOGGED_IN: &[u8] = b"matrix-sdk-sticky.client.logged_in";

fn in_store(error: matrix_sdk::StoreError) -> ClientError {
    ClientError::Store { reason: error.to_string() }
}

/// How long to wait before the main loop is tried again; twice as long each time, up to the second.
const AGAIN_AFTER: [Duration; 2] = [Duration::from_secs(1), Duration::from_secs(30)];

/// Where a client is at home, and what it keeps.
#[derive(Clone, Debug, uniffi::Record)]
pub struct ClientConfig {
    /// The homeserver: its URL, or the server's name.
    pub homeserver: String,
    /// A folder for its store. Without one everything is kept in memory, and the next start is another
    /// device.
    #[uniffi(default = None)]
    pub store: Option<String>,
    /// Where sticky events come from; sliding sync where the server has it, unless told.
    #[uniffi(default = None)]
    pub source: Option<SyncSource>,
}

/// Why there is no client, or why it could not do something.
#[derive(Clone, Debug, thiserror::Error, uniffi::Error)]
pub enum ClientError {
    /// The homeserver's name or URL is none, or no homeserver is there.
    #[error("{reason}")]
    Homeserver {
        /// Which.
        reason: String,
    },
    /// The store cannot be opened: another passphrase, another client's, or no such folder.
    #[error("{reason}")]
    Store {
        /// Which.
        reason: String,
    },
    /// The server does not let us in: another name, another password, or the session is over.
    #[error("{reason}")]
    LoginRefused {
        /// What it said.
        reason: String,
    },
    /// The server wants fewer requests.
    #[error("{reason}")]
    RateLimited {
        /// When it will take another, if it said so.
        retry_after: Option<Duration>,
        /// The same in words.
        reason: String,
    },
    /// What was kept of the session cannot be read.
    #[error("{reason}")]
    Session {
        /// Why not.
        reason: String,
    },
    /// It is no room, or we may not go there.
    #[error("{reason}")]
    Room {
        /// Which.
        reason: String,
    },
    /// The server cannot be reached, or answers with errors.
    #[error("{reason}")]
    Unreachable {
        /// Why.
        reason: String,
    },
    /// The library has been shut down, or the system gives no threads.
    #[error("{reason}")]
    Stopped {
        /// Which.
        reason: String,
    },
}

in_words!(Stopped as Stopped: ClientError);

impl From<matrix_sdk::Error> for ClientError {
    fn from(error: matrix_sdk::Error) -> Self {
        let reason = error.to_string();
        if matches!(
            error,
            matrix_sdk::Error::StateStore(_)
                | matrix_sdk::Error::CryptoStoreError(_)
                | matrix_sdk::Error::BadCryptoStoreState
                | matrix_sdk::Error::CrossProcessLockError(_)
        ) {
            return Self::Store { reason };
        }
        match error.client_api_error_kind() {
            Some(
                ErrorKind::Forbidden
                | ErrorKind::UnknownToken(_)
                | ErrorKind::UserDeactivated
                | ErrorKind::MissingToken,
            ) => Self::LoginRefused { reason },
            Some(ErrorKind::LimitExceeded(limit)) => {
                use matrix_sdk::ruma::api::error::RetryAfter;
                let retry_after = match limit.retry_after {
                    Some(RetryAfter::Delay(after)) => Some(after),
                    _ => None,
                };
                Self::RateLimited { retry_after, reason }
            }
            _ => Self::Unreachable { reason },
        }
    }
}

impl From<matrix_sdk::ClientBuildError> for ClientError {
    fn from(error: matrix_sdk::ClientBuildError) -> Self {
        let reason = error.to_string();
        match error {
            matrix_sdk::ClientBuildError::SqliteStore(_) => Self::Store { reason },
            _ => Self::Homeserver { reason },
        }
    }
}

/// A room that the client is in.
#[derive(Clone, Debug, uniffi::Record)]
pub struct RoomInfo {
    /// Its id.
    pub room_id: String,
    /// Its name, where it has one.
    pub name: Option<String>,
    /// Whether it is encrypted, as far as is known.
    pub is_encrypted: bool,
}

/// A client that is logged in.
#[derive(uniffi::Object)]
pub struct StickyClient {
    client: Held<SdkClient>,
    sticky: Arc<Sticky>,
    main_loop: Mutex<Option<AbortOnDropHandle<()>>>,
}

#[uniffi::export]
impl StickyClient {
    /// Logs in, as a new device. With a passphrase the store is encrypted. A call that is given up may leave a
    /// device on the server, which nobody has.
    #[uniffi::constructor(default(passphrase = None, device_name = None))]
    pub async fn log_in(
        config: ClientConfig,
        username: String,
        password: String,
        passphrase: Option<String>,
        device_name: Option<String>,
    ) -> Result<Arc<Self>, ClientError> {
        Self::start(config, passphrase, async move |client: SdkClient| {
            let store = client.state_store();
            if store.get_custom_value(LOGGED_IN).await.map_err(in_store)?.is_some() {
                return Err(ClientError::Store {
                    reason: "the store is that of a session that was logged in before: restore that, or \
                             take another folder"
                        .to_owned(),
                });
            }
            let mut login = client.matrix_auth().login_username(&username, &password);
            if let Some(name) = &device_name {
                login = login.initial_device_display_name(name);
            }
            login.send().await?;
            store.set_custom_value_no_read(LOGGED_IN, b"1".to_vec()).await.map_err(in_store)
        })
        .await
    }

    /// Goes on as the device that was logged in before, with the same store: `session` is what
    /// [`session`](Self::session) told.
    #[uniffi::constructor(default(passphrase = None))]
    pub async fn restore(
        config: ClientConfig,
        session: String,
        passphrase: Option<String>,
    ) -> Result<Arc<Self>, ClientError> {
        let session: MatrixSession = serde_json::from_str(&session)
            // Without what stands there: it is a secret.
            .map_err(|_| ClientError::Session {
                reason: "this is no session that was kept".to_owned(),
            })?;
        let restore = async move |client: SdkClient| Ok(client.restore_session(session).await?);
        Self::start(config, passphrase, restore).await
    }

    /// The session, to be kept where secrets are: whoever has it is logged in.
    pub fn session(&self) -> Option<String> {
        let session = self.client.matrix_auth().session()?;
        serde_json::to_string(&session).ok()
    }

    /// Who is logged in.
    pub fn user_id(&self) -> String {
        self.client.user_id().map(ToString::to_string).unwrap_or_default()
    }

    /// By which device.
    pub fn device_id(&self) -> String {
        self.client.device_id().map(ToString::to_string).unwrap_or_default()
    }

    /// The sticky events of this client.
    pub fn sticky(&self) -> Arc<Sticky> {
        self.sticky.clone()
    }

    /// The rooms that it is in.
    pub fn rooms(&self) -> Vec<RoomInfo> {
        let rooms = self.client.joined_rooms();
        let info = |room: &matrix_sdk::Room| RoomInfo {
            room_id: room.room_id().to_string(),
            name: room.name(),
            is_encrypted: room.encryption_state().is_encrypted(),
        };
        rooms.iter().map(info).collect()
    }

    /// Joins a room, by its id or alias. Returns its id.
    pub async fn join_room(&self, room: String) -> Result<String, ClientError> {
        let id = OwnedRoomOrAliasId::try_from(room)
            .map_err(|error| ClientError::Room { reason: error.to_string() })?;
        let client = self.client.clone();
        let join = async move {
            let room = client.join_room_by_id_or_alias(&id, &[]).await?;
            Ok::<_, matrix_sdk::Error>(room.room_id().to_string())
        };
        let joined = runtime::on(self.client.runtime(), join).await?;
        joined.map_err(|error| {
            let is_an_answer = error.as_client_api_error().is_some_and(|it| it.status_code != 401);
            match ClientError::from(error) {
                ClientError::LoginRefused { reason } | ClientError::Unreachable { reason }
                    if is_an_answer =>
                {
                    ClientError::Room { reason }
                }
                other => other,
            }
        })
    }

    /// Starts the main loop: rooms, members, room keys. It goes on until it is stopped, or the session is
    /// over, which the state of the sticky events tells. Does nothing where it runs already.
    pub fn start_sync(&self) {
        let mut main_loop = self.main_loop.lock().unwrap_or_else(PoisonError::into_inner);
        if main_loop.as_ref().is_none_or(AbortOnDropHandle::is_finished) {
            let client = self.client.clone();
            let task = self.client.runtime().spawn(run_main_loop(client));
            *main_loop = Some(AbortOnDropHandle::new(task));
        }
    }

    /// Stops the main loop, as in the background.
    pub fn stop_sync(&self) {
        drop(self.main_loop.lock().unwrap_or_else(PoisonError::into_inner).take());
    }

    /// Leaves with all heartbeats and members, and logs out. What the store has is of no use any more.
    pub async fn log_out(&self) -> Result<(), ClientError> {
        self.sticky.leave_heartbeats().await;
        let client = self.client.clone();
        let log_out = async move { client.matrix_auth().logout().await };
        runtime::on(self.client.runtime(), log_out).await?.map_err(matrix_sdk::Error::from)?;
        self.stop_sync();
        Ok(())
    }
}

impl StickyClient {
    async fn start<F: Future<Output = Result<(), ClientError>> + Send>(
        config: ClientConfig,
        passphrase: Option<String>,
        log_in: impl FnOnce(SdkClient) -> F + Send + 'static,
    ) -> Result<Arc<Self>, ClientError> {
        let runtime = runtime::own().map_err(|reason| ClientError::Stopped { reason })?;
        let ClientConfig { homeserver, store, source } = config;
        let start = async move {
            let base = match &store {
                Some(folder) => BaseClientBuilder::sqlite(folder, passphrase.as_deref()),
                None => BaseClientBuilder::in_memory(),
            };
            let builder = SdkClient::builder().server_name_or_homeserver_url(homeserver);
            // Held from here on: where nobody waits for it any more, it is dropped by whichever thread.
            let client = Held::new(&Handle::current(), base.build_client(builder).await?);
            log_in(client.clone()).await?;
            Ok::<_, ClientError>(client)
        };
        let client = runtime::on(&runtime, start).await??;
        // It was built with what encrypts, and is nobody else's.
        let source = source.unwrap_or(SyncSource::Auto);
        let sticky = Sticky::new(&client, None, source, &runtime)
            .map_err(|error| ClientError::Stopped { reason: error.to_string() })?;
        Ok(Arc::new(Self { client, sticky, main_loop: Mutex::default() }))
    }
}

async fn run_main_loop(client: SdkClient) {
    let [mut wait, longest] = AGAIN_AFTER;
    loop {
        let began = SystemClock::default().now();
        match client.sync(SyncSettings::new()).await {
            Ok(()) => return,
            Err(error)
                if matches!(error.client_api_error_kind(), Some(ErrorKind::UnknownToken(_))) =>
            {
                debug!(%error, "the main loop ends, as the session is over");
                return;
            }
            Err(error) => debug!(%error, "the main loop is tried again"),
        }
        let now = SystemClock::default().now();
        if now.since(began) > longest {
            [wait, _] = AGAIN_AFTER;
        }
        SystemClock::default().sleep_until(now.deadline(wait)).await;
        wait = (wait * 2).min(longest);
    }
}

impl fmt::Debug for StickyClient {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("StickyClient")
            .field("user_id", &self.client.user_id())
            .field("device_id", &self.client.device_id())
            .finish_non_exhaustive()
    }
}
