/*
 * A small program of somebody who uses the Kotlin bindings: it does what its stdin says, a command a line,
 * and says what it sees, a JSON object a line. It is what the tests of the bindings drive; so is its twin in
 * Python.
 */

import java.io.File
import java.time.Duration
import java.util.concurrent.CountDownLatch
import java.util.concurrent.TimeUnit
import java.util.concurrent.atomic.AtomicInteger
import kotlin.io.path.createTempDirectory
import kotlinx.coroutines.CompletableDeferred
import kotlinx.coroutines.Dispatchers
import kotlinx.coroutines.async
import kotlinx.coroutines.cancelAndJoin
import kotlinx.coroutines.coroutineScope
import kotlinx.coroutines.delay
import kotlinx.coroutines.launch
import kotlinx.coroutines.runBlocking
import kotlinx.coroutines.withContext
import kotlinx.coroutines.withTimeout
import kotlinx.serialization.json.Json
import kotlinx.serialization.json.JsonElement
import kotlinx.serialization.json.JsonNull
import kotlinx.serialization.json.JsonPrimitive
import kotlinx.serialization.json.buildJsonArray
import kotlinx.serialization.json.buildJsonObject
import kotlinx.serialization.json.jsonObject
import kotlinx.serialization.json.jsonPrimitive
import org.matrix.sticky.*

const val TYPE = "com.example.status"

fun json(value: Any?): JsonElement = when (value) {
    null -> JsonNull
    is JsonElement -> value
    is String -> JsonPrimitive(value)
    is Boolean -> JsonPrimitive(value)
    is Number -> JsonPrimitive(value)
    is List<*> -> buildJsonArray { value.forEach { add(json(it)) } }
    is Map<*, *> -> buildJsonObject { value.forEach { (key, it) -> put(key.toString(), json(it)) } }
    else -> error("no JSON: $value")
}

@Synchronized
fun say(kind: String, vararg what: Pair<String, Any?>) {
    println(json(mapOf("kind" to kind, *what)))
}

fun name(value: Any): String = value::class.simpleName!!

fun text(text: String): String = json(mapOf("text" to text)).toString()

object Entries : EntryListener {
    override fun onReset(entries: List<Entry>) {
        say("reset", "keys" to entries.map { it.stickyKey ?: "" }.sorted())
    }

    override fun onChanges(changes: List<EntryChange>) {
        say("entries", "changes" to changes.map { change ->
            val entry = entryOf(change)
            val content = Json.parseToJsonElement(entry.content).jsonObject
            listOf(name(change).lowercase(), entry.stickyKey, content["text"]?.jsonPrimitive?.content)
        })
    }
}

fun entryOf(change: EntryChange): Entry = when (change) {
    is EntryChange.Added -> change.entry
    is EntryChange.Updated -> change.entry
    is EntryChange.Removed -> change.entry
}

class States(private val kind: String) : MemberStateListener {
    override fun onState(state: MemberState) = say(kind, "state" to name(state))
}

class Call : SessionListener {
    private val members = mutableMapOf<Pair<String, String>, Member>()

    override fun onReset(session: SessionSnapshot) {
        members.clear()
        session.members.forEach { members[key(it)] = it }
        tell(emptyList())
    }

    override fun onChanges(changes: List<SessionChange>) {
        val left = mutableListOf<List<String?>>()
        for (change in changes) {
            when (change) {
                is SessionChange.Joined -> members[key(change.member)] = change.member
                is SessionChange.Updated -> members[key(change.member)] = change.member
                is SessionChange.Left -> {
                    members.remove(key(change.member))
                    val reason = change.reason
                    val code = if (reason is NotJoined.Left) reason.leave.code else name(reason)
                    left.add(listOf(change.member.userId, code))
                }
                else -> {}
            }
        }
        tell(left)
    }

    private fun tell(left: List<Any?>) {
        val members = members.values.map {
            listOf(it.userId, it.intent ?: "", it.device?.proven != null)
        }
        say("call", "members" to members.sortedBy { it.toString() }, "left" to left)
    }

    private fun key(member: Member) = member.userId to member.memberId
}

object Keys : KeyListener {
    override fun onKey(change: KeyChange) {
        val whose = when (change) {
            is KeyChange.Reset -> null
            is KeyChange.Own -> change.participant.userId
            is KeyChange.Peer -> change.participant.userId
            is KeyChange.Gone -> change.participant.userId
        }
        say("key", "change" to name(change), "user_id" to whose)
    }
}

/** What the process takes after a collection. */
fun rssKb(): Long {
    repeat(3) {
        System.gc()
        Thread.sleep(50)
    }
    val status = File("/proc/self/status").readLines().first { it.startsWith("VmRSS") }
    return status.filter { it.isDigit() }.toLong()
}

