"""Stands for a shard node under a supervisor: says that it is ready, and ends on SIGTERM."""

import signal
import sys

if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    print("ready", flush=True)
    signal.pause()
