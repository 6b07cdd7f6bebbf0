//! Where a session's state comes from, and what is done where it is in doubt: against a homeserver that
//! is late, tells half, or nothing.

use std::future::IntoFuture as _;

use futures_util::{FutureExt as _, StreamExt as _};
use matrix_sdk_sticky::{
    heartbeat::HeartbeatState,
    rtc::{
        ClosedBy, Dialect, InBackground, JoinError, JoinSession, LeaveReason, NotJoined,
        OwnMembership, ROOM_CALL, RtcApplication, RtcSubscription, SessionChange, SessionSnapshot,
        Transports,
    },
};
use serde_json::{Value, json};

use crate::support::{ALICE, Ask, ME, ROOM, START_MS, World, membership, millis, secs, within};

const SLOT: &str = "org.matrix.msc4143.rtc.slot";
const MEMBER: &str = "org.matrix.msc4143.rtc.member";
const CALL_MEMBER: &str = "org.matrix.msc3401.call.member";

fn state_event(id: &str, kind: &str, key: &str, content: Value) -> Value {
    json!({
        "event_id": id,
        "type": kind,
        "state_key": key,
        "sender": ALICE,
        "origin_server_ts": START_MS,
        "content": content,
    })
}

fn slot(id: &str, status: &str) -> Value {
    state_event(
        id,
        SLOT,
        ROOM_CALL,
        json!({ "status": status, "application": { "type": "m.call" } }),
    )
}

fn member(user_id: &str, membership: &str) -> Value {
    let id = format!("${membership}-{}", &user_id[1..]);
    state_event(&id, "m.room.member", user_id, json!({ "membership": membership }))
}

/// A membership in plaintext.
fn joins(event_id: &str, user_id: &str) -> Value {
    json!({
        "event_id": event_id,
        "sender": user_id,
        "type": MEMBER,
        "origin_server_ts": START_MS,
        "msc4354_sticky": { "duration_ms": 3_600_000 },
        "content": {
            "slot_id": ROOM_CALL,
            "member": { "id": "a", "membership": "join" },
            "application": { "type": "m.call" },
            "transports": { "published": [], "can_subscribe": [] },
            "versions": [],
            "msc4354_sticky_key": "a",
        },
        "unsigned": { "msc4354_sticky_duration_ttl_ms": 3_600_000 },
    })
}

fn alice_joins() -> Value {
    joins("$alice", ALICE)
}

/// The end of the membership that [`joins`] makes.
fn leaves(event_id: &str, user_id: &str) -> Value {
    let mut event = joins(event_id, user_id);
    event["origin_server_ts"] = json!(START_MS + 1);
    event["content"] = json!({ "slot_id": ROOM_CALL, "msc4354_sticky_key": "a" });
    event
}

/// Whether it asks for the state of one room, once.
fn is_of_a_session(ask: &Ask) -> bool {
    ask.body["room_subscriptions"].get(ROOM).is_some()
}

/// Whose membership in the room it asks for.
fn asked_users(ask: &Ask) -> Vec<&str> {
    let wanted = ask.body["room_subscriptions"][ROOM]["required_state"].as_array().unwrap();
    let wanted = wanted.iter().filter(|pair| pair[0] == "m.room.member");
    wanted.map(|pair| pair[1].as_str().unwrap()).collect()
}

/// Answers with what there is of the state that is asked for.
async fn tell(ask: Ask, state: &[Value]) {
    assert!(is_of_a_session(&ask), "{}", ask.body);
    let wanted = ask.body["room_subscriptions"][ROOM]["required_state"].as_array().unwrap();
    let is_wanted = |event: &&Value| {
        wanted
            .iter()
            .any(|it| it[0] == event["type"] && (it[1] == "*" || it[1] == event["state_key"]))
    };
    let state: Vec<_> = state.iter().filter(is_wanted).collect();
    let rooms = json!({ ROOM: { "required_state": state } });
    let answer = json!({ "pos": "once", "lists": {}, "rooms": rooms, "extensions": {} });
    ask.answer(200, answer.to_string()).await;
}

/// The main loop brings these events of the room.
async fn main_loop(world: &World, timeline: Value) {
    world.main_loop(json!({ "join": { ROOM: { "timeline": timeline } } })).await;
}

async fn brings(world: &World, event: Value) {
    main_loop(world, json!({ "events": [event] })).await;
}

