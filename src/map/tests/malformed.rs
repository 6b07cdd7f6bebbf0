//! Law 7: malformed events.

use super::*;

#[test]
fn a_malformed_event_costs_only_itself() {
    // The error names it.
    let mut room = Room::new();
    room.section(&event("$a"));
    for (odd, field) in [
        (event("$x").without("/sender"), "sender"),
        (event("$x").with("/sender", "nobody"), "sender"),
        (event("$x").with("/type", 5), "type"),
        (event("$x").with("/origin_server_ts", -5), "origin_server_ts"),
        (event("$x").with("/origin_server_ts", "now"), "origin_server_ts"),
        (event("$x").with("/content", json!([])), "content"),
        (event("$x").without("/content"), "content"),
    ] {
        let malformed =
            room.map.handle_event(room.now, ReceivedVia::Section, odd.raw()).expect_err(field);
        assert_eq!(malformed.event_id.as_deref(), Some("$x"));
        assert_eq!(malformed.fault, wire::Fault::Field(field));
    }
    assert_eq!(room.live(), ["$a"]);
    assert_eq!(room.map.known(), 1);
}
