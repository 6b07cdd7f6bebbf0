//! Roster: who is in which session of one room, and why somebody is not.
//!
//! In (`handle_..`): the memberships in the room's ephemeral map as they change, and the room's state. Out
//! (`poll_changes`): what changed in the sessions, and a [`snapshot`](Roster::snapshot) that is shared. Never:
//! a clock, I/O. What an event costs depends on what it changes, and not on how many members there are.
//!
//! Who is in a session is a function of the entries of the map and the room's state. Only what is reported of
//! those who are *not* there depends on what was seen before: why an entry left the map, and since when a
//! member is there.

mod diff;
mod index;
mod membership;
mod state_event;
mod transition;
mod verdict;

use std::{
    collections::{BTreeSet, HashMap},
    sync::Arc,
};

#[cfg(feature = "client")]
use ruma::DeviceId;
use ruma::{EventId, OwnedEventId, OwnedUserId, UserId};
use tracing::debug;

#[cfg(feature = "client")]
pub(super) use self::membership::Leftover;
pub(super) use self::transition::{Pending, Transition};
use self::{
    diff::Sessions,
    index::Memberships,
    membership::{MembershipRecord, OnDevice, Shown, device_of, key_of},
    state_event::StateEvent,
    transition::{ShownSlots, Step},
    verdict::Rules,
};
use super::{
    change::RtcChange,
    content::{self, Content, Reading, Says},
    leave::LeaveReason,
    member::{Key, KnownBy, MemberDevice, MembershipPlace, NotJoined},
    slot::{Slot, session_of, slots_of},
    snapshot::RtcSnapshot,
    stay::Stay,
};
use crate::{
    event::{RemovalReason, StickyEvent},
    time::{Deadline, Moment},
    view::{Change, EntryChange, Snapshot},
    wire::names,
};

/// The pure machine of one room's sessions.
///
/// To drive it: call a `handle_..` method for each thing that happens, look up the users of
/// [`poll_unknown`](Self::poll_unknown), then call [`poll_changes`](Self::poll_changes). Poll again at
/// [`next_deadline`](Self::next_deadline).
#[derive(Debug)]
pub struct Roster {
    /// A room counts as encrypted until somebody knows: a membership in plaintext makes no member by accident.
    is_encrypted: Option<bool>,
    /// Whether the room's state is known whole.
    is_state_known: bool,
    /// Slots, as the stable and the unstable event have them.
    slots: HashMap<String, [Option<(OwnedEventId, Slot)>; 2]>,
    /// The stays in the room of those with a membership.
    stays: HashMap<OwnedUserId, Stay>,
    /// Users with a membership whose stay nobody has looked up yet.
    unknown: BTreeSet<OwnedUserId>,
    /// The users who are held back: nothing is reported of them for now.
    held_back: BTreeSet<OwnedUserId>,
    memberships: Memberships,
    /// The memberships that may be shown in another way than they are.
    touched: BTreeSet<Arc<Key>>,
    touched_slots: BTreeSet<String>,
    sessions: Sessions,
}

impl Default for Roster {
    fn default() -> Self {
        Self::new()
    }
}

