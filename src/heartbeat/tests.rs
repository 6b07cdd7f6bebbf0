#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use proptest::prelude::*;

use super::{
    simulation::{Fate, MINUTE, World},
    *,
};
use crate::testing::secs;

/// With a stickiness that is longer than the one of the degraded state.
fn pace() -> HeartbeatTiming {
    HeartbeatTiming::default().with_sticky(secs(3_600)).unwrap()
}

/// A world in which all is well.
fn world() -> World {
    World::new(pace(), 1, [])
}

fn world_with(fates: impl IntoIterator<Item = Fate> + 'static) -> World {
    World::new(pace(), 1, fates)
}

#[test]
fn it_arms_then_joins_and_shows_both() {
    let mut world = world();
    world.pass(1_000);
    assert_eq!(world.states, [HeartbeatState::Joining, HeartbeatState::Joined]);
    assert!(world.server.shows_member());
    assert_eq!(world.server.requests, 2);
}

#[test]
fn its_pulse_is_the_end_of_what_is_armed_which_each_beat_moves_on() {
    let mut world = world();
    assert_eq!(world.heartbeat.armed_until(), None);
    world.pass(1_000);
    let first = world.heartbeat.armed_until().unwrap();
    world.pass(20_000);
    let later = world.heartbeat.armed_until().unwrap();
    assert!(later.millis_after(first) >= 15_000, "{later:?}");
    world.cut_network(MINUTE);
    world.pass(4_000);
    let cut_off = world.heartbeat.armed_until();
    world.pass(20_000);
    assert_eq!(world.heartbeat.armed_until(), cut_off);
    assert!(
        matches!(world.state(), HeartbeatState::ProbablyLeft { since } if Some(since) == cut_off)
    );
    world.pass(2 * MINUTE);
    assert_eq!(world.state(), HeartbeatState::Joined);
    let held = world.heartbeat.held().unwrap();
    world.tell(|heartbeat, _| heartbeat.handle_delegated(held));
    assert_eq!(world.heartbeat.armed_until(), None);
    world.tell(|heartbeat, _| heartbeat.handle_leave());
    world.pass(1_000);
    assert_eq!(world.heartbeat.armed_until(), None);
}

#[test]
fn an_hour_costs_thirteen_restarts_a_minute_and_two_joins() {
    let mut world = world();
    world.pass(60 * MINUTE);
    assert_eq!(world.states, [HeartbeatState::Joining, HeartbeatState::Joined]);
    let a_minute = world.server.requests as f64 / 60.0;
    assert!((12.0..15.0).contains(&a_minute), "{a_minute}");
}

#[test]
fn leaving_fires_the_leave_and_nothing_follows() {
    let mut world = world();
    world.pass(10_000);
    world.tell(|heartbeat, _| heartbeat.handle_leave());
    assert_eq!(world.state(), HeartbeatState::Leaving);
    world.pass(100);
    assert_eq!(world.state(), HeartbeatState::Left);
    assert!(!world.server.shows_member());
    let requests = world.server.requests;
    world.pass(180 * MINUTE);
    assert_eq!(world.server.requests, requests);
    assert!(world.heartbeat.is_over());
}

#[test]
fn leaving_with_words_of_ones_own_sends_them_and_cancels_what_is_armed() {
    let mut world = world();
    world.pass(10_000);
    world.tell(|heartbeat, _| heartbeat.handle_leave_with());
    assert_eq!(world.state(), HeartbeatState::Leaving);
    world.pass(100);
    assert_eq!(world.state(), HeartbeatState::Left);
    assert!(world.server.shows_last_words());
    assert_eq!(world.server.armed(), 0);
    let requests = world.server.requests;
    world.pass(50 * MINUTE);
    assert_eq!(world.server.requests, requests);
    assert!(world.server.shows_last_words());
    assert!(world.heartbeat.is_over());
}

#[test]
fn whose_last_words_are_refused_leaves_with_what_is_armed() {
    let mut world = world();
    world.pass(10_000);
    world.server.refuses_leaves = true;
    world.tell(|heartbeat, _| heartbeat.handle_leave_with());
    world.pass(1_000);
    assert_eq!(world.state(), HeartbeatState::Left);
    assert!(!world.server.shows_member());
    assert!(!world.server.shows_last_words());
    assert_eq!(world.server.armed(), 0);
}

#[test]
fn last_words_get_there_also_where_what_is_armed_has_fired_first() {
    let mut world = world();
    world.pass(MINUTE);
    world.cut_network(20_000);
    world.tell(|heartbeat, _| heartbeat.handle_leave_with());
    world.pass(18_000);
    assert!(!world.server.shows_member() && !world.server.shows_last_words());
    assert_eq!(world.state(), HeartbeatState::Leaving);
    world.pass(10_000);
    assert_eq!(world.state(), HeartbeatState::Left);
    assert!(world.server.shows_last_words());
}

#[test]
fn who_was_never_seen_has_no_last_words() {
    let mut world = world();
    world.server.quota_is_full = true;
    world.cut_network(MINUTE);
    world.pass(10_000);
    world.tell(|heartbeat, _| heartbeat.handle_leave_with());
    world.pass(2 * MINUTE);
    assert_eq!(world.state(), HeartbeatState::Left);
    assert!(!world.server.shows_last_words());
}

#[test]
fn last_words_replace_those_of_a_leave_that_is_under_way() {
    let mut world = world();
    world.server.has_no_delayed_events = true;
    world.pass(10_000);
    world.tell(|heartbeat, _| heartbeat.handle_leave());
    let requests = world.server.requests;
    world.tell(|heartbeat, _| heartbeat.handle_leave_with());
    world.pass(1_000);
    assert_eq!(world.state(), HeartbeatState::Left);
    assert_eq!(world.server.requests, requests + 2);
}

const LEAVE_FIRED: HeartbeatState = HeartbeatState::Failed(HeartbeatFailure::LeaveFired);
const REMOVED: HeartbeatState = HeartbeatState::Failed(HeartbeatFailure::Removed);

