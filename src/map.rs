//! Map: the ephemeral map of one room ([MSC4354], "Implementing an ephemeral map").
//!
//! In (`handle_..`): raw events, redactions, who is ignored, that the room was left, each with the
//! moment. Out (`poll_..`): the changes of what is live. No clock, no I/O, no log, no room id, and
//! nothing about subscribers.
//!
//! At any moment the map is a pure function of the events that are known and sticky then: the
//! order in which they came, repeats, pages and paths make no difference. A *live* event is one
//! whose end has not come. Of the live events of a key, the highest-ranked one is its *value*; a
//! *tombstone*, an event with nothing but the key, is a value that makes the key absent.
//!
//! All memory is bounded, per sender, so that nobody can push out another's: see [`Limits`].
//!
//! [MSC4354]: https://github.com/matrix-org/matrix-spec-proposals/pull/4354

mod recent;
mod slot;

use std::{
    cmp::Ordering,
    collections::{BTreeSet, HashSet},
    fmt,
    hash::BuildHasher,
    sync::Arc,
    time::Duration,
};

use hashbrown::{DefaultHashBuilder, HashMap, HashTable, hash_table};
use ruma::{EventId, OwnedUserId};
use serde_json::value::RawValue;
use smallvec::SmallVec;

use self::{recent::Recent, slot::Slot};
use crate::{
    event::{
        Encryption, Kind, Place, RemovalReason, SharedSender, SharedType, SlotName, StickyEvent,
        StickyKey, Unkept,
    },
    time::{Deadline, MAX_STICKY_MS, Moment, end_by_origin},
    wire::{self, Malformed, RawContent, RawSticky, Wire},
};

/// How much a map keeps.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Limits {
    /// How many keys, removals, unkeyed events and events that wait for their room key are kept of
    /// one sender in one room, all together. A sender who has used it up keeps what was there
    /// first.
    ///
    /// 1,000 unless set: a thousand times what a call needs, and one member's most is some 64 MB of
    /// text if each event is as large as a server lets it be; 33 times that if they also outrank
    /// each of them [`OTHERS_PER_KEY`] times within the hour.
    pub per_sender: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self { per_sender: 1_000 }
    }
}

/// Besides the value, the highest-ranked events of a key that are kept.
pub const OTHERS_PER_KEY: usize = 32;

/// How many redactions of events that are not known are remembered, the newest of them.
pub const REDACTIONS: usize = 1_000;

/// How long an event may be gone and still be delivered again by somebody's cache.
const REMEMBERED: Duration = Duration::from_millis(MAX_STICKY_MS);

/// How an event came, which decides when it ends if the server does not say so.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Path {
    /// A sticky section: of v3 `/sync`, or of sliding sync. The server says that it is sticky.
    Section,
    /// A timeline, `/event` or `/messages`: without a remaining time it is over.
    Timeline,
}

/// What became of an event that was handed to the map.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Handled {
    /// It is known now.
    Kept,
    /// It was known before.
    Repeated,
    /// It is not sticky, or not any more.
    NotSticky,
    /// Its sender has used up [`Limits::per_sender`]: it was dropped.
    Full {
        /// Whether it is the first that was dropped since nothing of this sender was known.
        first: bool,
    },
    /// Its key has [`OTHERS_PER_KEY`] events that outrank it, besides the value: it was dropped.
    Outranked,
}

/// A change of what is live under one key.
#[derive(Clone, Debug)]
pub(crate) struct Delta {
    /// The value until now.
    pub(crate) before: Option<Arc<StickyEvent>>,
    /// The value from now on, or why there is none.
    pub(crate) after: Result<Arc<StickyEvent>, RemovalReason>,
}

