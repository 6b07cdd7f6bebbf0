//! Cleartext: the events that may redact, and that may be state.
//!
//! In: an event of a timeline or of a state section, as matrix-sdk gives it. Out: its text, if the
//! server itself vouches for it. Never: anything that was decrypted.
//!
//! Why not simply look at the `type`? The JSON of a decrypted event is whatever its sender sealed: its
//! `type`, `state_key` and `redacts` are the sender's word. The server saw an ordinary message, and
//! checked no right to redact or to change the state.

use std::borrow::Cow;

use matrix_sdk::deserialized_responses::{
    RawAnySyncOrStrippedState, TimelineEvent, TimelineEventKind,
};
use ruma::{OwnedEventId, events::AnySyncStateEvent, serde::Raw};
use serde_json::value::RawValue;

use crate::wire::{self, Wire};

/// An event as the server sent it, which was never encrypted. Redactions and room state are read
/// from nothing else.
#[derive(Clone, Copy)]
pub(crate) struct Cleartext<'a>(&'a RawValue);

impl<'a> Cleartext<'a> {
    /// Takes an event of a timeline. Returns `None` for one that was encrypted, decrypted or not.
    pub(crate) fn of_timeline(event: &'a TimelineEvent) -> Option<Self> {
        match &event.kind {
            TimelineEventKind::PlainText { event } => Some(Self(event.json())),
            TimelineEventKind::Decrypted(_) | TimelineEventKind::UnableToDecrypt { .. } => None,
        }
    }

    /// Takes an event of the section in which a server puts a room's state. Nobody decrypts there.
    pub(crate) fn of_state(event: &'a Raw<AnySyncStateEvent>) -> Self {
        Self(event.json())
    }

    /// Takes a state event of the client's store. Returns `None` for one of a room that we are not in.
    /// The store has them from state sections and, before decryption, from timelines.
    pub(crate) fn of_store(event: &'a RawAnySyncOrStrippedState) -> Option<Self> {
        match event {
            RawAnySyncOrStrippedState::Sync(event) => Some(Self::of_state(event)),
            RawAnySyncOrStrippedState::Stripped(_) => None,
        }
    }

    pub(crate) fn json(self) -> &'a RawValue {
        self.0
    }

    pub(crate) fn text(self) -> &'a str {
        self.0.get()
    }

    /// Returns the id of the event that this one says is redacted: another one, or itself.
    pub(crate) fn redacts(self) -> Option<OwnedEventId> {
        // Nearly every event of every timeline passes here, and nearly none is read.
        if !self.text().contains("redact") {
            return None;
        }
        match wire::read(self.json()).ok()? {
            Wire::Redacted { event_id } => Some(event_id.into_owned()),
            Wire::NotSticky { redacts } => redacts.map(Cow::into_owned),
            Wire::Sticky(event) => event.redacts.map(Cow::into_owned),
        }
    }
}

/// What the unit tests share: what a hostile member seals, and what a server sends.
#[cfg(test)]
#[allow(clippy::unwrap_used)]
pub(crate) mod testing {
    use std::sync::Arc;

    use matrix_sdk::{
        deserialized_responses::{
            AlgorithmInfo, DecryptedRoomEvent, EncryptionInfo, TimelineEvent, VerificationState,
        },
        sync::{JoinedRoomUpdate, Timeline},
    };
    use ruma::{OwnedUserId, serde::Raw};
    use serde_json::{Value, json};

    use crate::testing::{BOB, raw};

    /// An event that bob sealed, as decryption gives it back: only its sender, its id, its time and
    /// its `unsigned` are the server's.
    pub(crate) fn sealed(event: &Value) -> TimelineEvent {
        let mut event = event.clone();
        event["sender"] = json!(BOB);
        event["room_id"] = json!("!room:hs");
        let encryption_info = EncryptionInfo {
            sender: OwnedUserId::try_from(BOB).unwrap(),
            sender_device: None,
            forwarder: None,
            algorithm_info: AlgorithmInfo::MegolmV1AesSha2 {
                curve25519_key: String::new(),
                sender_claimed_keys: [].into(),
                session_id: None,
            },
            verification_state: VerificationState::Verified,
        };
        let decrypted = DecryptedRoomEvent {
            event: Raw::from_json(raw(event.to_string())),
            encryption_info: Arc::new(encryption_info),
            unsigned_encryption_info: None,
        };
        TimelineEvent::from_decrypted(decrypted, None)
    }

    /// An event that was sent in the clear.
    pub(crate) fn clear(event: &Value) -> TimelineEvent {
        TimelineEvent::from_plaintext(Raw::from_json(raw(event.to_string())))
    }

    /// What the main loop brings of a room.
    pub(crate) fn update(events: impl IntoIterator<Item = TimelineEvent>) -> JoinedRoomUpdate {
        JoinedRoomUpdate {
            timeline: Timeline { events: events.into_iter().collect(), ..Timeline::default() },
            ..JoinedRoomUpdate::default()
        }
    }

    /// A redaction, with this in it.
    pub(crate) fn redaction(redacts: &Value) -> Value {
        let mut event = json!({
            "event_id": "$r",
            "sender": BOB,
            "type": "m.room.redaction",
            "origin_server_ts": 1,
            "content": {},
        });
        event.as_object_mut().unwrap().extend(redacts.as_object().unwrap().clone());
        event
    }

    /// An event of the room's state.
    pub(crate) fn state(event_type: &str, state_key: &str, content: Value) -> Value {
        json!({
            "event_id": "$s",
            "sender": BOB,
            "type": event_type,
            "state_key": state_key,
            "origin_server_ts": 1,
            "content": content,
            "unsigned": { "age": 1 },
        })
    }
}

#[cfg(test)]
mod tests {
    use matrix_sdk::deserialized_responses::{UnableToDecryptInfo, UnableToDecryptReason};
    use ruma::serde::Raw;
    use serde_json::json;

    use super::{testing::*, *};
    use crate::testing::{event, raw};

    #[test]
    fn no_encrypted_event_is_cleartext() {
        let sent = redaction(&json!({ "redacts": "$a" }));
        assert!(Cleartext::of_timeline(&clear(&sent)).is_some());
        assert!(Cleartext::of_timeline(&sealed(&sent)).is_none());
        let unreadable = TimelineEvent::from_utd(
            Raw::from_json(raw(event("$a").encrypted("session").text())),
            UnableToDecryptInfo { session_id: None, reason: UnableToDecryptReason::Unknown },
        );
        assert!(Cleartext::of_timeline(&unreadable).is_none());
    }
}
