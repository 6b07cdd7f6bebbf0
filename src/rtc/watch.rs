//! Watch: the roster of one room, and what feeds it.
//!
//! In: the changes of the room's map, its state from the client's store, the server and the main loop. Out: the
//! roster's changes, each with a snapshot. Never: a task, a lock, or deciding who counts. It runs while its
//! stream is polled.

mod schedule;

use std::{collections::BTreeSet, future::pending, sync::Arc, time::Duration};

use futures_util::{FutureExt as _, StreamExt as _, stream};
use matrix_sdk::Room;
use ruma::{OwnedUserId, UserId};
use tokio::sync::mpsc;
use tracing::debug;

use self::schedule::{Question, Schedule};
use super::{
    leave::LeaveReason,
    own::Own,
    room_state::{Fetched, MainLoopUpdate, NoAnswer, Source, is_of_a_session},
    roster::{Leftover, Roster, Transition},
    snapshot::RtcSnapshot,
};
use crate::{
    context::RoomContext,
    driver::{BoxFuture, Timer, before, until},
    heartbeat::Registry,
    send::{SendError, SendSticky},
    time::{Deadline, Moment},
    view::{Changes, Subscription},
};

/// How long to wait for the server's answer, with all that it takes.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(12);

/// How many earlier events of users are asked for at once.
const MAX_CONCURRENT_DECISIONS: usize = 8;

/// How long after a failure the next attempt follows to remove a membership of ours from before we were out of
/// the room.
const REMOVAL_RETRY_INTERVAL: Duration = Duration::from_secs(60);

/// What the server has answered.
enum Answer {
    Fetched(Fetched),
    /// Until when these users were out of the room, if they were.
    Decided(Vec<(OwnedUserId, Result<Option<u64>, NoAnswer>)>),
    None,
}

/// What the server is being asked.
enum Query {
    Idle,
    Asking {
        /// The users about whom it is asked. None while it is asked what decides about users.
        about: BTreeSet<OwnedUserId>,
        answer: BoxFuture<'static, Answer>,
    },
}

impl Query {
    fn is_asking(&self) -> bool {
        matches!(self, Self::Asking { .. })
    }

    /// Waits for the answer, and forever if nothing was asked. Dropping the future loses nothing.
    async fn answer(&mut self) -> (BTreeSet<OwnedUserId>, Answer) {
        let Self::Asking { about, answer } = self else { return pending().await };
        let answer = answer.await;
        let about = std::mem::take(about);
        *self = Self::Idle;
        (about, answer)
    }
}

/// The removal of a membership of ours that outlived our being out of the room.
enum Removal {
    Idle,
    Sending(BoxFuture<'static, Result<(), SendError>>),
    /// It failed, and is tried again then.
    Failed {
        retry_at: Deadline,
    },
}

impl Removal {
    /// Waits until it is sent, and forever if nothing is. Dropping the future loses nothing.
    async fn sent(&mut self) -> Result<(), SendError> {
        let Self::Sending(sending) = self else { return pending().await };
        let sent = sending.await;
        *self = Self::Idle;
        sent
    }

    fn retry_at(&self) -> Option<Deadline> {
        match self {
            Self::Failed { retry_at } => Some(*retry_at),
            Self::Idle | Self::Sending(_) => None,
        }
    }
}

/// A roster, and what feeds it.
pub(super) struct Watch {
    roster: Roster,
    changes: Changes,
    source: Source,
    sticky: RoomContext,
    timer: Arc<dyn Timer>,
    /// Whether we are out of the room, as the main loop said last.
    has_left: bool,
    schedule: Schedule,
    query: Query,
    removal: Removal,
    /// Requests to ask the server for the whole state, by their numbers.
    refreshes: mpsc::UnboundedReceiver<u64>,
    /// The refresh that is wanted last, the one that the server is being asked for, and the last one that is done.
    wanted: u64,
    asking: Option<u64>,
    answered: u64,
    /// Whether the server has answered what it was asked last.
    has_answered: bool,
}

/// What is new.
pub(super) struct News {
    /// What is shown in another way than before.
    pub(super) transitions: Vec<Transition>,
    /// The sessions from now on.
    pub(super) snapshot: RtcSnapshot,
    /// The last refresh that is done.
    pub(super) answered: u64,
    /// Whether the server has answered what it was asked last.
    pub(super) has_answered: bool,
}

impl Watch {
    /// Starts to watch a room. Returns when the server has answered, or has not in time.
    pub(super) async fn start(
        sticky: &RoomContext,
        room: &Room,
        refreshes: mpsc::UnboundedReceiver<u64>,
    ) -> Self {
        // Both streams before anything is read, so that nothing falls between.
        let Subscription { snapshot, changes } = sticky.events().subscribe();
        let source = Source::new(room.clone());
        let mut roster = Roster::new();
        roster.handle_snapshot(&snapshot);
        let mut watch = Self {
            roster,
            changes,
            source,
            sticky: sticky.clone(),
            timer: sticky.timer().clone(),
            has_left: false,
            schedule: Schedule::new(),
            query: Query::Idle,
            removal: Removal::Idle,
            refreshes,
            wanted: 0,
            asking: None,
            answered: 0,
            has_answered: false,
        };
        watch.ask_encryption().await;
        let stored = watch.source.stored().await;
        watch.handle_state(stored);
        watch.look_up().await;
        let question = watch.schedule.whole_question(watch.timer.now(), []);
        watch.ask(question);
        while watch.query.is_asking() {
            let (about, answer) = watch.query.answer().await;
            watch.handle_answer(about, answer).await;
        }
        watch
    }

