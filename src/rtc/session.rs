//! The handles: `room.sticky().rtc()`, its sessions, and what changes in them.
//!
//! In: a view of the room's entries, and the source of its state. Out: snapshots, and streams of what
//! changes. Each stream has a roster of its own, which it feeds while it is polled: no task, and no
//! lock.

use std::{fmt, pin::Pin, sync::Arc, time::Duration};

use futures_core::Stream;
use futures_util::{FutureExt as _, StreamExt as _, stream};
use matrix_sdk::Room;
use ruma::{OwnedUserId, RoomId};

use super::{
    join::JoinSession,
    open::{self, OpenSlot, SlotError},
    roster::{Roster, SessionChange, What},
    slot::session_of,
    snapshot::{RtcSnapshot, SessionSnapshot},
    state::{Fetched, News, Source, is_of_a_session},
    transport::Transports,
};
use crate::{
    driver::{BoxFuture, Timer, optional, until},
    ext::RoomSticky,
    time::{Deadline, Moment},
    view::{Changes, Subscription},
};

/// When to ask the server for the state again after it could not be reached.
const FETCH_AGAIN_AFTER: Duration = Duration::from_secs(15);

/// The shortest time from one request for the state to the next after a gap: some main loops leave one
/// with each answer, in a room where much is said.
const FETCH_EVERY: Duration = Duration::from_secs(5);

/// The MatrixRTC sessions of a room. Cheap to clone, costs nothing until it is asked.
#[derive(Clone)]
pub struct Rtc {
    sticky: RoomSticky,
    room: Room,
}

impl Rtc {
    pub(crate) fn new(sticky: RoomSticky, room: Room) -> Self {
        Self { sticky, room }
    }

    /// The sessions now.
    ///
    /// Asks the server once for the room's state, with what the client has of it where it cannot be
    /// reached. Who is shown is as current as [`Sticky::state`](crate::Sticky::state) says.
    pub async fn snapshot(&self) -> RtcSnapshot {
        self.subscribe().await.snapshot
    }

    /// The sessions now, and what changes from here on.
    pub async fn subscribe(&self) -> RtcSubscription {
        let mut watch = Watch::start(&self.sticky, &self.room).await;
        // What there is to begin with is in the snapshot.
        let now = watch.now();
        watch.roster.poll_changes(now);
        let snapshot = watch.roster.snapshot(now);
        let changes = stream::unfold(watch, async |mut watch| {
            let change = watch.next().await;
            Some((change, watch))
        });
        RtcSubscription { snapshot, changes: RtcChanges { changes: changes.boxed() } }
    }

    /// The room.
    pub fn room_id(&self) -> &RoomId {
        self.room.room_id()
    }

    /// The session of a slot, e.g. [`ROOM_CALL`](super::ROOM_CALL), whether anybody is in it or not.
    pub fn session(&self, slot_id: impl Into<String>) -> Session {
        Session { rtc: self.clone(), slot_id: slot_id.into().into() }
    }

    pub(super) fn sticky(&self) -> &RoomSticky {
        &self.sticky
    }

    pub(super) fn room(&self) -> &Room {
        &self.room
    }
}

impl fmt::Debug for Rtc {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Rtc").field("room_id", &self.room.room_id()).finish_non_exhaustive()
    }
}

/// One session of a room. Cheap to clone, costs nothing until it is asked.
#[derive(Clone, Debug)]
pub struct Session {
    rtc: Rtc,
    slot_id: Arc<str>,
}

impl Session {
    /// The id of its slot.
    pub fn slot_id(&self) -> &str {
        &self.slot_id
    }

    /// Who is there now, who is not, and why. See [`Rtc::snapshot`].
    pub async fn snapshot(&self) -> SessionSnapshot {
        self.rtc.snapshot().await.session(&self.slot_id)
    }

