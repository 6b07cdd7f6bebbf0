//! What a client's store keeps of heartbeats: the leaves that are armed, or may be, and whose
//! heartbeats they are.
//!
//! In: a leave that is about to be armed; that it cannot fire any more. Out: what an earlier process
//! has left. Both stand in custom values of matrix-sdk's state store, written before the request goes
//! out, so that the next process can find, after a crash at any moment, what may still fire.
//!
//! A store has one owner, which is a client: two would retire each other's leaves. How a client knows
//! that the one before it is gone:
//!
//! - **The folder is known** ([`BaseClientBuilder::sqlite`](crate::BaseClientBuilder::sqlite)): by the
//!   system's lock on a file in it. The lock ends with its process, whatever the clocks say, it counts
//!   across containers, and between two clients of one process. Not on iOS, which kills an application
//!   that holds a lock while it is suspended.
//! - **In one process**: by a list of those that own a store now.
//! - **In one container**: by the process's number and start, as far as the system tells them.
//! - **After the machine has restarted**: by the name of that run of the machine.
//! - **Else** (another container, a system that tells nothing): by a lease in the store, which its owner
//!   renews every 20 s and which counts for 60 s. It counts on the clock since boot where both have the
//!   same, else on the wall clock; one that would count for longer is from before the clock was set back,
//!   and does not count.
//!
//! Without a lock two processes that start within the same few milliseconds may both come to own a store.
//! Each finds out when it next renews, and warns.

use std::{
    collections::HashSet,
    fs::File,
    path::PathBuf,
    sync::{Arc, LazyLock, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use matrix_sdk::{Client, StoreError};
use ruma::{OwnedRoomId, TransactionId};
use serde::{Deserialize, Serialize};
use tracing::{debug, warn};

use crate::{
    delayed::PreparedEvent,
    driver::{Machine, is_gone, lock_file, process_started, random_seed},
    time::{Deadline, Moment, millis},
};

const ARMED: &[u8] = b"matrix-sdk-sticky.heartbeats.armed";
const OWNER: &[u8] = b"matrix-sdk-sticky.heartbeats.owner";

/// The file whose lock says that a store is owned.
const LOCK: &str = "matrix-sdk-sticky.lock";

/// For how long a client owns the store after it last said so, where nothing better tells whether it
/// is still there.
const OWNED: Duration = Duration::from_secs(60);

/// How long after its delay a leave has fired for sure: servers may take 30 s, and clocks differ.
const SLACK: Duration = Duration::from_secs(60);

/// Whose heartbeat it is, in a store: no two of them may beat at once.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub(crate) struct HeartbeatKey {
    pub(super) room_id: OwnedRoomId,
    pub(super) event_type: String,
    pub(super) sticky_key: String,
}

/// A leave that is armed, or may be.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Armed {
    pub(super) key: HeartbeatKey,
    pub(super) leave: PreparedEvent,
    /// When it was last known to be armed, or about to be; earlier versions of this crate did not say.
    #[serde(default)]
    at_unix_ms: Option<u64>,
}

impl Armed {
    /// A leave that is about to be armed.
    pub(super) fn new(key: HeartbeatKey, leave: PreparedEvent, now: Moment) -> Self {
        Self { key, leave, at_unix_ms: Some(now.unix_ms()) }
    }

    /// Whether the server would list it if it could still fire: its arming is not on its way any more.
    pub(super) fn is_over(&self, now: Moment) -> bool {
        let longest = millis(self.leave.delay().saturating_add(SLACK));
        // One of the future is from before the clock was set back.
        self.at_unix_ms.is_none_or(|at| at.abs_diff(now.unix_ms()) > longest)
    }
}

/// The client whose heartbeats they are.
#[derive(Clone, Debug, Serialize, Deserialize)]
struct Owner {
    /// Nobody else's.
    #[serde(default)]
    token: u64,
    process: u32,
    started: Option<u64>,
    #[serde(default)]
    machine: Option<Machine>,
    /// Whether it holds the file's lock.
    #[serde(default)]
    is_locked: bool,
    until_unix_ms: u64,
    #[serde(default)]
    until_boot_ms: u64,
}

