//! What an answer about delayed events means: pure.

use std::time::{Duration, SystemTime};

use ruma::{OwnedRoomId, exports::http::StatusCode};
use serde::Deserialize;
use serde_json::{Value, value::RawValue};

use super::{Action, DelayId, DelayedError, ScheduledEvent};
use crate::{
    outbox::{Answer, Refusal, RequestError, unix},
    wire::names,
};

/// A wait of more than this, after scheduling was refused with 429, is not that of a rate limit.
///
/// Rate limits of events let the next one through within seconds. A quota that is full has a place
/// again only when one of the user's own events is due.
const LONGEST_RATE_LIMIT: Duration = Duration::from_secs(60);

/// What a server allows, as its capabilities say. A server that has no such limit leaves it out.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct DelayedLimits {
    /// The longest delay.
    pub max_delay: Option<Duration>,
    /// How many events a user may have scheduled at once.
    pub max_scheduled: Option<u64>,
}

impl DelayedLimits {
    /// Whether nothing at all may be scheduled.
    pub fn is_disabled(&self) -> bool {
        self.max_delay == Some(Duration::ZERO) || self.max_scheduled == Some(0)
    }
}

impl Refusal {
    /// Whether it has a code that ends so. Stable and unstable codes differ in what comes before.
    fn is(&self, errcode: &str) -> bool {
        // Older servers give the second one beside `M_UNKNOWN`.
        let unstable = self.get(names::DELAYED_ERRCODE).and_then(Value::as_str);
        [unstable, self.errcode.as_deref()]
            .into_iter()
            .flatten()
            .any(|code| code.to_ascii_uppercase().ends_with(errcode))
    }

    fn is_too_long(&self) -> bool {
        self.is("DELAY_TOO_LARGE") || self.is("MAX_DELAY_EXCEEDED")
    }

    /// The longest delay that the server allows, where the refusal says it.
    fn max_delay(&self) -> Option<Duration> {
        let time = |name: &str| self.get(name).and_then(Value::as_u64).map(Duration::from_millis);
        ["max_delay", "max_delay_ms"]
            .into_iter()
            .find_map(|name| time(&format!("{}.{name}", names::DELAYED)).or_else(|| time(name)))
    }

    /// Whether it is about delayed events as such, by its words. They are those of [MSC4140] and of
    /// Synapse; no code tells.
    ///
    /// [MSC4140]: https://github.com/matrix-org/matrix-spec-proposals/pull/4140
    fn speaks_of_delayed_events(&self) -> bool {
        self.error.to_ascii_lowercase().contains("delayed event")
    }
}

impl Answer {
    /// Whether it may be the query form that is refused, and not the event: [MSC4140] has servers that
    /// give that form up reject it, and does not say how.
    ///
    /// [MSC4140]: https://github.com/matrix-org/matrix-spec-proposals/pull/4140
    pub(super) fn may_refuse_the_form(&self) -> bool {
        let (gone, unknown) = (StatusCode::GONE, StatusCode::NOT_IMPLEMENTED);
        let is_bad = self.status() == StatusCode::BAD_REQUEST && !self.refusal().is_too_long();
        is_bad || [gone, unknown].contains(&self.status())
    }

    /// The delay id of what was scheduled. None: something else was done.
    ///
    /// # Errors
    ///
    /// When it cannot be read: then it is not the homeserver's.
    pub(super) fn delay_id(&self) -> Result<Option<DelayId>, DelayedError> {
        let body = self.object().ok_or_else(RequestError::unreadable)?;
        let delay_id = body.get("delay_id").and_then(Value::as_str).filter(|id| !id.is_empty());
        Ok(delay_id.map(|id| DelayId::from(id.to_owned())))
    }

    /// The limits among the capabilities; `Some(None)` when they are not said.
    pub(super) fn limits(&self) -> Option<Option<DelayedLimits>> {
        let mut body = self.object()?;
        let Some(Value::Object(capabilities)) = body.get_mut("capabilities") else {
            return Some(None);
        };
        let limits =
            names::DELAYED_CAPABILITY.iter().rev().find_map(|name| capabilities.get(*name));
        Some(limits.and_then(Value::as_object).map(|limits| {
            let number = |name: &str| limits.get(name).and_then(Value::as_u64);
            DelayedLimits {
                max_delay: number("max_delay_ms").map(Duration::from_millis),
                max_scheduled: number("max_scheduled"),
            }
        }))
    }

