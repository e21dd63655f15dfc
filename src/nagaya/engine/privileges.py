"""Capabilities, security options, sysctls and rlimits a container gets (pure).

A capability that this daemon does not hold cannot be given: naming it is an error, ALL and
--privileged mean all that we hold, with a warning. Sources: capabilities(7), moby's oci/caps.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import msgspec

from nagaya.engine.model import Ulimit
from nagaya.errors import InvalidArgument
from nagaya.linux.caps import NAMES

_KNOWN = frozenset(NAMES)


def _normal(names: Sequence[str], field: str) -> list[str]:
    found = []
    for name in names:
        upper = name.strip().upper()
        if upper in ("ALL", "CAP_ALL"):
            found.append("ALL")
            continue
        full = upper if upper.startswith("CAP_") else f"CAP_{upper}"
        if full not in _KNOWN:
            raise InvalidArgument(f'invalid {field}: unknown capability: "{full}"', subject=field)
        found.append(full)
    return found


def capabilities(
    add: Sequence[str],
    drop: Sequence[str],
    *,
    privileged: bool,
    default: Sequence[str],
    held: frozenset[str],
) -> tuple[list[str], list[str]]:
    """(capabilities in kernel order, warnings). Raises InvalidArgument for unknown names and for
    ones the user names but we do not hold."""
    adds, drops = _normal(add, "CapAdd"), _normal(drop, "CapDrop")
    everything = privileged or "ALL" in adds
    if privileged:
        wanted = set(NAMES)
    elif "ALL" in adds:
        wanted = set(NAMES) - set(drops)
    elif "ALL" in drops:
        wanted = set(adds)
    else:
        wanted = (set(default) - set(drops)) | set(adds)
    lacking = [c for c in adds if c != "ALL" and c not in held and c in wanted and not privileged]
    if lacking:
        raise InvalidArgument(
            f"invalid CapAdd: nagayad itself lacks {', '.join(lacking)}, so no container can have it",
            subject="CapAdd",
        )
    warnings = []
    if everything and (missing := [c for c in NAMES if c in wanted and c not in held]):
        asked = "--privileged" if privileged else "--cap-add ALL"
        warnings.append(f"{asked} grants all capabilities that nagayad holds, without {', '.join(missing)}")
    return [c for c in NAMES if c in wanted and c in held], warnings


class Security(NamedTuple):
    """`--security-opt`, parsed. seccomp: "default", "unconfined", or a profile's JSON text. apparmor: a
    profile's name, for hosts that have AppArmor; None when nothing is said of it."""

    seccomp: str = "default"
    no_new_privileges: bool = False
    apparmor: str | None = None
    writable_cgroups: bool = False


def security_options(options: Sequence[str], *, privileged: bool) -> Security:
    """Parse the options. Raises InvalidArgument for what is not known here."""
    seccomp, no_new = ("unconfined" if privileged else "default"), False
    apparmor: str | None = None
    writable = False
    for option in options:
        name, mark, value = option.partition("=")
        if not mark and ":" in option:
            name, _, value = option.partition(":")
        if name == "no-new-privileges":
            if value not in ("", "true", "false"):
                raise InvalidArgument(f'invalid --security-opt: "{option}"', subject="SecurityOpt")
            no_new = value != "false"
        elif name == "seccomp":
            seccomp = "default" if value in ("builtin", "default") else value
        elif name == "apparmor":
            apparmor = value
        elif name == "writable-cgroups":
            if value not in ("true", "false"):
                raise InvalidArgument(f'invalid --security-opt: "{option}"', subject="SecurityOpt")
            writable = value == "true"
        elif name == "label":
            continue  # SELinux's: dockerd passes over it, too, where SELinux is off
        else:
            raise InvalidArgument(f'invalid --security-opt: "{option}"', subject="SecurityOpt")
    return Security(seccomp, no_new, apparmor, writable)


def seccomp_document(text: str) -> dict[str, Any]:
    """The profile a user sent. Raises InvalidArgument."""
    try:
        return msgspec.json.decode(text, type=dict[str, Any])
    except (msgspec.MsgspecError, RecursionError) as error:
        raise InvalidArgument(f"decoding seccomp profile failed: {error}", subject="SecurityOpt") from None


_SYSCTL = re.compile(r"[a-z0-9_]+([./][a-zA-Z0-9_-]+)+")
_IPC_SYSCTLS = frozenset(
    f"kernel.{n}" for n in "msgmax msgmnb msgmni sem shmall shmmax shmmni shm_rmid_forced".split()
)


def sysctls(wanted: Mapping[str, str], *, host_network: bool, host_ipc: bool) -> dict[str, str]:
    """The namespaced sysctls a container may set. Raises InvalidArgument."""
    found: dict[str, str] = {}
    for name, value in wanted.items():
        if _SYSCTL.fullmatch(name) is None or "\n" in value or "\0" in value:
            raise InvalidArgument(f"invalid sysctl '{name}'", subject="Sysctls")
        dotted = name.replace("/", ".") if "." not in name else name
        of_ipc = dotted in _IPC_SYSCTLS or dotted.startswith("fs.mqueue.")
        of_network = dotted.startswith("net.")
        if not of_ipc and not of_network:
            raise InvalidArgument(f"sysctl '{name}' is not allowed: it is not namespaced", subject="Sysctls")
        if of_network and host_network:
            raise InvalidArgument(
                f"sysctl '{name}' is not allowed in the host's network namespace", subject="Sysctls"
            )
        if of_ipc and host_ipc:
            raise InvalidArgument(
                f"sysctl '{name}' is not allowed in the host's IPC namespace", subject="Sysctls"
            )
        found[dotted] = value
    return found


_RLIMITS = frozenset(
    (
        "AS CORE CPU DATA FSIZE LOCKS MEMLOCK MSGQUEUE NICE NOFILE NPROC RSS RTPRIO RTTIME SIGPENDING STACK"
    ).split()
)
_UNLIMITED = 2**64 - 1


def rlimits(ulimits: Sequence[Ulimit]) -> list[dict[str, Any]]:
    """`process.rlimits`. Raises InvalidArgument for unknown names and soft > hard."""
    found = []
    for limit in ulimits:
        name = limit.name.upper().removeprefix("RLIMIT_")
        if name not in _RLIMITS:
            raise InvalidArgument(f"invalid ulimit type: {limit.name}", subject="Ulimits")
        soft = _UNLIMITED if limit.soft < 0 else limit.soft
        hard = _UNLIMITED if limit.hard < 0 else limit.hard
        if soft > hard:
            raise InvalidArgument(
                f"ulimit soft limit must be less than or equal to hard limit: {limit.soft} > {limit.hard}",
                subject="Ulimits",
            )
        found.append({"type": f"RLIMIT_{name}", "soft": soft, "hard": hard})
    return found
