"""Where the contestants stand: a world of their own, with daemons, images and a client for their API.

The benchmark runs itself again in new network, mount and process namespaces: nothing of the machine's is
changed, /run and /etc are its own, and all that was started dies with it. One thing is changed for all
alike: the cgroup2 tree of a hybrid machine is unmounted there, because crun 1.8 refuses to run beside it.
"""

from __future__ import annotations

import argparse
import datetime
import io
import json
import os
import platform
import shutil
import socket
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from measure import Failed, Peer, dump

BIN = Path(sys.prefix) / "bin"
IMAGE = "docker.io/nagtb/busybox:latest"  # the peers'; ours is built in, from the same busybox
OUR_IMAGE = "nagaya/busybox"
_BRIDGES = {"nagaya": "10.231.1.1/24", "dockerd": "10.231.2.1/24"}
_STARTUP = 30.0  # seconds


def enter() -> Path:
    """Come back in namespaces of our own, with the directory of this run; outside of them, wait for what
    came back, remove what is left, and exit with its status."""
    if "NAGTB_BASE" in os.environ:
        return _inside(Path(os.environ["NAGTB_BASE"]))
    base = Path(tempfile.mkdtemp(prefix="nagtb-", dir="/tmp"))
    namespaces = ("--net", "--mount", "--pid", "--mount-proc", "--fork", "--kill-child")
    try:
        done = subprocess.run(
            ["unshare", *namespaces, sys.executable, *sys.argv], env={**os.environ, "NAGTB_BASE": str(base)}
        )
    finally:
        # the mounts went with their namespace: what is left are files
        shutil.rmtree(base, ignore_errors=True)
        _remove_cgroups(base.name)
    sys.exit(done.returncode)


def _inside(base: Path) -> Path:
    child = os.fork()
    if child:  # process 1: reaps what daemons and shims leave to it
        while True:
            pid, status = os.wait()
            if pid == child:
                os._exit(os.waitstatus_to_exitcode(status) & 0xFF)
    for name in ("upper", "work"):
        (base / f"etc-{name}").mkdir()
    overlay = f"lowerdir=/etc,upperdir={base}/etc-upper,workdir={base}/etc-work"
    _quiet("mount", "-t", "overlay", "-o", overlay, "etc", "/etc")
    _quiet("mount", "-t", "tmpfs", "-o", "mode=755", "run", "/run")
    _quiet("ip", "link", "set", "lo", "up")
    if Path("/sys/fs/cgroup/unified/cgroup.procs").exists():
        _quiet("umount", "/sys/fs/cgroup/unified")
        # crun makes directories and files there all the same: not on the machine's own mount
        _quiet("mount", "-t", "tmpfs", "none", "/sys/fs/cgroup/unified")
    return base


def _quiet(*argv: str) -> str:
    done = subprocess.run(argv, capture_output=True, text=True, stdin=subprocess.DEVNULL)
    if done.returncode:
        raise Failed(f"{argv[0]} {argv[1] if len(argv) > 1 else ''}: {done.stderr.strip()[-300:]}")
    return done.stdout


def _remove_cgroups(name: str) -> None:
    tops = [*Path("/sys/fs/cgroup").glob(name), *Path("/sys/fs/cgroup").glob(f"*/{name}")]
    deadline = time.monotonic() + 10
    while tops and time.monotonic() < deadline:
        for top in tops:
            for path in (*sorted((p for p in top.rglob("*") if p.is_dir()), reverse=True), top):
                with suppress(OSError):  # its last process is still going
                    path.rmdir()
        tops = [top for top in tops if top.exists()]
        time.sleep(0.05)


