//! Inbox: the key messages that a client gets for a room, until the exchange takes them.
//!
//! In: every to-device message. Out: those with a media key for this room, in their order. Never: a verdict on
//! who sent them, or memory without bounds.

use std::{
    collections::VecDeque,
    fmt,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
};

use matrix_sdk::{
    Room,
    deserialized_responses::EncryptionInfo,
    event_handler::{EventHandlerDropGuard, RawEvent},
};
use ruma::{OwnedUserId, RoomId, events::AnyToDeviceEvent};
use serde::Deserialize;
use serde_json::value::RawValue;
use tokio::sync::Notify;
use tracing::warn;
use zeroize::Zeroizing;

use super::KeyMessage;
use crate::rtc::dialect::Dialect;

/// How many messages are queued.
const MAX_QUEUED: usize = 1_024;

/// How many messages of one sender are queued: some of each of a few devices, with a rotation or two.
const MAX_QUEUED_OF_ONE: usize = 32;

/// The longest message that is read, in bytes: several times what a key takes.
const MAX_MESSAGE_BYTES: usize = 4_096;

/// A message, and what its decryption shows.
pub(super) type Incoming = (KeyEvent, Option<EncryptionInfo>);

/// The key messages that a client gets for a room, from now on. Dropping it stops collecting.
///
/// It has to be opened before our membership goes out: others send their keys as soon as they see that, and
/// the SDK keeps no to-device message that nobody asked for.
pub(in crate::rtc) struct KeyInbox {
    waiting: Arc<Queue>,
    _handler: EventHandlerDropGuard,
}

impl KeyInbox {
    /// Collects from now on. Of the messages that nobody reads it keeps the first 1,024, and of each sender the
    /// last 32, each of at most 4 KB: anybody can send such messages, also somebody who is not in the room. It
    /// keeps none that does not name the room.
    pub(in crate::rtc) fn open(room: &Room) -> Self {
        let waiting = Arc::<Queue>::default();
        let (into, room_id) = (waiting.clone(), room.room_id().to_owned());
        let client = room.client();
        let handler = client.add_event_handler(
            move |_: AnyToDeviceEvent, RawEvent(raw): RawEvent, info: Option<EncryptionInfo>| {
                if let Some(message) = KeyEvent::read(&raw, &room_id) {
                    into.add(message, info);
                }
                std::future::ready(())
            },
        );
        Self { waiting, _handler: client.event_handler_drop_guard(handler) }
    }

    pub(super) async fn next(&mut self) -> Incoming {
        loop {
            if let Some(message) = self.waiting.take() {
                return message;
            }
            self.waiting.is_more.notified().await;
        }
    }
}

impl fmt::Debug for KeyInbox {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("KeyInbox").finish_non_exhaustive()
    }
}

/// Messages in the order in which they came.
#[derive(Default)]
struct Queue {
    messages: Mutex<VecDeque<Incoming>>,
    /// Whether the log says that messages are dropped. A sender of many must not fill the log.
    has_warned: AtomicBool,
    is_more: Notify,
}

impl Queue {
    fn add(&self, message: KeyEvent, info: Option<EncryptionInfo>) {
        let mut messages = self.messages();
        let is_theirs = |(other, _): &Incoming| other.sender == message.sender;
        let oldest = messages.iter().position(is_theirs);
        let are_many = messages.iter().filter(|it| is_theirs(it)).count() >= MAX_QUEUED_OF_ONE;
        if (are_many || messages.len() >= MAX_QUEUED) && !self.has_warned.swap(true, Relaxed) {
            let sender = &message.sender;
            warn!(%sender, "too many media keys at once: some are dropped; said only once");
        }
        match oldest {
            // The key that is in use now is among the newest.
            Some(oldest) if are_many => drop(messages.remove(oldest)),
            _ if messages.len() >= MAX_QUEUED => return,
            _ => {}
        }
        messages.push_back((message, info));
        drop(messages);
        self.is_more.notify_one();
    }

    fn take(&self) -> Option<Incoming> {
        self.messages().pop_front()
    }

