//! Media keys (MSC4143, `m.per_member`): for a frame cryptor.

use std::{fmt, sync::Arc, time::Duration};

use futures_util::{FutureExt as _, StreamExt as _, stream};
use matrix_sdk_sticky::rtc::{
    OwnMembership as SdkMembership,
    keys::{
        DevicePolicy as SdkPolicy, KeyChange as SdkChange, KeyConfig as SdkConfig,
        MediaKey as SdkKey, MediaKeys as SdkKeys, MediaKeysError, Participant as SdkParticipant,
    },
};
use tokio::runtime::Handle;

use crate::{
    listen::{ListenerError, Listening},
    runtime::{self, Held, Stage, Started, in_words, with_causes},
};

/// Which devices are trusted with keys, theirs and ours.
#[derive(Clone, Copy, Debug, uniffi::Enum)]
pub enum DevicePolicy {
    /// Any.
    Any,
    /// One that its owner has cross-signed.
    CrossSigned,
    /// One whose owner we have verified.
    Verified,
}

/// How keys are made and given out. What is not set is as MSC4143 recommends.
#[derive(Clone, Debug, uniffi::Record)]
pub struct KeyConfig {
    /// Which devices are trusted.
    #[uniffi(default = None)]
    pub devices: Option<DevicePolicy>,
    /// How long after a new key was sent it is used, 30 s at most; 5 s unless set.
    #[uniffi(default = None)]
    pub use_after: Option<Duration>,
    /// For how long after it was made a key is given to who joins, 5 minutes at most; 10 s unless set.
    #[uniffi(default = None)]
    pub grace: Option<Duration>,
    /// How long a key is used at most, from 1 minute to 1 day; 1 h unless set.
    #[uniffi(default = None)]
    pub rotate_every: Option<Duration>,
}

/// Whose media a key is for.
#[derive(Clone, Debug, uniffi::Record)]
pub struct Participant {
    /// The user.
    pub user_id: String,
    /// The id of the member.
    pub member_id: String,
    /// The device, as is proven.
    pub device_id: String,
    /// What a LiveKit SFU calls it (MSC4195).
    pub livekit_identity: String,
}

/// What a frame cryptor is to be told, in this order.
#[derive(Clone, Debug, uniffi::Enum)]
pub enum KeyChange {
    /// Forget all keys; those that count follow. Comes first.
    Reset,
    /// From now on our media are encrypted with this key.
    Own {
        /// We, as the member that we are now.
        participant: Participant,
        /// Its index, which goes with the media.
        index: u8,
        /// The key.
        key: Arc<MediaKey>,
    },
    /// A member's media may be encrypted with this key.
    Peer {
        /// Whose media.
        participant: Participant,
        /// Its index, which comes with the media.
        index: u8,
        /// The key.
        key: Arc<MediaKey>,
    },
    /// A member is gone: its keys can be forgotten.
    Gone {
        /// Who.
        participant: Participant,
    },
}

/// A key message that was not taken.
#[derive(Clone, Debug, uniffi::Record)]
pub struct Discarded {
    /// Who sent it.
    pub user_id: String,
    /// Why it was not taken.
    pub reason: String,
}

/// A key that media are encrypted with. A thing of its own, so that who prints what holds it prints no key.
#[derive(Debug, uniffi::Object)]
pub struct MediaKey {
    key: SdkKey,
}

#[uniffi::export]
impl MediaKey {
    /// The key: 32 bytes, or what an Element Call client sent, 16 to 64. A secret.
    pub fn bytes(&self) -> Vec<u8> {
        self.key.as_bytes().to_vec()
    }
}

impl MediaKey {
    fn of(key: SdkKey) -> Arc<Self> {
        Arc::new(Self { key })
    }
}

/// Is told the keys, one after another.
#[uniffi::export(with_foreign)]
pub trait KeyListener: Send + Sync {
    /// What to do with which key.
    fn on_key(&self, change: KeyChange) -> Result<(), ListenerError>;
}

/// Why there are no media keys.
#[derive(Clone, Debug, thiserror::Error, uniffi::Error)]
pub enum KeysError {
    /// The room is not encrypted.
    #[error("{reason}")]
    NotEncrypted {
        /// What to do.
        reason: String,
    },
    /// Whether the room is encrypted is not known: try again.
    #[error("{reason}")]
    EncryptionUnknown {
        /// Why.
        reason: String,
    },
    /// The client is not logged in.
    #[error("{reason}")]
    NotLoggedIn {
        /// What to do.
        reason: String,
    },
    /// The member has not joined.
    #[error("{reason}")]
    NotJoined {
        /// What to do.
        reason: String,
    },
    /// It has been started before: make another one.
    #[error("{reason}")]
    Again {
        /// The same in words.
        reason: String,
    },
    /// The library has been shut down.
    #[error("{reason}")]
    Stopped {
        /// How that is.
        reason: String,
    },
}

in_words!(Stopped as Stopped: KeysError);
in_words!(NotAgain as Again: KeysError);