def machine() -> dict[str, Any]:
    """What it was measured on: the header of the results."""
    cpu = [line.partition(": ")[2] for line in _lines("/proc/cpuinfo") if line.startswith("model name")]
    release = dict(line.partition("=")[::2] for line in _lines("/etc/os-release"))
    return {
        "date": datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "cpu": cpu[0] if cpu else platform.machine(),
        "cores": len(os.sched_getaffinity(0)),
        "memory_gb": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30),
        "kernel": os.uname().release,
        "system": release.get("PRETTY_NAME", "").strip('"'),
        "python": platform.python_version(),
        "load": os.getloadavg()[0],
        "versions": {name: version for name, argv in _VERSIONS.items() if (version := _version(argv))},
    }


def header(about: Mapping[str, Any]) -> str:
    """The machine in a few lines of text."""
    versions = ", ".join(f"{name} {version}" for name, version in about["versions"].items())
    return (
        f"{about['date']}: {about['cpu']}, {about['cores']} cores, {about['memory_gb']} GB, "
        f"{about['system']}, Linux {about['kernel']}, Python {about['python']}, "
        f"load at the start {about['load']:.2f}.\n{versions}."
    )


def _lines(path: str) -> list[str]:
    return Path(path).read_text(errors="replace").splitlines()


_VERSIONS = {
    "nagaya": [str(BIN / "nagaya"), "--version"],
    "runc": ["runc", "--version"],
    "crun": ["crun", "--version"],
    "podman": ["podman", "--version"],
    "containerd": ["containerd", "--version"],
    "dockerd": ["dockerd", "--version"],
    "docker CLI": ["docker", "--version"],
}


def _version(argv: Sequence[str]) -> str:
    try:
        words = _quiet(*argv).split("\n")[0].replace(",", " ").split()
    except (Failed, OSError):
        return ""
    return next((word for word in words if word[0].isdigit()), words[-1])


def attempt(name: str, make: Callable[[], Callable[[], None]]) -> Peer:
    """A peer; when it cannot be made, one that is left out with the reason."""
    try:
        return Peer(name, make())
    except Failed as failed:
        return Peer(name, lambda: None, failure=str(failed))


def say(text: str) -> None:
    """What goes on, to the terminal."""
    print(f"bench: {text}", file=sys.stderr, flush=True)


def add_options(parser: argparse.ArgumentParser) -> None:
    """Where a benchmark's results go."""
    parser.add_argument("--format", choices=("table", "json"), default="table")
    parser.add_argument(
        "--output", type=Path, help="file for the JSON (default benchmarks/results/NAME-DATE)"
    )


def publish(
    name: str,
    results: Sequence[dict[str, Any]],
    about: Mapping[str, Any],
    options: argparse.Namespace,
    table: Callable[[Sequence[dict[str, Any]]], str],
) -> int:
    """Print the results, and keep the JSON in benchmarks/results; exit code 1 when ours were left out."""
    text = dump(results, dict(about))
    stamp = time.strftime("%Y%m%dT%H%M%S", time.gmtime())
    output = options.output or Path(__file__).parent / "results" / f"{name}-{stamp}.json"
    output.parent.mkdir(parents=True, exist_ok=True)
    output.write_text(text + "\n")
    print(text if options.format == "json" else f"{header(about)}\n\n{table(results).strip()}")
    say(str(output))
    return int(any("left_out" in result["rows"][0] for result in results))  # the first row is ours


def need(program: str) -> str:
    """The path of a program. Raises Failed when it is not installed."""
    found = shutil.which(program)
    if found is None:
        raise Failed(f"{program} is not installed")
    return found


