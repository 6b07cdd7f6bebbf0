//! An event as it goes over the wire.

use std::fmt;

#[cfg(feature = "e2e-encryption")]
use crate::encrypt::{Encrypted, Encryptor};
use matrix_sdk::{EncryptionState, Room};
use ruma::{OwnedRoomId, OwnedTransactionId, RoomId, TransactionId};
use serde::{Deserialize, Serialize};
use serde_json::{
    Map, Value,
    value::{RawValue, to_raw_value},
};

use super::PrepareError;
use crate::{readers::Readers, wire::names};

/// An event that is ready to go out: encrypted if its room is, and with the transaction id of its
/// request.
#[derive(Clone, Serialize, Deserialize)]
pub(crate) struct ReadyEvent {
    room_id: OwnedRoomId,
    transaction_id: OwnedTransactionId,
    event_type: String,
    content: Box<RawValue>,
    sticky_ms: Option<u64>,
    /// Servers act on redactions, so these are sent in plaintext into encrypted rooms too.
    #[serde(default)]
    is_redaction: bool,
}

impl ReadyEvent {
    /// Makes an event what its room asks for now. It is never in plaintext if the room is encrypted,
    /// or may be. It is sticky for so many milliseconds, or not at all.
    ///
    /// One try: what the server has to be asked for is asked for once. Returns the event and the
    /// devices that hold the room key. In plaintext these are nobody, as everybody can read it.
    ///
    /// # Errors
    ///
    /// [`PrepareError`]: nothing was sent.
    pub(crate) async fn prepare(
        room: &Room,
        event_type: &str,
        content: &Map<String, Value>,
        sticky_ms: Option<u64>,
    ) -> Result<(Self, Readers), PrepareError> {
        // Never by the cached state: unknown would read as not encrypted.
        let state = room.latest_encryption_state().await;
        let state = state.map_err(|error| PrepareError::EncryptionUnknown(Box::new(error)))?;
        // With the sticky key: MSC4354 has it inside of the encryption.
        let content = to_raw_value(content).map_err(PrepareError::Content)?;
        if matches!(state, EncryptionState::NotEncrypted) {
            let event = Self::new(room, event_type.to_owned(), content, sticky_ms);
            return Ok((event, Readers::default()));
        }
        Self::encrypted(room, event_type, content, sticky_ms).await
    }

    #[cfg(feature = "e2e-encryption")]
    async fn encrypted(
        room: &Room,
        event_type: &str,
        content: Box<RawValue>,
        sticky_ms: Option<u64>,
    ) -> Result<(Self, Readers), PrepareError> {
        let encryptor = Encryptor::of(&room.client()).ok_or(PrepareError::NoBaseClient)?;
        let encrypted = encryptor.encrypt(room, event_type, content).await;
        let Encrypted { content, reached, .. } = encrypted.map_err(PrepareError::Encrypt)?;
        Ok((Self::new(room, names::ENCRYPTED.to_owned(), content, sticky_ms), reached))
    }

    #[cfg(not(feature = "e2e-encryption"))]
    async fn encrypted(
        _: &Room,
        _: &str,
        _: Box<RawValue>,
        _: Option<u64>,
    ) -> Result<(Self, Readers), PrepareError> {
        Err(PrepareError::NoBaseClient)
    }

    /// Makes a redaction, which is never encrypted.
    ///
    /// # Errors
    ///
    /// [`PrepareError::Content`].
    pub(crate) fn redaction(
        room: &Room,
        content: &Map<String, Value>,
        sticky_ms: Option<u64>,
    ) -> Result<Self, PrepareError> {
        let content = to_raw_value(content).map_err(PrepareError::Content)?;
        let event = Self::new(room, names::REDACTION.to_owned(), content, sticky_ms);
        Ok(Self { is_redaction: true, ..event })
    }

    fn new(
        room: &Room,
        event_type: String,
        content: Box<RawValue>,
        sticky_ms: Option<u64>,
    ) -> Self {
        let (room_id, transaction_id) = (room.room_id().to_owned(), TransactionId::new());
        Self { room_id, transaction_id, event_type, content, sticky_ms, is_redaction: false }
    }

    /// Replaces the transaction id, before the first try.
    pub(crate) fn with_transaction_id(mut self, transaction_id: OwnedTransactionId) -> Self {
        self.transaction_id = transaction_id;
        self
    }

    pub(crate) fn room_id(&self) -> &RoomId {
        &self.room_id
    }

    pub(crate) fn transaction_id(&self) -> &TransactionId {
        &self.transaction_id
    }

    /// Returns its type. An encrypted event has its own type inside of the encryption.
    pub(crate) fn event_type(&self) -> &str {
        &self.event_type
    }

    pub(crate) fn content(&self) -> &RawValue {
        &self.content
    }

    pub(crate) fn sticky_ms(&self) -> Option<u64> {
        self.sticky_ms
    }

    pub(crate) fn is_encrypted(&self) -> bool {
        self.event_type == names::ENCRYPTED
    }

    /// Whether it may go into an encrypted room as it is.
    pub(super) fn is_protected(&self) -> bool {
        self.is_encrypted() || self.is_redaction
    }
}

impl fmt::Debug for ReadyEvent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ReadyEvent")
            .field("room_id", &self.room_id)
            .field("event_type", &self.event_type)
            .field("sticky_ms", &self.sticky_ms)
            .finish_non_exhaustive()
    }
}

/// Returns a content as the object that it has to be.
pub(crate) fn as_object(content: &impl Serialize) -> Result<Map<String, Value>, serde_json::Error> {
    serde_json::to_value(content).and_then(serde_json::from_value)
}