impl From<MediaKeysError> for KeysError {
    fn from(error: MediaKeysError) -> Self {
        let reason = with_causes(&error);
        match error {
            MediaKeysError::NotEncrypted => Self::NotEncrypted { reason },
            MediaKeysError::EncryptionUnknown(_) => Self::EncryptionUnknown { reason },
            MediaKeysError::NotLoggedIn => Self::NotLoggedIn { reason },
            _ => Self::Stopped { reason },
        }
    }
}

/// The exchange of media keys, for as long as this is there: from [`start`](Self::start) on. To be dropped
/// after leaving.
#[derive(Debug, uniffi::Object)]
pub struct MediaKeys {
    exchange: Held<Arc<Exchange>>,
}

struct Exchange {
    /// The member, while it is there.
    membership: Box<dyn Fn() -> Option<Arc<SdkMembership>> + Send + Sync>,
    config: SdkConfig,
    keys: Started<SdkKeys>,
}

impl MediaKeys {
    pub(crate) fn new(
        runtime: &Handle,
        membership: impl Fn() -> Option<Arc<SdkMembership>> + Send + Sync + 'static,
        config: SdkConfig,
    ) -> Self {
        let membership = Box::new(membership);
        let exchange = Exchange { membership, config, keys: Started::default() };
        Self { exchange: Held::new(runtime, Arc::new(exchange)) }
    }
}

impl fmt::Debug for Exchange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Exchange").field("config", &self.config).finish_non_exhaustive()
    }
}

#[uniffi::export]
impl MediaKeys {
    /// Starts. The keys that others sent since the member joined are not lost. After an error it can be
    /// tried again.
    pub async fn start(&self) -> Result<(), KeysError> {
        let it = self.exchange.clone();
        let start = async move {
            let Exchange { membership, config, keys } = &*it;
            // Without it from here on: whoever lets go of the member meanwhile is gone.
            let started = membership().map(|membership| membership.media_keys(*config));
            let started = started.ok_or_else(|| KeysError::NotJoined {
                reason: "the member has not joined, or is gone: join first".to_owned(),
            })?;
            keys.start(async { Ok::<_, KeysError>(started.await?) }).await
        };
        runtime::on(self.exchange.runtime(), start).await?
    }

    /// Tells a frame cryptor all keys that count, and each change from then on; nothing before it is
    /// started.
    pub fn listen(&self, listener: Arc<dyn KeyListener>) -> Arc<Listening> {
        let changes = self.exchange.keys.wait().map(|stage| match stage {
            Stage::There(keys) => keys.changes().boxed(),
            _ => stream::empty().boxed(),
        });
        let changes = stream::once(changes).flatten().map(KeyChange::of);
        Listening::to(self.exchange.runtime(), changes, listener, |listener, change| {
            listener.on_key(change)
        })
    }

    /// The index of our key in use; none until it is known who is there.
    pub fn own_index(&self) -> Option<u8> {
        self.exchange.keys.get()?.own_index()
    }

    /// How many key messages of others were not taken.
    pub fn discarded(&self) -> u64 {
        self.exchange.keys.get().map_or(0, |keys| keys.discards().total)
    }

    /// The last of them, the oldest first: who sent it, and why it was not taken, in a word such as
    /// `not_trusted`.
    pub fn discards(&self) -> Vec<Discarded> {
        let discards = self.exchange.keys.get().map(|keys| keys.discards());
        let last = discards.into_iter().flat_map(|it| it.last);
        last.map(|it| Discarded {
            user_id: it.user_id.to_string(),
            reason: it.reason.as_str().to_owned(),
        })
        .collect()
    }
}

impl KeyConfig {
    pub(crate) fn read(self) -> SdkConfig {
        let mut config = SdkConfig::default();
        if let Some(devices) = self.devices {
            config = config.with_devices(match devices {
                DevicePolicy::Any => SdkPolicy::Any,
                DevicePolicy::CrossSigned => SdkPolicy::CrossSigned,
                DevicePolicy::Verified => SdkPolicy::Verified,
            });
        }
        if let Some(use_after) = self.use_after {
            config = config.with_use_after(use_after);
        }
        if let Some(grace) = self.grace {
            config = config.with_grace(grace);
        }
        if let Some(every) = self.rotate_every {
            config = config.with_rotate_every(Some(every));
        }
        config
    }
}

impl KeyChange {
    fn of(change: SdkChange) -> Self {
        match change {
            SdkChange::Own { participant, index, key } => Self::Own {
                participant: Participant::of(&participant),
                index,
                key: MediaKey::of(key),
            },
            SdkChange::Peer { participant, index, key } => Self::Peer {
                participant: Participant::of(&participant),
                index,
                key: MediaKey::of(key),
            },
            SdkChange::Gone { participant } => {
                Self::Gone { participant: Participant::of(&participant) }
            }
            _ => Self::Reset,
        }
    }
}

impl Participant {
    fn of(participant: &SdkParticipant) -> Self {
        Self {
            user_id: participant.user_id.to_string(),
            member_id: participant.member_id.clone(),
            device_id: participant.device_id.to_string(),
            livekit_identity: participant.livekit_identity(),
        }
    }
}
