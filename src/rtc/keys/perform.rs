//! Performing: looking up devices, and sending keys to them.
//!
//! In: a key, and to whom it goes. Out: Olm-encrypted to-device messages, and who was not sent one. Never: a
//! decision about who gets a key.

use std::collections::{BTreeMap, BTreeSet};

use matrix_sdk::{Client, Room, encryption::identities::Device};
use matrix_sdk_base::crypto::CollectStrategy;
use ruma::{
    DeviceId, OwnedDeviceId, OwnedUserId, RoomId, UserId, events::AnyToDeviceEventContent,
    serde::Raw,
};
use tracing::debug;

use super::{DevicePolicy, KeySendFailure, Participant, Sender, Sending, message};
use crate::{event::Verification, rtc::dialect::Dialect};

/// How long to wait, in milliseconds, for another process that works on the same crypto store.
const STORE_LOCK_TIMEOUT_MS: u32 = 30_000;

/// Why nobody was sent anything.
enum Failed {
    Request,
    Encryption,
}

/// The users and devices that were not served.
type NotServed = Vec<(OwnedUserId, OwnedDeviceId)>;

/// The devices of participants, by the dialect that they read: MSC4143 first.
type Devices<'a> = [Vec<(Device, &'a Participant)>; 2];

/// Looks up devices, and sends to them.
pub(super) struct Performer {
    room: Room,
    policy: DevicePolicy,
}

impl Performer {
    pub(super) fn new(room: Room, policy: DevicePolicy) -> Self {
        Self { room, policy }
    }

    pub(super) fn client(&self) -> Client {
        self.room.client()
    }

    pub(super) fn room_id(&self) -> &RoomId {
        self.room.room_id()
    }

    /// Sends a key. Removes every device that got the key from `failures`.
    pub(super) async fn send(
        &self,
        Sending { index, key, to, .. }: &Sending,
        own: &Participant,
        now_ms: u64,
        failures: &mut BTreeMap<Participant, KeySendFailure>,
    ) {
        let devices = self.trusted_devices(to, failures).await;
        // Another process that works on the same store has the same Olm sessions.
        let encryption = self.client().encryption();
        let _store = match encryption.spin_lock_store(Some(STORE_LOCK_TIMEOUT_MS)).await {
            Ok(store) => store,
            Err(error) => {
                debug!(%error, "a media key was not sent, as the crypto store is locked");
                return;
            }
        };
        for (dialect, devices) in [Dialect::Msc4143, Dialect::ElementCall].into_iter().zip(devices)
        {
            if devices.is_empty() {
                continue;
            }
            let written = message::write(dialect, self.room_id(), own, (*index, key), now_ms);
            let Ok((event_type, content)) = written else { continue };
            let Ok(content) = Raw::from_json_string(String::clone(&content)) else { continue };
            let to = devices.iter().map(|(device, _)| device).collect();
            let Ok(not_served) = self.send_to_all(to, event_type, &content).await else { continue };
            for (_, participant) in devices {
                let Participant { user_id, device_id, .. } = participant;
                let is_it = |(user, device): &_| user == user_id && device == device_id;
                if !not_served.iter().any(is_it) {
                    failures.remove(participant);
                }
            }
        }
    }

    /// Finds the devices that may have a key. If one is not known, the server is asked once for its user's.
    /// Notes in `failures` that nothing is sent to the others.
    async fn trusted_devices<'a>(
        &self,
        to: &'a [(Participant, Dialect)],
        failures: &mut BTreeMap<Participant, KeySendFailure>,
    ) -> Devices<'a> {
        let mut devices = Devices::default();
        let mut asked = BTreeSet::new();
        for (participant, dialect) in to {
            let Participant { user_id, device_id, .. } = participant;
            let mut device = self.device(user_id, device_id).await;
            if device.is_none() && asked.insert(user_id) {
                self.ask_for_devices(user_id).await;
                device = self.device(user_id, device_id).await;
            }
            match device {
                Some(device) if self.policy.allows(self.verification(&device).await) => {
                    let by_dialect = usize::from(*dialect == Dialect::ElementCall);
                    devices[by_dialect].push((device, participant));
                }
                device => {
                    let is_known = device.is_some();
                    debug!(%user_id, %device_id, is_known, "a device is not sent a media key");
                    failures.insert(participant.clone(), KeySendFailure::NotSent);
                }
            }
        }
        devices
    }

    /// Sends the same to these devices, and to each of them alone if it cannot be encrypted for all: one such
    /// device is no reason to leave out the others. Returns the devices that were not served.
    async fn send_to_all(
        &self,
        to: Vec<&Device>,
        event_type: &str,
        content: &Raw<AnyToDeviceEventContent>,
    ) -> Result<NotServed, Failed> {
        let not_served = self.send_to(to.clone(), event_type, content).await;
        let Err(Failed::Encryption) = not_served else { return not_served };
        let mut not_served = Vec::new();
        for device in to {
            match self.send_to(vec![device], event_type, content).await {
                Ok(it) => not_served.extend(it),
                Err(_) => {
                    not_served.push((device.user_id().to_owned(), device.device_id().to_owned()));
                }
            }
        }
        Ok(not_served)
    }

    /// Sends the same to these devices. Returns the devices that were not served.
    async fn send_to(
        &self,
        devices: Vec<&Device>,
        event_type: &str,
        content: &Raw<AnyToDeviceEventContent>,
    ) -> Result<NotServed, Failed> {
        let encryption = self.room.client().encryption();
        // Which devices are trusted was decided before; this leaves out those that the user blocked.
        let strategy = CollectStrategy::AllDevices;
        let sent = encryption
            .encrypt_and_send_raw_to_device(devices, event_type, content.clone(), strategy)
            .await;
        sent.map_err(|error| {
            debug!(%error, "a media key was not sent");
            match error {
                matrix_sdk::Error::Http(_) => Failed::Request,
                _ => Failed::Encryption,
            }
        })
    }

    async fn device(&self, user_id: &UserId, device_id: &DeviceId) -> Option<Device> {
        match self.room.client().encryption().get_device(user_id, device_id).await {
            Ok(device) => device,
            Err(error) => {
                debug!(%error, "a device could not be read from the store");
                None
            }
        }
    }

    /// How far the device that sent something is known to be its owner's: the one with that key, as
    /// another could be called the same.
    pub(super) async fn verification_of(&self, sender: &Sender) -> Verification {
        match self.device(&sender.user_id, &sender.device_id).await {
            Some(device)
                if device
                    .curve25519_key()
                    .is_some_and(|it| it.to_base64() == sender.curve25519) =>
            {
                self.verification(&device).await
            }
            _ => Verification::Unproven,
        }
    }

    async fn verification(&self, device: &Device) -> Verification {
        if device.is_blacklisted() {
            // The user wants nothing of it.
            return Verification::Unproven;
        }
        if device.is_verified() {
            return Verification::Verified;
        }
        let identity = self.room.client().encryption().get_user_identity(device.user_id()).await;
        match identity {
            Ok(Some(identity)) if identity.has_verification_violation() => {
                Verification::VerificationViolation
            }
            Ok(Some(_)) if device.is_cross_signed_by_owner() => Verification::UnverifiedIdentity,
            _ => Verification::UnsignedDevice,
        }
    }

    pub(super) async fn ask_for_devices(&self, user_id: &UserId) {
        if let Err(error) = self.room.client().encryption().request_user_identity(user_id).await {
            debug!(%user_id, %error, "the server did not tell somebody's devices");
        }
    }
}