/// The subscription to the sessions of the room, where the server tells this state.
async fn subscribed(world: &mut World, state: &[Value]) -> RtcSubscription {
    let rtc = world.sticky.room(ROOM.try_into().unwrap()).unwrap().rtc();
    let (subscription, ()) = tokio::join!(rtc.subscribe(), async {
        let ask = world.server.ask().await;
        tell(ask, state).await;
    });
    subscription
}

/// In a room that is not encrypted, live, with a long poll that is held, and alice in the room.
async fn in_plain_room() -> (World, Ask) {
    let (world, poll) = World::live(Vec::new()).await;
    plain_room(&world).await;
    (world, poll)
}

async fn plain_room(world: &World) {
    world.server.answers_to(
        "/state/m.room.encryption/",
        404,
        json!({ "errcode": "M_NOT_FOUND", "error": "no" }),
    );
    let state = [membership("join", 86_400_000), member(ALICE, "join")];
    world.main_loop(json!({ "join": { ROOM: { "state": { "events": state } } } })).await;
}

/// The session of the room's call, once it is as wanted; requests for the state are answered with what
/// `state` has.
async fn until(
    world: &mut World,
    sessions: &mut RtcSubscription,
    state: &[Value],
    is: impl Fn(&SessionSnapshot) -> bool,
) {
    let mut polls = Vec::new();
    let wait = async {
        while !is(&sessions.snapshot.session(ROOM_CALL)) {
            let (_, asks, poll) = now(world, sessions).await;
            // A long poll is held.
            polls.extend(poll);
            if asks.is_empty()
                && let Some(wait) = world.clock.next_sleep().now_or_never()
            {
                world.clock.advance(wait);
            }
            for ask in asks {
                tell(ask, state).await;
            }
        }
    };
    within("the session to be as wanted", wait).await;
}

/// Bob is in the call, and known to be in the room.
const BOB: &str = "@bob:hs";

/// The room's call with bob in it, and a long poll that is held.
async fn with_bob_in_the_call() -> (World, Ask, RtcSubscription) {
    let (mut world, poll) = in_plain_room().await;
    poll.page("pos-2", "batch-2", ROOM, vec![joins("$bob", BOB)]).await;
    world.until_event_ids(&["$bob"]).await;
    let poll = world.server.ask().await;
    let state = [slot("$open", "open"), member(BOB, "join")];
    let sessions = subscribed(&mut world, &state).await;
    assert_eq!(sessions.snapshot.session(ROOM_CALL).len(), 1);
    // The server was asked just now.
    world.clock.advance(secs(10));
    (world, poll, sessions)
}

/// What is told until nothing more happens at this moment, and the requests that come meanwhile: those for
/// a session, and the long poll.
async fn now(
    world: &mut World,
    sessions: &mut RtcSubscription,
) -> (Vec<SessionChange>, Vec<Ask>, Option<Ask>) {
    let (mut told, mut asks, mut poll) = (Vec::new(), Vec::new(), None);
    for _ in 0..8 {
        world.settle().await;
        while let Some(change) = sessions.changes.next().now_or_never() {
            let change = change.unwrap();
            told.extend(change.changes.into_iter().map(|it| it.change));
            sessions.snapshot = change.snapshot;
        }
        while world.server.is_asked() {
            let ask = world.server.ask().await;
            match is_of_a_session(&ask) {
                true => asks.push(ask),
                false => poll = Some(ask),
            }
        }
    }
    (told, asks, poll)
}

fn has_left(told: &[SessionChange], user_id: &str) -> bool {
    told.iter()
        .any(|it| matches!(it, SessionChange::Left { member, .. } if member.user_id() == user_id))
}

