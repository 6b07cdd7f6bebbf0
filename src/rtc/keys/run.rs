//! Media keys that are exchanged: the machine, and what performs its actions.
//!
//! In: snapshots of the session, decrypted to-device messages, news of devices. Out: to-device messages,
//! and a stream for the frame cryptor. It decides nothing that the machine could.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, VecDeque},
    fmt,
    pin::Pin,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    task::{Context, Poll, Waker},
    time::Duration,
};

use futures_core::Stream;
use futures_util::{
    StreamExt as _,
    stream::{self, FuturesUnordered},
};
use matrix_sdk::{
    Client, Room,
    deserialized_responses::{AlgorithmInfo, EncryptionInfo},
    encryption::identities::Device,
    event_handler::{EventHandlerDropGuard, RawEvent},
};
use matrix_sdk_base::crypto::CollectStrategy;
use ruma::{
    DeviceId, OwnedDeviceId, OwnedUserId, RoomId, UserId,
    events::{AnyToDeviceEvent, AnyToDeviceEventContent},
    serde::Raw,
};
use serde::Deserialize;
use serde_json::{Map, Value, value::RawValue};
use tokio::sync::Notify;
use tracing::{debug, warn};
use zeroize::Zeroizing;

use super::{
    DevicePolicy, DiscardReason, Discards, KeyChange, KeyConfig, KeyExchange, KeyMessage,
    KeySendFailure, Participant, SendId, Sender, Sending, message,
};
use crate::{
    driver::{BoxFuture, Task, Timer, before, optional, random_bytes, random_seed, until},
    encrypt::{Told, listening},
    event::Verification,
    rtc::{dialect::Dialect, snapshot::SessionSnapshot},
};

/// How long one send may take, with all that it needs first.
const SEND: Duration = Duration::from_secs(60);

/// How long it may take to find out about devices.
const LOOK: Duration = Duration::from_secs(30);

/// How long after it the server is not asked for the devices of the same user again.
const ASK_AGAIN: Duration = Duration::from_secs(60);

/// How many messages may wait for their turn.
const INCOMING: usize = 1_024;

/// How many of one sender's: of each of a few devices, with a rotation or two.
const INCOMING_OF_ONE: usize = 32;

/// The longest message that may have a key, in bytes: several times what one takes.
const LONGEST_MESSAGE: usize = 4_096;

/// How long to wait, in milliseconds, for another process that works on the same crypto store.
const LONGEST_STORE_WAIT: u32 = 30_000;

/// How much more than all that there is may be untold: then it is told anew.
const UNTOLD: usize = 64;

/// Why there are no media keys.
#[derive(Debug)]
#[non_exhaustive]
pub enum MediaKeysError {
    /// The room is not encrypted: MSC4143 has keys in encrypted rooms only. Send media without, or
    /// switch on encryption in the room.
    NotEncrypted,
    /// Nobody knows whether the room is encrypted, as the server did not say. Try again when the server
    /// can be reached.
    EncryptionUnknown(Box<matrix_sdk::Error>),
    /// The client is not logged in.
    NotLoggedIn,
    /// It was called outside a tokio runtime.
    NoRuntime,
}

impl fmt::Display for MediaKeysError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotEncrypted => f.write_str(
                "the room is not encrypted, and media keys are for encrypted rooms only: send media \
                 without, or switch on encryption in the room",
            ),
            Self::EncryptionUnknown(error) => write!(
                f,
                "whether the room is encrypted is not known; try again when the server can be \
                 reached: {error}"
            ),
            Self::NotLoggedIn => f.write_str("the client is not logged in"),
            Self::NoRuntime => f.write_str("media keys need a tokio runtime: call this inside one"),
        }
    }
}

impl std::error::Error for MediaKeysError {}

/// The key messages that a client gets for a room, from now on.
///
/// To be opened before our membership goes out: others send their keys as soon as they see that, and the
/// SDK keeps no to-device message that nobody asked for. Dropping it ends that.
pub(in crate::rtc) struct KeyInbox {
    waiting: Arc<Queue>,
    _handler: EventHandlerDropGuard,
}

