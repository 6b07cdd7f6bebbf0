//! Roster: who is in which session of one room, and why somebody is not.
//!
//! In (`handle_..`): the memberships in the room's ephemeral map as they change, and the room's state.
//! Out (`poll_changes`): what changed in the sessions, and a [`snapshot`](Roster::snapshot) that is
//! shared. No clock, no I/O. What an event costs depends on what it changes, and not on how many are
//! there.
//!
//! Who is in a session is a function of the entries of the map and the room's state. Only what is
//! said of those who are *not* there depends on what was seen before: why an entry left the map, and
//! since when a member is there.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, VecDeque},
    ops::Bound,
    sync::Arc,
    time::Duration,
};

use imbl::OrdMap;
#[cfg(feature = "client")]
use ruma::DeviceId;
use ruma::{EventId, OwnedEventId, OwnedUserId, UserId};
use serde::Deserialize;
use serde_json::{Map, Value};
use tracing::debug;

use super::{
    content::{self, Content, Reading, Says},
    dialect::{Dialect, MembershipForm},
    leave::LeaveReason,
    member::{Candidate, Inner, Key, KnownBy, Member, MemberDevice, MembershipPlace, NotJoined},
    slot::{Slot, session_of, slots_of},
    snapshot::{RtcSnapshot, SessionView, closed_to},
    stay::{Stay, Told},
};
use crate::{
    event::{Encryption, RemovalReason, StickyEvent, Verification},
    time::{Deadline, MAX_STICKY_DURATION, Moment},
    view::{Change, EntryChange, Snapshot},
    wire::names,
};

/// For how long it is told why somebody is not there of whom there is no membership any more.
const ENDED_FOR: Duration = MAX_STICKY_DURATION;

/// How many such are kept of each user.
const ENDED_OF_ONE: usize = 16;

/// How many memberships in the state are kept of each user: as many as a map keeps of a sender. Where
/// everybody may send such events, a server keeps as many as somebody sends. A full quota keeps what was
/// there first.
const IN_STATE_OF_ONE: usize = 1_000;

/// One change of one session.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct RtcChange {
    /// The session, by the id of its slot; `None` for memberships that name none.
    pub slot_id: Option<Arc<str>>,
    /// What changed.
    pub change: SessionChange,
}

/// What changed in a session.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub enum SessionChange {
    /// The slot was opened, closed, or is another application's; or the other one was, where a call has two
    /// ([`Slot::id`]).
    Slot(Option<Slot>),
    /// A member has joined.
    Joined(Member),
    /// A member has another membership, or another first one is known.
    Updated {
        /// The member from now on.
        member: Member,
        /// The member as it was.
        previous: Member,
    },
    /// A member is not there any more.
    Left {
        /// The member as it was.
        member: Member,
        /// Why.
        reason: NotJoined,
    },
    /// Somebody is not there, who was not there before, for this reason: new, or another than the one
    /// before.
    Refused(Candidate),
    /// There is nothing more to tell of somebody who is not there.
    Forgotten(Candidate),
}

/// The pure machine of one room's sessions.
#[derive(Debug)]
pub struct Roster {
    /// Not known counts as encrypted: a membership in plaintext makes no member by accident.
    is_encrypted: Option<bool>,
    /// Whether the room's state is known whole.
    is_state_known: bool,
    /// As the stable and the unstable event have it.
    slots: HashMap<String, [Option<(OwnedEventId, Slot)>; 2]>,
    /// Of those with a membership.
    stays: HashMap<OwnedUserId, Stay>,
    /// Of whom that is not known yet.
    unknown: BTreeSet<OwnedUserId>,
    /// The users who are held back: nothing is told of them for now.
    held_back: BTreeSet<OwnedUserId>,
    memberships: BTreeMap<Arc<Key>, MembershipRecord>,
    by_slot: HashMap<String, BTreeSet<Arc<Key>>>,
    /// Who would be there if it were not for the same device's others.
    by_device: BTreeSet<(OnDevice, Arc<Key>)>,
    /// Whose state event it is.
    in_state: HashMap<String, Arc<Key>>,
    /// How many of them each user has.
    in_state_of: HashMap<OwnedUserId, usize>,
    /// Memberships that there are no more, the oldest first.
    ended: HashMap<OwnedUserId, VecDeque<Arc<Key>>>,
    deadlines: BTreeSet<(Deadline, Arc<Key>)>,
    touched: BTreeSet<Arc<Key>>,
    touched_slots: BTreeSet<String>,
    sessions: OrdMap<Arc<str>, SessionView>,
    strays: OrdMap<Arc<Key>, Candidate>,
}

/// A device that is proven, in one session, by an event. In their order those of one device stand
/// together, the last one sent last.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct OnDevice {
    session: String,
    user_id: OwnedUserId,
    device_id: String,
    sent_ms: u64,
    event_id: OwnedEventId,
}

impl OnDevice {
    fn is_with(&self, other: &Self) -> bool {
        self.device_id == other.device_id
            && self.user_id == other.user_id
            && self.session == other.session
    }
}

/// What is known of one membership.
#[derive(Debug)]
struct MembershipRecord {
    reading: Reading,
    device: Option<MemberDevice>,
    is_encrypted: bool,
    event_id: OwnedEventId,
    event: Option<Arc<StickyEvent>>,
    origin_server_ts_ms: u64,
    since_ms: u64,
    /// When it is over, where no ephemeral map tells.
    ends: Option<Deadline>,
    /// A later event of the same key, which has been redacted.
    outlived: Option<Arc<StickyEvent>>,
    /// Why there is no membership any more.
    ended: Option<NotJoined>,
    /// Nothing more is told of it.
    is_forgotten: bool,
    /// The deadline that stands in [`Roster::deadlines`].
    noted: Option<Deadline>,
    on_device: Option<OnDevice>,
    superseded_by: Option<String>,
    /// Made when it is first shown.
    member: Option<Member>,
    shown: Shown,
}

/// How a membership was told last.
#[derive(Clone, Debug, Default)]
enum Shown {
    #[default]
    Not,
    Member(Arc<str>, Member),
    Candidate(Option<Arc<str>>, Candidate),
}

