"""The flags of `create` and `run`, and the body of POST /containers/create that they make (pure)."""

from __future__ import annotations

from nagaya.cli import networks, values
from nagaya.cli.flags import Flag, Given, UsageError, bad_value
from nagaya.errors import InvalidArgument
from nagaya.linux import json

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any


def _list(name: str, help: str, short: str = "") -> Flag:
    return Flag(name, help, short=short, kind="list")


def _text(name: str, help: str, short: str = "") -> Flag:
    return Flag(name, help, short=short, kind="text")


def _int(name: str, help: str, short: str = "", default: int = 0) -> Flag:
    return Flag(name, help, short=short, kind="int", default=default)


CREATE_FLAGS = (
    _list("add-host", "Add a custom host-to-IP mapping (host:ip)"),
    _list("annotation", "Add an annotation, passed on to the runtime"),
    _list("attach", "Attach to stdin, stdout or stderr", "a"),
    _int("blkio-weight", "Block IO weight, between 10 and 1000"),
    _list("blkio-weight-device", "Block IO weight of one device: DEVICE:WEIGHT"),
    _list("cap-add", "Add Linux capabilities"),
    _list("cap-drop", "Drop Linux capabilities"),
    _text("cgroup-parent", "Parent cgroup of the container"),
    _text("cgroupns", "Cgroup namespace: host or private"),
    _text("cidfile", "Write the container's id to this file"),
    _int("cpu-period", "Length of a CPU period in microseconds"),
    _int("cpu-quota", "CPU time per period in microseconds"),
    _int("cpu-rt-period", "Length of a real-time period in microseconds"),
    _int("cpu-rt-runtime", "Real-time CPU time per period in microseconds"),
    _int("cpu-shares", "CPU shares (relative weight)", "c"),
    _text("cpus", "Number of CPUs"),
    _text("cpuset-cpus", "CPUs to run on (0-3, 0,1)"),
    _text("cpuset-mems", "Memory nodes to use (0-3, 0,1)"),
    _list("device", "Add a device of the host: HOST[:CONTAINER][:rwm]"),
    _list("device-cgroup-rule", "Add a rule to the list of allowed devices"),
    _list("device-read-bps", "Bytes a second read from a device: DEVICE:SIZE"),
    _list("device-read-iops", "Reads a second from a device: DEVICE:NUMBER"),
    _list("device-write-bps", "Bytes a second written to a device: DEVICE:SIZE"),
    _list("device-write-iops", "Writes a second to a device: DEVICE:NUMBER"),
    _list("dns", "Use these DNS servers"),
    _list("dns-option", "Set options of the resolver"),
    _list("dns-search", "Set search domains"),
    _text("domainname", "NIS domain name"),
    _text("entrypoint", "Replace the image's entry point"),
    _list("env", "Set a variable: NAME=VALUE, or NAME to pass ours on", "e"),
    _list("env-file", "Read variables from a file"),
    _list("expose", "Expose a port or a range of ports"),
    _text("gpus", "GPUs to add to the container: all, a number, or device=ID,..."),
    _list("group-add", "Join additional groups"),
    _text("health-cmd", "Command that tells whether the container is healthy"),
    _text("health-interval", "Time between two checks"),
    _int("health-retries", "Failures in a row that make it unhealthy"),
    _text("health-start-interval", "Time between two checks while the container starts up"),
    _text("health-start-period", "Time to start up before failures count"),
    _text("health-timeout", "Longest time of a check"),
    _text("hostname", "Host name of the container", "h"),
    Flag("init", "Run an init that forwards signals and reaps processes"),
    Flag("interactive", "Keep stdin open", short="i"),
    _text("ip", "IPv4 address"),
    _text("ip6", "IPv6 address"),
    _text("ipc", "IPC namespace: none, private, shareable, host or container:NAME"),
    _list("label", "Set a label: NAME=VALUE", "l"),
    _list("label-file", "Read labels from a file"),
    _list("link", "Add a name of another container: NAME[:ALIAS]"),
    _text("log-driver", "Driver that keeps the container's output"),
    _list("log-opt", "Set an option of the log driver"),
    _text("mac-address", "MAC address"),
    _text("memory", "Memory limit", "m"),
    _text("memory-reservation", "Soft memory limit"),
    _text("memory-swap", "Limit of memory and swap together; -1: no limit of swap"),
    _int("memory-swappiness", "Swappiness, 0 to 100", default=-1),
    _list("mount", "Attach a mount: type=bind|volume|tmpfs|image,source=...,target=..."),
    _text("name", "Name of the container"),
    _list("network", "Network: none, host, bridge, container:NAME or a name"),
    _list("net", "The same as --network"),
    _list("network-alias", "Name of the container within the network"),
    Flag("no-healthcheck", "Run no health check that the image defines"),
    Flag("oom-kill-disable", "Do not kill the container when memory runs out"),
    _int("oom-score-adj", "Preference of the host's OOM killer, -1000 to 1000"),
    _text("pid", "PID namespace: host or container:NAME"),
    _int("pids-limit", "Most processes; -1: no limit"),
    _text("platform", "Platform of the image: os/architecture[/variant]"),
    Flag("privileged", "Give all capabilities and devices that we have"),
    _list("publish", "Publish a port: [[ADDRESS:][HOST]:]CONTAINER[/PROTOCOL]", "p"),
    Flag("publish-all", "Publish all exposed ports to random ones", short="P"),
    Flag("pull", "When to pull the image: always, missing or never", kind="text", default="missing"),
    Flag("quiet", "Suppress the output of the pull", short="q"),
    Flag("read-only", "Mount the root file system read-only"),
    Flag(
        "restart", "Restart policy: no, always, unless-stopped, on-failure[:MAX]", kind="text", default="no"
    ),
    Flag("rm", "Remove the container when it exits"),
    _text("runtime", "Low-level runtime"),
    _list("security-opt", "Security options: no-new-privileges, seccomp=..., systempaths=unconfined"),
    _text("shm-size", "Size of /dev/shm"),
    _text("stop-signal", "Signal that stops the container"),
    _int("stop-timeout", "Seconds until a stopping container is killed"),
    _list("storage-opt", "Set an option of the storage driver"),
    _list("sysctl", "Set a kernel parameter of the container's namespaces"),
    _list("tmpfs", "Mount a tmpfs: PATH[:OPTIONS]"),
    Flag("tty", "Give the container a terminal", short="t"),
    _list("ulimit", "Set a limit: NAME=SOFT[:HARD]"),
    _text("user", "User name or id (format: NAME|UID[:GROUP|GID])", "u"),
    _text("userns", "User namespace"),
    _text("uts", "UTS namespace"),
    _list("volume", "Mount a directory or a volume: [SOURCE:]TARGET[:OPTIONS]", "v"),
    _text("isolation", "Isolation technology: default is the only one on Linux"),
    _text("volume-driver", "Driver of the volumes"),
    _list("volumes-from", "Mount the volumes of these containers"),
    _text("workdir", "Working directory in the container", "w"),
)

