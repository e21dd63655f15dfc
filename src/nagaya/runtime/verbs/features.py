"""`features`: what this runtime supports (runtime-spec, features.md)."""

from __future__ import annotations

from nagaya import __version__
from nagaya.linux import caps, os, seccomp
from nagaya.linux.json import dumps_indented
from nagaya.oci import scheduling
from nagaya.oci.runtime import VERSION
from nagaya.runtime import options as words
from nagaya.runtime.plan import NAMESPACES

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from nagaya.runtime.arguments import Option
    from nagaya.runtime.command import Settings

USAGE = ""
ARITY = (0, 0)
OPTIONS: list[Option] = []


def main(_settings: Settings, _options: dict[str, Any], _positional: list[str]) -> int:
    """Print the document."""
    os.write(1, (dumps_indented(document()) + "\n").encode())
    return 0


def document() -> dict[str, Any]:
    """The features as plain data."""
    return {
        "ociVersionMin": "1.0.0",
        "ociVersionMax": VERSION,
        "hooks": [
            "prestart",
            "createRuntime",
            "createContainer",
            "startContainer",
            "poststart",
            "poststop",
        ],
        "mountOptions": sorted([*words.FLAGS, *words.PROPAGATION, *words.RECURSIVE, *words.EXTENSIONS]),
        "linux": {
            "namespaces": sorted(NAMESPACES),
            "capabilities": list(caps.NAMES),
            "cgroup": {"v1": True, "v2": True, "systemd": True, "systemdUser": False, "rdma": True},
            "seccomp": {
                "enabled": True,
                "actions": sorted(seccomp.ACTIONS),
                "operators": [
                    "SCMP_CMP_EQ",
                    "SCMP_CMP_GE",
                    "SCMP_CMP_GT",
                    "SCMP_CMP_LE",
                    "SCMP_CMP_LT",
                    "SCMP_CMP_MASKED_EQ",
                    "SCMP_CMP_NE",
                ],
                "archs": sorted(seccomp.ARCHITECTURES),
                "knownFlags": sorted(seccomp.FLAGS),
                "supportedFlags": sorted(seccomp.FLAGS),
            },
            "apparmor": {"enabled": True},
            "selinux": {"enabled": True},
            "intelRdt": {"enabled": False, "schemata": False, "monitoring": False},
            "memoryPolicy": {
                "modes": sorted(scheduling.MEMORY_MODES),
                "flags": sorted(scheduling.MEMORY_FLAGS),
            },
            "netDevices": {"enabled": True},
            "mountExtensions": {"idmap": {"enabled": True}},
        },
        "annotations": {"nagaya.version": __version__},
    }