class Command:
    """A command line as a peer's run: it must exit with 0. {n} in an argument becomes the run's number."""

    def __init__(self, base: Path, *argv: str, env: Mapping[str, str] | None = None) -> None:
        self._argv = argv
        self._env = {"PATH": os.environ["PATH"], "HOME": str(base), **(env or {})}
        self._log = base / "command.log"
        self._input = base / "empty"  # not the null device: runsc gives its stdin to nobody
        self._input.touch()
        self._count = 0

    def __call__(self) -> None:
        """Run it once. Raises Failed with the end of what it wrote."""
        self._count += 1
        argv = [word.replace("{n}", str(self._count)) for word in self._argv]
        flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC
        actions = [
            (os.POSIX_SPAWN_OPEN, 0, str(self._input), os.O_RDONLY, 0),
            (os.POSIX_SPAWN_OPEN, 1, str(self._log), flags, 0o600),
            (os.POSIX_SPAWN_DUP2, 1, 2),
        ]
        pid = os.posix_spawn(argv[0], argv, self._env, file_actions=actions)
        code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        if code:
            said = " ".join(self._log.read_text(errors="replace").split())
            raise Failed(f"exit code {code}: {said[-300:]}")


def rootfs(base: Path) -> Path:
    """The root file system that all share: the static busybox with its applets as links."""
    where = base / "rootfs"
    for name in ("bin", "dev", "etc", "proc", "sys", "tmp"):
        (where / name).mkdir(parents=True)
    busybox = need("busybox")
    shutil.copy2(busybox, where / "bin" / "busybox")
    for applet in _quiet(busybox, "--list").split():
        if applet != "busybox":
            (where / "bin" / applet).symlink_to("busybox")
    return where


def archive(base: Path, root: Path, command: Sequence[str] = ("sh",)) -> Path:
    """The same as an image in `docker save`'s format, which dockerd, podman and ctr read."""
    layer = base / "layer.tar"
    with tarfile.open(layer, "w") as tar:
        tar.add(root, arcname=".")
    digest = _quiet("sha256sum", str(layer)).split()[0]
    config = {
        "architecture": {"x86_64": "amd64", "aarch64": "arm64"}.get(platform.machine(), platform.machine()),
        "os": "linux",
        "config": {"Env": ["PATH=/bin"], "Cmd": list(command)},
        "rootfs": {"type": "layers", "diff_ids": [f"sha256:{digest}"]},
        "history": [{"created_by": "busybox"}],  # buildah builds on no image without
    }
    manifest = [{"Config": "config.json", "RepoTags": [IMAGE], "Layers": ["layer.tar"]}]
    path = base / "image.tar"
    with tarfile.open(path, "w") as tar:
        tar.add(layer, arcname="layer.tar")
        for name, data in (("config.json", config), ("manifest.json", manifest)):
            text = json.dumps(data).encode()
            info = tarfile.TarInfo(name)
            info.size = len(text)
            tar.addfile(info, io.BytesIO(text))
    return path


def bundle(base: Path, name: str, root: Path, configure: Callable[[dict[str, Any]], None]) -> Path:
    """An OCI bundle on the shared root file system, from `nagaya-oci spec` (it is `runc spec`'s)."""
    where = base / name
    where.mkdir()
    _quiet(str(BIN / "nagaya-oci"), "spec", "--bundle", str(where))
    config = json.loads((where / "config.json").read_text())
    config["ociVersion"] = "1.0.2"  # crun 1.8 knows no later one
    config["root"] = {"path": str(root), "readonly": True}
    config["process"].update(terminal=False, args=["/bin/true"])
    config["linux"]["cgroupsPath"] = f"/{base.name}/{name}"
    configure(config)
    (where / "config.json").write_text(json.dumps(config))
    return where


def decode(data: bytes) -> Any:
    """JSON that a daemon answered."""
    return json.loads(data)


