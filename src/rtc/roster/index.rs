//! The index: all memberships of a room, and where they are found by something else than their key.
//!
//! **The invariant.** Every secondary index agrees with the records:
//! - `by_slot` lists a record under the slot that it names, and under no other;
//! - `by_device` lists a record whose `on_device` is set, and it alone; each record there is superseded by the
//!   next one of the same device, and the last one by none;
//! - `deadlines` has exactly the records with a `noted` deadline;
//! - `ended` has exactly the records that are over and kept for a while, at most [`MAX_ENDED_OF_ONE`] of each
//!   user;
//! - `in_state` has exactly the records that a state event still stands for, and `in_state_of` counts them.
//!
//! Each method here leaves that so. Nobody else writes the fields of a record that say "the index writes this".

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, VecDeque},
    ops::Bound,
    sync::Arc,
    time::Duration,
};

use ruma::{OwnedUserId, UserId};

use super::membership::{MembershipRecord, OnDevice, Shown};
use crate::{
    event::StickyEvent,
    rtc::{
        content::Says,
        member::{Key, NotJoined},
    },
    time::{Deadline, MAX_STICKY_DURATION, Moment},
};

/// How long a former member stays listed as a candidate, with the reason.
const ENDED_KEPT_FOR: Duration = MAX_STICKY_DURATION;

/// How many former members are kept of each user.
const MAX_ENDED_OF_ONE: usize = 16;

/// How many memberships in the state are kept of each user: as many as a map keeps of a sender. If everybody
/// may send such events, a server keeps as many as somebody sends. A full quota keeps what was there first.
const MAX_IN_STATE_OF_ONE: usize = 1_000;

/// All memberships of a room.
#[derive(Debug, Default)]
pub(super) struct Memberships {
    records: BTreeMap<Arc<Key>, MembershipRecord>,
    by_slot: HashMap<String, BTreeSet<Arc<Key>>>,
    /// The memberships that count, those apart that another one of the same device supersedes.
    by_device: BTreeSet<(OnDevice, Arc<Key>)>,
    /// Whose state event it is, by state key.
    in_state: HashMap<String, Arc<Key>>,
    /// How many state events each user has.
    in_state_of: HashMap<OwnedUserId, usize>,
    /// Former members of each user, the oldest first.
    ended: HashMap<OwnedUserId, VecDeque<Arc<Key>>>,
    deadlines: BTreeSet<(Deadline, Arc<Key>)>,
}

/// What became of the end of a membership.
pub(super) struct Ended {
    /// A former member of the same user that the quota of these pushed out.
    pub(super) pushed_out: Option<Arc<Key>>,
}

impl Memberships {
    pub(super) fn get(&self, key: &Key) -> Option<&MembershipRecord> {
        self.records.get(key)
    }

    /// The record with its key, which is shared.
    pub(super) fn get_key_value(&self, key: &Key) -> Option<(&Arc<Key>, &MembershipRecord)> {
        self.records.get_key_value(key)
    }

    pub(super) fn keys(&self) -> impl Iterator<Item = &Arc<Key>> {
        self.records.keys()
    }

    /// The users with a membership, each once.
    pub(super) fn users(&self) -> Vec<OwnedUserId> {
        let mut users: Vec<_> = self.records.keys().map(|key| key.sender.clone()).collect();
        users.dedup();
        users
    }

    /// All memberships of a user.
    pub(super) fn of_user(
        &self,
        user_id: &UserId,
    ) -> impl Iterator<Item = (&Arc<Key>, &MembershipRecord)> {
        let from = Key::first_of(user_id);
        self.records
            .range::<Key, _>((Bound::Included(&from), Bound::Unbounded))
            .take_while(move |(key, _)| key.sender == from.sender)
    }

    pub(super) fn has_user(&self, user_id: &UserId) -> bool {
        self.of_user(user_id).next().is_some()
    }

