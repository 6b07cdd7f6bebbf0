//! Sticky events ([MSC4354]) for Rust Matrix clients, on the published matrix-sdk: state that is
//! shared in a room and does not outlive its owner. Who is in a call, who looks at a document,
//! where somebody is right now.
//!
//! A sticky event is a message event that the server keeps delivering for up to an hour, whatever
//! the timeline limit. Clients fold the sticky events of a room into an *ephemeral map*, keyed by
//! sender, type and sticky key, whose entries vanish when their time is over. This crate receives
//! them, keeps that map, and tells what changes.
//!
//! # A walk through
//!
//! The application logs in and runs its own sync loop, whichever it is: `Client::sync`, its own
//! `sync_once`, or matrix-sdk-ui's `SyncService`. Sticky events come over a connection of their
//! own; from the main loop this crate takes room keys, redactions, joins and leaves.
//!
//! ```no_run
//! # #[cfg(feature = "client")]
//! # async fn example(client: matrix_sdk::Client) {
//! use futures_util::StreamExt as _;
//! use matrix_sdk_sticky::{StickyClientExt as _, EntryChange, Subscription};
//!
//! let Subscription { snapshot, mut changes, .. } =
//!     client.sticky().events().of_type("com.example.presence").subscribe();
//!
//! for entry in snapshot.iter() {
//!     println!("{} has {:?}", entry.sender(), entry.sticky_key());
//! }
//! while let Some(change) = changes.next().await {
//!     for entry in change.entries {
//!         match entry {
//!             EntryChange::Added(entry) => println!("{} came", entry.sender()),
//!             EntryChange::Updated { entry, .. } => println!("{} changed", entry.sender()),
//!             EntryChange::Removed { entry, reason } => {
//!                 println!("{} left: {}", entry.sender(), reason.as_str());
//!             }
//!             _ => {}
//!         }
//!     }
//! }
//! # }
//! ```
//!
//! - **Views** ([`View`]) filter by room, type and sender, and cost nothing until they are asked:
//!   `client.sticky().events()` for all rooms, `room.sticky().events()` for one.
//! - **[`View::subscribe`]** gives a [`Snapshot`] and the stream of [`Change`]s that follows it, as
//!   one value: nothing is lost or told twice between them. The stream never lags and never fails;
//!   who is slow gets one merged change. An entry that left says why: [`RemovalReason`].
//! - **[`View::subscribe_list`]** gives an ordered list and `VectorDiff`s, for user interfaces.
//! - **`room.sticky().view::<MyContent>()`** reads contents typed: [`StickyContent`].
//! - **[`View::get`]** tells what is there for a key now.
//! - **`room.sticky().send(..)`**, `remove` and `redact` send, as sentences.
//! - **`room.sticky().schedule(..)`** has the server send an event later by itself ([MSC4140]), unless
//!   it is restarted, sent or cancelled by its [`DelayId`]: [`delayed`].
//! - **`room.sticky().heartbeat(..)`** keeps a member there for as long as its owner calls, and has
//!   the server say that it left soon after: [`heartbeat`] tells what is promised.
//! - **`room.sticky().rtc()`** tells who is in which call (MatrixRTC, [MSC4143]), and joins it: [`rtc`].
//! - **`client.sticky().state()`** tells how current all that is: connecting, catching up, live,
//!   offline and since when, unsupported and why.
//!
//! # Sending
//!
//! `room.sticky()` sends events, removes keys and redacts:
//!
//! ```no_run
//! # #[cfg(all(feature = "e2e-encryption", feature = "sqlite"))]
//! # async fn example() -> Result<(), Box<dyn std::error::Error>> {
//! # use std::time::Duration;
//! use matrix_sdk::{Client, ruma::room_id};
//! use matrix_sdk_sticky::{BaseClientBuilder, StickyRoomExt as _, StickyContent};
//!
//! #[derive(serde::Serialize, serde::Deserialize)]
//! struct Presence {
//!     status: String,
//! }
//! impl StickyContent for Presence {
//!     const TYPE: &str = "com.example.presence";
//! }
//!
//! let client = BaseClientBuilder::sqlite("data", Some("a passphrase"))
//!     .build_client(Client::builder().homeserver_url("https://matrix.example.org"))
//!     .await?;
//! // Log in, and run the sync loop.
//! # let room_id = room_id!("!room:example.org");
//! let room = client.get_room(room_id).ok_or("not in the room")?;
//! room.sticky()
//!     .send(&Presence { status: "busy".to_owned() })
//!     .with_sticky_key("laptop")
//!     .with_sticky_duration(Duration::from_secs(600))
//!     .await?;
//! # Ok(()) }
//! ```
//!
//! Into an encrypted room it goes encrypted, with the room key of the client's other sends. That
//! takes the *base client* that the client is built on, which matrix-sdk does not give away: so the
//! client is built with [`BaseClientBuilder`], or the application gives the base client that it made
//! itself, with [`StickyBuilder::with_base_client`]. A client built otherwise sends in plaintext
//! rooms only; in an encrypted one, and where nobody knows, the send fails and says why. Never
//! plaintext by accident.
//!
//! # What counts
//!
//! The map of a room is a pure function of the events that are known and sticky at a moment; in
//! which order they came makes no difference. Of the events of a key the one that its sender wanted
//! to last longest is the value (`origin_server_ts + duration_ms`, then the event id). It ends when
//! the server's remaining time is over, counted on a clock that goes on while the machine sleeps:
//! an expired entry is never visible, not even before a timer has run. [`map`] has the details, and
//! [`map::Limits`] what bounds the memory.
//!
//! **What to trust.** An entry says how it was protected ([`Encryption`]). Encryption covers the
//! type and the content, with the sticky key in it. The sticky object and the timestamps are outside
//! of it: a server can lie about both, and so make an entry end sooner or later than its sender
//! wanted ([MSC4354], "Security Considerations").
//!
//! # Logs
//!
//! The crate logs with `tracing`, under the target `matrix_sdk_sticky`: the first malformed event
//! of a sender in a room is a warning with its event id, and the others are said at debug level. The text of events, access tokens and delay ids are never logged.
//!
//! A [`DelayId`] is a capability, and stands in the path of requests. This crate makes them without
//! matrix-sdk's HTTP client, which shows paths in its span `send` (level INFO) and the URL of a
//! request that failed (level ERROR), both under the target `matrix_sdk::http_client`. An application
//! that makes such requests by matrix-sdk itself can turn that off: `matrix_sdk::http_client=off`
//! in an `EnvFilter`. The access log of a proxy before the homeserver has the path all the same.
//!
//! # Features
//!
//! | feature | default | what it brings |
//! |---|---|---|
//! | `client` | yes | the front door on matrix-sdk: [`StickyClientExt`], [`StickyRoomExt`], the sync |
//! | `e2e-encryption` | yes | encrypted sticky events are decrypted, and sent |
//! | `sqlite` | yes | matrix-sdk's SQLite stores |
//! | `media-keys` | no | media keys of MatrixRTC sessions, on an experimental part of matrix-sdk: `rtc::keys` |
//!
//! Without `client` the crate has no matrix-sdk in it: [`wire`], [`event`], [`map`], [`view`] and [`rtc`]
//! are for whoever drives their own sync, with [`EphemeralMaps`] as the door.
//!
//! [MSC4140]: https://github.com/matrix-org/matrix-spec-proposals/pull/4140
//! [MSC4143]: https://github.com/matrix-org/matrix-spec-proposals/pull/4143
//! [MSC4354]: https://github.com/matrix-org/matrix-spec-proposals/pull/4354