impl KeyInbox {
    /// Collects from now on. Of what nobody reads the first thousand are kept, and of each sender the
    /// last 32, each of at most 4 KB: anybody can send such messages, also who is not in the room. What does
    /// not name the room is not kept.
    pub(in crate::rtc) fn open(room: &Room) -> Self {
        let waiting = Arc::<Queue>::default();
        let (into, room_id) = (waiting.clone(), room.room_id().to_owned());
        let client = room.client();
        let handler = client.add_event_handler(
            move |_: AnyToDeviceEvent, RawEvent(raw): RawEvent, info: Option<EncryptionInfo>| {
                if let Some(message) = KeyEvent::read(&raw, &room_id) {
                    into.add(message, info);
                }
                std::future::ready(())
            },
        );
        Self { waiting, _handler: client.event_handler_drop_guard(handler) }
    }

    async fn next(&mut self) -> Incoming {
        loop {
            if let Some(message) = self.waiting.take() {
                return message;
            }
            self.waiting.is_more.notified().await;
        }
    }
}

impl fmt::Debug for KeyInbox {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("KeyInbox").finish_non_exhaustive()
    }
}

/// Messages that wait for their turn, the oldest first.
#[derive(Default)]
struct Queue {
    messages: Mutex<VecDeque<Incoming>>,
    /// Whether it has been said that messages are dropped. Whoever sends many shall not fill the log.
    has_warned: AtomicBool,
    is_more: Notify,
}

impl Queue {
    fn add(&self, message: KeyEvent, info: Option<EncryptionInfo>) {
        let mut messages = self.messages();
        let is_theirs = |(other, _): &Incoming| other.sender == message.sender;
        let oldest = messages.iter().position(is_theirs);
        let are_many = messages.iter().filter(|it| is_theirs(it)).count() >= INCOMING_OF_ONE;
        if (are_many || messages.len() >= INCOMING) && !self.has_warned.swap(true, Relaxed) {
            let sender = &message.sender;
            warn!(%sender, "too many media keys at once: some are dropped; said only once");
        }
        match oldest {
            // The key that is in use now is among the newest.
            Some(oldest) if are_many => drop(messages.remove(oldest)),
            _ if messages.len() >= INCOMING => return,
            _ => {}
        }
        messages.push_back((message, info));
        drop(messages);
        self.is_more.notify_one();
    }

    fn take(&self) -> Option<Incoming> {
        self.messages().pop_front()
    }

    fn messages(&self) -> MutexGuard<'_, VecDeque<Incoming>> {
        self.messages.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A to-device message that has a key, or says so.
struct KeyEvent {
    dialect: Dialect,
    sender: OwnedUserId,
    /// As text: what is read takes many times as much.
    content: Zeroizing<String>,
}

impl KeyEvent {
    /// Reads it, if it is one, and is for this room.
    fn read(raw: &RawValue, room_id: &RoomId) -> Option<Self> {
        #[derive(Deserialize)]
        struct Event<'a> {
            #[serde(rename = "type")]
            event_type: String,
            sender: OwnedUserId,
            #[serde(borrow)]
            content: &'a RawValue,
        }
        #[derive(Deserialize)]
        struct Named {
            room_id: String,
        }
        // Most are room keys, of which there are many.
        if !raw.get().contains("encryption_key") {
            return None;
        }
        let Event { event_type, sender, content } = serde_json::from_str(raw.get()).ok()?;
        let dialect = KeyMessage::dialect_of(&event_type)?;
        let content = content.get();
        let named: Named = serde_json::from_str(content).ok()?;
        (named.room_id == room_id.as_str() && content.len() <= LONGEST_MESSAGE).then(|| Self {
            dialect,
            sender,
            content: Zeroizing::new(content.to_owned()),
        })
    }
}

/// The media keys of one membership of ours. Dropping it ends the exchange, and the streams.
pub struct MediaKeys {
    shared: Arc<Shared>,
    _task: Task,
}

impl MediaKeys {
    /// Whether there can be any.
    ///
    /// # Errors
    ///
    /// [`MediaKeysError`].
    pub(in crate::rtc) async fn ensure(
        room: &Room,
        config: &KeyConfig,
    ) -> Result<(), MediaKeysError> {
        let client = room.client();
        client.session_meta().ok_or(MediaKeysError::NotLoggedIn)?;
        let encryption = room.latest_encryption_state().await;
        match encryption.map_err(|error| MediaKeysError::EncryptionUnknown(Box::new(error)))? {
            state if state.is_encrypted() => {}
            _ => return Err(MediaKeysError::NotEncrypted),
        }
        if config.devices() != DevicePolicy::Any {
            warn_if_not_signed(&client).await;
        }
        Ok(())
    }

