"""kill -9 of io, of the keeper, and of the daemon, while processes write as fast as they can:
no byte of their logs is lost or doubled, and no exit code."""

from __future__ import annotations

import asyncio
import os
import random
import resource
import signal
import sys
from pathlib import Path

import pytest
from house import SOURCE
from keeping import Keeping, alive, children_of, live, until

from nagaya.errors import Unavailable

pytestmark = pytest.mark.root

# Writes `total` numbered words to both streams in pieces that end anywhere, so that lines are cut at
# every place; exits with 3 when all of it was taken, and dies of SIGPIPE when a reader went away.
WRITER = """
import os, random, signal, sys
signal.signal(signal.SIGPIPE, signal.SIG_DFL)
seed, total = int(sys.argv[1]), int(sys.argv[2])
dice = random.Random(seed)
for fd in (1, 2):
    os.set_blocking(fd, True)
text = "".join(f"{n:07d}" + dice.choice(" \\n  ") for n in range(total)).encode()
position = [0, 0]
while min(position) < len(text):
    for index in (0, 1):
        piece = text[position[index] : position[index] + dice.choice((1, 7, 512, 4096, 20000, 70000))]
        if piece:
            position[index] += os.write(index + 1, piece)
sys.exit(3)
"""


def words(seed: int, total: int) -> str:
    """What WRITER writes."""
    dice = random.Random(seed)
    return "".join(f"{n:07d}" + dice.choice(" \n  ") for n in range(total))


async def start_writers(house: Keeping, count: int, total: int) -> list[str]:
    tokens = [f"w{seed}" for seed in range(count)]
    for seed, token in enumerate(tokens):
        # the first rotates, and keeps all
        settings = {"max_size": 300_000, "max_file": 5000} if seed == 0 else {"max_size": -1}
        argv = [sys.executable, "-I", "-S", "-c", WRITER, str(seed), str(total)]
        await house.host(token, *argv, log=house.log(token, **settings))
    return tokens


async def check_writers(house: Keeping, tokens: list[str], total: int) -> None:
    for seed, token in enumerate(tokens):
        ended = await house.exit(token, 60)
        assert (ended.code, ended.signal, ended.known) == (3, 0, True)
        expected = words(seed, total)
        for stream in ("stdout", "stderr"):
            assert house.output(token, stream) == expected, (token, stream)
    assert not house.dropped


@live
async def test_killing_io_loses_and_doubles_nothing() -> None:
    async with Keeping(host=True) as house:
        total = 250_000
        tokens = await start_writers(house, 3, total)
        kills = 0
        dice = random.Random(5)
        while any(t not in house.exits for t in tokens) and kills < 7:  # a keeper waits longer each time
            await asyncio.sleep(dice.uniform(0.0, 0.06))
            await house.kill_io()
            kills += 1
        await check_writers(house, tokens, total)
        assert kills > 3


@live
async def test_killing_the_keeper_loses_and_doubles_nothing() -> None:
    async with Keeping(host=True) as house:
        total = 250_000
        tokens = await start_writers(house, 3, total)
        dice = random.Random(6)
        kills = 0
        while any(t not in house.exits for t in tokens) and kills < 10:
            await asyncio.sleep(dice.uniform(0.0, 0.1))
            await house.kill_keeper()
            kills += 1
        await check_writers(house, tokens, total)
        assert kills > 1
        assert house.client.adoptions == kills


