"""Containers through keeper, builder and io, as the daemon asks for them."""

from __future__ import annotations

import asyncio
import json
import os
import re
import shutil
import signal
import socket
from pathlib import Path
from typing import Any

import pytest
from keeping import Keeping, command, live, unframe, until

from nagaya.errors import (
    AlreadyExists,
    CommandNotExecutable,
    CommandNotFound,
    DeadlineExceeded,
    FailedPrecondition,
    InvalidArgument,
    NotFound,
)

pytestmark = pytest.mark.root


@live
async def test_a_container_runs_is_logged_and_its_exit_told(rootfs: Path) -> None:
    async with Keeping(rootfs=rootfs) as house:
        started = await house.container(
            "one", "sh", "-c", "echo out; echo err >&2; exit 7", log=house.log("one")
        )
        assert started.pid > 0
        assert started.result["pid"] == started.pid
        names = [row[0] for row in started.trace]
        assert "cgroups" in names and len(names) > 5
        ended = await house.finish("one")
        assert (ended.code, ended.signal, ended.known) == (7, 0, True)
        assert ended.time_ns > 0
        records = house.records("one")
        assert {(r["stream"], r["log"]) for r in records} == {("stdout", "out\n"), ("stderr", "err\n")}
        for record in records:
            assert list(record) == ["log", "stream", "time"]
            assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d{1,9})?Z", record["time"])
        await until(lambda: "one" not in house.client.entries)


@live
async def test_exit_codes_signals_and_failures_to_start(rootfs: Path) -> None:
    async with Keeping(rootfs=rootfs) as house:
        await house.container("zero", "true")
        await house.container("killed", "sh", "-c", "kill -9 $$")
        await house.container("sleeper", "sleep", "1000")
        assert (await house.finish("zero")).code == 0
        # PID 1 of a namespace ignores its own signals
        assert (await house.finish("killed")).code == 0
        await house.client.call(
            {"op": "kill", "root": str(house.state), "id": "sleeper", "signal": signal.SIGKILL}
        )
        ended = await house.finish("sleeper")
        assert (ended.code, ended.signal) == (137, 9)
        with pytest.raises(CommandNotFound):
            await house.container("missing", "/bin/nothing-here", log=house.log("missing"))
        with pytest.raises(CommandNotExecutable):
            await house.container("plain", "/etc", log=house.log("plain"))
        assert "missing" not in house.client.entries
        # a failed token is free at once, and what it tried has left nothing
        await house.container("missing", "true", log=house.log("missing"))
        assert (await house.finish("missing")).code == 0


@live
async def test_what_is_wrong_is_refused_with_its_field(rootfs: Path) -> None:
    async with Keeping(rootfs=rootfs, log_root=True) as house:
        request = {"op": "run", "root": str(house.state), "id": "x", "bundle": "/"}
        with pytest.raises(InvalidArgument, match="run needs spec"):
            await house.client.run("x", request)
        with pytest.raises(InvalidArgument, match="unknown operation"):
            await house.client.call({"op": "nonsense"})
        with pytest.raises(InvalidArgument, match="log must lie below"):
            await house.client.run("x", request, log={"driver": "json-file", "path": "/etc/passwd"})
        with pytest.raises(InvalidArgument, match="absolute path"):
            path = f"{house.logs}/../x.log"
            await house.client.run("x", request, log={"driver": "json-file", "path": path})
        with pytest.raises(InvalidArgument, match="unknown log driver"):
            await house.client.run("x", request, log={"driver": "syslog"})
        with pytest.raises(InvalidArgument, match="unknown stdio"):
            await house.client.run("x", request, stdio="telepathy")
        with pytest.raises(InvalidArgument, match="needs a token"):
            spec = house.spec("sleep", "1000")
            await house.client.call({**request, "spec": spec})
        await house.container("x", "sleep", "1000")
        with pytest.raises(AlreadyExists):
            await house.container("x", "true")
        with pytest.raises(NotFound):
            await house.client.resize("nobody", 1, 1)
        with pytest.raises(FailedPrecondition, match="alive"):
            await house.client.release("x")
        assert house.keeper_pid == house.client.keeper_pid