/// An event of the room's state.
#[derive(Deserialize)]
struct StateEvent {
    #[serde(rename = "type")]
    event_type: String,
    state_key: String,
    sender: OwnedUserId,
    event_id: OwnedEventId,
    /// Whatever it is, the event counts: a slot is closed for everybody or for nobody.
    #[serde(default)]
    origin_server_ts: Value,
    #[serde(default)]
    content: Map<String, Value>,
    #[serde(default)]
    unsigned: Value,
}

impl StateEvent {
    fn read(text: &str) -> Option<Self> {
        let event = serde_json::from_str(text).ok();
        if event.is_none() {
            debug!("a state event that is malformed is ignored");
        }
        event
    }

    /// Who is in the room by it or not, if that is what it says.
    fn stay(&self) -> Option<(&UserId, Told)> {
        if self.event_type != names::ROOM_MEMBER {
            return None;
        }
        let user_id = <&UserId>::try_from(&*self.state_key).ok()?;
        let before = self.unsigned.get("prev_content").and_then(|it| it.get("membership"));
        let replaced = self.unsigned.get("replaces_state").and_then(Value::as_str);
        let told = Told {
            event_id: self.event_id.clone(),
            is_in: self.content.get("membership").is_some_and(|it| it == "join"),
            at_ms: self.origin_server_ts.as_u64(),
            is_of_own_server: self.sender.server_name() == user_id.server_name(),
            was_in: before.map(|before| before == "join"),
            replaced: replaced.and_then(|replaced| EventId::parse(replaced).ok()),
        };
        Some((user_id, told))
    }
}

impl Default for Roster {
    fn default() -> Self {
        Self::new()
    }
}

impl Roster {
    /// Nobody yet, in a room that is taken for an encrypted one until
    /// [`handle_encryption`](Self::handle_encryption) tells.
    pub fn new() -> Self {
        Self {
            is_encrypted: None,
            is_state_known: false,
            slots: HashMap::new(),
            stays: HashMap::new(),
            unknown: BTreeSet::new(),
            held_back: BTreeSet::new(),
            memberships: BTreeMap::new(),
            by_slot: HashMap::new(),
            by_device: BTreeSet::new(),
            in_state: HashMap::new(),
            in_state_of: HashMap::new(),
            ended: HashMap::new(),
            deadlines: BTreeSet::new(),
            touched: BTreeSet::new(),
            touched_slots: BTreeSet::new(),
            sessions: OrdMap::new(),
            strays: OrdMap::new(),
        }
    }

    /// Takes the entries of the room's map to begin with.
    pub fn handle_snapshot(&mut self, snapshot: &Snapshot) {
        for entry in snapshot.iter() {
            self.handle_event(entry.event(), None);
        }
    }

    /// Takes what changed in the room's map since.
    pub fn handle_change(&mut self, change: &Change) {
        for entry in &change.entries {
            match entry {
                EntryChange::Added(entry) => self.handle_event(entry.event(), None),
                EntryChange::Updated { entry, previous } => {
                    self.handle_event(entry.event(), Some(previous));
                }
                EntryChange::Removed { entry, reason } => {
                    self.handle_end(change.told_at, entry.event(), *reason);
                }
            }
        }
    }

    /// Takes whether the room is encrypted. It never ceases to be.
    pub fn handle_encryption(&mut self, is_encrypted: bool) {
        if self.is_encrypted == Some(true) || self.is_encrypted == Some(is_encrypted) {
            return;
        }
        self.is_encrypted = Some(is_encrypted);
        self.touched.extend(self.memberships.keys().cloned());
        self.touched_slots.extend(self.slots.keys().cloned());
    }

    /// Takes whether a user is in the room. The roster keeps that only of users with a membership: see
    /// [`poll_unknown`](Self::poll_unknown).
    ///
    /// A state event says more, as it has a time: see
    /// [`handle_state_event`](Self::handle_state_event).
    pub fn handle_in_room(&mut self, user_id: &UserId, is_in_room: bool) {
        self.handle_stay(user_id, |stay| stay.handle_in_room(is_in_room));
    }

    /// Changes what is known of a user's stay in the room.
    fn handle_stay(&mut self, user_id: &UserId, change: impl FnOnce(&mut Stay)) {
        if self.of_user(user_id).next().is_none() {
            return;
        }
        self.unknown.remove(user_id);
        let before = self.stays.get(user_id);
        let mut stay = before.cloned().unwrap_or_default();
        change(&mut stay);
        if before != Some(&stay) {
            self.stays.insert(user_id.to_owned(), stay);
            let touched: Vec<_> = self.of_user(user_id).cloned().collect();
            self.touched.extend(touched);
        }
    }

    /// Takes an event of the room's state, as the server gives it: of slots, of who is in the room, of
    /// encryption, and memberships as they were before sticky events. All others are ignored, and so is
    /// what is malformed.
    pub fn handle_state_event(&mut self, now: Moment, text: &str) {
        if let Some(event) = StateEvent::read(text) {
            self.handle_state(now, event);
        }
    }

    /// As [`handle_state_event`](Self::handle_state_event), for an event that may have waited for its turn
    /// since before the server was asked. Returns the user whom the server has to be asked about: one who
    /// would be back in the room by it, although they are known to be out (until the server has answered,
    /// they stay out); or one whose stay is [`undecided`](Self::undecided).
    #[cfg(feature = "client")]
    pub(super) fn handle_late_state_event(
        &mut self,
        now: Moment,
        text: &str,
    ) -> Option<OwnedUserId> {
        let event = StateEvent::read(text)?;
        match event.stay() {
            Some((user_id, told)) if told.is_in && self.is_out(user_id) => {
                let user_id = user_id.to_owned();
                self.handle_stay(&user_id, |stay| stay.note(&told));
                Some(user_id)
            }
            stay => {
                let user_id = stay.map(|(user_id, _)| user_id.to_owned());
                self.handle_state(now, event);
                user_id.filter(|user_id| self.undecided(user_id).is_some())
            }
        }
    }

    /// What an event of the room's state tells of a user, if it does.
    #[cfg(feature = "client")]
    pub(super) fn told_of(user_id: &UserId, text: &str) -> Option<Told> {
        StateEvent::read(text)?.stay().filter(|(of, _)| *of == user_id).map(|(_, told)| told)
    }