    /// Returns the sessions now. What there is to begin with is in this snapshot, and not in the news.
    pub(super) fn snapshot(&mut self) -> RtcSnapshot {
        let now = self.now();
        self.roster.poll_transitions(now);
        self.roster.snapshot(now)
    }

    /// Waits until something is shown in another way, or a refresh is done.
    pub(super) async fn next(&mut self) -> News {
        loop {
            self.look_up().await;
            let now = self.now();
            let transitions = self.roster.poll_transitions(now);
            let refreshed = self.asking.take_if(|_| !self.query.is_asking());
            self.answered = refreshed.unwrap_or(self.answered);
            if !transitions.is_empty() || refreshed.is_some() {
                let snapshot = self.roster.snapshot(now);
                let (answered, has_answered) = (self.answered, self.has_answered);
                return News { transitions, snapshot, answered, has_answered };
            }
            if !self.query.is_asking() {
                if self.wanted > self.answered {
                    self.asking = Some(self.wanted);
                    let question = self.schedule.whole_question(now, self.roster.users());
                    self.ask(question);
                } else if let Some(question) = self.schedule.poll_question(now) {
                    self.ask(question);
                }
            }
            self.remove_leftover(now);
            // What is due waits for the answer that is on its way.
            let ask_at = self.schedule.next_deadline().filter(|_| !self.query.is_asking());
            let deadlines = [self.roster.next_deadline(), ask_at, self.removal.retry_at()];
            let deadline = deadlines.into_iter().flatten().min();
            let timer = self.timer.clone();
            tokio::select! {
                Some(change) = self.changes.next() => self.roster.handle_change(&change),
                Some(wanted) = self.refreshes.recv() => self.wanted = self.wanted.max(wanted),
                // Not while the server is asked: its answer may be older than what comes meanwhile.
                told = self.source.next(), if !self.query.is_asking() => self.handle_told(told),
                (about, answer) = self.query.answer() => self.handle_answer(about, answer).await,
                removed = self.removal.sent() => self.handle_removed(removed),
                () = until(&*timer, deadline) => {}
            }
        }
    }

    fn handle_told(&mut self, told: MainLoopUpdate) {
        let is_lost = told.redacted.iter().any(|event_id| self.roster.holds(event_id));
        // The event may be older than what the server told. The server's answer puts that right.
        let is_doubtful = told.events.iter().any(|text| is_of_a_session(text));
        let now = self.now();
        for text in told.events {
            if let Some(user_id) = self.roster.handle_late_state_event(now, &text) {
                self.schedule.handle_strangers(now, [user_id]);
            }
        }
        let is_back = self.has_left && !told.has_left;
        self.has_left = told.has_left;
        if told.has_left {
            self.roster.handle_room_left(now);
        } else if told.is_gap || is_back {
            self.schedule.handle_doubt(now, self.roster.users());
        } else if is_lost || is_doubtful {
            self.schedule.handle_doubt(now, []);
        }
    }

    fn handle_state(&mut self, texts: Vec<String>) {
        let now = self.now();
        for text in texts {
            self.roster.handle_state_event(now, &text);
        }
    }

    /// Asks the server.
    fn ask(&mut self, Question { about, is_whole }: Question) {
        let asking = self.source.fetch(about.iter().cloned().collect(), is_whole);
        let deadline = self.now().deadline(ANSWER_TIMEOUT);
        let timer = self.timer.clone();
        let answer = async move {
            let fetched = before(&*timer, deadline, asking).await.flatten();
            fetched.map_or(Answer::None, Answer::Fetched)
        };
        self.query = Query::Asking { about, answer: answer.boxed() };
    }

    async fn handle_answer(&mut self, about: BTreeSet<OwnedUserId>, answer: Answer) {
        match answer {
            Answer::Fetched(fetched) => {
                self.has_answered = true;
                self.handle_fetched(fetched, &about).await;
                self.decide(about);
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
                self.has_answered = false;
                about.iter().for_each(|user_id| self.roster.release(user_id));
                self.ask_again(about);
            }
        }
        self.ask_encryption().await;
        #[cfg(feature = "e2e-encryption")]
        if self.roster.is_encrypted() {
            self.source.tell_sdk_of_encryption().await;
        }
    }

