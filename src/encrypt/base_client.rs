//! Building a client on a base client that this crate shares.
//!
//! In: a store, and the settings that a [`ClientBuilder`] ignores when it is given a base client.
//! Out: a [`Client`] whose sends of sticky events encrypt.

#[cfg(feature = "sqlite")]
use std::path::Path;
use std::{
    fmt,
    path::PathBuf,
    sync::{Arc, LazyLock, Mutex, MutexGuard, PoisonError},
};

use matrix_sdk::{
    Client, ClientBuildError, ClientBuilder, ThreadingSupport,
    cross_process_lock::CrossProcessLockConfig, store::StoreConfig,
};
#[cfg(feature = "sqlite")]
use matrix_sdk::{
    SqliteCryptoStore, SqliteEventCacheStore, SqliteMediaStore, SqliteStateStore, SqliteStoreConfig,
};
use matrix_sdk_base::{
    BaseClient, DmRoomDefinition,
    crypto::{CollectStrategy, DecryptionSettings},
};

use super::Encryptor;
use crate::client_table::ClientTable;

/// Builds a [`Client`] whose sticky events can be sent into encrypted rooms.
///
/// It makes the [`BaseClient`] that the client is built on, and keeps a clone of it for as long as
/// the client lives. Everything else is set on the [`ClientBuilder`], as ever. What a
/// [`ClientBuilder`] *ignores* once it has a base client is set here: the store, the cross-process
/// lock, who gets room keys, what is decrypted, threading, what a direct message is.
///
/// ```no_run
/// # async fn example() -> Result<(), Box<dyn std::error::Error>> {
/// use matrix_sdk::Client;
/// use matrix_sdk_sticky::BaseClientBuilder;
///
/// let client = BaseClientBuilder::in_memory()
///     .build_client(Client::builder().homeserver_url("https://matrix.example.org"))
///     .await?;
/// client.matrix_auth().login_username("alice", "secret").send().await?;
/// # Ok(()) }
/// ```
///
/// An application that makes its base client itself gives it with
/// [`StickyBuilder::with_base_client`](crate::StickyBuilder::with_base_client).
#[must_use = "it does nothing until `build_client`"]
pub struct BaseClientBuilder {
    store: Store,
    cross_process_lock: CrossProcessLockConfig,
    recipients: CollectStrategy,
    decryption: Option<DecryptionSettings>,
    threading: ThreadingSupport,
    dm_room: DmRoomDefinition,
}

enum Store {
    Memory,
    #[cfg(feature = "sqlite")]
    Sqlite {
        config: SqliteStoreConfig,
        cache: SqliteStoreConfig,
        /// Where it is; matrix-sdk's settings do not tell.
        folder: Option<PathBuf>,
    },
    Custom(StoreConfig),
}

impl BaseClientBuilder {
    fn new(store: Store) -> Self {
        Self {
            store,
            // These are what a `ClientBuilder` has unless told.
            cross_process_lock: CrossProcessLockConfig::multi_process("main"),
            recipients: CollectStrategy::default(),
            decryption: None,
            threading: ThreadingSupport::Disabled,
            dm_room: DmRoomDefinition::default(),
        }
    }

    /// Keeps everything in memory: after a restart it is another device.
    pub fn in_memory() -> Self {
        Self::new(Store::Memory)
    }

    /// Keeps everything in SQLite databases in this folder, encrypted with the passphrase.
    #[cfg(feature = "sqlite")]
    pub fn sqlite(path: impl AsRef<Path>, passphrase: Option<&str>) -> Self {
        let config = SqliteStoreConfig::new(path.as_ref()).passphrase(passphrase);
        let folder = Some(path.as_ref().to_owned());
        Self::new(Store::Sqlite { cache: config.clone(), config, folder })
    }

