// One user's matrix-js-sdk client on v3 sync: one line for each sticky event of a room, from the
// store's own callback.
//
// node watch.mjs HOMESERVER USERNAME PASSWORD ROOM

import { writeSync } from "node:fs";
import { ClientEvent, createClient, SyncState } from "matrix-js-sdk";
import { RoomStickyEventsEvent } from "matrix-js-sdk/lib/models/room-sticky-events.js";

const [baseUrl, username, password, roomId] = process.argv.slice(2);

// As the other side, it logs nothing.
for (const name of ["trace", "debug", "log", "info", "warn", "error"]) {
    console[name] = () => {};
}

// At once, as each line is stamped by who reads it.
function say(line) {
    writeSync(1, `${JSON.stringify(line)}\n`);
}

const login = await createClient({ baseUrl }).loginRequest({
    type: "m.login.password",
    identifier: { type: "m.id.user", user: username },
    password,
});
const client = createClient({
    baseUrl,
    userId: login.user_id,
    deviceId: login.device_id,
    accessToken: login.access_token,
});
client.once(ClientEvent.Sync, (state) => {
    if (state !== SyncState.Prepared) {
        process.stderr.write(`error: the first sync: ${state}\n`);
        process.exit(1);
    }
    const room = client.getRoom(roomId);
    if (!room) {
        process.stderr.write(`error: ${roomId} is not joined\n`);
        process.exit(1);
    }
    room.on(RoomStickyEventsEvent.Update, (added, updated) => {
        for (const event of [...added, ...updated.map(({ current }) => current)]) {
            say({ kind: "update", event_id: event.getId() });
        }
    });
    say({ kind: "ready" });
});
await client.startClient({ initialSyncLimit: 1 });