    async fn handle_fetched(&mut self, fetched: Fetched, about: &BTreeSet<OwnedUserId>) {
        let is_in_store = matches!(fetched, Fetched::IsInStore);
        let (texts, is_whole) = match fetched {
            Fetched::Events { texts, is_whole } => (texts, is_whole),
            Fetched::IsInStore => (self.source.stored().await, true),
        };
        self.handle_state(texts);
        if is_whole {
            self.roster.handle_state_known();
        }
        for user_id in about {
            // The server has nothing of this user, or the client has learnt it.
            if (is_in_store || !self.roster.knows(user_id)) && !self.look_into_store(user_id).await
            {
                self.roster.handle_in_room(user_id, false);
            }
        }
    }

    /// Asks the server what decides about these users, if anything is still open.
    fn decide(&mut self, about: BTreeSet<OwnedUserId>) {
        let mut undecided = Vec::new();
        for user_id in about {
            match self.roster.undecided(&user_id) {
                Some(it) => {
                    // They stay in or out, as they were shown.
                    self.roster.hold_back(user_id.clone());
                    undecided.push((user_id, it));
                }
                None => self.roster.release(&user_id),
            }
        }
        if undecided.is_empty() {
            return;
        }
        let deadline = self.now().deadline(ANSWER_TIMEOUT);
        let deciding = undecided.into_iter().map(|(user_id, undecided)| {
            let deciding = self.source.decide(user_id.clone(), undecided);
            let timer = self.timer.clone();
            async move {
                let decided = before(&*timer, deadline, deciding).await;
                (user_id, decided.unwrap_or(Err(NoAnswer)))
            }
        });
        let deciding = stream::iter(deciding.collect::<Vec<_>>());
        let decided = deciding.buffer_unordered(MAX_CONCURRENT_DECISIONS).collect();
        let answer = decided.map(Answer::Decided).boxed();
        self.query = Query::Asking { about: BTreeSet::new(), answer };
    }

    /// Has the server asked again in a while, with the users about whom it has not answered.
    fn ask_again(&mut self, users: impl IntoIterator<Item = OwnedUserId>) {
        // While we are not in the room it answers nothing.
        if self.source.are_we_in() {
            self.schedule.handle_no_answer(self.now(), users);
        }
    }

    async fn ask_encryption(&mut self) {
        if let Some(is_encrypted) = self.source.is_encrypted().await {
            self.roster.handle_encryption(is_encrypted);
        }
    }

    /// Looks up new senders: first in the client's store, and then on the server, because some main loops never
    /// report that a user left.
    ///
    /// New senders are held back until the server has answered, or has not in time: otherwise a user who was
    /// kicked would get our media key. Nobody else waits for that.
    async fn look_up(&mut self) {
        let unknown = self.roster.poll_unknown();
        for user_id in &unknown {
            self.look_into_store(user_id).await;
            self.roster.hold_back(user_id.clone());
        }
        if !unknown.is_empty() {
            self.schedule.handle_strangers(self.now(), unknown);
        }
    }

    /// Takes what the client's store has of a user. Returns whether it has anything.
    async fn look_into_store(&mut self, user_id: &UserId) -> bool {
        let text = self.source.stored_member(user_id).await;
        if let Some(text) = &text {
            self.roster.handle_state_event(self.timer.now(), text);
        }
        text.is_some()
    }

    /// Removes a membership of this device from before we were out of the room, unless a heartbeat has its key.
    /// To others it may look as if we were still in the session.
    fn remove_leftover(&mut self, now: Moment) {
        match &self.removal {
            Removal::Idle => {}
            Removal::Failed { retry_at } if retry_at.is_over(now) => {}
            Removal::Failed { .. } | Removal::Sending(_) => return,
        }
        self.removal = Removal::Idle;
        let room = self.source.room();
        let client = room.client();
        let Some((user_id, device_id)) = client.user_id().zip(client.device_id()) else { return };
        let heartbeats = self.sticky.client().extension::<Registry>();
        let mut leftovers = self.roster.leftovers(user_id, device_id).filter(|it| {
            !heartbeats.has(room.room_id(), it.event_type, &it.member_id)
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
        self.removal = Removal::Sending(removing.boxed());
    }

    fn handle_removed(&mut self, removed: Result<(), SendError>) {
        if let Err(error) = removed {
            debug!(%error, "a membership of ours from before we left the room stays");
            let retry_at = self.now().deadline(REMOVAL_RETRY_INTERVAL);
            self.removal = Removal::Failed { retry_at };
        }
    }

    fn now(&self) -> Moment {
        self.timer.now()
    }
}
