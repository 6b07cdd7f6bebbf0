//! A bounded memory of events that must not come back: redacted before they came, or ended.
//!
//! In: hashes of event ids, each with the moment to forget it. Out: whether one is remembered.
//!
//! Why not simply keep the ids? A keyed 64-bit hash is shorter. The chance of a wrong result is 1,000
//! in 2^64, and nobody can aim for one without the key.

use std::collections::VecDeque;

use hashbrown::{HashTable, hash_table::Entry};

use crate::time::{Deadline, Moment};

#[derive(Debug)]
pub(super) struct Recent {
    most: usize,
    /// When to forget each hash, the next one first.
    order: VecDeque<(Deadline, u64)>,
    /// The hashes; each one is its own hash in the table.
    ids: HashTable<u64>,
}

impl Recent {
    /// Makes a memory of at most the newest `most`.
    pub(super) fn new(most: usize) -> Self {
        Self { most, order: VecDeque::new(), ids: HashTable::new() }
    }

    /// Remembers a hash. Returns whether it was not remembered yet.
    pub(super) fn remember(&mut self, id: u64, until: Deadline) -> bool {
        match self.ids.entry(id, |known| *known == id, |known| *known) {
            Entry::Occupied(_) => return false,
            Entry::Vacant(vacant) => drop(vacant.insert(id)),
        }
        // What was received first can come second. The list stays in order all the same: otherwise
        // one that is over could stand behind one that is not, and the map would wake up for it again
        // and again.
        let until = self.order.back().map_or(until, |(last, _)| until.max(*last));
        self.order.push_back((until, id));
        if self.order.len() > self.most
            && let Some((_, oldest)) = self.order.pop_front()
        {
            self.forget(oldest);
        }
        true
    }

    /// Returns whether it remembers as many as it can.
    pub(super) fn is_full(&self) -> bool {
        self.order.len() >= self.most
    }

    pub(super) fn contains(&self, id: u64) -> bool {
        self.ids.find(id, |known| *known == id).is_some()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.ids.is_empty()
    }

    /// Returns when all of it can be forgotten. Why not when the first one can? Nobody needs to wake
    /// up for one.
    pub(super) fn last_deadline(&self) -> Option<Deadline> {
        self.order.back().map(|(until, _)| *until)
    }

    pub(super) fn purge(&mut self, now: Moment) {
        while let Some((until, id)) = self.order.front().copied()
            && until.is_over(now)
        {
            self.forget(id);
            self.order.pop_front();
        }
        if self.ids.is_empty() && self.ids.capacity() > 0 {
            *self = Self::new(self.most);
        }
    }

    fn forget(&mut self, id: u64) {
        if let Ok(entry) = self.ids.find_entry(id, |known| *known == id) {
            entry.remove();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{secs, start};

    #[test]
    fn what_is_remembered_twice_takes_one_place() {
        let mut recent = Recent::new(2);
        for id in [1, 1, 2, 1] {
            recent.remember(id, start().deadline(secs(9)));
        }
        assert!(recent.contains(1) && recent.contains(2));
        recent.remember(3, start().deadline(secs(9)));
        assert!(!recent.contains(1) && recent.contains(2) && recent.contains(3));
        assert_eq!((recent.ids.len(), recent.order.len()), (2, 2));
    }

    #[test]
    fn forgetting_all_gives_the_memory_back() {
        let mut recent = Recent::new(1_000);
        for id in 0..1_000 {
            recent.remember(id, start().deadline(secs(id / 500)));
        }
        recent.purge(start());
        assert!(!recent.contains(499) && recent.contains(500) && recent.ids.capacity() > 0);
        recent.purge(start().advanced(secs(1)));
        assert_eq!((recent.ids.capacity(), recent.order.capacity()), (0, 0));
        recent.remember(1, start().deadline(secs(9)));
        assert!(recent.contains(1));
    }
}