    fn handle_state(&mut self, now: Moment, event: StateEvent) {
        let StateEvent { event_type, state_key, content, .. } = &event;
        match &**event_type {
            // Under any other key it is not the room's.
            names::ROOM_ENCRYPTION if state_key.is_empty() => self.handle_encryption(true),
            names::ROOM_MEMBER => {
                if let Some((user_id, told)) = event.stay() {
                    self.handle_stay(user_id, |stay| stay.handle(told));
                }
            }
            names::CALL_MEMBER => {
                let origin_server_ts = event.origin_server_ts.as_u64().unwrap_or_default();
                let StateEvent { sender, event_id, state_key, .. } = event;
                let reading = content::read_call_member(
                    &event.content,
                    sender.as_str(),
                    &state_key,
                    origin_server_ts,
                );
                let key = Key { sender, place: MembershipPlace::State(state_key) };
                self.handle_call_member(now, key, event_id, origin_server_ts, reading);
            }
            other => {
                let Some(spelling) = names::RTC_SLOT.iter().position(|name| *name == other) else {
                    return;
                };
                let slot = Slot::read(state_key, content);
                let slots = self.slots.entry(state_key.clone()).or_default();
                let before = slots[spelling].replace((event.event_id, slot));
                let [now, before] = [&slots[spelling], &before].map(|it| Some(&it.as_ref()?.1));
                if now != before {
                    self.touched_slots.insert(event.state_key);
                }
            }
        }
    }

    /// Whether the room is known to be encrypted.
    #[cfg(feature = "e2e-encryption")]
    pub(super) fn is_encrypted(&self) -> bool {
        self.is_encrypted == Some(true)
    }

    /// Takes the news that all of the room's state is known that the sessions depend on: what it has not
    /// told of is not there.
    pub fn handle_state_known(&mut self) {
        self.is_state_known = true;
    }

    /// Whether what it knows of the room's state is in part this event: should that be redacted, it has to
    /// be asked for again.
    pub fn holds(&self, event_id: &EventId) -> bool {
        let of_slots = self.slots.values().flatten().flatten().map(|(event_id, _)| event_id);
        let in_state = self.in_state.values().filter_map(|key| self.memberships.get(key));
        of_slots.chain(in_state.map(|it| &it.event_id)).any(|held| held == event_id)
    }

    /// Takes the news that we are not in the room any more. What is in the map says so itself. Of who
    /// had ended nothing more is told, so that nothing is kept of who was in the room then: nobody
    /// tells us while we are away.
    pub fn handle_room_left(&mut self, now: Moment) {
        let ended: Vec<_> = self.ended.values().flatten().cloned().collect();
        for key in ended {
            self.forget(key);
        }
        let in_state: Vec<_> = self.in_state.drain().map(|(_, key)| key).collect();
        self.in_state_of.clear();
        for key in in_state {
            self.end(now, key, NotJoined::RoomLeft);
        }
    }

    /// Users with a membership of whom it is not known whether they are in the room, each once. Until
    /// [`handle_in_room`](Self::handle_in_room) tells they count as if they were: the server took their
    /// memberships.
    pub fn poll_unknown(&mut self) -> Vec<OwnedUserId> {
        std::mem::take(&mut self.unknown).into_iter().collect()
    }

    /// The users with a membership, each once.
    pub fn users(&self) -> Vec<OwnedUserId> {
        let mut users: Vec<_> = self.memberships.keys().map(|key| key.sender.clone()).collect();
        users.dedup();
        users
    }

    /// Whether it is known of a user if they are in the room.
    #[cfg(feature = "client")]
    pub(super) fn knows(&self, user_id: &UserId) -> bool {
        self.stays.contains_key(user_id)
    }

    /// Whether a user is known to be out of the room.
    #[cfg(feature = "client")]
    fn is_out(&self, user_id: &UserId) -> bool {
        self.stays.get(user_id).is_some_and(|stay| !stay.is_in())
    }

    /// Tells nothing of a user's memberships until [`release`](Self::release): who is new gets a media
    /// key, and the server may have to be asked first whether they are still in the room.
    #[cfg(feature = "client")]
    pub(super) fn hold_back(&mut self, user_id: OwnedUserId) {
        self.held_back.insert(user_id);
    }

    /// Tells again of a user's memberships.
    #[cfg(feature = "client")]
    pub(super) fn release(&mut self, user_id: &UserId) {
        self.held_back.remove(user_id);
    }

    /// The event before a user's latest one in the room's state, if it decides whether the user was out of
    /// the room since they sent one of their memberships.
    #[cfg(feature = "client")]
    pub(super) fn undecided(&self, user_id: &UserId) -> Option<super::stay::Undecided> {
        let undecided = self.stays.get(user_id)?.undecided()?;
        let sent_ms = self.of_user(user_id).filter_map(|key| self.memberships.get(key));
        let oldest_ms = sent_ms.map(|it| it.origin_server_ts_ms).min()?;
        undecided.is_about(oldest_ms).then(|| undecided.clone())
    }

    /// The memberships of one of our own devices that came to nothing as we were out of the room since.
    #[cfg(feature = "client")]
    pub(super) fn leftovers(
        &self,
        user_id: &UserId,
        device_id: &DeviceId,
    ) -> impl Iterator<Item = Leftover> {
        let stay = self.stays.get(user_id).filter(|stay| stay.is_in());
        let of_user = stay.into_iter().flat_map(|stay| {
            let keys =
                self.of_user(user_id).filter_map(|key| Some((key, self.memberships.get(key)?)));
            keys.filter(|(_, it)| stay.was_out_after(it.origin_server_ts_ms))
        });
        of_user.filter_map(move |(key, it)| {
            let MembershipPlace::Keyed { stable, .. } = key.place else { return None };
            let is_ours = it.device.as_ref().is_some_and(|device| device.device_id == device_id);
            let is_join = matches!(it.reading.says, Says::Join(_));
            let stands = is_join && it.ended.is_none() && it.outlived.is_none();
            let [stable_type, unstable_type] = names::RTC_MEMBER;
            (is_ours && stands).then_some(Leftover {
                event_id: it.event_id.clone(),
                event_type: if stable { stable_type } else { unstable_type },
                slot_id: it.reading.slot_id.clone()?,
                member_id: it.reading.member_id.clone()?,
            })
        })
    }