/// The ephemeral map of one room.
///
/// Name by direction: `handle_..` takes what arrived, `poll_..` gives what changed.
pub struct EphemeralMap {
    limits: Limits,
    hasher: DefaultHashBuilder,
    /// What is known of each place: a key, or an event without one.
    slots: HashTable<Slot>,
    /// Every known event, by its id.
    events: HashTable<Arc<StickyEvent>>,
    /// When to drop each known event: at its end. Exactly one for each.
    ends: BTreeSet<ByEnd>,
    /// The events that wait for their room key, by event id.
    waiting: HashMap<Box<str>, Waiting>,
    senders: HashMap<SharedSender, Sender>,
    /// How many known events share each type's text.
    types: HashMap<SharedType, u32>,
    ignored: Arc<HashSet<OwnedUserId>>,
    /// Redacted events that are not known, should they still come.
    redacted: Recent,
    /// Events whose end has come. A cached response can deliver one again with more time left; the
    /// earliest end counts.
    ended: Recent,
    /// Places whose value may have changed since `poll_changes`, each by its hash and one of its
    /// events.
    touched: SmallVec<[(u64, Arc<StickyEvent>); 1]>,
    dropped: u64,
}

/// Of an event that comes in: of its id, and of its place.
struct Hashes {
    id: u64,
    place: u64,
}

struct Waiting {
    session_id: Option<Box<str>>,
    event: Arc<StickyEvent>,
}

#[derive(Default)]
struct Sender {
    slots: u32,
    dropped: bool,
}

impl EphemeralMap {
    /// An empty map.
    pub fn new(limits: Limits) -> Self {
        Self {
            limits,
            hasher: DefaultHashBuilder::default(),
            slots: HashTable::new(),
            events: HashTable::new(),
            ends: BTreeSet::new(),
            waiting: HashMap::new(),
            senders: HashMap::new(),
            types: HashMap::new(),
            ignored: Arc::default(),
            redacted: Recent::new(REDACTIONS),
            ended: Recent::new(REDACTIONS),
            touched: SmallVec::new(),
            dropped: 0,
        }
    }

    /// Takes an event as it came, at the moment at which it was received.
    ///
    /// An encrypted one waits for [`handle_decrypted`](Self::handle_decrypted). One that says that
    /// it has been redacted, or that redacts another, does so.
    ///
    /// # Errors
    ///
    /// [`Malformed`]: it was dropped, and nothing else was lost.
    pub fn handle_event(
        &mut self,
        received: Moment,
        path: Path,
        text: Box<RawValue>,
    ) -> Result<Handled, Malformed> {
        let Some(raw) = self.read(received, &text)? else {
            return Ok(Handled::NotSticky);
        };
        let end = end_of(received, path, &raw);
        let hashes = match self.admit(received, &raw, end) {
            Ok(hashes) => hashes,
            Err(handled) => return Ok(handled),
        };
        let session_id = match &raw.content {
            RawContent::Encrypted { session_id } => Some(session_id.as_deref().map(Box::from)),
            RawContent::Clear { .. } => None,
        };
        let unkept = self.share(&raw, text.get(), end, Encryption::Plaintext);
        let event = unkept.keep(text);
        if let Some(session_id) = session_id {
            let waiting = Waiting { session_id, event: event.clone() };
            self.waiting.insert(event.event_id_str().into(), waiting);
        }
        Ok(self.insert(received, hashes, event))
    }

    /// Takes an encrypted event together with what decryption made of it: the decrypted event's
    /// JSON, of which only type and content count, and who encrypted it.
    ///
    /// # Errors
    ///
    /// [`Malformed`]: it was dropped, and nothing else was lost.
    pub fn handle_decrypted(
        &mut self,
        received: Moment,
        path: Path,
        outer: &RawValue,
        clear: Box<RawValue>,
        encryption: Encryption,
    ) -> Result<Handled, Malformed> {
        let Some(mut raw) = self.read(received, outer)? else {
            return Ok(Handled::NotSticky);
        };
        let inner = wire::read_decrypted(&clear).map_err(|malformed| Malformed {
            // The outer event's: whoever encrypted it could have written any inside.
            event_id: Some(raw.event_id.to_string()),
            ..malformed
        })?;
        let mut end = end_of(received, path, &raw);
        raw.event_type = inner.event_type;
        raw.content = inner.content;
        if let Some(known) = self.find_event(raw.event_id.as_str())
            && known.kind() == Kind::Waiting
        {
            let known = known.clone();
            end = end.min(known.ends());
            if known.is_redacted() {
                self.bring_forward(&known, end);
                return Ok(Handled::NotSticky);
            }
            self.forget(&known);
        }
        let hashes = match self.admit(received, &raw, end) {
            Ok(hashes) => hashes,
            Err(handled) => return Ok(handled),
        };
        let event = self.share(&raw, clear.get(), end, encryption).keep(clear);
        Ok(self.insert(received, hashes, event))
    }