/// The application, a membership of ours and its media keys have a stream each.
#[tokio::test]
async fn all_streams_share_one_look_at_newcomers() {
    let (mut world, poll, mut first) = with_bob_in_the_call().await;
    let state = [slot("$open", "open"), member(BOB, "join")];
    let mut second = subscribed(&mut world, &state).await;
    let mut third = subscribed(&mut world, &state).await;
    world.clock.advance(secs(10));
    main_loop(&world, json!({ "events": [member(ALICE, "join")] })).await;
    poll.page("pos-3", "batch-3", ROOM, vec![alice_joins()]).await;
    let (told, asks, poll) = now(&mut world, &mut first).await;
    assert!(told.is_empty(), "{told:?}");
    let [ask] = <[Ask; 1]>::try_from(asks).ok().expect("one request for all streams");
    assert_eq!(asked_users(&ask), [ALICE]);
    tell(ask, &[member(ALICE, "join")]).await;
    // Each is told once, whichever of them has driven the others. Nobody asks again.
    for sessions in [&mut first, &mut second, &mut third] {
        let (told, asks, _) = now(&mut world, sessions).await;
        assert!(matches!(&told[..], [SessionChange::Joined(_)]), "{told:?}");
        assert!(asks.is_empty());
        assert_eq!(sessions.snapshot.session(ROOM_CALL).len(), 2);
    }

    // Dropping the stream that was polled first holds up no other one. The third looks only at the end, and is told
    // the net effect: bob has another membership.
    drop(first);
    poll.unwrap().page("pos-4", "batch-4", ROOM, vec![leaves("$bob-left", BOB)]).await;
    let (told, _, poll) = now(&mut world, &mut second).await;
    assert!(has_left(&told, BOB), "{told:?}");
    let mut again = joins("$bob-again", BOB);
    again["origin_server_ts"] = json!(START_MS + 2);
    poll.unwrap().page("pos-5", "batch-5", ROOM, vec![again]).await;
    let (told, ..) = now(&mut world, &mut second).await;
    assert!(matches!(&told[..], [SessionChange::Joined(_)]), "{told:?}");
    let (told, ..) = now(&mut world, &mut third).await;
    assert!(matches!(&told[..], [SessionChange::Updated { .. }]), "{told:?}");
}

/// A new user every 100 ms, and each answer takes 150 ms.
#[tokio::test]
async fn a_crowd_of_newcomers_holds_back_nobody_else() {
    let (mut world, poll, mut sessions) = with_bob_in_the_call().await;
    let mut poll = Some(poll);
    let (mut asked, mut look_ups) = (Vec::new(), 0);
    let (mut bob_left_at, mut told_at) = (None, None);
    let step = millis(50);
    for n in 0..80 {
        let at = step * n;
        let mut events = Vec::new();
        if n % 2 == 0 {
            events.push(joins(&format!("$new-{n}"), &format!("@new-{n}:hs")));
        }
        if at >= secs(2) && bob_left_at.is_none() {
            events.push(leaves("$bob-left", BOB));
            bob_left_at = Some(at);
        }
        if !events.is_empty() {
            let (pos, batch) = (format!("pos-{n}-"), format!("batch-{n}-"));
            poll.take().unwrap().page(&pos, &batch, ROOM, events).await;
        }
        let (told, asks, next) = now(&mut world, &mut sessions).await;
        poll = poll.or(next);
        if has_left(&told, BOB) {
            told_at = Some(at);
        }
        look_ups += asks.len();
        asked.extend(asks.into_iter().map(|ask| (at + millis(150), ask)));
        let due = asked.iter().position(|(due, _)| *due <= at);
        if let Some(due) = due {
            let (_, ask) = asked.remove(due);
            let joined: Vec<_> =
                asked_users(&ask).iter().map(|user| member(user, "join")).collect();
            tell(ask, &joined).await;
        }
        world.clock.advance(step);
    }
    let waited = told_at.expect("it is told that bob has left") - bob_left_at.unwrap();
    assert!(waited < secs(1), "{waited:?}");
    // In four seconds the crowd is asked about together, and so it is told.
    assert!((3..=6).contains(&look_ups), "{look_ups}");
    let there = sessions.snapshot.session(ROOM_CALL).len();
    assert!((25..40).contains(&there), "{there}");
}

#[tokio::test]
async fn an_answer_that_never_comes_holds_back_newcomers_alone() {
    let (mut world, poll, mut sessions) = with_bob_in_the_call().await;
    main_loop(&world, json!({ "events": [member(ALICE, "join")] })).await;
    poll.page("pos-3", "batch-3", ROOM, vec![alice_joins()]).await;
    let (told, asks, poll) = now(&mut world, &mut sessions).await;
    assert!(told.is_empty(), "{told:?}");
    let [never] = <[Ask; 1]>::try_from(asks).ok().expect("the server is asked about alice");
    assert_eq!(asked_users(&never), [ALICE]);
    poll.unwrap().page("pos-4", "batch-4", ROOM, vec![leaves("$bob-left", BOB)]).await;
    let (told, ..) = now(&mut world, &mut sessions).await;
    assert!(has_left(&told, BOB), "{told:?}");
    assert!(sessions.snapshot.session(ROOM_CALL).is_empty());
    // What the client's store says of alice counts once the server has had its time.
    world.clock.advance(secs(12));
    let (told, ..) = now(&mut world, &mut sessions).await;
    assert!(
        matches!(&told[..], [SessionChange::Joined(member)] if member.user_id() == ALICE),
        "{told:?}"
    );
}

