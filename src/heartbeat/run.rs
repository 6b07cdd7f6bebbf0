//! A heartbeat that beats: the machine, and what it waits for.
//!
//! In: the owner's wishes, what became of each request, our own events as they come back, news of the
//! room's readers. Out: the state to show. Never: a decision that the machine could make.

use std::{
    sync::{Arc, Mutex},
    time::Duration,
};

use eyeball::SharedObservable;
use futures_util::{FutureExt as _, StreamExt as _, stream::FuturesUnordered};
use serde_json::{Map, Value};
use tokio::sync::mpsc;
use tracing::warn;

use super::{
    HeartbeatFailure, HeartbeatMachine, HeartbeatState, Outcome, Step,
    perform::{Context, Lease, Ready},
    readers::{add, readers_change},
    registry::{Live, Registry, lock},
    request::Wish,
    retire::retire,
    store::Armed,
    turns::HeartbeatId,
};
use crate::{
    delayed::DelayId,
    driver::{BoxFuture, optional},
    event::{RemovalReason, StickyEvent},
    readers::{News, Readers},
    time::{Deadline, Moment},
    view::{Change, Entry, EntryChange, Subscription},
    wire::insert_sticky_key,
};

const NOT_IN_ROOM: &str =
    "we are not in the room any more: we left, or somebody removed or banned us";
const REDACTED: &str = "the join was redacted";

/// How often the store is told that this process beats.
const OWN_AGAIN: Duration = Duration::from_secs(20);

/// What the task waits for.
enum Event {
    Done(Step, Outcome),
    /// The event of a step is ready to go out, or could not be made so.
    Prepared(Step, Result<Ready, Outcome>),
    Due,
    Wish(Option<Wish>),
    /// Something of ours has changed.
    Change(Change),
    /// Somebody's devices, or who is in the room.
    News(News),
    /// Who can read the room now.
    Readers(Option<Readers>),
    /// Who holds the room key, after another try to reach those who could not be.
    Offered(Option<Readers>),
    /// What other keys had armed is retired.
    Retired,
}

pub(super) struct Run {
    pub(super) context: Arc<Context>,
    pub(super) id: HeartbeatId,
    pub(super) machine: HeartbeatMachine,
    pub(super) state: SharedObservable<HeartbeatState>,
    pub(super) live: Arc<Mutex<Option<Live>>>,
}

impl Drop for Run {
    fn drop(&mut self) {
        // However it ends, nobody waits behind it any more.
        lock(&self.context.room.client().extension::<Registry>().turns).forget(self.id);
    }
}