    /// Takes the news that an event has been redacted: it is not sticky any more.
    pub fn handle_redaction(&mut self, now: Moment, event_id: &EventId) {
        let Some(event) = self.find_event(event_id.as_str()).cloned() else {
            let id = self.hash_id(event_id.as_str());
            self.redacted.remember(id, now.deadline(REMEMBERED));
            return;
        };
        // It stays known until its end, so that a late copy of it does not count.
        event.redact();
        let hash = self.hasher.hash_one(event.place());
        self.waiting.remove(event.event_id_str());
        self.touched.push((hash, event));
    }

    /// Takes the whole list of ignored users. Their entries are hidden, not forgotten: who is not
    /// ignored any more is back with what is still live.
    pub fn handle_ignored(&mut self, ignored: Arc<HashSet<OwnedUserId>>) {
        let before = std::mem::replace(&mut self.ignored, ignored);
        for sample in self.slots.iter().filter_map(Slot::sample) {
            if before.contains(sample.sender()) != self.ignored.contains(sample.sender()) {
                self.touched.push((self.hasher.hash_one(sample.place()), sample.clone()));
            }
        }
    }

    /// Takes the news that we are not in the room any more, and forgets all that was known.
    pub(crate) fn handle_left(&mut self) -> Vec<Delta> {
        let left = std::mem::replace(self, Self::new(self.limits));
        self.ignored = left.ignored;
        let mut gone: Vec<_> = left.slots.into_iter().filter_map(|slot| slot.shown).collect();
        gone.sort_unstable_by(|a, b| a.cmp_place(b));
        gone.into_iter()
            .map(|shown| Delta { before: Some(shown), after: Err(RemovalReason::RoomLeft) })
            .collect()
    }

    /// What changed among the live entries since it was last asked, at most one change a key. Drops
    /// what has ended by now.
    pub(crate) fn poll_changes(&mut self, now: Moment) -> SmallVec<[Delta; 1]> {
        self.expire(now);
        let touched = std::mem::take(&mut self.touched);
        touched.iter().filter_map(|(hash, event)| self.settle(now, *hash, event)).collect()
    }

    /// When [`poll_changes`](Self::poll_changes) has something to do next.
    pub(crate) fn next_deadline(&self) -> Option<Deadline> {
        let next_end = self.ends.first().map(|ByEnd(event)| event.ends());
        [next_end, self.redacted.last_deadline(), self.ended.last_deadline()]
            .into_iter()
            .flatten()
            .min()
    }

    /// The live entries, in their order: by type, sender, keyed before unkeyed, and sticky key or
    /// event id. Those of ignored senders are not among them.
    ///
    /// This collects and sorts; the views of `view` keep an ordered set instead.
    pub fn entries(&mut self, now: Moment) -> Vec<Arc<StickyEvent>> {
        self.expire(now);
        let mut entries: Vec<_> =
            self.slots.iter().filter_map(|slot| slot.value(&self.ignored)).cloned().collect();
        entries.sort_unstable_by(|a, b| a.cmp_place(b));
        entries
    }

    /// The live entry of a key.
    pub fn get(&mut self, now: Moment, key: &StickyKey) -> Option<&Arc<StickyEvent>> {
        self.expire(now);
        let place = Place {
            event_type: &key.event_type,
            sender: key.sender.as_str(),
            slot: SlotName::Keyed(&key.sticky_key),
        };
        let hash = self.hasher.hash_one(place);
        self.slots.find(hash, |slot| slot.place() == place)?.value(&self.ignored)
    }