# flag -> key of HostConfig, where the value goes over as it is
_PLAIN = {
    "blkio-weight": "BlkioWeight",
    "cgroup-parent": "CgroupParent",
    "cgroupns": "CgroupnsMode",
    "cpu-period": "CpuPeriod",
    "cpu-quota": "CpuQuota",
    "cpu-rt-period": "CpuRealtimePeriod",
    "cpu-rt-runtime": "CpuRealtimeRuntime",
    "cpu-shares": "CpuShares",
    "cpuset-cpus": "CpusetCpus",
    "cpuset-mems": "CpusetMems",
    "device-cgroup-rule": "DeviceCgroupRules",
    "dns": "Dns",
    "dns-option": "DnsOptions",
    "dns-search": "DnsSearch",
    "group-add": "GroupAdd",
    "ipc": "IpcMode",
    "oom-kill-disable": "OomKillDisable",
    "oom-score-adj": "OomScoreAdj",
    "pid": "PidMode",
    "pids-limit": "PidsLimit",
    "privileged": "Privileged",
    "publish-all": "PublishAllPorts",
    "read-only": "ReadonlyRootfs",
    "rm": "AutoRemove",
    "runtime": "Runtime",
    "userns": "UsernsMode",
    "uts": "UTSMode",
    "isolation": "Isolation",
    "volume-driver": "VolumeDriver",
    "volumes-from": "VolumesFrom",
}
# flag -> (key of HostConfig, key of the value, is it a size)
_OF_DEVICES = {
    "blkio-weight-device": ("BlkioWeightDevice", "Weight", False),
    "device-read-bps": ("BlkioDeviceReadBps", "Rate", True),
    "device-read-iops": ("BlkioDeviceReadIOps", "Rate", False),
    "device-write-bps": ("BlkioDeviceWriteBps", "Rate", True),
    "device-write-iops": ("BlkioDeviceWriteIOps", "Rate", False),
}
SIZES = {
    "memory": "Memory",
    "memory-reservation": "MemoryReservation",
    "memory-swap": "MemorySwap",
    "shm-size": "ShmSize",
}