impl Owner {
    /// Whether its heartbeats may still beat, as `us` sees it.
    fn lives(
        &self,
        us: &Self,
        now: Moment,
        is_claimed: impl Fn(u64) -> bool,
        is_gone: impl Fn(u32, Option<u64>) -> Option<bool>,
    ) -> bool {
        if self.token == us.token {
            return false;
        }
        if is_claimed(self.token) {
            return true;
        }
        // Else we would not have the lock.
        if self.is_locked && us.is_locked {
            return false;
        }
        if self.machine == us.machine {
            // What it has claimed in this process is over, or its number is ours by now.
            if self.process == us.process {
                return false;
            }
            if let Some(is_gone) = is_gone(self.process, self.started) {
                return !is_gone;
            }
        }
        let boots = self.machine.as_ref().zip(us.machine.as_ref());
        let left = match boots.map(|(theirs, ours)| theirs.boot == ours.boot) {
            Some(true) => Deadline::from_bits(self.until_boot_ms).left(now),
            Some(false) => return false,
            None => Duration::from_millis(self.until_unix_ms.saturating_sub(now.unix_ms())),
        };
        !left.is_zero() && left <= OWNED
    }
}

/// What the heartbeats of one client have in common.
#[derive(Debug)]
pub(super) struct Ours {
    token: u64,
    /// One reads and writes at a time.
    turn: tokio::sync::Mutex<()>,
    claim: Mutex<Option<Claim>>,
}

impl Default for Ours {
    fn default() -> Self {
        Self { token: random_seed(), turn: Default::default(), claim: Default::default() }
    }
}

impl Ours {
    /// The store is nobody's, as no heartbeat beats any more.
    pub(super) fn release(&self) {
        lock(&self.claim).take();
    }
}

/// Shows that a client owns its store, for as long as this is.
#[derive(Debug)]
struct Claim {
    token: u64,
    lock: Option<File>,
}

impl Claim {
    fn new(token: u64, lock: Option<File>) -> Self {
        claimed().insert(token);
        Self { token, lock }
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        claimed().remove(&self.token);
    }
}

/// Who owns a store in this process.
fn claimed() -> MutexGuard<'static, HashSet<u64>> {
    static CLAIMED: LazyLock<Mutex<HashSet<u64>>> = LazyLock::new(Mutex::default);
    lock(&CLAIMED)
}

/// Held while a store is claimed, so that of two clients of this process that do so at once one sees
/// what the other has written.
static CLAIMING: tokio::sync::Mutex<()> = tokio::sync::Mutex::const_new(());

/// What heartbeats keep in a client's store.
#[derive(Clone, Debug)]
pub(super) struct Store {
    client: Client,
    ours: Arc<Ours>,
}

impl Store {
    pub(super) fn new(client: Client, ours: Arc<Ours>) -> Self {
        Self { client, ours }
    }

    /// All that may still be armed.
    pub(super) async fn armed(&self) -> Result<Vec<Armed>, StoreError> {
        let _turn = self.ours.turn.lock().await;
        self.read().await
    }

    pub(super) async fn add(&self, armed: Armed) -> Result<(), StoreError> {
        let _turn = self.ours.turn.lock().await;
        let mut all = self.read().await?;
        all.push(armed);
        self.write(&all).await
    }

    pub(super) async fn remove(&self, transaction_id: &TransactionId) -> Result<(), StoreError> {
        let _turn = self.ours.turn.lock().await;
        let mut all = self.read().await?;
        all.retain(|armed| armed.leave.transaction_id() != transaction_id);
        self.write(&all).await
    }

    /// Says that this client's heartbeats beat, for the next minute; `false` while another's do.
    pub(super) async fn own(&self, now: Moment) -> Result<bool, StoreError> {
        let _turn = self.ours.turn.lock().await;
        let is_claimed = lock(&self.ours.claim).is_some();
        if is_claimed {
            return self.write_owner(now).await;
        }
        let _claiming = CLAIMING.lock().await;
        let lock_of_file = match self.folder().map(|folder| lock_file(&folder.join(LOCK))) {
            Some(Ok(None)) => return Ok(false),
            Some(Ok(lock)) => lock,
            Some(Err(error)) => {
                debug!(%error, "the store's folder has no lock");
                None
            }
            None => None,
        };
        *lock(&self.ours.claim) = Some(Claim::new(self.ours.token, lock_of_file));
        let claimed = async {
            let before = self.owner().await?;
            let is_owned = self.write_owner(now).await?;
            if is_owned && let Some(before) = before {
                self.note_alive(before.until_unix_ms.saturating_sub(millis(OWNED))).await?;
            }
            Ok(is_owned)
        };
        let is_owned = claimed.await;
        if !matches!(is_owned, Ok(true)) {
            self.ours.release();
        }
        is_owned
    }

