//! Perform: the actions of the machine, as requests.
//!
//! In: a step, and when its request has to be over. Out: what became of it ([`Outcome`]). Never: a
//! decision that the machine could make.

use std::{
    collections::HashMap,
    fmt,
    sync::{Arc, Mutex, MutexGuard},
    time::Duration,
};

use ruma::OwnedEventId;
use serde_json::{Map, Value};
use tracing::debug;

use super::{
    LeaseId, Outcome, SendId, Step,
    outcome::outcome,
    reach::Reach,
    registry::{Registry, lock},
    retire::{listed, scheduled_as},
    store::{Armed, HeartbeatKey, Store},
};
#[cfg(feature = "e2e-encryption")]
use crate::encrypt::Encryptor;
use crate::{
    context::RoomContext,
    delayed::{DelayId, DelayedError, DelayedEvents, PreparedEvent, ScheduleDelayed},
    driver::before,
    outbox::ReadyEvent,
    readers::{News, Readers},
    time::{Deadline, Moment, millis},
};

/// What the actions are performed with.
pub(super) struct Context {
    pub(super) room: RoomContext,
    pub(super) events: DelayedEvents,
    pub(super) store: Store,
    pub(super) key: HeartbeatKey,
    /// For how long the leave is sticky.
    pub(super) sticky_duration: Duration,
    pub(super) delay: Duration,
    pub(super) kept: Mutex<Kept>,
}

/// What stands behind the machine's numbers.
#[derive(Default)]
pub(super) struct Kept {
    pub(super) content: Map<String, Value>,
    pub(super) leave_content: Map<String, Value>,
    pub(super) last_words: Option<Map<String, Value>>,
    pub(super) leases: HashMap<LeaseId, Lease>,
    pub(super) held: Option<LeaseId>,
    pub(super) armed_until: Option<Deadline>,
    pub(super) outranked_until: Option<Deadline>,
    /// Who is in the room, as far as is known; see [`Context::readers`].
    pub(super) readers: Readers,
    pub(super) reach: Reach,
    /// The event that is sent next, or was sent last.
    pub(super) sending: Option<(SendId, ReadyEvent)>,
    /// The last join that was answered.
    pub(super) joined: Option<OwnedEventId>,
    pub(super) last_error: Option<String>,
}

pub(super) struct Lease {
    pub(super) leave: PreparedEvent,
    pub(super) delay_id: Option<DelayId>,
    /// Whether it may be armed already: by an earlier process, or by a try that was not answered.
    pub(super) is_unsure: bool,
    /// Whether the next process can find it in the store.
    pub(super) is_stored: bool,
    /// Whether it has fired, or never was armed, unless the server lists it: an earlier process's.
    pub(super) is_over: bool,
}

impl Lease {
    pub(super) fn new(leave: PreparedEvent) -> Self {
        Self { leave, delay_id: None, is_unsure: false, is_stored: false, is_over: false }
    }
}

/// An event that is ready to go out, and who can read it.
pub(super) enum Ready {
    Leave(LeaseId, PreparedEvent, Readers),
    Event(SendId, ReadyEvent, Readers),
}

impl Context {
    pub(super) async fn perform(
        self: Arc<Self>,
        step: Step,
        deadline: Deadline,
    ) -> (Step, Outcome) {
        let outcome = match step {
            Step::Arm { lease, .. } => self.arm(step, lease, deadline).await,
            Step::Restart(lease) | Step::Fire(lease) | Step::Cancel(lease) => {
                self.manage(step, lease, deadline).await
            }
            Step::Join { send, .. } => match self.send(step, send, deadline).await {
                Ok(event_id) => {
                    self.kept().joined = Some(event_id);
                    Outcome::Done
                }
                Err(outcome) => outcome,
            },
            Step::Leave { send, .. } => {
                let sent = self.send(step, send, deadline).await;
                sent.map_or_else(|outcome| outcome, |_| Outcome::Done)
            }
        };
        (step, outcome)
    }

