"""The same command line to docker's client and to ours makes the same body of POST /containers/create."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from nagaya.cli import create, values
from nagaya.cli.flags import UsageError, parse
from nagaya.cli.verbs import execute, update
from nagaya.cli.verbs import run as run_verb

DOCKER = next(
    (p for p in ("/usr/local/bin/docker", shutil.which("docker")) if p and os.access(p, os.X_OK)), ""
)


class Recorder:
    """A daemon that accepts creates and execs, and remembers what it was asked."""

    def __init__(self, path: str) -> None:
        self.bodies: list[dict[str, Any]] = []
        self.path = path
        self._server = socket.socket(socket.AF_UNIX)
        self._server.bind(path)
        self._server.listen(8)
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._server.accept()
            except OSError:
                return
            threading.Thread(target=self._serve, args=(client,), daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        with client, client.makefile("rb") as file:
            while line := file.readline():
                length = 0
                while (header := file.readline()).strip():
                    name, _, value = header.partition(b":")
                    if name.lower() == b"content-length":
                        length = int(value)
                body = file.read(length)
                answer, status = b'{"message":"enough"}', b"500 Enough"
                if line.split()[1].endswith(b"/_ping"):
                    answer, status = b"", b"200 OK"
                elif line.startswith(b"GET") and line.split()[1].endswith(b"/json"):
                    answer, status = b'{"Id":"abc","State":{"Running":true},"Config":{}}', b"200 OK"
                elif body:
                    self.bodies.append(json.loads(body))
                head = b"HTTP/1.1 %s\r\nApi-Version: 1.47\r\nOstype: linux\r\n" % status
                client.sendall(
                    head + b"Content-Type: application/json\r\nContent-Length: %d\r\n\r\n" % len(answer)
                )
                client.sendall(answer)

    def close(self) -> None:
        self._server.close()


@pytest.fixture(scope="module")
def recorder() -> Iterator[Recorder]:
    if not DOCKER:
        pytest.skip("no docker client here")
    with tempfile.TemporaryDirectory(prefix="nagt-") as directory:  # short: a socket's path has 107 bytes
        found = Recorder(f"{directory}/s")
        yield found
        found.close()


def prune(value: Any) -> Any:
    """Without what only repeats a default, and without order where the API has none."""
    if isinstance(value, dict):
        kept = {key: prune(item) for key, item in value.items()}
        meaningful = ("HostIp", "HostPort", "Init", "MaskedPaths", "ReadonlyPaths")
        kept = {
            k: v for k, v in kept.items() if k in meaningful or v not in (None, "", 0, False, [], {}, [0, 0])
        }
        if kept.get("MemorySwappiness") == -1:
            del kept["MemorySwappiness"]
        for key in ("MaskedPaths", "ReadonlyPaths"):
            if key in kept and kept[key] is None:
                del kept[key]
        if "Binds" in kept:
            kept["Binds"].sort()
        if "Env" in kept:
            kept["Env"].sort()
        return kept
    return [prune(item) for item in value] if isinstance(value, list) else value


def docker_says(recorder: Recorder, argv: list[str], cwd: Path) -> dict[str, Any]:
    recorder.bodies.clear()
    environment = {"PATH": os.environ["PATH"], "HOME": str(cwd), "GIVEN": "from us", "MULTI": "a=b c"}
    done = subprocess.run(
        [DOCKER, "-H", f"unix://{recorder.path}", *argv],
        capture_output=True, text=True, cwd=cwd, env=environment, stdin=subprocess.DEVNULL,
    )  # fmt: skip
    assert recorder.bodies, done.stderr
    found = prune(recorder.bodies[0])
    assert isinstance(found, dict)
    # what the client adds to say "the default network"
    endpoints = found.pop("NetworkingConfig", {}).get("EndpointsConfig", {})
    if any(endpoints.values()):
        found["NetworkingConfig"] = {"EndpointsConfig": {k: v for k, v in endpoints.items() if v}}
    return found


CASES = """
busybox
busybox echo -n hi --rm
-i busybox cat
--tty=true -i --rm --name x busybox sh -c 'exit 3'
-e A=b -e EMPTY= -e GIVEN -e NOT_SET -e MULTI=1=2 --env-file env busybox
-v /tmp:/x:ro -v vol:/y -v /anon -v ./here:/z -v /a:/b:rw,rslave busybox
--mount type=bind,src=/tmp,dst=/m,ro --mount type=volume,source=v,target=/v,volume-nocopy busybox
--mount type=tmpfs,destination=/t,tmpfs-size=1m,tmpfs-mode=1770 --tmpfs /q --tmpfs /r:size=1m,mode=700 busybox
--mount type=bind,source=/a,target=/b,bind-propagation=rshared,readonly=false busybox
--mount 'type=bind,"source=/with,comma",target=/b' busybox
-w /w -u 1:2 -h box --domainname d busybox
-m 64m --memory-swap -1 --memory-reservation 10M --memory-swappiness 10 --shm-size 1.5g busybox
-m 123456789 --memory-swap 2GiB --shm-size 64kb busybox
--cpus 1.5 --cpu-shares 100 --cpuset-cpus 0-1 --cpuset-mems 0 busybox
--cpus .25 --pids-limit 10 --blkio-weight 100 busybox
--cpu-period 1000 --cpu-quota 500 -c 12 --pids-limit=-1 busybox
--read-only --privileged --cap-add NET_ADMIN --cap-add cap_sys_time --cap-drop all busybox
--cap-add ALL --cap-drop MKNOD busybox
--cap-add chown --cap-drop CHOWN --cap-drop kill busybox
--init --network none busybox
--init=false --net host busybox
--network container:other busybox
--network mine --network-alias a --network-alias b --ip 10.1.2.3 busybox
--network name=mine,alias=x,ip=10.1.2.3 busybox
-p 80 -p 8080:80 -p 127.0.0.1::53/udp -p 10.0.0.1:90:91/sctp -p [::1]:5:6 busybox
-p 9000-9002:90-92 -p 7000-7010:70 -p 1-2/udp busybox
-P --expose 90 --expose 100-101/udp busybox
--entrypoint /bin/sh busybox -c x
--entrypoint '' busybox
-l a=b --label c --label d=e=f --label-file labels busybox
--restart on-failure:3 busybox
--restart unless-stopped busybox
--rm --restart no busybox
--security-opt no-new-privileges --security-opt apparmor=unconfined --security-opt label:disable busybox
--security-opt seccomp=unconfined --security-opt systempaths=unconfined busybox
--security-opt seccomp=profile.json busybox
--ulimit nofile=10:20 --ulimit core=0 --ulimit memlock=-1:-1 busybox
--sysctl net.core.somaxconn=1 --sysctl kernel.msgmax=2 busybox
--device /dev/null --device /dev/zero:/dev/z --device /dev/full:/dev/f:r --device /dev/tty:rw busybox
--device-cgroup-rule 'c 1:3 rwm' busybox
--dns 1.1.1.1 --dns-search s --dns-option o busybox
--add-host a:1.2.3.4 --add-host b=::1 --add-host c:host-gateway busybox
--runtime runc --stop-signal INT --stop-timeout 3 busybox
--log-driver json-file --log-opt max-size=1m --log-opt max-file=3 busybox
--pid host --ipc host --uts host --userns host --cgroupns private --cgroup-parent p busybox
--pid container:x --ipc shareable busybox
--group-add 5 --group-add audio busybox
--annotation a=b --oom-score-adj 5 --oom-kill-disable --volumes-from x:ro --volume-driver local busybox
--health-cmd 'a b' --health-interval 1m30s --health-timeout 500ms busybox
--health-cmd true --health-retries 3 --health-start-period 2h busybox
--no-healthcheck busybox
-a stdout -a STDERR busybox
-a stdin -i busybox
-itP -eA=b -p80:80 -m=1g -- busybox -x
--mac-address 92:d0:c6:0a:29:33 busybox
""".strip().splitlines()


@pytest.fixture
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "env").write_text("# comment\n\nFILE=a b\n  LEAD=1\nGIVEN\nNOT_SET\nEMPTY=\n")
    (tmp_path / "labels").write_text("# comment\nfrom=file\nbare\n")
    (tmp_path / "profile.json").write_text('{\n "defaultAction": "SCMP_ACT_ALLOW",\n "syscalls": []\n}\n')
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GIVEN", "from us")
    monkeypatch.setenv("MULTI", "a=b c")
    return tmp_path


def words(line: str) -> list[str]:
    import shlex

    return shlex.split(line)


@pytest.mark.parametrize("line", CASES)
def test_create_asks_for_what_docker_asks_for(recorder: Recorder, files: Path, line: str) -> None:
    given = parse(create.CREATE_FLAGS, words(line), interspersed=False)
    assert prune(create.body(given)) == docker_says(recorder, ["create", *words(line)], files)


@pytest.mark.parametrize("line", ["-d busybox true", "-d -i --rm busybox cat", "--rm busybox"])
def test_run_asks_for_what_docker_asks_for(recorder: Recorder, files: Path, line: str) -> None:
    given = parse(run_verb.FLAGS, words(line), interspersed=False)
    ours = prune(create.body(given, detach=given["detach"]))
    assert ours == docker_says(recorder, ["run", *words(line)], files)


@pytest.mark.parametrize(
    "line", ["abc id", "-i -e A=b -e GIVEN -w /w -u x:y --privileged abc sh -c x", "-d abc sh"]
)
def test_exec_asks_for_what_docker_asks_for(recorder: Recorder, files: Path, line: str) -> None:
    given = parse(execute.FLAGS, words(line), interspersed=False)
    assert prune(execute.body(given)) == docker_says(recorder, ["exec", *words(line)], files)


@pytest.mark.parametrize(
    "line", ["-m 3m --memory-swap 4m c", "--cpus 0.5 --restart always c", "--pids-limit 5 c"]
)
def test_update_asks_for_what_docker_asks_for(recorder: Recorder, files: Path, line: str) -> None:
    given = parse(update.FLAGS, words(line))
    assert prune(update.body(given)) == docker_says(recorder, ["update", *words(line)], files)


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("--rm --restart always x", "--restart and --rm"),
        ("-m 1q x", "invalid size: '1q'"),
        ("-m '' x", "invalid size"),
        ("--cpus a x", '"a"'),
        ("--cpus 0.0000000001 x", "too precise"),
        ("-p 70000 x", "70000"),
        ("-p 1:2:3:4 x", "1"),
        ("-p 80/icmp x", "icmp"),
        ("-p 1-3:4-5 x", "invalid ranges"),
        ("-p : x", "no port specified"),
        ("-p 300.1.1.1:1:1 x", "invalid IP address"),
        ("--expose a x", "invalid port"),
        ("--mount type=bind,src=/a x", "target is required"),
        ("--mount type=bind,target=/a,tmpfs-size=1 x", "cannot mix"),
        ("--mount frob=1,target=/a x", "frob"),
        ("--mount type=tmpfs,target=/a,tmpfs-mode=9 x", "tmpfs-mode"),
        ("--ulimit nofile x", "nofile"),
        ("--ulimit nofile=20:10 x", "soft limit"),
        ("--device : x", "device"),
        ("--device /a:/b:q x", "device"),
        ("--add-host a x", "add-host"),
        ("--add-host a:b x", "invalid IP address"),
        ("--restart on-failure:x x", "maximum retry count"),
        ("--security-opt frob x", "frob"),
        ("--security-opt seccomp=/nowhere x", "/nowhere"),
        ("-e =a x", "invalid environment variable"),
        ("--env-file /nowhere x", "open /nowhere: no such file or directory"),
        ("-a nothing x", "STDIN"),
        ("--no-healthcheck --health-cmd a x", "conflicts"),
        ("--health-cmd a --health-interval 5 x", 'invalid duration "5"'),
        ("--network name=a,frob=1 x", "frob"),
    ],
)
def test_bad_values_are_refused_with_what_is_wrong(line: str, says: str) -> None:
    with pytest.raises(UsageError) as caught:
        create.body(parse(create.CREATE_FLAGS, words(line), interspersed=False))
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)


def test_an_env_file_with_a_space_in_a_name_is_refused(tmp_path: Path) -> None:
    (tmp_path / "env").write_text("a b=c\n")
    with pytest.raises(UsageError, match="contains whitespaces"):
        values.variables([], [str(tmp_path / "env")])