class Daemons:
    """Our daemon, dockerd and containerd, each with directories of its own below `base`."""

    def __init__(self, base: Path) -> None:
        self._base = base
        self._started: dict[str, subprocess.Popen[bytes]] = {}
        self.nagaya = base / "n" / "docker.sock"
        self.dockerd = base / "d" / "docker.sock"
        self.containerd = base / "c" / "containerd.sock"

    def _start(self, name: str, argv: Sequence[str], answers: Callable[[], bool]) -> None:
        log = self._base / f"{name}.log"
        with log.open("ab") as output:
            process = subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=output, stderr=output)
        self._started[name] = process
        deadline = time.monotonic() + _STARTUP
        while not answers():
            if process.poll() is not None or time.monotonic() > deadline:
                raise Failed(f"{name} does not start: {log.read_text(errors='replace').strip()[-300:]}")
            time.sleep(0.005)

    def start_nagaya(self) -> None:
        """Start nagayad. Raises Failed."""
        where = self.nagaya.parent
        argv = [str(BIN / "nagayad"), "--root", f"{where}/root", "--run", f"{where}/run"]
        argv += ["--docker-socket", str(self.nagaya), "--cgroup-parent", self._base.name]
        argv += ["--bridge", "nagtb-n", "--nft-table", "nagtb", "--bip", _BRIDGES["nagaya"]]
        where.mkdir(exist_ok=True)
        self._start("nagayad", argv, lambda: _pings(self.nagaya))

    def start_containerd(self) -> None:
        """Start containerd. Raises Failed."""
        where = self.containerd.parent
        where.mkdir(exist_ok=True)
        config = where / "config.toml"
        config.write_text(
            f'version = 2\nroot = "{where}/root"\nstate = "{where}/state"\n'
            f'disabled_plugins = ["io.containerd.grpc.v1.cri"]\n[grpc]\naddress = "{self.containerd}"\n'
        )
        argv = [need("containerd"), "--config", str(config)]
        self._start("containerd", argv, self.containerd.exists)

    def start_dockerd(self) -> None:
        """Start dockerd on our containerd. Raises Failed."""
        if not self.containerd.exists():
            raise Failed("there is no containerd for it")
        where = self.dockerd.parent
        where.mkdir(exist_ok=True)
        config = where / "daemon.json"
        config.write_text("{}")
        argv = [need("dockerd"), "--config-file", str(config), "--data-root", f"{where}/root"]
        argv += ["--exec-root", f"{where}/exec", "--pidfile", f"{where}/pid", "-H", f"unix://{self.dockerd}"]
        argv += ["--containerd", str(self.containerd), "--containerd-namespace", "nagtb"]
        argv += ["--containerd-plugins-namespace", "nagtb-plugins", "--cgroup-parent", f"/{self._base.name}"]
        argv += ["--storage-driver", "overlay2", "--bip", _BRIDGES["dockerd"]]
        self._start("dockerd", argv, lambda: _pings(self.dockerd))

    def end(self, name: str) -> None:
        """End one, by its program's name, that may be started again."""
        process = self._started.pop(name)
        process.terminate()
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()

    def stop(self) -> None:
        """End them; what they started ends with the namespace."""
        for name in reversed(list(self._started)):
            self.end(name)


def podman(base: Path, archive: Path) -> list[str]:
    """podman's command line up to its verb, with the image in a storage of its own. Raises Failed."""
    argv = [need("podman"), "--root", f"{base}/p/root", "--runroot", f"{base}/p/run"]
    argv += ["--runtime", need("runc"), "--cgroup-manager", "cgroupfs"]
    argv += ["--storage-driver", "overlay", "--events-backend", "file"]
    if not (base / "p").exists():
        Command(base, *argv, "load", "-i", str(archive))()
    return argv


def podman_options(base: Path) -> list[str]:
    """What podman's `run` and `create` need here."""
    # without CAP_SYS_RESOURCE its own limits, higher than ours, are refused
    limits = ["--ulimit", "nofile=1024:2048", "--ulimit", "nproc=1000:1000"]
    return [*limits, "--cgroup-parent", f"/{base.name}", "--pull", "never"]


def _pings(path: Path) -> bool:
    try:
        with Client(path) as client:
            return client.request("GET", "/_ping") == b"OK"
    except (Failed, OSError):
        return False


