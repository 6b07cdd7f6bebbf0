//! The name of a delayed event.

use std::fmt;

use serde::Deserialize;
use serde_json::{Map, Value, value::RawValue};

use crate::wire::names;

/// The name of a delayed event, and the right to restart, send or cancel it ([MSC4140]).
///
/// **Whoever has it can do so**, on today's servers without any access token. So it does not appear
/// in a `Debug`, a log or an error of this crate. [`as_secret_str`](Self::as_secret_str) returns the
/// text, to keep it in a store, or to hand it to a service that sends the event when it sees that
/// the client is gone (MSC4195).
///
/// # Examples
///
/// ```
/// use matrix_sdk_sticky::DelayId;
///
/// let delay_id = DelayId::from("syd_abc".to_owned());
/// assert_eq!(format!("{delay_id:?}"), "DelayId(..)");
/// assert_eq!(delay_id.as_secret_str(), "syd_abc");
/// ```
///
/// [MSC4140]: https://github.com/matrix-org/matrix-spec-proposals/pull/4140
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct DelayId(String);

impl DelayId {
    /// Returns the text. Handle it as you would an access token.
    pub fn as_secret_str(&self) -> &str {
        &self.0
    }

    /// Returns the delay id that the sender's own copy of an event carries once the server has sent
    /// it. By it a client recognises its own delayed event.
    pub fn of_event(event: &RawValue) -> Option<Self> {
        #[derive(Deserialize)]
        struct Event {
            unsigned: Map<String, Value>,
        }
        let mut unsigned = serde_json::from_str::<Event>(event.get()).ok()?.unsigned;
        // The unstable name is the last, and counts where both are there.
        let delay_id = names::DELAY_ID.iter().rev().find_map(|name| unsigned.remove(*name))?;
        Some(Self(delay_id.as_str()?.to_owned()))
    }
}

impl From<String> for DelayId {
    fn from(text: String) -> Self {
        Self(text)
    }
}

impl fmt::Debug for DelayId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("DelayId(..)")
    }
}
