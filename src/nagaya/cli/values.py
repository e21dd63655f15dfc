"""Parsers of the values that flags take: sizes, durations, ports, mounts, files of variables.

The grammar is that of docker's command line; tests/unit/test_cli_create.py compares with the real one.
"""

from __future__ import annotations

import os

from nagaya.cli.flags import FlagError, UsageError, bad_value

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

_SIZES = {"": 0, "b": 0, "k": 1, "m": 2, "g": 3, "t": 4, "p": 5}
_DURATIONS = {"ns": 1, "us": 10**3, "µs": 10**3, "ms": 10**6, "s": 10**9, "m": 60 * 10**9, "h": 3600 * 10**9}


def size(text: str) -> int:
    """Bytes of "64m", "1.5GiB", "-1": binary units, as memory is counted. Raises UsageError."""
    if text == "-1":
        return -1
    number = text.strip().lower()
    for suffix in ("ib", "b"):
        if number.endswith(suffix) and number[: -len(suffix)][-1:] in tuple("kmgtp"):
            number = number[: -len(suffix)]
            break
    unit = number[-1:] if number[-1:] in tuple("bkmgtp") else ""
    number = number.removesuffix(unit).strip()
    if not number.replace(".", "", 1).isdecimal():
        raise UsageError(f"invalid size: '{text}'")
    return int(float(number) * 1024 ** _SIZES[unit])


def duration(text: str) -> int:
    """Nanoseconds of Go's "1m30.5s". Raises UsageError."""
    rest, sign = text, 1
    if rest[:1] in ("-", "+"):
        sign, rest = (-1 if rest[0] == "-" else 1), rest[1:]
    if rest == "0":
        return 0
    total = 0.0
    while rest:
        digits = 0
        while digits < len(rest) and (rest[digits].isdecimal() or rest[digits] == "."):
            digits += 1
        letters = digits
        while letters < len(rest) and not (rest[letters].isdecimal() or rest[letters] == "."):
            letters += 1
        number, unit, rest = rest[:digits], rest[digits:letters], rest[letters:]
        if unit not in _DURATIONS or not number.replace(".", "", 1).isdecimal():
            raise UsageError(f'time: invalid duration "{text}"')
        total += float(number) * _DURATIONS[unit]
    if not text.strip("+-"):
        raise UsageError(f'time: invalid duration "{text}"')
    return sign * int(total)


def moment(name: str, text: str) -> str:
    """--since or --until, as named, as the API wants them: seconds since the epoch. Of such a number, an
    RFC 3339 time, a date, or a duration before now. Raises UsageError."""
    if not text or text.replace(".", "", 1).isdecimal():
        return text
    wrong = UsageError(f'invalid value for "{name}": failed to parse value as time or duration: "{text}"')
    if text[0].isdecimal() and "-" in text[:5]:
        import datetime

        # the fraction apart: datetime knows microseconds only, and a float not even those
        head, dot, rest = text.partition(".")
        digits = rest[: len(rest) - len(rest.lstrip("0123456789"))]
        try:
            when = datetime.datetime.fromisoformat(head + rest[len(digits) :])
        except ValueError:
            raise wrong from None
        if dot and not digits:
            raise wrong
        return f"{int(when.timestamp())}.{digits[:9]:0<9}"
    import time

    try:
        return f"{time.time() - duration(text) / 1e9:.9f}"
    except UsageError:
        raise wrong from None


def nano_cpus(text: str) -> int:
    """Billionths of a CPU of "1.5". Raises UsageError."""
    whole, _, fraction = text.partition(".")
    if not (whole + fraction).isdecimal():
        raise bad_value(text, "--cpus", "not a decimal number")
    if len(fraction.rstrip("0")) > 9:
        raise bad_value(text, "--cpus", "value is too precise")
    return int(whole or "0") * 10**9 + int((fraction + "0" * 9)[:9])


def variables(words: list[str], files: list[str]) -> list[str]:
    """NAME=VALUE of -e and --env-file, files first; a bare NAME takes our own value, when there is one."""
    found: list[str] = []
    for path in files:
        for line in lines_of(path):
            name, equals, _ = line.partition("=")
            if any(c.isspace() for c in name):
                raise UsageError(f"invalid env file ({path}): variable '{name}' contains whitespaces")
            if not name:
                raise UsageError(f"invalid env file ({path}): no variable name on line '{line}'")
            if equals:
                found.append(line)
            elif name in os.environ:
                found.append(f"{name}={os.environ[name]}")
    for word in words:
        name, equals, _ = word.partition("=")
        if not name:
            raise bad_value(word, "-e, --env", f"invalid environment variable: {word}")
        found.append(word if equals or name not in os.environ else f"{name}={os.environ[name]}")
    return found


