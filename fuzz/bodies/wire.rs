//! The body of the target `wire`: the same bytes as an event, as a decrypted event, and as a response
//! of either sync, against the plainest possible reading of each: one object at a time, into a list of
//! its members.

use std::{fmt, time::Duration};

use matrix_sdk_sticky::{
    map::{Admission, EphemeralMap, Limits, ReceivedVia},
    time::Moment,
    wire::{self, Fault, Malformed, RawContent, RawSticky, RoomEvents, Wire, names},
};
use ruma::{EventId, RoomId, UserId};
use serde::{
    Deserialize, Deserializer,
    de::{IgnoredAny, MapAccess, Visitor},
};
use serde_json::value::RawValue;

/// Panics if the reading differs from what the text says.
pub(crate) fn run(data: &[u8]) {
    // A `RawValue` is always JSON.
    if let Ok(raw) = serde_json::from_slice::<Box<RawValue>>(data) {
        event(&raw);
        decrypted(&raw);
        quickly_and_carefully(&raw);
        in_a_map(raw);
    }
    sliding(data);
    v3(data);
}

// Events.

fn event(raw: &RawValue) {
    let text = raw.get();
    let read = wire::read(raw);
    assert_eq!(read, wire::read(raw), "read twice");
    match &read {
        Ok(Wire::Sticky(raw)) => sticky(raw, text),
        Ok(Wire::Redacted { event_id }) => is_event_id(event_id.as_str()),
        Ok(Wire::NotSticky { redacts }) => {
            redacts.iter().for_each(|redacts| is_event_id(redacts.as_str()));
        }
        Ok(other) => panic!("a kind that nobody knows: {other:?}"),
        Err(malformed) => fault(malformed, text),
    }
    if is_unreadable(&read) {
        return;
    }
    match Plain::read(text) {
        Some(plain) => plain.compare(&read),
        // A key that is not Unicode, where it costs nothing.
        None => assert!(text.contains(r"\u") || has_control(text)),
    }
}

/// What a sticky event must have, whatever the text.
fn sticky(raw: &RawSticky<'_>, text: &str) {
    is_event_id(raw.event_id.as_str());
    assert!(UserId::parse(raw.sender.as_str()).is_ok() && raw.sender.as_str().len() <= 255);
    raw.redacts.iter().for_each(|redacts| is_event_id(redacts.as_str()));
    if raw.redacts.is_some() {
        assert_eq!(raw.event_type, "m.room.redaction");
    }
    let mut parts = vec![raw.event_id.as_str(), raw.sender.as_str(), &raw.event_type];
    match &raw.content {
        RawContent::Clear { sticky_key, removal } => {
            assert_ne!(raw.event_type, "m.room.encrypted");
            assert!(sticky_key.is_some() || !removal, "a removal has a key");
            parts.extend(sticky_key.as_deref());
        }
        RawContent::Encrypted { session_id } => {
            assert_eq!(raw.event_type, "m.room.encrypted");
            parts.extend(session_id.as_deref());
        }
        other => panic!("a kind that nobody knows: {other:?}"),
    }
    // Only a string that is spelled with escapes is copied.
    if !text.contains('\\') {
        parts.into_iter().for_each(|part| is_part_of(part, text));
    }
}

fn fault(malformed: &Malformed, text: &str) {
    if let Some(event_id) = &malformed.event_id {
        is_event_id(event_id);
    }
    assert!(!malformed.to_string().contains('\n'), "a log line is one line");
    match malformed.fault {
        Fault::TooLong { bytes } => {
            assert_eq!(bytes, text.len());
            assert!(bytes > wire::MAX_EVENT_BYTES);
        }
        Fault::Json { .. } => assert!(!is_object(text) || is_odd(text), "refused: {malformed}"),
        Fault::Field(name) => {
            assert!(is_object(text) || has_control(text), "no object, but no {name}");
        }
        _ => panic!("a fault that nobody knows: {malformed}"),
    }
}

fn is_unreadable<T>(read: &Result<T, Malformed>) -> bool {
    matches!(read, Err(Malformed { fault: Fault::TooLong { .. } | Fault::Json { .. }, .. }))
}