/// A world in which all is well, and it does not join again by itself.
fn not_rejoining() -> World {
    world().not_rejoining()
}

#[test]
fn who_does_not_join_again_by_itself_stays_for_as_long_as_all_is_well() {
    let mut world = not_rejoining();
    world.tells_of_fired = true;
    for _ in 0..3 {
        world.pass(60 * MINUTE);
        world.tell(newcomers);
        world.tell(|heartbeat, _| heartbeat.handle_update());
    }
    assert_eq!(world.states, [HeartbeatState::Joining, HeartbeatState::Joined]);
    assert!(world.server.shows_member());
}

#[test]
fn who_does_not_join_again_fails_once_the_server_says_that_the_leave_has_fired() {
    let mut world = not_rejoining();
    world.pass(MINUTE);
    world.cut_network(3 * MINUTE);
    world.pass(3 * MINUTE - 1_000);
    assert!(matches!(world.state(), HeartbeatState::ProbablyLeft { .. }), "{:?}", world.state());
    world.pass(30_000);
    assert_eq!(world.state(), LEAVE_FIRED);
    assert!(!world.states.contains(&HeartbeatState::Rejoining));
    assert!(!world.server.shows_member());
    let requests = world.server.requests;
    world.pass(120 * MINUTE);
    assert_eq!(world.server.requests, requests);
    assert!(world.heartbeat.is_over());
}

#[test]
fn who_does_not_join_again_fails_when_ones_own_leave_comes_back() {
    let mut world = not_rejoining();
    world.tells_of_fired = true;
    world.pass(MINUTE);
    world.fire_from_outside();
    world.pass(1);
    world.pass(200);
    assert_eq!(world.state(), LEAVE_FIRED);
    assert!(!world.server.shows_member());
}

#[test]
fn who_does_not_join_again_fails_after_a_sleep_that_was_longer_than_the_delay() {
    for slept in [MINUTE, 120 * MINUTE] {
        let mut world = not_rejoining();
        world.pass(MINUTE);
        world.sleep(slept);
        world.pass(1_000);
        assert_eq!(world.state(), LEAVE_FIRED);
        assert!(!world.server.shows_member());
    }
}

#[test]
fn who_does_not_join_again_and_is_removed_fires_the_leave_and_says_so() {
    let mut world = not_rejoining();
    world.pass(MINUTE);
    world.tell(|heartbeat, now| {
        heartbeat.handle_shown();
        heartbeat.handle_doubt(now);
    });
    world.pass(1_000);
    assert_eq!(world.state(), REMOVED);
    assert!(!world.server.shows_member());
    assert_eq!(world.server.armed(), 0);
}

#[test]
fn a_removal_of_what_was_there_before_is_not_taken_for_ones_own() {
    let mut world = not_rejoining();
    world.pass(MINUTE);
    world.tell(HeartbeatMachine::handle_doubt);
    world.pass(MINUTE);
    assert_eq!(world.state(), HeartbeatState::Joined);
    // As one's own leave, which comes back after the application is.
    world.tell(|heartbeat, _| heartbeat.handle_shown());
    world.tell(|heartbeat, _| heartbeat.handle_suspend(InBackground::Leave));
    world.pass(1_000);
    world.tell(HeartbeatMachine::handle_resume);
    world.pass(10);
    world.tell(HeartbeatMachine::handle_doubt);
    world.pass(1_000);
    assert_eq!(world.state(), HeartbeatState::Joined);
    assert!(world.server.shows_member());
}

#[test]
fn kept_in_the_background_for_too_long_it_fails_when_it_is_back() {
    for tells_of_fired in [true, false] {
        let mut world = not_rejoining();
        world.tells_of_fired = tells_of_fired;
        world.pass(MINUTE);
        world.tell(|heartbeat, _| heartbeat.handle_suspend(InBackground::Hold));
        let requests = world.server.requests;
        world.pass(MINUTE);
        assert!(matches!(world.state(), HeartbeatState::Suspended { .. }));
        assert_eq!(world.server.requests, requests);
        world.tell(HeartbeatMachine::handle_resume);
        world.pass(1_000);
        assert_eq!(world.state(), LEAVE_FIRED);
        assert!(!world.server.shows_member());
    }
}

#[test]
fn kept_in_the_background_for_a_while_it_is_there_when_it_is_back() {
    let mut world = not_rejoining();
    world.pass(MINUTE);
    world.tell(|heartbeat, _| heartbeat.handle_suspend(InBackground::Hold));
    world.pass(8_000);
    world.tell(HeartbeatMachine::handle_resume);
    world.pass(MINUTE);
    assert_eq!(world.state(), HeartbeatState::Joined);
}

#[test]
fn whose_join_runs_out_is_not_shown_again_by_itself() {
    let mut world = not_rejoining();
    world.server.has_no_delayed_events = true;
    world.pass(MINUTE);
    assert_eq!(world.state(), HeartbeatState::Degraded);
    world.cut_network(11 * MINUTE);
    world.pass(13 * MINUTE);
    assert_eq!(world.state(), REMOVED);
    assert!(!world.server.shows_member());
}

#[test]
fn whose_join_was_not_answered_and_has_run_out_is_not_shown_again_by_itself() {
    let fates = [Fate::Fine, Fate::AnswerLost(0)];
    let mut world = world_with(fates).not_rejoining();
    world.server.quota_is_full = true;
    world.pass(100);
    assert!(world.server.shows_member());
    world.sleep(10 * MINUTE);
    world.mend();
    world.pass(2 * MINUTE);
    assert_eq!(world.state(), REMOVED);
    assert!(!world.server.shows_member());
}

#[test]
fn a_leave_that_fires_before_the_first_join_is_not_the_end() {
    let mut world = World::new(pace(), 1, [Fate::Fine, Fate::RateLimited { seconds: 60 }]);
    world = world.not_rejoining();
    world.pass(2 * MINUTE);
    assert_ne!(world.state(), REMOVED);
}

