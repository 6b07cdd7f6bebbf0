//! Contents: what a membership says, in each form that clients write. `own.rs` writes ours.
//!
//! In: the content of one event, its sender and its key. Out: a join, a leave, or the field that is missing or
//! malformed. Never: a room, or another event.

use std::{fmt, sync::Arc};

use serde::{
    Deserialize, Deserializer,
    de::{IgnoredAny, MapAccess, Visitor},
};
use serde_json::{Map, Value, value::RawValue};

use super::{
    dialect::MembershipForm,
    leave::LeaveReason,
    slot::RtcApplication,
    transport::{RtcTransport, Transports},
};
use crate::wire::names;

/// For how long a membership in the state counts if it does not say: 4 hours, as with matrix-js-sdk.
const CALL_MEMBER_EXPIRES_MS: u64 = 4 * 3_600_000;

/// The fields of a membership in the state. All others are the application's, which has no object there.
const CALL_MEMBER_FIELDS: [&str; 8] = [
    "application",
    "call_id",
    "created_ts",
    "device_id",
    "expires",
    "focus_active",
    "foci_preferred",
    "membershipID",
];

/// What one event says.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Reading {
    /// The slot, if the event names one.
    pub(super) slot_id: Option<String>,
    /// The member, if the event names one.
    pub(super) member_id: Option<String>,
    /// The device, if the event names one.
    pub(super) claimed_device: Option<String>,
    pub(super) says: Says,
}

#[derive(Clone, Debug, PartialEq)]
pub(super) enum Says {
    /// Shared with the member that is shown.
    Join(Arc<Join>),
    Leave(LeaveReason),
    /// The application is not the slot's.
    OtherApplication,
    /// This field is missing or malformed.
    Malformed(&'static str),
}

/// A join. The parts that may be long are kept as text. Parsed, they take up to a hundred times as much, and
/// every stream of a session keeps its own.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Join {
    pub(super) form: MembershipForm,
    pub(super) application_type: String,
    pub(super) intent: Option<String>,
    application: Box<str>,
    transports: Box<str>,
    /// Since when and until when, on the wall clock, if a state event says so.
    pub(super) created_ms: Option<u64>,
    pub(super) expires_ms: Option<u64>,
}

impl Join {
    fn new(form: MembershipForm, application: &RtcApplication, transports: &Transports) -> Self {
        Self {
            form,
            application_type: application.application_type.clone(),
            intent: application.intent().map(str::to_owned),
            application: application.to_json().to_string().into(),
            transports: transports.to_json().to_string().into(),
            created_ms: None,
            expires_ms: None,
        }
    }

    pub(super) fn application(&self) -> RtcApplication {
        let read = serde_json::from_str(&self.application).ok();
        let read = read.as_ref().and_then(RtcApplication::from_json);
        read.unwrap_or_else(|| RtcApplication::new(&*self.application_type))
    }

    pub(super) fn transports(&self) -> Transports {
        let read = serde_json::from_str(&self.transports).ok();
        read.and_then(|read| read_transports(Some(&read)).ok()).unwrap_or_default()
    }
}

/// The longest field of a membership that is read, in bytes of its text: several times what any client writes. A
/// longer field counts as malformed.
const MAX_FIELD_BYTES: usize = 4_096;

/// The longest id of a slot, a member, a device or an application, in bytes. The id of a slot is a state key,
/// and so no longer than this.
const MAX_ID_BYTES: usize = 255;

/// The fields that a membership may have.
const FIELDS: [&str; 11] = [
    "application",
    "disconnect_reason",
    "leave_reason",
    names::RELATES_TO,
    "member",
    "rtc_transports",
    "slot_id",
    "transports",
    "versions",
    names::STICKY_KEY[0],
    names::STICKY_KEY[1],
];

/// The content of a sticky membership, as far as it is read. A field that is too long is `null`. One field stands
/// for all unknown ones: a content with unknown fields is not a leave.
#[derive(Default)]
pub(super) struct Content(Map<String, Value>);

impl<'de> Deserialize<'de> for Content {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Fields;

        impl<'de> Visitor<'de> for Fields {
            type Value = Content;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Content, A::Error> {
                let mut fields = Map::new();
                while let Some(name) = map.next_key::<String>()? {
                    if FIELDS.contains(&&*name) {
                        let text: Box<RawValue> = map.next_value()?;
                        let text = Some(text.get()).filter(|text| text.len() <= MAX_FIELD_BYTES);
                        let value = text.and_then(|text| serde_json::from_str(text).ok());
                        fields.insert(name, value.unwrap_or_default());
                    } else {
                        map.next_value::<IgnoredAny>()?;
                        fields.insert("other".to_owned(), Value::Null);
                    }
                }
                Ok(Content(fields))
            }
        }

        deserializer.deserialize_map(Fields)
    }
}

