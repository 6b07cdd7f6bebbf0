"""Owns the Synapse process, so that it cannot outlive the process that started it.

One command a line on stdin, one answer a line on stdout. When stdin closes, which the system does
also for an owner that was killed, Synapse is killed and its data removed. Why not simply
PR_SET_PDEATHSIG from the owner? It fires when the *thread* that spawned the server ends, and test
threads end early. Here the spawning thread is the only one, so it serves as the second line: should
this process be killed, Synapse goes too.
"""
import ctypes
import os
import shutil
import signal
import subprocess
import sys

data, keep, program = sys.argv[1], sys.argv[2] == "keep", sys.argv[3:]
server = None
LIBC = ctypes.CDLL(None) if sys.platform == "linux" else None
STOP_SECONDS = 8


def die_with_parent():
    PR_SET_PDEATHSIG = 1
    LIBC.prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def running():
    return server is not None and server.poll() is None


def start():
    global server
    if running():
        return "error already running"
    with open(os.path.join(data, "stderr.log"), "ab") as log:
        server = subprocess.Popen(
            program,
            cwd=data,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
            preexec_fn=die_with_parent if LIBC else None,
        )
    return "ok %d" % server.pid


def kill():
    if running():
        os.killpg(server.pid, signal.SIGKILL)
        server.wait()
    return "ok"


def stop():
    if running():
        server.send_signal(signal.SIGTERM)
        server.send_signal(signal.SIGCONT)  # to be able to act on it, if it was paused
        try:
            server.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            return kill()
    return "ok"


def send(number):
    if not running():
        return "error not running"
    os.killpg(server.pid, number)
    return "ok"


def status():
    if server is None:
        return "ok stopped"
    code = server.poll()
    return "ok running" if code is None else "ok exited %d" % code


COMMANDS = {
    "start": start,
    "stop": stop,
    "kill": kill,
    "pause": lambda: send(signal.SIGSTOP),
    "resume": lambda: send(signal.SIGCONT),
    "status": status,
}

for number in (signal.SIGINT, signal.SIGHUP, signal.SIGTERM):
    signal.signal(number, signal.SIG_DFL)
try:
    for line in sys.stdin:
        try:
            answer = COMMANDS[line.strip()]()
        except Exception as error:
            answer = "error %s" % str(error).replace("\n", " ")
        print(answer, flush=True)
finally:
    kill()
    if not keep:
        shutil.rmtree(data, ignore_errors=True)
