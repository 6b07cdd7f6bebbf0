"""Makes a virtual environment and installs one package into it: `install.py DIRECTORY PACKAGE`.

It leads a process group, and ends that group when stdin closes: the process that asked for the install may
be killed, and pip must not go on alone. The steps are said on stdout, what fails is on stderr.
"""
import os
import signal
import subprocess
import sys
import threading

directory, package = sys.argv[1:]


def end_with_owner():
    sys.stdin.read()
    os.killpg(0, signal.SIGKILL)


threading.Thread(target=end_with_owner, daemon=True).start()
PIP = [os.path.join(directory, "bin", "python"), "-m", "pip", "install"]
QUIET = ["--disable-pip-version-check", "--no-input", "--quiet", "--progress-bar", "off"]
for step, command in (
    ("python3 -m venv", [sys.executable, "-m", "venv", directory]),
    ("pip install " + package, PIP + QUIET + [package]),
):
    if subprocess.call(command, stdin=subprocess.DEVNULL, stdout=sys.stderr) != 0:
        print(step)
        sys.exit(1)
