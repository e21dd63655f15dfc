"""`nagaya build`: an image from a Dockerfile and the files beside it."""

from __future__ import annotations

import binascii
import os
import stat
from typing import NamedTuple

from nagaya.cli import context, steps, values
from nagaya.cli.auth import registry_config
from nagaya.cli.files import write_to
from nagaya.cli.flags import Flag, UsageError
from nagaya.cli.http import named
from nagaya.cli.output import human_size, note
from nagaya.errors import NagayaError
from nagaya.linux import json

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Any

    from nagaya.cli.flags import Given
    from nagaya.cli.http import Client

USAGE = "[OPTIONS] PATH | URL | -"
SUMMARY = "Build an image from a Dockerfile"
FLAGS = (
    Flag("add-host", "Add a line to /etc/hosts: NAME:ADDRESS", kind="list"),
    Flag("allow", "Allow what is dangerous: security.insecure", kind="list"),
    Flag("build-arg", "Set a build argument: NAME[=VALUE]", kind="list"),
    Flag("cache-from", "Images whose layers may stand in for steps", kind="list"),
    Flag("cgroup-parent", "Parent cgroup of RUN", kind="text"),
    Flag("cpu-period", "CPU CFS period in microseconds", kind="int"),
    Flag("cpu-quota", "CPU CFS quota in microseconds", kind="int"),
    Flag("cpu-shares", "CPU shares (relative weight)", short="c", kind="int"),
    Flag("cpuset-cpus", "CPUs in which RUN may run (0-3, 0,1)", kind="text"),
    Flag("cpuset-mems", "Memory nodes in which RUN may run (0-3, 0,1)", kind="text"),
    Flag("file", "The Dockerfile (default: PATH/Dockerfile; - for stdin)", short="f", kind="text"),
    Flag("force-rm", "Remove intermediate containers after a failure, too"),
    Flag("iidfile", "Write the image's id to a file", kind="text"),
    Flag("label", "Set a label of the image: NAME=VALUE", kind="list"),
    Flag("memory", "Memory limit of RUN", short="m", kind="text"),
    Flag("memory-swap", "Memory and swap limit of RUN, -1 for no limit", kind="text"),
    Flag("network", "Network of RUN: default, none, host, or a network's name", kind="text"),
    Flag("no-cache", "Do every step anew"),
    Flag(
        "output",
        "Files instead of an image: DIRECTORY, - or type=local|tar,dest=PATH",
        short="o",
        kind="text",
    ),
    Flag("platform", "Platform of the image: os/architecture[/variant]", kind="text"),
    Flag("progress", "How to show it: auto, plain, tty, quiet", kind="text", default="auto"),
    Flag("pull", "Ask the registry for a newer base image"),
    Flag("quiet", "Print only the image's id", short="q"),
    Flag("rm", "Remove intermediate containers", default=True),
    Flag("secret", "A secret for RUN --mount=type=secret: id=ID[,src=FILE|,env=NAME]", kind="list"),
    Flag("security-opt", "Security options of RUN", kind="list"),
    Flag("shm-size", "Size of RUN's /dev/shm", kind="text"),
    Flag("ssh", "An ssh agent for RUN --mount=type=ssh: default or ID[=SOCKET]", kind="list"),
    Flag("tag", "Name of the image: NAME[:TAG]", short="t", kind="list"),
    Flag("target", "Stage to build", kind="text"),
    Flag("ulimit", "Set a limit of RUN: NAME=SOFT[:HARD]", kind="list"),
)
ARGS = (1, 1)

PRIVATE = "application/vnd.nagaya.build"  # a line of JSON with what is secret, then the context
_MAX_SECRET = 500 << 10  # as moby/buildkit has it
_SHOWN = ("auto", "plain", "tty", "quiet")


class Output(NamedTuple):
    """kind: "" an image; local, tar. destination "" is stdout."""

    kind: str = ""
    destination: str = ""