    /// The memberships that name a slot.
    pub(super) fn of_slot(&self, slot_id: &str) -> impl Iterator<Item = &Arc<Key>> {
        self.by_slot.get(slot_id).into_iter().flatten()
    }

    /// The memberships that state events stand for.
    pub(super) fn in_state(&self) -> impl Iterator<Item = &MembershipRecord> {
        self.in_state.values().filter_map(|key| self.records.get(key))
    }

    /// Whose state event stands under a state key.
    pub(super) fn in_state_at(&self, state_key: &str) -> Option<&Arc<Key>> {
        self.in_state.get(state_key)
    }

    /// When the next record is due.
    pub(super) fn next_deadline(&self) -> Option<Deadline> {
        self.deadlines.first().map(|(deadline, _)| *deadline)
    }

    /// Puts a membership in the place of the one before. Returns its key, which is shared.
    pub(super) fn insert(
        &mut self,
        key: impl Into<Arc<Key>>,
        mut new: MembershipRecord,
    ) -> Arc<Key> {
        let key = key.into();
        let key = self.records.get_key_value(&key).map_or(key, |(known, _)| known.clone());
        if let Some(old) = self.records.remove(&key) {
            self.unlist(&key, &old);
            // What stands elsewhere about it is brought up to date when it is shown.
            new.shown = old.shown;
            new.on_device = old.on_device;
            new.superseded_by = old.superseded_by;
        }
        if let Some(slot_id) = &new.reading.slot_id {
            self.by_slot.entry(slot_id.clone()).or_default().insert(key.clone());
        }
        if let Some(ends) = new.ends {
            new.noted = Some(ends);
            self.deadlines.insert((ends, key.clone()));
        }
        self.records.insert(key.clone(), new);
        key
    }

    /// Ends a membership. A former member stays listed for a while.
    pub(super) fn end(&mut self, now: Moment, key: &Arc<Key>, reason: NotJoined) -> Option<Ended> {
        let record = self.records.get_mut(key)?;
        if let Some(noted) = record.noted.take() {
            self.deadlines.remove(&(noted, key.clone()));
        }
        let was_there = matches!(record.reading.says, Says::Join(_));
        let is_kept = was_there && reason.is_told_for_a_while();
        record.ended = Some(reason);
        record.is_forgotten = !is_kept;
        let mut pushed_out = None;
        if is_kept {
            let forget_at = now.deadline(ENDED_KEPT_FOR);
            record.noted = Some(forget_at);
            self.deadlines.insert((forget_at, key.clone()));
            let ended = self.ended.entry(key.sender.clone()).or_default();
            ended.push_back(key.clone());
            if ended.len() > MAX_ENDED_OF_ONE {
                pushed_out = ended.pop_front();
            }
        }
        Some(Ended { pushed_out })
    }

    /// Has nothing more reported of a membership.
    pub(super) fn forget(&mut self, key: &Key) -> bool {
        let record = self.records.get_mut(key);
        record.map(|record| record.is_forgotten = true).is_some()
    }

    /// The next membership that is due: it is over, or forgotten, from now on.
    pub(super) fn poll_due(&mut self, now: Moment) -> Option<Arc<Key>> {
        while let Some((deadline, _)) = self.deadlines.first()
            && deadline.is_over(now)
            && let Some((_, key)) = self.deadlines.pop_first()
        {
            let Some(record) = self.records.get_mut(&key) else { continue };
            record.noted = None;
            match record.ended {
                // In the state it stands on, and says why it does not count.
                None => record.ended = Some(NotJoined::Expired),
                Some(_) => record.is_forgotten = true,
            }
            return Some(key);
        }
        None
    }

    /// Former members, who are all forgotten from now on.
    pub(super) fn forget_ended(&mut self) -> Vec<Arc<Key>> {
        let ended: Vec<_> = self.ended.values().flatten().cloned().collect();
        ended.iter().for_each(|key| _ = self.forget(key));
        ended
    }

