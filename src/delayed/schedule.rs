//! Scheduling an event, as a sentence.

use std::{fmt, future::IntoFuture, time::Duration};

use matrix_sdk::Room;
use ruma::OwnedTransactionId;
use serde_json::{Map, Value};

use super::{DelayId, DelayedError, DelayedEvents, PreparedEvent};
use crate::{
    driver::{BoxFuture, jittered},
    outbox::{ATTEMPT_TIMEOUT, Attempts, MIN_STICKY, PrepareError, ReadyEvent},
    readers::Readers,
    time::{MAX_STICKY_DURATION, millis},
    wire::insert_sticky_key,
};

/// The shortest delay that is asked for: it has to be positive ([MSC4140], "Scheduling a delayed
/// event").
///
/// [MSC4140]: https://github.com/matrix-org/matrix-spec-proposals/pull/4140
const MIN_DELAY: Duration = Duration::from_millis(1);

/// The longest delay that can be written: canonical JSON has no integer above it.
const MAX_DELAY: Duration = Duration::from_millis((1 << 53) - 1);

/// A delayed event to be scheduled ([MSC4140]). Awaiting it schedules it, in up to six tries. Made by
/// [`RoomSticky::schedule`](crate::RoomSticky::schedule).
///
/// # Cancel safety
///
/// A future that is dropped leaves open whether the event was scheduled. Give it a time instead:
/// [`with_timeout`](Self::with_timeout).
///
/// [MSC4140]: https://github.com/matrix-org/matrix-spec-proposals/pull/4140
#[must_use = "it is scheduled when it is awaited"]
pub struct ScheduleDelayed {
    events: DelayedEvents,
    room: Room,
    event_type: String,
    content: Result<Map<String, Value>, serde_json::Error>,
    delay: Duration,
    sticky_duration: Option<Duration>,
    transaction_id: Option<OwnedTransactionId>,
    timeout: Duration,
}

impl ScheduleDelayed {
    pub(crate) fn new(
        events: DelayedEvents,
        room: Room,
        event_type: &str,
        content: Result<Map<String, Value>, serde_json::Error>,
        delay: Duration,
    ) -> Self {
        Self {
            events,
            room,
            event_type: event_type.to_owned(),
            content,
            delay: delay.clamp(MIN_DELAY, MAX_DELAY),
            sticky_duration: Some(MAX_STICKY_DURATION),
            transaction_id: None,
            timeout: ATTEMPT_TIMEOUT,
        }
    }

    /// Sets the key of the ephemeral map that the event is an entry of, once it is sent. It replaces a
    /// key in the content. An event with no content but the key removes what is there for the key then.
    pub fn with_sticky_key(mut self, sticky_key: impl Into<String>) -> Self {
        if let Ok(content) = &mut self.content {
            insert_sticky_key(content, &sticky_key.into());
        }
        self
    }

    /// Sets for how long the event is sticky from when it is sent, from 1 ms to 1 h. A duration out of
    /// that range is clamped. Defaults to 1 h, which wins over whatever was sent for the key before.
    pub fn with_sticky_duration(mut self, duration: Duration) -> Self {
        self.sticky_duration = Some(duration.clamp(MIN_STICKY, MAX_STICKY_DURATION));
        self
    }

    /// Makes it an ordinary event, not a sticky one. It needs no server that knows sticky events.
    pub fn not_sticky(mut self) -> Self {
        self.sticky_duration = None;
        self
    }

    /// Sets the transaction id of the request. Defaults to a new one.
    pub fn with_transaction_id(mut self, transaction_id: impl Into<OwnedTransactionId>) -> Self {
        self.transaction_id = Some(transaction_id.into());
        self
    }

    /// Sets how long one try may take. Defaults to 15 s.
    pub fn with_timeout(mut self, timeout: Duration) -> Self {
        self.timeout = timeout;
        self
    }

    /// Makes the event ready, and schedules nothing yet: [`DelayedEvents::schedule`] does. For callers
    /// who have to know, before the request goes out, what to repeat if its answer is lost.
    ///
    /// # Errors
    ///
    /// [`DelayedError`]. Nothing was scheduled.
    pub async fn prepare(self) -> Result<PreparedEvent, DelayedError> {
        Ok(self.prepare_for().await?.0)
    }

    /// As [`prepare`](Self::prepare), with the devices that hold the room key.
    pub(crate) async fn prepare_for(self) -> Result<(PreparedEvent, Readers), DelayedError> {
        let Self {
            events,
            room,
            event_type,
            content,
            delay,
            sticky_duration,
            transaction_id,
            timeout,
        } = self;
        let content = content.map_err(PrepareError::Content)?;
        let deadline = events.outbox.deadline(timeout);
        events.ensure_supported(sticky_duration.is_some(), deadline).await?;
        let sticky_ms = sticky_duration.map(millis);
        let (mut event, reached) =
            ReadyEvent::prepare(&room, &event_type, &content, sticky_ms).await?;
        if let Some(transaction_id) = transaction_id {
            event = event.with_transaction_id(transaction_id);
        }
        Ok((PreparedEvent { event, delay_ms: millis(delay) }, reached))
    }

    async fn schedule(self) -> Result<DelayId, DelayedError> {
        let (events, timeout) = (self.events.clone(), self.timeout);
        let prepared = self.prepare().await?;
        let timer = events.outbox.timer();
        let (mut attempts, mut may_have_happened) = (Attempts::new(), false);
        loop {
            let error = match events.schedule(&prepared).with_timeout(timeout).await {
                Ok(delay_id) => return Ok(delay_id),
                Err(error) => error,
            };
            may_have_happened |= error.may_have_happened();
            let asked = error.worth_another_try();
            let Some((asked, pause)) =
                asked.and_then(|asked| Some((asked, attempts.handle_failure(Some(asked))?)))
            else {
                return Err(error.after_tries(may_have_happened));
            };
            timer.sleep_until(timer.now().deadline(asked.max(jittered(pause)))).await;
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
            .field("sticky_duration", &self.sticky_duration)
            .finish_non_exhaustive()
    }
}