    /// Who is there now, and what changes from here on.
    pub async fn subscribe(&self) -> SessionSubscription {
        let RtcSubscription { snapshot, changes } = self.rtc.subscribe().await;
        let slot_id: Arc<str> = session_of(&self.slot_id).into();
        let snapshot = snapshot.session(&slot_id);
        let changes = changes.filter_map(move |change| {
            let of_it = change
                .changes
                .into_iter()
                .filter(|change| change.slot_id.as_ref() == Some(&slot_id))
                .map(|change| change.what);
            let changes: Vec<_> = of_it.collect();
            let update = (!changes.is_empty())
                .then(|| SessionUpdate { changes, snapshot: change.snapshot.session(&slot_id) });
            std::future::ready(update)
        });
        SessionSubscription { snapshot, changes: SessionChanges { changes: changes.boxed() } }
    }

    /// Joins, as a member that is there for as long as the handle is: a heartbeat. Awaiting it
    /// resolves when the heartbeat has been started; [`Membership::state`](super::Membership::state)
    /// tells when everybody can see the member.
    ///
    /// ```no_run
    /// # use matrix_sdk_sticky::{RoomExt as _, rtc::{JoinError, ROOM_CALL, Transport}};
    /// # async fn example(room: matrix_sdk::Room) -> Result<(), JoinError> {
    /// let call = room.sticky().rtc().session(ROOM_CALL);
    /// let membership = call
    ///     .join([Transport::livekit("https://livekit.example.org")])
    ///     .intent("video")
    ///     .await?;
    /// membership.leave().await;
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    ///
    /// [`JoinError`](super::JoinError). Nothing was sent.
    pub fn join(&self, transports: impl Into<Transports>) -> JoinSession {
        JoinSession::new(self.clone(), transports.into())
    }

    /// Opens its slot, for who follows MSC4143. In an encrypted room it says that each member has a media
    /// key of its own (`m.per_member`), as the proposal requires. Nothing is sent where it is open so
    /// already. Takes the right to send such state events.
    ///
    /// ```no_run
    /// # use matrix_sdk_sticky::{RoomExt as _, rtc::{ROOM_CALL, SlotError}};
    /// # async fn example(room: matrix_sdk::Room) -> Result<(), SlotError> {
    /// room.sticky().rtc().session(ROOM_CALL).open().await
    /// # }
    /// ```
    ///
    /// # Errors
    ///
    /// [`SlotError`](super::SlotError).
    pub fn open(&self) -> OpenSlot {
        OpenSlot::new(self.clone())
    }

    /// Closes its slot: nobody is there any more, and members who follow the proposal leave.
    ///
    /// # Errors
    ///
    /// [`SlotError`](super::SlotError).
    pub async fn close(&self) -> Result<(), SlotError> {
        open::close(self).await
    }

    pub(super) fn rtc(&self) -> &Rtc {
        &self.rtc
    }
}

/// The sessions of a room, and the changes that follow: nothing is lost or told twice between them.
#[derive(Debug)]
#[non_exhaustive]
pub struct RtcSubscription {
    /// The sessions at this moment.
    pub snapshot: RtcSnapshot,
    /// What changes from here on.
    pub changes: RtcChanges,
}

/// What changed in a room's sessions. Never empty.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct RtcChange {
    /// What changed: slots first, then in the order of the members' user ids.
    pub changes: Vec<SessionChange>,
    /// The sessions from now on.
    pub snapshot: RtcSnapshot,
}

/// A stream of [`RtcChange`]s. It never fails, never lags and never ends.
pub struct RtcChanges {
    changes: Pin<Box<dyn Stream<Item = RtcChange> + Send>>,
}

/// A session, and the changes that follow.
#[derive(Debug)]
#[non_exhaustive]
pub struct SessionSubscription {
    /// The session at this moment.
    pub snapshot: SessionSnapshot,
    /// What changes from here on.
    pub changes: SessionChanges,
}

/// What changed in a session. Never empty.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct SessionUpdate {
    /// What changed: the slot first, then in the order of the members' user ids.
    pub changes: Vec<What>,
    /// The session from now on.
    pub snapshot: SessionSnapshot,
}

