//! Retire: what earlier processes, or live heartbeats at a logout, have left armed is fired.
//!
//! In: the leaves that are armed, or may be. Out: requests. Never: firing what a live heartbeat holds.

use std::time::Duration;

use tracing::{debug, warn};

use super::{
    HeartbeatTiming,
    registry::{Registry, lock},
    request::Wish,
    store::{Armed, Store},
};
use crate::{
    context::ClientContext,
    delayed::{DelayId, DelayedError, DelayedEvents, PreparedEvent, ScheduledEvent},
    driver::before,
};

/// How long a logout may take beyond the longest delay. What earlier processes have armed and is not
/// fired by then fires by itself.
const RETIRING: Duration = Duration::from_secs(20);

/// Fires what earlier processes have left armed: their members are not there any more, and nobody else
/// would say so before the leaves fire by themselves. Not before the longest time that a request of
/// theirs may still be under way: a join that arrives after its leave would outlive it.
pub(super) async fn retire(client: &ClientContext, store: &Store, armed: Vec<Armed>) {
    let (timer, events, registry) =
        (&client.timer, client.delayed_events(), client.extension::<Registry>());
    let Some(longest) = armed.iter().map(|armed| armed.leave.delay()).max() else { return };
    timer.sleep_until(timer.now().deadline(HeartbeatTiming::default().timeout(longest))).await;
    let mut all = match listed(&events, &registry).await {
        Ok(all) => all,
        Err(error) => return debug!(%error, "the server does not tell what is scheduled"),
    };
    for armed in armed {
        let is_over = armed.is_over(timer.now());
        let Armed { leave, key, .. } = armed;
        if registry.is_live(&key) {
            // It has started meanwhile, and hands over by itself.
            continue;
        }
        let retired = async {
            let delay_id = scheduled_as(&events, &leave, is_over, &mut all).await?;
            events.send(&delay_id).await
        };
        match retired.await {
            // Refused: we may not send there any more, and the server has not either.
            Ok(())
            | Err(
                DelayedError::Gone
                | DelayedError::AlreadySent
                | DelayedError::AlreadyCancelled
                | DelayedError::Refused { .. },
            ) => {
                if let Err(error) = store.remove(leave.transaction_id()).await {
                    warn!(%error, "a leave that is over could not be removed from the store");
                }
            }
            // The next start tries again; and it fires by itself.
            Err(error) => debug!(%error, "an earlier process's leave could not be fired"),
        }
    }
}

/// All leave, and what earlier processes have left armed is fired. Returns when the server has it,
/// or does not answer: within the longest delay and 20 s.
pub(crate) async fn leave_all(client: &ClientContext) {
    let (timer, registry) = (&client.timer, client.extension::<Registry>());
    let wishes: Vec<_> = lock(&registry.live).values().cloned().collect();
    let delay = wishes.iter().map(|(_, delay)| *delay).max().unwrap_or_default();
    let deadline = timer.now().deadline(delay + RETIRING);
    for (wish, _) in &wishes {
        let _ = wish.send(Wish::Leave);
    }
    for (wish, _) in wishes {
        wish.closed().await;
    }
    // After that, as what the live ones have armed is in the store until they have left.
    before(&**timer, deadline, retire_all(client)).await;
}

/// Fires what earlier processes have left armed, if the store is ours.
async fn retire_all(client: &ClientContext) {
    let (timer, registry) = (&client.timer, client.extension::<Registry>());
    let store = Store::new(client.client.clone(), registry.ours.clone());
    match store.own(timer.now()).await {
        // What another client has armed is not ours to fire.
        Ok(false) => return,
        Ok(true) => {}
        Err(error) => warn!(%error, "the store does not take that heartbeats are retired"),
    }
    match store.armed().await {
        Ok(armed) => retire(client, &store, armed).await,
        Err(error) => warn!(%error, "the client's store does not tell what is armed"),
    }
    store.disown(|| registry.is_idle()).await;
}

/// What the server has scheduled, but for what live heartbeats have armed. Nothing where it keeps no
/// list.
pub(super) async fn listed(
    events: &DelayedEvents,
    registry: &Registry,
) -> Result<Vec<ScheduledEvent>, DelayedError> {
    let mut listed = match events.list().await {
        Err(DelayedError::NotSupported { .. }) => Vec::new(),
        listed => listed?,
    };
    let live = lock(&registry.delay_ids);
    listed.retain(|scheduled| !live.contains_key(&scheduled.delay_id));
    Ok(listed)
}

/// The delay id of a leave that may be armed already; it is taken out of what the server has listed.
///
/// Why not simply repeat the request? A server that has restarted since knows no transaction ids of
/// before, and would schedule a second one. Where it is not listed it has fired, or never was armed:
/// while its arming may still be on its way the same request tells, and at worst makes one that is then
/// retired. After that it is gone.
pub(super) async fn scheduled_as(
    events: &DelayedEvents,
    leave: &PreparedEvent,
    is_over: bool,
    listed: &mut Vec<ScheduledEvent>,
) -> Result<DelayId, DelayedError> {
    match listed.iter().position(|scheduled| leave.matches(scheduled)) {
        Some(at) => Ok(listed.swap_remove(at).delay_id),
        None if is_over => Err(DelayedError::Gone),
        None => match events.schedule(leave).await {
            // What was made ready in plaintext is not scheduled any more.
            Err(DelayedError::BecameEncrypted) => Err(DelayedError::Gone),
            scheduled => scheduled,
        },
    }
}