fn decrypted(raw: &RawValue) {
    let text = raw.get();
    let read = wire::read_decrypted(raw);
    assert_eq!(read, wire::read_decrypted(raw), "read twice");
    if let Err(malformed) = &read {
        assert!(!malformed.to_string().contains('\n'), "a log line is one line");
        assert!(!matches!(malformed.fault, Fault::Json { .. }) || !is_object(text) || is_odd(text));
    }
    if is_unreadable(&read) {
        return;
    }
    let Some(plain) = Plain::read(text) else { return };
    match (&plain.event_type, &plain.content) {
        (None, _) => assert_eq!(read.unwrap_err().fault, Fault::Field("type")),
        (_, None) => assert_eq!(read.unwrap_err().fault, Fault::Field("content")),
        (Some(event_type), Some(content)) => {
            let read = read.unwrap();
            assert_eq!(*event_type, read.event_type);
            assert_eq!(content.clear(), read.content);
        }
    }
}

/// A name with an escape leaves an event to the careful reading, and means nothing if it comes first. So
/// each event for which the quick reading has a result is read again, carefully.
fn quickly_and_carefully(raw: &RawValue) {
    let Some(members) = raw.get().strip_prefix('{') else { return };
    let comma = if members.trim_start().starts_with('}') { "" } else { "," };
    let text = format!(r#"{{"\u0061":0{comma}{members}"#);
    if text.len() > wire::MAX_EVENT_BYTES {
        return;
    }
    let careful = RawValue::from_string(text).unwrap();
    assert_eq!(wire::read(raw).map_err(placeless), wire::read(&careful).map_err(placeless));
    assert_eq!(
        wire::read_decrypted(raw).map_err(placeless),
        wire::read_decrypted(&careful).map_err(placeless)
    );
}

/// Ignores where the parser stopped, because that differs in a longer text.
fn placeless(malformed: Malformed) -> Malformed {
    match malformed.fault {
        Fault::Json { .. } => Malformed { fault: Fault::Json { line: 0, column: 0 }, ..malformed },
        _ => malformed,
    }
}

/// Checks that the map keeps what was read of an event.
fn in_a_map(raw: Box<RawValue>) {
    let text = raw.get();
    let now = Moment::new(Duration::from_secs(1_000), Duration::from_secs(1_700_000_000));
    let mut map = EphemeralMap::new(Limits::default());
    let admission = map.handle_event(now, ReceivedVia::Section, raw.clone());
    let read = wire::read(&raw);
    assert_eq!(admission.as_ref().err(), read.as_ref().err());
    let entries = map.entries(now);
    let (Ok(Wire::Sticky(raw)), Ok(Admission::Kept)) = (&read, admission) else {
        assert_eq!((entries.len(), map.known()), (0, 0));
        return;
    };
    assert_eq!(map.known(), 1);
    let RawContent::Clear { sticky_key, removal } = &raw.content else {
        assert_eq!((entries.len(), map.pending_len()), (0, 1));
        return;
    };
    assert_eq!(entries.len(), usize::from(!removal));
    let Some(entry) = entries.first() else { return };
    assert_eq!(entry.event_id(), &*raw.event_id);
    assert_eq!(entry.sender(), &*raw.sender);
    assert_eq!(entry.event_type(), raw.event_type);
    assert_eq!(entry.sticky_key(), sticky_key.as_deref());
    assert_eq!(entry.origin_server_ts_ms(), raw.origin_server_ts_ms);
    assert_eq!(entry.sticky_duration().as_millis(), raw.duration_ms.into());
    assert_eq!(entry.raw().get(), text);
    if let Some(Object(members)) = object(text) {
        let content = members.iter().rev().find(|(name, _)| name == "content");
        assert_eq!(
            content.map(|(_, content)| content.get()),
            Some(entry.content_raw().unwrap().get())
        );
    }
    match entry.key() {
        Some(key) => {
            assert_eq!(map.get(now, &key).map(|found| found.event_id()), Some(entry.event_id()))
        }
        None => assert_eq!(*sticky_key, None),
    }
}

/// An event, read the plain way. An odd value is `None`.
struct Plain<'a> {
    event_id: Option<String>,
    sender: Option<String>,
    event_type: Option<String>,
    origin_server_ts: Option<u64>,
    redacts: Option<String>,
    duration_ms: Option<u64>,
    remaining_ms: Option<u64>,
    redacted: bool,
    content: Option<Object<'a>>,
}

