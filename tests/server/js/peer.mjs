// One user's matrix-js-sdk client, as Element Call runs it: v3 sync, and the MatrixRTC session of
// the slot m.call#ROOM of one room. It does as it is told, one JSON object a line on stdin:
//
//   {"do":"start","homeserver","user","password","room","crypto":bool}
//   {"do":"join","sticky":bool,"delay_ms","restart_ms","intent","application","member_id","transport"}
//   {"do":"intent","intent"}            {"do":"application","application":{..}}
//   {"do":"slot","open":bool}           {"do":"leave"}
//   {"do":"know","user_id","device_id"} waits until it would encrypt to that device
//
// Each is answered by {"kind":"done","do"} or {"kind":"error","do","error"}, and in between it says
//
//   {"kind":"memberships","members":[{"user_id","device_id","member_id","intent"}]}
//   {"kind":"joined","joined":bool}     {"kind":"probably_left","probably_left":bool}
//   {"kind":"key","index","key","user_id","device_id","member_id","identity"}
//
// It is for tests, so it says keys. It ends when stdin does. JS_LOG=1 shows its log on stderr.

import { writeSync } from "node:fs";
import { createInterface } from "node:readline";
import loglevel from "loglevel";
import { ClientEvent, createClient, SyncState } from "matrix-js-sdk";
import { MatrixRTCSessionEvent, MembershipManagerEvent } from "matrix-js-sdk/lib/matrixrtc/index.js";

for (const name of ["trace", "debug", "log", "info", "warn", "error"]) {
    console[name] = (...words) => {
        if (process.env.JS_LOG) process.stderr.write(`${new Date().toISOString()} ${words.map(String).join(" ")}\n`);
    };
}
if (!process.env.JS_LOG) {
    for (const logger of [loglevel, ...Object.values(loglevel.getLoggers())]) logger.setLevel("silent", false);
}

function say(line) {
    writeSync(1, `${JSON.stringify(line)}\n`);
}

let client;
let session;

const commands = {
    async start({ homeserver: baseUrl, user, password, room: roomId, crypto }) {
        const login = await createClient({ baseUrl }).loginRequest({
            type: "m.login.password",
            identifier: { type: "m.id.user", user },
            password,
        });
        // It asks for no refresh token: it knows those of OAuth 2.0 alone, which Synapse does not give out itself.
        const { user_id: userId, device_id: deviceId, access_token: accessToken } = login;
        client = createClient({ baseUrl, userId, deviceId, accessToken });
        if (crypto) await client.initRustCrypto({ useIndexedDB: false });
        const synced = new Promise((resolve, reject) => {
            client.once(ClientEvent.Sync, (state) => {
                if (state === SyncState.Prepared) resolve();
                else reject(new Error(`the first sync: ${state}`));
            });
        });
        await client.startClient({ initialSyncLimit: 10 });
        await synced;
        const room = client.getRoom(roomId);
        if (!room) throw new Error(`${roomId} is not joined`);
        session = client.matrixRTC.getRoomSession(room);
        const tell = () => {
            const members = session.memberships.map((member) => ({
                user_id: member.userId,
                device_id: member.deviceId,
                member_id: member.memberId,
                intent: member.callIntent,
            }));
            say({ kind: "memberships", members });
        };
        session.on(MatrixRTCSessionEvent.MembershipsChanged, tell);
        session.on(MatrixRTCSessionEvent.JoinStateChanged, (joined) => say({ kind: "joined", joined }));
        session.on(MembershipManagerEvent.ProbablyLeft, (left) => say({ kind: "probably_left", probably_left: left }));
        session.on(MatrixRTCSessionEvent.EncryptionKeyChanged, (key, index, member, identity) => {
            const { userId: user_id, deviceId: device_id, memberId: member_id } = member;
            const text = Buffer.from(key).toString("base64");
            say({ kind: "key", index, key: text, user_id, device_id, member_id, identity });
        });
        session.on(MatrixRTCSessionEvent.MembershipManagerError, (error) => {
            say({ kind: "error", do: "join", error: String(error) });
        });
        await session.initialMembershipCalculated;
        tell();
        return { user_id: userId, device_id: deviceId };
    },

    join({ sticky = true, delay_ms, restart_ms, intent, application, member_id, transport }) {
        const [userId, deviceId] = [client.getUserId(), client.getDeviceId()];
        const memberId = member_id ?? `${userId}:${deviceId}`;
        // Without one it arms its leave, fails at its join, and gives up.
        transport ??= { type: "livekit", livekit_service_url: "https://sfu.example.org" };
        session.joinRTCSession({ userId, deviceId, memberId }, [transport], transport, {
            unstableSendStickyEvents: sticky,
            callIntent: intent,
            applicationData: application,
            delayedLeaveEventDelayMs: delay_ms,
            delayedLeaveEventRestartMs: restart_ms,
            manageMediaKeys: client.getCrypto() !== undefined,
        });
        return { member_id: memberId };
    },

    intent: ({ intent }) => session.updateCallIntent(intent),

    application: ({ application }) => session.updateApplicationData(application),

    async leave() {
        if (!(await session.leaveRoomSession(10_000))) throw new Error("it did not leave within 10 s");
    },

    // It shares a room key with the devices that it knows, and does not do so again when it comes to
    // know another.
    async know({ user_id, device_id }) {
        for (;;) {
            const known = await client.getCrypto().getUserDeviceInfo([user_id]);
            if (known.get(user_id)?.has(device_id)) return;
            await new Promise((resolve) => setTimeout(resolve, 20));
        }
    },

    slot: ({ open }) => (open ? session.ensureRtcSlotOpen() : session.ensureRtcSlotClosed()),
};

// Who is asked to end leaves first, as a page that is closed does.
process.on("SIGINT", async () => {
    try {
        await session?.leaveRoomSession(10_000);
    } finally {
        process.exit(0);
    }
});

// One after the other, as a person would.
for await (const line of createInterface({ input: process.stdin })) {
    const { do: name, ...options } = JSON.parse(line);
    try {
        say({ kind: "done", do: name, ...(await commands[name](options)) });
    } catch (error) {
        say({ kind: "error", do: name, error: String(error) });
    }
}
process.exit(0);
