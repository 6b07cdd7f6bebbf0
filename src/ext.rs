//! The front door: `client.sticky()` and `room.sticky()`.
//!
//! In: a matrix-sdk client. Out: a handle on the one set of maps and the one task that a client
//! has. No logic: what the handles do is done in `view` and `sync`.

use std::{
    collections::{HashMap, HashSet},
    fmt,
    sync::{Arc, LazyLock, Mutex, MutexGuard, PoisonError, Weak},
    time::Duration,
};

use eyeball::{SharedObservable, Subscriber};
use matrix_sdk::{Client, Room};
use ruma::{EventId, OwnedEventId, RoomId};
use serde::Serialize;
use serde_json::{Map, Value};

#[cfg(feature = "e2e-encryption")]
use crate::encrypt::Encryptor;
use crate::{
    delayed::{self, DelayedEvents, ScheduleDelayed},
    driver::{SystemClock, Task, Timer},
    event::StickyKey,
    heartbeat::{Beating, StartHeartbeat},
    map::Limits,
    rtc::{self, Discovered, Rtc, TransportsError},
    send::{RedactSticky, SendError, SendSticky, Turns, ensure_sticky_events},
    sync::{SyncSource, SyncState, Worker},
    time::Moment,
    view::{Entry, EphemeralMaps, Known, StickyContent, TypedView, View},
};

/// Sticky events on a matrix-sdk [`Client`].
pub trait ClientExt {
    /// The sticky events of all rooms that this client is in.
    ///
    /// The first call starts the one task that receives them, on the tokio runtime that it is
    /// called on; all handles of a client share it. It runs as long as a handle, a view or a stream
    /// of theirs is there. Called outside a tokio runtime it starts nothing, and the next call
    /// inside one does.
    ///
    /// The application goes on running its own sync loop, whichever it is: room keys, redactions,
    /// joins and leaves come from there.
    fn sticky(&self) -> Sticky;
}

/// Sticky events on a matrix-sdk [`Room`].
pub trait RoomExt {
    /// The sticky events of this room. See [`ClientExt::sticky`].
    fn sticky(&self) -> RoomSticky;
}

impl ClientExt for Client {
    fn sticky(&self) -> Sticky {
        let mut running = running();
        let sticky = match running.find(self) {
            Some(inner) => Sticky { inner },
            None => StickyBuilder::new(self).build(&mut running),
        };
        sticky.inner.ensure_task();
        sticky
    }
}

impl RoomExt for Room {
    fn sticky(&self) -> RoomSticky {
        RoomSticky { room: self.clone(), sticky: self.client().sticky() }
    }
}

/// The sticky events of all rooms of a client. Cheap to clone. Dropping the last handle, view and
/// stream stops the task behind it.
#[derive(Clone)]
pub struct Sticky {
    inner: Arc<Inner>,
}

struct Inner {
    client: Client,
    maps: EphemeralMaps,
    timer: Arc<dyn Timer>,
    state: SharedObservable<SyncState>,
    wanted_source: SyncSource,
    source: SharedObservable<SyncSource>,
    task: Mutex<Option<Task>>,
    turns: Turns,
    /// Memberships of ours that are removed, or have been: see [`RoomSticky::claim_removal`].
    removals: Mutex<HashSet<OwnedEventId>>,
    delayed: Arc<Mutex<delayed::Known>>,
    beating: Beating,
}

impl Sticky {
    /// Starts with other settings than [`ClientExt::sticky`] does.
    pub fn builder(client: &Client) -> StickyBuilder {
        StickyBuilder::new(client)
    }

    /// A view of the entries of all rooms.
    pub fn events(&self) -> View {
        self.inner.maps.view().kept_by(self.inner.clone())
    }

    /// A view of the entries of `C`'s type in all rooms, with their contents read as `C`.
    pub fn view<C: StickyContent>(&self) -> TypedView<C> {
        self.events().read_as()
    }