impl<'a> Plain<'a> {
    fn read(text: &'a str) -> Option<Self> {
        let event = object(text)?;
        let sticky = match event.either(names::STICKY) {
            Some(sticky) => Some(members(sticky)?),
            None => None,
        };
        let unsigned = match event.last("unsigned") {
            Some(unsigned) => members(unsigned)?,
            None => Object::default(),
        };
        let content = match event.last("content") {
            Some(content) if content.get().starts_with('{') => Some(members(content)?),
            _ => None,
        };
        Some(Self {
            event_id: event.text("event_id"),
            sender: event.text("sender"),
            event_type: event.text("type"),
            origin_server_ts: event.last("origin_server_ts").and_then(natural),
            redacts: event
                .text("redacts")
                .or_else(|| content.as_ref().and_then(|content| content.text("redacts"))),
            duration_ms: sticky.and_then(|sticky| natural(sticky.last("duration_ms")?)),
            remaining_ms: unsigned.either(names::REMAINING).and_then(natural),
            redacted: unsigned
                .last("redacted_because")
                .is_some_and(|because| because.get().starts_with('{')),
            content,
        })
    }

    fn compare(&self, read: &Result<Wire<'_>, Malformed>) {
        let event_id = self.event_id.clone().filter(|id| valid_event_id(id));
        let redacts = self.redacts.clone().filter(|id| valid_event_id(id));
        let redacts = redacts.filter(|_| self.event_type.as_deref() == Some("m.room.redaction"));
        let fault = |name| {
            let malformed = Malformed { event_id: event_id.clone(), fault: Fault::Field(name) };
            assert_eq!(read.as_ref().unwrap_err(), &malformed);
        };
        let text =
            |id: &Option<std::borrow::Cow<'_, EventId>>| id.as_ref().map(ToString::to_string);

        if self.redacted {
            match (event_id, read) {
                (Some(expected), Ok(Wire::Redacted { event_id })) => {
                    assert_eq!(expected, **event_id)
                }
                (None, Ok(Wire::NotSticky { redacts: None })) => {}
                (_, other) => panic!("redacted, but {other:?}"),
            }
            return;
        }
        let Some(duration_ms) = self.duration_ms else {
            let Ok(Wire::NotSticky { redacts: read }) = read else {
                panic!("not sticky, but {read:?}");
            };
            assert_eq!(text(read), redacts);
            return;
        };
        let Some(sender) = self.sender.as_ref().filter(|id| valid_user_id(id)) else {
            return fault("sender");
        };
        let Some(event_type) = &self.event_type else { return fault("type") };
        let Some(origin_server_ts) = self.origin_server_ts else {
            return fault("origin_server_ts");
        };
        let Some(content) = &self.content else { return fault("content") };
        let Some(event_id) = &event_id else { return fault("event_id") };
        let Ok(Wire::Sticky(raw)) = read else {
            panic!("sticky, but {read:?}");
        };
        assert_eq!(*event_id, *raw.event_id);
        assert_eq!(*sender, *raw.sender);
        assert_eq!(*event_type, raw.event_type);
        assert_eq!(origin_server_ts, raw.origin_server_ts_ms);
        assert_eq!(duration_ms, raw.duration_ms);
        assert_eq!(self.remaining_ms, raw.remaining_ms);
        assert_eq!(redacts, text(&raw.redacts));
        if event_type == "m.room.encrypted" {
            let session_id = content.text("session_id").map(Into::into);
            assert_eq!(RawContent::Encrypted { session_id }, raw.content);
        } else {
            assert_eq!(content.clear(), raw.content);
        }
    }
}

// Responses.