def run(given: Given, client: Client) -> int:
    """Build; the exit code is that of the program that failed."""
    output = _output(given["output"])
    query = _query(given)
    found = _context(given)
    headers = {"X-Registry-Config": registry_config()}
    members = found.members if found is not None else iter(())
    private = _private(given)
    headers["Content-Type"] = "application/x-tar"
    if private:
        headers["Content-Type"] = PRIVATE
        members = _after(json.dumps(private).encode() + b"\n", members)
    if found is not None:
        query["dockerfile"] = found.dockerfile
    # what was there before stays: the same Dockerfile makes the same image
    known = (
        {found["Id"] for found in client.call("GET", "/images/json", {"all": True})} if output.kind else ()
    )
    how = _how(given)
    shown = 2 if output.kind and not output.destination else 1
    if how != "quiet" and found is not None:
        members = _counted(members, shown)
    target = named(
        named("/build", query, "t", given["tag"]),
        {},
        "extrahosts",
        [values.extra_host(h) for h in given["add-host"]],
    )
    answer = client.send("POST", target, headers=headers, upload=members)
    try:
        image = steps.show(answer.objects(), how=how, fd=shown)
    except steps.BuildFailed as error:
        note(error.message)
        return error.status
    if given["iidfile"]:
        write_to(given["iidfile"], [image.encode()], "failed to write the image's id")
    if output.kind:
        _files(client, image, output, keep=bool(given["tag"]) or image in known)
    elif how == "quiet":
        print(image)
    return 0


def _how(given: Given) -> str:
    if given["progress"] not in _SHOWN:
        raise UsageError(
            f"invalid value for --progress: {given['progress']}: want one of {', '.join(_SHOWN)}"
        )
    if given["quiet"] or given["progress"] == "quiet":
        return "quiet"
    if given["progress"] != "auto":
        return str(given["progress"])
    return "tty" if os.isatty(1) else "plain"


def _context(given: Given) -> context.Context | None:
    """What is sent; None when the daemon fetches it."""
    place = given.args[0]
    if place == "-":
        return context.of_stdin(given["file"])
    if "://" in place or place.startswith("git@"):
        return None
    return context.of_directory(place, given["file"])


def _query(given: Given) -> dict[str, Any]:
    place = given.args[0]
    arguments = dict(_argument(word) for word in given["build-arg"])
    return {
        "remote": place if "://" in place or place.startswith("git@") else "",
        "dockerfile": given["file"],
        "q": given["quiet"] or given["progress"] == "quiet",
        "nocache": given["no-cache"],
        "pull": given["pull"],
        "rm": given["rm"],
        "forcerm": given["force-rm"],
        "target": given["target"],
        "platform": given["platform"],
        "networkmode": given["network"],
        "buildargs": json.dumps(arguments) if arguments else "",
        "labels": json.dumps(values.pairs(given["label"])) if given["label"] else "",
        "cachefrom": json.dumps(given["cache-from"]) if given["cache-from"] else "",
        "memory": values.size(given["memory"]) if given["memory"] else "",
        "memswap": values.size(given["memory-swap"]) if given["memory-swap"] else "",
        "shmsize": values.size(given["shm-size"]) if given["shm-size"] else "",
        "cpushares": given["cpu-shares"] or "",
        "cpuperiod": given["cpu-period"] or "",
        "cpuquota": given["cpu-quota"] or "",
        "cpusetcpus": given["cpuset-cpus"],
        "cpusetmems": given["cpuset-mems"],
        "cgroupparent": given["cgroup-parent"],
        "securityopt": json.dumps(given["security-opt"]) if given["security-opt"] else "",
        "ulimits": json.dumps([values.ulimit(word) for word in given["ulimit"]]) if given["ulimit"] else "",
        "version": "1",
    }


def _argument(word: str) -> tuple[str, str | None]:
    """--build-arg; a bare name has our own value, when there is one."""
    name, equals, value = word.partition("=")
    return name, value if equals else os.environ.get(name)


def _fields(flag: str, word: str) -> dict[str, str]:
    found = {}
    for field in word.split(","):
        key, equals, value = field.partition("=")
        if not equals:
            raise UsageError(f"invalid value for --{flag}: {word}: want key=value, not {field!r}")
        found[key.strip().lower()] = value
    return found


def _private(given: Given) -> dict[str, Any]:
    """What goes before the context, {} for nothing. Raises NagayaError."""
    unknown = set(given["allow"]) - {"security.insecure"}
    if unknown:
        raise UsageError(f"invalid value for --allow: {min(unknown)}: want security.insecure")
    found = {
        "secrets": dict(map(_secret, given["secret"])),
        "ssh": dict(map(_agent, given["ssh"])),
        "insecure": bool(given["allow"]),
    }
    return found if any(found.values()) else {}