    /// Takes what became of [`undecided`](Self::undecided).
    #[cfg(feature = "client")]
    pub(super) fn handle_decided(&mut self, user_id: &UserId, out_until_ms: Option<u64>) {
        self.handle_stay(user_id, |stay| stay.handle_decided(out_until_ms));
    }

    /// When to poll again, if nothing happens before.
    pub fn next_deadline(&self) -> Option<Deadline> {
        self.deadlines.first().map(|(deadline, _)| *deadline)
    }

    /// The sessions at this moment: as of the last [`poll_changes`](Self::poll_changes).
    pub fn snapshot(&self, now: Moment) -> RtcSnapshot {
        RtcSnapshot {
            sessions: self.sessions.clone(),
            strays: self.strays.clone(),
            is_encrypted: self.is_encrypted != Some(false),
            is_state_known: self.is_state_known,
            taken_at: now,
        }
    }

    /// What changed since it was last asked: slots first, then by user.
    pub fn poll_changes(&mut self, now: Moment) -> Vec<RtcChange> {
        self.advance(now);
        let mut changes = Vec::new();
        for slot_id in std::mem::take(&mut self.touched_slots) {
            self.touched.extend(self.by_slot.get(&slot_id).into_iter().flatten().cloned());
            self.show_slot(session_of(&slot_id), &mut changes);
        }
        let mut touched = std::mem::take(&mut self.touched);
        self.touched = touched.extract_if(.., |key| self.held_back.contains(&key.sender)).collect();
        let mut dirty = BTreeSet::new();
        for key in &touched {
            self.regroup(key, &mut dirty);
        }
        for key in dirty {
            self.choose(&key, &mut touched);
        }
        for key in touched {
            self.show(&key, &mut changes);
        }
        changes
    }

    fn handle_event(&mut self, event: &Arc<StickyEvent>, previous: Option<&Arc<StickyEvent>>) {
        let Some(key) = key_of(event) else { return };
        let content = event.content::<Content>().unwrap_or_default();
        let mut reading = content::read(&content, event.sender().as_str(), event.sticky_key());
        let device = match device_of(event, reading.claimed_device.as_deref()) {
            Ok(device) => device,
            Err(proven) => {
                if matches!(reading.says, Says::Join(_)) {
                    reading.says = Says::Malformed("member.device_id");
                }
                Some(proven)
            }
        };
        let known = self.memberships.get(&key);
        let outlived = previous
            .filter(|previous| previous.is_redacted())
            .or(known.and_then(|known| known.outlived.as_ref()))
            .filter(|redacted| event.rank() < redacted.rank())
            .cloned();
        let ts = event.origin_server_ts_ms();
        let since_ms =
            known.filter(|known| known.goes_on_in(&reading)).map(|it| it.since_ms.min(ts));
        self.insert(
            key,
            MembershipRecord {
                is_encrypted: event.is_encrypted(),
                event: Some(event.clone()),
                since_ms: since_ms.unwrap_or(ts),
                outlived,
                ..MembershipRecord::new(reading, device, event.event_id().to_owned(), ts)
            },
        );
    }

    fn handle_call_member(
        &mut self,
        now: Moment,
        key: Key,
        event_id: OwnedEventId,
        origin_server_ts_ms: u64,
        reading: Reading,
    ) {
        let MembershipPlace::State(state_key) = &key.place else { return };
        let state_key = state_key.clone();
        let key = match self.memberships.get_key_value(&key) {
            // The same one again; unless another counted meanwhile, or this one has been redacted.
            Some((owner, known))
                if known.event_id == event_id
                    && known.reading == reading
                    && self.in_state.get(&state_key) == Some(owner) =>
            {
                return;
            }
            Some((known, _)) => known.clone(),
            None => Arc::new(key),
        };
        // In the state there is one for each state key, whoever sent it.
        let before = self.in_state.get(&state_key).filter(|before| **before != key).cloned();
        if let Some(before) = before {
            self.unlist_state(&state_key);
            self.end(now, before, NotJoined::Left(LeaveReason::default()));
        }
        let known = self.memberships.get(&key);
        let mut created_ms = None;
        let mut ends = None;
        match &reading.says {
            Says::Leave(leave) => {
                let reason = match known {
                    // What a redaction leaves of it.
                    Some(known) if known.event_id == event_id => NotJoined::Redacted,
                    _ => NotJoined::Left(leave.clone()),
                };
                let is_news =
                    known.is_some_and(|known| known.ended.is_none() || known.noted.is_none());
                // It says nothing of where, and stands there forever: nobody need remember it.
                self.unlist_state(&state_key);
                if is_news {
                    self.end(now, key, reason);
                }
                return;
            }
            Says::Join(join) => {
                created_ms = join.created_ms;
                let left = join.expires_ms.map(|it| it.saturating_sub(now.unix_ms()));
                ends = left.map(|left| now.deadline_ms(left));
            }
            _ => {}
        }
        if !self.list_state(state_key, &key) {
            debug!(sender = %key.sender, "one user has too many memberships in the state");
            return;
        }
        let device = reading.claimed_device.as_deref().map(|device_id| MemberDevice {
            device_id: device_id.into(),
            known_by: KnownBy::Claim,
        });
        self.insert(
            key,
            MembershipRecord {
                since_ms: created_ms.unwrap_or(origin_server_ts_ms),
                ends,
                ..MembershipRecord::new(reading, device, event_id, origin_server_ts_ms)
            },
        );
    }

    /// Notes whose state event it is now; `false` where they have too many.
    fn list_state(&mut self, state_key: String, key: &Arc<Key>) -> bool {
        if self.in_state.contains_key(&state_key) {
            return true;
        }
        let of_one = self.in_state_of.entry(key.sender.clone()).or_default();
        let has_room = *of_one < IN_STATE_OF_ONE;
        if has_room {
            *of_one += 1;
            self.in_state.insert(state_key, key.clone());
        }
        has_room
    }

    fn unlist_state(&mut self, state_key: &str) {
        let Some(key) = self.in_state.remove(state_key) else { return };
        if let Some(of_one) = self.in_state_of.get_mut(&key.sender) {
            *of_one -= 1;
            if *of_one == 0 {
                self.in_state_of.remove(&key.sender);
            }
        }
    }

