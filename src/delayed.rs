//! Delayed: events that the server sends later by itself, unless it is told otherwise ([MSC4140]):
//! `room.sticky().schedule(&gone, delay).with_sticky_key("laptop").await`.
//!
//! In: content, key, duration, and how long the server waits. Out: a [`DelayId`], and by it restart,
//! send, cancel. What is scheduled is made in two steps: a [`PreparedEvent`], which can be kept in a
//! store, and the request, which can be repeated exactly. Nothing is ever scheduled on a server that
//! does not say that it can, as that would send the event at once.
//!
//! A delay id is a capability, and it stands in the path of a request. matrix-sdk's HTTP client
//! shows the path in a span, and at level ERROR the URL of a request that failed. So these requests
//! go out by the reqwest client beneath it ([`Client::http_client`]), which logs no path, and only
//! what lies behind its errors is told. They are few, and need nothing else of matrix-sdk's client
//! but that it refreshes tokens, which it is asked to.
//!
//! [MSC4140]: https://github.com/matrix-org/matrix-spec-proposals/pull/4140

mod answer;
mod error;
mod proof;

use std::{
    error::Error as _,
    fmt,
    future::IntoFuture,
    iter::successors,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use matrix_sdk::{
    Client, Room,
    config::RequestConfig,
    reqwest::{self, Method},
};
#[cfg(test)]
use ruma::exports::http::{HeaderMap, StatusCode};
use ruma::{
    OwnedEventId, OwnedRoomId, OwnedTransactionId, RoomId, TransactionId,
    api::client::account::whoami,
};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json, value::RawValue};

use self::{
    answer::Answer,
    proof::{Dedicated, Probe},
};
pub use self::{answer::DelayedLimits, error::DelayedError};
use crate::{
    driver::{BoxFuture, Timer, before, jittered, to_its_end},
    ext::RoomSticky,
    readers::Readers,
    send::{FIRST_WAIT, Outgoing, SHORTEST, SendError, TRIES, TRY, as_object},
    sync::Unsupported,
    time::{Deadline, MAX_STICKY, millis},
    view::StickyContent,
    wire::{insert_sticky_key, names},
};

/// The shortest delay that is asked for: it has to be positive ([MSC4140], "Scheduling a delayed
/// event").
///
/// [MSC4140]: https://github.com/matrix-org/matrix-spec-proposals/pull/4140
const SHORTEST_DELAY: Duration = Duration::from_millis(1);

/// The longest that can be written: canonical JSON has no integer above it.
const LONGEST_DELAY: Duration = Duration::from_millis((1 << 53) - 1);

/// The name of a scheduled event, and the right to restart, send or cancel it.
///
/// **Whoever has it can do so**, on today's servers without any access token. So it stands in no
/// `Debug`, no log of this crate and in none of its errors; whoever wants the text says so:
/// [`as_secret_str`](Self::as_secret_str), to keep it in a store, or to hand it to a service that
/// sends the event when it sees that the client is gone (MSC4195).
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct DelayId(String);

impl DelayId {
    /// The text. Handle it as you would an access token.
    pub fn as_secret_str(&self) -> &str {
        &self.0
    }

    /// The delay id that one's own copy of an event carries, once it has been sent: by it one knows
    /// one's own delayed event when it comes.
    pub fn of_event(event: &RawValue) -> Option<Self> {
        #[derive(Deserialize)]
        struct Event {
            unsigned: Map<String, Value>,
        }
        let mut unsigned = serde_json::from_str::<Event>(event.get()).ok()?.unsigned;
        // The unstable name is the last, and counts where both are there.
        let delay_id = names::DELAY_ID.iter().rev().find_map(|name| unsigned.remove(*name))?;
        Some(Self(delay_id.as_str()?.to_owned()))
    }
}

impl From<String> for DelayId {
    fn from(text: String) -> Self {
        Self(text)
    }
}

impl fmt::Debug for DelayId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("DelayId(..)")
    }
}

