//! What every application needs around its sticky events: a main loop that survives a restart of the
//! server, waiting until a room is there, and a session that the next start finds again.
//!
//! In: a matrix-sdk client. Out: a room, a session, or why neither can be. Never: anything
//! about one sticky event. In the crate only the front door uses this module, for
//! [`Sticky::until_live`](crate::Sticky::until_live), and an application may do all of it in its own way.
//! The module is below the front door: it takes matrix-sdk's `Client`, and none of the crate's handles.
//!
//! | an application wants | here |
//! |---|---|
//! | to receive room keys, joins and redactions for as long as it runs | [`keep_syncing`] |
//! | a room that it has joined, also just after the start | [`wait_for_room`] |
//! | the map to be complete before it shows anything | [`Sticky::until_live`](crate::Sticky::until_live) |
//! | to be the same device after a restart | [`SessionFile`] |
//!
//! # Examples
//!
//! A program that logs in once, and prints the changes of one room until its session is over:
//!
//! ```no_run
//! # #[cfg(all(feature = "e2e-encryption", feature = "sqlite"))]
//! # async fn example() -> Result<(), Box<dyn std::error::Error>> {
//! use futures_util::StreamExt as _;
//! use matrix_sdk::{Client, ruma::room_alias_id};
//! use matrix_sdk_sticky::{
//!     BaseClientBuilder, StickyRoomExt as _,
//!     app::{SessionFile, keep_syncing, wait_for_room},
//! };
//!
//! // The session and the keys of its device belong together: one folder for both.
//! let client = BaseClientBuilder::sqlite("data", Some("a passphrase"))
//!     .build_client(
//!         Client::builder()
//!             .homeserver_url("https://matrix.example.org")
//!             .handle_refresh_tokens(),
//!     )
//!     .await?;
//! let session = SessionFile::new("data/session.json");
//! if session.restore(&client).await?.is_none() {
//!     let auth = client.matrix_auth();
//!     auth.login_username("alice", "a password").request_refresh_token().send().await?;
//!     session.save(&client)?;
//! }
//!
//! let show = async {
//!     let room = wait_for_room(&client, room_alias_id!("#stand-up:example.org")).await?.sticky();
//!     let mut changes = room.events().subscribe().changes;
//!     while let Some(change) = changes.next().await {
//!         println!("{change:#?}");
//!     }
//!     Ok(())
//! };
//! tokio::select! {
//!     why = keep_syncing(&client) => Err(why.into()),
//!     end = show => end,
//! }
//! # }
//! ```

mod live;
mod main_loop;
mod rooms;
mod session_file;

pub(crate) use self::live::until_live;
pub use self::{
    live::NotLiveError,
    main_loop::{KeepSyncing, MainLoopError, keep_syncing},
    rooms::{WaitForRoomError, wait_for_room},
    session_file::{SessionFile, SessionFileError},
};