class Client:
    """A connection to a Docker API socket: as little as can be between the stop-watch and the daemon."""

    def __init__(self, path: Path) -> None:
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.settimeout(60)
        self._socket.connect(str(path))
        self._rest = b""

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *_: object) -> None:
        self._socket.close()

    def request(self, method: str, path: str, body: object = None) -> bytes:
        """The body of the answer. Raises Failed unless its status is 2xx."""
        data = b"" if body is None else json.dumps(body).encode()
        head = f"{method} {path} HTTP/1.1\r\nHost: d\r\nContent-Length: {len(data)}\r\n"
        if data:
            head += "Content-Type: application/json\r\n"
        self._socket.sendall(f"{head}\r\n".encode() + data)
        lines = self._until(b"\r\n\r\n").decode("latin-1").split("\r\n")
        status = int(lines[0].split()[1])
        headers = {k.lower(): v for k, _, v in (line.partition(": ") for line in lines[1:])}
        if headers.get("transfer-encoding") == "chunked":
            answer = b""
            while size := int(self._until(b"\r\n"), 16):
                answer += self._take(size)
                self._until(b"\r\n")
            self._until(b"\r\n")
        else:
            answer = self._take(int(headers.get("content-length", "0")))
        if not 200 <= status < 300:
            raise Failed(
                f"{method} {path.partition('?')[0]}: {status} {answer[:200].decode(errors='replace')}"
            )
        return answer

    def hijack(self, path: str, body: object) -> bytes:
        """Everything that comes after the daemon has left HTTP, as an attached command line reads it. The
        connection is of no further use. Raises Failed."""
        data = json.dumps(body).encode()
        head = f"POST {path} HTTP/1.1\r\nHost: d\r\nConnection: Upgrade\r\nUpgrade: tcp\r\n"
        head += f"Content-Type: application/json\r\nContent-Length: {len(data)}\r\n\r\n"
        self._socket.sendall(head.encode() + data)
        status = self._until(b"\r\n\r\n").split(b"\r\n")[0]
        if b" 101 " not in status:
            raise Failed(f"POST {path}: {status.decode(errors='replace')}")
        rest = [self._rest]
        while data := self._socket.recv(65536):
            rest.append(data)
        return b"".join(rest)

    def follow(self, path: str) -> Callable[[bytes], int]:
        """Ask for a stream, until its end; the answer, once called, reads it and says how often a byte came.
        It is HTTP/1.0, which has no chunks. Raises Failed."""
        self._socket.sendall(f"GET {path} HTTP/1.0\r\nHost: d\r\n\r\n".encode())

        def count(byte: bytes) -> int:
            self._until(b"\r\n\r\n")
            found = self._rest.count(byte)
            buffer = bytearray(1 << 20)
            while size := self._socket.recv_into(buffer):
                found += buffer.count(byte, 0, size)
            return found

        return count

    def _more(self) -> None:
        data = self._socket.recv(65536)
        if not data:
            raise Failed("the daemon closed the connection")
        self._rest += data

    def _until(self, mark: bytes) -> bytes:
        while mark not in self._rest:
            self._more()
        found, _, self._rest = self._rest.partition(mark)
        return found

    def _take(self, size: int) -> bytes:
        while len(self._rest) < size:
            self._more()
        found, self._rest = self._rest[:size], self._rest[size:]
        return found


def processes(exes: Sequence[str]) -> list[int]:
    """Processes of this run, without our own, by their executable's name (up to a version's digits)."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and int(entry.name) not in (1, os.getpid()):
            with suppress(OSError):
                name = os.path.basename(os.readlink(entry / "exe"))
                if name.rstrip("0123456789.") in exes or name in exes:
                    found.append(int(entry.name))
    return found


def pss(pids: Sequence[int]) -> int:
    """Their memory in KB, each shared page counted by its share (PSS of smaps_rollup, proc(5))."""
    total = 0
    for pid in pids:
        with suppress(FileNotFoundError, ProcessLookupError):  # it has ended
            for line in _lines(f"/proc/{pid}/smaps_rollup"):
                if line.startswith("Pss:"):
                    total += int(line.split()[1])
    return total