fn sliding(body: &[u8]) {
    let Ok(read) = wire::read_sliding(body) else {
        assert!(is_refused(body));
        return;
    };
    let again = wire::read_sliding(body).unwrap();
    assert_eq!((&read.pos, &read.next_batch), (&again.pos, &again.next_batch), "read twice");
    assert_eq!(shown(&read.rooms), shown(&again.rooms), "read twice");
    are_of(&read.rooms, body);

    let Some((pos, next_batch, rooms)) = plain_sliding(body) else { return };
    assert_eq!(pos.as_deref(), read.pos.as_deref());
    assert_eq!(next_batch.as_deref(), read.next_batch.as_deref());
    assert_eq!(without_empty(&rooms), without_empty(&shown(&read.rooms)));
}

fn plain_sliding(body: &[u8]) -> Option<(Option<String>, Option<String>, Rooms)> {
    let response = object(str::from_utf8(body).ok()?)?;
    let extensions = response.inner("extensions")?;
    let extension = match extensions.either(names::EXTENSION) {
        Some(extension) => members(extension)?,
        None => Object::default(),
    };
    let rooms = extension.inner("rooms")?;
    let mut plain = Vec::new();
    for (room_id, room) in &rooms.0 {
        let events = items(&members(room)?);
        if RoomId::parse(room_id).is_ok() {
            plain.push((room_id.clone(), events));
        }
    }
    Some((response.text("pos"), extension.text("next_batch"), plain))
}

fn v3(body: &[u8]) {
    let Ok(read) = wire::read_v3(body) else {
        assert!(is_refused(body));
        return;
    };
    let again = wire::read_v3(body).unwrap();
    assert_eq!(read.next_batch, again.next_batch, "read twice");
    assert_eq!(shown(&read.sections), shown(&again.sections), "read twice");
    assert_eq!(shown(&read.timelines), shown(&again.timelines), "read twice");
    are_of(&read.sections, body);
    are_of(&read.timelines, body);

    let Some((next_batch, sections, timelines)) = plain_v3(body) else { return };
    assert_eq!(next_batch.as_deref(), read.next_batch.as_deref());
    assert_eq!(without_empty(&sections), without_empty(&shown(&read.sections)));
    assert_eq!(without_empty(&timelines), without_empty(&shown(&read.timelines)));
}

fn plain_v3(body: &[u8]) -> Option<(Option<String>, Rooms, Rooms)> {
    let response = object(str::from_utf8(body).ok()?)?;
    let joined = response.inner("rooms")?.inner("join")?;
    let (mut sections, mut timelines) = (Vec::new(), Vec::new());
    for (room_id, room) in &joined.0 {
        let room = members(room)?;
        let section = match room.either(names::SECTION) {
            Some(section) => items(&members(section)?),
            None => Vec::new(),
        };
        let timeline = items(&room.inner("timeline")?);
        if RoomId::parse(room_id).is_ok() {
            sections.push((room_id.clone(), section));
            timelines.push((room_id.clone(), timeline));
        }
    }
    Some((response.text("next_batch"), sections, timelines))
}

/// The texts of each room's events.
type Rooms = Vec<(String, Vec<String>)>;

fn shown(rooms: &RoomEvents<'_>) -> Rooms {
    let texts = |events: &[&RawValue]| events.iter().map(|event| event.get().to_owned()).collect();
    rooms.iter().map(|(room_id, events)| (room_id.to_string(), texts(events))).collect()
}

/// A room without an event may be named or not.
fn without_empty(rooms: &Rooms) -> Rooms {
    rooms.iter().filter(|(_, events)| !events.is_empty()).cloned().collect()
}

fn are_of(rooms: &RoomEvents<'_>, body: &[u8]) {
    for (room_id, events) in rooms {
        assert!(RoomId::parse(room_id).is_ok());
        for event in events {
            assert!(body.as_ptr_range().contains(&event.get().as_ptr()), "a slice of the body");
            assert!(serde_json::from_str::<IgnoredAny>(event.get()).is_ok());
        }
    }
}

/// Whether a body may be refused.
fn is_refused(body: &[u8]) -> bool {
    str::from_utf8(body).map_or(true, |text| !is_object(text) || is_odd(text))
}

