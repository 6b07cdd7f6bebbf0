//! What an application does around its sticky events: the main loop, waiting, and the session's file.

use std::{error::Error as _, future::IntoFuture as _, sync::Arc, time::Duration};

use matrix_sdk::{
    Client,
    ruma::{room_alias_id, room_id},
};
use matrix_sdk_sticky::{
    SyncState, Unsupported,
    app::{
        MainLoopError, NotLiveError, SessionFile, SessionFileError, WaitForRoomError, keep_syncing,
        wait_for_room,
    },
};
use serde_json::{Value, json};
use tokio::task::JoinHandle;

use crate::support::{
    Homeserver, ManualClock, NEW_TOKEN, REFRESH_TOKEN, ROOM, TOKEN, V3_SYNC, World,
    anonymous_client, client, client_builder, log_in, membership, millis, secs, within,
};

/// A main loop on a task of its own, whose pauses are counted on a clock that the test moves.
struct MainLoop {
    clock: ManualClock,
    task: JoinHandle<MainLoopError>,
}

impl MainLoop {
    fn start(client: &Client) -> Self {
        let clock = ManualClock::new();
        let run = keep_syncing(client).with_clock(Arc::new(clock.clone()));
        Self { clock, task: tokio::spawn(run.into_future()) }
    }

    /// The pause after a failure. Ends it.
    async fn pause(&self) -> Duration {
        let pause = within("the loop pauses", self.clock.next_sleep()).await;
        self.clock.advance(pause);
        pause
    }

    /// Why it ended, after whatever pauses come before that.
    async fn end(mut self) -> MainLoopError {
        loop {
            tokio::select! {
                why = within("the end of the main loop", &mut self.task) => return why.unwrap(),
                pause = self.clock.next_sleep() => self.clock.advance(pause),
            }
        }
    }
}

fn refusal(errcode: &str) -> Value {
    json!({ "errcode": errcode, "error": "as the test wants it" })
}

/// An answer of v3 sync, by which we are in [`ROOM`].
fn joined() -> Value {
    let events = [membership("join", 1_000)];
    json!({ "next_batch": "s1", "rooms": { "join": { ROOM: { "state": { "events": events } } } } })
}

#[tokio::test]
async fn the_loop_survives_errors_and_a_restart() {
    let mut server = Homeserver::start().await;
    server.answers_to(V3_SYNC, 502, json!({}));
    let client = client(&server).await;
    let main_loop = MainLoop::start(&client);
    // From the first pause on, each is twice as long, up to the longest.
    for middle in [1, 2, 4, 8, 10, 10] {
        let (pause, middle) = (main_loop.pause().await, secs(middle));
        assert!((middle / 2..=middle * 3 / 2).contains(&(pause + millis(1))), "{pause:?}");
    }
    server.shut_down().await;
    main_loop.pause().await;
    server.answers_to(V3_SYNC, 200, joined());
    server.come_back().await;
    tokio::select! {
        room = within("the room", wait_for_room(&client, room_id!("!room:hs"))) => room.unwrap(),
        // A try may have gone out before the server was back.
        _ = async { loop { main_loop.pause().await; } } => unreachable!(),
    };

    // A success makes the next pause short again.
    server.answers_to(V3_SYNC, 500, refusal("M_UNKNOWN"));
    assert!(main_loop.pause().await <= millis(1_500));
    assert!(!main_loop.task.is_finished());
    main_loop.task.abort();
}

#[tokio::test]
async fn the_loop_respects_a_rate_limit() {
    let server = Homeserver::start().await;
    let mut limit = refusal("M_LIMIT_EXCEEDED");
    limit["retry_after_ms"] = json!(60_000);
    server.answers_to(V3_SYNC, 429, limit.clone());
    let main_loop = MainLoop::start(&client(&server).await);
    assert_eq!(main_loop.pause().await, secs(60));
    // Nobody makes us wait for a day.
    limit["retry_after_ms"] = json!(86_400_000);
    server.answers_to(V3_SYNC, 429, limit);
    while main_loop.pause().await != secs(300) {}
    main_loop.task.abort();
}

