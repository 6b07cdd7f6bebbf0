//! Responses: the door for applications that drive their own sync.
//!
//! In: ruma's sync responses, v3 and v5 (simplified sliding sync), as they came, each with the moment.
//! Out: deliveries to the maps. Never: I/O, a clock.
//!
//! Nothing here has keys, so encrypted events wait. Decrypt what
//! [`EphemeralMaps::waiting`](crate::EphemeralMaps::waiting) returns, and hand it in as
//! [`Arrival::Decrypted`](crate::view::Arrival::Decrypted).

use ruma::{
    OwnedRoomId, RoomId,
    api::client::sync::sync_events::{v3, v5},
    events::AnySyncTimelineEvent,
    serde::Raw,
};

use crate::{
    map::ReceivedVia,
    time::Moment,
    view::{Arrival, Delivery, EphemeralMaps},
};

impl EphemeralMaps {
    /// Takes a response of v3 `/sync` ([MSC4354], "Sync API changes") that was received at `received`:
    /// the sticky section and the timeline of each joined room, and the rooms that were left. What
    /// the joined rooms bring is one change to a subscriber.
    ///
    /// # Examples
    ///
    /// ```
    /// use matrix_sdk::ruma::api::client::sync::sync_events::v3;
    /// use matrix_sdk_sticky::{EphemeralMaps, SystemClock, map::Limits};
    ///
    /// let maps = EphemeralMaps::new(SystemClock::default(), Limits::default());
    /// // Take the moment when the response arrives, before anything else is done with it.
    /// let response = v3::Response::new("s72594_4483".to_owned());
    /// maps.handle_v3(&response, maps.now());
    /// assert_eq!(maps.view().snapshot().len(), 0);
    /// ```
    ///
    /// [MSC4354]: https://github.com/matrix-org/matrix-spec-proposals/pull/4354
    pub fn handle_v3(&self, response: &v3::Response, received: Moment) {
        for room_id in response.rooms.leave.keys() {
            self.handle_left(room_id);
        }
        let rooms = &response.rooms.join;
        self.handle(rooms.iter().flat_map(|(room_id, room)| {
            [
                section(room_id, received, &room.sticky.events),
                timeline(room_id, received, &room.timeline.events),
            ]
        }));
    }

    /// Takes a response of simplified sliding sync (MSC4186) that asked for the sticky extension
    /// (MSC4480) and was received at `received`: the extension, and the timelines of the rooms. A
    /// subscriber sees it as one change.
    ///
    /// The response does not name the rooms that were left in one place. Hand those to
    /// [`handle_left`](Self::handle_left).
    ///
    /// # Examples
    ///
    /// ```
    /// use matrix_sdk::ruma::api::client::sync::sync_events::v5;
    /// use matrix_sdk_sticky::{EphemeralMaps, SystemClock, map::Limits};
    ///
    /// let maps = EphemeralMaps::new(SystemClock::default(), Limits::default());
    /// let response = v5::Response::new("1".to_owned());
    /// maps.handle_v5(&response, maps.now());
    /// assert_eq!(maps.view().snapshot().len(), 0);
    /// ```
    pub fn handle_v5(&self, response: &v5::Response, received: Moment) {
        let rooms = &response.extensions.sticky_events.rooms;
        let sections = rooms.iter().map(|(room_id, room)| section(room_id, received, &room.events));
        let timelines = response
            .rooms
            .iter()
            .map(|(room_id, room)| timeline(room_id, received, &room.timeline));
        self.handle(sections.chain(timelines));
    }
}

fn section(room_id: &RoomId, received: Moment, events: &[Raw<AnySyncTimelineEvent>]) -> Delivery {
    let arrivals = events.iter().map(|event| Arrival::Event(event.json().to_owned())).collect();
    Delivery { room_id: room_id.to_owned(), received, via: ReceivedVia::Section, arrivals }
}

fn timeline(
    room_id: &OwnedRoomId,
    received: Moment,
    events: &[Raw<AnySyncTimelineEvent>],
) -> Delivery {
    let arrivals = events
        .iter()
        .map(Raw::json)
        // Nearly every event of a timeline is neither sticky nor about a redaction, and is not read.
        .filter(|event| event.get().contains("sticky") || event.get().contains("redact"))
        .map(|event| Arrival::Event(event.to_owned()))
        .collect();
    Delivery { room_id: room_id.clone(), received, via: ReceivedVia::Timeline, arrivals }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, reason = "tests")]

    use ruma::{api::IncomingResponse, exports::http};
    use serde_json::{Value, json};

    use super::*;
    use crate::{
        map::Limits,
        time::{Clock, Moment},
    };

    #[derive(Debug)]
    struct Still(Moment);

    impl Clock for Still {
        fn now(&self) -> Moment {
            self.0
        }
    }

    fn maps() -> EphemeralMaps {
        let day = std::time::Duration::from_secs(86_400);
        EphemeralMaps::new(Still(Moment::new(day, day)), Limits::default())
    }

    fn sticky(event_id: &str, key: &str) -> Value {
        json!({
            "type": "com.example", "sender": "@bob:example.org", "event_id": event_id,
            "origin_server_ts": 1, "msc4354_sticky": { "duration_ms": 60_000 },
            "content": { "msc4354_sticky_key": key, "body": "." },
            "unsigned": { "msc4354_sticky_duration_ttl_ms": 30_000 },
        })
    }

    fn parsed<R: IncomingResponse>(response: &Value) -> R {
        let body = serde_json::to_vec(response).unwrap();
        R::try_from_http_response_inner(http::Response::new(body.as_slice())).unwrap()
    }

    fn keys(maps: &EphemeralMaps) -> Vec<String> {
        let snapshot = maps.view().snapshot();
        snapshot.iter().filter_map(|entry| entry.sticky_key().map(str::to_owned)).collect()
    }

    #[test]
    fn a_v3_response_brings_all_its_parts() {
        let maps = maps();
        let redaction = json!({
            "type": "m.room.redaction", "sender": "@bob:example.org", "event_id": "$r",
            "origin_server_ts": 2, "content": { "redacts": "$c" },
        });
        let response = parsed(&json!({
            "next_batch": "s1",
            "rooms": { "join": {
                "!a:example.org": {
                    "msc4354_sticky": { "events": [sticky("$a", "a"), sticky("$c", "c")] },
                    "timeline": { "events": [sticky("$b", "b"), redaction] },
                },
                "!b:example.org": { "msc4354_sticky": { "events": [sticky("$d", "d")] } },
            } },
        }));
        maps.handle_v3(&response, maps.now());
        assert_eq!(keys(&maps), ["a", "b", "d"]);

        let left =
            parsed(&json!({ "next_batch": "s2", "rooms": { "leave": { "!b:example.org": {} } } }));
        maps.handle_v3(&left, maps.now());
        assert_eq!(keys(&maps), ["a", "b"]);
    }

    #[test]
    fn a_v5_response_brings_extension_and_timelines() {
        let maps = maps();
        let response = parsed(&json!({
            "pos": "1",
            "rooms": { "!a:example.org": { "timeline": [sticky("$b", "b")] } },
            "extensions": { "org.matrix.msc4354.sticky_events": {
                "next_batch": "1",
                "rooms": { "!a:example.org": { "events": [sticky("$a", "a")] } },
            } },
        }));
        maps.handle_v5(&response, maps.now());
        assert_eq!(keys(&maps), ["a", "b"]);
    }
}