    /// The sticky events of one room; `None` if the client does not know it.
    pub fn room(&self, room_id: &RoomId) -> Option<RoomSticky> {
        let room = self.inner.client.get_room(room_id)?;
        Some(RoomSticky { room, sticky: self.clone() })
    }

    /// How current the maps are.
    pub fn state(&self) -> SyncState {
        self.inner.state.get()
    }

    /// How current the maps are, and each change of that.
    pub fn subscribe_state(&self) -> Subscriber<SyncState> {
        self.inner.state.subscribe()
    }

    /// Where sticky events come from: what was asked for, and once the server has been asked, which
    /// it is.
    pub fn source(&self) -> SyncSource {
        self.inner.source.get()
    }

    /// Whether sticky events can be sent into encrypted rooms: what encrypts is known, as the client was
    /// built with [`BaseClientBuilder`](crate::BaseClientBuilder), or its base client was given to
    /// [`StickyBuilder::with_base_client`].
    #[cfg(feature = "e2e-encryption")]
    pub fn can_encrypt(&self) -> bool {
        Encryptor::of(&self.inner.client).is_some()
    }

    /// Events that the server sends later: what is done with those that are scheduled, by their
    /// [`DelayId`](crate::DelayId). [`RoomSticky::schedule`] schedules one.
    ///
    /// ```no_run
    /// # use matrix_sdk_sticky::{ClientExt as _, DelayId, DelayedError};
    /// # async fn example(client: matrix_sdk::Client, delay_id: DelayId) -> Result<(), DelayedError> {
    /// client.sticky().delayed_events().restart(&delay_id).await?;
    /// # Ok(()) }
    /// ```
    pub fn delayed_events(&self) -> DelayedEvents {
        let inner = &self.inner;
        DelayedEvents::new(inner.client.clone(), inner.delayed.clone(), inner.timer.clone())
    }

    /// The moment now, on the clock that entries end by; what
    /// [`StickyEvent::expires_in`](crate::event::StickyEvent::expires_in) asks for.
    pub fn now(&self) -> Moment {
        self.inner.maps.now()
    }
}

impl Sticky {
    /// The transports for MatrixRTC that our homeserver offers, with which a session can be joined
    /// ([MSC4143]): from its endpoint, or from the `.well-known/matrix/client` where that knows of none.
    /// What is not known is passed on as it is. Asks each time, for 20 s at most.
    ///
    /// ```no_run
    /// # use matrix_sdk_sticky::{ClientExt as _, RoomExt as _, rtc::ROOM_CALL};
    /// # async fn example(room: matrix_sdk::Room) -> Result<(), Box<dyn std::error::Error>> {
    /// let transports = room.client().sticky().rtc_transports().await?.transports;
    /// let call = room.sticky().rtc().session(ROOM_CALL);
    /// let membership = call.join(transports).await?;
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    ///
    /// [`TransportsError`]. A server that offers none is no error.
    ///
    /// [MSC4143]: https://github.com/matrix-org/matrix-spec-proposals/pull/4143
    pub async fn rtc_transports(&self) -> Result<Discovered, TransportsError> {
        rtc::discover(&self.inner.client, &*self.inner.timer).await
    }

    /// Has all heartbeats of this client leave, and what an earlier process has left armed. To be
    /// called before a logout: afterwards nobody has the right to. Returns when the server has it all;
    /// whoever will not wait that long may give up, as the armed leaves fire by themselves.
    pub async fn leave_heartbeats(&self) {
        let Inner { beating, client, timer, .. } = &*self.inner;
        beating.leave_all(&**timer, client, &self.delayed_events()).await;
    }

    pub(crate) fn beating(&self) -> &Beating {
        &self.inner.beating
    }
}

impl fmt::Debug for Sticky {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Sticky").field("state", &self.state()).finish_non_exhaustive()
    }
}