#[tokio::test]
async fn newcomers_are_asked_about_again_after_a_failure() {
    let (mut world, poll, mut sessions) = with_bob_in_the_call().await;
    main_loop(&world, json!({ "events": [member(ALICE, "join")] })).await;
    poll.page("pos-3", "batch-3", ROOM, vec![alice_joins()]).await;
    let (_, asks, _poll) = now(&mut world, &mut sessions).await;
    for ask in asks {
        ask.refuse(500, "M_UNKNOWN").await;
    }
    let (told, asks, _) = now(&mut world, &mut sessions).await;
    assert!(
        matches!(&told[..], [SessionChange::Joined(member)] if member.user_id() == ALICE),
        "{told:?}"
    );
    assert!(asks.is_empty());
    world.clock.advance(secs(15));
    let (_, asks, _) = now(&mut world, &mut sessions).await;
    let [ask] = <[Ask; 1]>::try_from(asks).ok().expect("the server is asked again");
    assert_eq!(asked_users(&ask), [ALICE]);
    tell(ask, &[slot("$open", "open"), member(ALICE, "leave")]).await;
    let (told, ..) = now(&mut world, &mut sessions).await;
    assert!(has_left(&told, ALICE), "{told:?}");
}

fn reason(session: &SessionSnapshot) -> Option<NotJoined> {
    session.candidates().next().map(|candidate| candidate.reason.clone())
}

#[tokio::test]
async fn who_is_in_the_room_by_the_clients_store_alone_is_asked_for_and_not_there_if_the_server_says_so()
 {
    let (mut world, poll) = in_plain_room().await;
    let mut sessions = subscribed(&mut world, &[slot("$open", "open")]).await;
    assert_eq!(sessions.snapshot.session(ROOM_CALL).len(), 0);

    // A membership comes, as one does whose room key was held back; its sender was kicked meanwhile,
    // which the main loop has not told. Nobody sees it before the server has been asked.
    poll.page("pos-2", "batch-2", ROOM, vec![alice_joins()]).await;
    let mut polls = Vec::new();
    let ask = loop {
        tokio::select! {
            change = sessions.changes.next() => panic!("{change:?}"),
            ask = world.server.ask() => match is_of_a_session(&ask) {
                true => break ask,
                false => polls.push(ask),
            },
        }
    };
    assert_eq!(asked_users(&ask), [ALICE]);
    assert!(sessions.changes.next().now_or_never().is_none());
    tell(ask, &[slot("$open", "open"), member(ALICE, "leave")]).await;
    let change = within("a change", sessions.changes.next()).await.unwrap();
    assert!(
        matches!(&change.changes[..], [it] if matches!(it.change, SessionChange::Refused(_))),
        "{change:?}"
    );
    let call = change.snapshot.session(ROOM_CALL);
    assert_eq!((call.len(), reason(&call)), (0, Some(NotJoined::NotInRoom)));

    // That she is there, the main loop has said before the server said otherwise: it is asked again.
    world.clock.advance(secs(1));
    brings(&world, member(ALICE, "join")).await;
    let ask = loop {
        tokio::select! {
            change = sessions.changes.next() => panic!("{change:?}"),
            ask = world.server.ask() => if is_of_a_session(&ask) { break ask },
        }
    };
    assert_eq!(asked_users(&ask), [ALICE]);
    tell(ask, &[slot("$open", "open"), member(ALICE, "join")]).await;
    let change = within("a change", sessions.changes.next()).await.unwrap();
    assert_eq!(change.snapshot.session(ROOM_CALL).len(), 1);
}

#[tokio::test]
async fn encryption_that_a_gap_swallowed_is_found() {
    let (mut world, poll) = in_plain_room().await;
    poll.page("pos-2", "batch-2", ROOM, vec![alice_joins()]).await;
    world.until_event_ids(&["$alice"]).await;
    let _poll = world.server.ask().await;
    let open = [slot("$open", "open"), member(ALICE, "join")];
    let mut sessions = subscribed(&mut world, &open).await;
    assert_eq!(sessions.snapshot.session(ROOM_CALL).len(), 1);

    main_loop(&world, json!({ "events": [], "limited": true })).await;
    let algorithm = json!({ "algorithm": "m.megolm.v1.aes-sha2" });
    world.server.answers_to("/state/m.room.encryption/", 200, algorithm.clone());
    let encryption = state_event("$enc", "m.room.encryption", "", algorithm);
    let [open, alice] = open;
    let plain = |call: &SessionSnapshot| reason(call) == Some(NotJoined::NotEncrypted);
    until(&mut world, &mut sessions, &[open, alice, encryption], plain).await;
    assert!(sessions.snapshot.is_encrypted());
    // The SDK knows it by then, by whose word events are sent.
    let room = world.client.get_room(ROOM.try_into().unwrap()).unwrap();
    assert!(cfg!(not(feature = "e2e-encryption")) || room.encryption_state().is_encrypted());
}

