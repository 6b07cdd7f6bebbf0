//! Fetch: the sticky events of single rooms, and those in a room's history.
//!
//! In: the rooms of a fetch. Out: deliveries to the maps, and what became of each room
//! ([`Fetched`]). Never: another attempt; the machine decides on that.

use std::{collections::BTreeSet, time::Duration};

use matrix_sdk::HttpError;
use ruma::{
    OwnedRoomId, RoomId, api::client::message::get_message_events, exports::http::StatusCode,
    serde::Raw, uint,
};

use super::{
    connection::MAX_KNOWN_PAGES,
    error::ConnectionError,
    machine::Fetched,
    sliding::{MAX_PAGE_EVENTS, Request, Response},
    source::RoomEvents,
    v3,
    worker::Worker,
};
use crate::{
    driver::random_name,
    map::ReceivedVia,
    request::{REQUEST_TIMEOUT, one_try},
    time::MAX_STICKY_DURATION,
};

/// How long to wait before the next of several rooms is asked for over v3.
const ROOM_INTERVAL: Duration = Duration::from_millis(100);

/// How many pages of 100 events of a room's history are searched.
const MAX_HISTORY_PAGES: usize = 30;

/// A page of sticky events of a single room, over v3.
struct RoomPage {
    /// There may be more.
    is_full: bool,
    /// All of it is of that room, or there is no more.
    is_filtered: bool,
}

impl Fetched {
    fn failed(rooms: BTreeSet<OwnedRoomId>, error: ConnectionError) -> Self {
        Self { failed: Some((rooms, error)), ..Self::default() }
    }
}

impl Worker {
    /// Fetches and delivers the sticky events of these rooms, on a connection just for that: all that
    /// are live, whatever the main connection has seen.
    pub(super) async fn fetch(&self, rooms: BTreeSet<OwnedRoomId>) -> Fetched {
        let name = random_name();
        let (mut pos, mut since) = (None, None);
        let mut fetched = Fetched::default();
        let mut known_pages = 0;
        loop {
            let request = Request::for_rooms(&name, &rooms, pos, since.clone());
            let config = one_try(request.timeout());
            let Response { page, rooms: events } =
                match self.client.send(request).with_request_config(config).await {
                    Ok(response) => response,
                    Err(error) => return Fetched::failed(rooms, error.into()),
                };
            let is_next = page.next_batch.is_some() && page.next_batch != since;
            let mut more = page.is_full() && is_next;
            fetched.has_extension |= page.has_extension();
            pos = Some(page.pos);
            since = page.next_batch;
            let kept = self.deliver(self.maps.now(), events).await;
            known_pages = if kept == 0 { known_pages + 1 } else { 0 };
            // A server that goes in a circle would be asked for ever.
            more &= known_pages < MAX_KNOWN_PAGES;
            if !more {
                return fetched;
            }
        }
    }

    /// Fetches and delivers the sticky events of these rooms over v3: each room by a request without a
    /// token, and a room that has more than a page from its history.
    pub(super) async fn fetch_v3(&self, mut rooms: BTreeSet<OwnedRoomId>, number: u64) -> Fetched {
        let mut fetched = Fetched::default();
        let (mut is_first, mut is_filtered) = (true, true);
        while let Some(room_id) = rooms.pop_first() {
            if !std::mem::take(&mut is_first) {
                self.timer.sleep_until(self.maps.now().deadline(ROOM_INTERVAL)).await;
            }
            let token = self.client.access_token();
            let page = match is_filtered {
                true => self.fetch_room_v3(&room_id, number).await,
                false => Ok(RoomPage { is_full: true, is_filtered: false }),
            };
            let has_all = match page {
                // A server that does not look at the room, such as Synapse. Once its page of all rooms
                // is full, each further page would be the same.
                Ok(page) => {
                    is_filtered &= page.is_filtered;
                    if page.is_full { self.search_history(&room_id).await } else { Ok(true) }
                }
                Err(error) => Err(error),
            };
            match has_all {
                Ok(true) => fetched.complete.push(room_id),
                Ok(false) => fetched.incomplete.push(room_id),
                Err(error) => {
                    rooms.insert(room_id);
                    fetched.failed = Some((rooms, self.with_token(token, error)));
                    break;
                }
            }
        }
        fetched
    }

    async fn fetch_room_v3(
        &self,
        room_id: &RoomId,
        number: u64,
    ) -> Result<RoomPage, ConnectionError> {
        let request = v3::Request::for_all(Some(room_id.to_owned()), number);
        let config = one_try(REQUEST_TIMEOUT);
        let events = self.client.send(request).with_request_config(config).await?.rooms;
        let is_full = events.len() >= MAX_PAGE_EVENTS;
        let is_filtered = !is_full || events.0.iter().all(|(of, _)| of == room_id);
        self.deliver(self.maps.now(), events).await;
        Ok(RoomPage { is_full, is_filtered })
    }

    /// Delivers what is sticky in the last hour of a room's history. Returns whether that was all.
    async fn search_history(&self, room_id: &RoomId) -> Result<bool, ConnectionError> {
        let mut from = None;
        for _ in 0..MAX_HISTORY_PAGES {
            let mut request = get_message_events::v3::Request::backward(room_id.to_owned());
            request.from = from;
            request.limit = uint!(100);
            let config = one_try(REQUEST_TIMEOUT);
            let page = match self.client.send(request).with_request_config(config).await {
                Ok(page) => page,
                // A history that we may not read is like one that is too long.
                Err(error) if is_forbidden(&error) => return Ok(false),
                Err(error) => return Err(error.into()),
            };
            let received = self.maps.now();
            let events: Vec<_> = page.chunk.into_iter().map(Raw::into_json).collect();
            // The page is in the server's order. What a single event says of its age is its sender's
            // word, and ends nothing.
            let is_over =
                !events.is_empty() && events.iter().all(|event| is_older_than_sticky(event.get()));
            let events = RoomEvents(vec![(room_id.to_owned(), events)]);
            self.deliver_by(received, ReceivedVia::Timeline, events).await;
            from = page.end;
            if is_over || from.is_none() {
                return Ok(true);
            }
        }
        Ok(false)
    }
}

/// Whether an event of a room's history is so old that no event before it is sticky any more.
fn is_older_than_sticky(text: &str) -> bool {
    #[derive(serde::Deserialize)]
    struct Aged {
        unsigned: Unsigned,
    }
    #[derive(serde::Deserialize)]
    struct Unsigned {
        age: u64,
    }
    serde_json::from_str::<Aged>(text)
        .is_ok_and(|event| Duration::from_millis(event.unsigned.age) > MAX_STICKY_DURATION)
}

fn is_forbidden(error: &HttpError) -> bool {
    let status = error.as_client_api_error().map(|error| error.status_code);
    status == Some(StatusCode::FORBIDDEN)
}
