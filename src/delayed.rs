//! Delayed: events that the server sends later by itself, unless it is told otherwise ([MSC4140]):
//! `room.sticky().schedule(&gone, delay).with_sticky_key("laptop").await`.
//!
//! In: content, key, duration, and how long the server waits. Out: a [`DelayId`], and by it restart,
//! send, cancel. Never: scheduling on a server that does not say that it can, as that would send the
//! event at once; a delay id in a log or an error.
//!
//! An event is scheduled in two steps: a [`PreparedEvent`], which can be kept in a store, and the
//! request, which can be repeated exactly.
//!
//! A delay id is a capability, and it stands in the path of a request. matrix-sdk's HTTP client
//! shows the path in a span, and at level ERROR the URL of a request that failed. So these requests
//! go out by the reqwest client beneath it, which logs no path. An error names only the causes behind
//! the failure.
//!
//! [MSC4140]: https://github.com/matrix-org/matrix-spec-proposals/pull/4140

mod answer;
mod error;
mod id;
mod prepared;
mod proof;
mod request;
mod schedule;
mod support;
#[cfg(test)]
mod tests;

#[cfg(test)]
use std::time::{Duration, UNIX_EPOCH};
use std::{
    fmt,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

#[cfg(test)]
use ruma::exports::http::{HeaderMap, StatusCode};
use serde_json::Value;

pub(crate) use self::support::ServerSupport;
pub use self::{
    answer::DelayedLimits,
    error::DelayedError,
    id::DelayId,
    prepared::{PreparedEvent, ScheduledEvent},
    request::{ManageDelayed, SchedulePrepared},
    schedule::ScheduleDelayed,
};
use self::{request::Action, support::EndpointForm};
#[cfg(test)]
use crate::outbox::Answer;
use crate::{
    outbox::{ATTEMPT_TIMEOUT, Auth, Outbox, PrepareError, Request, RequestError},
    sync::state::Unsupported,
    time::Deadline,
    wire::names,
};

/// The delayed events of a client's user. Made by [`Sticky::delayed_events`](crate::Sticky); cheap
/// to clone.
///
/// Each call is **one** try: what to do after an answer was lost only the caller knows. (The first
/// call on a server may make one request more, to find out which form of [MSC4140] it speaks, and a
/// refusal is followed by a look at the server's limits, to tell what was meant. Before a sticky event
/// goes to the dedicated endpoint, a removal of a key that nobody has is sent by it, to see that the
/// endpoint keeps events sticky.)
///
/// Rather than dropping one of these futures, give it a time: `.with_timeout(..)`. One that is
/// dropped leaves open what was done, and may break off a refresh of the access token.
///
/// [MSC4140]: https://github.com/matrix-org/matrix-spec-proposals/pull/4140
#[derive(Clone)]
pub struct DelayedEvents {
    outbox: Outbox,
    support: Arc<Mutex<ServerSupport>>,
}

impl DelayedEvents {
    pub(crate) fn new(outbox: Outbox, support: Arc<Mutex<ServerSupport>>) -> Self {
        Self { outbox, support }
    }

    /// Schedules an event that was made ready before. Awaiting it does.
    ///
    /// Where the answer to an earlier request for it was lost, this tells its delay id, and does not
    /// schedule it again: see [`PreparedEvent`].
    pub fn schedule<'a>(&'a self, event: &'a PreparedEvent) -> SchedulePrepared<'a> {
        SchedulePrepared { events: self, event, timeout: ATTEMPT_TIMEOUT }
    }

    /// Has the event wait for its whole delay again, from now on. Awaiting it does.
    ///
    /// [`DelayedError::Gone`] says that it waits no more: most likely it was sent.
    pub fn restart<'a>(&'a self, delay_id: &'a DelayId) -> ManageDelayed<'a> {
        ManageDelayed::new(self, delay_id, Action::Restart)
    }

    /// Has the event sent now. Awaiting it does.
    ///
    /// A refusal with `M_FORBIDDEN` says that the user may not send it. [MSC4140] keeps it
    /// scheduled then; Synapse forgets it.
    ///
    /// [MSC4140]: https://github.com/matrix-org/matrix-spec-proposals/pull/4140
    pub fn send<'a>(&'a self, delay_id: &'a DelayId) -> ManageDelayed<'a> {
        ManageDelayed::new(self, delay_id, Action::Send)
    }

    /// Has the event never sent. Awaiting it does.
    ///
    /// Where an answer was lost, a second call's [`DelayedError::Gone`] leaves open whether the
    /// event was cancelled or sent, on servers that tell no more than that it is not there.
    pub fn cancel<'a>(&'a self, delay_id: &'a DelayId) -> ManageDelayed<'a> {
        ManageDelayed::new(self, delay_id, Action::Cancel)
    }

    /// The user's events that are scheduled, of all devices and rooms. An entry that cannot be read
    /// is left out.
    ///
    /// # Errors
    ///
    /// [`DelayedError`].
    pub async fn list(&self) -> Result<Vec<ScheduledEvent>, DelayedError> {
        let request =
            Request::get(vec!["unstable", names::DELAYED, "delayed_events"], Auth::Needed);
        let answer = self.outbox.ask(&request, self.outbox.deadline(ATTEMPT_TIMEOUT)).await?;
        if !answer.is_success() {
            return Err(answer.error(self.outbox.unix_now()).into());
        }
        Ok(answer.scheduled().ok_or_else(RequestError::unreadable)?)
    }

    /// What the server allows; `None` where it does not say.
    ///
    /// # Errors
    ///
    /// [`DelayedError`].
    pub async fn limits(&self) -> Result<Option<DelayedLimits>, DelayedError> {
        self.limits_within(self.outbox.deadline(ATTEMPT_TIMEOUT)).await
    }

    async fn limits_within(
        &self,
        deadline: Deadline,
    ) -> Result<Option<DelayedLimits>, DelayedError> {
        let request = Request::get(vec!["v3", "capabilities"], Auth::Needed);
        let answer = self.outbox.ask(&request, deadline).await?;
        if !answer.is_success() {
            return Err(answer.error(self.outbox.unix_now()).into());
        }
        Ok(answer.limits().ok_or_else(RequestError::unreadable)?)
    }

    /// Makes sure that the server knows delayed events, and sticky ones if these are wanted. A
    /// server that has said so is not asked again.
    async fn ensure_supported(
        &self,
        is_sticky: bool,
        deadline: Deadline,
    ) -> Result<(), DelayedError> {
        {
            let known = self.known();
            if known.delayed && (known.sticky || !is_sticky) {
                return Ok(());
            }
        }
        let features = self.outbox.unstable_features(deadline).await;
        let features = features.map_err(|error| DelayedError::from(error).after_tries(false))?;
        let has = |name: &str| features.get(name) == Some(&Value::Bool(true));
        let (delayed, has_sticky) = (has(names::DELAYED), has(names::FEATURE));
        {
            let mut known = self.known();
            known.delayed = delayed;
            known.sticky = has_sticky;
        }
        if !delayed {
            // Synapse, when its administrator has not allowed them, does not list them either; but
            // it has limits for them.
            let limits = self.limits_within(deadline).await.ok().flatten();
            return Err(match limits {
                Some(limits) if limits.is_disabled() => DelayedError::Disabled,
                _ => DelayedError::NotSupported { may_have_been_sent: false },
            });
        }
        if is_sticky && !has_sticky {
            return Err(PrepareError::Unsupported(Unsupported::StickyEvents).into());
        }
        Ok(())
    }

    /// Schedules an event: in the form that the server is known to take, else in each in turn.
    async fn put(
        &self,
        event: &PreparedEvent,
        deadline: Deadline,
    ) -> Result<DelayId, DelayedError> {
        let is_sticky = event.sticky_duration().is_some();
        self.ensure_supported(is_sticky, deadline).await?;
        let mut refused = None;
        let forms = self.known().forms(is_sticky);
        for form in forms {
            if is_sticky && form == EndpointForm::New {
                match self.ensure_keeps_stickiness(event, deadline).await {
                    Ok(()) => {}
                    // There is no such endpoint.
                    Err(DelayedError::NotSupported { may_have_been_sent: false }) => continue,
                    Err(error) => return Err(error),
                }
            }
            let answer = self.outbox.put(&event.event, form.target(event), deadline).await?;
            if answer.is_unrecognized() {
                self.known().schedule = Some(form.other());
                continue;
            }
            if answer.is_success() {
                self.known().schedule = Some(form);
                let delay_id = answer.delay_id()?;
                if delay_id.is_none() {
                    // The next caller asks first.
                    self.known().delayed = false;
                }
                return delay_id.ok_or(DelayedError::NotSupported { may_have_been_sent: true });
            }
            let limits = if answer.asks_for_limits() {
                // Without them the error has what the refusal itself says.
                self.limits_within(deadline).await.ok().flatten()
            } else {
                None
            };
            let error = answer.schedule_error(event.delay(), limits, self.outbox.unix_now());
            if is_sticky && form == EndpointForm::Old && answer.may_refuse_the_form() {
                refused = Some(error);
                continue;
            }
            return Err(error);
        }
        self.known().schedule = None;
        Err(refused.unwrap_or(DelayedError::NotSupported { may_have_been_sent: false }))
    }

    /// Restarts, sends or cancels an event, in one try of each form.
    async fn manage(
        &self,
        delay_id: &DelayId,
        action: Action,
        deadline: Deadline,
    ) -> Result<(), DelayedError> {
        let known = self.known().manage;
        for form in EndpointForm::order(known) {
            let answer = self.outbox.ask(&action.request(delay_id, form), deadline).await?;
            if answer.is_unrecognized() {
                self.known().manage = Some(form.other());
                continue;
            }
            if answer.is_success() {
                self.known().manage = Some(form);
                let is_object = answer.object().map(drop);
                return Ok(is_object.ok_or_else(RequestError::unreadable)?);
            }
            return Err(answer.manage_error(action, self.outbox.unix_now(), delay_id));
        }
        self.known().manage = None;
        Err(DelayedError::NotSupported { may_have_been_sent: false })
    }

    fn known(&self) -> MutexGuard<'_, ServerSupport> {
        self.support.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl fmt::Debug for DelayedEvents {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("DelayedEvents").field("support", &*self.known()).finish_non_exhaustive()
    }
}

/// What is asked of a server, as far as the meaning of its answer depends on it.
#[cfg(test)]
#[derive(Clone, Copy)]
pub(crate) enum Asked {
    Schedule(Duration),
    Restart,
    Send,
    Cancel,
    /// An event, to be sent at once.
    Event,
}

/// What an answer means, as the methods of [`DelayedEvents`] read it.
#[cfg(test)]
pub(crate) fn answered(asked: Asked, status: u16, body: &str) -> Result<(), DelayedError> {
    let status = StatusCode::from_u16(status).map_err(|_| RequestError::unreadable())?;
    let answer = Answer::new(status, &HeaderMap::new(), body.as_bytes().to_vec());
    let action = match asked {
        Asked::Restart => Some(Action::Restart),
        Asked::Send => Some(Action::Send),
        Asked::Cancel => Some(Action::Cancel),
        Asked::Schedule(_) | Asked::Event => None,
    };
    let delay_id = DelayId::from("d".to_owned());
    match (asked, action) {
        (Asked::Event, _) if answer.is_success() && body.starts_with('{') => Ok(()),
        (Asked::Schedule(_), _) if answer.is_success() => answer
            .delay_id()?
            .map(drop)
            .ok_or(DelayedError::NotSupported { may_have_been_sent: true }),
        _ if answer.is_success() => {
            answer.object().map(drop).ok_or_else(|| RequestError::unreadable().into())
        }
        _ if answer.is_unrecognized() => {
            Err(DelayedError::NotSupported { may_have_been_sent: false })
        }
        (Asked::Schedule(delay), _) => Err(answer.schedule_error(delay, None, UNIX_EPOCH)),
        (_, Some(action)) => Err(answer.manage_error(action, UNIX_EPOCH, &delay_id)),
        _ => Err(answer.error(UNIX_EPOCH).into()),
    }
}