#[test]
fn a_crash_shows_to_everybody_within_the_delay() {
    let mut world = world();
    world.pass(61_000);
    world.crash();
    world.pass(15_001);
    assert!(!world.server.shows_member());
}

#[test]
fn a_lost_answer_to_the_arming_is_asked_for_again_and_arms_nothing_twice() {
    let mut world = world_with([Fate::AnswerLost(9), Fate::AnswerLost(9)]);
    world.pass(MINUTE);
    assert_eq!(world.states, [HeartbeatState::Joining, HeartbeatState::Joined]);
    world.crash();
    world.pass(15_001);
    assert!(!world.server.shows_member());
}

#[test]
fn cut_off_it_says_that_it_has_probably_left_and_joins_again_soon_after() {
    let mut world = world();
    world.pass(MINUTE);
    world.cut_network(3 * MINUTE);
    world.pass(20_000);
    assert!(matches!(world.state(), HeartbeatState::ProbablyLeft { .. }), "{:?}", world.state());
    assert!(!world.server.shows_member());
    world.pass(3 * MINUTE - 20_000 + 30_000);
    assert_eq!(world.state(), HeartbeatState::Joined);
    assert!(world.server.shows_member());
    assert!(world.states.contains(&HeartbeatState::Rejoining));
}

#[test]
fn after_a_sleep_it_asks_first() {
    let mut world = world();
    world.pass(MINUTE);
    world.sleep(60 * MINUTE);
    assert!(!world.server.shows_member());
    world.pass(1_000);
    assert_eq!(world.state(), HeartbeatState::Joined);
    assert!(world.server.shows_member());
}

#[test]
fn newcomers_get_a_fresh_leave() {
    let mut world = world();
    world.pass(MINUTE);
    let before = world.heartbeat.held();
    for _ in 0..3 {
        world.tell(newcomers);
        world.pass(1_000);
    }
    world.pass(10_000);
    assert_ne!(world.heartbeat.held(), before);
    assert_eq!(world.states, [HeartbeatState::Joining, HeartbeatState::Joined]);
    world.pass(MINUTE);
    assert!(world.server.shows_member());
}

#[test]
fn an_update_is_sent_at_once() {
    let mut world = world();
    world.pass(20_000);
    let requests = world.server.requests;
    world.tell(|heartbeat, _| heartbeat.handle_update());
    world.pass(100);
    assert!(world.server.requests > requests);
    assert_eq!(world.state(), HeartbeatState::Joined);
}

#[test]
fn without_delayed_events_it_is_degraded_and_short_and_says_so() {
    let mut world = world();
    world.server.has_no_delayed_events = true;
    world.pass(30 * MINUTE);
    assert_eq!(world.states, [HeartbeatState::Joining, HeartbeatState::Degraded]);
    assert!(world.server.shows_member());
    world.tell(|heartbeat, _| heartbeat.handle_leave());
    world.pass(1_000);
    assert_eq!(world.state(), HeartbeatState::Left);
    assert!(!world.server.shows_member());
}

#[test]
fn what_an_earlier_heartbeat_sent_under_the_key_is_outranked_before_a_short_join_is_sent() {
    let mut first = world();
    first.pass(MINUTE);
    let outranked_until = first.heartbeat.outranked_until();
    assert!(outranked_until.is_some());
    first.tell(|_, now| {
        let mut second = HeartbeatMachine::new(pace(), 1);
        assert!(second.may_be_short(now));
        second.handle_outranked(outranked_until);
        assert!(!second.may_be_short(now));
        // An earlier one says nothing new.
        second.handle_outranked(None);
        assert_eq!(second.outranked_until(), outranked_until);
    });
}

#[test]
fn a_quota_that_has_room_again_ends_the_degraded_state() {
    let mut world = world();
    world.server.quota_is_full = true;
    world.pass(30_000);
    assert_eq!(world.state(), HeartbeatState::Degraded);
    world.server.quota_is_full = false;
    world.pass(60_000);
    assert_eq!(world.state(), HeartbeatState::Joined);
}

#[test]
fn a_delay_that_is_too_long_is_shortened_to_what_the_server_takes() {
    let mut world = World::new(pace().with_delay(secs(60)).unwrap(), 1, []);
    world.server.longest_delay = Some(secs(20));
    world.pass(1_000);
    assert_eq!(world.state(), HeartbeatState::Joined);
    world.crash();
    world.pass(20_001);
    assert!(!world.server.shows_member());

    let mut world = World::new(pace().with_delay(secs(60)).unwrap(), 1, []);
    world.server.longest_delay = Some(secs(1));
    world.pass(1_000);
    assert_eq!(world.state(), HeartbeatState::Degraded, "there all the same");
}

/// A room with a slow homeserver in it, or a thousand devices.
#[test]
fn encryption_may_take_longer_than_the_delay() {
    let mut world = World::new(pace().with_delay(secs(3)).unwrap(), 1, []);
    world.encrypts_for = 6_000;
    world.pass(13_000);
    assert_eq!(world.states, [HeartbeatState::Joining, HeartbeatState::Joined]);
    // The lease is restarted while an update is encrypted.
    world.tell(|heartbeat, _| heartbeat.handle_update());
    world.pass(MINUTE);
    world.tell(newcomers);
    world.pass(MINUTE);
    assert_eq!(world.states, [HeartbeatState::Joining, HeartbeatState::Joined]);
    world.tell(|heartbeat, _| heartbeat.handle_leave());
    world.pass(100);
    assert_eq!(world.state(), HeartbeatState::Left);
}