    /// The encrypted events that wait for the key of this session; all that wait, for `None`.
    pub(crate) fn waiting(&self, session_id: Option<&str>) -> Vec<Arc<StickyEvent>> {
        self.waiting
            .values()
            .filter(|waiting| session_id.is_none() || waiting.session_id.as_deref() == session_id)
            .map(|waiting| waiting.event.clone())
            .collect()
    }

    /// Whether this event is known and was decrypted, or never was encrypted.
    pub(crate) fn is_readable(&self, event_id: &str) -> bool {
        self.find_event(event_id).is_some_and(|event| event.kind() != Kind::Waiting)
    }

    /// How many events were dropped because their sender had used up [`Limits::per_sender`].
    pub fn dropped(&self) -> u64 {
        self.dropped
    }

    /// How many events are known: values, others, removals, redacted ones and those that wait.
    pub fn known(&self) -> usize {
        self.events.len()
    }

    /// How many events wait for their room key.
    pub fn waiting_len(&self) -> usize {
        self.waiting.len()
    }

    /// Whether there is nothing that this map remembers.
    pub fn is_empty(&self) -> bool {
        self.slots.is_empty() && self.redacted.is_empty() && self.ended.is_empty()
    }

    fn read<'a>(
        &mut self,
        now: Moment,
        event: &'a RawValue,
    ) -> Result<Option<RawSticky<'a>>, Malformed> {
        let (raw, redacts) = match wire::read(event)? {
            Wire::Sticky(mut raw) => {
                let redacts = raw.redacts.take();
                (Some(raw), redacts)
            }
            Wire::Redacted { event_id } => (None, Some(event_id)),
            Wire::NotSticky { redacts } => (None, redacts),
        };
        if let Some(redacted) = redacts {
            self.handle_redaction(now, &redacted);
        }
        Ok(raw)
    }

    /// Whether an event may come in.
    fn admit(
        &mut self,
        now: Moment,
        raw: &RawSticky<'_>,
        end: Deadline,
    ) -> Result<Hashes, Handled> {
        // What has ended takes no place from what comes, even before a timer has run.
        self.expire(now);
        let event_id = raw.event_id.as_str();
        let id = self.hash_id(event_id);
        if let Some(known) = self.events.find(id, |event| event.event_id_str() == event_id) {
            let known = known.clone();
            self.bring_forward(&known, end);
            return Err(Handled::Repeated);
        }
        if self.redacted.contains(id) {
            return Err(Handled::NotSticky);
        }
        if end.is_over(now) || self.ended.contains(id) {
            self.ended.remember(id, now.deadline(REMEMBERED));
            return Err(Handled::NotSticky);
        }

        let place = place_of(raw);
        let hashes = Hashes { id, place: self.hasher.hash_one(place) };
        if self
            .slots
            .find(hashes.place, |slot| slot.place() == place && !slot.is_vacant())
            .is_none()
            && let Some(sender) = self.senders.get_mut(raw.sender.as_ref())
            && sender.slots as usize >= self.limits.per_sender
        {
            self.dropped += 1;
            let first = !std::mem::replace(&mut sender.dropped, true);
            return Err(Handled::Full { first });
        }
        Ok(hashes)
    }

    /// The event, which is then inserted, sharing the texts of its sender and type with the others of the room.
    fn share(
        &mut self,
        raw: &RawSticky<'_>,
        text: &str,
        end: Deadline,
        encryption: Encryption,
    ) -> Unkept {
        let sender = match self.senders.get_key_value(raw.sender.as_ref()) {
            Some((sender, _)) => sender.clone(),
            None => raw.sender.as_ref().to_owned().into(),
        };
        let event_type = match self.types.get_key_value_mut(raw.event_type.as_ref()) {
            Some((event_type, count)) => {
                *count += 1;
                event_type.clone()
            }
            None => {
                let event_type = SharedType::from(Box::from(raw.event_type.as_ref()));
                self.types.insert(event_type.clone(), 1);
                event_type
            }
        };
        let encryption = match encryption {
            Encryption::Encrypted(details) if *details.owner != *sender => {
                Encryption::ForeignSession(details)
            }
            other => other,
        };
        Unkept::read(raw, text, sender, event_type, end, encryption)
    }

    fn insert(&mut self, now: Moment, hashes: Hashes, event: Arc<StickyEvent>) -> Handled {
        self.ends.insert(ByEnd(event.clone()));
        let hasher = &self.hasher;
        self.events
            .insert_unique(hashes.id, event.clone(), |event| hasher.hash_one(event.event_id_str()));

        let place = event.place();
        let entry = self.slots.entry(
            hashes.place,
            |slot| slot.place() == place,
            |slot| hasher.hash_one(slot.place()),
        );
        let mut vacant = true;
        let (is_value, excess) = match entry {
            hash_table::Entry::Occupied(entry) => {
                let slot = entry.into_mut();
                vacant = slot.is_vacant();
                let is_value = slot.insert(event.clone());
                (is_value, slot.excess(OTHERS_PER_KEY + 1))
            }
            hash_table::Entry::Vacant(entry) => {
                entry.insert(Slot::new(event.clone()));
                (true, None)
            }
        };
        if vacant {
            self.senders.entry(event.shared_sender().clone()).or_default().slots += 1;
        }
        if is_value {
            self.touched.push((hashes.place, event.clone()));
        }
        let Some(excess) = excess else {
            return Handled::Kept;
        };
        let outranked = Arc::ptr_eq(&excess, &event);
        if excess.is_redacted() {
            // Not known any more, but its redaction still holds.
            let id = self.hash_id(excess.event_id_str());
            self.redacted.remember(id, now.deadline(REMEMBERED));
        }
        self.forget(&excess);
        if outranked { Handled::Outranked } else { Handled::Kept }
    }

    /// A delivery gave an earlier end: that one counts.
    fn bring_forward(&mut self, event: &Arc<StickyEvent>, end: Deadline) {
        if end < event.ends() {
            // Out while it changes: it is sorted by it.
            self.ends.remove(&ByEnd(event.clone()));
            event.set_ends(end);
            self.ends.insert(ByEnd(event.clone()));
        }
    }

    /// Drops what has ended.
    fn expire(&mut self, now: Moment) {
        while self.ends.first().is_some_and(|ByEnd(event)| event.ends().is_over(now))
            && let Some(ByEnd(event)) = self.ends.pop_first()
        {
            let id = self.hash_id(event.event_id_str());
            self.ended.remember(id, now.deadline(REMEMBERED));
            self.forget_ended(id, &event);
        }
        for recent in [&mut self.redacted, &mut self.ended] {
            if !recent.is_empty() {
                recent.purge(now);
            }
        }
        if self.touched.len() > 2 * self.slots.len() + 64 {
            self.tidy_touched();
        }
    }

    /// Leaves each place at most once in what is touched, so that a map that is read and never
    /// polled does not grow.
    fn tidy_touched(&mut self) {
        let mut touched = std::mem::take(&mut self.touched);
        touched.sort_unstable_by(|(_, a), (_, b)| a.cmp_place(b));
        touched.dedup_by(|(_, a), (_, b)| a.cmp_place(b).is_eq());
        touched.retain(|(hash, event)| {
            let place = event.place();
            self.slots.find(*hash, |slot| slot.place() == place).is_some()
        });
        self.touched = touched;
    }

    /// Removes an event from all that is known.
    fn forget(&mut self, event: &Arc<StickyEvent>) {
        self.ends.remove(&ByEnd(event.clone()));
        self.forget_ended(self.hash_id(event.event_id_str()), event);
    }

    /// Removes an event from all else that is known, by the hash of its id.
    fn forget_ended(&mut self, id: u64, event: &Arc<StickyEvent>) {
        if let Ok(entry) = self.events.find_entry(id, |known| Arc::ptr_eq(known, event)) {
            entry.remove();
        }
        if event.kind() == Kind::Waiting {
            self.waiting.remove(event.event_id_str());
        }
        if let Some(count) = self.types.get_mut(event.event_type()) {
            *count -= 1;
            if *count == 0 {
                self.types.remove(event.event_type());
            }
        }

        let place = event.place();
        let hash = self.hasher.hash_one(place);
        let Ok(mut entry) = self.slots.find_entry(hash, |slot| slot.place() == place) else {
            return;
        };
        let slot = entry.get_mut();
        if slot.remove(event) {
            self.touched.push((hash, event.clone()));
        }
        if slot.is_vacant() {
            if slot.shown.is_none() {
                entry.remove();
            }
            if let Some(sender) = self.senders.get_mut(event.sender()) {
                sender.slots -= 1;
                if sender.slots == 0 {
                    self.senders.remove(event.sender());
                }
            }
        }
    }

    /// Compares what was shown of a place with its value, and shows that.
    fn settle(&mut self, now: Moment, hash: u64, sample: &StickyEvent) -> Option<Delta> {
        let place = sample.place();
        let mut entry = self.slots.find_entry(hash, |slot| slot.place() == place).ok()?;
        let slot = entry.get_mut();
        let after = slot.value(&self.ignored).cloned();
        let before = std::mem::replace(&mut slot.shown, after.clone());
        let delta = match (&before, after) {
            (None, None) => None,
            (Some(before), Some(after)) if Arc::ptr_eq(before, &after) => None,
            (_, Some(after)) => Some(Delta { before, after: Ok(after) }),
            (Some(gone), None) => {
                let fell_out = || {
                    if gone.ends().is_over(now) {
                        RemovalReason::Expired
                    } else if self.redacted.contains(self.hasher.hash_one(gone.event_id_str())) {
                        RemovalReason::Redacted
                    } else {
                        RemovalReason::Removed
                    }
                };
                let reason = slot.reason(gone, &self.ignored).unwrap_or_else(fell_out);
                Some(Delta { before, after: Err(reason) })
            }
        };
        if slot.is_vacant() {
            entry.remove();
        }
        delta
    }

    fn find_event(&self, event_id: &str) -> Option<&Arc<StickyEvent>> {
        self.events.find(self.hash_id(event_id), |event| event.event_id_str() == event_id)
    }

    fn hash_id(&self, event_id: &str) -> u64 {
        self.hasher.hash_one(event_id)
    }
}