/// A stream of [`SessionUpdate`]s. It never fails, never lags and never ends.
pub struct SessionChanges {
    changes: Pin<Box<dyn Stream<Item = SessionUpdate> + Send>>,
}

impl Stream for RtcChanges {
    type Item = RtcChange;

    fn poll_next(
        mut self: Pin<&mut Self>,
        cx: &mut std::task::Context<'_>,
    ) -> std::task::Poll<Option<RtcChange>> {
        self.changes.poll_next_unpin(cx)
    }
}

impl Stream for SessionChanges {
    type Item = SessionUpdate;

    fn poll_next(
        mut self: Pin<&mut Self>,
        cx: &mut std::task::Context<'_>,
    ) -> std::task::Poll<Option<SessionUpdate>> {
        self.changes.poll_next_unpin(cx)
    }
}

impl fmt::Debug for RtcChanges {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RtcChanges").finish_non_exhaustive()
    }
}

impl fmt::Debug for SessionChanges {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SessionChanges").finish_non_exhaustive()
    }
}

/// A roster, and what feeds it.
struct Watch {
    roster: Roster,
    changes: Changes,
    source: Source,
    /// Whether we are not in the room, as was told last.
    has_left: bool,
    timer: Arc<dyn Timer>,
    fetching: Option<BoxFuture<'static, Option<Fetched>>>,
    /// Of whom the server is to be asked whether they are in the room.
    strangers: Vec<OwnedUserId>,
    /// Whether there are some among them of whom nothing has been told. Until the server has answered, or
    /// has not, nothing is told: a membership of one who was kicked would get our media key.
    has_new: bool,
    /// Whether the server is being asked for such.
    asks_for_new: bool,
    /// Of whom the server is being asked.
    asked: Vec<OwnedUserId>,
    fetch_at: Option<Deadline>,
    fetched_at: Option<Moment>,
}

impl Watch {
    async fn start(sticky: &RoomSticky, room: &Room) -> Self {
        // Both streams before anything is read, so that nothing falls between.
        let Subscription { snapshot, changes } = sticky.events().subscribe();
        let source = Source::new(room.clone());
        let mut roster = Roster::new();
        roster.handle_snapshot(&snapshot);
        let timer = sticky.timer().clone();
        let mut watch = Self {
            roster,
            changes,
            source,
            has_left: false,
            timer,
            fetching: None,
            strangers: Vec::new(),
            has_new: false,
            asks_for_new: false,
            asked: Vec::new(),
            fetch_at: None,
            fetched_at: None,
        };
        watch.ask_encryption().await;
        let stored = watch.source.stored().await;
        watch.handle_state(stored);
        watch.look_up().await;
        let fetched = watch.fetch().await;
        watch.handle_fetched(fetched).await;
        watch
    }

    async fn next(&mut self) -> RtcChange {
        loop {
            self.look_up().await;
            let now = self.now();
            let is_held_back = self.has_new || self.asks_for_new;
            if !is_held_back {
                let changes = self.roster.poll_changes(now);
                if !changes.is_empty() {
                    return RtcChange { changes, snapshot: self.roster.snapshot(now) };
                }
            }
            if self.fetching.is_none() && self.fetch_at.is_some_and(|at| at.is_over(now)) {
                self.fetching = Some(self.fetch().boxed());
            }
            // One that is due waits for the one that is under way.
            let fetch_at = self.fetch_at.filter(|_| self.fetching.is_none());
            let told_at = self.roster.deadline().filter(|_| !is_held_back);
            let deadline = told_at.into_iter().chain(fetch_at).min();
            let timer = self.timer.clone();
            tokio::select! {
                Some(change) = self.changes.next() => self.roster.handle_change(&change),
                // Not while the server is asked: its answer may be older than what comes meanwhile.
                news = self.source.next(), if self.fetching.is_none() => self.handle_news(news),
                fetched = optional(&mut self.fetching) => {
                    self.fetching = None;
                    self.handle_fetched(fetched).await;
                }
                () = until(&*timer, deadline) => {}
            }
        }
    }