/// An event that is ready to be scheduled: encrypted, where its room is, and with the transaction id
/// of its request. Each request for it is the same, so that the server schedules it once, however
/// often it has to be asked; and the answer, whenever it comes, tells the same delay id.
///
/// A server remembers that for a while: Synapse for at least half an hour, and **not across its own
/// restart**, while the scheduled event survives that. After a longer time, or a failure of the
/// server, look into [`DelayedEvents::list`] for one that it [`matches`](Self::matches), before
/// another is scheduled.
///
/// With `serde_json` it can be kept in a store, and scheduled after a crash. It holds the content as
/// it goes over the wire: in plaintext, where the room is not encrypted.
#[derive(Clone, Serialize, Deserialize)]
pub struct PreparedEvent {
    room_id: OwnedRoomId,
    transaction_id: OwnedTransactionId,
    event_type: String,
    content: Box<RawValue>,
    delay_ms: u64,
    sticky_ms: Option<u64>,
}

impl PreparedEvent {
    /// The room that it is for.
    pub fn room_id(&self) -> &RoomId {
        &self.room_id
    }

    /// The transaction id of its request.
    pub fn transaction_id(&self) -> &TransactionId {
        &self.transaction_id
    }

    /// How long the server is asked to wait.
    pub fn delay(&self) -> Duration {
        Duration::from_millis(self.delay_ms)
    }

    /// For how long it is sticky from when it is sent, if it is.
    pub fn sticky(&self) -> Option<Duration> {
        self.sticky_ms.map(Duration::from_millis)
    }

    /// Whether it is encrypted.
    pub fn is_encrypted(&self) -> bool {
        self.event_type == "m.room.encrypted"
    }

    /// The Megolm session that it is encrypted with. Who has not got that session's key cannot read
    /// it: when the room's session is another one, it is time to schedule it anew.
    pub fn session_id(&self) -> Option<String> {
        #[derive(Deserialize)]
        struct Encrypted {
            session_id: String,
        }
        let content = Some(self.content.get()).filter(|_| self.is_encrypted())?;
        Some(serde_json::from_str::<Encrypted>(content).ok()?.session_id)
    }

    /// Whether that may be this one: of the same room and type, with the same content and delay. What
    /// is encrypted is like no other; in plaintext one that was scheduled before may be just the
    /// same.
    pub fn matches(&self, scheduled: &ScheduledEvent) -> bool {
        let value = |content: &RawValue| serde_json::from_str::<Value>(content.get()).ok();
        scheduled.room_id == self.room_id
            && scheduled.event_type == self.event_type
            && scheduled.state_key.is_none()
            && scheduled.delay == self.delay()
            && value(&scheduled.content) == value(&self.content)
    }

    /// Its request. [MSC4140] has a new form, the dedicated endpoint, which no server of today answers.
    /// The old one, the query form, is an ordinary send with one parameter more.
    ///
    /// [MSC4140]: https://github.com/matrix-org/matrix-spec-proposals/pull/4140
    fn request(&self, form: Form) -> Result<Request<'_>, serde_json::Error> {
        let room = self.room_id.as_str();
        let transaction_id = self.transaction_id.as_str();
        let sticky = self.sticky_ms.map(|ms| (names::STICKY_DURATION, ms.to_string()));
        Ok(match form {
            Form::New => {
                /// The delay under both its names: ruma's types say `delay`, the proposal has come
                /// to say `delay_ms`.
                #[derive(Serialize)]
                struct Body<'a> {
                    delay: u64,
                    delay_ms: u64,
                    content: &'a RawValue,
                }
                let body =
                    Body { delay: self.delay_ms, delay_ms: self.delay_ms, content: &self.content };
                Request {
                    method: Method::PUT,
                    path: vec![
                        "unstable",
                        names::DELAYED,
                        "rooms",
                        room,
                        "delayed_event",
                        &self.event_type,
                        transaction_id,
                    ],
                    query: sticky.into_iter().collect(),
                    body: Some(serde_json::to_string(&body)?),
                    auth: Auth::Needed,
                }
            }
            Form::Old => Request {
                method: Method::PUT,
                path: vec!["v3", "rooms", room, "send", &self.event_type, transaction_id],
                query: [(names::DELAY, self.delay_ms.to_string())]
                    .into_iter()
                    .chain(sticky)
                    .collect(),
                body: Some(self.content.get().to_owned()),
                auth: Auth::Needed,
            },
        })
    }
}