impl fmt::Debug for EphemeralMap {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("EphemeralMap")
            .field("known", &self.known())
            .field("waiting", &self.waiting_len())
            .field("dropped", &self.dropped)
            .finish_non_exhaustive()
    }
}

fn end_of(received: Moment, path: Path, raw: &RawSticky<'_>) -> Deadline {
    match (raw.remaining_ms, path) {
        (Some(remaining_ms), _) => received.deadline_ms(remaining_ms.min(MAX_STICKY_MS)),
        (None, Path::Section) => end_by_origin(received, raw.origin_server_ts_ms, raw.duration_ms),
        (None, Path::Timeline) => received.deadline_ms(0),
    }
}

fn place_of<'a>(raw: &'a RawSticky<'_>) -> Place<'a> {
    Place {
        event_type: &raw.event_type,
        sender: raw.sender.as_str(),
        slot: match &raw.content {
            RawContent::Clear { sticky_key: Some(key), .. } => SlotName::Keyed(key),
            _ => SlotName::Unkeyed(raw.event_id.as_str()),
        },
    }
}

/// A known event, ordered by when it ends.
struct ByEnd(Arc<StickyEvent>);

impl Ord for ByEnd {
    fn cmp(&self, other: &Self) -> Ordering {
        let Self(event) = self;
        let Self(other) = other;
        event.ends().cmp(&other.ends()).then_with(|| event.event_id_str().cmp(other.event_id_str()))
    }
}

impl PartialOrd for ByEnd {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for ByEnd {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other).is_eq()
    }
}

impl Eq for ByEnd {}

#[cfg(test)]
mod tests;
