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
mod listening;
#[cfg(test)]
mod tests;

use std::{
    collections::{BTreeMap, HashMap},
    fmt,
    panic::AssertUnwindSafe,
    sync::{Arc, LazyLock, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use futures_util::FutureExt as _;
use matrix_sdk::{Client, HttpError, Room, RoomMemberships, RoomState};
use matrix_sdk_base::{
    BaseClient,
    crypto::{
        CollectStrategy, Device, DeviceData, EncryptionSettings, LocalTrust, MegolmError, OlmError,
        OlmMachine,
        olm::{OutboundGroupSession, ShareInfo},
        store::{CryptoStoreError, DynCryptoStore},
        types::requests::ToDeviceRequest,
        vodozemac::Curve25519PublicKey,
    },
};
use ruma::{
    OneTimeKeyAlgorithm, OwnedDeviceId, OwnedRoomId, OwnedServerName, OwnedUserId, RoomId,
    ServerName, TransactionId, UserId,
    api::client::{
        keys::{claim_keys, get_keys},
        to_device::send_event_to_device,
    },
    events::AnyMessageLikeEventContent,
    serde::Raw,
};
use serde_json::value::RawValue;
use tracing::{debug, warn};

pub use self::base_client::BaseClientBuilder;
pub(crate) use self::{
    base_client::store_folder,
    listening::{Told, listening},
};
use crate::{
    client_table::ClientTable,
    driver::{BoxFuture, SystemClock, jittered, pause, to_its_end},
    readers::{self, News, Readers},
    request::{REQUEST_TIMEOUT, Verdict, one_try},
    time::{Clock as _, Deadline},
};

/// How often the room key may change hands between sharing it and encrypting with it, before we
/// give up. Once is rare: it takes a send of the SDK's own in just that moment.
const ROUNDS: u32 = 32;

/// How long to wait before the next round, after others have used the room key up. The pauses double up
/// to the longest, and are jittered, so that we fall out of step with whoever sends in a loop.
const FIRST_PAUSE: Duration = Duration::from_millis(1);
const LONGEST_PAUSE: Duration = Duration::from_millis(250);

/// How long to wait, in milliseconds, for another process that works on the same crypto store: as
/// long as the SDK does.
const LONGEST_STORE_WAIT: u32 = 60_000;

/// When to give up a turn in a room. Each request in it ends after 15 s; a large room takes several.
const LONGEST_TURN: Duration = Duration::from_secs(180);

/// How many users' devices are asked for with one request, and how many one-time keys. More would take a
/// server longer than a request may take, and its answer would be lost.
const QUERIED_AT_ONCE: usize = 250;
/// (A test has few devices.)
const CLAIMED_AT_ONCE: usize = if cfg!(test) { 2 } else { 500 };

/// When to ask again for the devices of users whose server could not be reached: as the SDK's main loop
/// does, after 15 s, then twice as long each time, up to 15 min. Our server would wait 10 s for each try.
const FIRST_QUERY_PAUSE: Duration = Duration::from_secs(15);
const LONGEST_QUERY_PAUSE: Duration = Duration::from_secs(15 * 60);

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
    /// It took too long: others sent so much into the room meanwhile that the room key was used up
    /// before we came to use it, again and again; or the crypto store was locked for minutes. Try again.
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

impl EncryptError {
    /// Whether another try of the same may succeed, and how long the server asks to wait before it.
    pub(crate) fn worth_another_try(&self) -> Option<Option<Duration>> {
        let Self::Server(error) = self else { return None };
        match Verdict::of(error) {
            Verdict::Again => Some(None),
            Verdict::RateLimited(retry_after) => Some(retry_after),
            Verdict::Hopeless => None,
        }
    }
}

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
    #[cfg(test)]
    pub(crate) session_id: String,
    /// The devices that were sent the room key, so that they can read it. A device that could not be
    /// reached, as its server had no one-time key for it, is not among them; see
    /// [`Encryptor::offer`].
    pub(crate) reached: Readers,
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
    /// The servers that could not be reached when we asked for devices.
    unreachable: Mutex<HashMap<OwnedServerName, Unreachable>>,
}

struct Unreachable {
    /// When to ask again.
    until: Deadline,
    pause: Duration,
}

impl Encryptor {
    fn new(base: BaseClient) -> Self {
        let (turns, claims, unreachable) = Default::default();
        Self { base, turns, claims, unreachable }
    }

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
            let encryptor = Arc::new(Self::new(base));
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

    /// A number that changes when matrix-sdk makes its machine anew, as after another process wrote
    /// the store.
    pub(crate) async fn machine_number(&self) -> Option<usize> {
        let machine = self.base.olm_machine().await;
        machine.as_ref().map(|machine| std::ptr::from_ref(machine.store()).addr())
    }

    /// Encrypts an event, after everybody who may read it was sent the room key. One try: it is for
    /// the caller to try again where the server did not answer.
    ///
    /// The caller may give up waiting. What was begun goes on without it, so that no answer is lost that
    /// cost others a one-time key. The next call waits for that, and uses what came of it.
    pub(crate) async fn encrypt(
        self: &Arc<Self>,
        room: &Room,
        event_type: &str,
        content: Box<RawValue>,
    ) -> Result<Encrypted, EncryptError> {
        let content = Raw::from_json(content);
        let event_type = event_type.to_owned();
        self.in_turn(room, |encryptor, room| async move {
            encryptor.encrypt_now(&room, &event_type, &content).await
        })
        .await
    }

    /// Tries again to reach the devices that have not got the room key. Returns all that have it now.
    ///
    /// The SDK asks for the one-time keys of a device or a server that had none only after a while, from
    /// 15 s to 15 min. This asks at once: it is for the caller not to do it too often.
    ///
    /// As with [`encrypt`](Self::encrypt), what was begun goes on if the caller gives up.
    pub(crate) async fn offer(self: &Arc<Self>, room: &Room) -> Result<Readers, EncryptError> {
        self.in_turn(room, |encryptor, room| async move { encryptor.offer_now(&room).await }).await
    }

    /// The devices that an event in this room would be encrypted for now, as far as they are known
    /// without asking the server. It reads a row of the crypto store for each member; see
    /// [`readers_since`](Self::readers_since).
    #[cfg(test)]
    pub(crate) async fn readers(&self, room: &Room) -> Result<Readers, EncryptError> {
        let news = News { members: true, ..News::default() };
        self.readers_since(room, &Readers::default(), &news).await
    }

    /// As [`readers`](Self::readers), where the readers before are known, and the news since. It reads
    /// one row for each user who is new or has changed. News of users who are not in the room cost
    /// nothing.
    pub(crate) async fn readers_since(
        &self,
        room: &Room,
        known: &Readers,
        news: &News,
    ) -> Result<Readers, EncryptError> {
        let mut readers = Vec::new();
        let members = if news.members {
            self.members(room, recipients_of(room)).await?
        } else {
            let members = news.users.iter().filter(|user| known.has_member(user));
            let members: Vec<_> = members.cloned().collect();
            readers.extend(known.of_others(&members));
            members
        };
        if members.is_empty() {
            return Ok(readers.into_iter().collect());
        }
        let machine = self.machine().await?;
        for user in &members {
            if known.has_member(user) && !news.users.contains(user) {
                readers.extend(known.of(user));
                continue;
            }
            readers.push(readers::member(user));
            let devices = self.devices(&machine, user).await?;
            readers
                .extend(devices.iter().map(|(id, key)| readers::device(user, id, key.as_bytes())));
        }
        Ok(readers.into_iter().collect())
    }

    /// Runs something when it is the room's turn, and to its end although the caller may give up.
    async fn in_turn<T, F>(
        self: &Arc<Self>,
        room: &Room,
        work: impl FnOnce(Arc<Self>, Room) -> F,
    ) -> Result<T, EncryptError>
    where
        T: Send + 'static,
        F: Future<Output = Result<T, EncryptError>> + Send + 'static,
    {
        // Not in the task: who gives up before its turn has come leaves nothing behind.
        let turn = self.turn(room.room_id()).lock_owned().await;
        // Not before: we may have been put out of the room meanwhile.
        if room.state() != RoomState::Joined {
            return Err(EncryptError::NotJoined);
        }
        let work: BoxFuture<'static, _> = Box::pin(work(self.clone(), room.clone()));
        let done = to_its_end(LONGEST_TURN, async move {
            let _turn = turn;
            work.await
        });
        done.await.unwrap_or(Err(EncryptError::Busy))
    }

    async fn encrypt_now(
        &self,
        room: &Room,
        event_type: &str,
        content: &Raw<AnyMessageLikeEventContent>,
    ) -> Result<Encrypted, EncryptError> {
        let (machine, _store) = self.prepare(room).await?;
        self.claim_one_time_keys(room, &machine).await?;
        let mut longest = FIRST_PAUSE;
        for round in 1..=ROUNDS {
            match self.round(room, &machine, event_type, content).await? {
                Round::Encrypted(encrypted) => {
                    debug!(room_id = %room.room_id(), round, "encrypted");
                    return Ok(encrypted);
                }
                // Once more at once: whoever joined since, or left, is seen now, and the shorter it is
                // ago the less can have happened.
                Round::Shared => {}
                Round::Lost => {
                    pause(jittered(longest)).await;
                    longest = longest.saturating_mul(2).min(LONGEST_PAUSE);
                }
            }
        }
        Err(EncryptError::Busy)
    }

    async fn round(
        &self,
        room: &Room,
        machine: &OlmMachine,
        event_type: &str,
        content: &Raw<AnyMessageLikeEventContent>,
    ) -> Result<Round, EncryptError> {
        let room_id = room.room_id();
        match self.share_room_key(room, machine).await {
            Ok(Shared::Already) => {}
            Ok(Shared::Now) => return Ok(Round::Shared),
            Err(error) => {
                // Encrypting with a key that some may not have got is worse than a new one.
                if let Err(error) = machine.discard_room_key(room_id).await {
                    warn!(%room_id, %error, "could not discard a room key");
                }
                return Err(error);
            }
        }
        let Some(session) = machine.store().get_outbound_group_session(room_id).await? else {
            return Ok(Round::Lost);
        };
        if !session.shared() {
            // One of the SDK's own sends has rotated it since, and is sending it around.
            return Ok(Round::Lost);
        }
        if is_worn(&session).await {
            machine.discard_room_key(room_id).await?;
            return Ok(Round::Shared);
        }
        let reached = holders(&session).await;

        // The SDK's own sends hold none of our locks. Has one of them used the session up since
        // we looked, the machine panics: its `encrypt` begins with an assertion that the
        // session has not expired, and there is no way to ask that holds still. `is_worn` makes
        // that all but impossible: it takes as many sends as it leaves to the SDK between two
        // lines here. But in a room that rotates its key with each message, one is enough, and
        // any admin can make it one; and a session also expires by the clock. The assertion
        // comes before anything is changed or locked, so nothing is left half done.
        let encrypted = machine.encrypt_room_event_raw(room_id, event_type, content);
        let Ok(encrypted) = AssertUnwindSafe(encrypted).catch_unwind().await else {
            debug!(%room_id, "the room key was used up in just that moment");
            return Ok(Round::Lost);
        };
        let encrypted = encrypted?;
        // Or one of them has rotated the session: then it is one that nobody may have got yet.
        match encrypted.encryption_info.session_id() {
            Some(session_id) if session_id == session.session_id() => {
                Ok(Round::Encrypted(Encrypted {
                    content: encrypted.content.into_json(),
                    #[cfg(test)]
                    session_id: session_id.to_owned(),
                    reached,
                }))
            }
            _ => {
                debug!(%room_id, "the room key was rotated in just that moment");
                Ok(Round::Lost)
            }
        }
    }

    async fn offer_now(&self, room: &Room) -> Result<Readers, EncryptError> {
        let room_id = room.room_id();
        // Servers that could not be reached are asked at once.
        self.unreachable().clear();
        let (machine, _store) = self.prepare(room).await?;
        let held = async || {
            let session = machine.store().get_outbound_group_session(room_id).await?;
            Ok::<_, EncryptError>(match session {
                Some(session) => holders(&session).await,
                None => Readers::default(),
            })
        };
        let before = held().await?;
        let mut missing = BTreeMap::<_, BTreeMap<_, _>>::new();
        let mut is_reachable = false;
        for user in self.members(room, recipients_of(room)).await? {
            for (id, key) in self.devices(&machine, &user).await? {
                if before.has(&readers::device(&user, &id, key.as_bytes())) {
                    continue;
                }
                let sessions = crypto_store(&machine).get_sessions(&key.to_base64()).await?;
                if sessions.is_some_and(|sessions| !sessions.is_empty()) {
                    is_reachable = true;
                } else {
                    let devices = missing.entry(user.clone()).or_default();
                    devices.insert(id, OneTimeKeyAlgorithm::SignedCurve25519);
                }
            }
        }
        if !missing.is_empty() {
            let _claims = self.claims.lock().await;
            // Under an id that the SDK knows nothing of. It would else remember again who has failed.
            let id = TransactionId::new();
            is_reachable |= self.claim(room, &machine, &id, missing).await?;
        }
        // Nobody new: the SDK need not look through all devices, nor rotate the key for who has left.
        if !is_reachable {
            return Ok(before);
        }
        self.share_room_key(room, &machine).await?;
        held().await
    }

    /// What comes before sharing the room key: who is in the room, and which devices they have. Returns
    /// the machine and the lock on its store.
    async fn prepare(&self, room: &Room) -> Result<(OlmMachine, impl Send + use<>), EncryptError> {
        if !room.are_members_synced() {
            // Where members are loaded lazily, the others would get no key.
            room.sync_members().await?;
        }
        self.query_keys(room, &self.machine().await?).await?;
        let encryption = room.client().encryption();
        let store = encryption.spin_lock_store(Some(LONGEST_STORE_WAIT)).await?;
        // After that, as taking the lock may have made another machine.
        Ok((self.machine().await?, store))
    }

    /// The devices of a user that are given room keys, with their Curve25519 keys. Our own is not among
    /// them.
    async fn devices(
        &self,
        machine: &OlmMachine,
        user_id: &UserId,
    ) -> Result<Vec<(OwnedDeviceId, Curve25519PublicKey)>, EncryptError> {
        let is_by_trust = match self.base.room_key_recipient_strategy {
            CollectStrategy::AllDevices | CollectStrategy::ErrorOnVerifiedUserProblem => false,
            CollectStrategy::IdentityBasedStrategy | CollectStrategy::OnlyTrustedDevices => true,
        };
        let mut devices = crypto_store(machine).get_user_devices(user_id).await?;
        if is_by_trust || devices.values().any(DeviceData::is_dehydrated) {
            // Who has signed what takes more reads.
            let known = machine.get_user_devices(user_id, None).await?;
            devices.retain(|id, _| known.get(id).is_some_and(|device| self.gets_keys(&device)));
        } else {
            devices.retain(|_, device| !device.is_blacklisted());
        }
        if user_id == machine.user_id() {
            devices.remove(machine.device_id());
        }
        // A device without Olm can be sent nothing, by anybody.
        devices.retain(|_, device| device.supports_olm());
        let devices = devices.into_iter();
        Ok(devices.filter_map(|(id, device)| Some((id, device.curve25519_key()?))).collect())
    }

    /// As the SDK decides it when it shares a room key.
    fn gets_keys(&self, device: &Device) -> bool {
        let trust = device.local_trust_state();
        match self.base.room_key_recipient_strategy {
            CollectStrategy::AllDevices | CollectStrategy::ErrorOnVerifiedUserProblem => {
                trust != LocalTrust::BlackListed
                    && (!device.is_dehydrated() || device.is_cross_signed_by_owner())
            }
            CollectStrategy::IdentityBasedStrategy => device.is_cross_signed_by_owner(),
            CollectStrategy::OnlyTrustedDevices => match trust {
                LocalTrust::BlackListed => false,
                LocalTrust::Ignored | LocalTrust::Verified => true,
                LocalTrust::Unset => device.is_cross_signing_trusted(),
            },
        }
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
        {
            let (now, unreachable) = (SystemClock.now(), self.unreachable());
            unknown.retain(|member| {
                let server = unreachable.get(member.server_name());
                tracked.get(member) != Some(&false)
                    && server.is_none_or(|server| server.until.is_over(now))
            });
        }

        let client = room.client();
        let own = machine.user_id();
        if unknown.iter().any(|member| member == own) {
            // The SDK's way: it also brings its own verification state up to date.
            client.encryption().request_user_identity(own).await?;
            unknown.retain(|member| member != own);
        }
        for users in unknown.chunks(QUERIED_AT_ONCE) {
            let (id, wanted) = machine.query_keys_for_users(users.iter().map(AsRef::as_ref));
            let mut request = get_keys::v3::Request::new();
            request.device_keys = wanted.device_keys;
            let answer = client.send(request).with_request_config(one_try(REQUEST_TIMEOUT)).await?;
            machine.mark_request_as_sent(&id, &answer).await?;
            self.handle_failures(&answer);
        }
        Ok(())
    }

    fn handle_failures(&self, answer: &get_keys::v3::Response) {
        let (now, mut unreachable) = (SystemClock.now(), self.unreachable());
        for user in answer.device_keys.keys() {
            unreachable.remove(user.server_name());
        }
        for server in answer.failures.keys().filter_map(|name| ServerName::parse(name).ok()) {
            let pause = unreachable.get(&server).map_or(FIRST_QUERY_PAUSE, |before| {
                before.pause.saturating_mul(2).min(LONGEST_QUERY_PAUSE)
            });
            unreachable.insert(server, Unreachable { until: now.deadline(pause), pause });
        }
    }

    fn unreachable(&self) -> MutexGuard<'_, HashMap<OwnedServerName, Unreachable>> {
        self.unreachable.lock().unwrap_or_else(PoisonError::into_inner)
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
            self.claim(room, machine, &id, request.one_time_keys).await?;
        }
        Ok(())
    }

    /// Claims a one-time key of each of these devices. Returns whether there was any.
    async fn claim(
        &self,
        room: &Room,
        machine: &OlmMachine,
        id: &TransactionId,
        devices: BTreeMap<OwnedUserId, BTreeMap<OwnedDeviceId, OneTimeKeyAlgorithm>>,
    ) -> Result<bool, EncryptError> {
        let devices: Vec<_> = devices
            .into_iter()
            .flat_map(|(user, devices)| {
                devices.into_iter().map(move |(id, algorithm)| (user.clone(), id, algorithm))
            })
            .collect();
        let mut all = claim_keys::v3::Response::new(BTreeMap::new());
        for devices in devices.chunks(CLAIMED_AT_ONCE) {
            let mut wanted = BTreeMap::<_, BTreeMap<_, _>>::new();
            for (user, id, algorithm) in devices.iter().cloned() {
                wanted.entry(user).or_default().insert(id, algorithm);
            }
            let request = claim_keys::v3::Request::new(wanted);
            match room.client().send(request).with_request_config(one_try(REQUEST_TIMEOUT)).await {
                Ok(answer) => {
                    all.failures.extend(answer.failures);
                    for (user, devices) in answer.one_time_keys {
                        all.one_time_keys.entry(user).or_default().extend(devices);
                    }
                }
                Err(error) => {
                    // What was given so far is used all the same. Under another id, so that the SDK does
                    // not take those for failed who were not asked for.
                    machine.mark_request_as_sent(&TransactionId::new(), &all).await?;
                    return Err(error.into());
                }
            }
        }
        machine.mark_request_as_sent(id, &all).await?;
        Ok(!all.one_time_keys.is_empty())
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
            let answer =
                room.client().send(request).with_request_config(one_try(REQUEST_TIMEOUT)).await?;
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

/// What came of one try to encrypt.
enum Round {
    Encrypted(Encrypted),
    /// The room key is on its way, or has to be made anew first.
    Shared,
    /// Somebody else has used the room key up, or made another one.
    Lost,
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

/// The devices that were sent the key of a session.
async fn holders(session: &OutboundGroupSession) -> Readers {
    // There is no other way to ask. The SDK does the same each time that it encrypts, to store it.
    let shared = session.pickle().await.shared_with_set;
    let shared = shared.iter().flat_map(|(user, devices)| {
        devices.iter().filter_map(move |(id, info)| match info {
            ShareInfo::Shared(with) => Some(readers::device(user, id, with.sender_key.as_bytes())),
            ShareInfo::Withheld(_) => None,
        })
    });
    shared.collect()
}

/// The store that the machine works on, past the machine's own methods of the same names.
fn crypto_store(machine: &OlmMachine) -> &DynCryptoStore {
    &**machine.store()
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
type Attached = ClientTable<Encryptor>;

fn attached() -> MutexGuard<'static, Attached> {
    static ATTACHED: LazyLock<Mutex<Attached>> = LazyLock::new(Mutex::default);
    ATTACHED.lock().unwrap_or_else(PoisonError::into_inner)
}
