"""A small program of somebody who uses the Python bindings: it does what its stdin says, a command a line,
and says what it sees, a JSON object a line. It is what the tests of the bindings drive; so is its twin in
Kotlin."""

import asyncio
import datetime
import gc
import json
import sys
import tempfile
import threading
import time

import matrix_sticky as m

TYPE = "com.example.status"
TEXT = json.dumps({"text": "x"})


SAYING = threading.Lock()


def say(kind, **what):
    # Listeners are on threads of their own, and `print` writes a line in two pieces.
    with SAYING:
        sys.stdout.write(json.dumps({"kind": kind, **what}) + "\n")
        sys.stdout.flush()


def state_name(state):
    """`State.PROBABLY_LEFT(..)` as `ProbablyLeft`, as the twin in Kotlin says it."""
    name = type(state).__name__.rpartition(".")[2]
    return "".join(part.capitalize() for part in name.split("_"))


class Entries(m.EntryListener):
    def on_reset(self, entries):
        say("reset", keys=sorted(entry.sticky_key or "" for entry in entries))

    def on_changes(self, changes):
        told = []
        for change in changes:
            how = state_name(change).lower()
            told.append([how, change.entry.sticky_key, json.loads(change.entry.content).get("text")])
        say("entries", changes=told)


class States(m.MemberStateListener):
    def __init__(self, kind):
        self.kind = kind

    def on_state(self, state):
        say(self.kind, state=state_name(state))


class Call(m.SessionListener):
    def __init__(self):
        self.members = {}

    def on_reset(self, session):
        self.members = {self.key(member): member for member in session.members}
        self.tell([])

    def on_changes(self, changes):
        left = []
        for change in changes:
            if change.is_joined() or change.is_updated():
                self.members[self.key(change.member)] = change.member
            elif change.is_left():
                self.members.pop(self.key(change.member), None)
                reason = change.reason
                code = reason.leave.code if reason.is_left() else state_name(reason)
                left.append([change.member.user_id, code])
        self.tell(left)

    def tell(self, left):
        members = sorted(
            [member.user_id, member.intent or "", bool(member.device and member.device.proven)]
            for member in self.members.values()
        )
        say("call", members=members, left=left)

    @staticmethod
    def key(member):
        return member.user_id, member.member_id


class Keys(m.KeyListener):
    def on_key(self, change):
        whose = None if change.is_reset() else change.participant.user_id
        say("key", change=state_name(change), user_id=whose)


class Live(m.SyncStateListener):
    def __init__(self):
        self.seen = threading.Event()

    def on_state(self, state):
        if state.is_live():
            self.seen.set()


def rss_kb():
    with open("/proc/self/status") as status:
        return int(next(line for line in status if line.startswith("VmRSS")).split()[1])


