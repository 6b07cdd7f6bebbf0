//! The front door: `client.sticky()` and `room.sticky()`.
//!
//! In: a matrix-sdk client. Out: a handle on the one set of maps and the one task that a client
//! has. No logic: what the handles do is done in `view` and `sync`.

use std::{
    fmt,
    sync::{Arc, LazyLock, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use eyeball::Subscriber;
use matrix_sdk::{Client, Room};
use ruma::{OwnedEventId, RoomId};
use serde::Serialize;
use serde_json::{Map, Value};

#[cfg(feature = "e2e-encryption")]
use crate::encrypt::Encryptor;
use crate::{
    app::{NotLiveError, until_live},
    client_table::ClientTable,
    context::{ClientContext, RoomContext},
    delayed::{DelayedEvents, ScheduleDelayed},
    driver::{SystemClock, Task, Timer},
    event::StickyKey,
    heartbeat::{self, StartHeartbeat},
    map::Limits,
    outbox::as_object,
    rtc::{self, Discovered, Rtc, TransportsError},
    send::{RedactSticky, SendSticky},
    sync::{
        Worker,
        state::{SyncSource, SyncState},
    },
    time::Moment,
    view::{Entry, EphemeralMaps, RoomStats, StickyContent, TypedView, View},
};

/// Sticky events on a matrix-sdk [`Client`].
pub trait StickyClientExt {
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
pub trait StickyRoomExt {
    /// The sticky events of this room. See [`StickyClientExt::sticky`].
    fn sticky(&self) -> RoomSticky;
}

impl StickyClientExt for Client {
    fn sticky(&self) -> Sticky {
        let mut running = running();
        let sticky = match running.find(self) {
            Some(context) => Sticky { context },
            None => StickyBuilder::new(self).build(&mut running),
        };
        ensure_task(&sticky.context);
        sticky
    }
}

impl StickyRoomExt for Room {
    fn sticky(&self) -> RoomSticky {
        RoomSticky::new(self.clone(), self.client().sticky())
    }
}

/// The sticky events of all rooms of a client. Cheap to clone. Dropping the last handle, view and
/// stream stops the task behind it.
#[derive(Clone)]
pub struct Sticky {
    context: Arc<ClientContext>,
}

impl Sticky {
    /// Starts with other settings than [`StickyClientExt::sticky`] does.
    pub fn builder(client: &Client) -> StickyBuilder {
        StickyBuilder::new(client)
    }

    /// A view of the entries of all rooms.
    pub fn events(&self) -> View {
        self.context.events()
    }

    /// A view of the entries of `C`'s type in all rooms, with their contents read as `C`.
    pub fn view<C: StickyContent>(&self) -> TypedView<C> {
        self.events().read_as()
    }

    /// The sticky events of one room; `None` if the client does not know it.
    pub fn room(&self, room_id: &RoomId) -> Option<RoomSticky> {
        let room = self.context.client.get_room(room_id)?;
        Some(RoomSticky::new(room, self.clone()))
    }

    /// How current the maps are.
    pub fn state(&self) -> SyncState {
        self.context.state.get()
    }

    /// How current the maps are, and each change of that.
    pub fn subscribe_state(&self) -> Subscriber<SyncState> {
        self.context.state.subscribe()
    }

    /// Waits until the maps are live: everything that is sticky is there.
    ///
    /// [`SyncState::Incomplete`] counts as live, because nothing more comes by waiting. While the
    /// server is away ([`SyncState::Offline`]) the wait goes on. Bound it by `tokio::time::timeout`
    /// if nobody may wait that long.
    ///
    /// # Examples
    ///
    /// ```no_run
    /// # async fn example(client: matrix_sdk::Client) -> Result<(), Box<dyn std::error::Error>> {
    /// use matrix_sdk_sticky::StickyClientExt as _;
    ///
    /// let sticky = client.sticky();
    /// sticky.until_live().await?;
    /// println!("{} entries in all rooms", sticky.events().snapshot().len());
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    ///
    /// [`NotLiveError`](crate::app::NotLiveError), when waiting makes no sense: the server lacks what the
    /// source needs, or has logged us out.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future changes nothing.
    pub async fn until_live(&self) -> Result<(), NotLiveError> {
        until_live(self.subscribe_state()).await
    }

    /// Where sticky events come from: what was asked for, and once the server has been asked, which
    /// it is.
    pub fn source(&self) -> SyncSource {
        self.context.source.get()
    }

    /// Whether sticky events can be sent into encrypted rooms: what encrypts is known, as the client was
    /// built with [`BaseClientBuilder`](crate::BaseClientBuilder), or its base client was given to
    /// [`StickyBuilder::with_base_client`].
    #[cfg(feature = "e2e-encryption")]
    pub fn can_encrypt(&self) -> bool {
        Encryptor::of(&self.context.client).is_some()
    }

    /// Events that the server sends later: what is done with those that are scheduled, by their
    /// [`DelayId`](crate::DelayId). [`RoomSticky::schedule`] schedules one.
    ///
    /// ```no_run
    /// # use matrix_sdk_sticky::{StickyClientExt as _, DelayId, DelayedError};
    /// # async fn example(client: matrix_sdk::Client, delay_id: DelayId) -> Result<(), DelayedError> {
    /// client.sticky().delayed_events().restart(&delay_id).await?;
    /// # Ok(()) }
    /// ```
    pub fn delayed_events(&self) -> DelayedEvents {
        self.context.delayed_events()
    }

    /// The moment now, on the clock that entries end by; what
    /// [`StickyEvent::expires_in`](crate::event::StickyEvent::expires_in) asks for.
    pub fn now(&self) -> Moment {
        self.context.maps.now()
    }
}

impl Sticky {
    /// The transports for MatrixRTC that our homeserver offers, with which a session can be joined
    /// ([MSC4143]): from its endpoint, or from the `.well-known/matrix/client` where that knows of none.
    /// What is not known is passed on as it is. Asks each time, for 20 s at most.
    ///
    /// ```no_run
    /// # use matrix_sdk_sticky::{StickyClientExt as _, StickyRoomExt as _, rtc::ROOM_CALL};
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
        rtc::discover(&self.context.client, &*self.context.timer).await
    }

    /// Has all heartbeats of this client leave, and what an earlier process has left armed. To be
    /// called before a logout: afterwards nobody has the right to. Returns when the server has it all;
    /// whoever will not wait that long may give up, as the armed leaves fire by themselves.
    pub async fn leave_heartbeats(&self) {
        heartbeat::leave_all(&self.context).await;
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
    context: RoomContext,
    sticky: Sticky,
}

impl RoomSticky {
    fn new(room: Room, sticky: Sticky) -> Self {
        Self { context: RoomContext::new(room, sticky.context.clone()), sticky }
    }

    /// The room.
    pub fn room_id(&self) -> &RoomId {
        self.context.room_id()
    }

    /// A view of the room's entries.
    pub fn events(&self) -> View {
        self.context.events()
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
    pub fn stats(&self) -> RoomStats {
        self.sticky.context.maps.stats(self.room_id())
    }

    /// Sends a sticky event with this content, of its type. Awaiting it sends it.
    ///
    /// ```no_run
    /// # use std::time::Duration;
    /// # use matrix_sdk_sticky::{StickyRoomExt as _, SendError, StickyContent};
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
    /// [`SendError`](crate::SendError). Never plaintext by accident: into an encrypted room it is sent encrypted, which
    /// takes a client built with [`BaseClientBuilder`](crate::BaseClientBuilder), or not at all.
    pub fn send<C: StickyContent + Serialize>(&self, content: &C) -> SendSticky {
        SendSticky::new(self.context.clone(), C::TYPE, as_object(content))
    }

    /// As [`send`](Self::send), for a type that is only known at run time.
    pub fn send_raw(&self, event_type: &str, content: impl Serialize) -> SendSticky {
        SendSticky::new(self.context.clone(), event_type, as_object(&content))
    }

    /// Removes what we have sent for a key: sends an event with nothing but the key, sticky for as
    /// long as what it removes ([MSC4354], "Implementing an ephemeral map").
    ///
    /// # Errors
    ///
    /// [`SendError`](crate::SendError).
    ///
    /// [MSC4354]: https://github.com/matrix-org/matrix-spec-proposals/pull/4354
    pub fn remove(&self, event_type: &str, sticky_key: impl Into<String>) -> SendSticky {
        self.send_raw(event_type, Map::new()).with_sticky_key(sticky_key)
    }

    /// Redacts a sticky event, with a redaction that is itself sticky, so that it reaches all who
    /// have seen the event ([MSC4354], "Redaction").
    ///
    /// In rooms of a version before 11 the redaction is an ordinary one, and
    /// [`Sent::sticky_duration`](crate::Sent::sticky_duration) says so: the server has no way to make it sticky.
    ///
    /// # Errors
    ///
    /// [`SendError`](crate::SendError).
    ///
    /// [MSC4354]: https://github.com/matrix-org/matrix-spec-proposals/pull/4354
    pub fn redact(&self, event_id: impl Into<OwnedEventId>) -> RedactSticky {
        RedactSticky::new(self.context.clone(), event_id.into())
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
    /// # use matrix_sdk_sticky::{StickyClientExt as _, DelayedError, StickyRoomExt as _};
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
        self.schedule_content(C::TYPE, as_object(content), delay)
    }

    /// As [`schedule`](Self::schedule), for a type that is only known at run time.
    pub fn schedule_raw(
        &self,
        event_type: &str,
        content: impl Serialize,
        delay: Duration,
    ) -> ScheduleDelayed {
        self.schedule_content(event_type, as_object(&content), delay)
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
    /// # use matrix_sdk_sticky::{StickyRoomExt as _, StickyContent, heartbeat::StartHeartbeatError};
    /// #[derive(serde::Serialize, serde::Deserialize)]
    /// struct Looking {
    ///     page: u32,
    /// }
    /// impl StickyContent for Looking {
    ///     const TYPE: &str = "com.example.looking";
    /// }
    ///
    /// # async fn example(room: matrix_sdk::Room) -> Result<(), Box<dyn std::error::Error>> {
    /// let looking = room.sticky().heartbeat("laptop").with_content(&Looking { page: 1 }).start().await?;
    /// looking.update(&Looking { page: 2 })?;
    /// looking.leave().await;
    /// # Ok(()) }
    /// ```
    ///
    /// [MSC4140]: https://github.com/matrix-org/matrix-spec-proposals/pull/4140
    pub fn heartbeat(&self, sticky_key: impl Into<String>) -> StartHeartbeat {
        StartHeartbeat::new(self.context.clone(), sticky_key.into())
    }

    /// The MatrixRTC sessions of this room ([MSC4143]): who is in which call. See [`rtc`](crate::rtc).
    ///
    /// ```no_run
    /// # use matrix_sdk_sticky::{StickyRoomExt as _, rtc::ROOM_CALL};
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
        Rtc::new(self.context.clone(), self.context.room().clone())
    }

    fn schedule_content(
        &self,
        event_type: &str,
        content: Result<Map<String, Value>, serde_json::Error>,
        delay: Duration,
    ) -> ScheduleDelayed {
        let (events, room) = (self.context.delayed_events(), self.context.room().clone());
        ScheduleDelayed::new(events, room, event_type, content, delay)
    }

    /// Returns the sticky events of all rooms of this client.
    pub fn sticky_client(&self) -> &Sticky {
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

    /// Sets how many events are kept of one sender in one room, at least 1. Defaults to 1,000; see
    /// [`Limits::max_events_per_sender`].
    #[must_use]
    pub fn with_max_events_per_sender(mut self, events: usize) -> Self {
        self.limits.max_events_per_sender = events.max(1);
        self
    }

    /// Sets where sticky events come from. Defaults to [`SyncSource::Auto`].
    #[must_use]
    pub fn with_source(mut self, source: SyncSource) -> Self {
        self.source = source;
        self
    }

    /// Sets the clock that entries end by, and that waits are counted on. For tests and simulations.
    #[must_use]
    pub fn with_clock(mut self, clock: Arc<dyn Timer>) -> Self {
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
        ensure_task(&sticky.context);
        Ok(sticky)
    }

    fn build(self, running: &mut Running) -> Sticky {
        let maps = EphemeralMaps::new(AsClock(self.timer.clone()), self.limits);
        let context = ClientContext::new(self.client, maps, self.timer, self.source);
        let context = Arc::new(context);
        running.insert(&context.client, &context);
        Sticky { context }
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
    /// They are in use already. Build them before the first call of [`StickyClientExt::sticky`], or use
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

/// Starts the task that receives, unless it runs. It does not if the runtime that it was started on has
/// shut down.
fn ensure_task(context: &ClientContext) {
    let mut task = context.task.lock().unwrap_or_else(PoisonError::into_inner);
    if task.as_ref().is_none_or(Task::is_finished) {
        let worker = Worker {
            client: context.client.clone(),
            maps: context.maps.clone(),
            timer: context.timer.clone(),
            state: context.state.clone(),
            wanted_source: context.wanted_source,
            source: context.source.clone(),
            listed: Mutex::default(),
        };
        *task = Task::spawn(worker.run());
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

/// Who is running.
type Running = ClientTable<ClientContext>;

fn running() -> MutexGuard<'static, Running> {
    static RUNNING: LazyLock<Mutex<Running>> = LazyLock::new(Mutex::default);
    RUNNING.lock().unwrap_or_else(PoisonError::into_inner)
}
