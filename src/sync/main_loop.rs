//! What the application's main loop tells us: redactions, gaps, rooms joined and left.
//!
//! In: the updates that matrix-sdk broadcasts after each response, whichever loop asked for it.
//! Out: what that means for the maps. Redactions come only this way: the sticky extension has none.

use std::{borrow::Cow, collections::HashSet, time::Duration};

use matrix_sdk::sync::{JoinedRoomUpdate, RoomUpdates, State};
use ruma::{OwnedEventId, OwnedRoomId, OwnedUserId, UserId};
use serde::Deserialize;

use crate::wire::{self, Wire};

/// The age of our own join is counted by the server and the age of our connection by us, so they
/// may differ by what a request takes on its way.
const AGE_SLACK: Duration = Duration::from_secs(30);

/// The rooms that we are in, as far as the main loop has told.
#[derive(Debug)]
pub(super) struct MainLoop {
    own_id: OwnedUserId,
    joined: HashSet<OwnedRoomId>,
}

/// What an update of the main loop means.
#[derive(Debug, Default)]
pub(super) struct News {
    pub(super) redactions: Vec<(OwnedRoomId, OwnedEventId)>,
    /// Rooms that we are not in, left or not joined yet.
    pub(super) left: Vec<OwnedRoomId>,
    /// Rooms that were not there before, for whatever reason.
    pub(super) new: Vec<OwnedRoomId>,
    /// Rooms that we joined after our connection started: what was sticky there before the join
    /// does not come by itself (synapse#19662).
    pub(super) just_joined: Vec<OwnedRoomId>,
    /// Rooms with a gap in the timeline, in which a redaction may have been.
    pub(super) gaps: Vec<OwnedRoomId>,
}

impl MainLoop {
    pub(super) fn new(own_id: OwnedUserId, joined: impl IntoIterator<Item = OwnedRoomId>) -> Self {
        Self { own_id, joined: joined.into_iter().collect() }
    }

    /// Takes the rooms that we are in, after updates were missed.
    pub(super) fn start_over(&mut self, joined: impl IntoIterator<Item = OwnedRoomId>) {
        self.joined = joined.into_iter().collect();
    }

    /// Takes an update. `connected_for` is for how long our own connection has been there.
    pub(super) fn handle_update(&mut self, updates: &RoomUpdates, connected_for: Duration) -> News {
        let mut news = News::default();
        // Our connection may have told of a room that we are only invited to before this did.
        let invited = updates.invited.keys().chain(updates.knocked.keys());
        for room_id in updates.left.keys().chain(invited) {
            self.joined.remove(room_id);
            news.left.push(room_id.clone());
        }
        for (room_id, update) in &updates.joined {
            for event in &update.timeline.events {
                let redacted = redaction(event.raw().json().get());
                news.redactions.extend(redacted.map(|event_id| (room_id.clone(), event_id)));
            }
            if self.joined.insert(room_id.clone()) {
                let age = own_join_age(update, &self.own_id);
                if age.is_none_or(|age| age < connected_for.saturating_add(AGE_SLACK)) {
                    news.just_joined.push(room_id.clone());
                }
                news.new.push(room_id.clone());
            } else if update.timeline.limited {
                news.gaps.push(room_id.clone());
            }
        }
        news
    }
}

/// The event that an event of the main loop's timeline says is redacted: another one, or itself.
fn redaction(text: &str) -> Option<OwnedEventId> {
    // Nearly every event of every timeline comes by here, and nearly none is read.
    if !text.contains("redact") {
        return None;
    }
    match wire::read(text).ok()? {
        Wire::Redacted { event_id } => Some(event_id.into_owned()),
        Wire::NotSticky { redacts } => redacts.map(Cow::into_owned),
        Wire::Sticky(event) => event.redacts.map(Cow::into_owned),
    }
}

/// How long ago we joined, by the server's word, where the update has our own membership.
fn own_join_age(update: &JoinedRoomUpdate, own_id: &UserId) -> Option<Duration> {
    #[derive(Deserialize)]
    struct Member<'a> {
        #[serde(rename = "type")]
        event_type: &'a str,
        state_key: Option<&'a str>,
        #[serde(default)]
        unsigned: Unsigned,
    }
    #[derive(Default, Deserialize)]
    struct Unsigned {
        age: Option<u64>,
    }

    let (State::Before(state) | State::After(state)) = &update.state;
    let state = state.iter().map(|event| event.json().get());
    let timeline = update.timeline.events.iter().map(|event| event.raw().json().get());
    state
        .chain(timeline)
        .filter(|text| text.contains("m.room.member"))
        .filter_map(|text| serde_json::from_str::<Member<'_>>(text).ok())
        .filter(|event| {
            event.event_type == "m.room.member" && event.state_key == Some(own_id.as_str())
        })
        .filter_map(|event| event.unsigned.age)
        .map(Duration::from_millis)
        .min()
}
