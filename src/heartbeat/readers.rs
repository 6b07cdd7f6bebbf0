//! News of who can read a room.
//!
//! In: the main loop's room updates, and the crypto machine's streams. Out: [`News`] of readers.
//! Never: who they are, which the encryptor tells.

use std::future::pending;

use futures_core::Stream;
#[cfg(feature = "e2e-encryption")]
use futures_util::StreamExt as _;
use matrix_sdk::{
    Room,
    sync::{RoomUpdate, State as RoomState},
};
use tokio::sync::broadcast::error::RecvError;
#[cfg(feature = "e2e-encryption")]
use tracing::debug;

#[cfg(feature = "e2e-encryption")]
use crate::encrypt::{Told, listening};
use crate::{cleartext::Cleartext, readers::News, wire::names};

/// News of somebody's devices, of who is in the room, or of its encryption.
pub(super) async fn readers_change(room: &Room) -> impl Stream<Item = News> + Unpin + use<> {
    let updates = room.subscribe_to_updates();
    let updates = futures_util::stream::unfold(updates, async |mut updates| {
        loop {
            match updates.recv().await {
                Err(RecvError::Closed) => return pending().await,
                Ok(update) if !concerns_readers(&update) => {}
                _ => return Some((News { members: true, ..News::default() }, updates)),
            }
        }
    });
    Box::pin(futures_util::stream::select(updates, devices_change(room)))
}

/// News of somebody's devices.
#[cfg(feature = "e2e-encryption")]
fn devices_change(room: &Room) -> impl Stream<Item = News> + Unpin + use<> {
    let client = room.client();
    let encryption = client.encryption();
    let told = listening(&client, move || {
        let encryption = encryption.clone();
        async move {
            let devices = encryption.devices_stream().await;
            let devices = devices.inspect_err(|error| debug!(%error, "devices are not watched"));
            Some(devices.ok()?.boxed())
        }
    });
    told.map(|told| match told {
        Told::News(devices) => {
            let users = devices.new.into_keys().chain(devices.changed.into_keys()).collect();
            News { users, ..News::default() }
        }
        Told::Missed => News { members: true, missed: true, ..News::default() },
    })
}

#[cfg(not(feature = "e2e-encryption"))]
fn devices_change(_: &Room) -> impl Stream<Item = News> + Unpin + use<> {
    futures_util::stream::pending()
}

/// Adds to what is not looked at yet.
pub(super) fn add(news: &mut Option<News>, more: News) {
    let news = news.get_or_insert_default();
    news.members |= more.members;
    news.missed |= more.missed;
    news.users.extend(more.users);
}

/// The state that decides who gets a room key.
const OF_READERS: [&str; 3] =
    [names::ROOM_MEMBER, names::ROOM_ENCRYPTION, names::HISTORY_VISIBILITY];

/// Whether somebody came or left, encryption was switched on, or invited users became readers.
/// Messages come by here by the hundreds, so nothing is parsed.
fn concerns_readers(update: &RoomUpdate) -> bool {
    let RoomUpdate::Joined { updates, .. } = update else { return false };
    let (RoomState::Before(state) | RoomState::After(state)) = &updates.state;
    let state = state.iter().map(Cleartext::of_state);
    let timeline = updates.timeline.events.iter().filter_map(Cleartext::of_timeline);
    let mut texts = state.chain(timeline).map(Cleartext::text);
    updates.timeline.limited || texts.any(|text| OF_READERS.iter().any(|name| text.contains(name)))
}