/// An event that is ready to be sent at once, by the same request at each try.
#[derive(Clone)]
pub(crate) struct ReadyEvent {
    room_id: OwnedRoomId,
    transaction_id: OwnedTransactionId,
    event_type: String,
    content: Box<RawValue>,
    sticky_ms: u64,
}

impl ReadyEvent {
    pub(crate) fn new(room_id: OwnedRoomId, event: Outgoing, sticky: Duration) -> Self {
        Self {
            room_id,
            transaction_id: TransactionId::new(),
            event_type: event.event_type,
            content: event.content,
            sticky_ms: millis(sticky),
        }
    }

    /// Whether it is encrypted.
    pub(crate) fn is_encrypted(&self) -> bool {
        self.event_type == "m.room.encrypted"
    }

    fn request(&self) -> Request<'_> {
        let (room, transaction_id) = (self.room_id.as_str(), self.transaction_id.as_str());
        Request {
            method: Method::PUT,
            path: vec!["v3", "rooms", room, "send", &self.event_type, transaction_id],
            query: vec![(names::STICKY_DURATION, self.sticky_ms.to_string())],
            body: Some(self.content.get().to_owned()),
            auth: Auth::Needed,
        }
    }
}

impl fmt::Debug for PreparedEvent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PreparedEvent")
            .field("room_id", &self.room_id)
            .field("event_type", &self.event_type)
            .field("delay", &self.delay())
            .field("sticky", &self.sticky())
            .finish_non_exhaustive()
    }
}

/// A delayed event to be scheduled. Awaiting it schedules it; made by [`RoomSticky::schedule`].
#[must_use = "it is scheduled when it is awaited"]
pub struct ScheduleDelayed {
    events: DelayedEvents,
    room: Room,
    event_type: String,
    content: Result<Map<String, Value>, serde_json::Error>,
    delay: Duration,
    sticky: Option<Duration>,
    transaction_id: Option<OwnedTransactionId>,
    timeout: Duration,
}

impl ScheduleDelayed {
    pub(crate) fn new<C: StickyContent + Serialize>(
        sticky: &RoomSticky,
        room: Room,
        content: &C,
        delay: Duration,
    ) -> Self {
        let content = as_object(content);
        Self::of(sticky, room, C::TYPE, content, delay)
    }

    pub(crate) fn raw(
        sticky: &RoomSticky,
        room: Room,
        event_type: &str,
        content: Map<String, Value>,
        delay: Duration,
    ) -> Self {
        Self::of(sticky, room, event_type, Ok(content), delay)
    }

    fn of(
        sticky: &RoomSticky,
        room: Room,
        event_type: &str,
        content: Result<Map<String, Value>, serde_json::Error>,
        delay: Duration,
    ) -> Self {
        Self {
            events: sticky.client().delayed_events(),
            room,
            event_type: event_type.to_owned(),
            content,
            delay: delay.clamp(SHORTEST_DELAY, LONGEST_DELAY),
            sticky: Some(MAX_STICKY),
            transaction_id: None,
            timeout: TRY,
        }
    }

    /// The key that it is an entry of, once it is sent; one that the content has is replaced. With
    /// no content but the key it removes what is there for the key then.
    pub fn with_sticky_key(mut self, sticky_key: impl Into<String>) -> Self {
        if let Ok(content) = &mut self.content {
            insert_sticky_key(content, &sticky_key.into());
        }
        self
    }

    /// For how long it is sticky from when it is sent, from 1 ms to 1 h; what is out of that is
    /// clamped. 1 h unless told, which wins over whatever was sent for the key before.
    pub fn with_sticky_duration(mut self, duration: Duration) -> Self {
        self.sticky = Some(duration.clamp(SHORTEST, MAX_STICKY));
        self
    }