/// The key of a hand-over's leave cannot be sent, and then the armed leave fires.
#[test]
fn what_could_not_be_encrypted_was_not_sent() {
    for rejoins in [true, false] {
        let mut heartbeat =
            HeartbeatMachine::new(pace(), 1).with_rejoin(simulation::rejoin(rejoins));
        let mut now = crate::testing::start();
        for _ in 0..2 {
            assert!(heartbeat.poll_action(now).is_some());
            heartbeat.handle_outcome(now, Outcome::Done);
        }
        let held = heartbeat.held().unwrap();
        heartbeat.handle_newcomers(now, 3);
        for _ in 0..2 {
            let step = loop {
                now = now.advanced(secs(1));
                match heartbeat.poll_action(now) {
                    Some(Action { step: step @ Step::Arm { .. }, .. }) => break step,
                    Some(_) => heartbeat.handle_outcome(now, Outcome::Done),
                    None => {}
                }
            };
            heartbeat.handle_outcome(now, Outcome::Preparing);
            heartbeat.handle_prepared(now, step, Outcome::Unknown);
        }
        heartbeat.handle_fired(now, held);
        let mut steps = Vec::new();
        for _ in 0..10 {
            now = now.advanced(secs(1));
            for _ in 0..20 {
                let Some(Action { step, .. }) = heartbeat.poll_action(now) else { break };
                steps.push(step);
                heartbeat.handle_outcome(now, Outcome::Done);
            }
        }
        match rejoins {
            true => assert_eq!(heartbeat.state(now), HeartbeatState::Joined),
            // Everybody has seen the leave that fired.
            false => {
                assert!(heartbeat.is_over());
                assert_eq!(steps, []);
            }
        }
    }
}

/// As after a network that is back only by then: a second try is being encrypted when it leaves.
#[test]
fn who_leaves_waits_for_no_second_encryption() {
    for (failed_at, requests) in [(0, 0), (1, 3)] {
        let mut world = world();
        world.encrypts_for = 1_000;
        world.pass(failed_at * 1_100);
        world.unprepared = 1;
        world.pass(2_000);
        assert_eq!(world.unprepared, 0);
        assert_eq!(world.state(), HeartbeatState::Joining);
        world.tell(|heartbeat, _| heartbeat.handle_leave());
        world.pass(1_000);
        assert_eq!(world.state(), HeartbeatState::Left);
        assert_eq!((world.server.joins(), world.server.armed()), (0, 0));
        assert!(world.server.requests <= requests);
    }
}

/// What is armed is fired instead.
#[test]
fn last_words_that_cannot_be_encrypted_are_left_out() {
    let mut world = world();
    world.encrypts_for = 100;
    world.pass(MINUTE);
    world.unprepared = u8::MAX;
    world.tell(|heartbeat, _| heartbeat.handle_leave_with());
    world.pass(10_000);
    assert_eq!(world.state(), HeartbeatState::Left);
    assert!(!world.server.shows_member() && !world.server.shows_last_words());
}

#[test]
fn last_words_that_take_too_long_are_left_out() {
    let mut world = world();
    world.pass(MINUTE);
    world.encrypts_for = 3_000;
    world.tell(|heartbeat, _| heartbeat.handle_leave_with());
    world.pass(4_000);
    assert_eq!(world.state(), HeartbeatState::Left);
    assert!(world.server.shows_last_words());

    let mut world = self::world();
    world.pass(MINUTE);
    world.encrypts_for = MINUTE;
    world.tell(|heartbeat, _| heartbeat.handle_leave_with());
    world.pass(6_000);
    assert_eq!(world.state(), HeartbeatState::Left);
    assert!(!world.server.shows_member() && !world.server.shows_last_words());
}

#[test]
fn an_update_replaces_what_is_being_encrypted() {
    let mut world = world();
    world.encrypts_for = 5_000;
    world.pass(7_000);
    world.tell(|heartbeat, _| heartbeat.handle_update());
    world.pass(15_000);
    assert_eq!(world.states, [HeartbeatState::Joining, HeartbeatState::Joined]);
    assert_eq!(world.server.joins(), 1, "the newest content alone");
}

/// A hostile server lets somebody new come every five seconds.
#[test]
fn newcomers_without_end_cost_a_hand_over_a_minute() {
    let mut world = world();
    world.pass(MINUTE);
    let joins = world.server.joins();
    for _ in 0..(10 * 12) {
        world.tell(newcomers);
        world.pass(5_000);
    }
    let hand_overs = world.server.joins() - joins;
    assert!((8..=13).contains(&hand_overs), "{hand_overs} in ten minutes");
    assert_eq!(world.state(), HeartbeatState::Joined);
    world.pass(2 * MINUTE);
    let joins = world.server.joins();
    world.tell(newcomers);
    world.pass(6_000);
    assert_eq!(world.server.joins(), joins + 1, "soon again after two quiet minutes");
}

/// Who comes to a member without an armed leave need not wait for its refresh.
#[test]
fn a_degraded_join_is_sent_again_for_newcomers() {
    let mut world = world();
    world.server.has_no_delayed_events = true;
    world.pass(MINUTE);
    assert_eq!((world.state(), world.server.joins()), (HeartbeatState::Degraded, 1));
    world.tell(newcomers);
    world.tell(newcomers);
    world.pass(4_000);
    assert_eq!(world.server.joins(), 1);
    world.pass(2_000);
    assert_eq!(world.server.joins(), 2);
    world.pass(MINUTE);
    assert_eq!((world.state(), world.server.joins()), (HeartbeatState::Degraded, 2));
}

#[test]
fn slow_restarts_are_half_as_many() {
    let mut world = world();
    world.tell(|heartbeat, _| heartbeat.handle_pace(true));
    world.pass(10 * MINUTE);
    assert_eq!(world.states, [HeartbeatState::Joining, HeartbeatState::Joined]);
    let a_minute = world.server.requests as f64 / 10.0;
    assert!((5.5..7.0).contains(&a_minute), "{a_minute}");
    world.tell(|heartbeat, _| heartbeat.handle_pace(false));
    world.pass(10 * MINUTE);
    assert_eq!(world.states, [HeartbeatState::Joining, HeartbeatState::Joined]);
    assert!(world.server.requests > 180);
}

