"""Matrix sticky events (MSC4354), heartbeats and MatrixRTC sessions."""

import atexit

from .matrix_sdk_sticky_ffi import *  # noqa: F401,F403
from .matrix_sdk_sticky_ffi import __all__, shut_down  # noqa: F401

# Python ends the whole process where a thread of the library calls into it while it is ending.
atexit.register(shut_down)
