//! Entries: what is sticky in a room now, as records.

use std::{sync::Arc, time::Duration};

use futures_util::StreamExt as _;
use matrix_sdk::ruma::{OwnedUserId, RoomId, UserId};
use matrix_sdk_sticky::{
    Change, Encryption as SdkEncryption, Entry as SdkEntry, EntryChange as SdkChange,
    RemovalReason as SdkReason, Snapshot, Subscription, View,
    event::{EncryptionDetails, StickyEvent, Verification as SdkVerification},
    time::Moment,
};
use tokio::runtime::Handle;

use crate::listen::{ListenerError, Listening, News};

/// One entry of a room's ephemeral map: a sticky event that is live (MSC4354).
#[derive(Clone, Debug, uniffi::Record)]
pub struct Entry {
    /// The room.
    pub room_id: String,
    /// The event.
    pub event_id: String,
    /// Its type, decrypted where it was encrypted.
    pub event_type: String,
    /// Who sent it.
    pub sender: String,
    /// Its sticky key; none for an event that stands for itself.
    pub sticky_key: Option<String>,
    /// Its content, a JSON object.
    pub content: String,
    /// When it was sent, by its sender's server, in milliseconds since 1970.
    pub sent_at_ms: u64,
    /// How much longer it is there, from the moment at which it was told. Counted while the machine
    /// sleeps.
    pub expires_in: Duration,
    /// How it was protected on its way.
    pub encryption: Encryption,
}

/// How an event was protected on its way. Only its type and its content were inside: a server can lie
/// about the time for which it is there.
#[derive(Clone, Debug, uniffi::Enum)]
pub enum Encryption {
    /// Not at all.
    Plaintext,
    /// Encrypted by a device of the sender.
    Encrypted {
        /// The device, where it is known.
        device_id: Option<String>,
        /// How far the device is known to be the sender's.
        verification: Verification,
    },
    /// Encrypted with a session of somebody else, who passes it off as the sender's. Counts as not
    /// encrypted.
    ForeignSession {
        /// Whose session it was.
        owner: String,
    },
}

/// How far a device is known to be its owner's.
#[derive(Clone, Copy, Debug, uniffi::Enum)]
pub enum Verification {
    /// Cross-signed by a user whom we have verified.
    Verified,
    /// Cross-signed by its owner, whom we have not verified.
    UnverifiedIdentity,
    /// The owner was verified once, and has another identity now.
    VerificationViolation,
    /// Not cross-signed by its owner.
    UnsignedDevice,
    /// Unknown, deleted, or from a source that proves nothing.
    Unproven,
}

/// Why an entry is not there any more.
#[derive(Clone, Copy, Debug, uniffi::Enum)]
pub enum RemovalReason {
    /// Its time was over.
    Expired,
    /// Its sender removed it.
    Removed,
    /// It was redacted.
    Redacted,
    /// Its sender is ignored.
    Ignored,
    /// We are not in the room any more.
    RoomLeft,
    /// For a reason that this version does not know.
    Other,
}

/// How one entry changed.
#[derive(Clone, Debug, uniffi::Enum)]
pub enum EntryChange {
    /// There is one where there was none.
    Added {
        /// The entry.
        entry: Entry,
    },
    /// Another event is the value of the same room, type, sender and key.
    Updated {
        /// The entry from now on.
        entry: Entry,
        /// The event that was there before.
        previous_event_id: String,
    },
    /// There is none any more.
    Removed {
        /// The entry as it was.
        entry: Entry,
        /// Why it is gone.
        reason: RemovalReason,
    },
}

/// Which entries are wanted: those that are as each field that is set says.
#[derive(Clone, Debug, Default, uniffi::Record)]
pub struct EntryFilter {
    /// Of this room.
    #[uniffi(default = None)]
    pub room_id: Option<String>,
    /// Of this type.
    #[uniffi(default = None)]
    pub event_type: Option<String>,
    /// By this user.
    #[uniffi(default = None)]
    pub sender: Option<String>,
}

/// A filter that can match nothing.
#[derive(Clone, Debug, thiserror::Error, uniffi::Error)]
pub enum FilterError {
    /// The room id is none.
    #[error("{reason}")]
    RoomId {
        /// What is wrong with it.
        reason: String,
    },
    /// The user id is none.
    #[error("{reason}")]
    UserId {
        /// What is wrong with it.
        reason: String,
    },
}

/// Is told what is sticky, and what changes. It is never called by two threads at a time, and may take
/// its time: what changes meanwhile comes as one change.
#[uniffi::export(with_foreign)]
pub trait EntryListener: Send + Sync {
    /// All that is there now, in order. Comes first.
    fn on_reset(&self, entries: Vec<Entry>) -> Result<(), ListenerError>;