    /// Puts a membership in the place of the one before.
    fn insert(&mut self, key: impl Into<Arc<Key>>, mut new: MembershipRecord) {
        let key = key.into();
        let key = self.memberships.get_key_value(&key).map_or(key, |(known, _)| known.clone());
        if let Some(old) = self.memberships.remove(&key) {
            self.unlist(&key, &old);
            // What stands elsewhere about it is brought up to date when it is shown.
            new.shown = old.shown;
            new.on_device = old.on_device;
            new.superseded_by = old.superseded_by;
        } else if !self.stays.contains_key(&key.sender) {
            self.unknown.insert(key.sender.clone());
        }
        let stay = self.stays.get(&key.sender);
        if stay.is_some_and(|stay| stay.is_undecided_about(new.origin_server_ts_ms)) {
            self.unknown.insert(key.sender.clone());
        }
        if let Some(slot_id) = &new.reading.slot_id {
            self.by_slot.entry(slot_id.clone()).or_default().insert(key.clone());
        }
        if let Some(ends) = new.ends {
            new.noted = Some(ends);
            self.deadlines.insert((ends, key.clone()));
        }
        self.touched.insert(key.clone());
        self.memberships.insert(key, new);
    }

    fn handle_end(&mut self, now: Moment, event: &Arc<StickyEvent>, reason: RemovalReason) {
        let Some((key, _)) = key_of(event).and_then(|key| self.memberships.get_key_value(&key))
        else {
            return;
        };
        let key = key.clone();
        if reason == RemovalReason::Redacted
            && let Some(membership) = self.memberships.get_mut(&key)
        {
            // An earlier one that comes late does not bring it back.
            membership.outlived = Some(event.clone());
        }
        let has_outlived = self.memberships.get(&key).is_some_and(|it| it.outlived.is_some());
        let reason = match reason {
            // It had left before.
            RemovalReason::Expired if has_outlived => NotJoined::Redacted,
            RemovalReason::Expired => NotJoined::Expired,
            RemovalReason::Redacted => NotJoined::Redacted,
            RemovalReason::Removed => NotJoined::Left(LeaveReason::default()),
            RemovalReason::Ignored => NotJoined::Ignored,
            RemovalReason::RoomLeft => NotJoined::RoomLeft,
        };
        self.end(now, key, reason);
    }

    /// There is no membership any more. Of who was there it is told for a while why.
    fn end(&mut self, now: Moment, key: Arc<Key>, reason: NotJoined) {
        let Some(membership) = self.memberships.get_mut(&key) else { return };
        if let Some(noted) = membership.noted.take() {
            self.deadlines.remove(&(noted, key.clone()));
        }
        let was_there = matches!(membership.reading.says, Says::Join(_));
        let is_kept = was_there && reason.is_told_for_a_while();
        membership.ended = Some(reason);
        membership.is_forgotten = !is_kept;
        self.touched.insert(key.clone());
        if is_kept {
            let forget_at = now.deadline(ENDED_FOR);
            membership.noted = Some(forget_at);
            self.deadlines.insert((forget_at, key.clone()));
            let ended = self.ended.entry(key.sender.clone()).or_default();
            ended.push_back(key);
            if ended.len() > ENDED_OF_ONE
                && let Some(oldest) = ended.pop_front()
            {
                self.forget(oldest);
            }
        }
    }

    fn forget(&mut self, key: Arc<Key>) {
        if let Some(membership) = self.memberships.get_mut(&key) {
            membership.is_forgotten = true;
            self.touched.insert(key);
        }
    }

    /// What is over by now, and what need not be told any more.
    fn advance(&mut self, now: Moment) {
        while let Some((deadline, _)) = self.deadlines.first()
            && deadline.is_over(now)
            && let Some((_, key)) = self.deadlines.pop_first()
        {
            let Some(membership) = self.memberships.get_mut(&key) else { continue };
            membership.noted = None;
            if membership.ended.is_none() {
                // In the state it stands on, and says why it does not count.
                membership.ended = Some(NotJoined::Expired);
                self.touched.insert(key);
            } else {
                self.forget(key);
            }
        }
    }

    /// Takes a membership out of where it is found by something else than its key.
    fn unlist(&mut self, key: &Arc<Key>, membership: &MembershipRecord) {
        if let Some(noted) = membership.noted {
            self.deadlines.remove(&(noted, key.clone()));
        }
        if let Some(slot_id) = &membership.reading.slot_id
            && let Some(keys) = self.by_slot.get_mut(slot_id)
        {
            keys.remove(key);
            if keys.is_empty() {
                self.by_slot.remove(slot_id);
            }
        }
        if membership.ended.is_some()
            && let Some(ended) = self.ended.get_mut(&key.sender)
        {
            ended.retain(|it| it != key);
            if ended.is_empty() {
                self.ended.remove(&key.sender);
            }
        }
    }

    /// All memberships of a user.
    fn of_user(&self, user_id: &UserId) -> impl Iterator<Item = &Arc<Key>> {
        let from = Key::first_of(user_id);
        self.memberships
            .range::<Key, _>((Bound::Included(&from), Bound::Unbounded))
            .map(|(key, _)| key)
            .take_while(move |key| key.sender == from.sender)
    }

    /// Whether it counts, the device's other memberships apart.
    fn verdict(&self, key: &Key, membership: &MembershipRecord) -> Result<(), NotJoined> {
        if let Some(ended) = &membership.ended {
            return Err(ended.clone());
        }
        let join = match &membership.reading.says {
            Says::Join(join) => join,
            Says::Leave(leave) => return Err(NotJoined::Left(leave.clone())),
            Says::OtherApplication => return Err(NotJoined::OtherApplication),
            Says::Malformed(field) => return Err(NotJoined::Malformed(field)),
        };
        if membership.outlived.is_some() {
            return Err(NotJoined::Redacted);
        }
        let is_encrypted = self.is_encrypted != Some(false);
        if is_encrypted && !membership.is_encrypted {
            return Err(NotJoined::NotEncrypted);
        }
        let stay = self.stays.get(&key.sender);
        if stay.is_some_and(|stay| !stay.counts(membership.origin_server_ts_ms)) {
            return Err(NotJoined::NotInRoom);
        }
        let slot = membership.reading.slot_id.as_deref().and_then(|slot_id| self.slot(slot_id));
        let by_dialect = |dialect| match closed_to(dialect, slot, is_encrypted) {
            Some(closed) => Err(NotJoined::Slot(closed)),
            None if slot.and_then(|slot| slot.application.as_ref()).is_some_and(
                |application| application.application_type != join.application_type,
            ) =>
            {
                Err(NotJoined::OtherApplication)
            }
            None => Ok(()),
        };
        match join.form {
            MembershipForm::Msc4143 => by_dialect(Dialect::Msc4143),
            MembershipForm::ElementCall
            | MembershipForm::RtcTransports
            | MembershipForm::CallMember => by_dialect(Dialect::ElementCall),
            MembershipForm::Both => by_dialect(Dialect::Msc4143)
                .or_else(|why| by_dialect(Dialect::ElementCall).map_err(|_| why)),
        }
    }

