//! The handles: `room.sticky().rtc()`, its sessions, and what changes in them.
//!
//! In: a view of the room's entries, and the source of its state. Out: snapshots, and streams of what
//! changes. Each stream has a roster of its own, which it feeds while it is polled: no task, and no
//! lock.

use std::{collections::BTreeSet, fmt, pin::Pin, sync::Arc, time::Duration};

use futures_core::Stream;
use futures_util::{FutureExt as _, StreamExt as _, stream};
use matrix_sdk::Room;
use ruma::{OwnedUserId, RoomId, UserId};
use tracing::debug;

use super::{
    change::{RtcChange, SessionChange},
    leave::LeaveReason,
    own::Own,
    room_state::{Fetched, News, NoAnswer, Source, is_of_a_session},
    roster::{Leftover, Roster},
    slot::session_of,
    snapshot::{RtcSnapshot, SessionSnapshot},
};
use crate::{
    context::RoomContext,
    driver::{BoxFuture, Timer, before, optional, until},
    send::SendError,
    send::SendSticky,
    time::{Deadline, Moment},
    view::{Changes, Subscription},
};

/// When to ask the server for the state again after it could not be reached.
const FETCH_AGAIN_AFTER: Duration = Duration::from_secs(15);

/// When to ask the server for the whole state again, at the earliest. Some main loops leave a gap with each
/// answer in a room where much is said, and in some rooms everybody may send memberships as state events.
/// While that goes on, the pause doubles up to [`FETCH_EVERY_AT_MOST`].
const FETCH_EVERY: Duration = Duration::from_secs(5);

/// The longest pause between two requests for the whole state: a kick that a gap swallowed is found by then.
const FETCH_EVERY_AT_MOST: Duration = Duration::from_secs(30);

/// When the pauses start over: the state was not asked for in so long.
const FETCH_IS_QUIET_AFTER: Duration = Duration::from_secs(120);

/// When to ask about newcomers again, at the earliest: a crowd is asked about together.
const LOOK_UP_EVERY: Duration = Duration::from_secs(1);

/// When to give up on the server's answer, with all that it takes.
const ANSWER_WITHIN: Duration = Duration::from_secs(12);

/// How many earlier events of users are asked for at once.
const DECIDE_AT_ONCE: usize = 8;

/// When to try again to remove a membership of ours from before we were out of the room.
const REMOVE_AGAIN_AFTER: Duration = Duration::from_secs(60);

/// The MatrixRTC sessions of a room. Cheap to clone, costs nothing until it is asked.
#[derive(Clone)]
pub struct Rtc {
    sticky: RoomContext,
    room: Room,
}

impl Rtc {
    pub(crate) fn new(sticky: RoomContext, room: Room) -> Self {
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

    pub(super) fn sticky(&self) -> &RoomContext {
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
                .map(|change| change.change);
            let changes: Vec<_> = of_it.collect();
            let update = (!changes.is_empty())
                .then(|| SessionUpdate { changes, snapshot: change.snapshot.session(&slot_id) });
            std::future::ready(update)
        });
        SessionSubscription { snapshot, changes: SessionChanges { changes: changes.boxed() } }
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
pub struct RtcUpdate {
    /// What changed: slots first, then in the order of the members' user ids.
    pub changes: Vec<RtcChange>,
    /// The sessions from now on.
    pub snapshot: RtcSnapshot,
}

/// A stream of [`RtcUpdate`]s. It never fails, never lags and never ends.
pub struct RtcChanges {
    changes: Pin<Box<dyn Stream<Item = RtcUpdate> + Send>>,
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
    pub changes: Vec<SessionChange>,
    /// The session from now on.
    pub snapshot: SessionSnapshot,
}

/// A stream of [`SessionUpdate`]s. It never fails, never lags and never ends.
pub struct SessionChanges {
    changes: Pin<Box<dyn Stream<Item = SessionUpdate> + Send>>,
}

impl Stream for RtcChanges {
    type Item = RtcUpdate;