@live
async def test_a_log_rotates_and_loses_nothing(rootfs: Path) -> None:
    async with Keeping(rootfs=rootfs) as house:
        log = house.log("r", max_size=65536, max_file=1000)
        await house.container("r", "seq", "1", "30000", log=log)
        await house.finish("r")
        assert house.output("r") == "".join(f"{n}\n" for n in range(1, 30001))
        sizes = [p.stat().st_size for p in house.logs.glob("r.log*")]
        assert len(sizes) > 10
        assert max(sizes) < 65536 * 3
        log = house.log("few", max_size=65536, max_file=3)
        await house.container("few", "seq", "1", "30000", log=log)
        await house.finish("few")
        assert sorted(p.name for p in house.logs.glob("few*")) == ["few.log", "few.log.1", "few.log.2"]
        text = house.output("few")
        assert text.endswith("\n29999\n30000\n")


@live
async def test_long_lines_partial_lines_and_odd_bytes(rootfs: Path) -> None:
    async with Keeping(rootfs=rootfs) as house:
        script = r"""printf 'a\001b\377c"\\\n'; printf 'no end'; printf '%070000d' 7 >&2"""
        await house.container("odd", "sh", "-c", script, log=house.log("odd"))
        await house.finish("odd")
        assert [r["log"] for r in house.records("odd") if r["stream"] == "stdout"] == [
            'a\x01b�c"\\\n',
            "no end",
        ]
        errors = [r["log"] for r in house.records("odd") if r["stream"] == "stderr"]
        assert [len(e) for e in errors] == [16384, 16384, 16384, 16384, 70000 - 4 * 16384]


@live
async def test_a_terminal_its_size_and_its_input(rootfs: Path) -> None:
    async with Keeping(rootfs=rootfs) as house:
        viewer = await house.attach("t", stdin=True)
        await house.container("t", "sh", console=(24, 80), log=house.log("t"))
        await viewer.write(b"stty size; tty\n")
        seen = await viewer.until(b"/dev/pts/0")
        assert b"24 80\r\n" in seen  # no frames on a terminal, and lines end as it makes them
        await house.client.resize("t", 50, 132)
        await viewer.write(b"stty size\n")
        await viewer.until(b"50 132\r\n")
        await viewer.write(b"\x10\x11")  # ctrl-p ctrl-q: the default keys
        await viewer.rest()
        await until(lambda: house.detached)
        assert house.detached == [("t", viewer.serial, "keys")]
        again = await house.attach("t", stdin=True)
        await again.write(b"exit 3\n")
        await again.rest()
        assert (await house.finish("t")).code == 3
        assert "50 132\r\n" in house.output("t")


@live
async def test_several_clients_with_frames_and_without(rootfs: Path) -> None:
    async with Keeping(rootfs=rootfs) as house:
        both = await house.attach("m")
        raw = await house.attach("m", mux=False, stderr=False)
        errors = await house.attach("m", stdout=False)
        await house.container("m", "sh", "-c", "read x; echo out $x; echo err >&2", stdin=True)
        typing = await house.attach("m", stdin=True, stdin_once=True, preface=b"first ")
        await typing.write(b"second\n")
        for viewer in (both, typing):
            assert unframe(await viewer.rest()) == {1: b"out first second\n", 2: b"err\n"}
        assert await raw.rest() == b"out first second\n"
        assert unframe(await errors.rest()) == {2: b"err\n"}
        assert (await house.finish("m")).code == 0
        await until(lambda: len(house.detached) == 4)
        assert {reason for _, _, reason in house.detached} == {"end"}


