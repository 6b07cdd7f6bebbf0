//! The lines that scripts read.

use matrix_sdk_sticky::{heartbeat::State, rtc::SessionSnapshot};
use serde_json::json;

/// The first line.
pub(crate) fn ready(sync: &str) -> String {
    json!({ "kind": "ready", "sync": sync }).to_string()
}

/// What was said last, so that nothing is said twice.
#[derive(Default)]
pub(crate) struct Json {
    members: Option<String>,
    own: Option<&'static str>,
}

impl Json {
    /// Who is there, if that is not what was said last.
    pub(crate) fn members(&mut self, now: &SessionSnapshot) -> Option<String> {
        let members: Vec<_> = now
            .members()
            .map(|member| {
                json!({
                    "user_id": member.user_id(),
                    "device_id": member.device().map(|device| &device.device_id),
                    "member_id": member.member_id(),
                })
            })
            .collect();
        let line = json!({ "kind": "members", "members": members }).to_string();
        (self.members.replace(line.clone()).as_ref() != Some(&line)).then_some(line)
    }

    /// How we stand, if that is not what was said last.
    pub(crate) fn own(&mut self, state: State) -> Option<String> {
        let name = super::plain::own_name(state)?;
        (self.own.replace(name) != Some(name))
            .then(|| json!({ "kind": "own", "state": name }).to_string())
    }
}