/// Reads the content of a sticky membership.
pub(super) fn read(Content(content): &Content, sender: &str, sticky_key: Option<&str>) -> Reading {
    let text =
        |value: Option<&Value>| value.and_then(Value::as_str).filter(is_an_id).map(str::to_owned);
    let member = content.get("member");
    let member = |name: &str| member.and_then(|member| member.get(name));
    let reading = |says| Reading {
        slot_id: text(content.get("slot_id")),
        member_id: text(member("id")).or_else(|| sticky_key.filter(is_an_id).map(str::to_owned)),
        claimed_device: text(member("device_id").or(member("claimed_device_id"))),
        says,
    };
    reading(match says(content, sender, sticky_key) {
        Ok(says) => says,
        Err(field) => Says::Malformed(field),
    })
}

fn says(
    content: &Map<String, Value>,
    sender: &str,
    sticky_key: Option<&str>,
) -> Result<Says, &'static str> {
    let sticky_key = sticky_key.ok_or("sticky_key")?;
    let slot_id = id(content.get("slot_id"), "slot_id")?;
    if content.keys().all(|name| is_of_a_leave(name)) {
        return Ok(Says::Leave(read_leave(content)));
    }
    let member = object(content.get("member"), "member")?;
    let membership = member.get("membership");
    if membership.is_some_and(|it| it == "leave") {
        return Ok(Says::Leave(read_leave(content)));
    }
    if id(member.get("id"), "member.id")? != sticky_key {
        return Err("member.id");
    }
    for name in ["user_id", "claimed_user_id"] {
        if member.get(name).is_some_and(|user_id| user_id != sender) {
            return Err("member.user_id");
        }
    }
    let device_id = member.get("device_id").or(member.get("claimed_device_id"));
    if device_id.is_some() {
        id(device_id, "member.device_id")?;
    }
    let application = object(content.get("application"), "application")?;
    id(application.get("type"), "application.type")?;
    let application =
        content.get("application").and_then(RtcApplication::from_json).ok_or("application")?;

    let is_of_the_slot = slot_id
        .strip_prefix(&*application.application_type)
        .is_some_and(|rest| rest.starts_with('#'));
    let transports = read_transports(content.get("transports"));
    let (form, transports) = match membership {
        Some(membership) if membership == "join" => {
            let is_both =
                element_call(content, member, slot_id, sticky_key).is_ok() && is_of_the_slot;
            (if is_both { MembershipForm::Both } else { MembershipForm::Msc4143 }, transports?)
        }
        Some(_) => return Err("member.membership"),
        None if content.contains_key("rtc_transports") => {
            string(device_id, "member.device_id")?;
            let published = read_published(content.get("rtc_transports"), "rtc_transports")?;
            (MembershipForm::RtcTransports, Transports::publishing(published))
        }
        None if content.contains_key("versions") || content.contains_key("transports") => {
            element_call(content, member, slot_id, sticky_key)?;
            (MembershipForm::ElementCall, transports?)
        }
        None => return Err("member.membership"),
    };
    if !is_of_the_slot {
        // MSC4143 compares the application with the slot's event, if there is one.
        if form != MembershipForm::Msc4143 {
            return Ok(Says::OtherApplication);
        }
    }
    Ok(Says::Join(Arc::new(Join::new(form, &application, &transports))))
}

/// What matrix-js-sdk 43 asks for beyond MSC4143.
fn element_call(
    content: &Map<String, Value>,
    member: &Map<String, Value>,
    slot_id: &str,
    sticky_key: &str,
) -> Result<(), &'static str> {
    if slot_id.matches('#').count() > 1 {
        return Err("slot_id");
    }
    if names::STICKY_KEY.iter().any(|name| content.get(*name).is_some_and(|it| it != sticky_key)) {
        return Err("sticky_key");
    }
    if let Some(relation) = content.get(names::RELATES_TO) {
        let is_reference = relation.get("rel_type").is_some_and(|it| it == names::REFERENCE);
        if !is_reference || !relation.get("event_id").is_some_and(Value::is_string) {
            return Err(names::RELATES_TO);
        }
    }
    string(member.get("user_id"), "member.user_id")?;
    string(member.get("device_id"), "member.device_id")?;
    let transports = object(content.get("transports"), "transports")?;
    list(transports.get("published"), "transports.published")?;
    list(transports.get("can_subscribe"), "transports.can_subscribe")?;
    match list(content.get("versions"), "versions")?.iter().all(Value::is_string) {
        true => Ok(()),
        false => Err("versions"),
    }
}

fn read_transports(transports: Option<&Value>) -> Result<Transports, &'static str> {
    let Some(transports) = transports else { return Ok(Transports::default()) };
    let transports = object(Some(transports), "transports")?;
    let published = match transports.get("published") {
        None => Vec::new(),
        published => read_published(published, "transports.published")?,
    };
    let can_subscribe = match transports.get("can_subscribe") {
        None => Vec::new(),
        Some(types) => {
            const FIELD: &str = "transports.can_subscribe";
            let types = list(Some(types), FIELD)?.iter();
            types.map(|it| string(Some(it), FIELD).map(str::to_owned)).collect::<Result<_, _>>()?
        }
    };
    Ok(Transports { published, can_subscribe })
}

