"""Which devices a container may use: OCI linux.resources.devices as rules (pure).

`parse` makes the list of rules that is in force: rules count in their order and per access bit,
the last one that names the device wins; a rule of type "a" starts over. v1 writes it to
devices.allow and devices.deny (`v1_lines`), v2 compiles it to BPF (nagaya.linux.bpf).
Sources: OCI config-linux.md "Allowed Device list"; cgroup-v1/devices.rst.
"""

from __future__ import annotations

from nagaya.errors import InvalidArgument

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    # (allow, type, major, minor, access): type "a" "b" "c"; major, minor -1 for any
    Rule = tuple[bool, str, int, int, str]

_FIELD = "linux.resources.devices"
_ACCESS = "rwm"
DENY_ALL: Rule = (False, "a", -1, -1, _ACCESS)

# What every container may use whatever its list says, as runc has it: mknod of anything (not its
# use), and the devices that OCI requires in /dev.
ALWAYS: tuple[Rule, ...] = (
    (True, "c", -1, -1, "m"),
    (True, "b", -1, -1, "m"),
    (True, "c", 1, 3, _ACCESS),  # /dev/null
    (True, "c", 1, 8, _ACCESS),  # /dev/random
    (True, "c", 1, 7, _ACCESS),  # /dev/full
    (True, "c", 5, 0, _ACCESS),  # /dev/tty
    (True, "c", 1, 5, _ACCESS),  # /dev/zero
    (True, "c", 1, 9, _ACCESS),  # /dev/urandom
    (True, "c", 10, 200, _ACCESS),  # /dev/net/tun: images of VPNs make it by mknod, and count on that
    (True, "c", 136, -1, _ACCESS),  # /dev/pts/N
    (True, "c", 5, 2, _ACCESS),  # /dev/pts/ptmx
)


def _number(value: Any, field: str) -> int:
    if value is None:
        return -1
    if isinstance(value, bool) or not isinstance(value, int) or not -1 <= value < 2**32:
        raise InvalidArgument(f"{field} must be a device number, not {value!r:.60}", subject=field)
    return value


def parse(devices: Any, *, always: tuple[Rule, ...] = ALWAYS) -> list[Rule]:
    """The rules of linux.resources.devices and `always`, from the last one that names every
    device on; the list begins with it, or with "deny all". Raises InvalidArgument."""
    if devices is None:
        devices = []
    if not isinstance(devices, list):
        raise InvalidArgument(f"{_FIELD} must be a list", subject=_FIELD)
    rules: list[Rule] = [DENY_ALL]
    for index, entry in enumerate(devices):
        field = f"{_FIELD}[{index}]"
        if not isinstance(entry, dict):
            raise InvalidArgument(f"{field} must be an object", subject=field)
        kind = entry.get("type") or "a"
        if kind not in ("a", "b", "c"):
            raise InvalidArgument(
                f"{field}.type must be a, b or c, not {kind!r:.60}", subject=f"{field}.type"
            )
        # without access letters a rule would change nothing, and is meant as "all" in practice
        access = entry.get("access") or _ACCESS
        if not isinstance(access, str) or access.strip(_ACCESS + "a"):  # some write "rwa"; runc lets it pass
            raise InvalidArgument(
                f"{field}.access must consist of r, w and m, not {access!r:.60}", subject=f"{field}.access"
            )
        allow = entry.get("allow", False)
        if not isinstance(allow, bool):
            raise InvalidArgument(f"{field}.allow must be true or false", subject=f"{field}.allow")
        if kind == "a":
            rules = [(allow, "a", -1, -1, _ACCESS)]
        else:
            numbers = (
                _number(entry.get("major"), f"{field}.major"),
                _number(entry.get("minor"), f"{field}.minor"),
            )
            rules.append((allow, kind, *numbers, "".join(c for c in _ACCESS if c in access)))
    rules.extend(always)
    return rules


def _device(rule: tuple[str, int, int]) -> str:
    kind, major, minor = rule
    return f"{kind} {'*' if major < 0 else major}:{'*' if minor < 0 else minor}"


def v1_lines(rules: list[Rule]) -> list[tuple[bool, str]]:
    """[(allow, line)] to write to devices.allow or devices.deny of a v1 cgroup, in order.

    v1 keeps one default and exceptions to it, so rules are merged here. An exception cannot be
    cut out of a wildcard: the kernel would ignore that silently; it raises InvalidArgument.
    """
    default = rules[0][0]
    exceptions: dict[tuple[str, int, int], str] = {}
    for allow, kind, major, minor, access in rules[1:]:
        key = (kind, major, minor)
        if allow != default:
            old = exceptions.get(key, "")
            exceptions[key] = "".join(c for c in _ACCESS if c in old or c in access)
            continue
        for wider in ((kind, -1, minor), (kind, major, -1), (kind, -1, -1)):
            if wider == key:
                continue
            if not set(exceptions.get(wider, "")) & set(access):
                continue
            raise InvalidArgument(
                f"cgroup v1 cannot make an exception for device {_device(key)} "
                f"from the wider rule {_device(wider)}",
                subject=_FIELD,
            )
        left = "".join(c for c in exceptions.get(key, "") if c not in access)
        if left:
            exceptions[key] = left
        else:
            exceptions.pop(key, None)
    lines = [(default, "a")]
    lines += [(not default, f"{_device(key)} {access}") for key, access in exceptions.items()]
    return lines