    /// What changed since it was last called, each entry once. Never empty.
    fn on_changes(&self, changes: Vec<EntryChange>) -> Result<(), ListenerError>;
}

/// Tells a listener what a view has, and what changes from then on.
pub(crate) fn listen(
    runtime: &Handle,
    view: &View,
    listener: Arc<dyn EntryListener>,
) -> Arc<Listening> {
    let Subscription { snapshot, changes, .. } = view.subscribe();
    let changes = changes.map(|change: Change| {
        let now = change.told_at;
        change.entries.iter().map(|entry| EntryChange::of(entry, now)).collect()
    });
    let news = News::all(async move { entries(&snapshot) }, changes);
    Listening::to(runtime, news, listener, |listener, news| match news {
        News::Reset(entries) => listener.on_reset(entries),
        News::Changes(changes) => listener.on_changes(changes),
    })
}

pub(crate) fn entries(snapshot: &Snapshot) -> Vec<Entry> {
    let now = snapshot.taken_at();
    snapshot.iter().map(|entry| Entry::of(&entry, now)).collect()
}

pub(crate) fn user_id(text: String) -> Result<OwnedUserId, FilterError> {
    UserId::parse(text).map_err(|error| FilterError::UserId { reason: error.to_string() })
}

impl EntryFilter {
    /// Narrows a view.
    pub(crate) fn narrow(self, mut view: View) -> Result<View, FilterError> {
        if let Some(room_id) = self.room_id {
            let room_id = RoomId::parse(room_id)
                .map_err(|error| FilterError::RoomId { reason: error.to_string() })?;
            view = view.in_room(room_id);
        }
        if let Some(event_type) = self.event_type {
            view = view.of_type(event_type);
        }
        if let Some(sender) = self.sender {
            view = view.by_sender(user_id(sender)?);
        }
        Ok(view)
    }
}

impl Entry {
    pub(crate) fn of(entry: &SdkEntry, now: Moment) -> Self {
        let event: &Arc<StickyEvent> = entry.event();
        // One without an object as its content is not in the map.
        let content = event.content_raw().map_or("{}", |content| content.get());
        Self {
            room_id: entry.room_id().to_string(),
            event_id: event.event_id().to_string(),
            event_type: event.event_type().to_owned(),
            sender: event.sender().to_string(),
            sticky_key: event.sticky_key().map(str::to_owned),
            content: content.to_owned(),
            sent_at_ms: event.origin_server_ts_ms(),
            expires_in: event.expires_in(now),
            encryption: event.encryption().into(),
        }
    }
}

impl EntryChange {
    fn of(change: &SdkChange, now: Moment) -> Self {
        let entry = Entry::of(change.entry(), now);
        match change {
            SdkChange::Updated { previous, .. } => {
                Self::Updated { entry, previous_event_id: previous.event_id().to_string() }
            }
            SdkChange::Removed { reason, .. } => Self::Removed { entry, reason: (*reason).into() },
            _ => Self::Added { entry },
        }
    }
}

impl From<SdkEncryption> for Encryption {
    fn from(encryption: SdkEncryption) -> Self {
        match encryption {
            SdkEncryption::Encrypted(details) => {
                let EncryptionDetails { device, verification, .. } = &*details;
                Self::Encrypted {
                    device_id: device.as_ref().map(ToString::to_string),
                    verification: (*verification).into(),
                }
            }
            SdkEncryption::ForeignSession(details) => {
                Self::ForeignSession { owner: details.owner.to_string() }
            }
            _ => Self::Plaintext,
        }
    }
}

impl From<SdkVerification> for Verification {
    fn from(verification: SdkVerification) -> Self {
        match verification {
            SdkVerification::Verified => Self::Verified,
            SdkVerification::UnverifiedIdentity => Self::UnverifiedIdentity,
            SdkVerification::VerificationViolation => Self::VerificationViolation,
            SdkVerification::UnsignedDevice => Self::UnsignedDevice,
            _ => Self::Unproven,
        }
    }
}

impl From<SdkReason> for RemovalReason {
    fn from(reason: SdkReason) -> Self {
        match reason {
            SdkReason::Expired => Self::Expired,
            SdkReason::Removed => Self::Removed,
            SdkReason::Redacted => Self::Redacted,
            SdkReason::Ignored => Self::Ignored,
            SdkReason::RoomLeft => Self::RoomLeft,
            _ => Self::Other,
        }
    }
}