    /// Starts the exchange, with what has come into `inbox` since it was opened. `sessions` tells, first
    /// of all now, our member's id and who is in its session. It is for who has [ensured](Self::ensure)
    /// that there can be any.
    ///
    /// # Errors
    ///
    /// [`MediaKeysError`].
    pub(in crate::rtc) fn start<S>(
        room: Room,
        inbox: KeyInbox,
        sessions: S,
        config: KeyConfig,
        timer: Arc<dyn Timer>,
    ) -> Result<Self, MediaKeysError>
    where
        S: Stream<Item = (String, SessionSnapshot)> + Send + 'static,
    {
        let client = room.client();
        let meta = client.session_meta().ok_or(MediaKeysError::NotLoggedIn)?;
        // The member id is told with the first snapshot.
        let own = Participant::new(&*meta.user_id, "", &*meta.device_id);
        let exchange = KeyExchange::new(
            room.room_id().to_owned(),
            own,
            config,
            Box::new(random_bytes),
            random_seed(),
        );
        let state = State { exchange: Some(exchange), subscribers: HashMap::new(), next: 0 };
        let shared = Arc::new(Shared { state: Mutex::new(state), timer });

        let run = Run {
            shared: shared.clone(),
            performer: Arc::new(Performer { room, policy: config.devices() }),
            asked: Arc::default(),
        };
        let task = Task::spawn(run.run(Box::pin(sessions), inbox));
        let task = task.ok_or(MediaKeysError::NoRuntime)?;
        Ok(Self { shared, _task: task })
    }

    /// All keys that count now, and each change from here on, for a frame cryptor. It begins with
    /// [`KeyChange::Reset`], and it ends when the exchange does.
    pub fn changes(&self) -> KeyChanges {
        let mut state = self.shared.state();
        let untold = state.exchange.as_ref().map(|it| it.all().into()).unwrap_or_default();
        let id = state.next;
        state.next += 1;
        state.subscribers.insert(id, Subscriber { untold, waker: None });
        KeyChanges { shared: self.shared.clone(), id }
    }

    /// The index of our key in use; `None` until it is known who is there.
    pub fn own_index(&self) -> Option<u8> {
        self.shared.state().exchange.as_ref()?.own_index()
    }

    /// How many key messages were not taken, and why the last ones were not.
    pub fn discards(&self) -> Discards {
        let state = self.shared.state();
        state.exchange.as_ref().map(|it| it.discards().clone()).unwrap_or_default()
    }
}

impl Drop for MediaKeys {
    fn drop(&mut self) {
        let wakers: Vec<_> = {
            let mut state = self.shared.state();
            // The keys with it.
            state.exchange = None;
            state.subscribers.values_mut().filter_map(|it| it.waker.take()).collect()
        };
        wakers.into_iter().for_each(Waker::wake);
    }
}

impl fmt::Debug for MediaKeys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let state = self.shared.state();
        f.debug_struct("MediaKeys").field("exchange", &state.exchange).finish_non_exhaustive()
    }
}

/// A stream of [`KeyChange`]s, in the order in which a frame cryptor is to apply them. It never lags:
/// who is slow is told all anew.
pub struct KeyChanges {
    shared: Arc<Shared>,
    id: u64,
}

impl Stream for KeyChanges {
    type Item = KeyChange;

    fn poll_next(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<KeyChange>> {
        let mut state = self.shared.state();
        if state.exchange.is_none() {
            return Poll::Ready(None);
        }
        let Some(subscriber) = state.subscribers.get_mut(&self.id) else {
            return Poll::Ready(None);
        };
        match subscriber.untold.pop_front() {
            Some(change) => Poll::Ready(Some(change)),
            None => {
                subscriber.waker = Some(cx.waker().clone());
                Poll::Pending
            }
        }
    }
}

impl Drop for KeyChanges {
    fn drop(&mut self) {
        self.shared.state().subscribers.remove(&self.id);
    }
}

impl fmt::Debug for KeyChanges {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("KeyChanges").field("id", &self.id).finish_non_exhaustive()
    }
}

