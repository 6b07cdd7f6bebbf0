//! Main loop: what the application's own sync loop brings. Redactions, gaps, rooms joined and left.
//!
//! In: the updates that matrix-sdk broadcasts after each response, whichever loop asked for it.
//! Out: what they mean for the maps ([`News`]). Never: a request, an event that was decrypted.
//! Redactions come only this way: the sticky extension has none.

use std::{collections::HashSet, time::Duration};

use matrix_sdk::sync::{JoinedRoomUpdate, RoomUpdates, State};
use ruma::{OwnedEventId, OwnedRoomId, OwnedUserId, UserId};
use serde::Deserialize;

use crate::{
    cleartext::Cleartext,
    wire::{self, Wire, names},
};

/// How much older than our connection a join may look and still be younger. The server counts the age
/// of our join, and we count that of our connection: they differ by the time that a request takes.
const MAX_AGE_ERROR: Duration = Duration::from_secs(30);

/// The time that a sticky event must have left to be expected from our own source. With less, it may
/// be over before the source could bring it.
const MIN_TIME_LEFT: Duration = Duration::from_secs(60);

/// The rooms that we are in, as far as the main loop has said.
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
    /// Rooms that we joined after our connection started. What was sticky there before the join does
    /// not come by itself (synapse#19662).
    pub(super) just_joined: Vec<OwnedRoomId>,
    /// Rooms with a gap in the timeline, in which a redaction may have been.
    pub(super) gaps: Vec<OwnedRoomId>,
    /// Cleartext events that stay sticky for a while. Our own source has to bring them too.
    pub(super) sticky: Vec<Shown>,
}

/// A sticky event that the main loop has shown.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Shown {
    pub(super) room_id: OwnedRoomId,
    pub(super) sender: OwnedUserId,
}

impl MainLoop {
    pub(super) fn new(own_id: OwnedUserId, joined: impl IntoIterator<Item = OwnedRoomId>) -> Self {
        Self { own_id, joined: joined.into_iter().collect() }
    }

    /// Takes the rooms that we are in, after updates were missed.
    pub(super) fn start_over(&mut self, joined: impl IntoIterator<Item = OwnedRoomId>) {
        self.joined = joined.into_iter().collect();
    }