    /// As the room's state has it. Where both spellings are there, the unstable one counts.
    fn slot(&self, slot_id: &str) -> Option<&Slot> {
        let [stable, unstable] = self.slots.get(slot_id)?;
        unstable.as_ref().or(stable.as_ref()).map(|(_, slot)| slot)
    }

    /// Puts a membership among those of its device, if it counts; and says which may have another one
    /// after them now.
    fn regroup(&mut self, key: &Arc<Key>, dirty: &mut BTreeSet<Arc<Key>>) {
        let Some(membership) = self.memberships.get(key) else { return };
        let counts = !membership.is_forgotten && self.verdict(key, membership).is_ok();
        let device = membership.device.as_ref().filter(|device| counts && device.is_proven());
        let on_device =
            device.zip(membership.reading.slot_id.as_deref()).map(|(device, slot_id)| OnDevice {
                session: session_of(slot_id).to_owned(),
                user_id: key.sender.clone(),
                device_id: device.device_id.to_string(),
                sent_ms: membership.origin_server_ts_ms,
                event_id: membership.event_id.clone(),
            });
        let Some(membership) = self.memberships.get_mut(key) else { return };
        if membership.on_device == on_device {
            return;
        }
        let before = std::mem::replace(&mut membership.on_device, on_device.clone());
        if on_device.is_none() {
            membership.superseded_by = None;
        }
        if let Some(before) = before {
            let place = (before, key.clone());
            self.by_device.remove(&place);
            dirty.extend(self.earlier(&place).cloned());
        }
        if let Some(on_device) = on_device {
            let place = (on_device, key.clone());
            dirty.extend(self.earlier(&place).cloned());
            dirty.insert(key.clone());
            self.by_device.insert(place);
        }
    }

    /// Of the memberships of one device the one that was sent last counts. By what the event itself
    /// says, so that everybody chooses the same one. Each of the others gives way to the next, so that
    /// one more changes nothing for those before.
    fn choose(&mut self, key: &Arc<Key>, touched: &mut BTreeSet<Arc<Key>>) {
        let on_device = self.memberships.get(key).and_then(|it| it.on_device.clone());
        let Some(on_device) = on_device else { return };
        let next = self.later(&(on_device, key.clone()));
        let next = next.and_then(|next| self.memberships.get(next));
        let superseded_by = next.and_then(|next| next.reading.member_id.clone());
        if let Some(membership) = self.memberships.get_mut(key)
            && membership.superseded_by != superseded_by
        {
            membership.superseded_by = superseded_by;
            touched.insert(key.clone());
        }
    }

    /// The one of the same device that was sent before.
    fn earlier(&self, place: &(OnDevice, Arc<Key>)) -> Option<&Arc<Key>> {
        let (earlier, key) = self.by_device.range(..place).next_back()?;
        earlier.is_with(&place.0).then_some(key)
    }

    /// The one of the same device that was sent next.
    fn later(&self, place: &(OnDevice, Arc<Key>)) -> Option<&Arc<Key>> {
        let after = (Bound::Excluded(place), Bound::Unbounded);
        let (later, key) = self.by_device.range(after).next()?;
        later.is_with(&place.0).then_some(key)
    }

    fn show_slot(&mut self, session: &str, changes: &mut Vec<RtcChange>) {
        let is_encrypted = self.is_encrypted != Some(false);
        // One session may have two names. What is open is shown first, and else by the newer name.
        let mut slots: Vec<_> =
            slots_of(session).filter_map(|slot_id| self.slot(slot_id)).collect();
        slots.sort_by_key(|slot| slot.closed_by(is_encrypted).is_some());
        let slots: Vec<_> = slots.into_iter().cloned().map(Arc::new).collect();
        let shown = slots.first().cloned();
        let closed = shown.as_ref().and_then(|slot| slot.closed_by(is_encrypted));
        let slot_id = self.session(session);
        let Some(view) = self.sessions.get_mut(&slot_id) else { return };
        // Encryption that is switched on closes one that says nothing of it.
        if view.slots != slots || view.closed != closed {
            view.slots = slots;
            view.closed = closed;
            let slot = shown.map(Arc::unwrap_or_clone);
            changes.push(RtcChange { slot_id: Some(slot_id), change: SessionChange::Slot(slot) });
        } else if view.is_empty() {
            self.sessions.remove(&slot_id);
        }
    }

    /// The name of a session that is there.
    fn session(&mut self, session: &str) -> Arc<str> {
        if let Some((slot_id, _)) = self.sessions.get_key_value(session) {
            return slot_id.clone();
        }
        let slot_id: Arc<str> = session.into();
        self.sessions.insert(slot_id.clone(), SessionView::default());
        slot_id
    }