def value_of(given: Given, name: str, parse: Callable[[str], int]) -> int:
    """What a flag's text means. Raises FlagError that names the flag."""
    try:
        return parse(given[name])
    except UsageError as error:
        flag = next(flag for flag in CREATE_FLAGS if flag.name == name)
        raise flag.refuse(given[name], str(error)) from None


def body(given: Given, *, detach: bool = False) -> dict[str, Any]:
    """The JSON of POST /containers/create: given.args is the image and its command. Keys that would only
    repeat the API's defaults are left out. Raises UsageError."""
    image, *command = given.args
    if given["rm"] and given["restart"] not in ("no", ""):
        raise UsageError("conflicting options: cannot specify both --restart and --rm")
    attach = _attached(given, detach)
    exposed, bindings = values.ports(given["publish"])
    exposed.update(values.exposed_ports(given["expose"]))
    files = [line for path in given["label-file"] for line in values.lines_of(path)]
    config: dict[str, Any] = {
        "Image": image,
        "Cmd": command or None,
        "Entrypoint": [given["entrypoint"]] if "entrypoint" in given.changed else None,
        "Env": values.variables(given["env"], given["env-file"]) or None,
        "Hostname": given["hostname"],
        "Domainname": given["domainname"],
        "User": given["user"],
        "WorkingDir": given["workdir"],
        "Labels": values.pairs(files + given["label"]),
        "Tty": given["tty"],
        "OpenStdin": given["interactive"],
        "StdinOnce": given["interactive"] and "stdin" in attach,
        "AttachStdin": "stdin" in attach,
        "AttachStdout": "stdout" in attach,
        "AttachStderr": "stderr" in attach,
        "ExposedPorts": exposed,
        "Volumes": {word: {} for word in given["volume"] if values.volume(word) is None},
        "Healthcheck": _health(given),
        "StopSignal": given["stop-signal"],
        "StopTimeout": given["stop-timeout"] if "stop-timeout" in given.changed else None,
    }
    body = {key: value for key, value in config.items() if value not in (None, "", {}, False)}
    networking = networks.wishes(given)
    body["HostConfig"] = _host(given, bindings, networking)
    if networking["endpoints"]:
        body["NetworkingConfig"] = {"EndpointsConfig": networking["endpoints"]}
    return body


def _attached(given: Given, detach: bool) -> set[str]:
    words = {word.lower() for word in given["attach"]}
    if words - {"stdin", "stdout", "stderr"}:
        wrong = next(w for w in given["attach"] if w.lower() not in ("stdin", "stdout", "stderr"))
        raise bad_value(wrong, "-a, --attach", "valid streams are STDIN, STDOUT and STDERR")
    if detach:
        if words:
            raise UsageError("conflicting options: cannot specify both --attach and --detach")
        return set()
    return words or {"stdout", "stderr", *(["stdin"] if given["interactive"] else [])}