class Program(args: Array<String>) {
    private val config = ClientConfig(homeserver = args[0], store = args[4])
    private val login = args[1] to args[2]
    private val roomId = args[3]
    private lateinit var client: StickyClient
    private lateinit var room: StickyRoom
    private val listening = mutableListOf<Listening>()
    private var beat: Heartbeat? = null
    private var member: Membership? = null
    private var keys: MediaKeys? = null

    suspend fun logIn() =
        StickyClient.logIn(config, login.first, login.second, deviceName = "kotlin")

    suspend fun enter(client: StickyClient) {
        this.client = client
        client.startSync()
        val live = CompletableDeferred<Unit>()
        val listener = object : SyncStateListener {
            override fun onState(state: SyncState) {
                if (state is SyncState.Live) live.complete(Unit)
            }
        }
        client.sticky().listenToState(listener).use { live.await() }
        while (true) {
            try {
                room = client.sticky().room(roomId)
                break
            } catch (error: RoomException.Unknown) {
                delay(50)
            }
        }
        say(
            "ready",
            "user_id" to client.userId(),
            "device_id" to client.deviceId(),
            "can_encrypt" to client.sticky().canEncrypt(),
            "rooms" to client.rooms().map { it.roomId },
        )
    }

    /** As an application that is started again: with what it kept, and as the same device. */
    private suspend fun again() {
        val session = client.session()!!
        client.stopSync()
        listening.forEach { it.close() }
        listening.clear()
        beat?.close()
        room.close()
        client.close()
        val error = runCatching { logIn() }.exceptionOrNull()
        say("again", "second_login" to error?.let { name(it) })
        enter(StickyClient.restore(config, session))
    }

    private fun session() = room.rtc().session("m.call#ROOM")

    suspend fun act(command: String, args: List<String>) {
        when (command) {
            "watch" -> listening.add(room.listen(Entries, TYPE))
            "send" -> say("sent", "event_id" to room.send(TYPE, text(args[1]), args[0]))
            "remove" -> say("sent", "event_id" to room.remove(TYPE, args[0]))
            "redact" -> say("sent", "event_id" to room.redact(args[0], "no more"))
            "beat" -> {
                val config = HeartbeatConfig(
                    eventType = TYPE,
                    content = text(args[1]),
                    delay = Duration.ofSeconds(8),
                )
                val beat = room.heartbeat(args[0], config).also { this.beat = it }
                listening.add(beat.listenToState(States("beat")))
                beat.start()
            }
            "beat-update" -> beat!!.update(text(args[0]))
            "beat-leave" -> say("left", "state" to name(beat!!.leave()))
            "call" -> listening.add(session().listen(Call()))
            "join" -> {
                val config = JoinConfig(
                    published = listOf(RtcTransport("livekit")),
                    intent = "audio",
                    delay = Duration.ofSeconds(8),
                )
                val member = session().membership(config).also { this.member = it }
                listening.add(member.listenToState(States("own")))
                member.join()
            }
            "intent" -> member!!.updateIntent(args[0])
            "leave" -> say("left", "state" to name(member!!.leave()))
            "suspend" -> member!!.suspend()
            "resume" -> member!!.resume()
            "keys" -> {
                val keys = member!!.mediaKeys(KeyConfig(devices = DevicePolicy.ANY))
                this.keys = keys
                listening.add(keys.listen(Keys))
                keys.start()
            }
            // As when it is garbage: nobody says that it leaves.
            "drop" -> member!!.close().also { member = null }
            "early-leave" -> earlyLeave()
            "cancel-logins" -> cancelLogins(args)
            "again" -> again()
            "errors" -> errors()
            "listeners" -> listeners()
            "leak" -> leak(args[0].toInt())
            else -> error("no such command: $command $args")
        }
    }

    /** Each bad thing has its error, with words. */
    private suspend fun errors() {
        val found = mutableMapOf<String, List<String?>?>()
        suspend fun error(name: String, what: suspend () -> Any?) {
            found[name] = try {
                what()
                null
            } catch (error: Exception) {
                listOf(name(error), error.message)
            }
        }
        val sticky = client.sticky()
        error("no JSON") { room.send(TYPE, "nonsense", "k") }
        error("no object") { room.send(TYPE, "[]", "k") }
        error("no room id") { sticky.room("nonsense") }
        error("unknown room") { sticky.room("!nobody:here") }
        error("no event id") { room.redact("nonsense") }
        error("no heartbeat") { room.heartbeat("k", HeartbeatConfig(TYPE, "nonsense")) }
        error("too long") {
            room.heartbeat("k", HeartbeatConfig(TYPE, "{}", delay = Duration.ofDays(400))).start()
        }
        error("member id") {
            session().membership(JoinConfig(memberId = "m", dialect = Dialect.MSC4143)).join()
        }
        say("errors", "found" to found)
    }