@live
async def test_killing_the_daemon_loses_nothing() -> None:
    """The daemon is a process of its own here, that starts the keeper and its containers, and dies."""
    house = Keeping(host=True)
    total = 200_000
    code = f"""
import asyncio, sys
sys.path[:0] = [{str(SOURCE)!r}, {str(Path(__file__).parents[1] / "support")!r}, *{sys.path!r}]
from nagaya.engine.supervisor import Supervisor
async def main():
    client = Supervisor({str(house.run_dir)!r}, command={house.command!r})
    await client.start()
    writer = [{sys.executable!r}, "-I", "-S", "-c", {WRITER!r}]
    log = {house.log("w0", max_size=300_000, max_file=5000)!r}
    await client.run("w0", {{"op": "run", "argv": [*writer, "0", "{total}"]}}, log=log)
    await client.run("gone", {{"op": "run", "argv": ["sh", "-c", "sleep 0.2; echo last words; exit 41"]}},
        log={house.log("gone")!r})
    await client.run("cat", {{"op": "run", "argv": ["cat"]}}, stdin=True, log={house.log("cat")!r})
    print("ready", flush=True)
    await asyncio.sleep(1000)
asyncio.run(main())
"""
    daemon = await asyncio.create_subprocess_exec(
        sys.executable, "-c", code, stdout=asyncio.subprocess.PIPE, stdin=asyncio.subprocess.DEVNULL
    )
    assert daemon.stdout is not None
    assert await daemon.stdout.readline() == b"ready\n"
    daemon.kill()
    await daemon.wait()
    await asyncio.sleep(0.3)  # nobody is there while one of them ends
    async with house:
        assert set(house.client.entries) == {"w0", "gone", "cat"}
        gone = house.client.entries["gone"].exit
        assert gone is not None and (gone.code, gone.known) == (41, True)
        assert house.output("gone") == "last words\n"
        viewer = await house.attach("cat", stdin=True, stdin_once=True, mux=False)
        await viewer.write(b"still here")
        await viewer.until(b"still here")
        viewer.half_close()
        await viewer.rest()
        assert (await house.exit("cat")).code == 0
        await check_writers(house, ["w0"], total)


@live
async def test_exit_codes_outlive_the_keeper(rootfs: Path) -> None:
    """Real containers: after the kill they are another's children, and the kernel tells how they ended."""
    async with Keeping(rootfs=rootfs) as house:
        await house.container("slow", "sh", "-c", "sleep 1; exit 42", log=house.log("slow"))
        await house.container("early", "sh", "-c", "exit 43")
        await house.container("shell", "sh", console=(10, 20), log=house.log("shell"))
        await house.container("cat", "cat", stdin=True)
        assert (await house.exit("early")).code == 43
        held = os.open("/dev/null", os.O_RDONLY)
        await house.client.hold("port", [held])
        os.close(held)
        await house.kill_keeper()
        await house.kill_keeper()
        entry = house.client.entries["early"].exit
        assert entry is not None and entry.code == 43  # not told twice, not forgotten
        assert len(house.client.held["port"]) == 1
        viewer = await house.attach("shell", stdin=True)
        await house.client.resize("shell", 30, 40)
        await viewer.write(b"stty size; kill -TERM 1; exit 44\n")
        assert b"30 40" in await viewer.rest()
        assert (await house.finish("shell")).code == 44
        viewer = await house.attach("cat", stdin=True, stdin_once=True, mux=False)
        await viewer.write(b"typed after the kill")
        viewer.half_close()
        assert await viewer.rest() == b"typed after the kill"
        assert (await house.finish("cat")).code == 0
        ended = await house.finish("slow")
        assert (ended.code, ended.known) == (42, True)
        await house.finish("early")
        # a new one is the keeper's child again
        await house.container("new", "sh", "-c", "exit 45")
        assert (await house.finish("new")).code == 45


@live
async def test_daemon_and_keeper_die_together(rootfs: Path) -> None:
    """What is documented as lost is stdio; the container, and its exit code, are not."""
    house = Keeping(rootfs=rootfs)
    await house.client.start()
    started = await house.container("both", "sh", "-c", "sleep 1; exit 46")
    keeper = house.client.keeper_pid
    await house.client.close()
    os.kill(keeper, signal.SIGKILL)
    await until(lambda: not alive(keeper))
    house.client = house.connect()
    async with house:
        assert not house.client.entries
        await house.client.watch("both", started.pid)
        assert (await house.finish("both")).code == 46