/// The sticky events of one room.
#[derive(Clone, Debug)]
pub struct RoomSticky {
    room: Room,
    sticky: Sticky,
}

impl RoomSticky {
    /// The room.
    pub fn room_id(&self) -> &RoomId {
        self.room.room_id()
    }

    /// A view of the room's entries.
    pub fn events(&self) -> View {
        self.sticky.events().in_room(self.room_id())
    }

    /// A view of the room's entries of `C`'s type, with their contents read as `C`.
    pub fn view<C: StickyContent>(&self) -> TypedView<C> {
        self.events().read_as()
    }

    /// What is there now for this key.
    pub fn get(&self, key: &StickyKey) -> Option<Entry> {
        self.events().get(key)
    }

    /// How much is known of the room: events that wait for their room key, and events dropped
    /// because their sender sent too many.
    pub fn known(&self) -> Known {
        self.sticky.inner.maps.known(self.room_id())
    }

    /// Sends a sticky event with this content, of its type. Awaiting it sends it.
    ///
    /// ```no_run
    /// # use std::time::Duration;
    /// # use matrix_sdk_sticky::{RoomExt as _, SendError, StickyContent};
    /// #[derive(serde::Serialize, serde::Deserialize)]
    /// struct Presence {
    ///     status: String,
    /// }
    /// impl StickyContent for Presence {
    ///     const TYPE: &str = "com.example.presence";
    /// }
    ///
    /// # async fn example(room: matrix_sdk::Room) -> Result<(), SendError> {
    /// room.sticky()
    ///     .send(&Presence { status: "busy".to_owned() })
    ///     .with_sticky_key("laptop")
    ///     .with_sticky_duration(Duration::from_secs(600))
    ///     .await?;
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    ///
    /// [`SendError`]. Never plaintext by accident: into an encrypted room it is sent encrypted, which
    /// takes a client built with [`BaseClientBuilder`](crate::BaseClientBuilder), or not at all.
    pub fn send<C: StickyContent + Serialize>(&self, content: &C) -> SendSticky {
        SendSticky::new(self.clone(), self.room.clone(), content)
    }

    /// As [`send`](Self::send), for a type that is only known at run time.
    pub fn send_raw(&self, event_type: &str, content: Map<String, Value>) -> SendSticky {
        SendSticky::raw(self.clone(), self.room.clone(), event_type, content)
    }

    /// Removes what we have sent for a key: sends an event with nothing but the key, sticky for as
    /// long as what it removes ([MSC4354], "Implementing an ephemeral map").
    ///
    /// # Errors
    ///
    /// [`SendError`].
    ///
    /// [MSC4354]: https://github.com/matrix-org/matrix-spec-proposals/pull/4354
    pub fn remove(&self, event_type: &str, sticky_key: impl Into<String>) -> SendSticky {
        self.send_raw(event_type, Map::new()).with_sticky_key(sticky_key)
    }

    /// Redacts a sticky event, with a redaction that is itself sticky, so that it reaches all who
    /// have seen the event ([MSC4354], "Redaction").
    ///
    /// In rooms of a version before 11 the redaction is an ordinary one, and
    /// [`Sent::sticky`](crate::Sent::sticky) says so: the server has no way to make it sticky.
    ///
    /// # Errors
    ///
    /// [`SendError`].
    ///
    /// [MSC4354]: https://github.com/matrix-org/matrix-spec-proposals/pull/4354
    pub fn redact(&self, event_id: impl Into<OwnedEventId>) -> RedactSticky {
        RedactSticky::new(self.clone(), self.room.clone(), event_id.into())
    }