    /// Tells how a membership stands, where that is not how it was told last.
    fn show(&mut self, key: &Arc<Key>, changes: &mut Vec<RtcChange>) {
        let Some(membership) = self.memberships.get(key) else { return };
        let slot_id = membership.reading.slot_id.clone();
        let mut verdict = self.verdict(key, membership);
        if verdict.is_ok()
            && let Some(by) = &membership.superseded_by
        {
            verdict = Err(NotJoined::Superseded { by: by.clone() });
        }
        let is_forgotten = membership.is_forgotten;
        let session = slot_id.as_deref().map(|slot_id| self.session(session_of(slot_id)));
        let Some(membership) = self.memberships.get_mut(key) else { return };
        let now = match (&verdict, &session) {
            (Ok(()), Some(session)) => match membership.member(key) {
                Some(member) => Shown::Member(session.clone(), member),
                None => Shown::Not,
            },
            (Ok(()), None) => Shown::Not,
            (Err(_), _) if is_forgotten => Shown::Not,
            (Err(reason), session) => {
                Shown::Candidate(session.clone(), membership.candidate(key, reason.clone()))
            }
        };
        let before = std::mem::replace(&mut membership.shown, now.clone());
        let was_there = matches!(before, Shown::Member(..));
        let reason = verdict.err();
        // Of whom nobody remembers why, as too many have ended at once, that is told too.
        let forgotten = reason
            .clone()
            .filter(|reason| was_there && is_forgotten && reason.is_told_for_a_while())
            .map(|reason| membership.candidate(key, reason));
        self.tell(key, before, now, reason, changes);
        if let Some(candidate) = forgotten {
            let slot_id = session.clone();
            changes.push(RtcChange { slot_id, change: SessionChange::Forgotten(candidate) });
        }
        if is_forgotten && let Some(membership) = self.memberships.remove(key) {
            self.unlist(key, &membership);
            if self.of_user(&key.sender).next().is_none() {
                self.stays.remove(&key.sender);
                self.unknown.remove(&key.sender);
            }
        }
        if let Some(session) = session {
            self.drop_if_empty(&session);
        }
    }

    fn tell(
        &mut self,
        key: &Arc<Key>,
        before: Shown,
        now: Shown,
        reason: Option<NotJoined>,
        changes: &mut Vec<RtcChange>,
    ) {
        let mut tell = |slot_id: Option<&Arc<str>>, change| {
            changes.push(RtcChange { slot_id: slot_id.cloned(), change });
        };
        let mut previous = None;
        match before {
            Shown::Not => {}
            Shown::Member(session, member) => match &now {
                Shown::Member(same, _) if *same == session => previous = Some(member),
                _ => {
                    if let Some(view) = self.sessions.get_mut(&session) {
                        view.members.remove(key);
                    }
                    let is_elsewhere = match &now {
                        Shown::Not => false,
                        Shown::Member(other, _) => *other != session,
                        Shown::Candidate(other, _) => other.as_ref() != Some(&session),
                    };
                    let reason = reason.clone().filter(|_| !is_elsewhere);
                    let reason = reason.unwrap_or(NotJoined::Moved);
                    tell(Some(&session), SessionChange::Left { member, reason });
                    self.drop_if_empty(&session);
                }
            },
            Shown::Candidate(session, candidate) => {
                let is_same = matches!(&now, Shown::Candidate(same, now)
                    if *same == session && *now == candidate);
                if is_same {
                    return;
                }
                match &session {
                    None => _ = self.strays.remove(key),
                    Some(session) => {
                        if let Some(view) = self.sessions.get_mut(session) {
                            view.candidates.remove(key);
                        }
                    }
                }
                // Another reason, or a membership, in the same place says enough.
                let is_replaced = match &now {
                    Shown::Not => false,
                    Shown::Member(other, _) => session.as_ref() == Some(other),
                    Shown::Candidate(other, _) => *other == session,
                };
                if !is_replaced {
                    tell(session.as_ref(), SessionChange::Forgotten(candidate));
                }
                if let Some(session) = &session {
                    self.drop_if_empty(session);
                }
            }
        }
        match now {
            Shown::Not => {}
            Shown::Member(session, member) => {
                if previous.as_ref() == Some(&member) {
                    return;
                }
                let session = self.session(&session);
                if let Some(view) = self.sessions.get_mut(&session) {
                    view.members.insert(key.clone(), member.clone());
                }
                let change = match previous {
                    Some(previous) => SessionChange::Updated { member, previous },
                    None => SessionChange::Joined(member),
                };
                changes.push(RtcChange { slot_id: Some(session), change });
            }
            Shown::Candidate(session, candidate) => {
                match &session {
                    None => _ = self.strays.insert(key.clone(), candidate.clone()),
                    Some(session) => {
                        let session = self.session(session);
                        if let Some(view) = self.sessions.get_mut(&session) {
                            view.candidates.insert(key.clone(), candidate.clone());
                        }
                    }
                }
                let left = changes.last().is_some_and(|last| {
                    last.slot_id == session
                        && matches!(&last.change, SessionChange::Left { member, .. } if member.inner.key == *key)
                });
                // Who has just left is not refused as well.
                if !left {
                    changes.push(RtcChange {
                        slot_id: session,
                        change: SessionChange::Refused(candidate),
                    });
                }
            }
        }
    }

    fn drop_if_empty(&mut self, session: &Arc<str>) {
        if self.sessions.get(session).is_some_and(SessionView::is_empty) {
            self.sessions.remove(session);
        }
    }
}

impl MembershipRecord {
    /// One in plaintext, of which nothing has been told, and which ends only when somebody says so.
    fn new(
        reading: Reading,
        device: Option<MemberDevice>,
        event_id: OwnedEventId,
        origin_server_ts_ms: u64,
    ) -> Self {
        Self {
            reading,
            device,
            is_encrypted: false,
            event_id,
            event: None,
            origin_server_ts_ms,
            since_ms: origin_server_ts_ms,
            ends: None,
            outlived: None,
            ended: None,
            is_forgotten: false,
            noted: None,
            on_device: None,
            superseded_by: None,
            member: None,
            shown: Shown::Not,
        }
    }

    /// Whether a later event of the same key is the same member, who has been there since.
    fn goes_on_in(&self, next: &Reading) -> bool {
        self.ended.is_none()
            && matches!((&self.reading.says, &next.says), (Says::Join(_), Says::Join(_)))
            && self.reading.member_id == next.member_id
            && self.reading.slot_id == next.slot_id
    }

    fn member(&mut self, key: &Arc<Key>) -> Option<Member> {
        if self.member.is_none() {
            let Says::Join(join) = &self.reading.says else { return None };
            let inner = Inner {
                key: key.clone(),
                slot_id: self.reading.slot_id.clone()?,
                member_id: self.reading.member_id.clone()?,
                device: self.device.clone(),
                join: join.clone(),
                since_ms: self.since_ms,
                event_id: self.event_id.clone(),
                event: self.event.clone(),
                ends: self.ends,
            };
            self.member = Some(Member { inner: Arc::new(inner) });
        }
        self.member.clone()
    }

