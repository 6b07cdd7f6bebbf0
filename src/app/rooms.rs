//! Waiting until a room is there.
//!
//! In: a room's id or alias. Out: the room, joined; or why it cannot be there. Never: a join.

use std::{pin::pin, time::Duration};

use matrix_sdk::{Client, HttpError, Room, RoomState};
use ruma::{
    OwnedRoomAliasId, OwnedRoomId, RoomAliasId, RoomId, RoomOrAliasId,
    api::{client::membership::joined_rooms, error::ErrorKind},
};
use tokio::sync::broadcast::error::RecvError;

use super::main_loop::{MAX_RETRY_AFTER, is_token_refused};
use crate::{
    driver::{SystemClock, Timer as _, jittered},
    request::Verdict,
    time::Clock as _,
};

/// The middle of the wait after a request that has failed.
const RETRY_INTERVAL: Duration = Duration::from_secs(2);

/// How often the server is asked again whether the user is in the room, while the main loop does not
/// bring it: somebody may have kicked the user meanwhile.
const RECHECK_INTERVAL: Duration = Duration::from_secs(30);

/// Waits until the client has a room, by its id or alias, and has joined it.
///
/// A client that has just logged in knows no room: the rooms come with the main loop's first
/// response. So [`Client::get_room`] finds nothing right after the start, though the user is in the
/// room. This function asks the server whether the user is, and then waits for the main loop,
/// whichever it is. It survives a server that is away. Bound it by `tokio::time::timeout` if nobody
/// may wait that long.
///
/// # Examples
///
/// ```no_run
/// # async fn example(client: matrix_sdk::Client) -> Result<(), Box<dyn std::error::Error>> {
/// use matrix_sdk::ruma::{RoomOrAliasId, room_id};
/// use matrix_sdk_sticky::{StickyRoomExt as _, app::wait_for_room};
///
/// let room = wait_for_room(&client, room_id!("!id:example.org")).await?;
/// println!("{} entries", room.sticky().events().snapshot().len());
///
/// // What a user types may be either.
/// let typed = <&RoomOrAliasId>::try_from("#stand-up:example.org")?;
/// let room = wait_for_room(&client, typed).await?;
/// # Ok(()) }
/// ```
///
/// # Errors
///
/// [`WaitForRoomError`], when waiting makes no sense: the user is not in the room, no room has the
/// alias, or there is no session.
///
/// # Cancel safety
///
/// Dropping the future changes nothing.
pub async fn wait_for_room<'a>(
    client: &Client,
    room: impl Into<&'a RoomOrAliasId>,
) -> Result<Room, WaitForRoomError> {
    if client.session_meta().is_none() {
        return Err(WaitForRoomError::NotLoggedIn);
    }
    // Before the first look, so that no update falls between the two.
    let mut updates = client.subscribe_to_all_room_updates();
    let room_id = match <&RoomId>::try_from(room.into()) {
        Ok(room_id) => room_id.to_owned(),
        Err(alias) => resolve(client, alias).await?,
    };
    loop {
        let found = client.get_room(&room_id);
        let state = found.as_ref().map(|room| room.state());
        if let Some(room) = found.filter(|_| state == Some(RoomState::Joined)) {
            return Ok(room);
        }
        if !is_joined(client, &room_id).await? {
            return Err(WaitForRoomError::NotJoined { room_id, state });
        }
        let mut recheck =
            pin!(SystemClock.sleep_until(SystemClock.now().deadline(RECHECK_INTERVAL)));
        while !is_there(client, &room_id) {
            tokio::select! {
                update = updates.recv() => if let Err(RecvError::Closed) = update {
                    // The client that sends them is ours, so this cannot be.
                    recheck.as_mut().await;
                    break;
                },
                () = &mut recheck => break,
            }
        }
    }
}

/// Why [`wait_for_room`] gives up.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum WaitForRoomError {
    /// The server says that the user is not in the room. Join it first, or accept the invite.
    #[error("the room {room_id} is not joined: join it first")]
    NotJoined {
        /// The room.
        room_id: OwnedRoomId,
        /// What the client knows of it: invited, left, or nothing at all.
        state: Option<RoomState>,
    },
    /// No room has this alias. Use the room's id, or another alias.
    #[error("no room has the alias {alias}: use the room's id, or another alias")]
    UnknownAlias {
        /// The alias.
        alias: OwnedRoomAliasId,
    },
    /// The client has no session. Log in, or restore one.
    #[error("the client is not logged in: log in, or restore a session")]
    NotLoggedIn,
    /// The server does not accept the access token any more. Log in again.
    #[error("the server does not accept our access token any more: log in again")]
    LoggedOut {
        /// The server's refusal.
        source: Box<HttpError>,
    },
    /// The server refuses to say where the room is. Its text says why.
    #[error("the server does not say where the room is: {source}")]
    Refused {
        /// The server's refusal.
        source: Box<HttpError>,
    },
}

fn is_there(client: &Client, room_id: &RoomId) -> bool {
    client.get_room(room_id).is_some_and(|room| room.state() == RoomState::Joined)
}

/// Whether the server says that the user is in the room.
async fn is_joined(client: &Client, room_id: &RoomId) -> Result<bool, WaitForRoomError> {
    loop {
        match client.send(joined_rooms::v3::Request::new()).await {
            Ok(response) => return Ok(response.joined_rooms.iter().any(|id| id == room_id)),
            Err(error) => pause_after(error).await?,
        }
    }
}

async fn resolve(client: &Client, alias: &RoomAliasId) -> Result<OwnedRoomId, WaitForRoomError> {
    loop {
        match Box::pin(client.resolve_room_alias(alias)).await {
            Ok(response) => return Ok(response.room_id),
            Err(error) if matches!(error.client_api_error_kind(), Some(ErrorKind::NotFound)) => {
                return Err(WaitForRoomError::UnknownAlias { alias: alias.to_owned() });
            }
            Err(error) => pause_after(error).await?,
        }
    }
}

/// Waits before the request is tried again, if that may go better.
async fn pause_after(error: HttpError) -> Result<(), WaitForRoomError> {
    if is_token_refused(&error) {
        return Err(WaitForRoomError::LoggedOut { source: Box::new(error) });
    }
    let wait = match Verdict::of(&error) {
        Verdict::Hopeless => return Err(WaitForRoomError::Refused { source: Box::new(error) }),
        Verdict::RateLimited(wait) => wait.unwrap_or_default().min(MAX_RETRY_AFTER),
        Verdict::Again => Duration::ZERO,
    };
    let wait = wait.max(jittered(RETRY_INTERVAL));
    SystemClock.sleep_until(SystemClock.now().deadline(wait)).await;
    Ok(())
}