/// Whatever the server answers to the arming, the join says whether the member may be there.
#[test]
fn a_refused_arming_is_degraded() {
    let refusals = [
        Outcome::Refused,
        Outcome::NoDelayedEvents,
        Outcome::Blocked,
        Outcome::TooLong { max: None },
        Outcome::QuotaFull { retry_after: Some(secs(3_600)) },
    ];
    for refusal in refusals {
        let mut world = world();
        world.server.arming_is = Some(refusal);
        world.pass(2_000);
        assert_eq!(
            world.states,
            [HeartbeatState::Joining, HeartbeatState::Degraded],
            "{refusal:?}"
        );
        assert!(world.server.shows_member());
        // No wait of the server's is believed beyond five minutes.
        world.server.arming_is = None;
        world.pass(5 * MINUTE);
        assert_eq!(world.state(), HeartbeatState::Joined, "{refusal:?}");
    }
}

#[test]
fn a_page_that_shows_once_changes_nothing() {
    let mut world = world_with([Fate::Refused(Outcome::Blocked), Fate::Refused(Outcome::Blocked)]);
    world.pass(MINUTE);
    world.fates([Fate::Refused(Outcome::Blocked); 2]);
    world.tell(|heartbeat, _| heartbeat.handle_update());
    world.pass(MINUTE);
    assert_eq!(world.states, [HeartbeatState::Joining, HeartbeatState::Joined]);
}

/// The room became encrypted while an arming was not answered.
#[test]
fn an_arming_that_is_void_is_made_anew() {
    let mut world = world_with([Fate::Lost, Fate::Refused(Outcome::Gone)]);
    world.pass(MINUTE);
    assert_eq!(world.states, [HeartbeatState::Joining, HeartbeatState::Joined]);
}

/// Else who came could never read the leave.
#[test]
fn a_hand_over_whose_arming_is_void_is_made_anew() {
    let mut world = world();
    world.pass(100);
    world.tell(newcomers);
    world.pass(4_000);
    world.fates([Fate::Fine, Fate::Refused(Outcome::Gone)]);
    world.pass(10_000);
    assert_eq!((world.server.joins(), world.server.armed()), (2, 1));
}

#[test]
fn a_leave_that_is_refused_is_no_leave() {
    let mut world = world();
    world.server.has_no_delayed_events = true;
    world.pass(MINUTE);
    world.server.refuses_leaves = true;
    world.forgive_a_ghost();
    world.tell(|heartbeat, _| heartbeat.handle_leave());
    world.pass(1_000);
    assert_eq!(world.state(), HeartbeatState::Failed(HeartbeatFailure::LeaveRefused));
    assert!(world.server.shows_member());
    assert!(world.heartbeat.is_over());
}

/// Whatever the server answers, and for however long it wants to be left alone.
#[test]
fn leaving_ends_within_the_delay_and_20_s() {
    let hour = Outcome::RateLimited { retry_after: Some(secs(3_600)) };
    for answer in [Outcome::Unknown, Outcome::Blocked, hour] {
        for has_last_words in [true, false] {
            let mut world = world();
            world.pass(MINUTE);
            world.fates(vec![Fate::Refused(answer); 1_000]);
            world.tell(|heartbeat, _| leave(heartbeat, has_last_words));
            world.pass(35_000);
            assert!(world.heartbeat.is_over(), "{answer:?}");
            assert!(!world.server.shows_member());
            let requests = world.server.requests;
            world.pass(60 * MINUTE);
            assert_eq!(world.server.requests, requests);
        }
    }
}

/// The echo of the fired leave comes before the answer to the request.
#[test]
fn leaving_sends_one_leave() {
    let mut world = world_with([Fate::Fine, Fate::Fine, Fate::Slow(0, 200)]);
    world.tells_of_fired = true;
    world.pass(1_000);
    world.tell(|heartbeat, _| heartbeat.handle_leave());
    world.pass(10_000);
    assert_eq!(world.state(), HeartbeatState::Left);
    assert_eq!(world.server.requests, 3, "to arm, to join, to fire");
}

#[test]
fn no_wait_is_believed_beyond_five_minutes() {
    let day = Outcome::RateLimited { retry_after: Some(secs(86_400)) };
    let mut world = world_with([Fate::Fine, Fate::Refused(day)]);
    world.pass(5 * MINUTE + 10_000);
    assert_eq!(world.state(), HeartbeatState::Joined);
    // A longer wait than the delay would be the end of the lease.
    world.fates([Fate::Refused(day)]);
    world.pass(MINUTE);
    assert!(world.server.shows_member());
    assert_eq!(world.state(), HeartbeatState::Joined);
}

#[test]
fn who_may_not_send_fails_and_leaves_nothing_armed() {
    let mut world = world();
    world.server.refuses_joins = true;
    world.pass(1_000);
    assert_eq!(world.state(), HeartbeatState::Failed(HeartbeatFailure::JoinRefused));
    let requests = world.server.requests;
    world.pass(10 * MINUTE);
    assert_eq!(world.server.requests, requests);
}

#[test]
fn what_is_redacted_is_not_joined_over() {
    let mut world = world();
    world.pass(MINUTE);
    world.tell(|heartbeat, _| heartbeat.handle_ended(HeartbeatFailure::Redacted));
    world.pass(1_000);
    assert_eq!(world.state(), HeartbeatState::Failed(HeartbeatFailure::Redacted));
    assert!(!world.server.shows_member());
    let requests = world.server.requests;
    world.pass(60 * MINUTE);
    assert_eq!(world.server.requests, requests);
}

#[test]
fn in_the_background_it_leaves_and_is_back_when_the_application_is() {
    let mut world = world();
    world.pass(MINUTE);
    world.tell(|heartbeat, _| heartbeat.handle_suspend(InBackground::Leave));
    world.pass(1_000);
    assert!(!world.server.shows_member());
    assert_eq!(world.state(), HeartbeatState::Suspended { holds_until: None });
    world.pass(30 * MINUTE);
    world.tell(|heartbeat, now| heartbeat.handle_resume(now));
    world.pass(1_000);
    assert_eq!(world.state(), HeartbeatState::Joined);
    assert!(world.server.shows_member());
}