@live
async def test_the_end_of_a_clients_input_is_the_containers(rootfs: Path) -> None:
    async with Keeping(rootfs=rootfs) as house:
        viewer = await house.attach("c", stdin=True, stdin_once=True)
        await house.container("c", "sh", "-c", "cat; echo after", stdin=True)
        data = bytes(range(256)) * 4000
        writing = asyncio.ensure_future(viewer.write(data))
        seen = b""
        while len(seen) < len(data) // 2:
            seen += await viewer.read()
        await writing
        viewer.half_close()
        seen += await viewer.rest()
        assert unframe(seen) == {1: data + b"after\n"}
        assert (await house.finish("c")).code == 0
        # without stdin_once the container's input stays open for the next client
        await house.container("d", "cat", stdin=True)
        one = await house.attach("d", stdin=True, mux=False)
        await one.write(b"one")
        await one.until(b"one")
        one.half_close()
        two = await house.attach("d", stdin=True, mux=False)
        await two.write(b"two")
        await two.until(b"two")
        await house.client.close_stdin("d")
        await two.rest()
        assert (await house.finish("d")).code == 0


@live
async def test_exec_in_a_container(rootfs: Path) -> None:
    async with Keeping(rootfs=rootfs) as house:
        await house.container("host", "sleep", "1000")
        process = {**house.spec("sh", "-c", "echo $$; hostname; exit 5")["process"], "cwd": "/tmp"}
        request = {"op": "exec", "root": str(house.state), "id": "host", "process": process}
        viewer = await house.attach("exec1")
        await house.client.run("exec1", request)
        seen = unframe(await viewer.rest())[1].split()
        assert seen[1] == b"nagaya" and int(seen[0]) > 1
        assert (await house.exit("exec1")).code == 5
        await house.client.release("exec1")
        process["args"] = ["stty", "size"]
        for number, mux in enumerate((False, True), 2):
            viewer = await house.attach(f"exec{number}", stdin=True, mux=mux)
            await house.client.run(f"exec{number}", {**request, "console": [33, 44]}, stdio="pty")
            shown = await viewer.rest()
            assert (unframe(shown) if mux else {1: shown}) == {1: b"33 44\r\n"}
            assert (await house.exit(f"exec{number}")).code == 0
        process["args"] = ["/nothing"]
        with pytest.raises(CommandNotFound):
            await house.client.run("exec4", request)
        address = {"root": str(house.state), "id": "host"}
        # the process of the failed attempt is dead, but may not be reaped yet
        while len(pids := (await house.client.call({"op": "ps", **address})).result["pids"]) > 1:
            await asyncio.sleep(0.01)
        assert pids == [house.client.entries["host"].pid]


@live
async def test_create_then_start_and_state(rootfs: Path) -> None:
    async with Keeping(rootfs=rootfs) as house:
        address = {"root": str(house.state), "id": "two"}
        await house.container("two", "echo", "late", op="create", log=house.log("two"))
        state = await house.client.call({"op": "state", **address})
        assert state.result["status"] == "created"
        assert house.records("two") == []
        await house.client.call({"op": "start", **address})
        assert (await house.finish("two")).code == 0
        assert house.output("two") == "late\n"


@live
async def test_pause_resume_and_stats(rootfs: Path) -> None:
    async with Keeping(rootfs=rootfs) as house:
        await house.container("p", "sleep", "1000")
        address = {"root": str(house.state), "id": "p"}
        await house.client.call({"op": "pause", **address})
        assert (await house.client.call({"op": "state", **address})).result["status"] == "paused"
        await house.client.call({"op": "resume", **address})
        assert (await house.client.call({"op": "state", **address})).result["status"] == "running"
        assert (await house.client.call({"op": "stats", **address})).result


