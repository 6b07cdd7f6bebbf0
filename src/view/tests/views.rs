//! Filters, lists and typed views.

use super::*;

// Filters.

#[test]
fn a_view_filters_room_type_and_sender() {
    let world = World::new();
    world.receive_in(&[
        (room(), &[event("$1"), event("$2").by(BOB), event("$3").of_type("z.other")]),
        (other_room(), &[event("$4")]),
    ]);
    let all = world.maps.view();
    let views = [
        (all.clone(), vec!["$1", "$2", "$3", "$4"]),
        (all.clone().in_room(room().to_owned()), vec!["$1", "$2", "$3"]),
        (all.clone().of_type("com.example.t"), vec!["$1", "$2", "$4"]),
        (all.clone().by_sender(UserId::parse(BOB).unwrap()), vec!["$2"]),
        (all.clone().of_type("z.other").in_room(room().to_owned()), vec!["$3"]),
        (all.clone().of_type("z.other").in_room(other_room().to_owned()), vec![]),
        (all.in_room(room_id!("!none:hs").to_owned()), vec![]),
    ];
    for (view, expected) in views {
        assert_eq!(ids(view.snapshot().iter()), expected);
        assert_eq!(view.snapshot().len(), expected.len());
        assert_eq!(view.snapshot().is_empty(), expected.is_empty());
        assert_eq!(ids(view.subscribe_list().entries), expected);
    }
}

#[test]
fn a_filtered_change_is_silent() {
    let world = World::new();
    let all = world.maps.view();
    let mut bobs = all.clone().by_sender(UserId::parse(BOB).unwrap()).subscribe().changes;
    let mut others = all.clone().of_type("z.other").subscribe().changes;
    let mut two = all.in_room(other_room().to_owned()).subscribe().changes;
    let task = Task::default();
    for changes in [&mut bobs, &mut others, &mut two] {
        assert!(task.poll(changes).is_pending());
    }
    world.receive(&[event("$1")]);
    assert_eq!(task.wakes(), 0);
    world.receive(&[event("$2").by(BOB)]);
    assert_eq!(task.wakes(), 1);
    assert_eq!(told(bobs.next_now()), ["+$2"]);
    assert_eq!(told(others.next_now()), [""; 0]);
    assert_eq!(told(two.next_now()), [""; 0]);
}

#[test]
fn what_is_there_for_a_key_is_found() {
    let world = World::new();
    world.receive_in(&[
        (room(), &[event("$a").key("a")]),
        (other_room(), &[event("$a2").key("a"), event("$b").key("b")]),
    ]);
    let view = world.maps.view();
    let id = |entry: Option<Entry>| entry.map(|entry| entry.event_id().to_string());
    for (sticky_key, expected) in [("a", Some("$a")), ("b", Some("$b")), ("c", None)] {
        let expected = expected.map(str::to_owned);
        assert_eq!(id(view.get(&key(sticky_key))), expected);
        assert_eq!(id(view.snapshot().get(&key(sticky_key))), expected);
    }
    let two = view.clone().in_room(other_room().to_owned());
    assert_eq!(id(two.get(&key("a"))), Some("$a2".to_owned()));
    assert_eq!(id(view.of_type("other").get(&key("a"))), None);
}

#[test]
fn senders_are_named_once_each() {
    let world = World::new();
    world.receive_in(&[
        (room(), &[event("$1").by(BOB), event("$2"), event("$3").key("3")]),
        (other_room(), &[event("$4").by(BOB)]),
    ]);
    assert_eq!(world.maps.view().snapshot().senders(), [ALICE, BOB]);
}

// Lists.

#[test]
fn applied_diffs_give_the_snapshot() {
    let world = World::new();
    world.receive(&[event("$b").key("b"), event("$d").key("d"), event("$f").key("f")]);
    let mut list = world.maps.view().subscribe_list();
    let task = Task::default();
    let steps: [&dyn Fn(); 5] = [
        &|| world.receive(&[event("$a").key("a"), event("$c").key("c"), event("$g").key("g")]),
        &|| {
            world.receive(&[
                event("$d2").key("d").sent(1),
                event("$b2").key("b").sent(1).removal(),
                event("$e").key("e"),
            ]);
        },
        &|| world.receive_in(&[(other_room(), &[event("$z")]), (room(), &[event("$y").unkeyed()])]),
        &|| world.ignore(&[ALICE]),
        &|| world.ignore(&[]),
    ];
    for step in steps {
        step();
        let diffs = task.ready(&mut list.diffs);
        assert!(!diffs.is_empty());
        for diff in diffs {
            diff.apply(&mut list.entries);
        }
        assert_eq!(ids(list.entries.clone()), world.seen());
        assert!(task.poll(&mut list.diffs).is_pending());
    }
}

// Typed views.

#[test]
fn a_typed_view_shows_bad_contents_with_errors() {
    let world = World::new();
    world.receive(&[
        status("$1", json!("here")),
        status("$2", json!(5)).key("odd"),
        event("$3").key("other type"),
    ]);
    let view = world.maps.view().read_as::<Status>();
    let entries = view.snapshot();
    assert_eq!(entries.len(), 2);
    assert_eq!(entries[0].content().unwrap().status, "here");
    assert!(entries[1].content().is_err());
    assert_eq!(entries[1].event_id(), "$2");
    let key = StickyKey::new(UserId::parse(ALICE).unwrap(), Status::TYPE, "k");
    let (entry, content) = view.get(&key).unwrap().into_parts();
    assert_eq!(entry.event_id(), "$1");
    assert_eq!(content.unwrap(), Status { status: "here".to_owned() });
}

#[test]
fn typed_and_plain_streams_agree() {
    let world = World::new();
    world.receive(&[status("$1", json!("here"))]);
    let mut subscription = world.maps.view().read_as::<Status>().subscribe();
    assert_eq!(subscription.snapshot.len(), 1);
    let task = Task::default();

    world.receive(&[
        status("$2", json!("away")).sent(1),
        status("$3", json!(null)).key("n"),
        event("$other").key("other type"),
    ]);
    let change = task.ready(&mut subscription.changes);
    let [TypedChange::Updated(away), TypedChange::Added(odd)] = change.as_slice() else {
        panic!("{change:?}")
    };
    assert_eq!(away.content().unwrap().status, "away");
    assert!(odd.content().is_err());

    world.receive(&[event("$gone").of_type(Status::TYPE).sent(2).removal()]);
    let change = task.ready(&mut subscription.changes);
    let [TypedChange::Removed { entry, reason }] = change.as_slice() else { panic!("{change:?}") };
    assert_eq!((entry.event_id().as_str(), *reason), ("$2", RemovalReason::Removed));
    assert!(task.poll(&mut subscription.changes).is_pending());
}

#[test]
fn deep_content_fails_only_when_read() {
    let deep = format!("{}{}", "[".repeat(100_000), "]".repeat(100_000));
    let text = event("$deep").of_type(Status::TYPE).with("/content/status", "DEEP").text();
    let text = text.replace(r#""DEEP""#, &deep);
    let world = World::new();
    let arrivals = vec![Arrival::Event(raw(text)), Arrival::Event(event("$b").raw())];
    world.maps.handle([world.delivery(room(), arrivals)]);
    assert_eq!(world.seen(), ["$deep", "$b"]);
    let entries = world.maps.view().read_as::<Status>().snapshot();
    assert!(entries[0].content().is_err());
    assert!(entries[0].event().content::<serde_json::Value>().is_err());
    assert!(entries[0].content_raw().unwrap().get().contains("[[[["));
}
