//! Encrypt: what is sent into an encrypted room is encrypted, with the room key that the SDK's own
//! sends use.
//!
//! In: a room, the type and content of an event, the [`BaseClient`] that the application's client is
//! built on. Out: the same event as `m.room.encrypted`, and with which megolm session. It sends room
//! keys to the members' devices; the event itself it never sends.
//!
//! Why a [`BaseClient`]? matrix-sdk has no public way to encrypt without sending, and none to send
//! with the sticky parameter. What encrypts (the `OlmMachine`) is public on the base client, but a
//! client does not give its base client away; one can only be built on a base client that one has.

mod base_client;
#[cfg(test)]
mod tests;

use std::{
    collections::{HashMap, hash_map::DefaultHasher},
    fmt,
    hash::{Hash as _, Hasher as _},
    panic::AssertUnwindSafe,
    sync::{Arc, LazyLock, Mutex, PoisonError},
};

use futures_util::FutureExt as _;
use matrix_sdk::{Client, HttpError, Room, RoomMemberships, RoomState};
use matrix_sdk_base::{
    BaseClient,
    crypto::{
        EncryptionSettings, MegolmError, OlmError, OlmMachine, olm::OutboundGroupSession,
        store::CryptoStoreError, types::requests::ToDeviceRequest,
    },
};
use ruma::{
    OwnedRoomId, OwnedUserId, RoomId,
    api::client::{keys::get_keys, to_device::send_event_to_device},
    events::AnyMessageLikeEventContent,
    serde::Raw,
};
use serde_json::value::RawValue;
use tracing::{debug, warn};

pub use self::base_client::BaseClientBuilder;
use crate::{ext::OfClients, send::one_try};

/// How often the room key may change hands between sharing it and encrypting with it, before we
/// give up. Once is rare: it takes a send of the SDK's own in just that moment.
const ROUNDS: u32 = 16;

/// How long to wait, in milliseconds, for another process that works on the same crypto store: as
/// long as the SDK does.
const LONGEST_STORE_WAIT: u32 = 60_000;

/// The last messages of a session are left to the SDK's own sends; see [`is_worn`].
const LEFT_TO_THE_SDK: u64 = 5;

/// Why an event could not be encrypted. Nothing was sent.
#[derive(Debug)]
#[non_exhaustive]
pub enum EncryptError {
    /// The client is not logged in.
    NotLoggedIn,
    /// The user is not in the room: nobody there may get a room key of theirs.
    NotJoined,
    /// The room wants an algorithm that this client does not know.
    Algorithm,
    /// Others sent so much into the room meanwhile that the room key was used up before we came to
    /// use it, again and again. Try again.
    Busy,
    /// The server did not answer, or refused, what was asked of it first: the devices of the
    /// members, one-time keys, to take room keys. Try again.
    Server(Box<HttpError>),
    /// What the SDK says: a store failed, or a member's identity is not as
    /// [`CollectStrategy`](matrix_sdk_base::crypto::CollectStrategy) wants it.
    Sdk(Box<matrix_sdk::Error>),
}

impl fmt::Display for EncryptError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotLoggedIn => f.write_str("the client is not logged in"),
            Self::NotJoined => f.write_str("the user is not in the room"),
            Self::Algorithm => f.write_str("the room's encryption algorithm is not known"),
            Self::Busy => f.write_str("the room key is in too much use; try again"),
            Self::Server(error) => write!(f, "the server gave no keys, or took none: {error}"),
            Self::Sdk(error) => error.fmt(f),
        }
    }
}

impl std::error::Error for EncryptError {}

impl From<HttpError> for EncryptError {
    fn from(error: HttpError) -> Self {
        Self::Server(Box::new(error))
    }
}

impl From<matrix_sdk::Error> for EncryptError {
    fn from(error: matrix_sdk::Error) -> Self {
        match error {
            matrix_sdk::Error::Http(error) => Self::Server(error),
            error => Self::Sdk(Box::new(error)),
        }
    }
}

impl From<OlmError> for EncryptError {
    fn from(error: OlmError) -> Self {
        Self::Sdk(Box::new(error.into()))
    }
}