    /// Schedules a sticky event with this content, of its type: the server sends it by itself when
    /// `delay` is over, unless it is told otherwise by the [`DelayId`](crate::DelayId) that this
    /// gives ([MSC4140]). Awaiting it schedules it.
    ///
    /// The delay is from 1 ms on, in whole milliseconds. The longest is the server's to say:
    /// [`DelayedEvents::limits`] tells it where the server does, and
    /// [`DelayedError::TooLong`](crate::DelayedError) where it was too much.
    ///
    /// Encrypted in an encrypted room, as of now: a device that joins the room later can read the
    /// event only if it is scheduled anew.
    ///
    /// ```no_run
    /// # use std::time::Duration;
    /// # use matrix_sdk_sticky::{ClientExt as _, DelayedError, RoomExt as _};
    /// # async fn example(client: matrix_sdk::Client, room: matrix_sdk::Room) -> Result<(), DelayedError> {
    /// // "I am gone", unless I say within 15 s that I am not.
    /// let delay_id = room
    ///     .sticky()
    ///     .schedule_removal("com.example.presence", "laptop", Duration::from_secs(15))
    ///     .with_sticky_duration(Duration::from_secs(600))
    ///     .await?;
    /// client.sticky().delayed_events().restart(&delay_id).await?;
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    ///
    /// [`DelayedError`](crate::DelayedError).
    ///
    /// [MSC4140]: https://github.com/matrix-org/matrix-spec-proposals/pull/4140
    pub fn schedule<C: StickyContent + Serialize>(
        &self,
        content: &C,
        delay: Duration,
    ) -> ScheduleDelayed {
        ScheduleDelayed::new(self, self.room.clone(), content, delay)
    }

    /// As [`schedule`](Self::schedule), for a type that is only known at run time.
    pub fn schedule_raw(
        &self,
        event_type: &str,
        content: Map<String, Value>,
        delay: Duration,
    ) -> ScheduleDelayed {
        ScheduleDelayed::raw(self, self.room.clone(), event_type, content, delay)
    }

    /// Schedules the removal of what we have sent for a key: see [`remove`](Self::remove) and
    /// [`schedule`](Self::schedule).
    pub fn schedule_removal(
        &self,
        event_type: &str,
        sticky_key: impl Into<String>,
        delay: Duration,
    ) -> ScheduleDelayed {
        self.schedule_raw(event_type, Map::new(), delay).with_sticky_key(sticky_key)
    }

    /// A member under this key, of ours, that is there for as long as we are: everybody sees it gone
    /// soon after a crash, as a leave is armed with the server before it joins ([MSC4140]).
    ///
    /// ```no_run
    /// # use matrix_sdk_sticky::{RoomExt as _, StickyContent, heartbeat::StartHeartbeatError};
    /// #[derive(serde::Serialize, serde::Deserialize)]
    /// struct Looking {
    ///     page: u32,
    /// }
    /// impl StickyContent for Looking {
    ///     const TYPE: &str = "com.example.looking";
    /// }
    ///
    /// # async fn example(room: matrix_sdk::Room) -> Result<(), Box<dyn std::error::Error>> {
    /// let looking = room.sticky().heartbeat("laptop").content(&Looking { page: 1 }).start().await?;
    /// looking.update(&Looking { page: 2 })?;
    /// looking.leave().await;
    /// # Ok(()) }
    /// ```
    ///
    /// [MSC4140]: https://github.com/matrix-org/matrix-spec-proposals/pull/4140
    pub fn heartbeat(&self, sticky_key: impl Into<String>) -> StartHeartbeat {
        StartHeartbeat::new(self.clone(), self.room.clone(), sticky_key.into())
    }

    /// The MatrixRTC sessions of this room ([MSC4143]): who is in which call. See [`rtc`](crate::rtc).
    ///
    /// ```no_run
    /// # use matrix_sdk_sticky::{RoomExt as _, rtc::ROOM_CALL};
    /// # async fn example(room: matrix_sdk::Room) {
    /// let call = room.sticky().rtc().session(ROOM_CALL).snapshot().await;
    /// for member in call.members() {
    ///     println!("{} is there since {}", member.user_id(), member.since_ms());
    /// }
    /// for candidate in call.candidates() {
    ///     println!("{} is not: {}", candidate.user_id, candidate.reason);
    /// }
    /// # }
    /// ```
    ///
    /// [MSC4143]: https://github.com/matrix-org/matrix-spec-proposals/pull/4143
    pub fn rtc(&self) -> Rtc {
        Rtc::new(self.clone(), self.room.clone())
    }

