"""Builders that do several jobs, and those that must not."""

from __future__ import annotations

import asyncio
import os
import signal
from pathlib import Path
from typing import Any

import pytest
from keeping import Keeping, children_of, live, name_of, until

from nagaya.errors import InternalError, InvalidArgument
from nagaya.supervisor.builder import Job
from nagaya.supervisor.operations import OPERATIONS

pytestmark = pytest.mark.root


async def _nap(house: Keeping, seconds: float = 0) -> dict[str, Any]:
    return (await house.client.call({"op": "nap", "seconds": seconds})).result


@live
async def test_a_builder_does_the_next_job_too_and_holds_nothing_of_the_last() -> None:
    async with Keeping(host=True) as house:
        naps = []
        for _ in range(6):
            naps.append(await _nap(house))
            await asyncio.sleep(0.02)  # the next finds it waiting
        assert len({nap["pid"] for nap in naps}) < 3
        assert len({len(nap["fds"]) for nap in naps}) == 1
        with pytest.raises(InvalidArgument):
            await house.client.call({"op": "fail"})
        assert len((await _nap(house))["fds"]) == len(naps[0]["fds"])


@live
async def test_as_many_builders_as_jobs_and_few_that_wait() -> None:
    async with Keeping(host=True) as house:
        naps = await asyncio.gather(*(_nap(house, 0.3) for _ in range(8)))
        assert len({nap["pid"] for nap in naps}) == 8
        pids = {nap["pid"] for nap in naps}
        await until(
            lambda: len(pids.intersection(children_of(house.keeper_pid))) <= 2, "the others have ended"
        )
        # and in the end nobody waits for what does not come
        await until(lambda: not pids.intersection(children_of(house.keeper_pid)), "all have ended")


@live
async def test_a_builder_that_died_waiting_or_working_is_replaced() -> None:
    async with Keeping(host=True) as house:
        for _ in range(20):
            pid = (await _nap(house))["pid"]
            os.kill(pid, signal.SIGKILL)
            await until(lambda pid=pid: pid not in children_of(house.keeper_pid), "reaped")  # type: ignore[misc]
            assert (await _nap(house))["slept"] == 0
            with pytest.raises(InternalError, match="died without an answer"):
                await house.client.call({"op": "crash"})
        for number in range(120):  # more jobs than one builder does
            await house.host(f"t{number}", "true")
            assert (await _nap(house))["pid"] > 0


@live
async def test_a_shared_builder_stays_in_its_namespaces(rootfs: Path) -> None:
    async with Keeping(rootfs=rootfs) as house:

        def hosts_network(spec: dict[str, Any]) -> None:
            spec["linux"]["namespaces"] = [n for n in spec["linux"]["namespaces"] if n["type"] != "network"]

        for number in range(3):
            pin = str(house.base / f"pin{number}")
            await house.client.call({"op": "netns", "pin": pin})
            try:
                await house.container(
                    f"n{number}",
                    "busybox",
                    "readlink",
                    "/proc/self/ns/net",
                    edit=hosts_network,
                    log=house.log(f"n{number}"),
                )
                await house.finish(f"n{number}")
                assert house.output(f"n{number}").strip() == os.readlink(f"/proc/{house.keeper_pid}/ns/net")
            finally:
                await house.client.call({"op": "netns-delete", "pin": pin})


@live
async def test_who_joins_finds_a_fork_made_in_advance_that_has_seen_nothing(rootfs: Path) -> None:
    async with Keeping(rootfs=rootfs) as house:
        await house.container("host", "sleep", "1000")
        secret = {**house.spec("true")["process"], "env": ["PATH=/bin", "SECRET=of-the-former"]}
        request = {"op": "exec", "root": str(house.state), "id": "host"}

        others = set(children_of(house.keeper_pid))

        def forks() -> list[int]:
            found = set(children_of(house.keeper_pid)) - others
            return [p for p in found if name_of(p) == "nagaya-builder"]

        def waits(pid: int) -> bool:
            """Has it what one in advance has, and no more: is it not one that is at work, or going?"""
            try:
                return len(os.listdir(f"/proc/{pid}/fd")) == 4
            except OSError:
                return False

        async def spare() -> int:
            await until(lambda: len(forks()) == 1 and all(map(waits, forks())), "one fork in advance")
            return forks()[0]

        async def join(token: str, process: dict[str, Any]) -> None:
            await house.client.run(token, {**request, "process": process})
            assert (await house.exit(token)).code == 0
            await house.client.release(token)

        await join("first", secret)
        waiting = await spare()
        with open(f"/proc/{waiting}/maps") as maps, open(f"/proc/{waiting}/mem", "rb", 0) as memory:
            for line in maps:
                first, _, rest = line.partition("-")
                if "[heap]" in line or (line.split()[1].startswith("rw") and len(line.split()) == 5):
                    memory.seek(int(first, 16))
                    assert b"of-the-former" not in memory.read(int(rest.split()[0], 16) - int(first, 16))
        await join("second", secret)
        assert await spare() != waiting


@pytest.mark.parametrize("op", ["run", "create", "exec", "spawn-foreign"])
def test_what_joins_or_leaves_processes_is_refused_by_a_shared_builder(op: str, tmp_path: Path) -> None:
    namespaces = [{"type": "pid", "path": "/proc/1/ns/pid"}, {"type": "mount"}]
    request = {
        "op": op,
        "root": str(tmp_path),
        "id": "x",
        "bundle": str(tmp_path),
        "spec": {"linux": {"namespaces": namespaces}},
        "process": {},
        "argv": ["true"],
    }
    with pytest.raises(InvalidArgument, match="builder of its own"):
        OPERATIONS[op](request, _SharedJob())


class _SharedJob(Job):
    """A job of a shared builder, with a keeper that must not be asked for anything."""

    def __init__(self) -> None:
        super().__init__((-1, -1, -1), None, alone=False)

    def keeper(self) -> Any:
        return None