#[tokio::test]
async fn the_loop_ends_with_a_lost_token() {
    for errcode in ["M_UNKNOWN_TOKEN", "M_MISSING_TOKEN"] {
        let server = Homeserver::start().await;
        server.answers_to(V3_SYNC, 401, refusal(errcode));
        let why = MainLoop::start(&client(&server).await).end().await;
        assert!(matches!(why, MainLoopError::LoggedOut { .. }), "{why:?}");
        assert!(why.to_string().ends_with("log in again") && why.source().is_some());
    }
    let why = MainLoop::start(&anonymous_client(&Homeserver::start().await).await).end().await;
    assert!(matches!(why, MainLoopError::NotLoggedIn), "{why:?}");
}

/// A server that is away while it is asked for a new token has refused nothing.
#[tokio::test]
async fn only_a_refused_refresh_ends_the_loop() {
    let server = Homeserver::start().await;
    server.answers_to(V3_SYNC, 401, refusal("M_UNKNOWN_TOKEN"));
    server.answers_to("/refresh", 502, json!({}));
    let client = client_builder(&server).handle_refresh_tokens().build().await.unwrap();
    log_in(&client, Some(REFRESH_TOKEN)).await;
    let main_loop = MainLoop::start(&client);
    main_loop.pause().await;
    main_loop.pause().await;
    server.answers_to("/refresh", 401, refusal("M_UNKNOWN_TOKEN"));
    assert!(matches!(main_loop.end().await, MainLoopError::LoggedOut { .. }));
}

#[tokio::test]
async fn a_room_is_waited_for_by_id_or_alias() {
    let world = World::start().await;
    let path = "/directory/room/%23room:hs";
    world.server.answers_to(path, 200, json!({ "room_id": ROOM, "servers": ["hs"] }));
    let waiting = [
        tokio::spawn({
            let client = world.client.clone();
            async move { wait_for_room(&client, room_id!("!room:hs")).await }
        }),
        tokio::spawn({
            let client = world.client.clone();
            async move { wait_for_room(&client, room_alias_id!("#room:hs")).await }
        }),
    ];
    while world.server.count("/joined_rooms") < 2 {
        world.settle().await;
    }
    assert!(waiting.iter().all(|task| !task.is_finished()));
    world.is_in(ROOM).await;
    for task in waiting {
        let room = within("the room", task).await.unwrap().unwrap();
        assert_eq!(room.room_id(), ROOM);
    }
    // Once it is there, nobody is asked.
    let asked = world.server.count("/joined_rooms");
    wait_for_room(&world.client, room_id!("!room:hs")).await.unwrap();
    assert_eq!(world.server.count("/joined_rooms"), asked);
}

#[tokio::test]
async fn waiting_ends_if_the_room_cannot_come() {
    let server = Homeserver::start().await;
    let client = client(&server).await;
    let room = room_id!("!elsewhere:hs");
    let error = wait_for_room(&client, room).await.unwrap_err();
    assert!(matches!(&error, WaitForRoomError::NotJoined { state: None, .. }), "{error:?}");
    assert_eq!(error.to_string(), "the room !elsewhere:hs is not joined: join it first");

    let error = wait_for_room(&client, room_alias_id!("#none:hs")).await.unwrap_err();
    assert!(matches!(error, WaitForRoomError::UnknownAlias { .. }), "{error:?}");

    server.answers_to("/joined_rooms", 403, refusal("M_FORBIDDEN"));
    let error = wait_for_room(&client, room).await.unwrap_err();
    assert!(matches!(error, WaitForRoomError::Refused { .. }), "{error:?}");

    server.answers_to("/joined_rooms", 401, refusal("M_UNKNOWN_TOKEN"));
    let error = wait_for_room(&client, room).await.unwrap_err();
    assert!(matches!(error, WaitForRoomError::LoggedOut { .. }), "{error:?}");

    let error = wait_for_room(&anonymous_client(&server).await, room).await.unwrap_err();
    assert!(matches!(error, WaitForRoomError::NotLoggedIn), "{error:?}");
}