impl Run {
    pub(super) async fn run(
        mut self,
        mut wished: mpsc::UnboundedReceiver<Wish>,
        others: Vec<Armed>,
    ) {
        let context = self.context.clone();
        let own = context.room.room().own_user_id().to_owned();
        let events = context.room.events().of_type(&*context.key.event_type).by_sender(own);
        let Subscription { mut changes, .. } = events.subscribe();
        let mut news = readers_change(context.room.room()).await;
        let retiring = context.clone();
        let retired = async move {
            retire(retiring.room.client(), &retiring.store, others).await;
        };
        let mut retired = Some(retired.boxed());
        let mut doing: Option<BoxFuture<'static, (Step, Outcome)>> = None;
        let mut preparing = FuturesUnordered::<BoxFuture<'static, _>>::new();
        let mut looking: Option<BoxFuture<'static, Option<Readers>>> = None;
        let mut offering: Option<BoxFuture<'static, Option<Readers>>> = None;
        let mut look_again = None;
        let mut owned_at = context.now();

        loop {
            let now = context.now();
            if now.since(owned_at) >= OWN_AGAIN {
                owned_at = now;
                match context.store.own(now).await {
                    Ok(true) => {}
                    Ok(false) => warn!("another client has heartbeats on the same store by now"),
                    Err(error) => warn!(%error, "the store does not take that a heartbeat beats"),
                }
            }
            let now = context.now();
            self.machine.handle_pace(
                lock(&context.room.client().extension::<Registry>().turns).is_slow(now),
            );
            while let Some(action) = self.machine.poll_action(now) {
                if !context.is_ready(action.step) {
                    self.machine.handle_outcome(now, Outcome::Preparing);
                    if self.machine.awaits(action.step) {
                        preparing.push(context.clone().prepare(action.step).boxed());
                    }
                    continue;
                }
                if let Err(until) = self.ask_turn(now, action.step) {
                    self.machine.handle_outcome(now, Outcome::NotYet { until });
                    continue;
                }
                // From the moment that the machine counts from.
                let deadline = now.deadline(action.timeout);
                doing = Some(context.clone().perform(action.step, deadline).boxed());
            }
            {
                let mut kept = context.kept();
                kept.held = self.machine.held();
                kept.armed_until = self.machine.armed_until();
                kept.outranked_until = self.machine.outranked_until();
            }
            if self.machine.is_over() && doing.is_none() {
                break;
            }
            self.state.set_if_not_eq(self.machine.state(now));
            if looking.is_none()
                && let Some(news) = look_again.take()
            {
                let context = context.clone();
                looking = Some(async move { context.readers(&news).await }.boxed());
            }
            if offering.is_none() && context.kept().reach.poll_offer(now) {
                let context = context.clone();
                offering = Some(async move { context.offer().await }.boxed());
            }
            let offer_at = context.kept().reach.next_deadline();
            let own_again = owned_at.deadline(OWN_AGAIN);
            let dues = [self.machine.next_deadline(now), offer_at.filter(|_| offering.is_none())];
            let due = dues.into_iter().flatten().fold(own_again, Deadline::min);
            let event = tokio::select! {
                biased;
                wish = wished.recv() => Event::Wish(wish),
                (step, outcome) = optional(&mut doing) => Event::Done(step, outcome),
                Some((step, ready)) = preparing.next() => Event::Prepared(step, ready),
                Some(change) = changes.next() => Event::Change(change),
                () = optional(&mut retired) => Event::Retired,
                readers = optional(&mut looking) => Event::Readers(readers),
                holders = optional(&mut offering) => Event::Offered(holders),
                Some(news) = news.next() => Event::News(news),
                () = context.room.timer().sleep_until(due) => Event::Due,
            };
            let now = context.now();
            match event {
                Event::Done(step, outcome) => {
                    doing = None;
                    if let Outcome::RateLimited { retry_after } = outcome {
                        let registry = context.room.client().extension::<Registry>();
                        lock(&registry.turns).handle_limit(now, step, retry_after);
                    }
                    self.machine.handle_outcome(now, outcome);
                    if matches!((step, outcome), (Step::Join { .. }, Outcome::Done)) {
                        // It may have come back before it was answered.
                        events.snapshot().iter().for_each(|entry| self.look_for_join(&entry));
                    }
                    self.forget_leases().await;
                    if matches!((step, outcome), (Step::Arm { .. }, Outcome::Done)) {
                        // Somebody may have come while it was on its way.
                        add(&mut look_again, News { members: true, ..News::default() });
                    }
                }
                Event::Prepared(step, ready) => self.handle_prepared(now, step, ready),
                Event::Due => {}
                Event::Wish(Some(wish)) => self.handle_wish(wish),
                // The handle is gone without having left: as after a crash, the leave fires.
                Event::Wish(None) => return,
                Event::Change(change) => self.handle_change(&change),
                Event::News(news) => add(&mut look_again, news),
                Event::Readers(readers) => {
                    looking = None;
                    if let Some(readers) = readers {
                        self.handle_readers(now, readers);
                    }
                }
                Event::Offered(holders) => {
                    offering = None;
                    self.handle_offered(now, holders.as_ref());
                }
                Event::Retired => retired = None,
            }
        }
        let state = self.machine.state(context.now());
        let why = match state {
            HeartbeatState::Failed(HeartbeatFailure::LeaveFired) => {
                Some("the armed leave has fired")
            }
            HeartbeatState::Failed(HeartbeatFailure::Removed) => {
                Some("the member was removed, or its join ran out")
            }
            HeartbeatState::Failed(HeartbeatFailure::NotInRoom) => Some(NOT_IN_ROOM),
            HeartbeatState::Failed(HeartbeatFailure::Redacted) => Some(REDACTED),
            _ => None,
        };
        if let Some(why) = why {
            context.kept().last_error = Some(why.to_owned());
        }
        // The key is free, and the store nobody's, before anybody hears that it is over.
        self.forget_leases().await;
        lock(&self.live).take();
        context.store.disown(|| context.room.client().extension::<Registry>().is_idle()).await;
        self.state.set_if_not_eq(state);
    }

    fn handle_wish(&mut self, wish: Wish) {
        let now = self.context.now();
        match wish {
            Wish::Update(mut content) => {
                insert_sticky_key(&mut content, &self.context.key.sticky_key);
                self.context.kept().content = content;
                self.machine.handle_update();
            }
            Wish::Leave => {
                let last_words = self.context.kept().last_words.take();
                match last_words {
                    Some(content) => self.leave_with(content),
                    None => self.machine.handle_leave(),
                }
            }
            Wish::LeaveWith(content) => self.leave_with(content),
            Wish::Suspend(in_background) => self.machine.handle_suspend(in_background),
            Wish::Resume => self.machine.handle_resume(now),
            Wish::Delegate(lease) => self.machine.handle_delegated(lease),
            Wish::TakeBack => self.machine.handle_taken_back(now),
        }
    }

    fn leave_with(&mut self, mut content: Map<String, Value>) {
        insert_sticky_key(&mut content, &self.context.key.sticky_key);
        {
            let mut kept = self.context.kept();
            kept.leave_content = content;
            // These are the last.
            kept.last_words = None;
        }
        self.machine.handle_leave_with();
    }

