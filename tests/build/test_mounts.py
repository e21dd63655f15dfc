"""RUN --mount, and what else dockerd's classic builder cannot do; by Docker's published reference."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from building import build, run, send, start_build, tar, work_left
from house import House, wait_for

pytestmark = pytest.mark.root

BASE = "FROM nagaya/busybox\n"


@pytest.fixture(scope="module")
def house() -> Iterator[House]:
    with House() as started:
        yield started
        assert work_left(started) == []


def test_a_cache_is_kept_between_builds_and_in_no_layer(house: House, tmp_path: Path) -> None:
    line = "RUN --mount=type=cache,target=/c,uid=7,gid=8,mode=0710 "
    build(house, tmp_path, {"Dockerfile": f"{BASE}{line}echo {{}} >>/c/log; stat -c %u:%g:%a /c >/owner\n"})
    second = f"{BASE}{line}echo more >>/c/log; cp /c/log /seen; stat -c %u:%g:%a /c >/owner\n"
    build(house, tmp_path, {"Dockerfile": second}, "-t", "cached")
    assert run(house, "cached", "cat", "/seen", "/owner") == "{}\nmore\n7:8:710\n"
    assert "c" not in run(house, "cached", "ls", "/").split()
    shown = json.loads(house.curl("/system/df?type=build-cache"))["BuildCache"]
    assert any(r["Type"] == "exec.cachemount" and r["Size"] == 8 for r in shown)


@pytest.mark.parametrize(("sharing", "together"), [("shared", "2"), ("locked", "1"), ("private", "1")])
def test_sharing_of_a_cache(house: House, tmp_path: Path, sharing: str, together: str) -> None:
    """Two stages want the same at the same time: each writes a name, and says how many it saw."""
    mount = f"RUN --mount=type=cache,id={sharing},target=/c,sharing={sharing}"
    tries = 400 if sharing == "shared" else 8
    wait = (
        f"for i in $(seq {tries}); do n=$(ls /c | wc -l); [ $n = 2 ] && break; sleep 0.1; done; "
        f"echo $n >/n; [ {sharing} = shared ] || rm /c/$M"
    )
    stage = f"RUN echo\nENV M={{0}}\n{mount} touch /c/$M; {wait}\n"
    lines = (
        f"{BASE.strip()} AS a\n{stage.format('a')}{BASE.strip()} AS b\n{stage.format('b')}"
        f"{BASE}COPY --from=a /n /a\nCOPY --from=b /n /b\n"
    )
    build(house, tmp_path, {"Dockerfile": lines}, "-t", "sharing")
    assert run(house, "sharing", "cat", "/a", "/b").split() == [together, together]


def test_a_cache_begins_with_files_of_a_stage(house: House, tmp_path: Path) -> None:
    lines = (
        f"{BASE.strip()} AS seed\nRUN mkdir -p /from/deep && echo seeded >/from/deep/x\n"
        f"{BASE}RUN --mount=type=cache,id=seeded,target=/c,from=seed,source=/from cp /c/deep/x /x\n"
    )
    build(house, tmp_path, {"Dockerfile": lines}, "-t", "seeded")
    assert run(house, "seeded", "cat", "/x") == "seeded\n"


def test_bind_mounts_of_context_stage_and_image(house: House, tmp_path: Path) -> None:
    files = {
        "in/file": "of the context\n",
        "Dockerfile": f"""{BASE.strip()} AS stage