struct Shared {
    state: Mutex<State>,
    timer: Arc<dyn Timer>,
}

struct State {
    /// `None` once the exchange is over.
    exchange: Option<KeyExchange>,
    subscribers: HashMap<u64, Subscriber>,
    next: u64,
}

struct Subscriber {
    untold: VecDeque<KeyChange>,
    waker: Option<Waker>,
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    /// Tells the subscribers what changed. Who waits for it is given back to be woken.
    fn publish(&mut self, changes: &[KeyChange]) -> Vec<Waker> {
        let Some(exchange) = &self.exchange else { return Vec::new() };
        if changes.is_empty() {
            return Vec::new();
        }
        let most = exchange.len() + UNTOLD;
        let wakers = self.subscribers.values_mut().filter_map(|subscriber| {
            subscriber.untold.extend(changes.iter().cloned());
            if subscriber.untold.len() > most {
                subscriber.untold = exchange.all().into();
            }
            subscriber.waker.take()
        });
        wakers.collect()
    }
}

type Incoming = (KeyEvent, Option<EncryptionInfo>);
type Sent = (SendId, BTreeMap<Participant, KeySendFailure>);
type Asked = Arc<Mutex<HashMap<OwnedUserId, crate::time::Deadline>>>;

struct Run {
    shared: Arc<Shared>,
    performer: Arc<Performer>,
    /// Whose devices the server was asked for.
    asked: Asked,
}

impl Run {
    async fn run<S>(self, mut sessions: S, mut inbox: KeyInbox)
    where
        S: Stream<Item = (String, SessionSnapshot)> + Send + Unpin,
    {
        let mut sessions_are_over = false;
        let mut news = news_of_devices(&self.performer.room.client());
        let mut sends: FuturesUnordered<BoxFuture<'static, Sent>> = FuturesUnordered::new();
        let mut looking: Option<BoxFuture<'static, Vec<Sender>>> = None;
        let mut must_look = false;
        loop {
            let deadline = match &self.shared.state().exchange {
                Some(exchange) => exchange.next_deadline(),
                None => return,
            };
            let timer = &self.shared.timer;
            tokio::select! {
                session = sessions.next(), if !sessions_are_over => match session {
                    Some((member_id, session)) => {
                        self.with(|exchange| {
                            if exchange.own().member_id != member_id {
                                exchange.handle_joined_as(member_id);
                            }
                            exchange.handle_session(timer.now(), &session);
                        });
                        must_look = true;
                    }
                    None => sessions_are_over = true,
                },
                (event, info) = inbox.next() => {
                    self.handle_incoming(event, info).await;
                    must_look = true;
                }
                Some((id, failures)) = sends.next() => {
                    self.with(|exchange| exchange.handle_sent(timer.now(), id, &failures));
                }
                Some(devices) = news.next() => {
                    self.with(|exchange| match devices {
                        Told::News(users) => {
                            users.iter().for_each(|user_id| exchange.handle_devices_change(user_id));
                        }
                        Told::Missed => exchange.handle_devices_missed(),
                    });
                    must_look = true;
                }
                senders = optional(&mut looking) => {
                    looking = None;
                    self.with(|exchange| {
                        senders.iter().for_each(|sender| exchange.handle_verification(sender));
                    });
                }
                () = until(&**timer, deadline) => {}
            }
            for sending in self.pump() {
                sends.push(self.send(sending));
            }
            if must_look && looking.is_none() {
                must_look = false;
                looking = self.look();
            }
        }
    }

    fn with(&self, handle: impl FnOnce(&mut KeyExchange)) {
        if let Some(exchange) = &mut self.shared.state().exchange {
            handle(exchange);
        }
    }

    /// Tells what changed, and gives back what is to be sent.
    fn pump(&self) -> Vec<Sending> {
        let now = self.shared.timer.now();
        let mut sendings = Vec::new();
        let wakers = {
            let mut state = self.shared.state();
            let Some(exchange) = &mut state.exchange else { return Vec::new() };
            while let Some(sending) = exchange.poll_send(now) {
                sendings.push(sending);
            }
            let mut changes = Vec::new();
            while let Some(change) = exchange.poll_change(now) {
                changes.push(change);
            }
            state.publish(&changes)
        };
        wakers.into_iter().for_each(Waker::wake);
        sendings
    }