fn read_published(
    published: Option<&Value>,
    field: &'static str,
) -> Result<Vec<RtcTransport>, &'static str> {
    let published = list(published, field)?.iter();
    published.map(|it| RtcTransport::from_json(it.clone()).ok_or(field)).collect()
}

/// Whether a content may have this field and still be nothing but a leave: matrix-js-sdk leaves with these, and
/// an earlier version of MSC4196 did.
fn is_of_a_leave(name: &str) -> bool {
    names::STICKY_KEY.contains(&name)
        || matches!(name, "slot_id" | "leave_reason" | "disconnect_reason" | names::RELATES_TO)
}

fn read_leave(content: &Map<String, Value>) -> LeaveReason {
    let of = |object: &str, name: &str| {
        content.get(object).and_then(|it| it.get(name)).and_then(Value::as_str).map(str::to_owned)
    };
    LeaveReason {
        code: of("leave_reason", "code").or_else(|| of("disconnect_reason", "reason")),
        reason: of("leave_reason", "reason").or_else(|| of("disconnect_reason", "description")),
    }
}

/// Reads a membership in the state (`org.matrix.msc3401.call.member`), as matrix-js-sdk 43 does.
pub(super) fn read_call_member(
    content: &Map<String, Value>,
    sender: &str,
    state_key: &str,
    origin_server_ts_ms: u64,
) -> Reading {
    let text = |name: &str| content.get(name).and_then(Value::as_str).filter(is_an_id);
    let slot_id = text("application").zip(text("call_id")).map(|(application, call_id)| {
        match (application, call_id) {
            (names::CALL, "") => super::slot::ROOM_CALL.to_owned(),
            _ => format!("{application}#{call_id}"),
        }
    });
    let member_id = text("membershipID").map(str::to_owned);
    let device = text("device_id");
    Reading {
        slot_id,
        member_id: member_id.or_else(|| device.map(|device| format!("{sender}:{device}"))),
        claimed_device: device.map(str::to_owned),
        says: match call_member_says(content, sender, state_key, origin_server_ts_ms) {
            Ok(says) => says,
            Err(field) => Says::Malformed(field),
        },
    }
}

fn call_member_says(
    content: &Map<String, Value>,
    sender: &str,
    state_key: &str,
    origin_server_ts_ms: u64,
) -> Result<Says, &'static str> {
    if content.is_empty() {
        return Ok(Says::Leave(LeaveReason::default()));
    }
    // In sticky memberships all of this is one field.
    if content.iter().map(|(name, value)| name.len() + value.to_string().len()).sum::<usize>()
        > MAX_FIELD_BYTES
    {
        return Err("content");
    }
    // A state event in the name of another user would hide theirs.
    let owner = state_key.strip_prefix('_').unwrap_or(state_key);
    if owner.strip_prefix(sender).is_none_or(|rest| !rest.is_empty() && !rest.starts_with('_')) {
        return Err("state_key");
    }
    let application_type = id(content.get("application"), "application")?;
    id(content.get("call_id"), "call_id")?;
    id(content.get("device_id"), "device_id")?;
    let focus = object(content.get("focus_active"), "focus_active")?;
    string(focus.get("type"), "focus_active.type")?;
    let published = match content.get("foci_preferred") {
        None => Vec::new(),
        published => read_published(published, "foci_preferred")?,
    };
    let millis = |field: &'static str, or: u64| match content.get(field) {
        None => Ok(or),
        // Some clients write it as a float.
        Some(value) => value.as_u64().or_else(|| value.as_f64().map(|it| it as u64)).ok_or(field),
    };
    let created_ms = millis("created_ts", origin_server_ts_ms)?;
    let expires_ms = millis("expires", CALL_MEMBER_EXPIRES_MS)?;
    let mut application = RtcApplication::new(application_type);
    for (name, value) in content {
        if !CALL_MEMBER_FIELDS.contains(&&**name) {
            application.fields.insert(name.clone(), value.clone());
        }
    }
    let transports = Transports::publishing(published);
    Ok(Says::Join(Arc::new(Join {
        created_ms: Some(created_ms),
        expires_ms: Some(created_ms.saturating_add(expires_ms)),
        ..Join::new(MembershipForm::CallMember, &application, &transports)
    })))
}

fn is_an_id(text: &&str) -> bool {
    text.len() <= MAX_ID_BYTES
}

fn id<'a>(value: Option<&'a Value>, field: &'static str) -> Result<&'a str, &'static str> {
    value.and_then(Value::as_str).filter(is_an_id).ok_or(field)
}

fn string<'a>(value: Option<&'a Value>, field: &'static str) -> Result<&'a str, &'static str> {
    value.and_then(Value::as_str).ok_or(field)
}

fn object<'a>(
    value: Option<&'a Value>,
    field: &'static str,
) -> Result<&'a Map<String, Value>, &'static str> {
    value.and_then(Value::as_object).ok_or(field)
}

fn list<'a>(value: Option<&'a Value>, field: &'static str) -> Result<&'a Vec<Value>, &'static str> {
    value.and_then(Value::as_array).ok_or(field)
}