fn items(of: &Object<'_>) -> Vec<String> {
    let items = of.last("events").and_then(|events| serde_json::from_str(events.get()).ok());
    let items: Vec<&RawValue> = items.unwrap_or_default();
    items.into_iter().map(|item| item.get().to_owned()).collect()
}

// JSON.

/// The members of an object, in order.
#[derive(Clone, Default)]
struct Object<'a>(Vec<(String, &'a RawValue)>);

impl<'a> Object<'a> {
    fn last(&self, name: &str) -> Option<&'a RawValue> {
        self.0.iter().rev().find(|(key, _)| key == name).map(|(_, value)| *value)
    }

    /// Returns the unstable one, if it is there, else the stable one.
    fn either(&self, [stable, unstable]: [&str; 2]) -> Option<&'a RawValue> {
        self.last(unstable).or_else(|| self.last(stable))
    }

    fn text(&self, name: &str) -> Option<String> {
        serde_json::from_str(self.last(name)?.get()).ok()
    }

    /// Returns the object in a member, or an empty one.
    fn inner(&self, name: &str) -> Option<Self> {
        self.last(name).map_or_else(|| Some(Self::default()), members)
    }

    fn clear(&self) -> RawContent<'static> {
        let key = self.either(names::STICKY_KEY);
        let sticky_key: Option<String> = key.and_then(|key| serde_json::from_str(key.get()).ok());
        let more = self.0.iter().any(|(name, _)| !names::STICKY_KEY.contains(&name.as_str()));
        let removal = sticky_key.is_some() && !more;
        RawContent::Clear { sticky_key: sticky_key.map(Into::into), removal }
    }
}

impl<'de: 'a, 'a> Deserialize<'de> for Object<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Members;

        impl<'de> Visitor<'de> for Members {
            type Value = Object<'de>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
                let mut members = Vec::new();
                while let Some(member) = map.next_entry()? {
                    members.push(member);
                }
                Ok(Object(members))
            }
        }

        deserializer.deserialize_map(Members)
    }
}

fn object(text: &str) -> Option<Object<'_>> {
    serde_json::from_str(text).ok()
}

/// Returns the members of a value: no members if it is not an object; `None` if a key is not Unicode.
fn members(value: &RawValue) -> Option<Object<'_>> {
    if value.get().starts_with('{') { object(value.get()) } else { Some(Object::default()) }
}

fn natural(value: &RawValue) -> Option<u64> {
    let digits = value.get();
    let is_natural = digits.bytes().all(|byte| byte.is_ascii_digit());
    is_natural.then(|| digits.parse().unwrap_or(u64::MAX))
}

fn is_object(text: &str) -> bool {
    let start = text.trim_start_matches([' ', '\t', '\r', '\n']);
    start.starts_with('{') && serde_json::from_str::<IgnoredAny>(text).is_ok()
}

/// Returns whether there may be half a surrogate pair, or a number beyond `f64`. Those may cost the
/// whole text, if they stand in a field that is read.
fn is_odd(text: &str) -> bool {
    let has_exponent = || {
        text.as_bytes()
            .windows(2)
            .any(|two| two[0].is_ascii_digit() && matches!(two[1], b'e' | b'E'))
    };
    let has_long_number =
        || text.as_bytes().windows(300).any(|digits| digits.iter().all(u8::is_ascii_digit));
    text.contains(r"\u") || has_exponent() || has_long_number()
}

/// Returns whether there is a control character. A string of JSON may not have one unescaped, but no
/// reading minds one in an object's key. (An event comes as a `RawValue`, where no such text gets this
/// far.)
fn has_control(text: &str) -> bool {
    text.bytes().any(|byte| byte < b' ')
}

fn is_event_id(id: &str) {
    assert!(valid_event_id(id), "{id:?}");
}

fn valid_event_id(id: &str) -> bool {
    id.len() <= 255 && EventId::parse(id).is_ok()
}

fn valid_user_id(id: &str) -> bool {
    id.len() <= 255 && UserId::parse(id).is_ok()
}

fn is_part_of(part: &str, text: &str) {
    let text = text.as_bytes().as_ptr_range();
    let part = part.as_bytes().as_ptr_range();
    assert!(text.start <= part.start && part.end <= text.end, "a part of the text");
}
