//! Sticky events (MSC4354), heartbeats and MatrixRTC sessions for Kotlin, Swift and Python, by UniFFI.
//!
//! In: calls and listeners of an application. Out: records. There is no logic here: what counts is decided
//! in `matrix-sdk-sticky`, and this says it in types that all languages have.
//!
//! - [`StickyClient`] is a client of its own, for who has none. Who builds a library of their own around a
//!   client of matrix-sdk calls [`Sticky::new`].
//! - What is awaited runs on threads of the library's own. Who gives up waiting ends it.
//! - A listener is told the state as it is first, and then what changes, in order, never by two threads at
//!   a time. It may take its time, call back into the library, and throw: that is logged, and ends nothing.
//! - Durations and times are the language's own types, contents are texts with a JSON object.
//! - Errors are enums, with a `reason` in words that says what to do.
//!
//! It uses UniFFI 0.32, as matrix-sdk 0.19.1 does, so that an application can link both.

// Whether the SDK's futures may go to another thread takes that many steps to find out.
#![recursion_limit = "256"]

uniffi::setup_scaffolding!();

mod client;
mod entries;
mod heartbeat;
mod keys;
mod listen;
mod rtc;
mod runtime;
mod sticky;

pub use self::{
    client::{ClientConfig, ClientError, RoomInfo, StickyClient},
    entries::{
        Encryption, Entry, EntryChange, EntryFilter, EntryListener, FilterError, RemovalReason,
        Verification,
    },
    heartbeat::{
        Heartbeat, HeartbeatConfig, HeartbeatError, MemberFailure, MemberState, MemberStateListener,
    },
    keys::{DevicePolicy, KeyChange, KeyConfig, KeyListener, KeysError, MediaKeys, Participant},
    listen::{ListenerError, Listening, shut_down},
    rtc::{
        Candidate, Closed, Dialect, DiscoveredFrom, DiscoveredTransports, JoinConfig, JoinError,
        Leave, Member, MemberDevice, Membership, MembershipForm, NotJoined, Rtc, RtcApplication,
        RtcChange, RtcListener, RtcSession, RtcSnapshot, RtcTransport, SessionChange,
        SessionListener, SessionSnapshot, SlotError, TransportsError,
    },
    sticky::{
        RoomError, SendError, StartError, Sticky, StickyRoom, SyncSource, SyncState,
        SyncStateListener,
    },
};