    /// Whether the event of a step can go out as it is: it is encrypted, or the room is not.
    pub(super) fn is_ready(&self, step: Step) -> bool {
        let kept = self.kept();
        match step {
            Step::Arm { lease, .. } => kept.leases.contains_key(&lease),
            Step::Join { send, .. } | Step::Leave { send, .. } => {
                let event = kept.sending.as_ref().filter(|(ready, _)| *ready == send);
                let is_plain = !self.room.room().encryption_state().is_encrypted();
                event.is_some_and(|(_, event)| is_plain || event.is_encrypted())
            }
            Step::Restart(_) | Step::Fire(_) | Step::Cancel(_) => true,
        }
    }

    /// Makes the event of a step ready to go out. That takes as long as it takes: in a large room it is
    /// many requests, and a lease is restarted meanwhile.
    pub(super) async fn prepare(self: Arc<Self>, step: Step) -> (Step, Result<Ready, Outcome>) {
        let ready = match step {
            Step::Arm { lease, delay } => self.prepare_leave(lease, delay).await,
            Step::Join { send, sticky } => {
                let content = {
                    let mut kept = self.kept();
                    kept.joined = None;
                    kept.content.clone()
                };
                self.prepare_event(step, send, sticky, &content).await
            }
            Step::Leave { send, sticky } => {
                let content = self.kept().leave_content.clone();
                self.prepare_event(step, send, sticky, &content).await
            }
            Step::Restart(_) | Step::Fire(_) | Step::Cancel(_) => Err(Outcome::Unknown),
        };
        (step, ready)
    }

    async fn prepare_leave(&self, lease: LeaseId, delay: Duration) -> Result<Ready, Outcome> {
        // Before it is encrypted: whoever comes meanwhile is looked for once it is armed.
        let news = News { members: true, ..News::default() };
        if let Some(readers) = self.readers(&news).await {
            self.kept().readers = readers;
        }
        let content = self.kept().leave_content.clone();
        let (events, room) = (self.events.clone(), self.room.room().clone());
        let prepared = ScheduleDelayed::new(events, room, &self.key.event_type, Ok(content), delay)
            .with_sticky_duration(self.sticky_duration)
            .prepare_for()
            .await;
        match prepared {
            Ok((leave, reached)) => Ok(Ready::Leave(lease, leave, reached)),
            Err(error) => Err(self.failed(Step::Arm { lease, delay }, &error)),
        }
    }

    async fn prepare_event(
        &self,
        step: Step,
        send: SendId,
        sticky: Duration,
        content: &Map<String, Value>,
    ) -> Result<Ready, Outcome> {
        let (room, sticky_ms) = (self.room.room(), Some(millis(sticky)));
        match ReadyEvent::prepare(room, &self.key.event_type, content, sticky_ms).await {
            Ok((event, reached)) => Ok(Ready::Event(send, event, reached)),
            Err(error) => Err(self.failed(step, &DelayedError::Prepare(error))),
        }
    }

    async fn manage(&self, step: Step, lease: LeaseId, deadline: Deadline) -> Outcome {
        let Some(id) = self.delay_id(lease) else { return Outcome::Gone };
        let request = match step {
            Step::Restart(_) => self.events.restart(&id),
            Step::Fire(_) => self.events.send(&id),
            _ => self.events.cancel(&id),
        };
        self.outcome(step, request.with_timeout(self.left(deadline)).await)
    }

    async fn arm(&self, step: Step, lease: LeaseId, deadline: Deadline) -> Outcome {
        let known = {
            let kept = self.kept();
            let known = kept.leases.get(&lease);
            known.map(|it| (it.leave.clone(), it.is_unsure, it.is_stored, it.is_over))
        };
        let Some((leave, is_unsure, is_stored, is_over)) = known else { return Outcome::Unknown };
        if is_unsure {
            return self.find(step, lease, &leave, is_over, deadline).await;
        }
        if !is_stored {
            // Before the request goes out, so that whatever becomes of it can be found again.
            let armed = Armed::new(self.key.clone(), leave.clone(), self.now());
            if let Err(error) = self.store.add(armed).await {
                self.note(&error);
                return Outcome::Unknown;
            }
            if let Some(lease) = self.kept().leases.get_mut(&lease) {
                lease.is_stored = true;
            }
        }
        let scheduled = self.events.schedule(&leave).with_timeout(self.left(deadline)).await;
        if let Err(DelayedError::BecameEncrypted) = scheduled {
            // The next try makes another ready. This one was not armed.
            self.kept().leases.remove(&lease);
            if let Err(error) = self.store.remove(leave.transaction_id()).await {
                self.note(&error);
            }
        }
        let outcome = self.learn(step, lease, scheduled);
        if outcome == Outcome::Unknown
            && let Some(lease) = self.kept().leases.get_mut(&lease)
        {
            lease.is_unsure = true;
        }
        outcome
    }