#[tokio::test]
async fn that_we_left_is_found_also_where_too_much_else_came() {
    let (mut world, _poll) = in_plain_room().await;
    let call_member = json!({
        "application": "m.call",
        "call_id": "",
        "device_id": "PHONE",
        "expires": 7_200_000,
        "focus_active": { "type": "livekit" },
        "foci_preferred": [],
    });
    let call_member = state_event("$call", CALL_MEMBER, "_@alice:hs_PHONE", call_member);
    let state = [slot("$open", "open"), member(ALICE, "join"), call_member];
    let mut sessions = subscribed(&mut world, &state).await;
    assert_eq!(sessions.snapshot.session(ROOM_CALL).len(), 1);
    // The SDK keeps eight updates for a slow reader. Nine invites push out that we have left.
    let left = json!({ "timeline": { "events": [membership("leave", 1_000)] } });
    world.main_loop(json!({ "leave": { ROOM: left } })).await;
    for n in 0..9 {
        let invite = json!({
            "type": "m.room.member",
            "state_key": ME,
            "sender": ALICE,
            "content": { "membership": "invite", "reason": format!("{n}") },
        });
        let room = json!({ "invite_state": { "events": [invite] } });
        world.main_loop(json!({ "invite": { ROOM: room } })).await;
    }
    let mut told = Vec::new();
    for _ in 0..10 {
        let (more, asks, _) = now(&mut world, &mut sessions).await;
        told.extend(more);
        for ask in asks {
            ask.refuse(403, "M_FORBIDDEN").await;
        }
        world.clock.advance(secs(1));
    }
    let [SessionChange::Left { reason, .. }, ..] = &told[..] else { panic!("{told:?}") };
    assert_eq!(*reason, NotJoined::RoomLeft);
}

#[tokio::test]
async fn who_comes_back_to_the_room_asks_what_was_missed() {
    let (mut world, _poll) = in_plain_room().await;
    let mut sessions = subscribed(&mut world, &[slot("$open", "open")]).await;
    let [left, joined] = [membership("leave", 2_000), membership("join", 1_000)];
    world.main_loop(json!({ "leave": { ROOM: { "timeline": { "events": [left] } } } })).await;
    let (_, asks, _) = now(&mut world, &mut sessions).await;
    assert!(asks.is_empty());
    world.clock.advance(secs(60));
    brings(&world, joined).await;
    let closed = Some(ClosedBy::Status);
    let state = [slot("$closed", "closed")];
    until(&mut world, &mut sessions, &state, |call| call.closed_by() == closed).await;
}

#[tokio::test]
async fn a_state_that_could_not_be_fetched_is_fetched_later() {
    let (mut world, _poll) = in_plain_room().await;
    let rtc = world.sticky.room(ROOM.try_into().unwrap()).unwrap().rtc();
    let (mut sessions, ()) = tokio::join!(rtc.subscribe(), async {
        world.server.ask().await.refuse(502, "M_UNKNOWN").await;
    });
    assert!(!sessions.snapshot.is_state_known());
    world.clock.advance(secs(14));
    let (_, asks, _) = now(&mut world, &mut sessions).await;
    assert!(asks.is_empty());
    world.clock.advance(secs(1));
    let (_, asks, _) = now(&mut world, &mut sessions).await;
    let [ask] = <[Ask; 1]>::try_from(asks).ok().expect("the server is asked again");
    tell(ask, &[slot("$open", "open")]).await;
    now(&mut world, &mut sessions).await;
    assert!(sessions.snapshot.is_state_known());
    assert_eq!(sessions.snapshot.session(ROOM_CALL).closed_by(), None);
}

