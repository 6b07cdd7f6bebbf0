//! One request for a prepared or a delayed event, as a future.

use std::{future::IntoFuture, time::Duration};

use matrix_sdk::reqwest::Method;
use serde_json::json;

use super::{DelayId, DelayedError, DelayedEvents, PreparedEvent, support::EndpointForm};
use crate::{
    driver::BoxFuture,
    outbox::{ATTEMPT_TIMEOUT, Auth, Request},
    wire::names,
};

/// An event to be scheduled that was made ready before. Awaiting it schedules it, in one try; made
/// by [`DelayedEvents::schedule`].
#[derive(Debug)]
#[must_use = "it is scheduled when it is awaited"]
pub struct SchedulePrepared<'a> {
    pub(super) events: &'a DelayedEvents,
    pub(super) event: &'a PreparedEvent,
    pub(super) timeout: Duration,
}

impl SchedulePrepared<'_> {
    /// Sets how long it may take until the answer is there. Defaults to 15 s. No request goes out after
    /// that.
    pub fn with_timeout(mut self, timeout: Duration) -> Self {
        self.timeout = timeout;
        self
    }
}

impl<'a> IntoFuture for SchedulePrepared<'a> {
    type Output = Result<DelayId, DelayedError>;
    type IntoFuture = BoxFuture<'a, Self::Output>;

    fn into_future(self) -> Self::IntoFuture {
        let Self { events, event, timeout } = self;
        Box::pin(async move { events.put(event, events.outbox.deadline(timeout)).await })
    }
}

/// A scheduled event to be restarted, sent or cancelled. Awaiting it does so, in one try; made by
/// [`DelayedEvents`].
#[derive(Debug)]
#[must_use = "it is done when it is awaited"]
pub struct ManageDelayed<'a> {
    events: &'a DelayedEvents,
    delay_id: &'a DelayId,
    action: Action,
    timeout: Duration,
}

impl<'a> ManageDelayed<'a> {
    pub(super) fn new(events: &'a DelayedEvents, delay_id: &'a DelayId, action: Action) -> Self {
        Self { events, delay_id, action, timeout: ATTEMPT_TIMEOUT }
    }

    /// Sets how long it may take until the answer is there. Defaults to 15 s. No request goes out after
    /// that.
    pub fn with_timeout(mut self, timeout: Duration) -> Self {
        self.timeout = timeout;
        self
    }
}

impl<'a> IntoFuture for ManageDelayed<'a> {
    type Output = Result<(), DelayedError>;
    type IntoFuture = BoxFuture<'a, Self::Output>;

    fn into_future(self) -> Self::IntoFuture {
        let Self { events, delay_id, action, timeout } = self;
        Box::pin(
            async move { events.manage(delay_id, action, events.outbox.deadline(timeout)).await },
        )
    }
}

/// What is done with an event that is scheduled.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Action {
    Restart,
    Send,
    Cancel,
}

impl Action {
    fn as_str(self) -> &'static str {
        match self {
            Self::Restart => "restart",
            Self::Send => "send",
            Self::Cancel => "cancel",
        }
    }

    /// The new form has the action in the path, the old one in the body.
    pub(super) fn request(self, delay_id: &DelayId, form: EndpointForm) -> Request<'_> {
        let mut path = vec!["unstable", names::DELAYED, "delayed_events", delay_id.as_secret_str()];
        let body = match form {
            EndpointForm::New => {
                path.push(self.as_str());
                json!({})
            }
            EndpointForm::Old => json!({ "action": self.as_str() }),
        };
        Request {
            method: Method::POST,
            path,
            query: Vec::new(),
            body: Some(body.to_string()),
            auth: Auth::Optional,
        }
    }
}