    /// As [`sqlite`](Self::sqlite), with settings; what is only cached (the event cache, media) goes
    /// to a folder of its own, if there is one.
    #[cfg(feature = "sqlite")]
    pub fn sqlite_with_config(
        config: SqliteStoreConfig,
        cache_path: Option<impl AsRef<Path>>,
    ) -> Self {
        let cache = match cache_path {
            Some(path) => config.clone().path(path),
            None => config.clone(),
        };
        Self::new(Store::Sqlite { config, cache, folder: None })
    }

    /// Keeps everything in these stores, with the cross-process lock that they have.
    pub fn with_store(store: StoreConfig) -> Self {
        Self::new(Store::Custom(store))
    }

    /// See [`ClientBuilder::cross_process_store_config`].
    pub fn cross_process_store_config(mut self, config: CrossProcessLockConfig) -> Self {
        self.cross_process_lock = config;
        self
    }

    /// See [`ClientBuilder::with_room_key_recipient_strategy`].
    pub fn with_room_key_recipient_strategy(mut self, strategy: CollectStrategy) -> Self {
        self.recipients = strategy;
        self
    }

    /// See [`ClientBuilder::with_decryption_settings`].
    pub fn with_decryption_settings(mut self, settings: DecryptionSettings) -> Self {
        self.decryption = Some(settings);
        self
    }

    /// See [`ClientBuilder::with_threading_support`].
    pub fn with_threading_support(mut self, threading: ThreadingSupport) -> Self {
        self.threading = threading;
        self
    }

    /// See [`ClientBuilder::dm_room_definition`].
    pub fn dm_room_definition(mut self, definition: DmRoomDefinition) -> Self {
        self.dm_room = definition;
        self
    }

    /// Builds the client.
    ///
    /// # Errors
    ///
    /// As [`ClientBuilder::build`].
    pub async fn build_client(self, client: ClientBuilder) -> Result<Client, ClientBuildError> {
        let client = client.cross_process_store_config(self.cross_process_lock.clone());
        let (store, folder) = match self.store {
            Store::Memory => (StoreConfig::new(self.cross_process_lock), None),
            #[cfg(feature = "sqlite")]
            Store::Sqlite { config, cache, folder } => {
                let store = StoreConfig::new(self.cross_process_lock)
                    .state_store(SqliteStateStore::open_with_config(&config).await?)
                    .crypto_store(SqliteCryptoStore::open_with_config(&config).await?)
                    .event_cache_store(SqliteEventCacheStore::open_with_config(&cache).await?)
                    .media_store(SqliteMediaStore::open_with_config(&cache).await?);
                (store, folder)
            }
            Store::Custom(store) => (store, None),
        };
        let mut base = BaseClient::new(store, self.threading, self.dm_room);
        base.room_key_recipient_strategy = self.recipients;
        if let Some(decryption) = self.decryption {
            base.decryption_settings = decryption;
        }
        let client = client.base_client(base.clone()).build().await?;
        // It is the one that this client was just built on.
        let attached = Encryptor::attach(&client, base);
        debug_assert_eq!(attached, Ok(()));
        if let Some(folder) = folder {
            let folder = Arc::new(StoreFolder(folder));
            store_folders().insert(&client, &folder);
            // So that it lives as long as the client.
            client.add_event_handler_context(folder);
        }
        Ok(client)
    }
}

/// Where a client has its store.
struct StoreFolder(PathBuf);

fn store_folders() -> MutexGuard<'static, ClientTable<StoreFolder>> {
    static FOLDERS: LazyLock<Mutex<ClientTable<StoreFolder>>> = LazyLock::new(Mutex::default);
    FOLDERS.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The folder that a client has its store in, where it was built with [`BaseClientBuilder::sqlite`].
pub(crate) fn store_folder(client: &Client) -> Option<PathBuf> {
    Some(store_folders().find(client)?.0.clone())
}

/// Says nothing of passphrases.
impl fmt::Debug for BaseClientBuilder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("BaseClientBuilder")
            .field("recipients", &self.recipients)
            .field("decryption", &self.decryption)
            .field("threading", &self.threading)
            .finish_non_exhaustive()
    }
}