impl From<MegolmError> for EncryptError {
    fn from(error: MegolmError) -> Self {
        Self::Sdk(Box::new(error.into()))
    }
}

impl From<CryptoStoreError> for EncryptError {
    fn from(error: CryptoStoreError) -> Self {
        Self::Sdk(Box::new(error.into()))
    }
}

/// The base client given is not the one that the client is built on: it would encrypt in the name of
/// another device, or with another ratchet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct OtherBaseClient;

/// An event as it goes into an encrypted room.
pub(crate) struct Encrypted {
    /// The content of an `m.room.encrypted` event.
    pub(crate) content: Box<RawValue>,
    /// The megolm session that it is encrypted with.
    pub(crate) session_id: String,
}

/// What encrypts for one client.
pub(crate) struct Encryptor {
    base: BaseClient,
    /// Whose turn it is in a room: held from looking at its room key to having encrypted with it, so
    /// that no two of our sends make a room key each, or use up the one that the other has just
    /// looked at. One for each room, as the server may be slow to find out about the devices of one.
    turns: Mutex<HashMap<OwnedRoomId, Arc<tokio::sync::Mutex<()>>>>,
    /// Held while one-time keys are claimed, so that no two are for the same device.
    claims: tokio::sync::Mutex<()>,
}

impl Encryptor {
    /// Has a client encrypt with this base client, as long as the client lives.
    pub(crate) fn attach(client: &Client, base: BaseClient) -> Result<(), OtherBaseClient> {
        // All clones of a base client share this channel, and no others do. (The user and the device
        // would not tell: before the login there are none, and two base clients of the same device
        // have two ratchets.)
        let theirs = client.room_info_notable_update_receiver();
        if !theirs.same_channel(&base.room_info_notable_update_receiver()) {
            return Err(OtherBaseClient);
        }
        let mut attached = attached();
        if attached.find(client).is_none() {
            let (turns, claims) = Default::default();
            let encryptor = Arc::new(Self { base, turns, claims });
            attached.insert(client, &encryptor);
            // The one place of a client where others can leave something that it owns. It holds the
            // base client, which knows nothing of the client: no circle.
            client.add_event_handler_context(encryptor);
        }
        Ok(())
    }

    /// What encrypts for a client, if it is known.
    pub(crate) fn of(client: &Client) -> Option<Arc<Self>> {
        attached().find(client)
    }

    /// Encrypts an event, after everybody who may read it was sent the room key. One try: it is for
    /// the caller to try again where the server did not answer.
    ///
    /// Dropped before it is done it leaves nothing behind that hurts: room keys that were not sent
    /// yet are, by whoever sends next.
    pub(crate) async fn encrypt(
        &self,
        room: &Room,
        event_type: &str,
        content: Box<RawValue>,
    ) -> Result<Encrypted, EncryptError> {
        let client = room.client();
        if room.state() != RoomState::Joined {
            return Err(EncryptError::NotJoined);
        }
        if !room.are_members_synced() {
            // Where members are loaded lazily, the others would get no key.
            room.sync_members().await?;
        }
        let content = Raw::<AnyMessageLikeEventContent>::from_json(content);

        let room_id = room.room_id();
        let turn = self.turn(room_id);
        let _turn = turn.lock().await;
        self.query_keys(room, &self.machine().await?).await?;
        let _store = client.encryption().spin_lock_store(Some(LONGEST_STORE_WAIT)).await?;
        // After that, as taking the lock may have made another machine.
        let machine = self.machine().await?;
        self.claim_one_time_keys(room, &machine).await?;

        for _ in 0..ROUNDS {
            // Also when it has just been shared: whoever joined since, or left, is seen now, and
            // the shorter it is ago the less can have happened.
            match self.share_room_key(room, &machine).await {
                Ok(Shared::Already) => {}
                Ok(Shared::Now) => continue,
                Err(error) => {
                    // Encrypting with a key that some may not have got is worse than a new one.
                    if let Err(error) = machine.discard_room_key(room_id).await {
                        warn!(%room_id, %error, "could not discard a room key");
                    }
                    return Err(error);
                }
            }
            let Some(session) = machine.store().get_outbound_group_session(room_id).await? else {
                continue;
            };
            if !session.shared() {
                // One of the SDK's own sends has rotated it since, and is sending it around.
                continue;
            }
            if is_worn(&session).await {
                machine.discard_room_key(room_id).await?;
                continue;
            }
            let shared = session.session_id();

            // The SDK's own sends hold none of our locks. Has one of them used the session up since
            // we looked, the machine panics: its `encrypt` begins with an assertion that the
            // session has not expired, and there is no way to ask that holds still. `is_worn` makes
            // that all but impossible: it takes as many sends as it leaves to the SDK between two
            // lines here. But in a room that rotates its key with each message, one is enough, and
            // any admin can make it one; and a session also expires by the clock. The assertion
            // comes before anything is changed or locked, so nothing is left half done.
            let encrypted = machine.encrypt_room_event_raw(room_id, event_type, &content);
            let Ok(encrypted) = AssertUnwindSafe(encrypted).catch_unwind().await else {
                debug!(%room_id, "the room key was used up in just that moment");
                continue;
            };
            let encrypted = encrypted?;
            // Or one of them has rotated the session: then it is one that nobody may have got yet.
            match encrypted.encryption_info.session_id() {
                Some(session_id) if session_id == shared => {
                    return Ok(Encrypted {
                        content: encrypted.content.into_json(),
                        session_id: session_id.to_owned(),
                    });
                }
                _ => debug!(%room_id, "the room key was rotated in just that moment"),
            }
        }
        Err(EncryptError::Busy)
    }