    /** Who leaves while it joins does not join; and a join that is given up leaves nobody there. */
    private suspend fun earlyLeave() = coroutineScope {
        val config = JoinConfig(intent = "never", delay = Duration.ofSeconds(8))
        val left = session().membership(config)
        val joining = async(Dispatchers.Default) { runCatching { left.join() } }
        val state = left.leave()
        val error = joining.await().exceptionOrNull()
        repeat(10) { round ->
            val givenUp = session().membership(config)
            val joining = launch(Dispatchers.Default) { runCatching { givenUp.join() } }
            delay(round * 15L)
            joining.cancelAndJoin()
            givenUp.close()
        }
        say("early-leave", "state" to name(state), "error" to error?.let { name(it) })
    }

    /** A login that is given up at any moment harms nobody. */
    private suspend fun cancelLogins(args: List<String>) = coroutineScope {
        val (homeserver, user, password) = args
        repeat(12) { round ->
            val folder = createTempDirectory("sticky").toFile()
            val login = launch(Dispatchers.Default) {
                runCatching { StickyClient.logIn(ClientConfig(homeserver, folder.path), user, password) }
            }
            delay(round * 60L)
            login.cancelAndJoin()
            folder.deleteRecursively()
        }
        say("cancel-logins")
    }

    /** A listener that throws, calls back, stops itself, is slow; and several threads at once. */
    private suspend fun listeners() {
        val told = mutableListOf<Any>()
        val isDone = CompletableDeferred<Unit>()
        val room = room
        val nasty = object : EntryListener {
            val calls = AtomicInteger()
            val inside = AtomicInteger()
            var most = 0
            lateinit var listening: Listening

            override fun onReset(entries: List<Entry>) {
                synchronized(told) { told.add("reset") }
                throw IllegalStateException("thrown on purpose")
            }

            override fun onChanges(changes: List<EntryChange>) {
                most = maxOf(most, inside.incrementAndGet())
                calls.addAndGet(changes.size)
                // Back into the library, both ways.
                val entries = room.entries(TYPE)
                val sent = runBlocking { room.send(TYPE, text("x"), "back") }
                synchronized(told) { told.add(entries.isNotEmpty() && sent.startsWith("$")) }
                inside.decrementAndGet()
                if (changes.any { entryOf(it).stickyKey == "last" }) {
                    listening.stop()
                    isDone.complete(Unit)
                }
                throw IllegalStateException("thrown on purpose, too")
            }
        }
        nasty.listening = room.listen(nasty, TYPE)
        withContext(Dispatchers.Default) {
            repeat(4) { thread ->
                launch { repeat(5) { room.send(TYPE, text("$it"), "$thread-$it") } }
            }
        }
        room.send(TYPE, text("x"), "last")
        withTimeout(60_000) { isDone.await() }
        val calls = nasty.calls.get()
        room.send(TYPE, text("x"), "after")
        delay(1_000)
        say(
            "listeners",
            "reset_first" to (told[0] == "reset"),
            "all_back" to told.drop(1).all { it == true },
            "at_a_time" to nasty.most,
            "calls" to nasty.calls.get(),
            "after_stop" to nasty.calls.get() - calls,
            "is_stopped" to nasty.listening.isStopped(),
        )
    }

    /** Who listens, what is read, again and again: memory does not grow with it. */
    private suspend fun leak(rounds: Int) = withContext(Dispatchers.IO) {
        class Counting : EntryListener {
            val isTold = CountDownLatch(1)

            override fun onReset(entries: List<Entry>) = isTold.countDown()

            override fun onChanges(changes: List<EntryChange>) {}
        }
        fun many(type: String?, rounds: Int) = repeat(rounds) {
            val listener = Counting()
            room.listen(listener, type).use {
                room.entries(type)
                room.rtc().use { rtc -> rtc.session("m.call#ROOM").use { it.slotId() } }
                check(listener.isTold.await(30, TimeUnit.SECONDS)) { "not told" }
            }
        }
        fun measured(): Long {
            many(TYPE, rounds / 10)
            // Of which there are none: what listening itself takes.
            many("com.example.nobody", rounds)
            return rssKb()
        }
        val warm = measured()
        val after = measured()
        val entries = room.entries(TYPE).size
        say("leak", "rounds" to rounds, "entries" to entries, "warm_kb" to warm, "after_kb" to after)
    }

    suspend fun quit() {
        client.logOut()
        say("bye")
    }
}

fun main(args: Array<String>) = runBlocking {
    keepListenerThreadsAttached()
    val program = Program(args)
    program.enter(program.logIn())
    while (true) {
        val line = withContext(Dispatchers.IO) { readlnOrNull() } ?: return@runBlocking
        val words = line.split(" ")
        if (words[0] == "quit") {
            program.quit()
            return@runBlocking
        }
        try {
            program.act(words[0], words.drop(1))
        } catch (error: Exception) {
            say("error", "error" to name(error), "reason" to error.message)
        }
    }
}
