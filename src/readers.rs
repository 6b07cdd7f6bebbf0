//! Readers: a set of devices, to tell who could not read an event that others could.
//!
//! In: who is in a room, and the devices of each. Out: whether one set has everybody of another. What
//! never happens here: a request, a read of a store; a name or a key of a device is kept nowhere.

#![cfg_attr(not(feature = "e2e-encryption"), allow(dead_code, reason = "nobody is left out"))]

use std::{
    collections::BTreeSet,
    fmt,
    hash::{BuildHasher as _, Hash, RandomState},
    sync::{Arc, LazyLock},
};

use ruma::{DeviceId, OwnedUserId, UserId};

/// Devices that an event is encrypted for, or that hold its room key. Our own is never among them.
///
/// Cheap to clone. A device takes 16 bytes: a hash of its user's id, and one of its id and its Curve25519
/// key. A member without a device takes as much, so that news of a first device is known to concern the
/// room.
///
/// Why are hashes enough? A newcomer would have to agree with a device that is here in both of them. The
/// hashes are keyed with random numbers of this process, so nobody can search for such a device. By
/// chance the second device of a user agrees with the first once in 10^19 times, and a new user with any
/// of a million devices less often still. Even then the newcomer only waits for the next refresh.
#[derive(Clone, Default)]
pub(crate) struct Readers(Arc<[Reader]>);

/// A hash of the user's id, and one of the device; [`NO_DEVICE`] for a member who has none.
type Reader = (u64, u64);

const NO_DEVICE: u64 = 0;

/// What may have changed the readers of a room.
#[derive(Debug, Default)]
pub(crate) struct News {
    /// Somebody has joined or left, was invited, or the room's history has become visible to others.
    pub(crate) members: bool,
    /// Whose devices or identity have changed, in this room or elsewhere.
    pub(crate) users: BTreeSet<OwnedUserId>,
    /// Some news were missed: nothing that was known holds.
    pub(crate) missed: bool,
}

impl Readers {
    /// Whether nobody in `now` is missing here. Whoever is here and not in `now` makes no difference.
    pub(crate) fn covers(&self, now: &Self) -> bool {
        now.devices().all(|device| self.has(device))
    }

    /// Whether nobody is here, with or without a device.
    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// How many devices these are.
    pub(crate) fn len(&self) -> usize {
        self.devices().count()
    }

    /// The devices that are here, or in `others`, or both.
    pub(crate) fn with(&self, others: &Self) -> Self {
        self.0.iter().chain(&*others.0).copied().collect()
    }

    /// The devices that are here and not in `others`.
    pub(crate) fn without(&self, others: &Self) -> Self {
        self.devices().filter(|device| !others.has(device)).copied().collect()
    }

    /// What is here and in `others` too.
    pub(crate) fn within(&self, others: &Self) -> Self {
        self.0.iter().filter(|reader| others.has(reader)).copied().collect()
    }

    /// Whether a device that is here is in `others` too.
    pub(crate) fn has_any_of(&self, others: &Self) -> bool {
        self.devices().any(|device| others.has(device))
    }

    pub(crate) fn has(&self, device: &Reader) -> bool {
        self.0.binary_search(device).is_ok()
    }

    /// Whether this user is in the room whose readers these are, with or without a device.
    pub(crate) fn has_member(&self, user_id: &UserId) -> bool {
        !self.of_hash(hash(user_id)).is_empty()
    }

    /// What is here of this user.
    pub(crate) fn of(&self, user_id: &UserId) -> impl Iterator<Item = Reader> + use<'_> {
        self.of_hash(hash(user_id)).iter().copied()
    }

    /// What is here of everybody else than these users.
    pub(crate) fn of_others(
        &self,
        users: &[OwnedUserId],
    ) -> impl Iterator<Item = Reader> + use<'_> {
        let users: BTreeSet<_> = users.iter().map(|user| hash(&**user)).collect();
        self.0.iter().filter(move |(user, _)| !users.contains(user)).copied()
    }

    fn of_hash(&self, user: u64) -> &[Reader] {
        let start = self.0.partition_point(|(other, _)| *other < user);
        let end = self.0.partition_point(|(other, _)| *other <= user);
        self.0.get(start..end).unwrap_or_default()
    }

    fn devices(&self) -> impl Iterator<Item = &Reader> {
        self.0.iter().filter(|(_, device)| *device != NO_DEVICE)
    }
}

impl FromIterator<Reader> for Readers {
    fn from_iter<I: IntoIterator<Item = Reader>>(readers: I) -> Self {
        let mut readers: Vec<_> = readers.into_iter().collect();
        readers.sort_unstable();
        readers.dedup();
        Self(readers.into())
    }
}

/// Says how many there are.
impl fmt::Debug for Readers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Readers({})", self.len())
    }
}

/// A member of the room, who may have devices besides.
pub(crate) fn member(user_id: &UserId) -> Reader {
    (hash(user_id), NO_DEVICE)
}

/// A device of a user.
pub(crate) fn device(user_id: &UserId, id: &DeviceId, key: &[u8; 32]) -> Reader {
    (hash(user_id), hash((id, key)).max(NO_DEVICE + 1))
}

fn hash(value: impl Hash) -> u64 {
    static KEYS: LazyLock<RandomState> = LazyLock::new(RandomState::new);
    KEYS.hash_one(value)
}

#[cfg(test)]
mod tests {
    use ruma::{device_id, user_id};

    use super::*;

    fn key(byte: u8) -> [u8; 32] {
        [byte; 32]
    }

    fn of(devices: &[(&str, &str, u8)]) -> Readers {
        let devices = devices.iter().map(|(user, id, byte)| {
            let user = <&UserId>::try_from(*user).unwrap();
            [member(user), device(user, (*id).into(), &key(*byte))]
        });
        devices.flatten().collect()
    }

    #[test]
    fn a_set_covers_what_has_nobody_new() {
        let two = of(&[("@a:hs", "A", 1), ("@b:hs", "B", 2)]);
        let one = of(&[("@b:hs", "B", 2)]);
        assert!(two.covers(&two) && two.covers(&one) && two.covers(&Readers::default()));
        assert!(!one.covers(&two) && !Readers::default().covers(&one));
    }

    #[test]
    fn user_id_device_id_and_key_all_count() {
        let one = of(&[("@a:hs", "A", 1)]);
        for other in [("@b:hs", "A", 1), ("@a:hs", "B", 1), ("@a:hs", "A", 2)] {
            assert!(!one.covers(&of(&[other])), "{other:?}");
        }
    }

    #[test]
    fn a_member_without_a_device_reads_nothing() {
        let alone: Readers = [member(user_id!("@a:hs"))].into_iter().collect();
        assert!(alone.has_member(user_id!("@a:hs")));
        assert!(Readers::default().covers(&alone));
        assert_eq!(alone.len(), 0);
    }

    #[test]
    fn sets_are_joined_and_taken_apart() {
        let (a, b) = (of(&[("@a:hs", "A", 1)]), of(&[("@b:hs", "B", 2)]));
        let both = a.with(&b);
        assert_eq!(both.len(), 2);
        assert!(both.covers(&a) && both.covers(&b));
        let rest = both.without(&a);
        assert_eq!(rest.len(), 1);
        assert!(rest.covers(&b) && !rest.covers(&a));
    }

    #[test]
    fn what_is_printed_names_nobody() {
        let device = device(user_id!("@a:hs"), device_id!("A"), &key(1));
        assert_eq!(format!("{:?}", Readers::from_iter([device])), "Readers(1)");
    }
}
