//! Sticky events.

pub mod event;
pub mod map;
pub mod time;
pub mod view;
pub mod wire;

#[cfg(feature = "client")]
mod driver;
#[cfg(feature = "client")]
mod ext;
#[cfg(feature = "client")]
mod sync;

#[cfg(feature = "client")]
pub use self::{
    driver::{SystemClock, Timer},
    ext::{AlreadyRunning, ClientExt, RoomExt, RoomSticky, Sticky, StickyBuilder},
    sync::{SyncState, Unsupported},
};
pub use self::{
    event::{Encryption, RemovalReason, StickyEvent, StickyKey},
    view::{
        Change, Changes, DiffStream, Entry, EntryChange, EphemeralMaps, Snapshot, StickyContent,
        Subscription, View,
    },
};

#[cfg(test)]
mod testing;
