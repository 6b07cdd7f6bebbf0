//! Memberships: what the roster knows of each, and how it was shown last.

use std::sync::Arc;

use ruma::{OwnedEventId, OwnedUserId};

use crate::{
    event::{Encryption, StickyEvent, Verification},
    rtc::{
        content::{Reading, Says},
        member::{
            Candidate, Inner, Key, KnownBy, Member, MemberDevice, MembershipPlace, NotJoined,
        },
    },
    time::Deadline,
    wire::names,
};

/// What is known of one membership.
#[derive(Debug)]
pub(super) struct MembershipRecord {
    pub(super) reading: Reading,
    pub(super) device: Option<MemberDevice>,
    pub(super) is_encrypted: bool,
    pub(super) event_id: OwnedEventId,
    pub(super) event: Option<Arc<StickyEvent>>,
    pub(super) origin_server_ts_ms: u64,
    pub(super) since_ms: u64,
    /// When the membership is over, if no ephemeral map says so.
    pub(super) ends: Option<Deadline>,
    /// A later event of the same key, which has been redacted.
    pub(super) outlived: Option<Arc<StickyEvent>>,
    /// Why the event is not there any more. The index writes this.
    pub(super) ended: Option<NotJoined>,
    /// Whether nothing more is reported of it. The index writes this.
    pub(super) is_forgotten: bool,
    /// The record's deadline in the index, which writes this.
    pub(super) noted: Option<Deadline>,
    /// The record's place among those of its device. The index writes this.
    pub(super) on_device: Option<OnDevice>,
    /// The member of the same device that counts instead. The index writes this.
    pub(super) superseded_by: Option<String>,
    /// Made when the member is first shown.
    pub(super) member: Option<Member>,
    pub(super) shown: Shown,
}

/// How a membership was shown last.
#[derive(Clone, Debug, Default, PartialEq)]
pub(in crate::rtc) enum Shown {
    #[default]
    Not,
    Member(Arc<str>, Member),
    /// In this session, or in none.
    Candidate(Option<Arc<str>>, Candidate),
}

/// A proven device in one session, by one event. In their order those of one device stand together, and the
/// one that was sent last stands last.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct OnDevice {
    pub(super) session: String,
    pub(super) user_id: OwnedUserId,
    pub(super) device_id: String,
    pub(super) sent_ms: u64,
    pub(super) event_id: OwnedEventId,
}

impl OnDevice {
    pub(super) fn is_with(&self, other: &Self) -> bool {
        self.device_id == other.device_id
            && self.user_id == other.user_id
            && self.session == other.session
    }
}

/// A membership of ours that a device of ours sent before we were last out of the room, and that nobody has
/// ended since. Other clients may show it.
#[cfg(feature = "client")]
#[derive(Debug)]
pub(in crate::rtc) struct Leftover {
    pub(in crate::rtc) event_id: OwnedEventId,
    pub(in crate::rtc) event_type: &'static str,
    pub(in crate::rtc) slot_id: String,
    pub(in crate::rtc) member_id: String,
}

impl MembershipRecord {
    /// A record of a plaintext membership that has not been shown, and that ends only when somebody says so.
    pub(super) fn new(
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
    pub(super) fn goes_on_in(&self, next: &Reading) -> bool {
        self.ended.is_none()
            && matches!((&self.reading.says, &next.says), (Says::Join(_), Says::Join(_)))
            && self.reading.member_id == next.member_id
            && self.reading.slot_id == next.slot_id
    }

    pub(super) fn member(&mut self, key: &Arc<Key>) -> Option<Member> {
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

    pub(super) fn candidate(&self, key: &Arc<Key>, reason: NotJoined) -> Candidate {
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

    /// The membership as one that a device of ours has left behind, if it still stands.
    #[cfg(feature = "client")]
    pub(super) fn leftover(&self, key: &Key, device_id: &ruma::DeviceId) -> Option<Leftover> {
        let MembershipPlace::Keyed { stable, .. } = key.place else { return None };
        let is_ours = self.device.as_ref().is_some_and(|device| device.device_id == device_id);
        let is_join = matches!(self.reading.says, Says::Join(_));
        let stands = is_join && self.ended.is_none() && self.outlived.is_none();
        let [stable_type, unstable_type] = names::RTC_MEMBER;
        (is_ours && stands).then_some(Leftover {
            event_id: self.event_id.clone(),
            event_type: if stable { stable_type } else { unstable_type },
            slot_id: self.reading.slot_id.clone()?,
            member_id: self.reading.member_id.clone()?,
        })
    }
}

/// Whose membership an event is. `None` for events of other types.
pub(super) fn key_of(event: &StickyEvent) -> Option<Key> {
    let spelling = names::RTC_MEMBER.iter().position(|name| *name == event.event_type())?;
    let place = match event.sticky_key() {
        Some(key) => MembershipPlace::Keyed { sticky_key: key.to_owned(), stable: spelling == 0 },
        None => MembershipPlace::Unkeyed(event.event_id().to_owned()),
    };
    Some(Key { sender: event.sender().to_owned(), place })
}

/// Which device a membership is of.
///
/// # Errors
///
/// The device that encrypted it, if the membership names another.
pub(super) fn device_of(
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