#[tokio::test]
async fn until_live_outlasts_an_outage() {
    let mut world = World::start().await;
    let live = tokio::spawn({
        let sticky = world.sticky.clone();
        async move { sticky.until_live().await }
    });
    world.server.ask().await.refuse(500, "M_UNKNOWN").await;
    world.until_offline().await;
    assert!(!live.is_finished());
    let ask = world.ask_sometime().await;
    ask.page("pos-1", "batch-1", ROOM, vec![]).await;
    let _poll = world.server.ask().await;
    within("it to be live", live).await.unwrap().unwrap();
    world.sticky.until_live().await.unwrap();
}

#[tokio::test]
async fn until_live_says_why_it_cannot() {
    let server = Homeserver::start().await;
    server.has(&["org.matrix.simplified_msc3575"]);
    let client = client(&server).await;
    let world = World::of(server, client);
    let error = within("an error", world.sticky.until_live()).await.unwrap_err();
    assert_eq!(error, NotLiveError::Unsupported(Unsupported::StickyEvents));
    assert!(error.to_string().contains("MSC4354"), "{error}");

    let mut world = World::start().await;
    world.server.ask().await.refuse(401, "M_UNKNOWN_TOKEN").await;
    world.until(&SyncState::LoggedOut).await;
    assert_eq!(world.sticky.until_live().await, Err(NotLiveError::LoggedOut));
}

#[tokio::test]
async fn a_session_is_found_again() {
    let server = Homeserver::start().await;
    let folder = tempfile::tempdir().unwrap();
    let file = SessionFile::new(folder.path().join("made/session.json"));
    let first = anonymous_client(&server).await;
    assert!(file.restore(&first).await.unwrap().is_none());
    assert!(matches!(file.save(&first), Err(SessionFileError::NotLoggedIn)));
    log_in(&first, None).await;
    file.save(&first).unwrap();
    #[cfg(unix)]
    {
        use std::os::unix::fs::PermissionsExt as _;
        let mode = std::fs::metadata(file.path()).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
    }

    let second = anonymous_client(&server).await;
    let found = file.restore(&second).await.unwrap().unwrap();
    assert_eq!(Some(found.device_id.as_ref()), first.device_id());
    assert_eq!(second.access_token().as_deref(), Some(TOKEN));
    // Only once for each client: matrix-sdk takes the callbacks once.
    assert!(matches!(file.restore(&second).await, Err(SessionFileError::Sdk { .. })));
    file.remove().unwrap();
    file.remove().unwrap();
    assert!(!file.path().exists());
}

#[tokio::test]
async fn new_tokens_are_in_the_file_before_their_use() {
    let server = Homeserver::start().await;
    server.answers_to("/refresh", 200, json!({ "access_token": NEW_TOKEN }));
    let folder = tempfile::tempdir().unwrap();
    let file = SessionFile::new(folder.path().join("session.json"));
    let client = anonymous_client(&server).await;
    file.restore(&client).await.unwrap();
    log_in(&client, Some(REFRESH_TOKEN)).await;
    file.save(&client).unwrap();
    client.refresh_access_token().await.unwrap();
    assert!(std::fs::read_to_string(file.path()).unwrap().contains(NEW_TOKEN));
}

#[tokio::test]
async fn a_broken_file_is_named_without_its_content() {
    let server = Homeserver::start().await;
    let folder = tempfile::tempdir().unwrap();
    let file = SessionFile::new(folder.path().join("session.json"));
    std::fs::write(file.path(), format!(r#"{{"access_token":"{TOKEN}""#)).unwrap();
    let error = file.restore(&anonymous_client(&server).await).await.unwrap_err();
    assert!(matches!(error, SessionFileError::Malformed { .. }), "{error:?}");
    assert!(error.to_string().contains("session.json"), "{error}");
    assert!(!format!("{error:?} {error}").contains(TOKEN));

    let file = SessionFile::new(folder.path().join("session.json/below"));
    let client = client(&server).await;
    let error = file.save(&client).unwrap_err();
    assert!(matches!(error, SessionFileError::Io { verb: "write", .. }), "{error:?}");
}
