//! The two orders of events: which one of a key is its value, and where an entry stands in a list.
//!
//! In: events. Out: [`Rank`] and [`EntryOrder`]. No other module compares timestamps or strings of
//! events by hand.

use std::cmp::Ordering;

use super::StickyEvent;

/// Where an event ranks among the sticky events of its key. The highest one is the value.
///
/// [MSC4354] ("Implementing an ephemeral map") compares `origin_server_ts + duration_ms`, then the
/// event id. The duration counts as it stands, unclamped; the sum saturates.
///
/// [MSC4354]: https://github.com/matrix-org/matrix-spec-proposals/pull/4354
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Rank<'a> {
    intended_end_ms: u64,
    event_id: &'a str,
}

/// Where an event stands in the map and in every list of its entries: by type, then by sender, then
/// keyed before unkeyed, then by sticky key or event id, each as bytes.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct EntryOrder<'a> {
    pub(crate) event_type: &'a str,
    pub(crate) sender: &'a str,
    pub(crate) name: EntryName<'a>,
}

/// The last part of an entry's order: its sticky key, or else its event id.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum EntryName<'a> {
    Keyed(&'a str),
    Unkeyed(&'a str),
}

impl EntryOrder<'_> {
    /// An order that no event has: every event has a sender.
    pub(crate) const NOWHERE: Self =
        Self { event_type: "", sender: "", name: EntryName::Unkeyed("") };
}

impl StickyEvent {
    /// Returns the rank among the events of the key.
    pub(crate) fn rank(&self) -> Rank<'_> {
        Rank {
            intended_end_ms: self.origin_server_ts_ms.saturating_add(self.duration_ms),
            event_id: self.event_id_str(),
        }
    }

    pub(crate) fn order(&self) -> EntryOrder<'_> {
        EntryOrder {
            event_type: &self.event_type,
            sender: self.sender.as_str(),
            name: match self.sticky_key() {
                Some(key) => EntryName::Keyed(key),
                None => EntryName::Unkeyed(self.event_id_str()),
            },
        }
    }

    /// Compares the entry orders, without looking at strings that both events share.
    pub(crate) fn cmp_order(&self, other: &Self) -> Ordering {
        if !self.event_type.is_same(&other.event_type) {
            let order = self.event_type.cmp(&other.event_type);
            if order.is_ne() {
                return order;
            }
        }
        if !self.sender.is_same(&other.sender) {
            let order = self.sender.as_str().cmp(other.sender.as_str());
            if order.is_ne() {
                return order;
            }
        }
        self.order().name.cmp(&other.order().name)
    }
}
