#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod bounds;
mod changes;
mod decryption;
mod departures;
mod expiry;
mod malformed;
mod redactions;
mod removals;
mod unkeyed;
mod value;

use std::{
    collections::{BTreeMap, BTreeSet, HashSet},
    sync::Arc,
    time::Duration,
};

use ruma::{EventId, UserId};
use serde_json::json;

use super::*;
use crate::{
    event::{EncryptionDetails, Verification},
    testing::{ALICE, BOB, EventJson, debug, event, raw, secs, start},
};

/// A map, and the moment at which the test is.
struct Room {
    map: EphemeralMap,
    now: Moment,
}

impl Room {
    fn new() -> Self {
        Self::keeping(Limits::default().max_events_per_sender)
    }

    fn keeping(per_sender: usize) -> Self {
        Self { map: EphemeralMap::new(Limits { max_events_per_sender: per_sender }), now: start() }
    }

    fn pass(&mut self, time: Duration) {
        self.now = self.now.advanced(time);
    }

    fn section(&mut self, event: &EventJson) -> Admission {
        self.map.handle_event(self.now, ReceivedVia::Section, event.raw()).unwrap()
    }

    fn timeline(&mut self, event: &EventJson) -> Admission {
        self.map.handle_event(self.now, ReceivedVia::Timeline, event.raw()).unwrap()
    }

    /// `outer` as the server sent it, and what decryption made of it.
    fn decrypted(&mut self, outer: &EventJson, clear: &EventJson) -> Admission {
        self.decrypted_with(outer, clear, Encryption::Plaintext)
    }

    fn decrypted_with(
        &mut self,
        outer: &EventJson,
        clear: &EventJson,
        encryption: Encryption,
    ) -> Admission {
        let clear = clear.clone().without("/msc4354_sticky").raw();
        self.map
            .handle_decrypted(self.now, ReceivedVia::Section, &outer.raw(), clear, encryption)
            .unwrap()
    }

    fn redact(&mut self, event_id: &str) {
        self.map.handle_redaction(self.now, <&EventId>::try_from(event_id).unwrap());
    }

    fn ignore(&mut self, senders: &[&str]) {
        let ignored: HashSet<_> =
            senders.iter().map(|sender| UserId::parse(sender).unwrap()).collect();
        self.map.handle_ignored(Arc::new(ignored));
    }

    /// The ids of the live entries, in their order.
    fn live(&mut self) -> Vec<String> {
        self.map.entries(self.now).iter().map(|event| event.event_id_str().to_owned()).collect()
    }

    /// What changed: `+$new`, `$old>$new`, `-$old reason`.
    fn changes(&mut self) -> Vec<String> {
        self.map.poll_changes(self.now).iter().map(told).collect()
    }
}

fn told(delta: &Delta) -> String {
    match (&delta.before, &delta.after) {
        (None, Ok(after)) => format!("+{}", after.event_id()),
        (Some(before), Ok(after)) => format!("{}>{}", before.event_id(), after.event_id()),
        (Some(before), Err(reason)) => format!("-{} {}", before.event_id(), reason.as_str()),
        (None, Err(_)) => "nothing".to_owned(),
    }
}

/// Every order of `items`.
fn orders<T: Clone>(items: &[T]) -> Vec<Vec<T>> {
    if items.is_empty() {
        return vec![Vec::new()];
    }
    let mut all = Vec::new();
    for at in 0..items.len() {
        let mut rest = items.to_vec();
        let first = rest.remove(at);
        for mut order in orders(&rest) {
            order.insert(0, first.clone());
            all.push(order);
        }
    }
    all
}