    /// A number that changes with the devices that an event in this room would be encrypted for, as
    /// far as they are known without asking the server. Not cheap: reads one row of the crypto store
    /// for each member. To be asked when something may have changed it
    /// (`client.encryption().devices_stream()`, somebody's membership), not on a timer.
    pub(crate) async fn recipients(&self, room: &Room) -> Result<u64, EncryptError> {
        let machine = self.machine().await?;
        let mut members = self.members(room, recipients_of(room)).await?;
        members.sort_unstable();
        let mut hasher = DefaultHasher::new();
        for member in members {
            let devices = machine.get_user_devices(&member, None).await?;
            let mut devices: Vec<_> = devices.keys().collect();
            devices.sort_unstable();
            (member, devices).hash(&mut hasher);
        }
        Ok(hasher.finish())
    }

    fn turn(&self, room_id: &RoomId) -> Arc<tokio::sync::Mutex<()>> {
        let mut turns = self.turns.lock().unwrap_or_else(PoisonError::into_inner);
        turns.retain(|_, turn| Arc::strong_count(turn) > 1);
        turns.entry(room_id.to_owned()).or_default().clone()
    }

    /// A clone, as a lock on this one that is held while the base client takes the same is a
    /// deadlock where somebody waits to replace it.
    async fn machine(&self) -> Result<OlmMachine, EncryptError> {
        self.base.olm_machine().await.clone().ok_or(EncryptError::NotLoggedIn)
    }

    async fn members(
        &self,
        room: &Room,
        memberships: RoomMemberships,
    ) -> Result<Vec<OwnedUserId>, EncryptError> {
        let members = self.base.state_store().get_user_ids(room.room_id(), memberships).await;
        members.map_err(|error| matrix_sdk::Error::from(error).into())
    }

    /// Asks for the devices of members of whom nothing is known, or who have changed them.
    async fn query_keys(&self, room: &Room, machine: &OlmMachine) -> Result<(), EncryptError> {
        let tracked = machine.store().load_tracked_users().await?;
        let tracked: HashMap<_, _> =
            tracked.into_iter().map(|user| (user.user_id, user.dirty)).collect();
        let mut unknown = self.members(room, RoomMemberships::ACTIVE).await?;
        unknown.retain(|member| tracked.get(member) != Some(&false));

        let client = room.client();
        let own = machine.user_id();
        if unknown.iter().any(|member| member == own) {
            // The SDK's way: it also brings its own verification state up to date.
            client.encryption().request_user_identity(own).await?;
            unknown.retain(|member| member != own);
        }
        if unknown.is_empty() {
            return Ok(());
        }
        let (id, wanted) = machine.query_keys_for_users(unknown.iter().map(AsRef::as_ref));
        let mut request = get_keys::v3::Request::new();
        request.device_keys = wanted.device_keys;
        let answer = client.send(request).with_request_config(one_try()).await?;
        machine.mark_request_as_sent(&id, &answer).await?;
        Ok(())
    }