    /// An ordinary event, not a sticky one. It needs no server that knows sticky events.
    pub fn not_sticky(mut self) -> Self {
        self.sticky = None;
        self
    }

    /// The transaction id of the request; a new one unless told.
    pub fn with_transaction_id(mut self, transaction_id: impl Into<OwnedTransactionId>) -> Self {
        self.transaction_id = Some(transaction_id.into());
        self
    }

    /// How long one try may take; 15 s unless told.
    pub fn with_timeout(mut self, timeout: Duration) -> Self {
        self.timeout = timeout;
        self
    }

    /// Makes the event ready, and schedules nothing yet: [`DelayedEvents::schedule`] does. For who
    /// has to know, before the request goes out, what to repeat if its answer is lost.
    ///
    /// # Errors
    ///
    /// [`DelayedError`]. Nothing was scheduled.
    pub async fn prepare(self) -> Result<PreparedEvent, DelayedError> {
        Ok(self.prepare_for().await?.0)
    }

    /// As [`prepare`](Self::prepare), with the devices that hold the room key.
    pub(crate) async fn prepare_for(self) -> Result<(PreparedEvent, Readers), DelayedError> {
        let Self { events, room, event_type, content, delay, sticky, transaction_id, timeout } =
            self;
        let content = content.map_err(|error| DelayedError::Prepare(SendError::Content(error)))?;
        events.ensure_supported(sticky.is_some(), events.deadline(timeout)).await?;
        let outgoing =
            Outgoing::of(&room, &event_type, &content).await.map_err(DelayedError::Prepare)?;
        let prepared = PreparedEvent {
            room_id: room.room_id().to_owned(),
            transaction_id: transaction_id.unwrap_or_else(TransactionId::new),
            event_type: outgoing.event_type,
            content: outgoing.content,
            delay_ms: millis(delay),
            sticky_ms: sticky.map(millis),
        };
        Ok((prepared, outgoing.reached))
    }

    async fn schedule(self) -> Result<DelayId, DelayedError> {
        let (events, timeout) = (self.events.clone(), self.timeout);
        let prepared = self.prepare().await?;
        let mut wait = FIRST_WAIT;
        let (mut tried, mut may_have_happened) = (0, false);
        loop {
            tried += 1;
            let error = match events.schedule(&prepared).with_timeout(timeout).await {
                Ok(delay_id) => return Ok(delay_id),
                Err(error) => error,
            };
            may_have_happened |= error.may_have_happened();
            let Some(asked) = error.worth_another_try().filter(|_| tried < TRIES) else {
                return Err(error.after_tries(may_have_happened));
            };
            let pause = asked.max(jittered(wait));
            events.timer.sleep_until(events.timer.now().deadline(pause)).await;
            wait = wait.saturating_mul(2);
        }
    }
}

impl IntoFuture for ScheduleDelayed {
    type Output = Result<DelayId, DelayedError>;
    type IntoFuture = BoxFuture<'static, Self::Output>;

    fn into_future(self) -> Self::IntoFuture {
        Box::pin(self.schedule())
    }
}

impl fmt::Debug for ScheduleDelayed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ScheduleDelayed")
            .field("event_type", &self.event_type)
            .field("delay", &self.delay)
            .field("sticky", &self.sticky)
            .finish_non_exhaustive()
    }
}

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
    client: Client,
    known: Arc<Mutex<Known>>,
    timer: Arc<dyn Timer>,
}

impl DelayedEvents {
    pub(crate) fn new(client: Client, known: Arc<Mutex<Known>>, timer: Arc<dyn Timer>) -> Self {
        Self { client, known, timer }
    }

    /// Schedules an event that was made ready before. Awaiting it does.
    ///
    /// Where the answer to an earlier request for it was lost, this tells its delay id, and does not
    /// schedule it again: see [`PreparedEvent`].
    pub fn schedule<'a>(&'a self, event: &'a PreparedEvent) -> SchedulePrepared<'a> {
        SchedulePrepared { events: self, event, timeout: TRY }
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
        let request = Request {
            method: Method::GET,
            path: vec!["unstable", names::DELAYED, "delayed_events"],
            query: Vec::new(),
            body: None,
            auth: Auth::Needed,
        };
        let answer = self.ask(&request, self.deadline(TRY)).await?;
        if !answer.is_success() {
            return Err(answer.error(self.unix_now()));
        }
        answer.scheduled().ok_or_else(Answer::unreadable)
    }

