// The store: matrix-js-sdk's `RoomStickyEventsStore`, fed as its v3 sync feeds it.
//
// In: the corpus that `ours.rs` wrote. Out: one JSON object a line, the same as from there. Both
// read the same bytes: bodies of /sync responses whose sticky section has a page of events.
//
// node --expose-gc store.mjs CORPUS

import { readFileSync } from "node:fs";
import { join } from "node:path";
import loglevel from "loglevel";
import { createClient } from "matrix-js-sdk";
import { RoomStickyEventsEvent, RoomStickyEventsStore } from "matrix-js-sdk/lib/models/room-sticky-events.js";
import { noUnsafeEventProps } from "matrix-js-sdk/lib/utils.js";

const corpus = process.argv[2];
const { room, phases, pages, rounds, crowd } = JSON.parse(readFileSync(join(corpus, "corpus.json"), "utf8"));

// A line for each event that is dropped or ends would be most of what is measured.
for (const logger of [loglevel, ...Object.values(loglevel.getLoggers())]) {
    logger.setLevel("silent", false);
}

const client = createClient({ baseUrl: "http://localhost", userId: "@watcher:example.org", accessToken: "none" });

/** The store of one room, with one subscriber who looks at each entry. */
class Watched {
    constructor() {
        this.store = new RoomStickyEventsStore();
        this.told = 0;
        this.store.on(RoomStickyEventsEvent.Update, (added, updated, removed) => {
            this.told += added.length + updated.length + removed.length;
        });
    }

    /** What `SyncApi.processSyncResponse` does with a sticky section, and nothing else of it. */
    feed(body) {
        const response = JSON.parse(body);
        const mapper = client.getEventMapper({ decrypt: true });
        for (const joined of Object.values(response.rooms.join)) {
            this.store.addStickyEvents(joined.msc4354_sticky.events.filter(noUnsafeEventProps).map((event) => mapper(event)));
        }
    }

    /** How many entries there are, and a sum of their event ids: both sides have to agree. To
     *  this store a removal is an event like others; its users tell by the content. */
    seen() {
        let count = 0;
        let sum = 0;
        for (const event of this.store.getStickyEvents()) {
            const { sticky_key, msc4354_sticky_key, ...rest } = event.getContent();
            if (Object.keys(rest).length === 0) continue;
            count += 1;
            sum = (sum + fnv(event.getId())) >>> 0;
        }
        return [count, sum];
    }
}

/** FNV-1a. */
function fnv(text) {
    let hash = 0x811c9dc5;
    for (let i = 0; i < text.length; i++) {
        hash = Math.imul(hash ^ text.charCodeAt(i), 0x01000193);
    }
    return hash >>> 0;
}

/** The events of a file, each the text between two line ends. Outside V8's heap. */
function* events(name) {
    const file = readFileSync(join(corpus, `${name}.jsonl`));
    for (let start = 0; start < file.length; ) {
        const end = file.indexOf(10, start);
        yield file.toString("utf8", start, end);
        start = end + 1;
    }
}

/** Responses of so many events each. */
function* bodies(name, page) {
    const body = (list) => {
        const text = `{"next_batch":"s1","rooms":{"join":{"${room}":{"msc4354_sticky":{"events":[${list.join()}]}}}}}`;
        // Through bytes, so that it is one string and not a tree of them.
        return Buffer.from(text).toString();
    };
    let list = [];
    for (const event of events(name)) {
        list.push(event);
        if (list.length === page) {
            yield body(list);
            list = [];
        }
    }
    if (list.length) yield body(list);
}

function say(line) {
    process.stdout.write(`${JSON.stringify(line)}\n`);
}

/**
 * The main thread's time on the processor, in nanoseconds: what others do on the machine does not
 * count, and neither does what V8 collects and compiles on threads of its own.
 */
function time(work) {
    const began = process.threadCpuUsage();
    work();
    const { user, system } = process.threadCpuUsage(began);
    return (user + system) * 1000;
}

/** Keeps what is parsed from being optimised away. */
let sink;

function feeding() {
    for (const page of pages) {
        const texts = phases.map((phase) => [phase, [...bodies(phase, page)]]);
        // The first round is V8's, to compile what is hot.
        for (let round = 0; round <= rounds; round++) {
            const watched = new Watched();
            for (const [phase, bodies] of texts) {
                globalThis.gc();
                const scan = time(() => {
                    for (const body of bodies) sink = JSON.parse(body);
                });
                globalThis.gc();
                const told = watched.told;
                const fed = time(() => {
                    for (const body of bodies) watched.feed(body);
                });
                if (round > 0) {
                    say({ row: "feed", page, phase, ns: fed, scan_ns: scan, told: watched.told - told, seen: watched.seen() });
                }
            }
            watched.store.clear();
        }
    }
}

/** 100,000 entries: what each takes, and one after the other ends. */
function living() {
    const now = Date.now();
    let moment = now;
    Date.now = () => moment;
    const watched = new Watched();
    globalThis.gc();
    globalThis.gc();
    const before = process.memoryUsage().heapUsed;
    for (const body of bodies("crowd", 1)) watched.feed(body);
    globalThis.gc();
    globalThis.gc();
    const after = process.memoryUsage().heapUsed;
    say({ row: "memory", bytes: after - before, seen: watched.seen() });

    moment = now + crowd.first_end_ms - 1;
    const expire = () => {
        moment += 1;
        const told = watched.told;
        // What its timer calls.
        const took = time(() => watched.store.cleanExpiredStickyEvents());
        if (watched.told !== told + 1) throw new Error(`${watched.told - told} entries ended at once`);
        return took;
    };
    for (let i = 0; i < 5; i++) expire();
    for (let i = 0; i < crowd.their_expiries; i++) say({ row: "expiry", ns: expire() });
}

feeding();
living();
// The store's timer would keep us for half an hour.
process.exit(sink === undefined ? 1 : 0);