    /// Finds out what an earlier process's leave is called.
    async fn find(
        &self,
        step: Step,
        lease: LeaseId,
        leave: &PreparedEvent,
        is_over: bool,
        deadline: Deadline,
    ) -> Outcome {
        let find = async {
            let mut listed =
                listed(&self.events, &self.room.client().extension::<Registry>()).await?;
            scheduled_as(&self.events, leave, is_over, &mut listed).await
        };
        match self.before(deadline, find).await {
            None => Outcome::Unknown,
            Some(found) => self.learn(step, lease, found),
        }
    }

    fn learn(
        &self,
        step: Step,
        lease: LeaseId,
        scheduled: Result<DelayId, DelayedError>,
    ) -> Outcome {
        match scheduled {
            Ok(delay_id) => {
                lock(&self.room.client().extension::<Registry>().delay_ids)
                    .insert(delay_id.clone(), self.key.clone());
                if let Some(lease) = self.kept().leases.get_mut(&lease) {
                    lease.delay_id = Some(delay_id);
                }
                Outcome::Done
            }
            Err(error) => self.failed(step, &error),
        }
    }

    /// One event, the same at each try.
    async fn send(
        &self,
        step: Step,
        send: SendId,
        deadline: Deadline,
    ) -> Result<OwnedEventId, Outcome> {
        let ready = self.kept().sending.as_ref().filter(|(ready, _)| *ready == send).cloned();
        let Some((_, event)) = ready else { return Err(Outcome::Unknown) };
        let sent = self.room.outbox().send(&event, deadline).await;
        sent.map_err(|error| self.failed(step, &error.into()))
    }

    /// Who could read a leave that is armed now; nobody while the room is not encrypted, so that all
    /// are new when encryption is switched on.
    pub(super) async fn readers(&self, news: &News) -> Option<Readers> {
        if !self.room.room().encryption_state().is_encrypted() {
            return Some(Readers::default());
        }
        #[cfg(feature = "e2e-encryption")]
        if let Some(encryptor) = Encryptor::of(&self.room.client().client) {
            let known = self.kept().readers.clone();
            // Where encryption was just switched on, all are new.
            let is_anew = news.missed || known.is_empty();
            let (all, nobody) = (News { members: true, ..News::default() }, Readers::default());
            let (known, news) = if is_anew { (&nobody, &all) } else { (&known, news) };
            return encryptor.readers_since(self.room.room(), known, news).await.ok();
        }
        let _ = news;
        None
    }

    /// Tries again to reach those who have not got the room key. Returns who holds it now.
    pub(super) async fn offer(&self) -> Option<Readers> {
        #[cfg(feature = "e2e-encryption")]
        if let Some(encryptor) = Encryptor::of(&self.room.client().client) {
            let holders = encryptor.offer(self.room.room()).await;
            return holders.inspect_err(|error| self.note(error)).ok();
        }
        None
    }

    fn outcome(&self, step: Step, result: Result<(), DelayedError>) -> Outcome {
        result.map_or_else(|error| self.failed(step, &error), |()| Outcome::Done)
    }

    fn failed(&self, step: Step, error: &DelayedError) -> Outcome {
        self.note(error);
        outcome(step, error)
    }

    fn note(&self, error: &dyn fmt::Display) {
        let error = error.to_string();
        debug!(room_id = %self.key.room_id, "a heartbeat's request failed: {error}");
        self.kept().last_error = Some(error);
    }

    fn delay_id(&self, lease: LeaseId) -> Option<DelayId> {
        self.kept().leases.get(&lease)?.delay_id.clone()
    }

    async fn before<T>(&self, deadline: Deadline, future: impl Future<Output = T>) -> Option<T> {
        before(&**self.room.timer(), deadline, future).await
    }

    fn left(&self, deadline: Deadline) -> Duration {
        deadline.left(self.now())
    }

    pub(super) fn now(&self) -> Moment {
        self.room.timer().now()
    }

    pub(super) fn kept(&self) -> MutexGuard<'_, Kept> {
        lock(&self.kept)
    }
}