    /// Our own leave comes back, with its delay id; or all that is known is that the entry is gone,
    /// and then it is asked what became of the lease.
    fn handle_change(&mut self, change: &Change) {
        let key = self.context.key.sticky_key.clone();
        for change in &change.entries {
            let entry = change.entry();
            if entry.sticky_key() != Some(&key) {
                continue;
            }
            let now = self.context.now();
            match change {
                EntryChange::Removed { reason: RemovalReason::Removed, .. } => {
                    self.machine.handle_doubt(now);
                }
                EntryChange::Removed { reason: RemovalReason::Expired, .. } => {
                    self.machine.handle_expired(now);
                }
                EntryChange::Removed { reason: RemovalReason::Redacted, .. } => {
                    self.machine.handle_ended(HeartbeatFailure::Redacted);
                }
                EntryChange::Removed { reason: RemovalReason::RoomLeft, .. } => {
                    self.machine.handle_ended(HeartbeatFailure::NotInRoom);
                }
                EntryChange::Removed { .. } => {}
                EntryChange::Updated { entry, previous } if is_lost_refresh(entry, previous) => {
                    self.machine.handle_ended(HeartbeatFailure::Redacted);
                }
                _ => {
                    self.look_for_join(entry);
                    let Some(delay_id) = DelayId::of_event(entry.raw()) else { continue };
                    let fired = {
                        let kept = self.context.kept();
                        let mut leases = kept.leases.iter();
                        leases
                            .find(|(_, lease)| lease.delay_id.as_ref() == Some(&delay_id))
                            .map(|(lease, _)| *lease)
                    };
                    match fired {
                        Some(lease) => self.machine.handle_fired(now, lease),
                        // One that is not known any more.
                        None => self.machine.handle_doubt(now),
                    }
                }
            }
        }
    }

    fn look_for_join(&mut self, entry: &Entry) {
        if self.context.kept().joined.as_deref() == Some(entry.event_id()) {
            self.machine.handle_shown();
        }
    }

    /// Whether it is this heartbeat's turn among those of the client.
    fn ask_turn(&self, now: Moment, step: Step) -> Result<(), Deadline> {
        let kept = self.context.kept();
        let ends_at = match step {
            // Everybody waits to see it.
            Step::Fire(_) | Step::Leave { .. } => now.deadline(Duration::ZERO),
            _ => kept.armed_until.unwrap_or(now.deadline(self.context.delay)),
        };
        lock(&self.context.room.client().extension::<Registry>().turns)
            .ask(now, self.id, step, ends_at)
    }

    fn handle_prepared(&mut self, now: Moment, step: Step, ready: Result<Ready, Outcome>) {
        if !self.machine.awaits(step) {
            return;
        }
        let outcome = match ready {
            Err(outcome) => outcome,
            Ok(ready) => {
                let mut kept = self.context.kept();
                let kept = &mut *kept;
                match ready {
                    Ready::Leave(lease, leave, reached) => {
                        kept.reach.handle_leave(now, reached, kept.readers.clone());
                        kept.leases.insert(lease, Lease::new(leave));
                    }
                    Ready::Event(send, event, reached) => {
                        if matches!(step, Step::Join { .. }) {
                            kept.reach.handle_join(now, reached, &kept.readers);
                        }
                        kept.sending = Some((send, event));
                    }
                }
                Outcome::Done
            }
        };
        self.machine.handle_prepared(now, step, outcome);
    }

    /// Who is there, compared with who could read the leave that is armed.
    fn handle_readers(&mut self, now: Moment, readers: Readers) {
        let mut kept = self.context.kept();
        let has_come = kept.reach.handle_readers(&readers);
        let count = readers.len();
        kept.readers = readers;
        drop(kept);
        if has_come {
            self.machine.handle_newcomers(now, count);
        }
    }

    /// Another try to reach those who could not be is over.
    fn handle_offered(&mut self, now: Moment, holders: Option<&Readers>) {
        let mut kept = self.context.kept();
        let kept = &mut *kept;
        let has_gained = kept.reach.handle_offered(now, holders, &kept.readers);
        if has_gained {
            self.machine.handle_newcomers(now, kept.readers.len());
        }
    }

    /// What cannot fire any more need not be found by the next process.
    async fn forget_leases(&mut self) {
        let gone: Vec<_> = {
            let mut kept = self.context.kept();
            let gone: Vec<_> =
                kept.leases.keys().copied().filter(|lease| !self.machine.needs(*lease)).collect();
            gone.iter().filter_map(|lease| kept.leases.remove(lease)).collect()
        };
        for lease in gone {
            if let Some(delay_id) = &lease.delay_id {
                lock(&self.context.room.client().extension::<Registry>().delay_ids)
                    .remove(delay_id);
            }
            if let Err(error) = self.context.store.remove(lease.leave.transaction_id()).await {
                warn!(%error, "a leave that is over could not be removed from the store");
            }
        }
    }
}

/// Whether the map shows an earlier join of ours again, as somebody has redacted the later one. Of a
/// leave that is redacted all that is to be known is that it was sent.
fn is_lost_refresh(entry: &Entry, previous: &StickyEvent) -> bool {
    previous.is_redacted()
        && entry.event().rank() < previous.rank()
        && DelayId::of_event(previous.raw()).is_none()
}
