//! The lines that scripts read.

use matrix_sdk_sticky::{
    heartbeat::HeartbeatState,
    rtc::{Candidate, Member, MembershipForm, SessionSnapshot},
};
use serde_json::{Value, json};

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
    /// The line of members and candidates, unless it is the one that was said last.
    pub(crate) fn members(&mut self, now: &SessionSnapshot) -> Option<String> {
        let members: Vec<_> = now.members().map(member).collect();
        let candidates: Vec<_> = now.candidates().map(candidate).collect();
        let line = json!({ "kind": "members", "members": members, "candidates": candidates });
        let line = line.to_string();
        (self.members.replace(line.clone()).as_ref() != Some(&line)).then_some(line)
    }

    /// The line of our own state, unless it is the one that was said last.
    pub(crate) fn own(&mut self, state: HeartbeatState) -> Option<String> {
        let name = super::plain::own_name(state)?;
        (self.own.replace(name) != Some(name))
            .then(|| json!({ "kind": "own", "state": name }).to_string())
    }
}

fn member(member: &Member) -> Value {
    let device = member.device();
    json!({
        "user_id": member.user_id(),
        "device_id": device.map(|device| &device.device_id),
        "member_id": member.member_id(),
        "form": form(member.form()),
        "proven": device.is_some_and(|device| device.is_proven()),
        "intent": member.intent(),
    })
}

fn candidate(candidate: &Candidate) -> Value {
    json!({
        "user_id": candidate.user_id,
        "device_id": candidate.device.as_ref().map(|device| &device.device_id),
        "reason": candidate.reason.to_string(),
    })
}

/// The names of `--dialect`, if a form belongs to one dialect alone.
fn form(form: MembershipForm) -> &'static str {
    match form {
        MembershipForm::Msc4143 => "msc4143",
        MembershipForm::ElementCall => "element-call",
        MembershipForm::Both => "both",
        MembershipForm::RtcTransports => "rtc-transports",
        MembershipForm::CallMember => "call-member",
        _ => "other",
    }
}