    /// Takes an update. `connected_for` says for how long our own connection has been there.
    pub(super) fn handle_update(&mut self, updates: &RoomUpdates, connected_for: Duration) -> News {
        let mut news = News::default();
        // Our connection may have named a room that we are only invited to, before this loop did.
        let invited = updates.invited.keys().chain(updates.knocked.keys());
        for room_id in updates.left.keys().chain(invited) {
            self.joined.remove(room_id);
            news.left.push(room_id.clone());
        }
        for (room_id, update) in &updates.joined {
            for event in update.timeline.events.iter().filter_map(Cleartext::of_timeline) {
                let redacted = event.redacts();
                news.redactions.extend(redacted.map(|event_id| (room_id.clone(), event_id)));
                let sender = sticky_sender(event);
                news.sticky.extend(sender.map(|sender| Shown { room_id: room_id.clone(), sender }));
            }
            if self.joined.insert(room_id.clone()) {
                let age = own_join_age(update, &self.own_id);
                if age.is_none_or(|age| age < connected_for.saturating_add(MAX_AGE_ERROR)) {
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

/// Returns the sender of a sticky event with time left; `None` for any other event.
fn sticky_sender(event: Cleartext<'_>) -> Option<OwnedUserId> {
    if !event.text().contains("sticky") {
        return None;
    }
    match wire::read(event.json()).ok()? {
        Wire::Sticky(event) => {
            let left = Duration::from_millis(event.remaining_ms?);
            (left >= MIN_TIME_LEFT).then(|| event.sender.into_owned())
        }
        _ => None,
    }
}

/// Returns how long ago we joined, by the server's word, if the update has our own membership.
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
    let timeline = update.timeline.events.iter().filter_map(Cleartext::of_timeline);
    state
        .iter()
        .map(Cleartext::of_state)
        .chain(timeline)
        .map(Cleartext::text)
        .filter(|text| text.contains(names::ROOM_MEMBER))
        .filter_map(|text| serde_json::from_str::<Member<'_>>(text).ok())
        .filter(|event| {
            event.event_type == names::ROOM_MEMBER && event.state_key == Some(own_id.as_str())
        })
        .filter_map(|event| event.unsigned.age)
        .map(Duration::from_millis)
        .min()
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use matrix_sdk::sync::{LeftRoomUpdate, Timeline};
    use ruma::serde::Raw;
    use serde_json::{Value, json};

    use super::*;
    use crate::{
        cleartext::testing::{clear, redaction, sealed, update},
        testing::{ALICE, raw, secs},
    };

    const ME: &str = "@me:hs";
    const ROOM: &str = "!room:hs";
    const DAY: Duration = Duration::from_secs(86_400);

    fn room_id() -> OwnedRoomId {
        OwnedRoomId::try_from(ROOM).unwrap()
    }

    fn main_loop(joined: impl IntoIterator<Item = OwnedRoomId>) -> MainLoop {
        MainLoop::new(OwnedUserId::try_from(ME).unwrap(), joined)
    }

    fn timeline(events: &[Value]) -> JoinedRoomUpdate {
        update(events.iter().map(clear))
    }

    fn joined(update: JoinedRoomUpdate) -> RoomUpdates {
        RoomUpdates { joined: [(room_id(), update)].into(), ..RoomUpdates::default() }
    }

    fn left() -> RoomUpdates {
        RoomUpdates {
            left: [(room_id(), LeftRoomUpdate::default())].into(),
            ..RoomUpdates::default()
        }
    }

    fn membership(user_id: &str, age_ms: Option<u64>) -> Value {
        json!({
            "event_id": "$member",
            "sender": user_id,
            "type": "m.room.member",
            "state_key": user_id,
            "origin_server_ts": 1,
            "content": { "membership": "join" },
            "unsigned": { "age": age_ms },
        })
    }

    #[test]
    fn redactions_are_found_in_every_form() {
        let update = timeline(&[
            redaction(&json!({ "redacts": "$old" })),
            redaction(&json!({ "content": { "redacts": "$new" } })),
            // Itself, redacted before we saw it.
            json!({
                "event_id": "$gone",
                "sender": ALICE,
                "type": "com.example.t",
                "origin_server_ts": 1,
                "content": {},
                "unsigned": { "redacted_because": { "type": "m.room.redaction" } },
            }),
            // Words that only look like one.
            json!({
                "event_id": "$m",
                "sender": ALICE,
                "type": "m.room.message",
                "origin_server_ts": 1,
                "content": { "body": "redacts", "redacts": "$not" },
            }),
            redaction(&json!({ "redacts": 5 })),
            redaction(&json!({ "redacts": "no event id" })),
        ]);
        let news = main_loop([room_id()]).handle_update(&joined(update), DAY);
        let ids: Vec<_> = news.redactions.iter().map(|(_, event_id)| event_id.as_str()).collect();
        assert_eq!(ids, ["$old", "$new", "$gone"]);
    }

    /// The sender seals the type and all that is in an event; nobody has checked the sender's right.
    #[test]
    fn nothing_sealed_redacts() {
        let gone = json!({
            "event_id": "$gone",
            "type": "com.example.t",
            "origin_server_ts": 1,
            "content": {},
            "unsigned": { "redacted_because": { "type": "m.room.redaction" } },
        });
        let redactions =
            [json!({ "redacts": "$old" }), json!({ "content": { "redacts": "$new" } })];
        let events = redactions.iter().map(redaction).chain([gone]);
        let update = update(events.map(|event| sealed(&event)));
        let news = main_loop([room_id()]).handle_update(&joined(update), DAY);
        assert_eq!(news.redactions, []);
    }

    #[test]
    fn a_sealed_membership_is_not_ours() {
        let update =
            update([clear(&membership(ME, Some(91_000))), sealed(&membership(ME, Some(1)))]);
        let news = main_loop([]).handle_update(&joined(update), secs(60));
        assert_eq!((news.new.len(), news.just_joined.len()), (1, 0));
    }

    #[test]
    fn a_young_join_makes_a_room_just_joined() {
        let cases = [
            // A minute's connection, and 30 s for what a request takes.
            (vec![membership(ME, Some(10))], true),
            (vec![membership(ME, Some(89_000))], true),
            (vec![membership(ME, Some(91_000))], false),
            // Nobody says how old it is.
            (vec![membership(ME, None)], true),
            (vec![], true),
            (vec![membership(ALICE, Some(91_000))], true),
            // The youngest counts: we were there before, left, and came back.
            (vec![membership(ME, Some(91_000)), membership(ME, Some(10))], true),
            (vec![membership(ALICE, Some(10)), membership(ME, Some(91_000))], false),
        ];
        for (events, is_just_joined) in cases {
            let news = main_loop([]).handle_update(&joined(timeline(&events)), secs(60));
            assert_eq!(news.new, [room_id()]);
            assert_eq!(!news.just_joined.is_empty(), is_just_joined, "{events:?}");
        }
    }

    #[test]
    fn our_join_is_found_in_any_state() {
        let event = || Raw::from_json(raw(membership(ME, Some(91_000)).to_string()));
        for state in [State::Before(vec![event()]), State::After(vec![event()])] {
            let update = JoinedRoomUpdate { state, ..JoinedRoomUpdate::default() };
            let news = main_loop([]).handle_update(&joined(update), secs(60));
            assert_eq!((news.new.len(), news.just_joined.len()), (1, 0));
        }
    }

    #[test]
    fn a_room_is_new_once_until_left() {
        let mut main_loop = main_loop([]);
        let update = || joined(timeline(&[]));
        assert_eq!(main_loop.handle_update(&update(), DAY).new, [room_id()]);
        assert!(main_loop.handle_update(&update(), DAY).new.is_empty());

        let news = main_loop.handle_update(&left(), DAY);
        assert_eq!((news.left, news.new), (vec![room_id()], vec![]));
        let news = main_loop.handle_update(&update(), DAY);
        assert_eq!((news.new, news.just_joined), (vec![room_id()], vec![room_id()]));
    }

    #[test]
    fn an_old_room_is_never_new() {
        let mut main_loop = main_loop([room_id()]);
        let news = main_loop.handle_update(&joined(timeline(&[membership(ME, Some(1))])), DAY);
        assert!(news.new.is_empty() && news.just_joined.is_empty());

        main_loop.start_over([]);
        let news = main_loop.handle_update(&joined(timeline(&[])), DAY);
        assert_eq!(news.new, [room_id()]);
        main_loop.start_over([room_id()]);
        assert!(main_loop.handle_update(&joined(timeline(&[])), DAY).new.is_empty());
    }

    #[test]
    fn a_sticky_event_with_time_left_is_shown() {
        let sticky = |id: &str, ms: u64| {
            let event = crate::testing::event(id).lasting(ms);
            serde_json::from_str::<Value>(&event.text()).unwrap()
        };
        let mut main_loop = main_loop([room_id()]);
        let long = sticky("$long", 60_000);
        let update_of = |events| joined(update(events));
        let events = [clear(&sticky("$short", 59_999)), clear(&long), clear(&membership(ME, None))];
        let news = main_loop.handle_update(&update_of(events.to_vec()), DAY);
        let sender = OwnedUserId::try_from(ALICE).unwrap();
        assert_eq!(news.sticky, [Shown { room_id: room_id(), sender }]);
        // The sender can seal a sticky object too.
        assert_eq!(main_loop.handle_update(&update_of(vec![sealed(&long)]), DAY).sticky, []);
    }

    #[test]
    fn a_gap_counts_in_an_old_room() {
        let gap = || {
            let timeline = Timeline { limited: true, ..Timeline::default() };
            joined(JoinedRoomUpdate { timeline, ..JoinedRoomUpdate::default() })
        };
        let mut main_loop = main_loop([]);
        assert!(main_loop.handle_update(&gap(), DAY).gaps.is_empty(), "all of it is new");
        assert_eq!(main_loop.handle_update(&gap(), DAY).gaps, [room_id()]);
    }
}