    /// The owner before us was there at this time, and has restarted until then what it had armed.
    async fn note_alive(&self, unix_ms: u64) -> Result<(), StoreError> {
        let mut all = self.read().await?;
        let outdated =
            all.iter_mut().filter(|armed| armed.at_unix_ms.is_some_and(|at| at < unix_ms));
        let outdated: Vec<_> = outdated.map(|armed| armed.at_unix_ms = Some(unix_ms)).collect();
        if outdated.is_empty() {
            return Ok(());
        }
        self.write(&all).await
    }

    async fn write_owner(&self, now: Moment) -> Result<bool, StoreError> {
        let process = std::process::id();
        let until = now.advanced(OWNED);
        let us = Owner {
            token: self.ours.token,
            process,
            started: process_started(process),
            machine: Machine::this(),
            is_locked: lock(&self.ours.claim).as_ref().is_some_and(|claim| claim.lock.is_some()),
            until_unix_ms: until.unix_ms(),
            until_boot_ms: now.deadline(OWNED).to_bits(),
        };
        let owner = self.owner().await?;
        let is_claimed = |token| claimed().contains(&token);
        if owner.is_some_and(|owner| owner.lives(&us, now, is_claimed, is_gone)) {
            return Ok(false);
        }
        let us = serde_json::to_vec(&us)?;
        self.client.state_store().set_custom_value_no_read(OWNER, us).await?;
        Ok(true)
    }

    /// Says that this client's heartbeats beat no more, if that is still so when it is its turn to say
    /// it.
    pub(super) async fn disown(&self, is_idle: impl Fn() -> bool) {
        let _turn = self.ours.turn.lock().await;
        if !is_idle() {
            return;
        }
        let disowned = async {
            let is_ours = self.owner().await?.is_some_and(|owner| owner.token == self.ours.token);
            if is_ours {
                self.client.state_store().remove_custom_value(OWNER).await?;
            }
            Ok::<_, StoreError>(())
        };
        if let Err(error) = disowned.await {
            warn!(%error, "the store does not take that no heartbeat beats any more");
        }
        if is_idle() {
            self.ours.release();
        }
    }

    async fn owner(&self) -> Result<Option<Owner>, StoreError> {
        let owner = self.client.state_store().get_custom_value(OWNER).await?;
        // What nobody can read is nobody's.
        Ok(owner.and_then(|owner| serde_json::from_slice(&owner).ok()))
    }

    /// The folder whose lock tells whether the store is owned.
    fn folder(&self) -> Option<PathBuf> {
        #[cfg(all(feature = "e2e-encryption", not(target_os = "ios")))]
        return crate::encrypt::store_folder(&self.client);
        #[cfg(not(all(feature = "e2e-encryption", not(target_os = "ios"))))]
        None
    }

    async fn read(&self) -> Result<Vec<Armed>, StoreError> {
        let Some(value) = self.client.state_store().get_custom_value(ARMED).await? else {
            return Ok(Vec::new());
        };
        // What nobody can read must not keep anybody from beating; and it fires by itself.
        Ok(serde_json::from_slice(&value).unwrap_or_else(|error| {
            warn!(%error, "what the store has of heartbeats cannot be read, and is given up");
            Vec::new()
        }))
    }

