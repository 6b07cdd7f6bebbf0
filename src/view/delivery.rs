//! What a response brings: the input of [`EphemeralMaps`](super::EphemeralMaps).

use std::fmt;

use ruma::{OwnedEventId, OwnedRoomId};
use serde_json::value::RawValue;

use crate::{event::Encryption, map::ReceivedVia, time::Moment};

/// What one response brought for one room. See [`EphemeralMaps`](super::EphemeralMaps) for an
/// example.
#[derive(Debug)]
pub struct Delivery {
    /// The room.
    pub room_id: OwnedRoomId,
    /// When the response was received. Events end by their remaining time, counted from here; the
    /// moment at which you hand the delivery over does not count.
    pub received: Moment,
    /// How the events came. It decides when an event ends if the server does not say so.
    pub via: ReceivedVia,
    /// What arrived. The order makes no difference.
    pub arrivals: Vec<Arrival>,
}

/// One thing that arrived.
#[non_exhaustive]
pub enum Arrival {
    /// An event as the server sent it. The map keeps an encrypted one until its room key comes.
    Event(Box<RawValue>),
    /// An encrypted event, decrypted.
    Decrypted {
        /// As the server sent it.
        outer: Box<RawValue>,
        /// As decryption gave it back. Only its type and content count.
        clear: Box<RawValue>,
        /// Who encrypted it.
        encryption: Encryption,
    },
    /// The id of an event that has been redacted. Only a redaction in cleartext counts: a redaction
    /// that came encrypted is the sender's word alone, and the server has not allowed it.
    Redaction(OwnedEventId),
    /// News about who encrypted an event. The event was decrypted before its sender's device was
    /// known.
    Encryption {
        /// The event.
        event_id: OwnedEventId,
        /// Who encrypted it, as the SDK knows it now.
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