RUN echo of the stage >/made
{BASE}RUN --mount=type=bind,source=in,target=/in cat /in/file >/1 && ! touch /in/new
RUN --mount=from=stage,source=/made,target=/made cat /made >/2
RUN --mount=from=nagaya/busybox,target=/whole /whole/bin/busybox test -d /whole/bin
RUN --mount=target=/all,rw echo lost >/all/in/file && cat /all/in/file >/3
RUN --mount=target=. cat in/file >/4
RUN --mount=type=bind,source=in/file,target=/one cat /one >/5
""",
    }
    refused = build(house, tmp_path, files, ok=False)
    assert "mount target '/'" in refused.stderr
    files["Dockerfile"] = files["Dockerfile"].replace("target=. cat ", "target=work cat work/")
    build(house, tmp_path, files, "-t", "bound")
    assert run(house, "bound", "cat", "/1", "/2", "/3", "/4", "/5").split("\n") == [
        *("of the context", "of the stage", "lost", "of the context", "of the context", "")
    ]
    assert (tmp_path / "in/file").read_text() == "of the context\n"
    assert (
        set(run(house, "bound", "ls", "/").split()) & {"in", "made", "whole", "all", "work", "one"} == set()
    )


def test_what_a_bind_mount_shows_is_in_the_key(house: House, tmp_path: Path) -> None:
    files = {"a": "1", "b": "1", "Dockerfile": f"{BASE}RUN --mount=source=a,target=/a cp /a /x\n"}
    build(house, tmp_path, files)
    assert "Using cache" in build(house, tmp_path, {"b": "2"}).stdout
    assert "Using cache" not in build(house, tmp_path, {"a": "2"}).stdout


def test_tmpfs(house: House, tmp_path: Path) -> None:
    lines = f"{BASE}RUN --mount=type=tmpfs,target=/t,size=1m df -k /t | tail -1 >/said && echo x >/t/x\n"
    build(house, tmp_path, {"Dockerfile": lines}, "-t", "tmpfs")
    assert run(house, "tmpfs", "cat", "/said").split()[:2] == ["tmpfs", "1024"]
    assert "t" not in run(house, "tmpfs", "ls", "/").split()


def test_secrets_that_are_not_there(house: House, tmp_path: Path) -> None:
    lines = f"{BASE}RUN --mount=type=secret,id=none test ! -e /run/secrets/none\n"
    build(house, tmp_path, {"Dockerfile": lines})
    lines = f"{BASE}RUN --mount=type=secret,id=none,required true\n"
    assert "secret none: not found" in build(house, tmp_path, {"Dockerfile": lines}, ok=False).stderr
    lines = f"{BASE}RUN --mount=type=ssh,required true\n"
    assert "ssh" in build(house, tmp_path, {"Dockerfile": lines}, ok=False).stderr


def test_an_agent_answers_whoever_the_mount_is_for(house: House, tmp_path: Path) -> None:
    """A program that is not root in the container talks to what listens on the client's side."""
    from rawhttp import Connection

    path = tmp_path / "agent"
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(path))
        listening.listen()

        def serve() -> None:
            for _ in range(2):
                client, _address = listening.accept()
                with client:
                    client.sendall(b"answer to " + client.recv(100))

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        ask = "echo hello | nc local:$SSH_AUTH_SOCK"
        lines = (
            f"{BASE}RUN nc 2>&1 | grep -q local: && echo yes >/can || true\n"
            f"RUN --mount=type=ssh,mode=0666 stat -c %a $SSH_AUTH_SOCK >/mode\nUSER 5\n"
            f"RUN --mount=type=ssh,uid=5 stat -c %u:%a $SSH_AUTH_SOCK\n"
        )
        private = json.dumps({"ssh": {"default": str(path)}}).encode() + b"\n"
        with Connection(house.socket) as connection:
            headers = {"Content-Type": "application/vnd.nagaya.build"}
            connection.send("POST", "/build?t=agent", private + tar(("Dockerfile", lines)), headers)
            said = connection.reply("POST").body.decode()
    assert "5:600" in said and "Successfully built" in said, (said, ask)
    assert run(house, "agent", "cat", "/mode") == "666\n"


def test_networks_of_run(house: House, tmp_path: Path) -> None:
    lines = (
        f"{BASE}RUN --network=none ls /sys/class/net >/none\nRUN ls /sys/class/net >/default\n"
        "RUN --network=host ls /sys/class/net >/host\n"
    )
    build(house, tmp_path, {"Dockerfile": lines}, "-t", "networks")
    assert run(house, "networks", "cat", "/none") == "lo\n"
    assert "eth0" in run(house, "networks", "cat", "/default")
    assert house.bridge in run(house, "networks", "cat", "/host")
    build(
        house, tmp_path, {"Dockerfile": f"{BASE}RUN ls /sys/class/net >/n\n"}, "--network", "none", "-t", "n"
    )
    assert run(house, "n", "cat", "/n") == "lo\n"


