"""How much memory a process may have, from the system's files."""

from pathlib import Path

import pytest

from shard_node import memory_limit

MEMINFO = "MemTotal:       16384 kB\nMemFree: 1 kB\n"


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({}, 0),
        ({"proc/meminfo": MEMINFO}, 16 << 20),
        (
            {
                "proc/meminfo": MEMINFO,
                "proc/self/cgroup": "0::/pod/container\n",
                "sys/fs/cgroup/memory.max": "max\n",
                "sys/fs/cgroup/pod/memory.max": "3145728\n",
                "sys/fs/cgroup/pod/container/memory.max": "max\n",
            },
            3 << 20,
        ),
        (
            {
                "proc/meminfo": MEMINFO,
                "proc/self/cgroup": "0::/seen/from/outside\n",
                "sys/fs/cgroup/memory.max": "2097152\n",
            },
            2 << 20,
        ),
        (
            {
                "proc/meminfo": MEMINFO,
                "proc/self/cgroup": "3:cpu,cpuacct:/x\n2:memory:/x\n",
                "sys/fs/cgroup/memory/x/memory.limit_in_bytes": "9223372036854771712\n",
            },
            16 << 20,
        ),
    ],
)
def test_the_least_that_any_file_says(tmp_path: Path, files: dict[str, str], expected: int) -> None:
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    assert memory_limit.read(tmp_path) == expected


def test_this_process_has_one() -> None:
    assert memory_limit.of_this_process() > 0