/// The main loop brings gaps, slots and memberships in the state without end, for three minutes.
#[tokio::test]
async fn repeated_doubts_ask_for_the_state_ever_more_rarely() {
    let (mut world, _poll) = in_plain_room().await;
    let mut sessions = subscribed(&mut world, &[slot("$open", "open")]).await;
    let mut asked_at = Vec::new();
    for second in 0..180 {
        world.clock.advance(secs(1));
        let event = state_event(&format!("$call-{second}"), CALL_MEMBER, "_@alice:hs_X", json!({}));
        let is_gap = second % 2 == 0;
        main_loop(&world, json!({ "events": [event], "limited": is_gap })).await;
        let (_, asks, _) = now(&mut world, &mut sessions).await;
        for ask in asks {
            asked_at.push(second);
            tell(ask, &[slot("$open", "open")]).await;
        }
    }
    let pauses: Vec<_> = asked_at.windows(2).map(|pair| pair[1] - pair[0]).collect();
    assert_eq!(asked_at[0], 4);
    assert_eq!(pauses[..4], [10, 20, 30, 30], "{asked_at:?}");
    assert!(asked_at.len() <= 8, "{asked_at:?}");

    // After two quiet minutes it is asked as soon as at first.
    world.clock.advance(secs(180));
    main_loop(&world, json!({ "events": [], "limited": true })).await;
    let (_, asks, _) = now(&mut world, &mut sessions).await;
    for ask in asks {
        tell(ask, &[slot("$open", "open")]).await;
    }
    now(&mut world, &mut sessions).await;
    world.clock.advance(secs(5));
    main_loop(&world, json!({ "events": [], "limited": true })).await;
    let (_, asks, _) = now(&mut world, &mut sessions).await;
    assert_eq!(asks.len(), 1);
}

#[tokio::test]
async fn a_slot_that_is_redacted_is_asked_for_and_another_events_redaction_costs_nothing() {
    let (mut world, _poll) = in_plain_room().await;
    let mut sessions = subscribed(&mut world, &[slot("$open", "open")]).await;
    let redaction = |redacts: &str| {
        json!({
            "event_id": format!("$r-{redacts}"),
            "type": "m.room.redaction",
            "sender": ALICE,
            "origin_server_ts": START_MS,
            "redacts": redacts,
            "content": { "redacts": redacts },
        })
    };
    world.clock.advance(secs(5));
    brings(&world, redaction("$message")).await;
    assert!(sessions.changes.next().now_or_never().is_none());
    world.settle().await;
    assert!(!world.server.is_asked());

    brings(&world, redaction("$open")).await;
    let redacted = state_event("$open", SLOT, ROOM_CALL, json!({}));
    let closed = Some(ClosedBy::Malformed("status"));
    until(&mut world, &mut sessions, &[redacted], |call| call.closed_by() == closed).await;
}

#[tokio::test]
async fn where_the_server_does_not_tell_the_state_nobody_joins_what_may_be_closed() {
    let (mut world, _poll) = in_plain_room().await;
    let session = world.sticky.room(ROOM.try_into().unwrap()).unwrap().rtc().session(ROOM_CALL);
    for dialect in [Dialect::Msc4143, Dialect::ElementCall] {
        let join = session.join(Transports::default()).with_dialect(dialect);
        let (joined, ()) = tokio::join!(join.into_future(), async {
            world.server.ask().await.refuse(500, "M_UNKNOWN").await;
        });
        assert!(matches!(joined, Err(JoinError::StateUnknown)), "{joined:?}");
    }
    let (snapshot, ()) = tokio::join!(session.snapshot(), async {
        tell(world.server.ask().await, &[]).await;
    });
    assert!(snapshot.is_state_known());
    assert_eq!(snapshot.closed_by(), Some(ClosedBy::Missing));
    world.settle().await;
    assert!(!world.server.is_sent_more());
}

fn is_about_a_delayed_event(ask: &Ask) -> bool {
    ask.path.contains("delayed_event") || ask.param("org.matrix.msc4140.delay").is_some()
}

/// Answers what a heartbeat asks for, and that the slot is like this.
async fn serve(ask: Ask, sent: &mut usize, status: &str) {
    if is_of_a_session(&ask) {
        tell(ask, &[slot(&format!("${status}"), status)]).await;
    } else if is_about_a_delayed_event(&ask) {
        let answer = json!({ "delay_id": "delay-1", "scheduled": [], "finalised": [] });
        ask.answer(200, answer.to_string()).await;
    } else {
        *sent += 1;
        ask.answer(200, json!({ "event_id": format!("$sent-{sent}") }).to_string()).await;
    }
}

/// Returns a world in which we have joined the room's call.
async fn joined() -> (World, OwnMembership, usize) {
    joined_with(|join| join).await
}