def lines_of(path: str) -> list[str]:
    """The lines of a file of variables or labels: no comments, no blank ones, leading space dropped."""
    try:
        with open(path, encoding="utf-8-sig") as file:
            lines = [line.rstrip("\r\n").lstrip() for line in file]
    except OSError as error:
        raise UsageError(f"open {path}: {(error.strerror or '').lower()}") from None
    except UnicodeDecodeError:
        raise UsageError(f"invalid env file ({path}): not UTF-8") from None
    return [line for line in lines if line and not line.startswith("#")]


def pairs(words: list[str]) -> dict[str, str]:
    """{name: value} of NAME=VALUE words; a bare NAME has the value ""."""
    return {name: value for name, _, value in (word.partition("=") for word in words)}


def ports(words: list[str]) -> tuple[dict[str, Any], dict[str, list[dict[str, str]]]]:
    """(ExposedPorts, PortBindings) of -p words: [[address:][host]:]container[/protocol], with ranges."""
    exposed: dict[str, Any] = {}
    bindings: dict[str, list[dict[str, str]]] = {}
    for word in words:
        spec, protocol = _protocol(word)
        rest, _, container = spec.rpartition(":")
        address, _, host = rest.rpartition(":")
        if address.startswith("[") and address.endswith("]"):
            address = address[1:-1]
        if not container:
            raise UsageError(f"no port specified: {word}<empty>")
        first, last = port_range(container, "containerPort")
        if address and not _is_address(address):
            raise UsageError(f"invalid IP address: {address}")
        start, end = port_range(host, "hostPort") if host else (0, 0)
        if host and last - first != end - start and first != last:
            raise UsageError(f"invalid ranges specified for container and host Ports: {container} and {host}")
        for offset in range(last - first + 1):
            key = f"{first + offset}/{protocol}"
            if not host:
                chosen = ""
            elif first == last and start != end:
                chosen = f"{start}-{end}"  # any one of them
            else:
                chosen = str(start + offset)
            exposed[key] = {}
            bindings.setdefault(key, []).append({"HostIp": address, "HostPort": chosen})
    return exposed, bindings


def exposed_ports(words: list[str]) -> dict[str, Any]:
    """ExposedPorts of --expose words."""
    found: dict[str, Any] = {}
    for word in words:
        spec, protocol = _protocol(word)
        first, last = port_range(spec, "port")
        found.update({f"{port}/{protocol}": {} for port in range(first, last + 1)})
    return found


def _protocol(word: str) -> tuple[str, str]:
    spec, slash, protocol = word.partition("/")
    protocol = protocol.lower() if slash else "tcp"
    if protocol not in ("tcp", "udp", "sctp"):
        raise UsageError(f"invalid proto: {protocol}")
    return spec, protocol


def port_range(text: str, what: str) -> tuple[int, int]:
    """(first, last) of "80" or "80-90". Raises UsageError."""
    low, dash, high = text.partition("-")
    if not low.isdecimal() or (dash and not high.isdecimal()):
        raise UsageError(f"invalid {what}: {text}")
    first, last = int(low), int(high or low)
    if first > 65535 or last > 65535 or last < first:
        raise UsageError(f"invalid {what}: {text}")
    return first, last


def _is_address(text: str) -> bool:
    import _socket

    for family in (_socket.AF_INET, _socket.AF_INET6):
        try:
            _socket.inet_pton(family, text.partition("%")[0])
        except OSError:
            continue
        return True
    return False


def extra_host(word: str) -> str:
    """--add-host "name:address" or "name=address", the address perhaps "host-gateway"."""
    separator = "=" if "=" in word and (":" not in word or word.index("=") < word.index(":")) else ":"
    name, found, address = word.partition(separator)
    address = address.removeprefix("[").removesuffix("]") if address.startswith("[") else address
    if not found or not name:
        raise bad_value(word, "--add-host", f'bad format for add-host: "{word}"')
    if address != "host-gateway" and not _is_address(address):
        raise bad_value(word, "--add-host", f'invalid IP address in add-host: "{address}"')
    return f"{name}:{address}"