    async fn write(&self, armed: &[Armed]) -> Result<(), StoreError> {
        let store = self.client.state_store();
        if armed.is_empty() {
            store.remove_custom_value(ARMED).await?;
            return Ok(());
        }
        store.set_custom_value_no_read(ARMED, serde_json::to_vec(armed)?).await
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    const BOOT: Duration = Duration::from_secs(1_000);
    const UNIX: Duration = Duration::from_secs(1_700_000_000);

    fn now() -> Moment {
        Moment::new(BOOT, UNIX)
    }

    fn machine(boot: &str, processes: &str) -> Option<Machine> {
        let machine = serde_json::json!({ "boot": boot, "processes": processes });
        Some(serde_json::from_value(machine).unwrap())
    }

    /// Who has just said that it owns a store.
    fn owner(token: u64, process: u32, machine: Option<Machine>) -> Owner {
        Owner {
            token,
            process,
            started: machine.is_some().then_some(7),
            machine,
            is_locked: false,
            until_unix_ms: now().advanced(OWNED).unix_ms(),
            until_boot_ms: now().deadline(OWNED).to_bits(),
        }
    }

    /// Whether the owner lives, where nobody in this process does, and the system tells that.
    fn lives(owner: &Owner, us: &Owner, is_gone: Option<bool>) -> bool {
        let is_gone = |_, started: Option<u64>| started.and(is_gone);
        owner.lives(us, now(), |_| false, is_gone)
    }

    #[test]
    fn a_client_is_not_in_its_own_way() {
        let us = owner(1, 10, machine("a", "x"));
        assert!(!us.lives(&us, now(), |_| true, |_, _| Some(false)));
    }

    #[test]
    fn another_client_of_this_process_lives_while_it_claims() {
        for place in [None, machine("a", "x")] {
            let (us, other) = (owner(1, 10, place.clone()), owner(2, 10, place));
            assert!(other.lives(&us, now(), |token| token == 2, |_, _| None));
            assert!(!other.lives(&us, now(), |_| false, |_, _| None), "its number is ours by now");
        }
    }

    #[test]
    fn a_process_lives_until_the_system_says_otherwise() {
        let place = || machine("a", "x");
        let (us, mut other) = (owner(1, 10, place()), owner(2, 11, place()));
        assert!(!lives(&other, &us, Some(true)), "dead, or its number is another's");
        // It may sleep.
        (other.until_unix_ms, other.until_boot_ms) = (0, 0);
        assert!(lives(&other, &us, Some(false)));
    }

    #[test]
    fn whoever_held_the_lock_that_we_hold_is_gone() {
        let (mut us, mut other) =
            (owner(1, 10, machine("a", "x")), owner(2, 11, machine("a", "y")));
        us.is_locked = true;
        assert!(lives(&other, &us, None), "it knows no lock");
        other.is_locked = true;
        assert!(!lives(&other, &us, None));
        us.is_locked = false;
        assert!(lives(&other, &us, None), "we know no lock");
    }

    #[test]
    fn nobody_lives_on_after_the_machine_has_restarted() {
        let (us, other) = (owner(1, 10, machine("b", "x")), owner(2, 11, machine("a", "x")));
        assert!(!lives(&other, &us, Some(false)));
    }

    #[test]
    fn in_another_container_the_boot_clock_counts() {
        let (us, mut other) = (owner(1, 10, machine("a", "x")), owner(2, 10, machine("a", "y")));
        // Whatever the wall clock says.
        for until_unix_ms in [0, now().unix_ms(), u64::MAX] {
            other.until_unix_ms = until_unix_ms;
            other.until_boot_ms = now().deadline(OWNED).to_bits();
            assert!(lives(&other, &us, Some(true)), "its number is not ours to look up");
            other.until_boot_ms = now().deadline(Duration::ZERO).to_bits();
            assert!(!lives(&other, &us, Some(true)));
        }
    }

    #[test]
    fn where_nothing_is_told_a_plausible_lease_counts() {
        let (us, mut other) = (owner(1, 10, None), owner(2, 11, None));
        assert!(lives(&other, &us, None));
        let year = Duration::from_secs(365 * 24 * 3_600);
        for (until, expected) in [
            (Duration::ZERO, false),
            (Duration::from_millis(1), true),
            (OWNED, true),
            (OWNED + Duration::from_millis(1), false),
            // The clock was a year ahead.
            (year, false),
        ] {
            other.until_unix_ms = now().advanced(until).unix_ms();
            assert_eq!(lives(&other, &us, None), expected, "{until:?}");
        }
    }

    #[test]
    fn an_owner_of_an_earlier_version_is_read() {
        let said = r#"{"process":11,"started":7,"until_unix_ms":0}"#;
        let other: Owner = serde_json::from_str(said).unwrap();
        assert!(!lives(&other, &owner(1, 10, machine("a", "x")), Some(false)), "its lease is over");
    }

    #[tokio::test]
    async fn a_client_takes_back_only_its_own_word() {
        let client = Client::builder().homeserver_url("http://localhost").build().await.unwrap();
        let [first, second] = [(); 2].map(|()| Store::new(client.clone(), Arc::default()));
        assert!(first.own(now()).await.unwrap());
        assert!(!second.own(now()).await.unwrap());
        first.ours.release();
        assert!(second.own(now()).await.unwrap());
        first.disown(|| true).await;
        assert_eq!(second.owner().await.unwrap().unwrap().token, second.ours.token);
        second.disown(|| false).await;
        assert!(second.owner().await.unwrap().is_some(), "it beats again");
        second.disown(|| true).await;
        assert!(first.owner().await.unwrap().is_none());
        assert!(first.own(now()).await.unwrap());
    }
}