/// As [`joined`], with what `set` sets.
async fn joined_with(
    set: impl FnOnce(JoinSession) -> JoinSession,
) -> (World, OwnMembership, usize) {
    let mut world = World::start().await;
    world.server.has(&[
        "org.matrix.msc4354",
        "org.matrix.simplified_msc3575",
        "org.matrix.msc4140",
    ]);
    world.server.ask().await.page("pos-1", "batch-1", ROOM, Vec::new()).await;
    let poll = world.server.ask().await;
    // It is held for as long as the test runs.
    tokio::spawn(poll.given_up());
    plain_room(&world).await;
    let session = world.sticky.room(ROOM.try_into().unwrap()).unwrap().rtc().session(ROOM_CALL);
    let join = set(session.join(Transports::default()));
    let (membership, ()) = tokio::join!(join.into_future(), async {
        tell(world.server.ask().await, &[slot("$open", "open")]).await;
    });
    let membership = membership.unwrap();
    let mut states = membership.subscribe_state();
    let mut sent = 0;
    within("the join", async {
        while !matches!(membership.state(), HeartbeatState::Joined) {
            tokio::select! {
                ask = world.server.request() => serve(ask, &mut sent, "open").await,
                _ = states.next() => {}
            }
        }
    })
    .await;
    assert_eq!(sent, 1);
    (world, membership, sent)
}

#[tokio::test]
async fn an_old_closing_that_the_main_loop_brings_late_does_not_make_us_leave_and_a_real_one_does()
{
    let (mut world, membership, mut sent) = joined().await;
    // The server is asked before the main loop comes to the event that was closed then.
    brings(&world, slot("$closed", "closed")).await;
    // The roster looks again, and so does the member: that is one request.
    assert_eq!(for_20_s(&mut world, &mut sent, "open").await, 1);
    assert_eq!((membership.state(), membership.left_as(), sent), (HeartbeatState::Joined, None, 1));

    brings(&world, slot("$closed-again", "closed")).await;
    for_20_s(&mut world, &mut sent, "closed").await;
    assert_eq!((membership.state(), sent), (HeartbeatState::Left, 2));
}

#[tokio::test]
async fn who_comes_back_from_the_background_does_not_join_a_slot_that_was_closed_meanwhile() {
    let (mut world, membership, mut sent) = joined().await;
    membership.suspend(InBackground::Leave);
    for_20_s(&mut world, &mut sent, "open").await;
    assert_eq!((membership.state(), sent), (HeartbeatState::Suspended { holds_until: None }, 2));
    brings(&world, slot("$closed", "closed")).await;
    for_20_s(&mut world, &mut sent, "closed").await;
    membership.resume();
    for_20_s(&mut world, &mut sent, "closed").await;
    assert_eq!((membership.state(), sent), (HeartbeatState::Left, 2));
    assert_eq!(membership.left_as(), Some(LeaveReason::with_code(LeaveReason::SLOT_CLOSED)));
}

/// Answers for so long in simulated time. How often the state was asked for.
async fn for_20_s(world: &mut World, sent: &mut usize, status: &str) -> usize {
    let mut asked = 0;
    answering_for_20_s(world, async |ask| {
        asked += usize::from(is_of_a_session(&ask));
        serve(ask, sent, status).await;
    })
    .await;
    asked
}

async fn answering_for_20_s(world: &mut World, mut answer: impl AsyncFnMut(Ask)) {
    for _ in 0..20 {
        // One request may lead to another.
        for _ in 0..5 {
            world.settle().await;
            while let Some(ask) = world.server.request().now_or_never() {
                answer(ask).await;
            }
        }
        world.clock.advance(secs(1));
    }
}

#[tokio::test]
async fn a_slot_that_nobody_can_confirm_closed_ends_nothing() {
    let (mut world, membership, mut sent) = joined().await;
    brings(&world, slot("$closed", "closed")).await;
    let mut refused = 0;
    for _ in 0..2 {
        answering_for_20_s(&mut world, async |ask| match is_of_a_session(&ask) {
            true => {
                refused += 1;
                ask.refuse(500, "M_UNKNOWN").await;
            }
            false => serve(ask, &mut sent, "closed").await,
        })
        .await;
    }
    assert!(refused > 2, "{refused}");
    assert_eq!((membership.state(), membership.left_as(), sent), (HeartbeatState::Joined, None, 1));
    for_20_s(&mut world, &mut sent, "closed").await;
    assert_eq!((membership.state(), sent), (HeartbeatState::Left, 2));
}

fn under_one_id(join: JoinSession) -> JoinSession {
    join.with_dialect(Dialect::ElementCall).with_member_id("mine")
}

