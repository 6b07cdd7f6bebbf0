//! Which entries are shown: those of these types and senders.

use clap::Args;
use matrix_sdk::ruma::{OwnedUserId, UserId};
use matrix_sdk_sticky::event::StickyEvent;

/// The filters. An empty one lets everything through.
#[derive(Args, Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Only {
    /// Only events of this type, e.g. com.example.presence. May be given several times.
    #[arg(long = "type", value_name = "T")]
    pub(crate) types: Vec<String>,
    /// Only events of this user, by the full id. May be given several times.
    #[arg(long = "sender", value_name = "USER_ID", value_parser = user_id)]
    pub(crate) senders: Vec<OwnedUserId>,
}

fn user_id(text: &str) -> Result<OwnedUserId, String> {
    UserId::parse(text).map_err(|error| format!("not a user's full id: {error}"))
}

impl Only {
    /// Whether an event is shown. Neither its type nor its sender ever changes, so an entry never comes
    /// or goes because of the filters alone.
    pub(crate) fn lets_through(&self, event: &StickyEvent) -> bool {
        (self.types.is_empty() || self.types.iter().any(|only| only == event.event_type()))
            && (self.senders.is_empty() || self.senders.iter().any(|only| only == event.sender()))
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.types.is_empty() && self.senders.is_empty()
    }

    /// Shows this type alone, or all types if it was alone already.
    pub(crate) fn toggle_type(&mut self, event_type: &str) {
        let is_alone = self.types == [event_type];
        self.types = if is_alone { vec![] } else { vec![event_type.to_owned()] };
    }

    /// Shows this sender alone, or all senders if it was alone already.
    pub(crate) fn toggle_sender(&mut self, sender: &UserId) {
        let is_alone = self.senders == [sender];
        self.senders = if is_alone { vec![] } else { vec![sender.to_owned()] };
    }
}
