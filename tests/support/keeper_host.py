"""A keeper whose builders run plain host programs: all of the supervisor but the containers.

Run as a program: `keeper_host.py --run DIRECTORY`.
"""

from __future__ import annotations

import os
import sys
import time
from typing import TYPE_CHECKING, Any

from nagaya.errors import InvalidArgument
from nagaya.linux import namespaces
from nagaya.supervisor.main import serve

if TYPE_CHECKING:
    from nagaya.supervisor.builder import Job


def run(request: dict[str, Any], job: Job) -> dict[str, Any]:
    """Run request["argv"] as a child of the keeper; with "console", on a terminal;
    with "wait", after so many seconds."""
    time.sleep(request.get("wait", 0))
    master = slave = -1
    stdio = job.stdio
    if request.get("console"):
        master, slave = os.openpty()
        stdio = (slave, slave, slave)
    pid, pidfd = namespaces.clone3(namespaces.CLONE_PARENT | namespaces.CLONE_PIDFD)
    if pid == 0:
        try:
            if slave >= 0:
                os.setsid()
            for number, fd in enumerate(stdio):
                if fd >= 0:
                    os.dup2(fd, number)
            os.execvpe(request["argv"][0], request["argv"], {"PATH": os.defpath, **request.get("env", {})})
        finally:
            os._exit(127)
    job.trace.append(["clone", request["argv"][0], time.monotonic_ns(), 1])
    job.launched(pid, pidfd, master)
    return {"pid": pid}


def fail(request: dict[str, Any], job: Job) -> dict[str, Any]:
    raise InvalidArgument("as asked", subject="op", step="fail")


def crash(request: dict[str, Any], job: Job) -> dict[str, Any]:
    os.kill(os.getpid(), 9)
    return {}


def nap(request: dict[str, Any], job: Job) -> dict[str, Any]:
    time.sleep(request["seconds"])
    return {
        "slept": request["seconds"],
        "pid": os.getpid(),
        "fds": sorted(int(n) for n in os.listdir("/proc/self/fd")),
    }


def large(request: dict[str, Any], job: Job) -> dict[str, Any]:
    return {"text": "x" * request["size"]}


OPERATIONS = {"run": run, "fail": fail, "crash": crash, "nap": nap, "large": large}

if __name__ == "__main__":
    sys.exit(serve(sys.argv[sys.argv.index("--run") + 1], OPERATIONS))