def _host(given: Given, bindings: dict[str, Any], networking: dict[str, Any]) -> dict[str, Any]:
    added, dropped = values.capabilities(given["cap-add"], given["cap-drop"])
    options, masked = _security(given["security-opt"])
    host: dict[str, Any] = {key: given[flag] for flag, key in _PLAIN.items()}
    host |= {key: value_of(given, flag, values.size) for flag, key in SIZES.items() if flag in given.changed}
    if "memory-swappiness" in given.changed:
        host["MemorySwappiness"] = given["memory-swappiness"]
    host |= {
        "NetworkMode": networking["mode"],
        "Links": networking["links"],
        "Binds": [bind for bind in map(values.volume, given["volume"]) if bind is not None],
        "Mounts": [values.mount(word) for word in given["mount"]],
        "Tmpfs": dict(word.partition(":")[::2] for word in given["tmpfs"]),
        "PortBindings": bindings,
        "RestartPolicy": values.restart(given["restart"]),
        "LogConfig": {"Type": given["log-driver"], "Config": values.pairs(given["log-opt"])},
        "CapAdd": added,
        "CapDrop": dropped,
        "SecurityOpt": options,
        "NanoCpus": values.nano_cpus(given["cpus"]) if given["cpus"] else 0,
        "Devices": [values.device(word) for word in given["device"] if not values.is_cdi(word)],
        "DeviceRequests": values.device_requests(given["device"], given["gpus"]),
        "Ulimits": sorted(map(values.ulimit, given["ulimit"]), key=lambda limit: str(limit["Name"])),
        "Sysctls": values.pairs(given["sysctl"]),
        "StorageOpt": values.pairs(given["storage-opt"]),
        "ExtraHosts": [values.extra_host(word) for word in given["add-host"]],
        "Annotations": values.pairs(given["annotation"]),
    }
    for flag, (key, name, is_size) in _OF_DEVICES.items():
        host[key] = [values.of_device(word, flag, name, is_size) for word in given[flag]]
    if "init" in given.changed:
        host["Init"] = given["init"]
    kept = {key: value for key, value in host.items() if value not in (None, "", 0, False, [], {})}
    if "MemorySwappiness" in host:
        kept["MemorySwappiness"] = host["MemorySwappiness"]
    if "Init" in host:
        kept["Init"] = host["Init"]
    if masked is not None:
        kept |= {"MaskedPaths": masked, "ReadonlyPaths": masked}
    return kept


def _security(words: list[str]) -> tuple[list[str], list[str] | None]:
    """(SecurityOpt, paths to mask: [] for none, None for the default). A seccomp profile is sent as JSON:
    the daemon may not see our files."""
    options = []
    masked: list[str] | None = None
    for word in words:
        separator = "=" if "=" in word else ":"
        name, found, value = word.partition(separator)
        if not found and word != "no-new-privileges":
            raise UsageError(f'invalid --security-opt: "{word}"')
        if word in ("systempaths=unconfined", "systempaths:unconfined"):
            masked = []
        elif name == "seccomp" and value not in ("unconfined", "builtin"):
            try:
                with open(value, encoding="utf-8") as file:
                    profile = json.loads(file.read())
            except (OSError, UnicodeDecodeError, InvalidArgument) as error:
                raise UsageError(f"opening seccomp profile ({value}) failed: {error}") from None
            options.append("seccomp=" + json.dumps(profile))
        else:
            options.append(word)
    return options, masked


def _health(given: Given) -> dict[str, Any] | None:
    names = {
        "health-interval": "Interval",
        "health-timeout": "Timeout",
        "health-start-period": "StartPeriod",
        "health-start-interval": "StartInterval",
    }
    check: dict[str, Any] = {
        key: value_of(given, flag, values.duration) for flag, key in names.items() if given[flag]
    }
    if given["health-cmd"]:
        check["Test"] = ["CMD-SHELL", given["health-cmd"]]
    if given["health-retries"] < 0:
        raise UsageError("--health-retries cannot be negative")
    if given["health-retries"]:
        check["Retries"] = given["health-retries"]
    if given["no-healthcheck"]:
        if check:
            raise UsageError("--no-healthcheck conflicts with --health-* options")
        return {"Test": ["NONE"]}
    return check or None