    pub(crate) fn turns(&self) -> &Turns {
        &self.sticky.inner.turns
    }

    /// Whether the caller is to remove this event of ours: the first one who asks is. Each stream of a room
    /// sees the same memberships.
    pub(crate) fn claim_removal(&self, event_id: OwnedEventId) -> bool {
        self.removals().insert(event_id)
    }

    /// The removal came to nothing: somebody may try again.
    pub(crate) fn disclaim_removal(&self, event_id: &EventId) {
        self.removals().remove(event_id);
    }

    fn removals(&self) -> MutexGuard<'_, HashSet<OwnedEventId>> {
        self.sticky.inner.removals.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn timer(&self) -> &Arc<dyn Timer> {
        &self.sticky.inner.timer
    }

    /// Makes sure that the server knows sticky events: one that does not ignores what makes an
    /// event sticky, and sends it as an ordinary one.
    pub(crate) async fn ensure_supported(&self) -> Result<(), SendError> {
        match self.sticky.state() {
            SyncState::Live | SyncState::CatchingUp | SyncState::Incomplete { .. } => Ok(()),
            _ => ensure_sticky_events(&self.sticky.inner.client).await,
        }
    }

    /// The sticky events of all rooms of this client.
    pub fn client(&self) -> &Sticky {
        &self.sticky
    }
}

/// Settings to start with. Made by [`Sticky::builder`].
pub struct StickyBuilder {
    client: Client,
    limits: Limits,
    timer: Arc<dyn Timer>,
    source: SyncSource,
    #[cfg(feature = "e2e-encryption")]
    base_client: Option<matrix_sdk_base::BaseClient>,
}

impl StickyBuilder {
    fn new(client: &Client) -> Self {
        Self {
            client: client.clone(),
            limits: Limits::default(),
            timer: Arc::new(SystemClock),
            source: SyncSource::Auto,
            #[cfg(feature = "e2e-encryption")]
            base_client: None,
        }
    }

    /// How much is kept of one sender in one room; see [`Limits::per_sender`]. At least 1.
    #[must_use]
    pub fn per_sender(mut self, events: usize) -> Self {
        self.limits.per_sender = events.max(1);
        self
    }

    /// Where sticky events come from; [`SyncSource::Auto`] unless told.
    #[must_use]
    pub fn source(mut self, source: SyncSource) -> Self {
        self.source = source;
        self
    }

    /// The clock that entries end by, and that waits are counted on. For tests and simulations.
    #[must_use]
    pub fn clock(mut self, clock: Arc<dyn Timer>) -> Self {
        self.timer = clock;
        self
    }

    /// The base client that the client is built on: what encrypts. With it sticky events can be sent
    /// into encrypted rooms, as long as the client lives.
    ///
    /// For an application that makes its base client itself, and has kept a clone of what it gave
    /// to [`ClientBuilder::base_client`](matrix_sdk::ClientBuilder::base_client); else
    /// [`BaseClientBuilder`](crate::BaseClientBuilder) is simpler.
    #[cfg(feature = "e2e-encryption")]
    #[must_use]
    pub fn with_base_client(mut self, base_client: matrix_sdk_base::BaseClient) -> Self {
        self.base_client = Some(base_client);
        self
    }