#[test]
fn kept_in_the_background_it_says_until_when_and_asks_when_it_is_back() {
    for (away, is_there) in [(8_000, true), (MINUTE, false)] {
        let mut world = world();
        world.pass(MINUTE);
        world.tell(|heartbeat, _| heartbeat.handle_suspend(InBackground::Hold));
        assert!(matches!(world.state(), HeartbeatState::Suspended { holds_until: Some(_) }));
        world.pass(away);
        assert_eq!(world.server.shows_member(), is_there);
        world.tell(|heartbeat, now| heartbeat.handle_resume(now));
        world.pass(1_000);
        assert_eq!(world.state(), HeartbeatState::Joined);
        assert!(world.server.shows_member());
    }
}

#[test]
fn what_a_dead_process_had_armed_never_ends_the_new_join() {
    let mut world = world();
    world.pass(MINUTE);
    world.crash();
    world.pass(2_000);
    assert!(world.server.shows_member(), "its ghost");
    world.start_again();
    world.pass(1_000);
    assert_eq!(world.state(), HeartbeatState::Joined);
    for _ in 0..60 {
        world.pass(1_000);
        assert!(world.server.shows_member());
    }
}

#[test]
fn a_lease_is_cancelled_only_while_the_one_that_is_held_is_known_to_be_armed() {
    // The answer to the cancelling of the first is lost in a crash. The next process can arm no fresh
    // one, takes the first, which is gone, for its own, and gets no answer when it asks.
    let fine = [Fate::Fine; 4];
    let cancelled_unheard = [Fate::AnswerLost(0)];
    let asked_unheard = [Fate::Fine, Fate::Fine, Fate::Lost];
    let fates = fine.into_iter().chain(cancelled_unheard).chain(asked_unheard);
    let mut world = World::new(pace(), 1, fates);
    world.pass(100);
    world.tell(newcomers);
    world.pass(5_200);
    assert_eq!(world.server.armed(), 1);
    world.crash();
    world.server.quota_is_full = true;
    world.start_again();
    world.pass(10_000);
    assert_eq!(world.state(), HeartbeatState::Joined);
    assert_eq!(world.server.armed(), 1);
}

#[test]
fn ones_own_leave_that_comes_back_is_noticed_before_the_next_restart() {
    let mut world = world();
    world.tells_of_fired = true;
    world.pass(MINUTE);
    world.fire_from_outside();
    assert!(!world.server.shows_member());
    world.pass(1);
    world.pass(200);
    assert!(world.states.contains(&HeartbeatState::Rejoining));
    assert_eq!(world.state(), HeartbeatState::Joined);
    assert!(world.server.shows_member());
}

#[test]
fn who_has_delegated_the_lease_restarts_it_only_to_refresh() {
    let pace = pace().with_delay(secs(1_800)).unwrap();
    let mut world = World::new(pace, 1, []);
    world.pass(1_000);
    world.tell(delegate);
    let requests = world.server.requests;
    world.pass(25 * MINUTE);
    assert_eq!(world.server.requests, requests);
    assert_eq!(world.state(), HeartbeatState::Joined);
    world.tell(|heartbeat, now| heartbeat.handle_taken_back(now));
    world.pass(20 * MINUTE);
    assert!(world.server.requests > requests + 1);
}

#[test]
fn who_has_delegated_the_lease_sends_an_update_soon_also_when_asking_gets_no_answer_at_first() {
    let pace = pace().with_delay(secs(60)).unwrap();
    let mut world = World::new(pace, 1, [Fate::Fine, Fate::Fine, Fate::Lost]);
    world.pass(1_000);
    world.tell(delegate);
    world.pass(10_000);
    let requests = world.server.requests;
    world.tell(|heartbeat, _| heartbeat.handle_update());
    world.pass(6_000);
    assert_eq!(world.server.requests, requests + 2, "asked again, and sent");
}

#[test]
fn who_leaves_does_not_send_a_join_that_the_server_has_not_taken() {
    let mut world = world_with([Fate::Fine, Fate::RateLimited { seconds: 5 }]);
    world.pass(1_000);
    world.tell(|heartbeat, _| heartbeat.handle_leave());
    world.pass(1_000);
    assert_eq!(world.state(), HeartbeatState::Left);
    assert_eq!(world.server.armed(), 0);
    assert_eq!(world.server.requests, 2, "to arm, and to cancel");
}

#[test]
fn who_leaves_repeats_no_join_where_somebody_else_may_have_fired_the_lease() {
    for is_taken_back in [false, true] {
        let mut world = world_with([Fate::Fine, Fate::Lost]);
        world.pass(100);
        world.tell(delegate);
        world.pass(5_000);
        world.fire_from_outside();
        // Then what is armed could not end a join that comes after it, and nothing else could.
        world.server.refuses_leaves = true;
        world.tell(|heartbeat, now| {
            if is_taken_back {
                heartbeat.handle_taken_back(now);
            }
            heartbeat.handle_leave();
        });
        world.pass(MINUTE);
        // Nobody has told that the lease fired, and the server refuses the leave.
        assert_eq!(world.state(), HeartbeatState::Failed(HeartbeatFailure::LeaveRefused));
        assert!(!world.server.shows_member());
    }
}

/// Something that happens to a heartbeat.
#[derive(Clone, Copy, Debug)]
enum Happening {
    Nothing,
    Update,
    Newcomers,
    Slow { is_slow: bool },
    Sleep(u64),
    ServerDown(u64),
    NetworkCut(u64),
    SuspendAndResume { keep: bool, away: u64 },
    Crash { gone: u64 },
    Quota { is_full: bool },
    DelegateAndTakeBack(u64),
    DelegateFireAndTakeBack(u64),
    CrashIntoAnotherPace { gone: u64, pace: HeartbeatTiming },
}