    fn messages(&self) -> MutexGuard<'_, VecDeque<Incoming>> {
        self.messages.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A to-device message that has a key, or claims to.
pub(super) struct KeyEvent {
    pub(super) dialect: Dialect,
    pub(super) sender: OwnedUserId,
    /// As text. Parsed, it takes many times as much.
    pub(super) content: Zeroizing<String>,
}

impl KeyEvent {
    /// Reads a message, if it is one with a key for this room.
    fn read(raw: &RawValue, room_id: &RoomId) -> Option<Self> {
        #[derive(Deserialize)]
        struct Event<'a> {
            #[serde(rename = "type")]
            event_type: String,
            sender: OwnedUserId,
            #[serde(borrow)]
            content: &'a RawValue,
        }
        #[derive(Deserialize)]
        struct Named {
            room_id: String,
        }
        // Most messages are room keys: nothing of those is parsed.
        if !raw.get().contains("encryption_key") {
            return None;
        }
        let Event { event_type, sender, content } = serde_json::from_str(raw.get()).ok()?;
        let dialect = KeyMessage::dialect_of(&event_type)?;
        let content = content.get();
        let named: Named = serde_json::from_str(content).ok()?;
        (named.room_id == room_id.as_str() && content.len() <= MAX_MESSAGE_BYTES).then(|| Self {
            dialect,
            sender,
            content: Zeroizing::new(content.to_owned()),
        })
    }
}

#[cfg(test)]
mod tests {
    use ruma::{UserId, owned_room_id};
    use serde_json::{Value, json};

    use super::*;

    /// The other senders have all of theirs.
    #[test]
    fn one_sender_has_only_the_newest_messages_queued() {
        let waiting = Queue::default();
        let add = |sender: &str, number: usize| {
            let sender = UserId::parse(sender).unwrap();
            let content = Zeroizing::new(number.to_string());
            waiting.add(KeyEvent { dialect: Dialect::Msc4143, sender, content }, None);
        };
        let take = || waiting.take().map(|(it, _)| (it.sender.to_string(), it.content));
        add("@bob:hs", 0);
        (0..100).for_each(|number| add("@alice:hs", number));
        add("@bob:hs", 1);
        let number = |content: Zeroizing<String>| content.parse::<u64>().unwrap();
        let waited: Vec<_> = std::iter::from_fn(take).map(|(who, it)| (who, number(it))).collect();
        let alices = (100 - MAX_QUEUED_OF_ONE..100).map(|it| ("@alice:hs".to_owned(), it as u64));
        let bobs = |it| ("@bob:hs".to_owned(), it);
        assert_eq!(
            waited,
            [bobs(0)].into_iter().chain(alices).chain([bobs(1)]).collect::<Vec<_>>()
        );

        // There is an end to all of them.
        (0..MAX_QUEUED + 1).for_each(|number| add(&format!("@user-{number}:hs"), 0));
        assert_eq!(std::iter::from_fn(take).count(), MAX_QUEUED);
    }

    #[test]
    fn only_key_messages_for_this_room_are_queued() {
        let room_id = owned_room_id!("!room:hs");
        let read = |event_type: &str, content: Value| {
            let event = json!({ "type": event_type, "sender": "@a:hs", "content": content });
            KeyEvent::read(&serde_json::value::to_raw_value(&event).unwrap(), &room_id).is_some()
        };
        let ours = || json!({ "room_id": "!room:hs" });
        let unstable = "org.matrix.msc4143.rtc.encryption_key";
        for event_type in [unstable, "m.rtc.encryption_key", "io.element.call.encryption_keys"] {
            assert!(read(event_type, ours()), "{event_type}");
            assert!(!read(event_type, json!({ "room_id": "!other:hs" })), "{event_type}");
            // Anybody can send these, and nobody needs to know.
            for content in [json!({}), json!({ "room_id": 1 }), json!([])] {
                assert!(!read(event_type, content), "{event_type}");
            }
            let mut long = ours();
            long["x"] = "x".repeat(MAX_MESSAGE_BYTES).into();
            assert!(!read(event_type, long), "{event_type}");
        }
        assert!(!read("m.room_key", json!({ "room_id": "!room:hs", "x": "encryption_key" })));
        assert!(!read("com.example.encryption_key", ours()));
    }
}