def device(word: str) -> dict[str, str]:
    """--device HOST[:CONTAINER][:rwm]."""
    parts = word.split(":")
    permissions = "rwm"
    if len(parts) == 3 or (len(parts) == 2 and parts[1] and set(parts[1]) <= set("rwm")):
        permissions = parts.pop()
    if not parts[0] or len(parts) > 2 or not permissions or not set(permissions) <= set("rwm"):
        raise UsageError(f"invalid device specification: {word}")
    return {
        "PathOnHost": parts[0],
        "PathInContainer": parts[-1] or parts[0],
        "CgroupPermissions": permissions,
    }


def is_cdi(word: str) -> bool:
    """Is it a CDI device's name, VENDOR/CLASS=NAME?"""
    kind, equals, name = word.partition("=")
    return bool(equals and name) and not word.startswith("/") and kind.count("/") == 1


def device_requests(devices: list[str], gpus: str) -> list[dict[str, Any]]:
    """DeviceRequests of --device VENDOR/CLASS=NAME and --gpus."""
    found: list[dict[str, Any]] = []
    if gpus:
        request: dict[str, Any] = {"Driver": "", "Count": 0, "Capabilities": [["gpu"]], "Options": {}}
        fields = gpus.replace('"', "").split(",") if "=" in gpus else [f"count={gpus}"]
        for field in fields:
            key, equals, value = field.partition("=")
            if not equals and request.get("DeviceIDs"):  # device=0,1
                request["DeviceIDs"].append(key)
            elif key == "count" and (value == "all" or value.isdecimal()):
                request["Count"] = -1 if value == "all" else int(value)
            elif key == "device":
                request["DeviceIDs"] = [value]
            elif key == "driver":
                request["Driver"] = value
            elif key == "capabilities":
                request["Capabilities"] = [sorted({"gpu", value})]
            elif key == "count":
                raise bad_value(
                    gpus, "--gpus", f'invalid count ({value}): value must be either "all" or an integer'
                )
            else:
                raise bad_value(gpus, "--gpus", f"unexpected key '{key}' in '{field}'")
        found.append(request)
    names = [word for word in devices if is_cdi(word)]
    return [*found, {"Driver": "cdi", "DeviceIDs": names}] if names else found


def of_device(word: str, flag: str, name: str, is_size: bool) -> dict[str, Any]:
    """DEVICE:NUMBER, a weight or a rate of a block device; name: the number's key."""
    path, colon, text = word.rpartition(":")
    why = f"bad format: {word}"
    if colon and not path.startswith("/dev/"):
        why = f"bad format for device path: {word}"
    elif colon:
        why = f"invalid {name.lower()} for device: {word}"
        if name == "Rate":
            unit = "[<unit>]" if is_size else ""
            why += f". The correct format is <device-path>:<number>{unit}. Number must be a positive integer"
            why += ". Unit is optional and can be kb, mb, or gb" if is_size else ""
        try:
            number = size(text) if is_size else int(text)
        except (UsageError, ValueError):
            number = -1
        if number >= 0 and (name == "Rate" or number == 0 or 10 <= number <= 1000):
            return {"Path": path, name: number}
    raise bad_value(word, f"--{flag}", why)


def ulimit(word: str) -> dict[str, Any]:
    """--ulimit NAME=SOFT[:HARD]."""
    name, equals, value = word.partition("=")
    soft, colon, hard = value.partition(":")
    try:
        low = int(soft)
        high = int(hard) if colon else low
    except ValueError:
        raise bad_value(word, "--ulimit", f"invalid ulimit argument: {word}") from None
    if not equals or (high != -1 and (low > high or low == -1)):
        raise bad_value(word, "--ulimit", "soft limit above the hard limit or no name")
    return {"Name": name, "Hard": high, "Soft": low}


def capabilities(add: list[str], drop: list[str]) -> tuple[list[str], list[str]]:
    """(CapAdd, CapDrop) as they are sent: with CAP_, sorted, ALL alone."""

    def normal(words: list[str]) -> set[str]:
        upper = {word.strip().upper() for word in words}
        return {w if w == "ALL" or w.startswith("CAP_") else "CAP_" + w for w in upper if w}

    added, dropped = normal(add), normal(drop)
    if "ALL" in added:
        added = {"ALL"}
    if "ALL" in dropped:
        dropped = {"ALL"}
    return sorted(added), sorted(dropped)


def restart(text: str) -> dict[str, Any]:
    """--restart NAME[:COUNT]."""
    name, colon, count = text.partition(":")
    if colon and not count.isdecimal():
        raise UsageError("invalid restart policy format: maximum retry count must be an integer")
    return {"Name": name or "no", "MaximumRetryCount": int(count or "0")} if text else {"Name": "no"}