    /// Makes it possible to send something to each device of the members.
    async fn claim_one_time_keys(
        &self,
        room: &Room,
        machine: &OlmMachine,
    ) -> Result<(), EncryptError> {
        let _claims = self.claims.lock().await;
        let members = self.members(room, RoomMemberships::ACTIVE).await?;
        let missing = machine.get_missing_sessions(members.iter().map(AsRef::as_ref)).await?;
        if let Some((id, request)) = missing {
            let answer = room.client().send(request).with_request_config(one_try()).await?;
            machine.mark_request_as_sent(&id, &answer).await?;
        }
        Ok(())
    }

    /// Sends the room key to whoever has not got it; makes a new one first where that is due: it
    /// has expired, somebody has left, a device is gone.
    ///
    /// A new one is everybody's at once, and some milliseconds pass until it is taken for the devices.
    /// An event that is encrypted in between is read by nobody. Ours never is: `encrypt` looks again
    /// which session it was. One of the SDK's own may be, as it may with two sends of its own; the
    /// lock by which it keeps its sharing apart it shows nobody.
    async fn share_room_key(
        &self,
        room: &Room,
        machine: &OlmMachine,
    ) -> Result<Shared, EncryptError> {
        let settings = self.settings(room)?;
        let members = self.members(room, recipients_of(room)).await?;
        let requests = machine
            .share_room_key(room.room_id(), members.iter().map(AsRef::as_ref), settings)
            .await?;
        if requests.is_empty() {
            return Ok(Shared::Already);
        }
        for request in requests {
            let ToDeviceRequest { event_type, txn_id, messages } = &*request;
            let request = send_event_to_device::v3::Request::new_raw(
                event_type.clone(),
                txn_id.clone(),
                messages.clone(),
            );
            let answer = room.client().send(request).with_request_config(one_try()).await?;
            machine.mark_request_as_sent(txn_id, &answer).await?;
        }
        Ok(Shared::Now)
    }

    fn settings(&self, room: &Room) -> Result<EncryptionSettings, EncryptError> {
        let event = room.encryption_settings().ok_or(EncryptError::Algorithm)?;
        EncryptionSettings::from_possibly_redacted(
            event,
            room.history_visibility_or_default(),
            self.base.room_key_recipient_strategy.clone(),
        )
        .ok_or(EncryptError::Algorithm)
    }
}

impl fmt::Debug for Encryptor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Encryptor(..)")
    }
}

enum Shared {
    /// Everybody has it.
    Already,
    /// Some were sent it just now.
    Now,
}

/// Who may read what is sent into a room: those who were invited too, unless its history is only
/// for those who were there.
fn recipients_of(room: &Room) -> RoomMemberships {
    match room.history_visibility_or_default() {
        ruma::events::room::history_visibility::HistoryVisibility::Joined => RoomMemberships::JOIN,
        _ => RoomMemberships::ACTIVE,
    }
}

/// Whether a session is not to be used any more.
///
/// The SDK looks whether a session has expired when it shares it, and panics if it has when it then
/// encrypts. So whoever uses up a session in between has the application's own send panic. We leave
/// the last messages of a session to the SDK, which then never finds itself in that place because of
/// us, nor we because of it.
async fn is_worn(session: &OutboundGroupSession) -> bool {
    if session.expired() || session.invalidated() {
        return true;
    }
    // As the SDK clamps it.
    let messages = session.settings().rotation_period_msgs.clamp(1, 10_000);
    let left = messages.saturating_sub(session.message_index().await.into());
    left <= LEFT_TO_THE_SDK.min(messages / 2)
}

/// What encrypts for which client. An entry is found only while its
/// client lives, which owns it.
type Attached = OfClients<Encryptor>;

fn attached() -> std::sync::MutexGuard<'static, Attached> {
    static ATTACHED: LazyLock<Mutex<Attached>> = LazyLock::new(Mutex::default);
    ATTACHED.lock().unwrap_or_else(PoisonError::into_inner)
}