    /// Starts.
    ///
    /// # Errors
    ///
    /// [`StartError`].
    pub fn start(self) -> Result<Sticky, StartError> {
        let mut running = running();
        if running.find(&self.client).is_some() {
            return Err(StartError::AlreadyRunning);
        }
        #[cfg(feature = "e2e-encryption")]
        if let Some(base_client) = self.base_client.clone() {
            Encryptor::attach(&self.client, base_client)
                .map_err(|_| StartError::OtherBaseClient)?;
        }
        let sticky = self.build(&mut running);
        sticky.inner.ensure_task();
        Ok(sticky)
    }

    fn build(self, running: &mut Running) -> Sticky {
        let maps = EphemeralMaps::new(AsClock(self.timer.clone()), self.limits);
        let state = SharedObservable::new(SyncState::Connecting);
        let inner = Arc::new(Inner {
            client: self.client,
            maps,
            timer: self.timer,
            state,
            wanted_source: self.source,
            source: SharedObservable::new(self.source),
            task: Mutex::default(),
            turns: Turns::default(),
            removals: Mutex::default(),
            delayed: Arc::default(),
            beating: Beating::default(),
        });
        running.insert(&inner.client, &inner);
        Sticky { inner }
    }
}

impl fmt::Debug for StickyBuilder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("StickyBuilder").field("limits", &self.limits).finish_non_exhaustive()
    }
}

/// Why a client's sticky events were not started with these settings.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum StartError {
    /// They are in use already. Build them before the first call of [`ClientExt::sticky`], or use
    /// what that returns.
    AlreadyRunning,
    /// The base client given is not the one that the client is built on: it would encrypt in the
    /// name of another device.
    OtherBaseClient,
}

impl fmt::Display for StartError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::AlreadyRunning => {
                "this client's sticky events are in use already: build them before the first call \
                 of `client.sticky()`, or use what that returns"
            }
            Self::OtherBaseClient => {
                "the base client is not the one that the client is built on: give a clone of what \
                 `ClientBuilder::base_client` got"
            }
        })
    }
}

impl std::error::Error for StartError {}

impl Inner {
    fn ensure_task(&self) {
        let mut task = self.task.lock().unwrap_or_else(PoisonError::into_inner);
        if task.as_ref().is_none_or(Task::is_finished) {
            let worker = Worker {
                client: self.client.clone(),
                maps: self.maps.clone(),
                timer: self.timer.clone(),
                state: self.state.clone(),
                wanted_source: self.wanted_source,
                source: self.source.clone(),
                listed: Mutex::default(),
            };
            *task = Task::spawn(worker.run());
        }
    }
}

/// A timer as the plain clock that it also is.
#[derive(Debug)]
struct AsClock(Arc<dyn Timer>);

impl crate::time::Clock for AsClock {
    fn now(&self) -> Moment {
        self.0.now()
    }
}

/// What this crate has of each client, for as long as something else holds it.
///
/// Why a table of the process, and not a place in the client? matrix-sdk's client has none for
/// others. What stands here has to live no longer than its client, or to hold it: so that no other
/// client can have come to the same address.
pub(crate) struct OfClients<T>(HashMap<usize, Weak<T>>);

impl<T> Default for OfClients<T> {
    fn default() -> Self {
        Self(HashMap::new())
    }
}

impl<T> OfClients<T> {
    pub(crate) fn find(&self, client: &Client) -> Option<Arc<T>> {
        self.0.get(&identity(client))?.upgrade()
    }

    pub(crate) fn insert(&mut self, client: &Client, value: &Arc<T>) {
        self.0.retain(|_, value| value.strong_count() > 0);
        self.0.insert(identity(client), Arc::downgrade(value));
    }
}

/// Who is running.
type Running = OfClients<Inner>;

fn running() -> std::sync::MutexGuard<'static, Running> {
    static RUNNING: LazyLock<Mutex<Running>> = LazyLock::new(Mutex::default);
    RUNNING.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What all clones of a client have in common, and no other client of this process: the address of
/// a part of it.
fn identity(client: &Client) -> usize {
    std::ptr::from_ref(client.event_cache()).addr()
}