    /// What the server allows; `None` where it does not say.
    ///
    /// # Errors
    ///
    /// [`DelayedError`].
    pub async fn limits(&self) -> Result<Option<DelayedLimits>, DelayedError> {
        self.limits_within(self.deadline(TRY)).await
    }

    async fn limits_within(
        &self,
        deadline: Deadline,
    ) -> Result<Option<DelayedLimits>, DelayedError> {
        let request = Request {
            method: Method::GET,
            path: vec!["v3", "capabilities"],
            query: Vec::new(),
            body: None,
            auth: Auth::Needed,
        };
        let answer = self.ask(&request, deadline).await?;
        if !answer.is_success() {
            return Err(answer.error(self.unix_now()));
        }
        answer.limits().ok_or_else(Answer::unreadable)
    }

    /// Makes sure that the server knows delayed events, and sticky ones where they are wanted. A
    /// server that has said so is not asked again.
    async fn ensure_supported(&self, sticky: bool, deadline: Deadline) -> Result<(), DelayedError> {
        {
            let known = self.known();
            if known.delayed && (known.sticky || !sticky) {
                return Ok(());
            }
        }
        let request = Request {
            method: Method::GET,
            path: vec!["versions"],
            query: Vec::new(),
            body: None,
            auth: Auth::IfThere,
        };
        let answer = self.ask(&request, deadline).await?;
        if !answer.is_success() {
            return Err(answer.error(self.unix_now()).after_tries(false));
        }
        let features = answer.features().ok_or_else(|| Answer::unreadable().after_tries(false))?;
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
        if sticky && !has_sticky {
            let unsupported = SendError::Unsupported(Unsupported::StickyEvents);
            return Err(DelayedError::Prepare(unsupported));
        }
        Ok(())
    }

    async fn put(
        &self,
        event: &PreparedEvent,
        deadline: Deadline,
    ) -> Result<DelayId, DelayedError> {
        self.ensure_supported(event.sticky_ms.is_some(), deadline).await?;
        let is_sticky = event.sticky_ms.is_some();
        let mut refused = None;
        let forms = self.known().forms(is_sticky);
        for form in forms {
            if is_sticky && form == Form::New {
                match self.ensure_keeps_stickiness(event, deadline).await {
                    Ok(()) => {}
                    // There is no such endpoint.
                    Err(DelayedError::NotSupported { may_have_been_sent: false }) => continue,
                    Err(error) => return Err(error),
                }
            }
            // It is as the room was when it was prepared, which may be long ago.
            let room = self.client.get_room(&event.room_id);
            if room.is_some_and(|room| room.encryption_state().is_encrypted())
                && !event.is_encrypted()
            {
                return Err(DelayedError::BecameEncrypted);
            }
            let request = event
                .request(form)
                .map_err(|error| DelayedError::Prepare(SendError::Content(error)))?;
            let answer = self.ask(&request, deadline).await?;
            if answer.is_unrecognized() {
                self.known().schedule = Some(form.other());
                continue;
            }
            if answer.is_success() {
                self.known().schedule = Some(form);
                let delay_id = answer.delay_id()?;
                if delay_id.is_none() {
                    // Whoever comes next asks first.
                    self.known().delayed = false;
                }
                return delay_id.ok_or(DelayedError::NotSupported { may_have_been_sent: true });
            }
            let limits = if answer.asks_for_limits() {
                // Without them it is told with what the refusal itself says.
                self.limits_within(deadline).await.ok().flatten()
            } else {
                None
            };
            let error = answer.schedule_error(event.delay(), limits, self.unix_now());
            if is_sticky && form == Form::Old && answer.may_refuse_the_form() {
                refused = Some(error);
                continue;
            }
            return Err(error);
        }
        self.known().schedule = None;
        Err(refused.unwrap_or(DelayedError::NotSupported { may_have_been_sent: false }))
    }

