//! The names that servers and clients speak: those of the proposals, and of the specification's
//! events that this crate reads.
//!
//! In: nothing. Out: constants. No other module spells one of these names.
//!
//! Where a proposal has a stable and an unstable name, the pair holds the stable one first. If an
//! event has both and they differ, the unstable one counts.
//!
//! You need these names if you send requests or cut up responses by yourself.

// Sticky events, MSC4354.

/// The top-level object that makes an event sticky.
pub const STICKY: [&str; 2] = ["sticky", "msc4354_sticky"];

/// The remaining time in `unsigned`, in milliseconds.
pub const REMAINING: [&str; 2] = ["sticky_duration_remaining_ms", "msc4354_sticky_duration_ttl_ms"];

/// The key of the ephemeral map, in `content`.
pub const STICKY_KEY: [&str; 2] = ["sticky_key", "msc4354_sticky_key"];

/// The sticky section of a joined room in a response of v3 `/sync`.
pub const SECTION: [&str; 2] = ["sticky", "msc4354_sticky"];

/// The extension of sliding sync that brings sticky events (MSC4480).
pub const EXTENSION: [&str; 2] = ["sticky_events", "org.matrix.msc4354.sticky_events"];

/// The flag of sticky events in the `unstable_features` of `/versions`.
pub const FEATURE: &str = "org.matrix.msc4354";

/// The parameter of a send request that makes the event sticky, in milliseconds. No server takes a
/// stable name yet.
pub const STICKY_DURATION: &str = "org.matrix.msc4354.sticky_duration_ms";

// Sliding sync, MSC4186.

/// The flag of simplified sliding sync in the `unstable_features` of `/versions`.
pub const SLIDING_SYNC: &str = "org.matrix.simplified_msc3575";

// Delayed events, MSC4140.

/// The flag of delayed events in the `unstable_features` of `/versions`, and a part of the paths of
/// their endpoints.
pub const DELAYED: &str = "org.matrix.msc4140";

/// The parameter of a send request that makes the event a delayed one, in the older form.
pub const DELAY: &str = "org.matrix.msc4140.delay";

/// The delay id, in the `unsigned` of the sender's own copy of a fired delayed event.
pub const DELAY_ID: [&str; 2] = ["delay_id", "org.matrix.msc4140.delay_id"];

/// The capability that names a server's limits of delayed events.
pub const DELAYED_CAPABILITY: [&str; 2] = ["m.delayed_events", "org.matrix.msc4140.delayed_events"];

/// The proposal's own error code, beside the `errcode` of an error.
pub const DELAYED_ERRCODE: &str = "org.matrix.msc4140.errcode";

// MatrixRTC, MSC4143.

/// A membership of a session.
pub const RTC_MEMBER: [&str; 2] = ["m.rtc.member", "org.matrix.msc4143.rtc.member"];

/// The state event of a slot.
pub const RTC_SLOT: [&str; 2] = ["m.rtc.slot", "org.matrix.msc4143.rtc.slot"];

/// The encryption in which each member has a media key of its own.
pub const PER_MEMBER: [&str; 2] = ["m.per_member", "org.matrix.msc4143.per_member"];

/// The to-device message with a media key.
pub const RTC_KEY: [&str; 2] = ["m.rtc.encryption_key", "org.matrix.msc4143.rtc.encryption_key"];

/// The to-device message with Element Call's media keys.
pub const ELEMENT_CALL_KEYS: &str = "io.element.call.encryption_keys";

/// The endpoint that names a homeserver's transports.
pub const RTC_TRANSPORTS: [&str; 2] = [
    "/_matrix/client/v1/rtc/transports",
    "/_matrix/client/unstable/org.matrix.msc4143/rtc/transports",
];

/// The transports in `.well-known/matrix/client`, where servers named them before the endpoint
/// existed.
pub const RTC_FOCI: [&str; 2] = ["m.rtc_foci", "org.matrix.msc4143.rtc_foci"];

/// The type of the transport over a LiveKit SFU (MSC4195), and that of an earlier version. Neither
/// has an unstable name.
pub const LIVEKIT: [&str; 2] = ["livekit", "m.livekit"];

/// The application of calls (MSC4196).
pub const CALL: &str = "m.call";

/// The intent of a call, in the application of a membership (MSC4196).
pub const CALL_INTENT: &str = "m.call.intent";

/// A membership in the room's state, from before sticky events (MSC3401). It never became stable.
pub const CALL_MEMBER: &str = "org.matrix.msc3401.call.member";

// Events of the specification.

/// An encrypted event.
pub const ENCRYPTED: &str = "m.room.encrypted";

/// A redaction.
pub const REDACTION: &str = "m.room.redaction";

/// A user's membership of a room.
pub const ROOM_MEMBER: &str = "m.room.member";

/// The state event that switches encryption on.
pub const ROOM_ENCRYPTION: &str = "m.room.encryption";

/// The state event that says who may read a room's history.
pub const HISTORY_VISIBILITY: &str = "m.room.history_visibility";

/// The relation of an event to another.
pub const RELATES_TO: &str = "m.relates_to";

/// The relation that refers to another event, and nothing else.
pub const REFERENCE: &str = "m.reference";
