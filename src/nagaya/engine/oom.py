"""Was something in a container's cgroup killed for lack of memory? Read before the cgroup goes.

v1: memory.oom_control's oom_kill (Linux >= 4.13); v2: memory.events' (cgroup-v2.rst).
"""

from __future__ import annotations

from nagaya.errors import NagayaError
from nagaya.linux import cgroup


def killed(cgroups_path: str) -> bool:
    """True when the kernel counted an OOM kill in the cgroup /PARENT/ID."""
    try:
        found = cgroup.layout()
    except NagayaError:
        return False
    if found.version == 2:
        path = f"{found.unified}{cgroups_path}/memory.events"
    else:
        memory = found.hierarchy("memory")
        if memory is None:
            return False
        path = f"{memory.mountpoint}{cgroups_path}/memory.oom_control"
    return cgroup.parse_pairs(cgroup.try_read(path) or "").get("oom_kill", 0) > 0