    /// Sends an event, in one try.
    ///
    /// Why not by matrix-sdk's client? It refreshes a token in the middle of the request, and then the
    /// request goes out again however late that is. Nothing of a heartbeat may land after its time.
    pub(crate) async fn send_now(
        &self,
        event: &ReadyEvent,
        timeout: Duration,
    ) -> Result<OwnedEventId, DelayedError> {
        let answer = self.ask(&event.request(), self.deadline(timeout)).await?;
        if !answer.is_success() {
            return Err(answer.error(self.unix_now()));
        }
        answer.event_id()
    }

    async fn manage(
        &self,
        delay_id: &DelayId,
        action: Action,
        deadline: Deadline,
    ) -> Result<(), DelayedError> {
        let known = self.known().manage;
        for form in Form::order(known) {
            let answer = self.ask(&action.request(delay_id, form), deadline).await?;
            if answer.is_unrecognized() {
                self.known().manage = Some(form.other());
                continue;
            }
            if answer.is_success() {
                self.known().manage = Some(form);
                return answer.object().map(drop).ok_or_else(Answer::unreadable);
            }
            return Err(answer.manage_error(action, self.unix_now(), delay_id));
        }
        self.known().manage = None;
        Err(DelayedError::NotSupported { may_have_been_sent: false })
    }

    /// One question, asked once; once more with a new access token, where the old one has run out
    /// and matrix-sdk could refresh it; and without any, where none is needed.
    ///
    /// Why a token for what needs none? The newest text of MSC4140 asks for it; and Synapse, which
    /// does not, counts its rate limit by user where there is one, and else by address, which all
    /// users behind a NAT share.
    async fn ask(&self, request: &Request<'_>, deadline: Deadline) -> Result<Answer, DelayedError> {
        let token = self.client.access_token();
        if token.is_none() && request.auth == Auth::Needed {
            return Err(DelayedError::NotLoggedIn);
        }
        let mut answer = self.ask_with(request, token.as_deref(), deadline).await?;
        if !answer.is_about_the_token() || token.is_none() {
            return Ok(answer);
        }
        if self.client.access_token() == token {
            // Any request of matrix-sdk's own has it refresh the token, or tell the application that
            // it has to, as the application has set it up. That goes on if our time is over first: a
            // server may have taken back the old refresh token by then.
            let config = RequestConfig::new().timeout(REFRESH).disable_retry();
            let whoami = self.client.send(whoami::v3::Request::new());
            let whoami = whoami.with_request_config(config).into_future();
            let _ = before(&*self.timer, deadline, to_its_end(REFRESH, whoami)).await;
        }
        let refreshed = self.client.access_token();
        if refreshed.is_some() && refreshed != token {
            answer = self.ask_with(request, refreshed.as_deref(), deadline).await?;
        }
        if answer.is_about_the_token() && request.auth == Auth::IfThere {
            answer = self.ask_with(request, None, deadline).await?;
        }
        Ok(answer)
    }

    /// One request. It ends at the deadline, on the clock that goes on while the machine sleeps, so
    /// that none goes out late.
    async fn ask_with(
        &self,
        request: &Request<'_>,
        token: Option<&str>,
        deadline: Deadline,
    ) -> Result<Answer, DelayedError> {
        let left = self.left(deadline);
        if left.is_zero() {
            return Err(unreachable("the time was over before the server could be asked", false));
        }
        let mut url = self.client.homeserver();
        url.path_segments_mut()
            .map_err(|()| unreachable("the homeserver's URL has no place for a path", false))?
            .pop_if_empty()
            .extend(["_matrix", "client"])
            .extend(&request.path);
        if !request.query.is_empty() {
            url.query_pairs_mut().extend_pairs(&request.query);
        }
        let mut builder =
            self.client.http_client().request(request.method.clone(), url).timeout(left);
        if let Some(token) = token {
            builder = builder.bearer_auth(token);
        }
        if let Some(body) = &request.body {
            builder = builder.header("content-type", "application/json").body(body.clone());
        }
        let answered = async {
            let response = builder.send().await?;
            let (status, headers) = (response.status(), response.headers().clone());
            let body = response.bytes().await?;
            Ok(Answer::new(status, &headers, body.to_vec()))
        };
        match before(&*self.timer, deadline, answered).await {
            None => Err(unreachable("no answer in time", true)),
            Some(answer) => answer.map_err(|error| no_answer(&error)),
        }
    }

