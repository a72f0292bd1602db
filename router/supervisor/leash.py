"""Runs a module as `python -m` does, in a process that dies with its supervisor.

    python -m router.supervisor.leash PARENT_PID MODULE [ARGUMENT...]

As the node does it for its engine: SIGKILL by the kernel when the parent dies (Linux), and an end
of file on stdin, whose other end only the supervisor holds, as the second string (everywhere).
"""

import ctypes
import os
import runpy
import signal
import sys
import threading

_PR_SET_PDEATHSIG = 1


def _die_with(parent: int) -> None:
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(1)
    threading.Thread(target=_await_end_of_stdin, daemon=True).start()


def _await_end_of_stdin() -> None:
    while os.read(0, 4096):
        pass
    os._exit(1)


def main() -> None:
    """See the head of this file."""
    parent, module, *arguments = sys.argv[1:]
    _die_with(int(parent))
    sys.argv = [module, *arguments]
    runpy.run_module(module, run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