def volume(word: str) -> str | None:
    """A -v word as a bind ("source:target:options"), or None for an anonymous volume's target."""
    if ":" not in word:
        return None
    source, _, rest = word.partition(":")
    if source.startswith("."):
        source = os.path.abspath(source)
    return f"{source}:{rest}"


_RECURSIVE = {
    "enabled": "",
    "disabled": "NonRecursive",
    "writable": "ReadOnlyNonRecursive",
    "readonly": "ReadOnlyForceRecursive",
}
_MOUNT_KEYS = {
    "source": "Source",
    "src": "Source",
    "target": "Target",
    "dst": "Target",
    "destination": "Target",
}


def mount(word: str) -> dict[str, Any]:
    """--mount type=bind,source=/a,target=/b,readonly ... Raises UsageError naming the field."""
    found: dict[str, Any] = {"Type": "volume"}
    for field in _fields(word):
        key, equals, value = field.partition("=")
        key = key.lower()
        if not equals:
            if key not in ("readonly", "ro", "volume-nocopy", "bind-nonrecursive", "bind-create-mountpoint"):
                raise _bad_mount(word, f"invalid field '{field}' must be a key=value pair")
            value = "true"
        if key == "type":
            found["Type"] = value.lower()
        elif key in _MOUNT_KEYS:
            found[_MOUNT_KEYS[key]] = os.path.abspath(value) if value.startswith(".") else value
        elif key in ("readonly", "ro"):
            found["ReadOnly"] = _truth(word, key, value)
        elif key == "consistency":
            found["Consistency"] = value.lower()
        elif key == "bind-propagation":
            found.setdefault("BindOptions", {})["Propagation"] = value.lower()
        elif key == "bind-nonrecursive":
            found.setdefault("BindOptions", {})["NonRecursive"] = _truth(word, key, value)
        elif key == "bind-recursive":
            if value not in _RECURSIVE:
                raise _bad_mount(
                    word,
                    f'invalid value for {key}: {value} (must be "enabled", "disabled", '
                    '"writable", or "readonly")',
                )
            if _RECURSIVE[value]:
                found.setdefault("BindOptions", {})[_RECURSIVE[value]] = True
        elif key == "bind-create-mountpoint":
            found.setdefault("BindOptions", {})["CreateMountpoint"] = _truth(word, key, value)
        elif key == "image-subpath":
            found.setdefault("ImageOptions", {})["Subpath"] = value
        elif key == "volume-label":
            name, _, text = value.partition("=")
            found.setdefault("VolumeOptions", {}).setdefault("Labels", {})[name] = text
        elif key in ("volume-driver", "volume-opt"):
            driver = found.setdefault("VolumeOptions", {}).setdefault("DriverConfig", {})
            if key == "volume-driver":
                driver["Name"] = value
            else:
                name, _, text = value.partition("=")
                driver.setdefault("Options", {})[name] = text
        elif key == "volume-nocopy":
            found.setdefault("VolumeOptions", {})["NoCopy"] = _truth(word, key, value)
        elif key == "volume-subpath":
            found.setdefault("VolumeOptions", {})["Subpath"] = value
        elif key == "tmpfs-size":
            found.setdefault("TmpfsOptions", {})["SizeBytes"] = size(value)
        elif key == "tmpfs-mode":
            try:
                found.setdefault("TmpfsOptions", {})["Mode"] = int(value, 8)
            except ValueError:
                raise _bad_mount(word, f"invalid value for {key}: {value}") from None
        else:
            raise _bad_mount(word, f"unexpected key '{key}' in '{field}'")
    if "Target" not in found:
        raise _bad_mount(word, "target is required")
    for kind in ("bind", "volume", "tmpfs", "image"):
        if kind != found["Type"] and kind.capitalize() + "Options" in found:
            raise _bad_mount(word, f"cannot mix '{kind}-*' options with mount type '{found['Type']}'")
    return found


def _fields(word: str) -> list[str]:
    if '"' not in word:
        return word.split(",")
    import csv

    return next(csv.reader([word]))


def _truth(word: str, key: str, value: str) -> bool:
    if value not in ("1", "true", "True", "TRUE", "t", "T", "0", "false", "False", "FALSE", "f", "F"):
        raise _bad_mount(word, f"invalid value for {key}: {value}")
    return value[0] in "1tT"


def _bad_mount(word: str, why: str) -> FlagError:
    return bad_value(word, "--mount", why)