    fn poll_next(
        mut self: Pin<&mut Self>,
        cx: &mut std::task::Context<'_>,
    ) -> std::task::Poll<Option<RtcUpdate>> {
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

/// What became of what the server was asked.
enum Answer {
    Fetched(Fetched),
    /// Until when these users were out of the room, if they were.
    Decided(Vec<(OwnedUserId, Result<Option<u64>, NoAnswer>)>),
    None,
}

/// A roster, and what feeds it.
struct Watch {
    roster: Roster,
    changes: Changes,
    source: Source,
    /// Whether we are not in the room, as was told last.
    has_left: bool,
    timer: Arc<dyn Timer>,
    fetching: Option<BoxFuture<'static, Answer>>,
    /// The users whom the server is to be asked about: whether they are in the room. Newcomers among them
    /// are held back until the server has answered, or has not in time: a membership of one who was kicked
    /// would get our media key. Nobody else waits for that.
    strangers: BTreeSet<OwnedUserId>,
    /// The users whom the server is being asked about.
    asked: BTreeSet<OwnedUserId>,
    /// When to ask about [`strangers`](Self::strangers).
    look_up_at: Option<Deadline>,
    looked_up_at: Option<Moment>,
    /// When to ask for the whole state.
    fetch_at: Option<Deadline>,
    fetched_at: Option<Moment>,
    fetch_every: Duration,
    sticky: RoomContext,
    /// A membership of ours is removed that outlived our being out of the room.
    removing: Option<BoxFuture<'static, Result<(), SendError>>>,
    /// When to try again, after that failed.
    remove_at: Option<Deadline>,
}

impl Watch {
    async fn start(sticky: &RoomContext, room: &Room) -> Self {
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
            strangers: BTreeSet::new(),
            asked: BTreeSet::new(),
            look_up_at: None,
            looked_up_at: None,
            fetch_at: None,
            fetched_at: None,
            fetch_every: FETCH_EVERY,
            sticky: sticky.clone(),
            removing: None,
            remove_at: None,
        };
        watch.ask_encryption().await;
        let stored = watch.source.stored().await;
        watch.handle_state(stored);
        watch.look_up().await;
        let mut answer = watch.fetch(true).await;
        loop {
            watch.handle_answer(answer).await;
            match watch.fetching.take() {
                Some(more) => answer = more.await,
                None => return watch,
            }
        }
    }

    async fn next(&mut self) -> RtcUpdate {
        loop {
            self.look_up().await;
            let now = self.now();
            let changes = self.roster.poll_changes(now);
            if !changes.is_empty() {
                return RtcUpdate { changes, snapshot: self.roster.snapshot(now) };
            }
            let is_due = |at: Option<Deadline>| at.is_some_and(|at| at.is_over(now));
            let is_fetch_due = is_due(self.fetch_at);
            if self.fetching.is_none() && (is_fetch_due || is_due(self.look_up_at)) {
                self.fetching = Some(self.fetch(is_fetch_due).boxed());
            }
            self.remove_leftover();
            // What is due waits for the request that is under way.
            let ask_at = [self.fetch_at, self.look_up_at].into_iter().flatten();
            let ask_at = ask_at.filter(|_| self.fetching.is_none());
            let deadline = self.roster.next_deadline().into_iter().chain(ask_at).min();
            let timer = self.timer.clone();
            tokio::select! {
                Some(change) = self.changes.next() => self.roster.handle_change(&change),
                // Not while the server is asked: its answer may be older than what comes meanwhile.
                news = self.source.next(), if self.fetching.is_none() => self.handle_news(news),
                answer = optional(&mut self.fetching) => {
                    self.fetching = None;
                    self.handle_answer(answer).await;
                }
                removed = optional(&mut self.removing) => {
                    self.removing = None;
                    if let Err(error) = removed {
                        debug!(%error, "a membership of ours from before we left the room stays");
                        self.remove_at = Some(self.now().deadline(REMOVE_AGAIN_AFTER));
                    }
                }
                () = until(&*timer, deadline) => {}
                () = until(&*timer, self.remove_at) => self.remove_at = None,
            }
        }
    }

    /// Removes a membership of this device from before we were out of the room, unless a heartbeat has its
    /// key: to others it may look as if we were still in the session.
    fn remove_leftover(&mut self) {
        if self.removing.is_some() || self.remove_at.is_some() {
            return;
        }
        let room = self.source.room();
        let client = room.client();
        let Some((user_id, device_id)) = client.user_id().zip(client.device_id()) else { return };
        let beating = self.sticky.client().heartbeats();
        let mut leftovers = self.roster.leftovers(user_id, device_id).filter(|it| {
            !beating.has(room.room_id(), it.event_type, &it.member_id)
                && self.sticky.claim_removal(it.event_id.clone())
        });
        let Some(Leftover { event_id, event_type, slot_id, member_id }) = leftovers.next() else {
            return;
        };
        drop(leftovers);
        let (user_id, device_id) = (user_id.to_string(), device_id.to_string());
        let own = Own { slot_id, user_id, device_id, member_id };
        let leave = own.leave(&LeaveReason::with_code(LeaveReason::DELAYED));
        let sending = SendSticky::new(self.sticky.clone(), event_type, Ok(leave));
        let sticky = self.sticky.clone();
        let removing = async move {
            let sent = sending.await;
            if sent.is_err() {
                sticky.disclaim_removal(&event_id);
            }
            sent.map(drop)
        };
        self.removing = Some(removing.boxed());
    }

    fn handle_news(&mut self, news: News) {
        let is_lost = news.redacted.iter().any(|event_id| self.roster.holds(event_id));
        // It may be older than what the server told: then it is put right.
        let is_doubtful = news.events.iter().any(|text| is_of_a_session(text));
        let now = self.now();
        for text in news.events {
            if let Some(user_id) = self.roster.handle_late_state_event(now, &text) {
                self.look_up_soon([user_id]);
            }
        }
        let is_back = self.has_left && !news.has_left;
        self.has_left = news.has_left;
        if news.has_left {
            self.roster.handle_room_left(now);
        } else if news.is_gap || is_back {
            self.strangers.extend(self.roster.users());
            self.fetch_soon();
        } else if is_lost || is_doubtful {
            self.fetch_soon();
        }
    }

    /// Has the server be asked about these users.
    fn look_up_soon(&mut self, users: impl IntoIterator<Item = OwnedUserId>) {
        self.strangers.extend(users);
        self.look_up_at
            .get_or_insert_with(|| at_earliest(self.timer.now(), self.looked_up_at, LOOK_UP_EVERY));
    }

    /// Has the server be asked for the whole state.
    fn fetch_soon(&mut self) {
        let soon = at_earliest(self.now(), self.fetched_at, self.fetch_every);
        self.fetch_at = Some(self.fetch_at.map_or(soon, |at| at.min(soon)));
    }

    fn handle_state(&mut self, texts: Vec<String>) {
        let now = self.now();
        for text in texts {
            self.roster.handle_state_event(now, &text);
        }
    }

    /// Asks the server, about [`strangers`](Self::strangers) and, if wanted, for the whole state.
    fn fetch(&mut self, whole: bool) -> impl Future<Output = Answer> + Send + use<> {
        let now = self.now();
        if whole {
            let was_quiet =
                self.fetched_at.is_none_or(|at| at.deadline(FETCH_IS_QUIET_AFTER).is_over(now));
            self.fetch_every = match was_quiet {
                true => FETCH_EVERY,
                false => (self.fetch_every * 2).min(FETCH_EVERY_AT_MOST),
            };
            self.fetched_at = Some(now);
            self.fetch_at = None;
        } else {
            self.looked_up_at = Some(now);
        }
        self.look_up_at = None;
        self.asked = std::mem::take(&mut self.strangers);
        let asking = self.source.fetch(self.asked.iter().cloned().collect(), whole);
        let timer = self.timer.clone();
        async move {
            let fetched = before(&*timer, now.deadline(ANSWER_WITHIN), asking).await.flatten();
            fetched.map_or(Answer::None, Answer::Fetched)
        }
    }

    async fn handle_answer(&mut self, answer: Answer) {
        let asked = std::mem::take(&mut self.asked);
        match answer {
            Answer::Fetched(fetched) => {
                self.handle_fetched(fetched, &asked).await;
                self.decide(asked);
            }
            Answer::Decided(decided) => {
                for (user_id, out_until_ms) in decided {
                    self.roster.release(&user_id);
                    match out_until_ms {
                        Ok(out_until_ms) => self.roster.handle_decided(&user_id, out_until_ms),
                        Err(NoAnswer) => self.ask_again([user_id]),
                    }
                }
            }
            Answer::None => {
                asked.iter().for_each(|user_id| self.roster.release(user_id));
                self.ask_again(asked);
            }
        }
        self.ask_encryption().await;
        #[cfg(feature = "e2e-encryption")]
        if self.roster.is_encrypted() {
            self.source.tell_sdk_of_encryption().await;
        }
    }

    async fn handle_fetched(&mut self, fetched: Fetched, asked: &BTreeSet<OwnedUserId>) {
        let is_in_store = matches!(fetched, Fetched::IsInStore);
        let (texts, is_whole) = match fetched {
            Fetched::Events { texts, is_whole } => (texts, is_whole),
            Fetched::IsInStore => (self.source.stored().await, true),
        };
        self.handle_state(texts);
        if is_whole {
            self.roster.handle_state_known();
        }
        for user_id in asked {
            // The server has nothing of this user, or the client has learnt it.
            if (is_in_store || !self.roster.knows(user_id)) && !self.look_into_store(user_id).await
            {
                self.roster.handle_in_room(user_id, false);
            }
        }
    }

    /// Has the server be asked what decides about these users, if anything is still open.
    fn decide(&mut self, asked: BTreeSet<OwnedUserId>) {
        let mut undecided = Vec::new();
        for user_id in asked {
            match self.roster.undecided(&user_id) {
                Some(it) => {
                    // They stay as they were told, in or out.
                    self.roster.hold_back(user_id.clone());
                    undecided.push((user_id, it));
                }
                None => self.roster.release(&user_id),
            }
        }
        if !undecided.is_empty() {
            let deadline = self.now().deadline(ANSWER_WITHIN);
            let deciding = undecided.into_iter().map(|(user_id, undecided)| {
                let deciding = self.source.decide(user_id.clone(), undecided);
                let timer = self.timer.clone();
                async move {
                    let decided = before(&*timer, deadline, deciding).await;
                    (user_id, decided.unwrap_or(Err(NoAnswer)))
                }
            });
            let deciding = stream::iter(deciding.collect::<Vec<_>>());
            let decided = deciding.buffer_unordered(DECIDE_AT_ONCE).collect().map(Answer::Decided);
            self.fetching = Some(decided.boxed());
        }
    }

    /// Has the server be asked again in a while, with the users whom it has said nothing of.
    fn ask_again(&mut self, users: impl IntoIterator<Item = OwnedUserId>) {
        // While we are not in the room it says nothing.
        if self.source.are_we_in() {
            self.strangers.extend(users);
            let again = self.now().deadline(FETCH_AGAIN_AFTER);
            self.fetch_at = Some(self.fetch_at.map_or(again, |at| at.min(again)));
        }
    }

    async fn ask_encryption(&mut self) {
        if let Some(is_encrypted) = self.source.is_encrypted().await {
            self.roster.handle_encryption(is_encrypted);
        }
    }

    /// Finds out whether users are in the room, where that is not known yet. The client's store knows first.
    /// As it may have missed that somebody left, which not every main loop tells, the server is asked too.
    async fn look_up(&mut self) {
        let unknown = self.roster.poll_unknown();
        for user_id in &unknown {
            self.look_into_store(user_id).await;
            self.roster.hold_back(user_id.clone());
        }
        if !unknown.is_empty() {
            self.look_up_soon(unknown);
        }
    }

    /// Takes what the client's store has of a user. Whether it has anything.
    async fn look_into_store(&mut self, user_id: &UserId) -> bool {
        let text = self.source.stored_member(user_id).await;
        if let Some(text) = &text {
            self.roster.handle_state_event(self.timer.now(), text);
        }
        text.is_some()
    }

    fn now(&self) -> Moment {
        self.timer.now()
    }
}

/// From now on, and not before so much time has gone by since the last one.
fn at_earliest(now: Moment, last: Option<Moment>, every: Duration) -> Deadline {
    let at_once = now.deadline(Duration::ZERO);
    last.map_or(at_once, |last| last.deadline(every).max(at_once))
}
