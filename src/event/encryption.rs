//! How an event was protected, and by whose device.

use std::sync::Arc;

use ruma::{OwnedDeviceId, OwnedUserId, UserId};

/// How an event was protected on its way, as the SDK knows it.
///
/// Only the type and the content were inside. The sticky object and the timestamps are outside the
/// encryption: a server can lie about both.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum Encryption {
    /// Sent in the clear. In an encrypted room it still competes in the map: everybody's map would
    /// differ otherwise. What it may mean there is the reader's to decide.
    #[default]
    Plaintext,
    /// Encrypted by a device of the sender.
    Encrypted(Arc<EncryptionDetails>),
    /// Encrypted with a session that is not the sender's own: somebody passes another's words off
    /// as theirs, or the SDK could not tell. Counts as not encrypted.
    ForeignSession(Arc<EncryptionDetails>),
}

impl Encryption {
    /// Whether the event was encrypted by its sender.
    pub fn is_encrypted(&self) -> bool {
        matches!(self, Self::Encrypted(_))
    }

    /// Whether it is not known whose session it was, and may come to be.
    pub(crate) fn is_unproven(&self) -> bool {
        match self {
            Self::ForeignSession(details) => details.verification == Verification::Unproven,
            _ => false,
        }
    }

    /// What it is worth on an event of this sender.
    pub(crate) fn of_sender(self, sender: &UserId) -> Self {
        match self {
            Self::Encrypted(details) if details.owner != sender => Self::ForeignSession(details),
            other => other,
        }
    }

    pub(super) fn into_details(self) -> Option<Arc<EncryptionDetails>> {
        match self {
            Self::Plaintext => None,
            Self::Encrypted(details) | Self::ForeignSession(details) => Some(details),
        }
    }
}

/// Who encrypted an event.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct EncryptionDetails {
    /// The owner of the session.
    pub owner: OwnedUserId,
    /// The owner's device, where the SDK knows it. Not to be trusted unless `verification` is
    /// [`Verification::Verified`].
    pub device: Option<OwnedDeviceId>,
    /// How far the device is known to be its owner's, at the time of decryption.
    pub verification: Verification,
}

impl EncryptionDetails {
    /// Details from their parts.
    pub fn new(
        owner: OwnedUserId,
        device: Option<OwnedDeviceId>,
        verification: Verification,
    ) -> Self {
        Self { owner, device, verification }
    }
}

/// How far a device is known to be its owner's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Verification {
    /// The device is cross-signed by a user whom we have verified.
    Verified,
    /// The device is cross-signed by its owner, whom we have not verified.
    UnverifiedIdentity,
    /// The owner was verified once, and has another identity now.
    VerificationViolation,
    /// The device is not cross-signed by its owner.
    UnsignedDevice,
    /// The device is unknown, deleted, or the session came from a source that proves nothing.
    Unproven,
}