impl Roster {
    /// Creates the roster of a room without members. The room counts as encrypted until
    /// [`handle_encryption`](Self::handle_encryption) says otherwise.
    pub fn new() -> Self {
        Self {
            is_encrypted: None,
            is_state_known: false,
            slots: HashMap::new(),
            stays: HashMap::new(),
            unknown: BTreeSet::new(),
            held_back: BTreeSet::new(),
            memberships: Memberships::default(),
            touched: BTreeSet::new(),
            touched_slots: BTreeSet::new(),
            sessions: Sessions::default(),
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
    /// A state event says more, because it has a time: see
    /// [`handle_state_event`](Self::handle_state_event).
    pub fn handle_in_room(&mut self, user_id: &UserId, is_in_room: bool) {
        self.handle_stay(user_id, |stay| stay.handle_in_room(is_in_room));
    }

    /// Takes an event of the room's state, as the server gives it: a slot, who is in the room, encryption, or
    /// a membership from before sticky events. It ignores all others, and malformed ones.
    pub fn handle_state_event(&mut self, now: Moment, text: &str) {
        if let Some(event) = StateEvent::read(text) {
            self.handle_state(now, event);
        }
    }

    /// Takes a state event that may be older than our last query of the server. Otherwise it works as
    /// [`handle_state_event`](Self::handle_state_event).
    ///
    /// Returns a user about whom the server has to be asked. Either the event would bring back a user who is
    /// known to be out: it is not applied, and they stay out until the server has answered. Or their stay is
    /// [`undecided`](Self::undecided).
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

    /// What an event of the room's state says about a user, if it does.
    #[cfg(feature = "client")]
    pub(super) fn told_of(user_id: &UserId, text: &str) -> Option<super::stay::Told> {
        StateEvent::read(text)?.stay().filter(|(of, _)| *of == user_id).map(|(_, told)| told)
    }

    /// Takes that all of the room's state is known on which the sessions depend: a slot that no event has told
    /// of is missing.
    pub fn handle_state_known(&mut self) {
        self.is_state_known = true;
    }

    /// Takes that we are not in the room any more. The map reports its own entries. Former members are
    /// forgotten, because while we are away nobody tells us who is in the room.
    pub fn handle_room_left(&mut self, now: Moment) {
        self.touched.extend(self.memberships.forget_ended());
        for key in self.memberships.unlist_all_states() {
            self.end(now, key, NotJoined::RoomLeft);
        }
    }

    /// Takes what became of [`undecided`](Self::undecided).
    #[cfg(feature = "client")]
    pub(super) fn handle_decided(&mut self, user_id: &UserId, out_until_ms: Option<u64>) {
        self.handle_stay(user_id, |stay| stay.handle_decided(out_until_ms));
    }

    /// Reports nothing of a user's memberships until [`release`](Self::release). A newcomer gets a media key,
    /// and the server may have to be asked first whether they are still in the room.
    #[cfg(feature = "client")]
    pub(super) fn hold_back(&mut self, user_id: OwnedUserId) {
        self.held_back.insert(user_id);
    }

    /// Reports a user's memberships again.
    #[cfg(feature = "client")]
    pub(super) fn release(&mut self, user_id: &UserId) {
        self.held_back.remove(user_id);
    }

    /// Returns the users with a membership whose stay in the room nobody has told, each once. Until
    /// [`handle_in_room`](Self::handle_in_room) tells, they count as if they were in the room: the server took
    /// their memberships.
    pub fn poll_unknown(&mut self) -> Vec<OwnedUserId> {
        std::mem::take(&mut self.unknown).into_iter().collect()
    }

    /// Returns what changed since the last call: slots first, then by user.
    pub fn poll_changes(&mut self, now: Moment) -> Vec<RtcChange> {
        let mut pending = Pending::default();
        for transition in self.poll_transitions(now) {
            pending.add(transition);
        }
        pending.take_changes()
    }

    /// Returns what is shown in another way than at the last call: slots first, then by user.
    pub(super) fn poll_transitions(&mut self, now: Moment) -> Vec<Transition> {
        while let Some(key) = self.memberships.poll_due(now) {
            self.touched.insert(key);
        }
        let mut transitions = Vec::new();
        for slot_id in std::mem::take(&mut self.touched_slots) {
            self.touched.extend(self.memberships.of_slot(&slot_id).cloned());
            transitions.extend(self.show_slot(session_of(&slot_id)));
        }
        let mut touched = std::mem::take(&mut self.touched);
        self.touched = touched.extract_if(.., |key| self.held_back.contains(&key.sender)).collect();
        let mut dirty = BTreeSet::new();
        for key in &touched {
            let on_device = self.on_device(key);
            dirty.extend(self.memberships.regroup(key, on_device));
        }
        for key in dirty {
            if self.memberships.choose(&key) {
                touched.insert(key);
            }
        }
        for key in touched {
            transitions.extend(self.show(&key));
        }
        transitions
    }

    /// Returns when to poll again, if nothing happens before.
    pub fn next_deadline(&self) -> Option<Deadline> {
        self.memberships.next_deadline()
    }

    /// Returns the sessions, as of the last [`poll_changes`](Self::poll_changes).
    pub fn snapshot(&self, now: Moment) -> RtcSnapshot {
        RtcSnapshot {
            sessions: self.sessions.views.clone(),
            strays: self.sessions.strays.clone(),
            is_encrypted: self.counts_as_encrypted(),
            is_state_known: self.is_state_known,
            taken_at: now,
        }
    }

    /// Returns the users with a membership, each once.
    pub fn users(&self) -> Vec<OwnedUserId> {
        self.memberships.users()
    }

    /// Returns whether what the roster knows of the room's state is in part this event. If that is redacted,
    /// the state has to be asked for again.
    pub fn holds(&self, event_id: &EventId) -> bool {
        let of_slots = self.slots.values().flatten().flatten().map(|(event_id, _)| event_id);
        let in_state = self.memberships.in_state().map(|it| &it.event_id);
        of_slots.chain(in_state).any(|held| held == event_id)
    }

    /// Whether the room is known to be encrypted.
    #[cfg(feature = "e2e-encryption")]
    pub(super) fn is_encrypted(&self) -> bool {
        self.is_encrypted == Some(true)
    }

    /// Whether anybody has told if a user is in the room.
    #[cfg(feature = "client")]
    pub(super) fn knows(&self, user_id: &UserId) -> bool {
        self.stays.contains_key(user_id)
    }

    /// The event before a user's latest one in the room's state, if it decides whether the user was out of
    /// the room since they sent one of their memberships.
    #[cfg(feature = "client")]
    pub(super) fn undecided(&self, user_id: &UserId) -> Option<super::stay::Undecided> {
        let undecided = self.stays.get(user_id)?.undecided()?;
        let sent_ms = self.memberships.of_user(user_id).map(|(_, it)| it.origin_server_ts_ms);
        let oldest_ms = sent_ms.min()?;
        undecided.is_about(oldest_ms).then(|| undecided.clone())
    }

    /// The memberships of one of our own devices that do not count because we were out of the room since.
    #[cfg(feature = "client")]
    pub(super) fn leftovers(
        &self,
        user_id: &UserId,
        device_id: &DeviceId,
    ) -> impl Iterator<Item = Leftover> {
        let stay = self.stays.get(user_id).filter(|stay| stay.is_in());
        let of_user = stay.into_iter().flat_map(|stay| {
            let all = self.memberships.of_user(user_id);
            all.filter(|(_, it)| stay.was_out_after(it.origin_server_ts_ms))
        });
        of_user.filter_map(move |(key, it)| it.leftover(key, device_id))
    }

    /// Whether a user is known to be out of the room.
    #[cfg(feature = "client")]
    fn is_out(&self, user_id: &UserId) -> bool {
        self.stays.get(user_id).is_some_and(|stay| !stay.is_in())
    }

    fn counts_as_encrypted(&self) -> bool {
        self.is_encrypted != Some(false)
    }

    /// Changes what is known of a user's stay in the room.
    fn handle_stay(&mut self, user_id: &UserId, change: impl FnOnce(&mut Stay)) {
        if !self.memberships.has_user(user_id) {
            return;
        }
        self.unknown.remove(user_id);
        let before = self.stays.get(user_id);
        let mut stay = before.cloned().unwrap_or_default();
        change(&mut stay);
        if before != Some(&stay) {
            self.stays.insert(user_id.to_owned(), stay);
            self.touched.extend(self.memberships.of_user(user_id).map(|(key, _)| key.clone()));
        }
    }

    fn handle_state(&mut self, now: Moment, event: StateEvent) {
        match &*event.event_type {
            // Under any other key it is not the room's.
            "m.room.encryption" if event.state_key.is_empty() => self.handle_encryption(true),
            "m.room.member" => {
                if let Some((user_id, told)) = event.stay() {
                    self.handle_stay(user_id, |stay| stay.handle(told));
                }
            }
            names::CALL_MEMBER => self.handle_call_member(now, event),
            other => {
                let spelling = names::RTC_SLOT.iter().position(|name| *name == other);
                if let Some(spelling) = spelling {
                    self.handle_slot(spelling, event);
                }
            }
        }
    }

    /// Takes a slot, in the stable or the unstable spelling.
    fn handle_slot(&mut self, spelling: usize, event: StateEvent) {
        let slot = Slot::read(&event.state_key, &event.content);
        let slots = self.slots.entry(event.state_key.clone()).or_default();
        let before = slots[spelling].replace((event.event_id, slot));
        let [now, before] = [&slots[spelling], &before].map(|it| Some(&it.as_ref()?.1));
        if now != before {
            self.touched_slots.insert(event.state_key);
        }
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

    /// Takes a membership from before sticky events.
    fn handle_call_member(&mut self, now: Moment, event: StateEvent) {
        let sent_ms = event.origin_server_ts.as_u64().unwrap_or_default();
        let StateEvent { sender, event_id, state_key, content, .. } = event;
        let reading = content::read_call_member(&content, sender.as_str(), &state_key, sent_ms);
        let key = Key { sender, place: MembershipPlace::State(state_key.clone()) };
        let key = match self.memberships.get_key_value(&key) {
            // The same one again; unless another counted meanwhile, or this one has been redacted.
            Some((owner, known))
                if known.event_id == event_id
                    && known.reading == reading
                    && self.memberships.in_state_at(&state_key) == Some(owner) =>
            {
                return;
            }
            Some((known, _)) => known.clone(),
            None => Arc::new(key),
        };
        // In the state there is one membership for each state key, whoever sent it.
        let before = self.memberships.in_state_at(&state_key).filter(|before| **before != key);
        if let Some(before) = before.cloned() {
            self.memberships.unlist_state(&state_key);
            self.end(now, before, NotJoined::Left(LeaveReason::default()));
        }
        if let Says::Leave(leave) = &reading.says {
            // A leave says nothing of where, and stands there forever: nobody need remember it.
            self.memberships.unlist_state(&state_key);
            return self.end_in_state(now, key, &event_id, leave);
        }
        if !self.memberships.list_state(state_key, &key) {
            debug!(sender = %key.sender, "one user has too many memberships in the state");
            return;
        }
        self.insert(key, call_member(now, reading, event_id, sent_ms));
    }

    /// Ends a membership from before sticky events, for which this leave stands now.
    fn end_in_state(
        &mut self,
        now: Moment,
        key: Arc<Key>,
        event_id: &EventId,
        leave: &LeaveReason,
    ) {
        let Some(known) = self.memberships.get(&key) else { return };
        // What a redaction leaves of an event is the same event.
        let is_redacted = known.event_id == event_id;
        let is_news = known.ended.is_none() || known.noted.is_none();
        if is_news {
            let left = || NotJoined::Left(leave.clone());
            let reason = if is_redacted { NotJoined::Redacted } else { left() };
            self.end(now, key, reason);
        }
    }

    /// Puts a membership in the place of the one before.
    fn insert(&mut self, key: impl Into<Arc<Key>>, new: MembershipRecord) {
        let sent_ms = new.origin_server_ts_ms;
        let key = key.into();
        let is_new = self.memberships.get(&key).is_none();
        let key = self.memberships.insert(key, new);
        let needs_look_up = match self.stays.get(&key.sender) {
            None => is_new,
            Some(stay) => stay.is_undecided_about(sent_ms),
        };
        if needs_look_up {
            self.unknown.insert(key.sender.clone());
        }
        self.touched.insert(key);
    }

    fn handle_end(&mut self, now: Moment, event: &Arc<StickyEvent>, reason: RemovalReason) {
        let Some((key, _)) = key_of(event).and_then(|key| self.memberships.get_key_value(&key))
        else {
            return;
        };
        let key = key.clone();
        if reason == RemovalReason::Redacted {
            self.memberships.outlive(&key, event);
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

    /// Ends a membership. A former member stays listed as a candidate, with the reason, for up to an hour.
    fn end(&mut self, now: Moment, key: Arc<Key>, reason: NotJoined) {
        let Some(ended) = self.memberships.end(now, &key, reason) else { return };
        self.touched.insert(key);
        if let Some(pushed_out) = ended.pushed_out
            && self.memberships.forget(&pushed_out)
        {
            self.touched.insert(pushed_out);
        }
    }

    /// Whether a membership counts, the device's other memberships apart.
    fn verdict(&self, key: &Key, membership: &MembershipRecord) -> Result<(), NotJoined> {
        let rules = Rules {
            is_encrypted: self.counts_as_encrypted(),
            stay: self.stays.get(&key.sender),
            slot: membership.reading.slot_id.as_deref().and_then(|slot_id| self.slot(slot_id)),
        };
        rules.verdict(membership)
    }

    /// A slot, as the room's state has it. If both spellings are there, the unstable one counts.
    fn slot(&self, slot_id: &str) -> Option<&Slot> {
        let [stable, unstable] = self.slots.get(slot_id)?;
        unstable.as_ref().or(stable.as_ref()).map(|(_, slot)| slot)
    }

    /// Where a membership stands among those of its device, if it counts and its device is proven.
    fn on_device(&self, key: &Arc<Key>) -> Option<OnDevice> {
        let membership = self.memberships.get(key)?;
        let device = membership.device.as_ref().filter(|device| device.is_proven())?;
        let slot_id = membership.reading.slot_id.as_deref()?;
        let counts = !membership.is_forgotten && self.verdict(key, membership).is_ok();
        counts.then(|| OnDevice {
            session: session_of(slot_id).to_owned(),
            user_id: key.sender.clone(),
            device_id: device.device_id.to_string(),
            sent_ms: membership.origin_server_ts_ms,
            event_id: membership.event_id.clone(),
        })
    }

    fn show_slot(&mut self, session: &str) -> Option<Transition> {
        let is_encrypted = self.counts_as_encrypted();
        // One session may have two names. An open slot is shown first, and else the one of the newer name.
        let mut slots: Vec<_> =
            slots_of(session).filter_map(|slot_id| self.slot(slot_id)).collect();
        slots.sort_by_key(|slot| slot.closed_by(is_encrypted).is_some());
        let slots: Vec<_> = slots.into_iter().cloned().map(Arc::new).collect();
        // Encryption that is switched on closes a slot that says nothing of it.
        let closed = slots.first().and_then(|slot| slot.closed_by(is_encrypted));
        let now = ShownSlots { slots, closed };
        let session = self.sessions.named(session);
        let view = self.sessions.views.get_mut(&session)?;
        if view.slots == now.slots && view.closed == now.closed {
            self.sessions.drop_if_empty(&session);
            return None;
        }
        let before = ShownSlots {
            slots: std::mem::replace(&mut view.slots, now.slots.clone()),
            closed: std::mem::replace(&mut view.closed, now.closed.clone()),
        };
        Some(Transition::Slot { session, before, now })
    }

    /// Reports how a membership stands, if that is not how it was shown last.
    fn show(&mut self, key: &Arc<Key>) -> Option<Transition> {
        let membership = self.memberships.get(key)?;
        let mut verdict = self.verdict(key, membership);
        if verdict.is_ok()
            && let Some(by) = &membership.superseded_by
        {
            verdict = Err(NotJoined::Superseded { by: by.clone() });
        }
        let is_forgotten = membership.is_forgotten;
        let slot_id = membership.reading.slot_id.as_deref();
        let session = slot_id.map(|slot_id| self.sessions.named(session_of(slot_id)));
        let reason = verdict.err();
        let shown = self.memberships.show(key, |membership| match (&reason, &session) {
            (None, Some(session)) => match membership.member(key) {
                Some(member) => Shown::Member(session.clone(), member),
                None => Shown::Not,
            },
            (None, None) => Shown::Not,
            (Some(_), _) if is_forgotten => Shown::Not,
            (Some(reason), session) => {
                Shown::Candidate(session.clone(), membership.candidate(key, reason.clone()))
            }
        });
        let (before, now) = shown?;
        // If the quota of former members pushed this one out at once, it is reported as forgotten too.
        let was_there = matches!(before, Shown::Member(..));
        let forgotten = reason
            .clone()
            .filter(|reason| was_there && is_forgotten && reason.is_told_for_a_while())
            .and_then(|reason| Some(self.memberships.get(key)?.candidate(key, reason)));
        if before != now {
            self.sessions.show(key, &before, &now);
        }
        if self.memberships.remove_forgotten(key) && !self.memberships.has_user(&key.sender) {
            self.stays.remove(&key.sender);
            self.unknown.remove(&key.sender);
        }
        if let Some(session) = session {
            self.sessions.drop_if_empty(&session);
        }
        (before != now).then(|| {
            let step = Step { before, now, reason, forgotten };
            Transition::Membership(key.clone(), Box::new(step))
        })
    }
}

/// The record of a membership from before sticky events.
fn call_member(
    now: Moment,
    reading: Reading,
    event_id: OwnedEventId,
    sent_ms: u64,
) -> MembershipRecord {
    let device = reading
        .claimed_device
        .as_deref()
        .map(|device_id| MemberDevice { device_id: device_id.into(), known_by: KnownBy::Claim });
    let mut record = MembershipRecord::new(reading, device, event_id, sent_ms);
    if let Says::Join(join) = &record.reading.says {
        record.since_ms = join.created_ms.unwrap_or(sent_ms);
        let left_ms = join.expires_ms.map(|it| it.saturating_sub(now.unix_ms()));
        record.ends = left_ms.map(|left_ms| now.deadline_ms(left_ms));
    }
    record
}

#[cfg(test)]
#[allow(clippy::panic)]
impl Roster {
    /// Checks the invariant of the index, and that what is shown is what the records say.
    pub(super) fn assert_consistent(&self) {
        self.memberships.assert_consistent();
        let mut users = BTreeSet::new();
        let mut members = BTreeSet::new();
        let mut candidates = BTreeSet::new();
        for (key, membership) in self.memberships.records() {
            users.insert(key.sender.clone());
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
        assert!(self.stays.keys().chain(&self.unknown).all(|it| users.contains(it)));
        assert!(self.touched.iter().all(|key| self.held_back.contains(&key.sender)));
        assert!(self.touched_slots.is_empty());
        let mut shown_members = BTreeSet::new();
        let mut shown = BTreeSet::new();
        for (session, view) in &self.sessions.views {
            let of = view.members.iter();
            shown_members
                .extend(of.map(|(key, it)| (session.clone(), key.clone(), it.event_id().clone())));
            let of = view.candidates.iter();
            let session = Some(session);
            shown.extend(of.map(|(key, it)| (session.cloned(), key.clone(), it.event_id.clone())));
        }
        let strays = self.sessions.strays.iter();
        shown.extend(strays.map(|(key, it)| (None, key.clone(), it.event_id.clone())));
        assert_eq!(shown_members, members);
        assert_eq!(shown, candidates);
    }
}
