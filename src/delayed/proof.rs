//! Proof: whether the endpoint for delayed events keeps them sticky.
//!
//! In: an event that is to be sticky, on a server that does not take it by the query form. Out: whether
//! the server may have it by the dedicated endpoint. A draft of that endpoint takes the parameter and
//! ignores it: a leave that it sends is an ordinary event, and everybody sees the member for up to an
//! hour. So a removal of a key that nobody has goes first. It is scheduled, sent at once, and looked at.
//! What has not been proved is never relied on.

use std::time::Duration;

use matrix_sdk::{Room, reqwest::Method};
use serde::Deserialize;
use serde_json::{Map, Value, json, value::RawValue};

use super::{
    Action, DelayId, DelayedError, DelayedEvents, EndpointForm, PreparedEvent,
    support::{Dedicated, Probe},
};
use crate::{
    driver::{before, unique_name},
    outbox::{Auth, ReadyEvent, Request, RequestError},
    time::Deadline,
    wire::{insert_sticky_key, names},
};

/// The type of the removal inside of its encryption. (In plaintext it has the type of the event that is
/// to be scheduled, as the user may have no right to send another.)
const TYPE: &str = "matrix-sdk-sticky.probe";

/// When to look again for what was sent.
const LOOK_EVERY: Duration = Duration::from_millis(250);

/// When to try again after the endpoint was seen to forget stickiness: the server may be a newer one.
const TRY_AGAIN: Duration = Duration::from_secs(3_600);

impl DelayedEvents {
    /// Makes sure that the dedicated endpoint keeps this event sticky.
    ///
    /// # Errors
    ///
    /// [`DelayedError::ForgetsStickiness`] while that is not known.
    pub(super) async fn ensure_keeps_stickiness(
        &self,
        event: &PreparedEvent,
        deadline: Deadline,
    ) -> Result<(), DelayedError> {
        if self.known().dedicated == Dedicated::Proven {
            return Ok(());
        }
        // All heartbeats of a client ask at once, and one answer is for all.
        let turn = self.known().proving.clone();
        let Some(_turn) = before(&**self.outbox.timer(), deadline, turn.lock()).await else {
            return Err(RequestError::not_sent("the server was still being tried").into());
        };
        match self.known().dedicated {
            Dedicated::Proven => return Ok(()),
            Dedicated::Forgets(until) if !until.is_over(self.outbox.timer().now()) => {
                return Err(DelayedError::ForgetsStickiness);
            }
            _ => {}
        }
        // One whose answer was lost is sent and looked at first.
        let known = self.known().probe.clone();
        let probe = match known {
            Some(probe) => probe,
            None => self.arm_probe(event, deadline).await?,
        };
        self.known().probe = Some(probe.clone());
        let sent = self.manage(&probe.delay_id, Action::Send, deadline).await;
        let is_gone = match sent {
            Ok(()) => false,
            // By an earlier try, or because it was due.
            Err(DelayedError::Gone | DelayedError::AlreadySent) => true,
            Err(error) => return Err(error),
        };
        let is_sticky = self.is_sticky(&probe, deadline).await?;
        if is_sticky.is_some() || is_gone {
            self.known().probe = None;
        }
        if is_sticky == Some(true) {
            self.known().dedicated = Dedicated::Proven;
            return Ok(());
        }
        if is_sticky == Some(false) {
            self.known().dedicated =
                Dedicated::Forgets(self.outbox.timer().now().deadline(TRY_AGAIN));
        }
        Err(DelayedError::ForgetsStickiness)
    }

    async fn arm_probe(
        &self,
        event: &PreparedEvent,
        deadline: Deadline,
    ) -> Result<Probe, DelayedError> {
        let Some(room) = self.outbox.client().get_room(event.room_id()) else {
            return Err(RequestError::not_sent("the room is not known").into());
        };
        let prepared = self.prepare_probe(event, &room);
        let Some(prepared) = before(&**self.outbox.timer(), deadline, prepared).await else {
            let error = "the time was over before the server could be asked";
            return Err(RequestError::not_sent(error).into());
        };
        let prepared = prepared?;
        let target = EndpointForm::New.target(&prepared);
        let answer = self.outbox.put(&prepared.event, target, deadline).await?;
        if answer.is_unrecognized() {
            return Err(DelayedError::NotSupported { may_have_been_sent: false });
        }
        if !answer.is_success() {
            return Err(answer.schedule_error(event.delay(), None, self.outbox.unix_now()));
        }
        let delay_id = answer.delay_id()?;
        let delay_id = delay_id.ok_or(DelayedError::NotSupported { may_have_been_sent: true })?;
        let (room_id, event_type) = (prepared.room_id().to_owned(), prepared.event.event_type());
        Ok(Probe { room_id, event_type: event_type.to_owned(), delay_id })
    }

    /// A removal of a key that nobody has, as long and as late as the event.
    async fn prepare_probe(
        &self,
        event: &PreparedEvent,
        room: &Room,
    ) -> Result<PreparedEvent, DelayedError> {
        let mut content = Map::new();
        insert_sticky_key(&mut content, &unique_name());
        let event_type = if event.is_encrypted() { TYPE } else { event.event.event_type() };
        let sticky_ms = event.event.sticky_ms();
        let (probe, _) = ReadyEvent::prepare(room, event_type, &content, sticky_ms).await?;
        Ok(PreparedEvent { event: probe, delay_ms: event.delay_ms })
    }

    /// Whether what was sent is sticky; `None` if it is not there in time.
    async fn is_sticky(
        &self,
        probe: &Probe,
        deadline: Deadline,
    ) -> Result<Option<bool>, DelayedError> {
        #[derive(Deserialize)]
        struct Page {
            chunk: Vec<Box<RawValue>>,
        }
        let own = self.outbox.client().user_id();
        let filter = json!({ "types": [probe.event_type], "senders": own.as_slice() });
        let request = Request {
            method: Method::GET,
            path: vec!["v3", "rooms", probe.room_id.as_str(), "messages"],
            query: vec![
                ("dir", "b".to_owned()),
                ("limit", "20".to_owned()),
                ("filter", filter.to_string()),
            ],
            body: None,
            auth: Auth::Needed,
        };
        loop {
            let answer = self.outbox.ask(&request, deadline).await?;
            if !answer.is_success() {
                return Err(answer.error(self.outbox.unix_now()).into());
            }
            let page: Page = answer.read().ok_or_else(RequestError::unreadable)?;
            let is_it =
                |event: &RawValue| DelayId::of_event(event).as_ref() == Some(&probe.delay_id);
            if let Some(event) = page.chunk.iter().find(|event| is_it(event)) {
                let event: Map<String, Value> =
                    serde_json::from_str(event.get()).unwrap_or_default();
                let is_sticky = |name: &&str| event.get(*name).is_some_and(Value::is_object);
                return Ok(Some(names::STICKY.iter().any(is_sticky)));
            }
            let again = self.outbox.timer().now().deadline(LOOK_EVERY);
            if again >= deadline {
                return Ok(None);
            }
            self.outbox.timer().sleep_until(again).await;
        }
    }
}
