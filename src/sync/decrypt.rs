//! Decrypt: sticky events and the room keys that the client has.
//!
//! In: an encrypted event of a room. Out: what was inside and who put it there, or nothing if the key
//! has not come yet; then the event waits in the map, and is tried again with the key. Never: a request.

use std::sync::Arc;

use matrix_sdk::{
    Client, Room,
    deserialized_responses::{
        EncryptionInfo, TimelineEventKind, VerificationLevel, VerificationState,
    },
};
use matrix_sdk_base::crypto::TrustRequirement;
use ruma::{events::room::encrypted::OriginalSyncRoomEncryptedEvent, serde::Raw};
use serde_json::value::RawValue;
use tracing::debug;

use crate::event::{Encryption, EncryptionDetails, Verification};

/// What was inside an encrypted event.
pub(super) struct Decrypted {
    pub(super) clear: Box<RawValue>,
    pub(super) encryption: Encryption,
}

pub(super) async fn decrypt(room: &Room, outer: &RawValue) -> Option<Decrypted> {
    let event = Raw::<OriginalSyncRoomEncryptedEvent>::from_json(outer.to_owned());
    match room.decrypt_event(&event, None).await {
        Ok(event) => match event.kind {
            TimelineEventKind::Decrypted(decrypted) => Some(Decrypted {
                encryption: encryption(&decrypted.encryption_info),
                clear: decrypted.event.into_json(),
            }),
            _ => None,
        },
        Err(error) => {
            debug!(room_id = %room.room_id(), %error, "could not try to decrypt a sticky event");
            None
        }
    }
}

/// Whether the client's settings keep events from us if their sender's device is not trusted.
pub(super) fn needs_trust(client: &Client) -> bool {
    let required = client.decryption_settings().sender_device_trust_requirement;
    !matches!(required, TrustRequirement::Untrusted)
}

/// Returns what the SDK knows about who encrypted an event.
pub(super) fn encryption(info: &EncryptionInfo) -> Encryption {
    let verification = match &info.verification_state {
        VerificationState::Verified => Verification::Verified,
        VerificationState::Unverified(level) => match level {
            VerificationLevel::UnverifiedIdentity => Verification::UnverifiedIdentity,
            VerificationLevel::VerificationViolation => Verification::VerificationViolation,
            VerificationLevel::UnsignedDevice => Verification::UnsignedDevice,
            VerificationLevel::None(_) | VerificationLevel::MismatchedSender => {
                Verification::Unproven
            }
        },
    };
    let details = Arc::new(EncryptionDetails::new(
        info.sender.clone(),
        info.sender_device.clone(),
        verification,
    ));
    // `info.sender` is the sender that the event names. The SDK compares it with the session's
    // owner, where it knows the owner.
    match verification {
        Verification::Unproven => Encryption::ForeignSession(details),
        _ => Encryption::Encrypted(details),
    }
}
