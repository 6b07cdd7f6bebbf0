//! Deadlines, wakers, dropped handles, and hidden rooms.

use super::*;

#[test]
fn another_next_deadline_wakes_the_timer() {
    let world = World::new();
    let timer = Task::default();
    assert!(timer.poll_next_deadline(&world.maps, None).is_pending());
    world.receive(&[event("$a").lasting(60_000)]);
    assert_eq!(timer.wakes(), 1);
    let Poll::Ready(Some(minute)) = timer.poll_next_deadline(&world.maps, None) else {
        panic!("nothing to wait for")
    };
    assert_eq!(minute.left(world.clock.now()), secs(60));

    assert!(timer.poll_next_deadline(&world.maps, Some(minute)).is_pending());
    world.receive(&[event("$b").key("b").lasting(120_000)]);
    world.receive(&[event("$a").lasting(60_000)]);
    assert_eq!(timer.wakes(), 1, "a later deadline changes nothing");
    world.receive(&[event("$c").key("c").lasting(30_000)]);
    assert_eq!(timer.wakes(), 2);
    let Poll::Ready(Some(sooner)) = timer.poll_next_deadline(&world.maps, Some(minute)) else {
        panic!("nothing to wait for")
    };
    assert_eq!(sooner.left(world.clock.now()), secs(30));

    assert!(timer.poll_next_deadline(&world.maps, Some(sooner)).is_pending());
    world.clock.jump(secs(30));
    world.maps.advance();
    assert_eq!(timer.wakes(), 3);
    assert!(timer.poll_next_deadline(&world.maps, Some(sooner)).is_ready());
}

#[test]
fn a_gone_deadline_wakes_the_timer() {
    let world = World::new();
    world.receive(&[event("$a")]);
    let known = world.maps.next_deadline();
    let timer = Task::default();
    assert!(timer.poll_next_deadline(&world.maps, known).is_pending());
    world.maps.handle_left(room());
    assert_eq!(timer.wakes(), 1);
    assert_eq!(timer.poll_next_deadline(&world.maps, known), Poll::Ready(None));
}

#[test]
fn an_expiry_wakes_subscribers_when_the_timer_advances() {
    let world = World::new();
    world.receive(&[event("$a")]);
    let mut changes = world.maps.view().subscribe().changes;
    let task = Task::default();
    assert!(task.poll(&mut changes).is_pending());
    world.clock.jump(secs(60));
    world.maps.advance();
    assert_eq!(task.wakes(), 1);
    let change = Some(task.ready(&mut changes));
    assert_eq!(told(change), ["-$a expired"]);
}

#[test]
fn an_emptied_room_costs_nothing() {
    let world = World::new();
    world.receive(&[event("$a")]);
    world.clock.jump(secs(60));
    world.maps.advance();
    // The map remembers for an hour that the event ended.
    assert_eq!(world.maps.stats(room()).events, 0);
    world.clock.jump(secs(3_600));
    world.maps.advance();
    assert!(world.maps.rooms().is_empty());
    assert_eq!(world.maps.next_deadline(), None);
}

#[test]
fn a_room_without_sticky_events_costs_nothing() {
    let world = World::new();
    world.receive(&[event("$a").without("/msc4354_sticky")]);
    assert!(world.maps.rooms().is_empty());
    assert_eq!(world.maps.next_deadline(), None);
}

#[test]
fn a_dropped_subscription_is_gone() {
    let world = World::new();
    let subscription = world.maps.view().subscribe();
    let list = world.maps.view().subscribe_list();
    let typed = world.maps.view().read_as::<Status>().subscribe();
    assert_eq!(world.maps.subscribers(), 3);
    drop((subscription, list, typed));
    assert_eq!(world.maps.subscribers(), 0);
}

#[test]
fn views_and_streams_keep_their_keeper() {
    let world = World::new();
    let keeper = Arc::new(());
    let view = world.maps.view().with_keeper(keeper.clone());
    let narrowed = view.clone().in_room(room().to_owned());
    drop(view);
    assert!(Arc::strong_count(&keeper) > 1);
    let changes = narrowed.subscribe().changes;
    let diffs = narrowed.subscribe_list().diffs;
    let typed = narrowed.read_as::<Status>().subscribe().changes;
    assert_eq!(Arc::strong_count(&keeper), 4);
    drop((changes, diffs, typed));
    assert_eq!(Arc::strong_count(&keeper), 1);
}

/// A waker that looks at the map at once, on the same thread, as some executors do.
struct LooksAtOnce(EphemeralMaps);

impl Wake for LooksAtOnce {
    fn wake(self: Arc<Self>) {
        assert!(!self.0.view().snapshot().is_empty());
    }
}

#[test]
fn wakers_are_woken_outside_the_lock() {
    let world = World::new();
    let waker = Waker::from(Arc::new(LooksAtOnce(world.maps.clone())));
    let mut context = Context::from_waker(&waker);
    let mut changes = world.maps.view().subscribe().changes;
    assert!(Pin::new(&mut changes).poll_next(&mut context).is_pending());
    assert!(world.maps.poll_next_deadline(&mut context, None).is_pending());
    world.receive(&[event("$a")]);
}