    async fn handle_incoming(&self, event: KeyEvent, info: Option<EncryptionInfo>) {
        let KeyEvent { dialect, sender, content } = event;
        match self.check(dialect, &content, info).await {
            Ok((sender, message)) => {
                let now = self.shared.timer.now();
                self.with(|exchange| exchange.handle_message(now, sender, message));
            }
            Err(reason) => self.with(|exchange| exchange.handle_discarded(sender, reason)),
        }
    }

    async fn check(
        &self,
        dialect: Dialect,
        content: &str,
        info: Option<EncryptionInfo>,
    ) -> Result<(Sender, KeyMessage), DiscardReason> {
        let info = info.ok_or(DiscardReason::NotEncrypted)?;
        let AlgorithmInfo::OlmV1Curve25519AesSha2 { curve25519_public_key_base64 } =
            info.algorithm_info
        else {
            return Err(DiscardReason::NotEncrypted);
        };
        let device_id = info.sender_device.ok_or(DiscardReason::UnknownDevice)?;
        let content = serde_json::from_str::<Map<String, Value>>(content);
        let content = content.map_err(|_| DiscardReason::Malformed("content"))?;
        let message = KeyMessage::read(dialect, content).map_err(DiscardReason::Malformed)?;
        let mut sender = Sender::new(
            info.sender,
            device_id,
            curve25519_public_key_base64,
            Verification::Unproven,
        );
        sender.verification = self.performer.verification_of(&sender).await;
        Ok((sender, message))
    }

    /// Finds out more of those whose keys wait only as their device is not trusted.
    fn look(&self) -> Option<BoxFuture<'static, Vec<Sender>>> {
        let doubtful = self.shared.state().exchange.as_ref()?.doubtful();
        if doubtful.is_empty() {
            return None;
        }
        let (performer, timer) = (self.performer.clone(), self.shared.timer.clone());
        let asked = self.asked.clone();
        Some(Box::pin(async move {
            let deadline = timer.now().deadline(LOOK);
            let mut senders = Vec::new();
            for mut sender in doubtful {
                sender.verification = performer.verification_of(&sender).await;
                if sender.verification == Verification::Unproven
                    && may_ask(&asked, &*timer, &sender.user_id)
                {
                    before(&*timer, deadline, performer.ask_for_devices(&sender.user_id)).await;
                    sender.verification = performer.verification_of(&sender).await;
                }
                senders.push(sender);
            }
            senders
        }))
    }

    fn send(&self, sending: Sending) -> BoxFuture<'static, Sent> {
        let (performer, timer) = (self.performer.clone(), self.shared.timer.clone());
        let own = self.shared.state().exchange.as_ref().map(|it| it.own().clone());
        Box::pin(async move {
            let id = sending.id;
            let mut failures =
                sending.to.iter().map(|(to, _)| (to.clone(), KeySendFailure::Unknown));
            let mut failures: BTreeMap<_, _> = failures.by_ref().collect();
            if let Some(own) = own {
                let now = timer.now();
                let send = performer.send(&sending, &own, now.unix_ms(), &mut failures);
                if before(&*timer, now.deadline(SEND), send).await.is_none() {
                    debug!(room_id = %performer.room.room_id(), "a media key was not sent in time");
                }
            }
            (id, failures)
        })
    }
}

/// Why nobody was sent anything.
enum Failed {
    Request,
    Encryption,
}

/// What knows devices, and sends to them.
struct Performer {
    room: Room,
    policy: DevicePolicy,
}

