"""Full disks, missing directories, hostile messages, and a thousand short lives."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import stat
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from keeping import Keeping, children_of, fds_of, live, private_of, pss_of, until

from nagaya.linux import seqpacket
from nagaya.wire.messages import TO_KEEPER, VERSION

pytestmark = pytest.mark.root


@live
async def test_a_full_disk_drops_lines_counts_them_and_stalls_nobody() -> None:
    house = Keeping(host=True)
    # the keeper alone, and its children, see the small file system
    small = house.base / "small"
    small.mkdir()
    script = f'mount -t tmpfs -o size=1m nagt {small} && exec "$@"'
    house.command = ["unshare", "--mount", "sh", "-c", script, "sh", *house.command]
    house.command[0] = shutil.which("unshare") or "unshare"
    house.client = house.connect()
    async with house:
        full = {"driver": "json-file", "path": f"{small}/full.log", "max_size": -1}
        viewer = await house.attach("full", mux=False)
        await house.host("full", "sh", "-c", "seq 1 100; sleep 0.3; seq 101 20000; exec sleep 1000", log=full)
        await house.host("fine", "seq", "1", "20000", log=house.log("fine"))
        expected = "".join(f"{n}\n" for n in range(1, 20001))
        assert (await viewer.until(b"\n20000\n")).decode() == expected  # clients see it all
        assert (await house.exit("fine")).code == 0
        assert house.output("fine") == expected
        inside = Path(f"/proc/{house.keeper_pid}/root{small}/full.log")

        def accounted() -> bool:
            written = inside.read_bytes().count(b"\n")
            return written + sum(n for n, _ in house.dropped.get("full", [])) == 20000

        await until(accounted, "every line is written or counted")
        assert {e for _, e in house.dropped["full"]} == {28}  # ENOSPC
        lines = inside.read_bytes().splitlines()
        assert lines and all(json.loads(line)["log"] for line in lines)  # nothing half-written
        # room again: logging goes on by itself
        os.truncate(inside, 0)
        await house.host("again", "echo", "later", log={**full, "path": f"{small}/again.log"})
        await house.exit("again")
        assert b"later" in inside.with_name("again.log").read_bytes()


@live
async def test_a_missing_directory_and_a_log_that_was_removed() -> None:
    async with Keeping(host=True) as house:
        log = {"driver": "json-file", "path": str(house.logs / "no" / "c.log")}
        await house.host("c", "seq", "1", "1000", log=log)
        assert (await house.exit("c")).code == 0
        await until(lambda: sum(n for n, _ in house.dropped.get("c", [])) == 1000, "all are counted")
        assert house.dropped["c"][0][1] == 2  # ENOENT
        script = "echo one; read x; echo two"
        await house.host("removed", "sh", "-c", script, stdin=True, log=house.log("removed"))
        await until(lambda: house.output("removed") == "one\n")
        (house.logs / "removed.log").unlink()
        await house.client.close_stdin("removed")
        await house.exit("removed")
        assert house.output("removed") == "two\n"
        # a link in its place leads nowhere
        (house.logs / "link.log").symlink_to("/etc/hostname")
        before = Path("/etc/hostname").read_bytes()
        await house.host("link", "echo", "x", log=house.log("link"))
        await house.exit("link")
        assert Path("/etc/hostname").read_bytes() == before
        await until(lambda: house.dropped.get("link"))


@live
async def test_the_socket_is_for_its_owner_alone() -> None:
    """CVE-2020-15257: no abstract sockets, and a mode that keeps others out."""
    async with Keeping(host=True) as house:
        path = house.run_dir / "supervisor.sock"
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        # docker.sock, which a group may use, lies beside it
        assert stat.S_IMODE(house.run_dir.stat().st_mode) == 0o711
        pids = [house.keeper_pid]
        for pid in pids:
            inodes = {
                os.readlink(f"/proc/{pid}/fd/{n}").partition("[")[2].rstrip("]")
                for n in os.listdir(f"/proc/{pid}/fd")
                if os.readlink(f"/proc/{pid}/fd/{n}").startswith("socket:")
            }
            rows = [line.split() for line in Path("/proc/net/unix").read_text().splitlines()[1:]]
            names = [row[7] for row in rows if row[6] in inodes and len(row) > 7]
            assert names and not [n for n in names if n.startswith("@")]
        # another user does not get in, even through a directory that lets him
        house.base.chmod(0o711)
        house.run_dir.chmod(0o711)
        path.chmod(0o666)
        code = (
            "import socket, sys; s = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET);"
            f"s.connect({str(path)!r}); s.settimeout(10);"
            'print(s.recv(10) if not s.send(b\'{"kind":"hello","version":1}\') else s.recv(10))'
        )
        other = await asyncio.create_subprocess_exec(
            sys.executable, "-I", "-S", "-c", code, user=65534, group=65534, extra_groups=[], cwd="/",
            stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT,
        )  # fmt: skip
        output, _ = await other.communicate()
        assert b"BrokenPipe" in output or b"ConnectionReset" in output or output == b"b''\n", output
        await house.host("works", "true")
        assert (await house.exit("works")).code == 0


# hostile messages

junk = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)


@st.composite
def hostile(draw: st.DrawFn) -> bytes:
    """A packet that a broken or wicked daemon could send: almost right, cut, or nonsense."""
    kinds = [kind for kind in TO_KEEPER if kind != "quit"]
    kind = draw(st.sampled_from([*kinds, "nonsense"]))
    data: dict[str, Any] = {"kind": kind}
    for name, (types, _) in TO_KEEPER.get(kind, {}).items():
        right = {str: st.sampled_from(["", "c", "x" * 3000]), int: st.integers(-(2**70), 2**70)}
        value = draw(st.one_of(junk, *(right[t] for t in types if t in right)))
        if draw(st.integers(0, 9)):
            data[name] = value
    raw = json.dumps(data).encode()
    if not draw(st.integers(0, 4)):
        raw = raw[: draw(st.integers(1, len(raw)))]
    if not draw(st.integers(0, 9)):
        raw = draw(st.binary(min_size=1, max_size=200))
    return raw


def test_hostile_messages_never_kill_the_keeper() -> None:
    @live
    async def test() -> None:
        async with Keeping(host=True) as house:
            await house.host("c", "cat", stdin=True, log=house.log("c"))
            await house.host("victim", "cat", stdin=True, log=house.log("victim"))
            keeper = house.keeper_pid
            path = str(house.run_dir / "supervisor.sock")
            await house.io()
            before = fds_of(keeper)

            def attack(packets: list[tuple[bytes, int]], greet: bool) -> None:
                sock = seqpacket.connect(path)
                # what it says to us is read by nobody
                if greet:
                    seqpacket.send(sock, json.dumps({"kind": "hello", "version": VERSION}).encode())
                null = os.open("/dev/null", os.O_RDONLY)
                for packet, count in packets:
                    try:
                        seqpacket.send(sock, packet, [null] * count)
                    except OSError:
                        break
                os.close(null)
                sock.close()

            @settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
            @given(st.lists(st.tuples(hostile(), st.integers(0, 4)), min_size=1, max_size=6), st.booleans())
            def fuzz(packets: list[tuple[bytes, int]], greet: bool) -> None:
                attack(packets, greet)

            await asyncio.to_thread(fuzz)
            attack(
                [(b"{" * 60000, 0), (b"[" * 65000, 0), (b'{"kind":"hello"}', 250), (b"\xff\xfe", 253)], True
            )
            assert house.keeper_pid == keeper and house.client.adoptions == 0
            for token in ("", "c", "x" * 3000):
                await house.client.unhold(token)
            # what came with messages that were refused is closed; a few tokens may be watched
            await until(lambda: fds_of(keeper) < before + 20, "the descriptors of the attack")
            viewer = await house.attach("victim", stdin=True, stdin_once=True, mux=False)
            await viewer.write(b"alive\n")
            await viewer.until(b"alive\n")
            viewer.half_close()
            assert (await house.exit("victim")).code == 0
            # complaints of defects would stand here
            assert (house.run_dir / "supervisor.log").read_text() == ""

    test()


# many


@live
async def test_hundreds_of_short_lives_leave_nothing(rootfs: Path) -> None:
    async with Keeping(rootfs=rootfs) as house:

        async def life(number: int) -> None:
            token = f"s{number}"
            await house.container(token, "true", log=house.log(token))
            assert (await house.finish(token)).code == 0

        async def lives(first: int, count: int) -> None:
            for number in range(first, first + count, 4):
                await asyncio.gather(*(life(n) for n in range(number, number + 4)))

        def cost() -> tuple[list[int], int, int]:
            pids = (keeper, io)
            return [fds_of(p) for p in pids], len(children_of(keeper)), sum(private_of(p) for p in pids)

        await lives(0, 120)
        keeper, io = house.keeper_pid, await house.io()
        await asyncio.sleep(0.5)  # what the last ones had is closed when io and keeper come to it
        await until(lambda: len(children_of(keeper)) == 1, "io alone")
        fds, children, memory = cost()
        begin = asyncio.get_running_loop().time()
        done = 120
        while done < 1000 and asyncio.get_running_loop().time() - begin < 8:
            await lives(done, 40)
            done += 40
        assert await house.io() == io
        await until(lambda: cost()[:2] == (fds, children), f"as before {done} lives")
        grown = cost()[2] - memory
        assert grown < 1024, f"{done} lives took {grown} KiB"
        assert done > 150


@live
async def test_an_idle_container_costs_little_memory(rootfs: Path) -> None:
    async with Keeping(rootfs=rootfs) as house:

        async def start(number: int) -> None:
            await house.container(f"i{number}", "sleep", "1000", log=house.log(f"i{number}"))

        for number in range(5):
            await start(number)
        keeper, io = house.keeper_pid, await house.io()
        before = pss_of(keeper) + pss_of(io)
        for number in range(5, 45):
            await start(number)
        await house.io()
        after = pss_of(keeper) + pss_of(io)
        assert (after - before) / 40 < 50, "KiB of keeper and io for each"
        # containers and io: nothing of ours beside each
        await until(lambda: len(children_of(keeper)) == 46, "builders are gone")