class Program:
    def __init__(self, homeserver, user, password, room_id, store):
        self.config = m.ClientConfig(homeserver=homeserver, store=store)
        self.login, self.room_id = (user, password), room_id
        self.client, self.room = None, None
        self.listening, self.beat, self.member, self.keys = [], None, None, None

    async def log_in(self):
        return await m.StickyClient.log_in(self.config, *self.login, device_name="python")

    async def enter(self, client):
        client.start_sync()
        live = Live()
        listening = client.sticky().listen_to_state(live)
        await asyncio.to_thread(live.seen.wait)
        listening.stop()
        while True:
            try:
                self.client, self.room = client, client.sticky().room(self.room_id)
                break
            except m.RoomError.Unknown:
                await asyncio.sleep(0.05)
        say(
            "ready",
            user_id=client.user_id(),
            device_id=client.device_id(),
            can_encrypt=client.sticky().can_encrypt(),
            rooms=[info.room_id for info in client.rooms()],
        )

    async def again(self):
        """As an application that is started again: with what it kept, and as the same device."""
        session = self.client.session()
        self.client.stop_sync()
        for listening in self.listening:
            listening.stop()
        self.client, self.room, self.listening, self.beat = None, None, [], None
        gc.collect()
        try:
            await self.log_in()
            say("again", second_login=None)
        except m.ClientError as error:
            say("again", second_login=state_name(error))
        await self.enter(await m.StickyClient.restore(self.config, session))

    async def do(self, command, args):
        match command, args:
            case "watch", []:
                self.listening.append(self.room.listen(Entries(), TYPE))
            case "send", [key, text]:
                content = json.dumps({"text": text})
                say("sent", event_id=await self.room.send(TYPE, content, key))
            case "remove", [key]:
                say("sent", event_id=await self.room.remove(TYPE, key))
            case "redact", [event_id]:
                say("sent", event_id=await self.room.redact(event_id, "no more"))
            case "beat", [key, text]:
                config = m.HeartbeatConfig(
                    event_type=TYPE,
                    content=json.dumps({"text": text}),
                    delay=datetime.timedelta(seconds=8),
                )
                self.beat = self.room.heartbeat(key, config)
                self.listening.append(self.beat.listen_to_state(States("beat")))
                await self.beat.start()
            case "beat-update", [text]:
                self.beat.update(json.dumps({"text": text}))
            case "beat-leave", []:
                say("left", state=state_name(await self.beat.leave()))
            case "call", []:
                self.listening.append(self.session().listen(Call()))
            case "join", []:
                config = m.JoinConfig(
                    published=[m.RtcTransport(transport_type="livekit")],
                    intent="audio",
                    delay=datetime.timedelta(seconds=8),
                )
                self.member = self.session().membership(config)
                self.listening.append(self.member.listen_to_state(States("own")))
                await self.member.join()
            case "intent", [intent]:
                self.member.update_intent(intent)
            case "leave", []:
                say("left", state=state_name(await self.member.leave()))
            case "suspend", []:
                self.member.suspend()
            case "resume", []:
                self.member.resume()
            case "keys", []:
                devices = m.DevicePolicy.ANY
                self.keys = self.member.media_keys(m.KeyConfig(devices=devices))
                self.listening.append(self.keys.listen(Keys()))
                await self.keys.start()
            case "drop", []:
                # As when it is garbage: nobody says that it leaves.
                self.member = None
                gc.collect()
            case "early-leave", []:
                await self.early_leave()
            case "cancel-logins", [homeserver, user, password]:
                await self.cancel_logins(homeserver, user, password)
            case "again", []:
                await self.again()
            case "errors", []:
                await self.errors()
            case "listeners", []:
                await self.listeners()
            case "leak", [rounds]:
                await self.leak(int(rounds))
            case _:
                raise ValueError(f"no such command: {command} {args}")

    def session(self):
        return self.room.rtc().session("m.call#ROOM")

    async def errors(self):
        """Each bad thing has its error, with words."""
        found = {}

        async def error(name, what):
            try:
                result = what()
                if asyncio.iscoroutine(result):
                    await result
                found[name] = None
            except Exception as error:
                found[name] = [type(error).__name__, error.reason]

        sticky = self.client.sticky()
        await error("no JSON", lambda: self.room.send(TYPE, "nonsense", "k"))
        await error("no object", lambda: self.room.send(TYPE, "[]", "k"))
        await error("no room id", lambda: sticky.room("nonsense"))
        await error("unknown room", lambda: sticky.room("!nobody:here"))
        await error("no event id", lambda: self.room.redact("nonsense"))
        bad = m.HeartbeatConfig(event_type=TYPE, content="nonsense")
        await error("no heartbeat", lambda: self.room.heartbeat("k", bad))
        long = m.HeartbeatConfig(event_type=TYPE, content="{}", delay=datetime.timedelta(days=400))
        await error("too long", lambda: self.room.heartbeat("k", long).start())
        bad = m.JoinConfig(member_id="m", dialect=m.Dialect.MSC4143)
        await error("member id", lambda: self.session().membership(bad).join())
        say("errors", found=found)

    async def early_leave(self):
        """Who leaves while it joins does not join; and a join that is given up leaves nobody there."""
        config = m.JoinConfig(intent="never", delay=datetime.timedelta(seconds=8))
        left = self.session().membership(config)
        joining = asyncio.create_task(left.join())
        await asyncio.sleep(0)
        state = await left.leave()
        error = (await asyncio.gather(joining, return_exceptions=True))[0]
        for round in range(10):
            given_up = self.session().membership(config)
            joining = asyncio.create_task(given_up.join())
            await asyncio.sleep(round * 0.015)
            joining.cancel()
            await asyncio.gather(joining, return_exceptions=True)
            del given_up, joining
        name = state_name(error) if error else None
        say("early-leave", state=state_name(state), error=name)

    async def cancel_logins(self, homeserver, user, password):
        """A login that is given up at any moment harms nobody."""
        for round in range(12):
            # What was given up may be writing still.
            with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
                config = m.ClientConfig(homeserver=homeserver, store=folder)
                login = asyncio.create_task(m.StickyClient.log_in(config, user, password))
                await asyncio.sleep(0)
                # The loop is busy when the answer comes.
                time.sleep(round * 0.06)
                login.cancel()
                await asyncio.gather(login, return_exceptions=True)
                del login
        say("cancel-logins")

    async def listeners(self):
        """A listener that throws, calls back, stops itself, is slow; and several threads at once."""
        loop = asyncio.get_running_loop()
        room, told = self.room, []

        class Nasty(m.EntryListener):
            def __init__(self):
                self.calls, self.inside, self.most = 0, 0, 0
                self.listening, self.is_done = None, asyncio.Event()

            def on_reset(self, entries):
                told.append("reset")
                raise RuntimeError("thrown on purpose")

            def on_changes(self, changes):
                self.inside += 1
                self.most = max(self.most, self.inside)
                self.calls += len(changes)
                # Back into the library, both ways.
                told.append(len(room.entries(TYPE)) >= 0)
                back = asyncio.run_coroutine_threadsafe(room.send(TYPE, TEXT, "back"), loop)
                told.append(back.result(30).startswith("$"))
                self.inside -= 1
                if any(change.entry.sticky_key == "last" for change in changes):
                    self.listening.stop()
                    loop.call_soon_threadsafe(self.is_done.set)
                raise RuntimeError("thrown on purpose, too")

        nasty = Nasty()
        nasty.listening = room.listen(nasty, TYPE)

        async def send(thread):
            for number in range(5):
                await room.send(TYPE, json.dumps({"text": str(number)}), f"{thread}-{number}")

        def of_thread(thread):
            asyncio.run(send(thread))

        threads = [threading.Thread(target=of_thread, args=(thread,)) for thread in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            await asyncio.to_thread(thread.join)
        await room.send(TYPE, TEXT, "last")
        await asyncio.wait_for(nasty.is_done.wait(), 60)
        calls = nasty.calls
        await room.send(TYPE, TEXT, "after")
        await asyncio.sleep(1)
        say(
            "listeners",
            reset_first=told[0] == "reset",
            all_back=all(told),
            at_a_time=nasty.most,
            calls=nasty.calls,
            after_stop=nasty.calls - calls,
            is_stopped=nasty.listening.is_stopped(),
        )

    async def leak(self, rounds):
        """Who listens, what is read, again and again: memory does not grow with it."""

        class Counting(m.EntryListener):
            def __init__(self):
                self.is_told = threading.Event()

            def on_reset(self, entries):
                self.is_told.set()

            def on_changes(self, changes):
                pass

        def once(event_type):
            listener = Counting()
            listening = self.room.listen(listener, event_type)
            self.room.entries(event_type)
            self.session().slot_id()
            if not listener.is_told.wait(30):
                raise RuntimeError("not told")
            listening.stop()

        def measured():
            for _ in range(rounds // 10):
                once(TYPE)
            # Of which there are none: what listening itself takes.
            for _ in range(rounds):
                once("com.example.nobody")
            gc.collect()
            return rss_kb()

        warm = await asyncio.to_thread(measured)
        after = await asyncio.to_thread(measured)
        say("leak", rounds=rounds, entries=len(self.room.entries(TYPE)), warm_kb=warm, after_kb=after)


async def main():
    program = Program(*sys.argv[1:6])
    await program.enter(await program.log_in())
    while line := await asyncio.to_thread(sys.stdin.readline):
        command, *args = line.split()
        if command == "quit":
            await program.client.log_out()
            say("bye")
            return
        try:
            await program.do(command, args)
        except Exception as error:
            say("error", error=type(error).__name__, reason=str(error))


asyncio.run(main())