/// What is held is handed to somebody.
fn delegate(heartbeat: &mut HeartbeatMachine, _: Moment) {
    if let Some(held) = heartbeat.held() {
        heartbeat.handle_delegated(held);
    }
}

/// Somebody comes into a small room.
fn newcomers(heartbeat: &mut HeartbeatMachine, now: Moment) {
    heartbeat.handle_newcomers(now, 3);
}

fn leave(heartbeat: &mut HeartbeatMachine, has_last_words: bool) {
    match has_last_words {
        true => heartbeat.handle_leave_with(),
        false => heartbeat.handle_leave(),
    }
}

/// How often an event cannot be encrypted at once.
fn unprepared() -> impl Strategy<Value = u8> {
    prop_oneof![2 => Just(0), 1 => 1..6_u8]
}

fn fates() -> impl Strategy<Value = Vec<Fate>> {
    let fate = prop_oneof![
        6 => Just(Fate::Fine),
        2 => any::<(u8, u8)>().prop_map(|(land, answer)| Fate::Slow(land, answer)),
        2 => Just(Fate::Lost),
        2 => any::<u8>().prop_map(Fate::AnswerLost),
        1 => Just(Fate::Twice),
        1 => any::<bool>().prop_map(|has_landed| Fate::ServerError { has_landed }),
        1 => (0..20_u8).prop_map(|seconds| Fate::RateLimited { seconds }),
        1 => Just(Fate::Refused(Outcome::Blocked)),
    ];
    proptest::collection::vec(fate, 0..60)
}

fn happenings() -> impl Strategy<Value = Vec<(u64, Happening)>> {
    let times = || prop_oneof![3 => 0..2_000_u64, 3 => 0..60_000_u64, 1 => 0..(90 * MINUTE)];
    let happening = prop_oneof![
        Just(Happening::Nothing),
        Just(Happening::Update),
        Just(Happening::Newcomers),
        any::<bool>().prop_map(|is_slow| Happening::Slow { is_slow }),
        times().prop_map(Happening::Sleep),
        times().prop_map(Happening::ServerDown),
        times().prop_map(Happening::NetworkCut),
        (any::<bool>(), times())
            .prop_map(|(keep, away)| Happening::SuspendAndResume { keep, away }),
        times().prop_map(|gone| Happening::Crash { gone }),
        any::<bool>().prop_map(|is_full| Happening::Quota { is_full }),
        times().prop_map(Happening::DelegateAndTakeBack),
        (0..60_000_u64).prop_map(Happening::DelegateFireAndTakeBack),
        (times(), paces()).prop_map(|(gone, pace)| Happening::CrashIntoAnotherPace { gone, pace }),
    ];
    let wait = prop_oneof![
        3 => 0..100_u64,
        3 => 0..10_000_u64,
        3 => 0..(2 * MINUTE),
        1 => 0..(60 * MINUTE),
    ];
    proptest::collection::vec((wait, happening), 0..8)
}

fn live_through(world: &mut World, happenings: &[(u64, Happening)]) {
    for (wait, happening) in happenings {
        world.pass(*wait);
        match *happening {
            Happening::Nothing => {}
            Happening::Update => world.tell(|heartbeat, _| heartbeat.handle_update()),
            Happening::Newcomers => world.tell(newcomers),
            Happening::Slow { is_slow } => {
                world.tell(|heartbeat, _| heartbeat.handle_pace(is_slow));
            }
            Happening::Sleep(ms) => world.sleep(ms),
            Happening::ServerDown(ms) => world.take_server_down(ms),
            Happening::NetworkCut(ms) => world.cut_network(ms),
            Happening::SuspendAndResume { keep, away } => {
                world.tell(|heartbeat, _| {
                    heartbeat.handle_suspend(if keep {
                        InBackground::Hold
                    } else {
                        InBackground::Leave
                    })
                });
                world.pass(away);
                world.tell(HeartbeatMachine::handle_resume);
            }
            Happening::Crash { gone } => {
                world.crash();
                world.pass(gone);
                world.start_again();
            }
            Happening::Quota { is_full } => world.server.quota_is_full = is_full,
            Happening::DelegateAndTakeBack(ms) => {
                world.tell(delegate);
                world.pass(ms);
                world.tell(HeartbeatMachine::handle_taken_back);
            }
            Happening::DelegateFireAndTakeBack(ms) => {
                world.tell(delegate);
                world.pass(ms);
                // By then a fresh one may have taken over from what was delegated.
                if world.is_delegated() && world.is_quiet() {
                    world.fire_from_outside();
                }
                world.pass(ms);
                world.tell(HeartbeatMachine::handle_taken_back);
            }
            Happening::CrashIntoAnotherPace { gone, pace } => {
                world.crash();
                world.pass(gone);
                world.start_again_with(pace);
            }
        }
    }
}

/// Whether it may be that no leave is armed, as the server or something before it does not take one.
fn may_be_degraded(fates: &[Fate], happenings: &[(u64, Happening)]) -> bool {
    let is_full = |happening| matches!(happening, Happening::Quota { is_full: true });
    happenings.iter().any(|(_, happening)| is_full(*happening))
        || fates.contains(&Fate::Refused(Outcome::Blocked))
}

/// How many histories are lived through; more with `PROPTEST_CASES`.
fn config() -> ProptestConfig {
    let cases = std::env::var("PROPTEST_CASES").ok().and_then(|cases| cases.parse().ok());
    ProptestConfig { cases: cases.unwrap_or(3_000), ..ProptestConfig::default() }
}

fn paces() -> impl Strategy<Value = HeartbeatTiming> {
    (3..120_u64, 240..=3_600_u64).prop_map(|(delay, sticky)| {
        HeartbeatTiming::default()
            .with_delay(secs(delay))
            .unwrap()
            .with_sticky(secs(sticky))
            .unwrap()
    })
}