def test_a_linked_layer_needs_nothing_below_it(house: House, tmp_path: Path) -> None:
    lines = f"{BASE}RUN echo {{}} >/below\nCOPY --link a /linked/deep/a\nCOPY b /b\n"
    build(house, tmp_path, {"a": "a", "b": "b", "Dockerfile": lines.format(1)}, "-t", "linked")
    said = build(house, tmp_path, {"Dockerfile": lines.format(2)}, "-t", "linked").stdout
    steps = said.split("Step ")
    assert "Using cache" in steps[3] and "Using cache" not in steps[4]
    assert run(house, "linked", "cat", "/linked/deep/a", "/below") == "a2\n"


def test_parents_are_kept_from_the_pivot_on(house: House, tmp_path: Path) -> None:
    files = {
        "x/y/a.txt": "a",
        "x/z/b.txt": "b",
        "Dockerfile": f"{BASE}COPY --parents x/*/*.txt /all/\nCOPY --parents x/./y /from/\n"
        "COPY --parents ./x/./z/b.txt /pivot/\n",
    }
    build(house, tmp_path, files, "-t", "parents")
    found = run(house, "parents", "find", "/all", "/from", "/pivot", "-type", "f").split()
    assert sorted(found) == ["/all/x/y/a.txt", "/all/x/z/b.txt", "/from/y/a.txt", "/pivot/z/b.txt"]


def test_excluded_files_are_left_out(house: House, tmp_path: Path) -> None:
    files = {
        **dict.fromkeys(("d/a.txt", "d/b.log", "d/e/c.log", "d/e/keep.log"), "x"),
        "Dockerfile": f"{BASE}COPY --exclude=**/*.log --exclude=!e/keep.log d /d/\n",
    }
    build(house, tmp_path, files, "-t", "excluding")
    found = run(house, "excluding", "find", "/d", "-type", "f").split()
    assert sorted(found) == ["/d/a.txt", "/d/e/keep.log"]


def test_modes(house: House, tmp_path: Path) -> None:
    lines = f"{BASE}COPY --chmod=0640 a /a\nCOPY --chmod=4755 d /d/\nADD --chmod=600 a /added\n"
    build(house, tmp_path, {"a": "a", "d/e/f": "f", "Dockerfile": lines}, "-t", "modes")
    said = run(house, "modes", "stat", "-c", "%a", "/a", "/d", "/d/e", "/d/e/f", "/added").split()
    assert said == ["640", "4755", "4755", "4755", "600"]
    wrong = build(house, tmp_path, {"Dockerfile": f"{BASE}COPY --chmod=abc a /a\n"}, ok=False)
    assert "chmod" in wrong.stderr


def test_documents(house: House, tmp_path: Path) -> None:
    lines = (
        BASE
        + """ENV NAME=world
COPY <<ONE <<"TWO" /documents/
hello $NAME
ONE
hello $NAME
TWO
RUN <<EOF
echo "shell $NAME" >/shell
EOF
RUN <<EOF cat >/more
input
EOF
RUN <<EOF
#!/bin/sh -e
echo "script $0" >/script
EOF
"""
    )
    build(house, tmp_path, {"Dockerfile": lines}, "-t", "documents")
    paths = ("/documents/ONE", "/documents/TWO", "/shell", "/more", "/script")
    assert run(house, "documents", "cat", *paths).splitlines() == [
        *("hello world", "hello $NAME", "shell world", "input", "script /dev/pipes/EOF")
    ]


def test_stages_run_at_the_same_time(house: House, tmp_path: Path) -> None:
    """Two stages wait for one another over a cache that both have."""
    stage = (
        "RUN --mount=type=cache,id=meeting,target=/m touch /m/{0}; i=0; "
        "while [ ! -e /m/{1} ]; do sleep 0.05; i=$((i+1)); [ $i -lt 400 ] || exit 5; done; echo met >/met\n"
    )
    lines = (
        f"{BASE.strip()} AS a\n{stage.format('a', 'b')}{BASE.strip()} AS b\n{stage.format('b', 'a')}"
        f"{BASE}COPY --from=a /met /a\nCOPY --from=b /met /b\n"
    )
    said = build(house, tmp_path, {"Dockerfile": lines}).stdout
    assert [line.split()[1] for line in said.splitlines() if line.startswith("Step")] == [
        f"{number}/7" for number in range(1, 8)
    ]