    fn deadline(&self, timeout: Duration) -> Deadline {
        self.timer.now().deadline(timeout)
    }

    fn left(&self, deadline: Deadline) -> Duration {
        deadline.left(self.timer.now())
    }

    /// By this machine's wall clock.
    fn unix_now(&self) -> SystemTime {
        unix(self.timer.now().unix_ms())
    }

    fn known(&self) -> MutexGuard<'_, Known> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl fmt::Debug for DelayedEvents {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("DelayedEvents").field("known", &*self.known()).finish_non_exhaustive()
    }
}

/// An event to be scheduled that was made ready before. Awaiting it schedules it, in one try; made
/// by [`DelayedEvents::schedule`].
#[derive(Debug)]
#[must_use = "it is scheduled when it is awaited"]
pub struct SchedulePrepared<'a> {
    events: &'a DelayedEvents,
    event: &'a PreparedEvent,
    timeout: Duration,
}

impl SchedulePrepared<'_> {
    /// How long it may take until the answer is there; 15 s unless told. No request goes out after
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
        Box::pin(async move { events.put(event, events.deadline(timeout)).await })
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
    fn new(events: &'a DelayedEvents, delay_id: &'a DelayId, action: Action) -> Self {
        Self { events, delay_id, action, timeout: TRY }
    }

    /// How long it may take until the answer is there; 15 s unless told. No request goes out after
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
        Box::pin(async move { events.manage(delay_id, action, events.deadline(timeout)).await })
    }
}

/// An event that is scheduled, as the server lists it.
#[derive(Clone)]
#[non_exhaustive]
pub struct ScheduledEvent {
    /// What restarts, sends or cancels it.
    pub delay_id: DelayId,
    /// The room that it is for.
    pub room_id: OwnedRoomId,
    /// Its type: `m.room.encrypted`, where it was encrypted.
    pub event_type: String,
    /// Its state key, if it is a state event.
    pub state_key: Option<String>,
    /// Its content, as it was scheduled.
    pub content: Box<RawValue>,
    /// How long the server waits.
    pub delay: Duration,
    /// Since when it waits, by the server's clock: when it was scheduled or last restarted.
    pub waits_since: SystemTime,
}

impl fmt::Debug for ScheduledEvent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ScheduledEvent")
            .field("room_id", &self.room_id)
            .field("event_type", &self.event_type)
            .field("delay", &self.delay)
            .field("waits_since", &self.waits_since)
            .finish_non_exhaustive()
    }
}

/// The longest that a refresh of the access token may take.
const REFRESH: Duration = Duration::from_secs(60);

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
    let status = StatusCode::from_u16(status).map_err(|_| Answer::unreadable())?;
    let answer = Answer::new(status, &HeaderMap::new(), body.as_bytes().to_vec());
    let action = match asked {
        Asked::Restart => Some(Action::Restart),
        Asked::Send => Some(Action::Send),
        Asked::Cancel => Some(Action::Cancel),
        Asked::Schedule(_) | Asked::Event => None,
    };
    let delay_id = DelayId("d".to_owned());
    match (asked, action) {
        (Asked::Event, _) if answer.is_success() && body.starts_with('{') => Ok(()),
        (Asked::Schedule(_), _) if answer.is_success() => answer
            .delay_id()?
            .map(drop)
            .ok_or(DelayedError::NotSupported { may_have_been_sent: true }),
        _ if answer.is_success() => answer.object().map(drop).ok_or_else(Answer::unreadable),
        _ if answer.is_unrecognized() => {
            Err(DelayedError::NotSupported { may_have_been_sent: false })
        }
        (Asked::Schedule(delay), _) => Err(answer.schedule_error(delay, None, UNIX_EPOCH)),
        (_, Some(action)) => Err(answer.manage_error(action, UNIX_EPOCH, &delay_id)),
        _ => Err(answer.error(UNIX_EPOCH)),
    }
}

