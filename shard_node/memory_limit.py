"""How much memory the system lets this process have: its control group's limit, or all there is."""

from functools import cache
from pathlib import Path

_ROOT = Path("/")


@cache
def of_this_process() -> int:
    """Bytes; 0 where the system does not tell."""
    return read(_ROOT)


def read(root: Path) -> int:
    """The same, with the system's files under another root."""
    limits = [limit for limit in (_total(root), *_of_groups(root)) if limit > 0]
    return min(limits, default=0)


def _total(root: Path) -> int:
    for line in _text(root / "proc/meminfo").splitlines():
        if line.startswith("MemTotal:"):
            return int(line.split()[1]) << 10
    return 0


def _of_groups(root: Path) -> list[int]:
    """The limit of each group that the process is in: its own and those around it."""
    limits: list[int] = []
    for line in _text(root / "proc/self/cgroup").splitlines():
        _, controllers, group = line.split(":", 2)
        if not controllers:  # version 2
            mount, file = root / "sys/fs/cgroup", "memory.max"
        elif "memory" in controllers.split(","):
            mount, file = root / "sys/fs/cgroup/memory", "memory.limit_in_bytes"
        else:
            continue
        # In a container the mount may begin at the group itself, and then has its limit.
        own = mount / group.lstrip("/")
        for folder in (own, *own.parents):
            if folder.is_relative_to(mount):
                text = _text(folder / file).strip()
                limits.append(int(text) if text.isdigit() else 0)  # "max": none
    return limits


def _text(path: Path) -> str:
    try:
        return path.read_text("ascii")
    except OSError:
        return ""