def _secret(word: str) -> tuple[str, str]:
    """(id, its value in base64) of --secret."""
    fields = _fields("secret", word)
    unknown = set(fields) - {"id", "type", "src", "source", "env"}
    name = fields.get("id", "")
    if unknown or not name or fields.get("type", "file") not in ("file", "env"):
        raise UsageError(f"invalid value for --secret: {word}: want id=ID[,src=FILE|,env=NAME]")
    source = fields.get("src") or fields.get("source") or ""
    variable = fields.get("env", "")
    if fields.get("type") == "env" and source:
        source, variable = "", source
    if not source and not variable:
        source, variable = ("", name) if name in os.environ else (name, "")
    if variable:
        if variable not in os.environ:
            raise NagayaError(f"secret {name}: there is no variable {variable}")
        data = os.environb[os.fsencode(variable)]
    else:
        try:
            with open(os.path.expanduser(source), "rb") as file:
                data = file.read(_MAX_SECRET + 1)
        except OSError as error:
            raise NagayaError(f"secret {name}: {source}: {os.strerror(error.errno or 0).lower()}") from None
    if len(data) > _MAX_SECRET:
        raise NagayaError(f"secret {name} is larger than {human_size(_MAX_SECRET)}")
    return name, binascii.b2a_base64(data, newline=False).decode()


def _agent(word: str) -> tuple[str, str]:
    """(id, socket) of --ssh."""
    name, _, path = word.partition("=")
    path = path or os.environ.get("SSH_AUTH_SOCK", "")
    if not path:
        raise NagayaError(f"ssh agent {name}: no socket was named, and SSH_AUTH_SOCK is not set")
    try:
        is_socket = stat.S_ISSOCK(os.stat(path).st_mode)
    except OSError as error:
        raise NagayaError(f"ssh agent {name}: {path}: {os.strerror(error.errno or 0).lower()}") from None
    if not is_socket:
        raise NagayaError(
            f"ssh agent {name}: {path} is no agent's socket: keys are added to an agent by ssh-add"
        )
    return name, os.path.abspath(path)


def _after(first: bytes, members: Iterator[bytes]) -> Iterator[bytes]:
    yield first
    yield from members


def _counted(members: Iterator[bytes], fd: int) -> Iterator[bytes]:
    """The members, and when all have gone a line about how much it was."""
    size = 0
    for piece in members:
        size += len(piece)
        yield piece
    from nagaya.cli.output import write

    write(f"Sending build context to the daemon  {human_size(size, 4)}\n".encode(), fd)


# files instead of an image


def _output(word: str) -> Output:
    """--output. Raises UsageError."""
    if not word:
        return Output()
    if "=" not in word:
        return Output("tar", "") if word == "-" else Output("local", word)
    fields = _fields("output", word)
    kind, destination = fields.get("type", ""), fields.get("dest") or fields.get("destination") or ""
    if kind not in ("local", "tar") or set(fields) - {"type", "dest", "destination"}:
        raise UsageError(f"invalid value for --output: {word}: want type=local|tar,dest=PATH")
    if kind == "local" and destination in ("", "-"):
        raise UsageError("--output type=local needs dest=DIRECTORY")
    if kind == "tar" and destination in ("", "-") and os.isatty(1):
        raise NagayaError("cowardly refusing to write a tar archive to a terminal: use dest=FILE or redirect")
    return Output(kind, "" if destination == "-" else destination)


def _files(client: Client, image: str, output: Output, keep: bool) -> None:
    """The image's files, by a container that never runs; it goes again, and an image without a name."""
    body = {"Image": image, "Cmd": ["-"], "Entrypoint": None, "NetworkDisabled": True}
    container = client.call("POST", "/containers/create", body=body)["Id"]
    try:
        pieces = client.send("GET", f"/containers/{container}/export").chunks()
        if output.kind == "tar":
            write_to(output.destination, pieces, "failed to write the files")
            return
        from nagaya.cli import tarball  # tarfile: not for other builds

        os.makedirs(output.destination, exist_ok=True)
        tarball.unpack(tarball.Counted(iter(pieces)), output.destination, "", "", owners=os.geteuid() == 0)  # type: ignore[arg-type]
    except OSError as error:
        raise NagayaError(f"{error.filename}: {os.strerror(error.errno or 0).lower()}") from None
    finally:
        client.call("DELETE", f"/containers/{container}", {"force": True, "v": True})
        if not keep:
            client.call("DELETE", f"/images/{image}", {"noprune": True})