/// What is known of a client's server.
#[derive(Debug, Default)]
pub(crate) struct Known {
    /// It has said that it knows delayed events.
    delayed: bool,
    /// It has said that it knows sticky events.
    sticky: bool,
    /// The form in which it takes events to be scheduled, as far as it is known.
    schedule: Option<Form>,
    /// The form in which they are restarted, sent and cancelled.
    manage: Option<Form>,
    /// Whether what is scheduled in the new form stays sticky.
    dedicated: Dedicated,
    /// What finds that out, and is under way.
    probe: Option<Probe>,
    /// Held by whoever finds it out.
    proving: Arc<tokio::sync::Mutex<()>>,
}

impl Known {
    /// In which order the forms are tried. What is to be sticky is not given to the new form before
    /// that is known to keep it so.
    fn forms(&self, is_sticky: bool) -> [Form; 2] {
        if is_sticky && self.dedicated != Dedicated::Proven {
            return [Form::Old, Form::New];
        }
        Form::order(self.schedule)
    }
}

/// Which iteration of MSC4140 a server speaks. Each endpoint has had one more form.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Form {
    New,
    Old,
}

impl Form {
    /// In which order the forms are tried. A server may be another than it was, so the one that is
    /// known comes first and not alone.
    fn order(known: Option<Self>) -> [Self; 2] {
        let first = known.unwrap_or(Self::New);
        [first, first.other()]
    }

    fn other(self) -> Self {
        match self {
            Self::New => Self::Old,
            Self::Old => Self::New,
        }
    }
}

/// What is done with an event that is scheduled.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Action {
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
    fn request(self, delay_id: &DelayId, form: Form) -> Request<'_> {
        let mut path = vec!["unstable", names::DELAYED, "delayed_events", delay_id.as_secret_str()];
        let body = match form {
            Form::New => {
                path.push(self.as_str());
                json!({})
            }
            Form::Old => json!({ "action": self.as_str() }),
        };
        Request {
            method: Method::POST,
            path,
            query: Vec::new(),
            body: Some(body.to_string()),
            auth: Auth::IfThere,
        }
    }
}

/// A question to the server. It has no `Debug`: its path may have a delay id.
struct Request<'a> {
    method: Method,
    /// Below `/_matrix/client`.
    path: Vec<&'a str>,
    query: Vec<(&'static str, String)>,
    body: Option<String>,
    auth: Auth,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Auth {
    /// Only with an access token.
    Needed,
    /// With an access token, if there is one that is valid.
    IfThere,
}

/// The longest description of an error, in characters.
const WORDS: usize = 200;

/// Why there is no answer, in words. Without the error's own, which would show the URL, and the URL
/// the delay id: only what lies behind it is said.
fn no_answer(error: &reqwest::Error) -> DelayedError {
    let causes = successors(error.source(), |&error| error.source());
    let mut words = causes.map(ToString::to_string).collect::<Vec<_>>().join(": ");
    if words.is_empty() {
        words = "the request failed".into();
    }
    let words: String =
        words.chars().map(|c| if c.is_control() { ' ' } else { c }).take(WORDS).collect();
    // Without a connection nothing was sent.
    unreachable(&words, !error.is_connect() && !error.is_builder())
}

fn unreachable(error: &str, may_have_happened: bool) -> DelayedError {
    DelayedError::Unreachable { error: error.to_owned(), may_have_happened }
}

/// A time of a server's, which may be anything.
fn unix(ms: u64) -> SystemTime {
    UNIX_EPOCH.checked_add(Duration::from_millis(ms)).unwrap_or(UNIX_EPOCH)
}

#[cfg(test)]
mod tests;