/// Without delayed events a join is sticky for ten minutes, and loses to the hour of the leave before.
#[tokio::test]
async fn a_short_join_waits_until_the_old_leave_gives_way() {
    let (mut world, membership, mut sent) = joined_with(under_one_id).await;
    membership.suspend(InBackground::Leave);
    for_20_s(&mut world, &mut sent, "open").await;
    assert_eq!((membership.state(), sent), (HeartbeatState::Suspended { holds_until: None }, 2));
    let answer = async |ask: Ask, sent: &mut usize| match is_about_a_delayed_event(&ask) {
        true => ask.refuse(404, "M_UNRECOGNIZED").await,
        false => serve(ask, sent, "open").await,
    };
    membership.resume();
    for _ in 0..3 {
        answering_for_20_s(&mut world, async |ask| answer(ask, &mut sent).await).await;
    }
    assert_eq!((membership.state(), sent), (HeartbeatState::Rejoining, 2), "nobody would see it");
    world.clock.advance(secs(3_600));
    answering_for_20_s(&mut world, async |ask| answer(ask, &mut sent).await).await;
    assert_eq!((membership.state(), sent), (HeartbeatState::Degraded, 3));
}

#[tokio::test]
async fn a_restart_that_failed_is_tried_again() {
    let (mut world, membership, mut sent) = joined_with(under_one_id).await;
    membership.suspend(InBackground::Leave);
    for_20_s(&mut world, &mut sent, "open").await;
    let room = world.sticky.room(ROOM.try_into().unwrap()).unwrap();
    let other = room.heartbeat("mine").with_raw_content(MEMBER, serde_json::Map::new());
    let other = other.start().await.unwrap();
    membership.resume();
    for_20_s(&mut world, &mut sent, "open").await;
    assert_eq!(membership.state(), HeartbeatState::Rejoining);
    let error = membership.last_error().unwrap();
    assert!(error.contains("has a heartbeat already"), "{error}");
    let leaving = tokio::spawn(async move { other.leave().await });
    for _ in 0..3 {
        for_20_s(&mut world, &mut sent, "open").await;
    }
    assert_eq!(leaving.await.unwrap(), HeartbeatState::Left);
    assert_eq!(membership.state(), HeartbeatState::Joined);
}

#[tokio::test]
async fn an_update_keeps_the_applications_type() {
    let (mut world, membership, mut sent) = joined().await;
    let mut application = RtcApplication::new("m.game");
    application.fields.insert("com.example.hand".to_owned(), json!(true));
    membership.update_application(application);
    let mut said = None;
    answering_for_20_s(&mut world, async |ask| {
        if ask.path.contains("/send/") && !is_about_a_delayed_event(&ask) {
            said = Some(ask.body["application"].clone());
        }
        serve(ask, &mut sent, "open").await;
    })
    .await;
    assert_eq!(said, Some(json!({ "type": "m.call", "com.example.hand": true })));
    assert_eq!((membership.state(), sent), (HeartbeatState::Joined, 2));
}

/// Anybody can send these to the members of a call in an encrypted room. This application has no media
/// keys.
#[cfg(feature = "media-keys")]
#[tokio::test]
async fn a_flood_of_key_messages_is_warned_of_once() {
    let mut world = World::encrypting().await;
    world.server.ask().await.page("pos-1", "batch-1", ROOM, Vec::new()).await;
    tokio::spawn(world.server.ask().await.given_up());
    let algorithm = json!({ "algorithm": "m.megolm.v1.aes-sha2" });
    world.server.answers_to("/state/m.room.encryption/", 200, algorithm.clone());
    let encryption = state_event("$enc", "m.room.encryption", "", algorithm);
    let state = [membership("join", 86_400_000), encryption.clone()];
    world.main_loop(json!({ "join": { ROOM: { "state": { "events": state } } } })).await;
    let session = world.sticky.room(ROOM.try_into().unwrap()).unwrap().rtc().session(ROOM_CALL);
    let join = session.join(Transports::default()).with_dialect(Dialect::ElementCall);
    let (membership, ()) = tokio::join!(join.into_future(), async {
        tell(world.server.ask().await, &[encryption]).await;
    });
    let membership = membership.unwrap();
    let messages: Vec<_> = (0..1_000)
        .map(|n| {
            json!({
                "type": "io.element.call.encryption_keys",
                "sender": format!("@mallory-{}:hs", n % 10),
                "content": { "room_id": ROOM, "keys": { "index": 0, "key": "secret" } },
            })
        })
        .collect();
    world.main_loop_with(json!({ "to_device": { "events": messages } })).await;
    let log = crate::support::log();
    let warned = log.lines().filter(|line| line.contains("too many media keys")).count();
    assert_eq!(warned, 1, "{log}");
    assert!(!log.contains("secret"));
    drop(membership);
}