    fn candidate(&self, key: &Arc<Key>, reason: NotJoined) -> Candidate {
        Candidate {
            key: key.clone(),
            user_id: key.sender.clone(),
            member_id: self.reading.member_id.clone(),
            slot_id: self.reading.slot_id.clone(),
            device: self.device.clone(),
            event_id: self.event_id.clone(),
            reason,
        }
    }
}

/// A membership of ours that a device of ours sent before we were last out of the room, and that nobody has
/// ended since. Other clients may show it.
#[cfg(feature = "client")]
#[derive(Debug)]
pub(super) struct Leftover {
    pub(super) event_id: OwnedEventId,
    pub(super) event_type: &'static str,
    pub(super) slot_id: String,
    pub(super) member_id: String,
}

/// Whose membership an event is; `None` for events of other types.
fn key_of(event: &StickyEvent) -> Option<Key> {
    let spelling = names::RTC_MEMBER.iter().position(|name| *name == event.event_type())?;
    let place = match event.sticky_key() {
        Some(key) => MembershipPlace::Keyed { sticky_key: key.to_owned(), stable: spelling == 0 },
        None => MembershipPlace::Unkeyed(event.event_id().to_owned()),
    };
    Some(Key { sender: event.sender().to_owned(), place })
}

/// Which device a membership is of. The error is the one that encrypted it, where the membership names
/// another.
fn device_of(
    event: &StickyEvent,
    claimed: Option<&str>,
) -> Result<Option<MemberDevice>, MemberDevice> {
    let proven = match event.encryption() {
        Encryption::Encrypted(details) if details.verification != Verification::Unproven => {
            details.device.clone().map(|device_id| MemberDevice {
                device_id,
                known_by: KnownBy::Decryption(details.verification),
            })
        }
        _ => None,
    };
    match (proven, claimed) {
        (Some(proven), Some(claimed)) if proven.device_id != *claimed => Err(proven),
        (Some(proven), _) => Ok(Some(proven)),
        (None, Some(claimed)) => {
            Ok(Some(MemberDevice { device_id: claimed.into(), known_by: KnownBy::Claim }))
        }
        (None, None) => Ok(None),
    }
}

#[cfg(test)]
#[allow(clippy::panic)]
impl Roster {
    /// What is found by something else than its key is there, and what is not there is not found.
    pub(super) fn assert_consistent(&self) {
        let mut by_slot = BTreeSet::new();
        let mut by_device = BTreeSet::new();
        let mut ended = BTreeSet::new();
        let mut deadlines = BTreeSet::new();
        let mut in_state = BTreeSet::new();
        let mut users = BTreeSet::new();
        let mut members = BTreeSet::new();
        let mut candidates = BTreeSet::new();
        for (key, membership) in &self.memberships {
            assert!(!membership.is_forgotten, "forgotten, and there: {key:?}");
            users.insert(key.sender.clone());
            by_slot.extend(membership.reading.slot_id.clone().map(|it| (it, key.clone())));
            by_device.extend(membership.on_device.clone().map(|it| (it, key.clone())));
            deadlines.extend(membership.noted.map(|noted| (noted, key.clone())));
            if membership.ended.is_some() && membership.noted.is_some() {
                ended.insert(key.clone());
            } else if matches!(key.place, MembershipPlace::State(_)) {
                in_state.insert(key.clone());
            }
            match &membership.shown {
                Shown::Not if self.held_back.contains(&key.sender) => {}
                Shown::Not => panic!("not shown: {key:?}"),
                Shown::Member(session, member) => {
                    members.insert((session.clone(), key.clone(), member.event_id().clone()));
                }
                Shown::Candidate(session, candidate) => {
                    candidates.insert((session.clone(), key.clone(), candidate.event_id.clone()));
                }
            }
        }
        let listed = |map: &HashMap<_, BTreeSet<_>>| {
            let of = |(slot_id, keys): (&String, &BTreeSet<Arc<Key>>)| {
                assert!(!keys.is_empty());
                keys.iter().map(|key| (slot_id.clone(), key.clone())).collect::<Vec<_>>()
            };
            map.iter().flat_map(of).collect::<BTreeSet<_>>()
        };
        assert_eq!(listed(&self.by_slot), by_slot);
        assert_eq!(self.by_device, by_device);
        for place in &self.by_device {
            let next = self.later(place).map(|next| &self.memberships[next]);
            let superseded_by = next.and_then(|next| next.reading.member_id.clone());
            assert_eq!(self.memberships[&place.1].superseded_by, superseded_by);
        }
        assert!(self.ended.values().all(|of_one| (1..=ENDED_OF_ONE).contains(&of_one.len())));
        assert_eq!(self.ended.values().map(VecDeque::len).sum::<usize>(), ended.len());
        assert_eq!(self.ended.values().flatten().cloned().collect::<BTreeSet<_>>(), ended);
        assert_eq!(self.deadlines, deadlines);
        assert_eq!(self.in_state.values().cloned().collect::<BTreeSet<_>>(), in_state);
        let mut of_each = HashMap::new();
        in_state.iter().for_each(|key| *of_each.entry(key.sender.clone()).or_default() += 1);
        assert_eq!(self.in_state_of, of_each);
        assert!(self.stays.keys().chain(&self.unknown).all(|it| users.contains(it)));
        assert!(self.touched.iter().all(|key| self.held_back.contains(&key.sender)));
        assert!(self.touched_slots.is_empty());
        let mut shown_members = BTreeSet::new();
        let mut shown = BTreeSet::new();
        for (session, view) in &self.sessions {
            let of = |(key, it): (&Arc<Key>, &Member)| {
                (session.clone(), key.clone(), it.event_id().clone())
            };
            shown_members.extend(view.members.iter().map(of));
            let of = |(key, it): (&Arc<Key>, &Candidate)| {
                (Some(session.clone()), key.clone(), it.event_id.clone())
            };
            shown.extend(view.candidates.iter().map(of));
        }
        shown.extend(self.strays.iter().map(|(key, it)| (None, key.clone(), it.event_id.clone())));
        assert_eq!(shown_members, members);
        assert_eq!(shown, candidates);
    }
}