    /// The events that are listed, those of them that can be read.
    pub(super) fn scheduled(&self) -> Option<Vec<ScheduledEvent>> {
        #[derive(Deserialize)]
        struct List {
            delayed_events: Vec<Box<RawValue>>,
        }
        /// The names have changed from one iteration to the next, and Synapse gives several.
        #[derive(Deserialize)]
        struct Listed {
            delay_id: String,
            room_id: OwnedRoomId,
            #[serde(rename = "type")]
            event_type: String,
            state_key: Option<String>,
            content: Box<RawValue>,
            delay_ms: Option<u64>,
            delay: Option<u64>,
            scheduled_at: Option<u64>,
            delayed_since_ts: Option<u64>,
            running_since: Option<u64>,
        }
        let list: List = self.read()?;
        let events = list.delayed_events.iter().filter_map(|event| {
            let event: Listed = serde_json::from_str(event.get()).ok()?;
            let since = event.scheduled_at.or(event.delayed_since_ts).or(event.running_since)?;
            Some(ScheduledEvent {
                delay_id: DelayId::from(event.delay_id),
                room_id: event.room_id,
                event_type: event.event_type,
                state_key: event.state_key,
                content: event.content,
                delay: Duration::from_millis(event.delay_ms.or(event.delay)?),
                waits_since: unix(since),
            })
        });
        Some(events.collect())
    }

    /// Whether what was meant is told by what the server allows: [MSC4140] has one code for a user
    /// who may not, a delay that is too long, and a server that schedules nothing.
    ///
    /// [MSC4140]: https://github.com/matrix-org/matrix-spec-proposals/pull/4140
    pub(super) fn asks_for_limits(&self) -> bool {
        let refusal = self.refusal();
        self.status() == StatusCode::FORBIDDEN && refusal.is("M_FORBIDDEN")
            || refusal.is_too_long() && refusal.max_delay().is_none()
    }

    /// Why an event was not scheduled.
    pub(super) fn schedule_error(
        &self,
        delay: Duration,
        limits: Option<DelayedLimits>,
        now: SystemTime,
    ) -> DelayedError {
        let refusal = self.refusal();
        let max_delay = limits.and_then(|limits| limits.max_delay);
        if refusal.is_too_long() {
            return DelayedError::TooLong { max: refusal.max_delay().or(max_delay) };
        }
        if refusal.is("MAX_DELAYED_EVENTS_EXCEEDED") {
            return DelayedError::QuotaFull { retry_after: self.retry_after(now) };
        }
        match self.status() {
            StatusCode::TOO_MANY_REQUESTS => {
                let retry_after = self.retry_after(now);
                // By its words or by its wait: no code tells, and to count would be two questions
                // more to a server that wants fewer. Whichever it is, the wait is the server's.
                if refusal.speaks_of_delayed_events() || retry_after > Some(LONGEST_RATE_LIMIT) {
                    DelayedError::QuotaFull { retry_after }
                } else {
                    DelayedError::RateLimited { retry_after }
                }
            }
            StatusCode::FORBIDDEN if refusal.is("M_FORBIDDEN") => match limits {
                Some(limits) if limits.is_disabled() => DelayedError::Disabled,
                _ if max_delay.is_some_and(|max| delay > max) => {
                    DelayedError::TooLong { max: max_delay }
                }
                // Synapse of before it told its limits.
                None if refusal.speaks_of_delayed_events() => DelayedError::Disabled,
                _ => DelayedError::from(self.error(now)),
            },
            _ => DelayedError::from(self.error(now)),
        }
    }

    /// Why an event was not restarted, sent or cancelled.
    pub(super) fn manage_error(
        &self,
        action: Action,
        now: SystemTime,
        delay_id: &DelayId,
    ) -> DelayedError {
        match (self.status(), action) {
            // A page of something in between knows nothing of the event.
            _ if self.refusal().errcode.is_none() => DelayedError::from(self.error(now)),
            (StatusCode::NOT_FOUND, _) => DelayedError::Gone,
            (StatusCode::CONFLICT, Action::Send) => DelayedError::AlreadyCancelled,
            (StatusCode::CONFLICT, Action::Cancel) => DelayedError::AlreadySent,
            // Whether it was sent or cancelled is not said.
            (StatusCode::CONFLICT, Action::Restart) => DelayedError::Gone,
            _ => DelayedError::from(self.error(now)).without(delay_id),
        }
    }
}
