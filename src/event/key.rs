//! The key of an entry.

use ruma::OwnedUserId;

/// The key of an entry in a room's ephemeral map ([MSC4354], "Implementing an ephemeral map"). The
/// room is implied by the map.
///
/// [MSC4354]: https://github.com/matrix-org/matrix-spec-proposals/pull/4354
///
/// # Examples
///
/// ```
/// use matrix_sdk_sticky::{StickyKey, View};
/// use ruma::user_id;
///
/// fn is_there(view: &View) -> bool {
///     let alice = user_id!("@alice:example.org");
///     view.get(&StickyKey::new(alice, "com.example.presence", "laptop")).is_some()
/// }
/// ```
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct StickyKey {
    /// The sender of the event.
    pub sender: OwnedUserId,
    /// The type of the event, decrypted, e.g. `m.rtc.member`.
    pub event_type: String,
    /// The `sticky_key` of the content. `""` is a valid key.
    pub sticky_key: String,
}

impl StickyKey {
    /// Makes a key from its parts.
    pub fn new(
        sender: impl Into<OwnedUserId>,
        event_type: impl Into<String>,
        sticky_key: impl Into<String>,
    ) -> Self {
        Self { sender: sender.into(), event_type: event_type.into(), sticky_key: sticky_key.into() }
    }
}
