//! What a response brings: the input of [`EphemeralMaps`](super::EphemeralMaps).

use std::fmt;

use ruma::{OwnedEventId, OwnedRoomId};
use serde_json::value::RawValue;

use crate::{event::Encryption, map::ReceivedVia, time::Moment};

/// What one response brought for one room, at the moment at which it was received.
#[derive(Debug)]
pub struct Delivery {
    /// The room.
    pub room_id: OwnedRoomId,
    /// When the response was received, not when it was handed over.
    pub received: Moment,
    /// How the events came.
    pub via: ReceivedVia,
    /// The events, in any order.
    pub arrivals: Vec<Arrival>,
}

/// One thing that arrived.
#[non_exhaustive]
pub enum Arrival {
    /// An event as the server sent it. An encrypted one is kept until its room key comes.
    Event(Box<RawValue>),
    /// An encrypted event, decrypted.
    Decrypted {
        /// As the server sent it.
        outer: Box<RawValue>,
        /// As decryption gave it back: of this only type and content count.
        clear: Box<RawValue>,
        /// Who encrypted it.
        encryption: Encryption,
    },
    /// The news that an event has been redacted.
    Redaction(OwnedEventId),
    /// The news who encrypted an event that was decrypted before: when it came, its sender's device
    /// was not known.
    Encryption {
        /// The event.
        event_id: OwnedEventId,
        /// Who encrypted it, as is known now.
        encryption: Encryption,
    },
}

impl fmt::Debug for Arrival {
    /// Without the events' text, which may carry a delay id.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Event(_) => "Event(..)",
            Self::Decrypted { .. } => "Decrypted(..)",
            Self::Redaction(_) => "Redaction(..)",
            Self::Encryption { .. } => "Encryption(..)",
        })
    }
}