/// How long it takes to encrypt an event, in milliseconds.
fn encryption() -> impl Strategy<Value = u64> {
    prop_oneof![2 => Just(0), 1 => 1..2_000_u64, 1 => 2_000..20_000_u64]
}

/// For hours nobody sees the member, and nothing is asked of the server.
fn nothing_follows(world: &mut World) -> Result<(), TestCaseError> {
    let requests = world.server.requests;
    for _ in 0..40 {
        prop_assert!(!world.server.shows_member());
        world.pass(5 * MINUTE);
    }
    prop_assert_eq!(world.server.requests, requests);
    Ok(())
}

proptest! {
    #![proptest_config(config())]

    /// The laws are checked at every step; at the end the network is fine again.
    #[test]
    fn whatever_happens_it_is_there_in_the_end_and_gone_when_it_leaves(
        pace in paces(),
        fates in fates(),
        happenings in happenings(),
        tells_of_fired: bool,
        has_last_words: bool,
        encrypts_for in encryption(),
        unprepared in unprepared(),
        seed: u64,
    ) {
        let may_be_degraded = may_be_degraded(&fates, &happenings);
        let mut world = World::new(pace, seed >> 8, fates);
        world.tells_of_fired = tells_of_fired;
        world.encrypts_for = encrypts_for;
        world.unprepared = unprepared;
        live_through(&mut world, &happenings);

        world.mend();
        world.pass(if may_be_degraded { 7 } else { 2 } * MINUTE);
        prop_assert_eq!(world.state(), HeartbeatState::Joined);
        prop_assert!(world.server.shows_member());
        world.tell(|heartbeat, _| leave(heartbeat, has_last_words));
        world.pass(25_000);
        prop_assert_eq!(world.state(), HeartbeatState::Left);
        let may_be_without = !has_last_words || encrypts_for > 900 || unprepared > 0;
        prop_assert!(world.server.shows_last_words() || may_be_without);
        nothing_follows(&mut world)?;
    }

    /// Who does not join again by itself is there in the end, or has failed and is not seen again: that
    /// is checked at every step.
    #[test]
    fn who_does_not_join_again_by_itself_is_there_or_has_failed_and_stays_away(
        pace in paces(),
        fates in fates(),
        happenings in happenings(),
        tells_of_fired: bool,
        has_last_words: bool,
        encrypts_for in encryption(),
        unprepared in unprepared(),
        seed: u64,
    ) {
        let may_be_degraded = may_be_degraded(&fates, &happenings);
        let mut world = World::new(pace, seed >> 8, fates).not_rejoining();
        world.tells_of_fired = tells_of_fired;
        world.encrypts_for = encrypts_for;
        world.unprepared = unprepared;
        live_through(&mut world, &happenings);

        world.mend();
        world.pass(if may_be_degraded { 7 } else { 2 } * MINUTE);
        match world.state() {
            HeartbeatState::Joined => prop_assert!(world.server.shows_member()),
            HeartbeatState::Failed(HeartbeatFailure::LeaveFired | HeartbeatFailure::Removed) => {
                prop_assert!(!world.server.shows_member());
                prop_assert_eq!(world.server.armed(), 0);
            }
            state => prop_assert!(false, "{:?}", state),
        }
        let has_failed = matches!(world.state(), HeartbeatState::Failed(_));
        world.tell(|heartbeat, _| leave(heartbeat, has_last_words));
        world.pass(25_000);
        prop_assert!(has_failed || world.state() == HeartbeatState::Left);
        nothing_follows(&mut world)?;
    }

    /// After the last action before a crash everybody sees it gone within the delay, unless no leave
    /// could be armed: then within the short stickiness.
    #[test]
    fn whenever_it_crashes_it_is_gone_soon_after(
        pace in paces(),
        fates in fates(),
        happenings in happenings(),
        wait in 0..60_000_u64,
        rejoins: bool,
        encrypts_for in encryption(),
        unprepared in unprepared(),
        seed: u64,
    ) {
        let may_be_degraded = may_be_degraded(&fates, &happenings);
        let mut world = World::new(pace, seed >> 8, fates).rejoining(rejoins);
        world.encrypts_for = encrypts_for;
        world.unprepared = unprepared;
        live_through(&mut world, &happenings);
        world.pass(wait);
                world.crash();
        let soon = if may_be_degraded { secs(600) } else { world.longest_delay() };
        let soon = u64::try_from(soon.as_millis()).unwrap();
        // A server that is down comes back first, and what was under way lands within its timeout.
        world.pass(world.server.is_down_for() + soon + 5_000);
        prop_assert!(!world.server.shows_member());
    }

    /// Leaving in the middle of anything: once it says that it has left, the member never comes back.
    #[test]
    fn whenever_it_leaves_the_member_never_comes_back(
        pace in paces(),
        fates in fates(),
        happenings in happenings(),
        refuses_joins: bool,
        refuses_leaves: bool,
        has_last_words: bool,
        wait in 0..60_000_u64,
        rejoins: bool,
        encrypts_for in encryption(),
        unprepared in unprepared(),
        seed: u64,
    ) {
        let may_be_degraded = may_be_degraded(&fates, &happenings);
        let mut world = World::new(pace, seed >> 8, fates).rejoining(rejoins);
        world.encrypts_for = encrypts_for;
        world.unprepared = unprepared;
        live_through(&mut world, &happenings);
        world.server.refuses_joins = refuses_joins;
        world.pass(wait);
        // Where none is armed either, it cannot leave.
        world.server.refuses_leaves = refuses_leaves && !may_be_degraded;
        world.tell(|heartbeat, _| leave(heartbeat, has_last_words));
        for _ in 0..40 {
            // That nobody sees it once it says so is checked at every step.
            world.pass(5 * MINUTE);
        }
        let is_over = matches!(world.state(), HeartbeatState::Left | HeartbeatState::Failed(_));
        prop_assert!(is_over, "{:?}", world.state());
        prop_assert!(!world.server.shows_member());
    }
}