#[test]
fn nothing_shows_an_events_text_in_debug() {
    let world = World::new();
    let secret = "syd_secret";
    let own = event("$a")
        .with("/unsigned/org.matrix.msc4140.delay_id", secret)
        .with("/content/body", "private words");
    let mut subscription = world.maps.view().subscribe();
    let mut list = world.maps.view().subscribe_list();
    let delivery = world.delivery(room(), vec![Arrival::Event(own.raw())]);
    let decrypted = Arrival::Decrypted {
        outer: own.raw(),
        clear: own.raw(),
        encryption: Encryption::Plaintext,
    };
    let mut shown = vec![debug(&delivery), debug(&decrypted)];
    world.maps.handle([delivery]);
    let view = world.maps.view();
    shown.push(debug(&world.maps));
    shown.push(debug(&view));
    shown.push(debug(&view.snapshot()));
    shown.push(debug(&view.subscribe()));
    shown.push(debug(&view.subscribe_list()));
    shown.push(debug(&subscription.changes.next_now()));
    shown.push(debug(&subscription));
    let diffs = Some(Task::default().ready(&mut list.diffs));
    shown.push(debug(&diffs));
    shown.push(debug(&list));
    shown.push(debug(&view.clone().read_as::<Status>()));
    for shown in shown {
        assert!(!shown.contains(secret) && !shown.contains("private"), "{shown}");
    }
}

#[test]
fn entries_know_their_room() {
    let world = World::new();
    world.receive_in(&[(other_room(), &[event("$a")])]);
    let entry = world.maps.view().snapshot().iter().next().unwrap();
    let room_id: OwnedRoomId = entry.room_id().to_owned();
    assert_eq!(room_id, other_room());
    assert_eq!(entry.expires_in(world.clock.now()), secs(60));
}

/// A waker that owns its task. The task looks at the maps when it is dropped.
struct Owning(EphemeralMaps);

impl Wake for Owning {
    fn wake(self: Arc<Self>) {}
}

impl Drop for Owning {
    fn drop(&mut self) {
        self.0.advance();
    }
}

#[test]
#[expect(clippy::disallowed_methods, reason = "a deadlock is to be seen from outside")]
fn nothing_of_a_callers_runs_under_the_lock() {
    let (done, is_done) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        let world = World::new();
        let maps = world.maps.clone();
        let mut changes = maps.view().subscribe().changes;
        for _ in 0..2 {
            let waker = Waker::from(Arc::new(Owning(maps.clone())));
            let mut cx = Context::from_waker(&waker);
            assert!(Pin::new(&mut changes).poll_next(&mut cx).is_pending());
            assert!(maps.poll_next_deadline(&mut cx, None).is_pending());
        }
        let looking = [world.delivery(room(), vec![Arrival::Event(event("$a").raw())])];
        maps.handle(looking.into_iter().inspect(|_| assert!(maps.view().snapshot().is_empty())));
        done.send(told(changes.next_now())).unwrap();
    });
    let told = is_done.recv_timeout(std::time::Duration::from_secs(20));
    assert_eq!(told.expect("it is locked for ever"), ["+$a"]);
}

#[cfg(feature = "client")]
#[test]
fn a_revealed_room_is_seen() {
    let world = World::new();
    world.maps.hide(vec![room().to_owned()]);
    let mut changes = world.maps.view().subscribe().changes;
    world.receive(&[event("$short").key("short").lasting(1_000), event("$a")]);
    world.receive(&[event("$b").key("b")]);
    world.redact("$b");
    world.clock.jump(secs(2));
    world.maps.advance();
    assert!(world.maps.view().snapshot().is_empty());
    assert_eq!(told(changes.next_now()), [""; 0]);

    world.maps.reveal(room());
    assert_eq!(told(changes.next_now()), ["+$a"]);
    assert_eq!(world.maps.hidden(), Vec::<OwnedRoomId>::new());
    // A room that is visible already is not hidden again.
    world.maps.hide(vec![room().to_owned()]);
    assert_eq!(world.maps.view().snapshot().len(), 1);
    assert!(world.maps.hidden().is_empty());
}

#[cfg(feature = "client")]
#[test]
fn a_hidden_room_is_forgotten_whole() {
    let world = World::new();
    world.maps.hide(vec![room().to_owned(), other_room().to_owned()]);
    world.receive_in(&[(room(), &[event("$a")]), (other_room(), &[event("$b")])]);
    world.maps.handle_left(room());
    assert_eq!(world.maps.hidden(), [other_room()]);
    // Both its entry and the memory of it are over.
    world.clock.jump(secs(60));
    world.maps.advance();
    world.clock.jump(secs(3_600));
    world.maps.advance();
    assert!(world.maps.hidden().is_empty() && world.maps.rooms().is_empty());
}
