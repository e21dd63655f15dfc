"""`features`: what this runtime supports (runtime-spec, features.md)."""

from __future__ import annotations

from nagaya.linux import os
from nagaya.linux.json import dumps_indented
from nagaya.runtime.verbs import features as runtime_features

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from nagaya.runtime.command import Settings

USAGE, ARITY, OPTIONS = runtime_features.USAGE, runtime_features.ARITY, runtime_features.OPTIONS


def main(_settings: Settings, _options: dict[str, Any], _positional: list[str]) -> int:
    """Print the document: nagaya-oci's, without what a guest does not know of the host."""
    document = runtime_features.document()
    document["hooks"] = ["prestart", "createRuntime", "poststart", "poststop"]
    linux = document["linux"]
    linux["namespaces"] = ["cgroup", "ipc", "mount", "network", "pid", "uts"]
    linux["apparmor"] = linux["netDevices"] = {"enabled": False}
    linux["mountExtensions"] = {"idmap": {"enabled": False}}
    os.write(1, (dumps_indented(document) + "\n").encode())
    return 0