    /// The memberships of state events, which are none any more.
    pub(super) fn unlist_all_states(&mut self) -> Vec<Arc<Key>> {
        self.in_state_of.clear();
        self.in_state.drain().map(|(_, key)| key).collect()
    }

    /// Notes whose state event it is now. Returns `false` if they have too many.
    pub(super) fn list_state(&mut self, state_key: String, key: &Arc<Key>) -> bool {
        if self.in_state.contains_key(&state_key) {
            return true;
        }
        let of_one = self.in_state_of.entry(key.sender.clone()).or_default();
        let has_room = *of_one < MAX_IN_STATE_OF_ONE;
        if has_room {
            *of_one += 1;
            self.in_state.insert(state_key, key.clone());
        }
        has_room
    }

    pub(super) fn unlist_state(&mut self, state_key: &str) {
        let Some(key) = self.in_state.remove(state_key) else { return };
        if let Some(of_one) = self.in_state_of.get_mut(&key.sender) {
            *of_one -= 1;
            if *of_one == 0 {
                self.in_state_of.remove(&key.sender);
            }
        }
    }

    /// Notes a redacted event that outranks the membership: an earlier event that comes late does not bring
    /// it back.
    pub(super) fn outlive(&mut self, key: &Key, redacted: &Arc<StickyEvent>) {
        if let Some(record) = self.records.get_mut(key) {
            record.outlived = Some(redacted.clone());
        }
    }

    /// The record, to make its member, and to note how it is shown.
    pub(super) fn show(
        &mut self,
        key: &Key,
        how: impl FnOnce(&mut MembershipRecord) -> Shown,
    ) -> Option<(Shown, Shown)> {
        let record = self.records.get_mut(key)?;
        let now = how(record);
        let before = std::mem::replace(&mut record.shown, now.clone());
        Some((before, now))
    }

    /// Puts a membership among those of its device, or takes it out. Returns those that another membership
    /// may supersede now: [`choose`](Self::choose) decides.
    pub(super) fn regroup(&mut self, key: &Arc<Key>, on_device: Option<OnDevice>) -> Vec<Arc<Key>> {
        let Some(record) = self.records.get_mut(key) else { return Vec::new() };
        if record.on_device == on_device {
            return Vec::new();
        }
        let before = std::mem::replace(&mut record.on_device, on_device.clone());
        if on_device.is_none() {
            record.superseded_by = None;
        }
        let mut dirty = Vec::new();
        if let Some(before) = before {
            let place = (before, key.clone());
            self.by_device.remove(&place);
            dirty.extend(self.earlier(&place).cloned());
        }
        if let Some(on_device) = on_device {
            let place = (on_device, key.clone());
            dirty.extend(self.earlier(&place).cloned());
            dirty.push(key.clone());
            self.by_device.insert(place);
        }
        dirty
    }

    /// Finds which membership of the same device supersedes this one. Returns whether that is another one
    /// than before.
    ///
    /// Of the memberships of one device the one that was sent last counts, by what the event itself says, so
    /// that everybody chooses the same one. Each of the others gives way to the next, so that one more changes
    /// nothing for those before.
    pub(super) fn choose(&mut self, key: &Key) -> bool {
        let superseded_by = match self.records.get_key_value(key) {
            Some((key, MembershipRecord { on_device: Some(on_device), .. })) => {
                let next = self.later(&(on_device.clone(), key.clone()));
                let next = next.and_then(|next| self.records.get(next));
                next.and_then(|next| next.reading.member_id.clone())
            }
            _ => return false,
        };
        let Some(record) = self.records.get_mut(key) else { return false };
        let is_new = record.superseded_by != superseded_by;
        record.superseded_by = superseded_by;
        is_new
    }

    /// Lets go of a record that is forgotten. Returns whether it was.
    pub(super) fn remove_forgotten(&mut self, key: &Arc<Key>) -> bool {
        if !self.records.get(key).is_some_and(|record| record.is_forgotten) {
            return false;
        }
        let record = self.records.remove(key);
        record.map(|record| self.unlist(key, &record)).is_some()
    }