// matrix-sdk's futures are deep: to know that a task may run `Client::sync`, the compiler has to look
// further than it does by default. `app::keep_syncing` is in a box, so its callers need no such line.
#![recursion_limit = "256"]

pub mod event;
#[cfg(all(any(doc, doctest), feature = "e2e-encryption", feature = "sqlite"))]
pub mod guide;
pub mod heartbeat;
pub mod map;
pub mod rtc;
pub mod time;
pub mod view;
pub mod wire;

#[cfg(feature = "client")]
pub mod app;
#[cfg(feature = "client")]
mod cleartext;
#[cfg(feature = "client")]
mod client_table;
#[cfg(feature = "client")]
mod context;
#[cfg(feature = "client")]
pub mod delayed;
#[cfg(feature = "client")]
mod driver;
#[cfg(feature = "e2e-encryption")]
mod encrypt;
#[cfg(feature = "client")]
mod outbox;
#[cfg(feature = "client")]
mod readers;
#[cfg(feature = "client")]
mod request;
#[cfg(feature = "client")]
mod responses;
#[cfg(feature = "client")]
mod send;
#[cfg(feature = "client")]
mod sticky;
#[cfg(feature = "client")]
mod sync;

#[cfg(test)]
mod testing;

#[cfg(feature = "e2e-encryption")]
pub use self::encrypt::{BaseClientBuilder, EncryptError};
#[cfg(feature = "client")]
pub use self::{
    delayed::{DelayId, DelayedError, DelayedEvents},
    driver::{SystemClock, Timer},
    outbox::PrepareError,
    send::{RedactSticky, SendError, SendSticky, Sent},
    sticky::{RoomSticky, StartError, Sticky, StickyBuilder, StickyClientExt, StickyRoomExt},
    sync::state::{SyncSource, SyncState, Unsupported},
};
pub use self::{
    event::{Encryption, RemovalReason, StickyEvent, StickyKey},
    view::{
        Change, Changes, DiffStream, Entry, EntryChange, EphemeralMaps, Snapshot, StickyContent,
        Subscription, View,
    },
};
/// What [`BaseClientBuilder`] takes and matrix-sdk does not export: `CollectStrategy`,
/// `DecryptionSettings`, `DmRoomDefinition`, and `BaseClient` itself.
#[cfg(feature = "e2e-encryption")]
pub use matrix_sdk_base;

/// The README's programs compile. Those of `docs/` are the guide's.
#[cfg(all(doctest, feature = "e2e-encryption", feature = "sqlite"))]
#[doc = include_str!("../README.md")]
mod readme {}
