//! Sticky redactions.

use std::{fmt, future::IntoFuture, time::Duration};

use ruma::{EventId, OwnedEventId};
use serde_json::Map;

use super::{SendError, Sent, retrying};
use crate::{
    context::RoomContext,
    driver::BoxFuture,
    outbox::{ATTEMPT_TIMEOUT, MIN_STICKY, ReadyEvent},
    time::{MAX_STICKY_DURATION, millis},
};

/// A redaction to be sent. Awaiting it sends it, in up to six tries. Made by
/// [`RoomSticky::redact`](crate::RoomSticky::redact).
///
/// # Cancel safety
///
/// If the future is dropped, the server may have the redaction or not.
#[must_use = "it is sent when it is awaited"]
pub struct RedactSticky {
    room: RoomContext,
    event_id: OwnedEventId,
    reason: Option<String>,
    sticky_duration: Option<Duration>,
}

impl RedactSticky {
    pub(crate) fn new(room: RoomContext, event_id: OwnedEventId) -> Self {
        Self { room, event_id, reason: None, sticky_duration: None }
    }

    /// Sets the reason, in words for people.
    pub fn with_reason(mut self, reason: impl Into<String>) -> Self {
        self.reason = Some(reason.into());
        self
    }

    /// Sets for how long the redaction is sticky, from 1 ms to 1 h. A duration out of that range is
    /// clamped. Defaults to the duration of the event that it redacts, if that is known, else 1 h:
    /// [MSC4354] ("Redaction") asks for no less.
    ///
    /// [MSC4354]: https://github.com/matrix-org/matrix-spec-proposals/pull/4354
    pub fn with_sticky_duration(mut self, duration: Duration) -> Self {
        self.sticky_duration = Some(duration.clamp(MIN_STICKY, MAX_STICKY_DURATION));
        self
    }

    async fn send(self) -> Result<Sent, SendError> {
        let Self { room, event_id, reason, sticky_duration } = self;
        let outbox = room.outbox();
        let mut content = Map::new();
        if let Some(reason) = reason {
            content.insert("reason".to_owned(), reason.into());
        }
        let rules = room.room().clone_info().room_version_rules_or_default();
        if !rules.redaction.content_field_redacts {
            // Before room version 11 the redacted event is named outside of the content, where only
            // the redaction endpoint can put it. That endpoint makes nothing sticky.
            let event = ReadyEvent::redaction(room.room(), &content, None)?;
            let sent = retrying(&outbox, || async {
                let deadline = outbox.deadline(ATTEMPT_TIMEOUT);
                Ok(outbox.redact(&event, &event_id, deadline).await?)
            })
            .await?;
            return Ok(Sent { event_id: sent, sticky_duration: None });
        }

        room.ensure_sticky_events().await?;
        let duration = sticky_duration
            .or_else(|| known_duration(&room, &event_id))
            .unwrap_or(MAX_STICKY_DURATION);
        content.insert("redacts".to_owned(), event_id.as_str().into());
        let event = ReadyEvent::redaction(room.room(), &content, Some(millis(duration)))?;
        let sent = retrying(&outbox, || async {
            Ok(outbox.send(&event, outbox.deadline(ATTEMPT_TIMEOUT)).await?)
        })
        .await?;
        Ok(Sent { event_id: sent, sticky_duration: Some(duration) })
    }
}

impl IntoFuture for RedactSticky {
    type Output = Result<Sent, SendError>;
    type IntoFuture = BoxFuture<'static, Self::Output>;

    fn into_future(self) -> Self::IntoFuture {
        Box::pin(self.send())
    }
}

impl fmt::Debug for RedactSticky {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RedactSticky").field("event_id", &self.event_id).finish_non_exhaustive()
    }
}

fn known_duration(room: &RoomContext, event_id: &EventId) -> Option<Duration> {
    let snapshot = room.events().snapshot();
    let duration = snapshot.iter().find(|entry| entry.event_id() == event_id)?.sticky_duration();
    Some(duration.clamp(MIN_STICKY, MAX_STICKY_DURATION))
}
