//! A bounded memory of events that must not come back: redacted before they came, or ended.
//!
//! In: hashes of event ids, each with when to forget it. Out: whether one is remembered. It keeps
//! keyed 64-bit hashes and not the ids: a wrong answer has a chance of 1,000 in 2^64, and who does
//! not know the key cannot aim for one.

use std::collections::VecDeque;

use hashbrown::{HashTable, hash_table::Entry};

use crate::time::{Deadline, Moment};

#[derive(Debug)]
pub(super) struct Recent {
    most: usize,
    /// When to forget each, the next first.
    order: VecDeque<(Deadline, u64)>,
    /// Each is its own hash.
    ids: HashTable<u64>,
}

impl Recent {
    /// Remembers at most the newest `most`.
    pub(super) fn new(most: usize) -> Self {
        Self { most, order: VecDeque::new(), ids: HashTable::new() }
    }

    /// Remembers one; whether it was not remembered yet.
    pub(super) fn remember(&mut self, id: u64, until: Deadline) -> bool {
        match self.ids.entry(id, |known| *known == id, |known| *known) {
            Entry::Occupied(_) => return false,
            Entry::Vacant(vacant) => drop(vacant.insert(id)),
        }
        // What was received first can come second. In order all the same: else what is over could
        // stand behind what is not, and would be waited for again and again.
        let until = self.order.back().map_or(until, |(last, _)| until.max(*last));
        self.order.push_back((until, id));
        if self.order.len() > self.most
            && let Some((_, oldest)) = self.order.pop_front()
        {
            self.forget(oldest);
        }
        true
    }

    /// Whether it remembers as many as it can.
    pub(super) fn is_full(&self) -> bool {
        self.order.len() >= self.most
    }

    pub(super) fn contains(&self, id: u64) -> bool {
        self.ids.find(id, |known| *known == id).is_some()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.ids.is_empty()
    }

    /// When all of this can be forgotten. Not when the first can: nobody needs to wake up for one.
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