    /// Takes a record out of where it is found by its slot, its deadline and its end.
    fn unlist(&mut self, key: &Arc<Key>, record: &MembershipRecord) {
        if let Some(noted) = record.noted {
            self.deadlines.remove(&(noted, key.clone()));
        }
        if let Some(slot_id) = &record.reading.slot_id
            && let Some(keys) = self.by_slot.get_mut(slot_id)
        {
            keys.remove(key);
            if keys.is_empty() {
                self.by_slot.remove(slot_id);
            }
        }
        if record.ended.is_some()
            && let Some(ended) = self.ended.get_mut(&key.sender)
        {
            ended.retain(|it| it != key);
            if ended.is_empty() {
                self.ended.remove(&key.sender);
            }
        }
    }

    /// The membership of the same device that was sent before.
    fn earlier(&self, place: &(OnDevice, Arc<Key>)) -> Option<&Arc<Key>> {
        let (earlier, key) = self.by_device.range(..place).next_back()?;
        earlier.is_with(&place.0).then_some(key)
    }

    /// The membership of the same device that was sent next.
    fn later(&self, place: &(OnDevice, Arc<Key>)) -> Option<&Arc<Key>> {
        let after = (Bound::Excluded(place), Bound::Unbounded);
        let (later, key) = self.by_device.range(after).next()?;
        later.is_with(&place.0).then_some(key)
    }
}

#[cfg(test)]
impl Memberships {
    pub(super) fn records(&self) -> impl Iterator<Item = (&Arc<Key>, &MembershipRecord)> {
        self.records.iter()
    }

    /// The invariant of this file, as code.
    pub(super) fn assert_consistent(&self) {
        let mut by_slot = BTreeSet::new();
        let mut by_device = BTreeSet::new();
        let mut ended = BTreeSet::new();
        let mut deadlines = BTreeSet::new();
        let mut in_state = BTreeSet::new();
        for (key, record) in &self.records {
            assert!(!record.is_forgotten, "forgotten, and there: {key:?}");
            by_slot.extend(record.reading.slot_id.clone().map(|it| (it, key.clone())));
            by_device.extend(record.on_device.clone().map(|it| (it, key.clone())));
            deadlines.extend(record.noted.map(|noted| (noted, key.clone())));
            if record.ended.is_some() && record.noted.is_some() {
                ended.insert(key.clone());
            } else if matches!(key.place, crate::rtc::member::MembershipPlace::State(_)) {
                in_state.insert(key.clone());
            }
        }
        let listed = self.by_slot.iter().flat_map(|(slot_id, keys)| {
            assert!(!keys.is_empty());
            keys.iter().map(|key| (slot_id.clone(), key.clone()))
        });
        assert_eq!(listed.collect::<BTreeSet<_>>(), by_slot);
        assert_eq!(self.by_device, by_device);
        for place in &self.by_device {
            let next = self.later(place).map(|next| &self.records[next]);
            let superseded_by = next.and_then(|next| next.reading.member_id.clone());
            assert_eq!(self.records[&place.1].superseded_by, superseded_by);
        }
        assert!(self.ended.values().all(|of_one| (1..=MAX_ENDED_OF_ONE).contains(&of_one.len())));
        assert_eq!(self.ended.values().map(VecDeque::len).sum::<usize>(), ended.len());
        assert_eq!(self.ended.values().flatten().cloned().collect::<BTreeSet<_>>(), ended);
        assert_eq!(self.deadlines, deadlines);
        assert_eq!(self.in_state.values().cloned().collect::<BTreeSet<_>>(), in_state);
        let mut of_each = HashMap::new();
        in_state.iter().for_each(|key| *of_each.entry(key.sender.clone()).or_default() += 1);
        assert_eq!(self.in_state_of, of_each);
    }
}
