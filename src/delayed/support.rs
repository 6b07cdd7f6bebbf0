//! What is known of a server's delayed events.

use std::sync::Arc;

use ruma::OwnedRoomId;

use super::{DelayId, PreparedEvent};
use crate::{outbox::Target, time::Deadline};

/// What is known of a client's server. It starts empty, and each answer fills it.
#[derive(Debug, Default)]
pub(crate) struct ServerSupport {
    /// The server has said that it knows delayed events.
    pub(super) delayed: bool,
    /// The server has said that it knows sticky events.
    pub(super) sticky: bool,
    /// The form in which it takes events to be scheduled, as far as it is known.
    pub(super) schedule: Option<EndpointForm>,
    /// The form in which they are restarted, sent and cancelled.
    pub(super) manage: Option<EndpointForm>,
    /// Whether events stay sticky that are scheduled in the newer form.
    pub(super) dedicated: Dedicated,
    /// The event that finds that out, while it is under way.
    pub(super) probe: Option<Probe>,
    /// Held while somebody finds it out.
    pub(super) proving: Arc<tokio::sync::Mutex<()>>,
}

impl ServerSupport {
    /// Returns the order in which the forms are tried. An event that is to be sticky does not go out
    /// in the newer form before that form is known to keep it sticky.
    pub(super) fn forms(&self, is_sticky: bool) -> [EndpointForm; 2] {
        if is_sticky && self.dedicated != Dedicated::Proven {
            return [EndpointForm::Old, EndpointForm::New];
        }
        EndpointForm::order(self.schedule)
    }
}

/// Which iteration of MSC4140 a server speaks. Each endpoint has had one more form.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum EndpointForm {
    New,
    Old,
}

impl EndpointForm {
    /// Returns the order in which the forms are tried. The known form comes first and not alone: the
    /// server may have been replaced by another version.
    pub(super) fn order(known: Option<Self>) -> [Self; 2] {
        let first = known.unwrap_or(Self::New);
        [first, first.other()]
    }

    /// Returns what the server shall do with an event, in this form.
    pub(super) fn target(self, event: &PreparedEvent) -> Target<'static> {
        match self {
            Self::New => Target::DelayedByEndpoint(event.delay_ms),
            Self::Old => Target::DelayedByQuery(event.delay_ms),
        }
    }

    pub(super) fn other(self) -> Self {
        match self {
            Self::New => Self::Old,
            Self::Old => Self::New,
        }
    }
}

/// What is known of the dedicated endpoint.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Dedicated {
    #[default]
    Unknown,
    /// It keeps events sticky.
    Proven,
    /// It does not. That counts until the deadline.
    Forgets(Deadline),
}

/// A removal that is scheduled, to be sent and looked at.
#[derive(Clone, Debug)]
pub(super) struct Probe {
    pub(super) room_id: OwnedRoomId,
    pub(super) event_type: String,
    pub(super) delay_id: DelayId,
}
