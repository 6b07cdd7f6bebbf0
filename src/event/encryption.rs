//! How an event was protected, and by whose device.

use std::{fmt, sync::Arc};

use ruma::{OwnedDeviceId, OwnedUserId, UserId};

/// How an event was protected on its way, as the SDK knows it.
///
/// Encryption covers the type and the content, with the sticky key in it. The sticky object and the
/// timestamps are outside the encryption, and a server can lie about both ([MSC4354], "Security
/// Considerations").
///
/// [MSC4354]: https://github.com/matrix-org/matrix-spec-proposals/pull/4354
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum Encryption {
    /// The event was sent in the clear. In an encrypted room it still competes in the map, because
    /// otherwise everybody's map would differ. You decide what such an event may mean.
    #[default]
    Plaintext,
    /// A device of the sender encrypted the event.
    Encrypted(Arc<EncryptionDetails>),
    /// The event is encrypted with a session that is not the sender's own. Somebody passes another
    /// user's words off as theirs, or the SDK could not tell. It counts as not encrypted.
    ForeignSession(Arc<EncryptionDetails>),
}

impl Encryption {
    /// Returns whether the sender encrypted the event.
    pub fn is_encrypted(&self) -> bool {
        matches!(self, Self::Encrypted(_))
    }

    /// Returns whether the session's owner is unknown, and may become known later.
    pub(crate) fn is_unproven(&self) -> bool {
        match self {
            Self::ForeignSession(details) => details.verification == Verification::Unproven,
            _ => false,
        }
    }

    /// Returns what this is worth on an event of `sender`: a session of another user is a foreign one.
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

/// Whose device encrypted an event.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct EncryptionDetails {
    /// The owner of the session.
    pub owner: OwnedUserId,
    /// The owner's device, if the SDK knows it. Trust it only if `verification` is
    /// [`Verification::Verified`].
    pub device: Option<OwnedDeviceId>,
    /// How far the device is verified to be its owner's, at the time of decryption.
    pub verification: Verification,
}

impl EncryptionDetails {
    /// Makes details from their parts.
    pub fn new(
        owner: OwnedUserId,
        device: Option<OwnedDeviceId>,
        verification: Verification,
    ) -> Self {
        Self { owner, device, verification }
    }
}

/// How far a device is verified to be its owner's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Verification {
    /// The device is cross-signed by its owner, and we have verified the owner.
    Verified,
    /// The device is cross-signed by its owner, and we have not verified the owner.
    UnverifiedIdentity,
    /// We verified the owner once, and the owner has another identity now.
    VerificationViolation,
    /// The device is not cross-signed by its owner.
    UnsignedDevice,
    /// The device is unknown or deleted, or the session came from a source that proves nothing.
    Unproven,
}

/// Writes how the event was protected, for people.
impl fmt::Display for Encryption {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Plaintext => f.write_str("sent in plaintext"),
            Self::Encrypted(details) => write!(f, "encrypted by the sender's {details}"),
            Self::ForeignSession(details) => {
                write!(f, "not encrypted by the sender, but by {}'s {details}", details.owner)
            }
        }
    }
}

/// Writes the device, and how far it is verified, for people.
impl fmt::Display for EncryptionDetails {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.device {
            Some(device) => write!(f, "device {device} ({})", self.verification),
            None => write!(f, "unknown device ({})", self.verification),
        }
    }
}

/// Writes how far the device is verified, for people.
impl fmt::Display for Verification {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Verified => "cross-signed by its owner, whom we have verified",
            Self::UnverifiedIdentity => "cross-signed by its owner, whom we have not verified",
            Self::VerificationViolation => "its owner was verified, and has another identity now",
            Self::UnsignedDevice => "not cross-signed by its owner",
            Self::Unproven => "unproven",
        })
    }
}