@live
async def test_attached_clients_hear_of_a_kill() -> None:
    async with Keeping(host=True) as house:
        await house.host("cat", "cat", stdin=True)
        viewer = await house.attach("cat", stdin=True)
        await house.kill_io()
        assert await viewer.rest() == b""
        await until(lambda: house.detached)
        assert house.detached == [("cat", viewer.serial, "restart")]
        again = await house.attach("cat", stdin=True, mux=False)
        await again.write(b"go on")
        assert await again.until(b"go on")
        await house.kill_keeper()
        assert await again.rest() == b"go on"
        await until(lambda: len(house.detached) == 2)
        assert not [c for c in children_of(house.keeper_pid) if c == house.client.entries["cat"].pid]


@live
async def test_requests_in_flight_fail_when_the_keeper_dies() -> None:
    async with Keeping(host=True) as house:
        nap = asyncio.ensure_future(house.client.call({"op": "nap", "seconds": 2}))
        late = asyncio.ensure_future(
            house.client.run("late", {"op": "run", "argv": ["sleep", "1000"], "wait": 1})
        )
        await asyncio.sleep(0.2)
        os.kill(house.keeper_pid, signal.SIGKILL)
        # a call without a process goes on in its builder, which answers by itself
        assert (await nap).result["slept"] == 2
        with pytest.raises(Unavailable):
            await late
        assert not house.client.entries
        await house.host("next", "true")  # which needs another keeper
        assert house.client.adoptions == 1
        assert (await house.exit("next")).code == 0


@live
async def test_a_renewed_keeper_is_the_same_process_with_the_same_children(rootfs: Path) -> None:
    async with Keeping(rootfs=rootfs) as house:
        await house.container("cat", "cat", stdin=True, log=house.log("cat"))
        await house.container("late", "sh", "-c", "sleep 0.5; exit 48")
        for round in range(3):
            # ends while nobody looks: its parent must hear of it all the same
            await house.container(
                f"now{round}", "sh", "-c", "sleep 0.05; echo said; exit 47", log=house.log("now")
            )
            pid = house.keeper_pid
            await house.kill_keeper(signal.SIGHUP)
            assert (await house.finish(f"now{round}")).code == 47
            assert house.keeper_pid == pid
        assert house.output("now") == "said\n" * 3
        assert house.client.entries["cat"].pid in children_of(house.keeper_pid)
        viewer = await house.attach("cat", stdin=True, stdin_once=True, mux=False)
        await viewer.write(b"renewed")
        await viewer.until(b"renewed")
        viewer.half_close()
        assert (await house.finish("cat")).code == 0
        assert (await house.finish("late")).code == 48
        # builders still give back the limit that the first program had
        reply = await house.client.call({"op": "spawn-foreign", "argv": ["sh", "-c", "ulimit -Sn"]})
        assert int(reply.result["output"]) == resource.getrlimit(resource.RLIMIT_NOFILE)[0]
        await until(lambda: len(children_of(house.keeper_pid)) == 1, "io alone")


@live
async def test_without_a_daemon_a_keeper_waits_with_its_renewal() -> None:
    house = Keeping(host=True)
    await house.client.start()
    await house.host("cat", "cat", stdin=True)
    keeper = house.client.keeper_pid
    await house.client.close()
    os.kill(keeper, signal.SIGHUP)
    await asyncio.sleep(0.2)
    house.client = house.connect()
    async with house:
        await until(lambda: house.client.adoptions == 1)
        assert house.client.keeper_pid == keeper
        viewer = await house.attach("cat", stdin=True, stdin_once=True, mux=False)
        await viewer.write(b"kept")
        viewer.half_close()
        assert await viewer.rest() == b"kept"
        assert (await house.exit("cat")).code == 0


@live
async def test_a_keeper_of_many_is_replaced_with_all_of_them() -> None:
    """More descriptors than a socket takes at once, in both directions."""
    async with Keeping(host=True) as house:
        count = 200
        for number in range(count):
            await house.host(f"m{number}", "cat", stdin=True, log=house.log(f"m{number}"))
        await house.kill_keeper()
        await house.client.call({"op": "nap", "seconds": 0})  # answered after everything was adopted
        other = house.connect()
        await other.start()
        assert len(other.entries) == count
        await other.close()
        for number in range(0, count, 20):
            await house.client.close_stdin(f"m{number}")
            assert (await house.exit(f"m{number}")).code == 0