@live
async def test_a_pinned_network_namespace(rootfs: Path) -> None:
    async with Keeping(rootfs=rootfs) as house:
        pin = house.run_dir / "ns" / "n" / "net"
        reply = await house.client.call({"op": "netns", "pin": str(pin)})
        assert len(reply.fds) == 1
        # the socket was opened inside: it sees the namespace's only interface
        with socket.socket(fileno=reply.fds[0]) as netlink:
            assert netlink.family == socket.AF_NETLINK
        seen = await command("nsenter", f"--net={pin}", "ip", "-o", "link")
        assert "LOOPBACK,UP" in seen and len(seen.splitlines()) == 1
        with pytest.raises(AlreadyExists):
            await house.client.call({"op": "netns", "pin": str(pin)})

        def join(spec: dict[str, Any]) -> None:
            for namespace in spec["linux"]["namespaces"]:
                if namespace["type"] == "network":
                    namespace["path"] = str(pin)

        started = await house.container("n", "sleep", "1000", edit=join)
        assert os.stat(f"/proc/{started.pid}/ns/net").st_ino == os.stat(pin).st_ino
        await house.client.call({"op": "netns-delete", "pin": str(pin)})
        await house.client.call({"op": "netns-delete", "pin": str(pin)})  # may be repeated
        assert not pin.exists()


@live
async def test_held_descriptors_come_back_to_the_next_client(rootfs: Path) -> None:
    async with Keeping(rootfs=rootfs) as house:
        read, write = os.pipe()
        await house.client.hold("ports", [write])
        os.close(write)
        other = house.connect()
        await other.start()
        os.write(other.held["ports"][0], b"held")
        await other.close()
        assert os.read(read, 10) == b"held"
        await house.client.unhold("ports")
        await until(lambda: os.read(read, 1) == b"", "the end of the pipe")
        os.close(read)


@pytest.mark.skipif(not shutil.which("runc"), reason="no runc")
@pytest.mark.parametrize("terminal", [False, True])
def test_a_foreign_runtimes_container(rootfs: Path, terminal: bool) -> None:
    @live
    async def test() -> None:
        async with Keeping(rootfs=rootfs) as house:
            bundle = house.base / "bundle"
            bundle.mkdir()
            spec = house.spec("sh", "-c", "read x; echo got $x; exit 9")
            spec["process"]["terminal"] = terminal
            (bundle / "config.json").write_text(json.dumps(spec))
            runc = ["runc", "--root", str(house.base / "runc")]
            create = [*runc, "create", "--bundle", str(bundle), "--pid-file", str(bundle / "pid")]
            request: dict[str, Any] = {"op": "spawn-foreign", "pid_file": str(bundle / "pid")}
            if terminal:
                request["console_socket"] = str(bundle / "console.sock")
                create += ["--console-socket", str(bundle / "console.sock")]
            request["argv"] = [*create, "f"]
            viewer = await house.attach("f", stdin=True)
            options: dict[str, Any] = {"stdio": "pty"} if terminal else {"stdin": True}
            started = await house.client.run("f", request, log=house.log("f"), **options)
            assert started.result["code"] == 0, started.result
            assert started.pid == started.result["pid"] > 0
            reply = await house.client.call({"op": "spawn-foreign", "argv": [*runc, "start", "f"]})
            assert reply.result["code"] == 0, reply.result
            await viewer.write(b"word\n")
            assert (await house.exit("f")).code == 9
            assert b"got word" in await viewer.rest()
            assert "got word" in house.output("f")
            reply = await house.client.call({"op": "spawn-foreign", "argv": [*runc, "delete", "f"]})
            assert reply.result["code"] == 0, reply.result
            await house.client.release("f")
            reply = await house.client.call({"op": "spawn-foreign", "argv": [*runc, "state", "f"]})
            assert reply.result["code"] != 0 and "does not exist" in reply.result["output"]

    test()


@live
async def test_a_foreign_runtime_that_fails_says_why(rootfs: Path) -> None:
    async with Keeping(rootfs=rootfs) as house:
        reply = await house.client.call({"op": "spawn-foreign", "argv": ["/nothing/there"]})
        assert reply.result["code"] == 127
        assert "No such file" in reply.result["output"]
        with pytest.raises(DeadlineExceeded):
            await house.client.call({"op": "spawn-foreign", "argv": ["sleep", "100"], "timeout": 0.2})
