//! What the owner of a heartbeat asks of it.

use serde_json::{Map, Value};

use super::{InBackground, LeaseId};

/// What the owner wants.
pub(crate) enum Wish {
    Update(Map<String, Value>),
    Leave,
    LeaveWith(Map<String, Value>),
    Suspend(InBackground),
    Resume,
    Delegate(LeaseId),
    TakeBack,
}
