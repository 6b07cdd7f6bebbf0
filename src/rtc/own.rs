//! Our own memberships, as they are written: right for both dialects.
//!
//! In: what a member says of itself. Out: the contents of its joins and leaves. Never: sending them.

use serde_json::{Map, Value};

use super::{leave::LeaveReason, slot::RtcApplication, transport::Transports};
use crate::wire::insert_sticky_key;

/// Who a membership of ours is of, and in which slot.
#[derive(Clone, Debug)]
pub(super) struct Own {
    pub(super) slot_id: String,
    pub(super) user_id: String,
    pub(super) device_id: String,
    pub(super) member_id: String,
}

impl Own {
    /// Writes a join that is right for both dialects.
    pub(super) fn join(
        &self,
        application: &RtcApplication,
        transports: &Transports,
    ) -> Map<String, Value> {
        let mut member = self.member("join");
        // matrix-js-sdk asks for both. The user id is the sender's in any case. The device id is what an
        // encrypted event proves, and a plaintext one claims.
        member.insert("user_id".to_owned(), self.user_id.clone().into());
        member.insert("device_id".to_owned(), self.device_id.clone().into());
        let mut content = self.content(member);
        content.insert("application".to_owned(), application.to_json());
        content.insert("transports".to_owned(), transports.to_json());
        content.insert("versions".to_owned(), Value::Array(Vec::new()));
        content
    }

    /// Writes a leave that is right for both dialects. Why without an application? With one, it is not a leave
    /// to matrix-js-sdk.
    pub(super) fn leave(&self, leave: &LeaveReason) -> Map<String, Value> {
        let mut content = self.content(self.member("leave"));
        let mut why = Map::new();
        for (name, value) in [("code", &leave.code), ("reason", &leave.reason)] {
            if let Some(value) = value {
                why.insert(name.to_owned(), value.clone().into());
            }
        }
        if !why.is_empty() {
            content.insert("leave_reason".to_owned(), why.into());
        }
        content
    }

    fn member(&self, membership: &str) -> Map<String, Value> {
        let mut member = Map::new();
        member.insert("id".to_owned(), self.member_id.clone().into());
        member.insert("membership".to_owned(), membership.into());
        member
    }

    fn content(&self, member: Map<String, Value>) -> Map<String, Value> {
        let mut content = Map::new();
        content.insert("slot_id".to_owned(), self.slot_id.clone().into());
        content.insert("member".to_owned(), member.into());
        insert_sticky_key(&mut content, &self.member_id);
        content
    }
}
