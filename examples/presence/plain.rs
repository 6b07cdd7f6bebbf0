//! Texts for people: members, users that left, and why, in few words and harmless to a terminal.

use matrix_sdk_sticky::{
    heartbeat::{HeartbeatFailure, HeartbeatState},
    rtc::{Candidate, LeaveReason, Member, NotJoined, SessionChange, SessionSnapshot},
};

use crate::{names::Names, terminal::harmless};

/// How we stand in one word; `None` for what passes in no time.
pub(crate) fn own_name(state: HeartbeatState) -> Option<&'static str> {
    match state {
        HeartbeatState::Leaving | HeartbeatState::Suspended { .. } => None,
        // Nobody has seen us leave, or come.
        HeartbeatState::Failed(
            HeartbeatFailure::JoinRefused
            | HeartbeatFailure::LeaveRefused
            | HeartbeatFailure::LeaveUnanswered,
        ) => Some(state.as_str()),
        HeartbeatState::Failed(_) => Some(HeartbeatState::Left.as_str()),
        state => Some(state.as_str()),
    }
}

/// Why we are out though we did not want to.
pub(crate) fn failed(failure: HeartbeatFailure, last_error: Option<String>) -> String {
    let why = match failure {
        HeartbeatFailure::NotInRoom => "we are not in the room any more",
        HeartbeatFailure::Redacted => "our membership was redacted",
        HeartbeatFailure::LeaveUnanswered => "the server did not answer when we left",
        HeartbeatFailure::JoinRefused | HeartbeatFailure::LeaveRefused => {
            let why = last_error.unwrap_or_else(|| "we have no right to be there".to_owned());
            return harmless(&format!("the server refuses us: {why}"));
        }
        _ => "the server has said that we left",
    };
    why.to_owned()
}

/// What was said last of ourselves.
#[derive(Default)]
pub(crate) struct Plain {
    own: Option<&'static str>,
}

impl Plain {
    pub(crate) fn own(&mut self, state: HeartbeatState) -> Option<String> {
        let name = own_name(state)?;
        (self.own.replace(name) != Some(name)).then(|| format!("we: {}", name.replace('_', " ")))
    }
}

/// The members to begin with, and the users that are refused.
pub(crate) fn at_first(snapshot: &SessionSnapshot) -> Vec<String> {
    let names = Names::default();
    let members = snapshot.members().map(|member| format!("{} is there", who(member, &names)));
    members.chain(snapshot.candidates().map(|it| refused(it, &names))).collect()
}

/// The line of a change; `None` if nobody need know.
pub(crate) fn line(change: &SessionChange, names: &Names) -> Option<String> {
    Some(match change {
        SessionChange::Joined(member) => format!("{} joined", who(member, names)),
        SessionChange::Left { member, reason } => match goodbye(reason) {
            Some(words) => format!("{} left{words}", who(member, names)),
            None => format!("{} is gone: {}", who(member, names), why(reason)),
        },
        SessionChange::Updated { member, previous } if member.intent() != previous.intent() => {
            format!("{} changed", who(member, names))
        }
        SessionChange::Refused(candidate) => refused(candidate, names),
        SessionChange::Slot(Some(slot)) => {
            let application = slot.application.as_ref();
            let application = application.map_or("", |it| &it.application_type);
            format!("the slot has changed ({})", harmless(application))
        }
        SessionChange::Slot(None) => "the slot is gone".to_owned(),
        _ => return None,
    })
}

/// A user, and by which device.
pub(crate) fn who(member: &Member, names: &Names) -> String {
    let device = member.device().map(|device| {
        let proof = if device.is_proven() { "" } else { "?" };
        format!(" by {}{proof}", harmless(device.device_id.as_str()))
    });
    format!("{}{}", names.of(member.user_id()), device.unwrap_or_default())
}

pub(crate) fn refused(candidate: &Candidate, names: &Names) -> String {
    format!("{} is not there: {}", names.of(&candidate.user_id), why(&candidate.reason))
}

/// Why somebody is not there.
pub(crate) fn why(reason: &NotJoined) -> String {
    match (goodbye(reason), reason) {
        (Some(words), _) => format!("left{words}"),
        (None, NotJoined::Left(_)) => "crashed or cut off: its server said so".to_owned(),
        (None, reason) => harmless(&reason.to_string()),
    }
}

/// What a user said on leaving; `None` if the user said nothing.
fn goodbye(reason: &NotJoined) -> Option<String> {
    let NotJoined::Left(LeaveReason { code, reason, .. }) = reason else { return None };
    let code = code.as_deref();
    if code == Some(LeaveReason::DELAYED) {
        return None;
    }
    let code = code.filter(|code| *code != LeaveReason::ON_PURPOSE);
    Some(
        code.into_iter().chain(reason.as_deref()).map(|it| format!(", {}", harmless(it))).collect(),
    )
}