    fn handle_news(&mut self, news: News) {
        let is_lost = news.redacted.iter().any(|event_id| self.roster.holds(event_id));
        // It may be older than what the server told: then it is put right.
        let is_doubtful = news.events.iter().any(|text| is_of_a_session(text));
        let now = self.now();
        for text in news.events {
            if let Some(user_id) = self.roster.handle_late_state_event(now, &text) {
                self.strangers.push(user_id);
                self.fetch_at_once();
            }
        }
        let is_back = self.has_left && !news.has_left;
        self.has_left = news.has_left;
        if news.has_left {
            self.roster.handle_room_left(now);
        } else if news.is_gap || is_back {
            self.strangers = self.roster.users();
            self.fetch_soon();
        } else if is_lost || is_doubtful {
            self.fetch_soon();
        }
    }

    /// Has the server be asked as soon as it is not being asked.
    fn fetch_at_once(&mut self) {
        self.fetch_at = Some(self.now().deadline(Duration::ZERO));
    }

    /// The same, but not before enough time has gone by since it was asked last.
    fn fetch_soon(&mut self) {
        let at_once = self.now().deadline(Duration::ZERO);
        let not_before = self.fetched_at.map(|at| at.deadline(FETCH_EVERY));
        let soon = not_before.map_or(at_once, |at| at.max(at_once));
        self.fetch_at = Some(self.fetch_at.map_or(soon, |at| at.min(soon)));
    }

    fn handle_state(&mut self, texts: Vec<String>) {
        let now = self.now();
        for text in texts {
            self.roster.handle_state_event(now, &text);
        }
    }

    fn fetch(&mut self) -> impl Future<Output = Option<Fetched>> + Send + use<> {
        self.fetch_at = None;
        self.fetched_at = Some(self.now());
        self.asks_for_new = std::mem::take(&mut self.has_new);
        self.asked = std::mem::take(&mut self.strangers);
        self.source.fetch(self.asked.clone())
    }

    async fn handle_fetched(&mut self, fetched: Option<Fetched>) {
        let asked = std::mem::take(&mut self.asked);
        self.asks_for_new = false;
        match fetched {
            Some(fetched) => {
                let is_in_store = matches!(fetched, Fetched::IsInStore);
                let texts = match fetched {
                    Fetched::Events(texts) => texts,
                    Fetched::IsInStore => self.source.stored().await,
                };
                self.handle_state(texts);
                self.roster.handle_state_known();
                for user_id in asked {
                    // Of whom the server has nothing, or has had the client learn it.
                    if is_in_store || !self.roster.knows(&user_id) {
                        let is_in_room = self.source.is_in_room(&user_id).await;
                        self.roster.handle_in_room(&user_id, is_in_room == Some(true));
                    }
                }
            }
            None if self.source.are_we_in() => {
                self.strangers.extend(asked);
                self.fetch_at = Some(self.now().deadline(FETCH_AGAIN_AFTER));
            }
            None => {}
        }
        self.ask_encryption().await;
        #[cfg(feature = "e2e-encryption")]
        if self.roster.is_encrypted() {
            self.source.tell_sdk_of_encryption().await;
        }
    }

    async fn ask_encryption(&mut self) {
        if let Some(is_encrypted) = self.source.is_encrypted().await {
            self.roster.handle_encryption(is_encrypted);
        }
    }

    /// Finds out whether those are in the room of whom that is not known yet: by the client's store first;
    /// and as that may have missed that somebody left, which not every main loop tells, by the server.
    async fn look_up(&mut self) {
        let unknown = self.roster.poll_unknown();
        if unknown.is_empty() {
            return;
        }
        for user_id in unknown {
            if let Some(is_in_room) = self.source.is_in_room(&user_id).await {
                self.roster.handle_in_room(&user_id, is_in_room);
            }
            self.strangers.push(user_id);
        }
        self.has_new = true;
        self.fetch_at_once();
    }

    fn now(&self) -> Moment {
        self.timer.now()
    }
}