impl Performer {
    /// Sends a key. Of whoever is served nothing is left in `failures`.
    async fn send(
        &self,
        Sending { index, key, to, .. }: &Sending,
        own: &Participant,
        now_ms: u64,
        failures: &mut BTreeMap<Participant, KeySendFailure>,
    ) {
        let client = self.room.client();
        let encryption = client.encryption();
        let mut devices: [Vec<(Device, &Participant)>; 2] = Default::default();
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
                    devices[usize::from(*dialect == Dialect::ElementCall)]
                        .push((device, participant));
                }
                device => {
                    let is_known = device.is_some();
                    debug!(%user_id, %device_id, is_known, "a device is not sent a media key");
                    failures.insert(participant.clone(), KeySendFailure::NotSent);
                }
            }
        }
        // Whoever else works on the same store has the same Olm sessions.
        let _store = match encryption.spin_lock_store(Some(LONGEST_STORE_WAIT)).await {
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
            let written = message::write(dialect, self.room.room_id(), own, (*index, key), now_ms);
            let Ok((event_type, content)) = written else { continue };
            let Ok(content) = Raw::from_json_string(String::clone(&content)) else { continue };
            let to: Vec<_> = devices.iter().map(|(device, _)| device).collect();
            let mut failed = self.send_to(to.clone(), event_type, &content).await;
            if let Err(Failed::Encryption) = failed {
                // One device that cannot be encrypted for is no reason to leave out the others.
                let mut each = Vec::new();
                for device in to {
                    match self.send_to(vec![device], event_type, &content).await {
                        Ok(failed) => each.extend(failed),
                        Err(_) => {
                            let device_id = device.device_id().to_owned();
                            each.push((device.user_id().to_owned(), device_id));
                        }
                    }
                }
                failed = Ok(each);
            }
            let Ok(failed) = failed else { continue };
            for (_, participant) in devices {
                let Participant { user_id, device_id, .. } = participant;
                if !failed.iter().any(|(user, device)| user == user_id && device == device_id) {
                    failures.remove(participant);
                }
            }
        }
    }

    /// Sends the same to these devices. Who was not served is given back.
    async fn send_to(
        &self,
        devices: Vec<&Device>,
        event_type: &str,
        content: &Raw<AnyToDeviceEventContent>,
    ) -> Result<Vec<(OwnedUserId, OwnedDeviceId)>, Failed> {
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
    async fn verification_of(&self, sender: &Sender) -> Verification {
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

    async fn ask_for_devices(&self, user_id: &UserId) {
        if let Err(error) = self.room.client().encryption().request_user_identity(user_id).await {
            debug!(%user_id, %error, "the server did not tell somebody's devices");
        }
    }
}

/// Whether the server may be asked for the devices of this user; it is, then.
fn may_ask(asked: &Asked, timer: &dyn Timer, user_id: &UserId) -> bool {
    let now = timer.now();
    let mut asked = asked.lock().unwrap_or_else(PoisonError::into_inner);
    asked.retain(|_, again_at| !again_at.is_over(now));
    asked.insert(user_id.to_owned(), now.deadline(ASK_AGAIN)).is_none()
}

/// Whose devices or identities are not as they were.
fn news_of_devices(
    client: &Client,
) -> impl Stream<Item = Told<BTreeSet<OwnedUserId>>> + Send + Unpin + use<> {
    let (of_devices, of_identities) = (client.encryption(), client.encryption());
    let devices = listening(client, move || {
        let encryption = of_devices.clone();
        async move {
            let changes = encryption.devices_stream().await.ok()?;
            Some(
                changes
                    .map(|it| it.new.into_keys().chain(it.changed.into_keys()).collect())
                    .boxed(),
            )
        }
    });
    let identities = listening(client, move || {
        let encryption = of_identities.clone();
        async move {
            let changes = encryption.user_identities_stream().await.ok()?;
            Some(
                changes
                    .map(|it| it.new.into_keys().chain(it.changed.into_keys()).collect())
                    .boxed(),
            )
        }
    });
    stream::select(devices, identities)
}

/// Others who follow MSC4143 to the letter take no keys from such a device: that should be known.
async fn warn_if_not_signed(client: &Client) {
    let own = client.encryption().get_own_device().await;
    if own.is_ok_and(|own| own.is_some_and(|own| !own.is_cross_signed_by_owner())) {
        warn!(
            "this device is not cross-signed: others may not take its media keys; set up \
             cross-signing, or verify this device by another one"
        );
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt as _;
    use ruma::{device_id, owned_room_id, user_id};
    use serde_json::json;

    use super::*;
    use crate::{driver::SystemClock, time::Clock as _};

    #[test]
    fn of_one_sender_the_last_ones_wait_and_of_the_others_all() {
        let waiting = Queue::default();
        let add = |sender: &str, number: usize| {
            let sender = UserId::parse(sender).unwrap();
            let content = Zeroizing::new(number.to_string());
            waiting.add(KeyEvent { dialect: Dialect::Msc4143, sender, content }, None);
        };
        let take = || waiting.take().map(|(it, _)| (it.sender.to_string(), it.content));
        add("@bob:hs", 0);
        (0..100).for_each(|number| add("@alice:hs", number));
        add("@bob:hs", 1);
        let number = |content: Zeroizing<String>| content.parse::<u64>().unwrap();
        let waited: Vec<_> = std::iter::from_fn(take).map(|(who, it)| (who, number(it))).collect();
        let alices = (100 - INCOMING_OF_ONE..100).map(|it| ("@alice:hs".to_owned(), it as u64));
        let bobs = |it| ("@bob:hs".to_owned(), it);
        assert_eq!(
            waited,
            [bobs(0)].into_iter().chain(alices).chain([bobs(1)]).collect::<Vec<_>>()
        );

        // There is an end to all of them.
        (0..INCOMING + 1).for_each(|number| add(&format!("@user-{number}:hs"), 0));
        assert_eq!(std::iter::from_fn(take).count(), INCOMING);
    }

    #[test]
    fn a_key_message_is_of_a_type_that_has_keys_and_not_for_another_room() {
        let room_id = owned_room_id!("!room:hs");
        let read = |event_type: &str, content: Value| {
            let event = json!({ "type": event_type, "sender": "@a:hs", "content": content });
            KeyEvent::read(&serde_json::value::to_raw_value(&event).unwrap(), &room_id).is_some()
        };
        let ours = || json!({ "room_id": "!room:hs" });
        let unstable = "org.matrix.msc4143.rtc.encryption_key";
        for event_type in [unstable, "m.rtc.encryption_key", "io.element.call.encryption_keys"] {
            assert!(read(event_type, ours()), "{event_type}");
            assert!(!read(event_type, json!({ "room_id": "!other:hs" })), "{event_type}");
            // Anybody can send these, and nobody needs to know.
            for content in [json!({}), json!({ "room_id": 1 }), json!([])] {
                assert!(!read(event_type, content), "{event_type}");
            }
            let mut long = ours();
            long["x"] = "x".repeat(LONGEST_MESSAGE).into();
            assert!(!read(event_type, long), "{event_type}");
        }
        assert!(!read("m.room_key", json!({ "room_id": "!room:hs", "x": "encryption_key" })));
        assert!(!read("com.example.encryption_key", ours()));
    }

    #[test]
    fn who_is_slow_is_told_all_anew_and_who_is_not_each_change() {
        let timer = SystemClock::default();
        let own = Participant::new(user_id!("@us:hs"), "m", device_id!("D"));
        let config = KeyConfig::default();
        let room_id = owned_room_id!("!room:hs");
        let mut exchange = KeyExchange::new(room_id, own, config, Box::new(random_bytes), 1);
        exchange.handle_peers(timer.now(), Some(0), []);
        let first = exchange.poll_change(timer.now());
        let state = State { exchange: Some(exchange), subscribers: HashMap::new(), next: 0 };
        let shared = Arc::new(Shared { state: Mutex::new(state), timer: Arc::new(timer) });
        let subscribe = |id| {
            let untold = VecDeque::from([KeyChange::Reset]);
            shared.state().subscribers.insert(id, Subscriber { untold, waker: None });
            KeyChanges { shared: shared.clone(), id }
        };
        let (mut slow, mut quick) = (subscribe(0), subscribe(1));
        let mut told = 0;
        for _ in 0..100 {
            drop(shared.state().publish(first.as_slice()));
            while let Some(change) = quick.next().now_or_never() {
                told += usize::from(matches!(change, Some(KeyChange::Own { index: 0, .. })));
            }
        }
        assert_eq!(told, 100);
        assert!(matches!(slow.next().now_or_never(), Some(Some(KeyChange::Reset))));
        let mut left = 0;
        while let Some(Some(KeyChange::Own { .. })) = slow.next().now_or_never() {
            left += 1;
        }
        assert!(left < 66, "{left}");

        // The end of the exchange is the end of the streams.
        shared.state().exchange = None;
        assert!(matches!(slow.next().now_or_never(), Some(None)));
        drop(slow);
        assert_eq!(shared.state().subscribers.len(), 1);
    }
}