def test_the_same_step_in_two_stages_is_done_once(house: House, tmp_path: Path) -> None:
    step = "RUN --mount=type=cache,id=once,target=/o echo x >>/o/log; cat /o/log >/log\n"
    lines = (
        f"{BASE.strip()} AS a\n{step}{BASE.strip()} AS b\n{step}"
        f"{BASE}COPY --from=a /log /a\nCOPY --from=b /log /b\n"
    )
    build(house, tmp_path, {"Dockerfile": lines}, "-t", "once")
    assert run(house, "once", "cat", "/a", "/b") == "x\nx\n"


def test_the_same_files_at_another_time_are_the_same_image(house: House, tmp_path: Path) -> None:
    lines = f"{BASE}COPY a d /d/\nRUN mkdir /e && echo x >/e/f && ln /e/f /e/g\nWORKDIR /w\n"
    ids = []
    for number in (1, 2):
        place = tmp_path / str(number)
        place.mkdir()
        done = build(
            house, place, {"a": "a", "d/b": "b", "Dockerfile": lines},
            "-q", "--no-cache", "--build-arg", "SOURCE_DATE_EPOCH=1500000000",
        )  # fmt: skip
        ids.append(done.stdout)
    assert ids[0] == ids[1]
    document = json.loads(house.docker("image", "inspect", ids[0].strip()).stdout)[0]
    assert document["Created"].startswith("2017-07-14T02:40:00")
    wrong = build(house, place, {}, "--build-arg", "SOURCE_DATE_EPOCH=soon", ok=False)
    assert "SOURCE_DATE_EPOCH" in wrong.stderr


def test_the_context_may_be_compressed(house: House) -> None:
    import bz2
    import gzip
    import lzma

    archive = tar(("Dockerfile", f"{BASE}COPY x /x\n"), ("x", "x"))
    for pack in (gzip.compress, bz2.compress, lzma.compress):
        status, said = send(house, pack(archive))
        assert status == 200 and "Successfully built" in said, (pack, said)


def test_a_step_s_container_is_one_to_look_at(house: House, tmp_path: Path) -> None:
    """While it runs it is listed and inspected, and its mounts are nobody else's."""
    mounts = "--mount=target=/ctx --mount=type=cache,target=/c --mount=type=tmpfs,target=/t"
    building = start_build(house, tmp_path, {"Dockerfile": f"{BASE}RUN {mounts} echo here; sleep 1000\n"})
    assert building.stdout is not None
    try:
        assert any(line.startswith("here") for line in building.stdout)
        (container,) = house.ok("ps", "-q").split()
        shown = json.loads(house.ok("inspect", container))[0]
        assert [mount["Destination"] for mount in shown["Mounts"]] == ["/t"]
        assert shown["HostConfig"]["Binds"] is None
        assert house.ok("exec", container, "ls", "/ctx") == "Dockerfile"
        taken = house.ok("run", "--rm", "--volumes-from", container, "nagaya/busybox", "ls", "/").split()
        assert "ctx" not in taken and "c" not in taken
        assert "agree" in house.nagaya("system", "check").stdout.decode()
    finally:
        building.kill()
        building.communicate(timeout=60)
    wait_for(lambda: not house.ok("ps", "-aq"), 20, "the end of the build")


def test_characters_in_two_pieces(house: House, tmp_path: Path) -> None:
    line = "RUN printf 'snow\\342\\230'; usleep 200000; printf '\\203man\\n'\n"
    assert "snow\u2603man" in build(house, tmp_path, {"Dockerfile": BASE + line}).stdout


def test_a_client_sees_lines_as_they_come(house: House, tmp_path: Path) -> None:
    building = start_build(house, tmp_path, {"Dockerfile": f"{BASE}RUN echo first; sleep 1000\n"})
    assert building.stdout is not None
    try:
        assert any("first" in line for line in building.stdout)
    finally:
        building.kill()
        building.communicate(timeout=60)
    wait_for(lambda: not work_left(house), 20, "the end of the build")
