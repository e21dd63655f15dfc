"""The Container Network Interface, versions 0.3 to 1.1, without the execution of plugins: configurations
read and checked, a plugin's input made, its answer understood (pure but for the reading of a directory).

Source: containernetworking/cni, SPEC.md.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from ipaddress import ip_interface
from typing import Any

import msgspec

from nagaya.errors import InvalidArgument, KernelError, NagayaError, Unavailable

VERSIONS = ("0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0")
INTERFACE = "eth0"

_NAME = re.compile(r"[a-zA-Z0-9][a-zA-Z0-9_.\-]*")
_MOST = 1 << 20
_ENDINGS = (".conflist", ".conf", ".json")


class Network(msgspec.Struct, frozen=True):
    """A network configuration list. plugins: their configurations, as they were written."""

    name: str
    version: str
    plugins: tuple[dict[str, Any], ...]
    disable_check: bool = False
    disable_gc: bool = False
    source: str = ""

    @property
    def types(self) -> list[str]:
        """The plugins' executables."""
        return [str(plugin["type"]) for plugin in self.plugins]

    def at_least(self, version: str) -> bool:
        """Does it speak this version's commands?"""
        return VERSIONS.index(self.version) >= VERSIONS.index(version)


class Attachment(msgspec.Struct, frozen=True):
    """What plugins are told of a container. capabilities: name -> argument, of those that there are."""

    container_id: str
    netns: str
    arguments: tuple[tuple[str, str], ...] = ()
    capabilities: dict[str, Any] = {}


def parse(text: bytes, source: str) -> Network:
    """A configuration list, or a single plugin's configuration. Raises InvalidArgument."""

    def bad(why: str) -> InvalidArgument:
        return InvalidArgument(f"{source}: {why}", subject=source)

    try:
        document = msgspec.json.decode(text, type=dict[str, Any])
    except (msgspec.MsgspecError, RecursionError) as error:
        raise bad(f"not a CNI configuration: {error}") from None
    plugins = document.get("plugins")
    if plugins is None and "type" in document:
        plugins = [document]
    name = document.get("name")
    if not isinstance(name, str) or _NAME.fullmatch(name) is None:
        raise bad(f"{name!r} is no network's name")
    if not isinstance(plugins, list) or not plugins:
        raise bad("no plugins")
    versions = document.get("cniVersions")
    offered = versions if isinstance(versions, list) else [document.get("cniVersion", "0.3.1")]
    known = [version for version in VERSIONS if version in offered]
    if not known:
        raise bad(f"none of the versions {offered} is known: {', '.join(VERSIONS)}")
    for plugin in plugins:
        kind = plugin.get("type") if isinstance(plugin, dict) else None
        if not isinstance(kind, str) or _NAME.fullmatch(kind) is None:
            raise bad(f"{kind!r} is no plugin's type")
    return Network(
        name,
        known[-1],
        tuple(plugins),
        document.get("disableCheck") in (True, "true"),
        document.get("disableGC") in (True, "true"),
        source,
    )


def load(directory: str) -> Network | None:
    """The first configuration of a directory, by the names of the files; None when there is none.
    Raises InvalidArgument when the first is broken: pods must not land on another network silently."""
    try:
        names = sorted(name for name in os.listdir(directory) if name.endswith(_ENDINGS))
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise KernelError(os.strerror(error.errno or 0).lower(), subject=directory) from None
    for name in names:
        path = f"{directory}/{name}"
        try:
            with open(path, "rb") as file:
                text = file.read(_MOST + 1)
        except FileNotFoundError:
            continue  # it was just taken away
        except OSError as error:
            raise InvalidArgument(f"{path}: {os.strerror(error.errno or 0).lower()}", subject=path) from None
        if len(text) > _MOST:
            raise InvalidArgument(f"{path} is larger than {_MOST} bytes", subject=path)
        return parse(text, path)
    return None


def find(kind: str, directories: str) -> str:
    """The executable of a plugin in the directories, separated by colons. Raises Unavailable."""
    for directory in directories.split(":"):
        path = f"{directory}/{kind}"
        if os.path.isfile(path) and os.access(path, os.X_OK):
            return path
    raise Unavailable(f"the CNI plugin {kind} is not in {directories}", subject=kind)


def environment(command: str, attachment: Attachment | None, directories: str) -> dict[str, str]:
    """A plugin's environment, which is all that it gets."""
    found = {"CNI_COMMAND": command, "CNI_PATH": directories, "PATH": os.environ.get("PATH", os.defpath)}
    if attachment is not None:
        found |= {
            "CNI_CONTAINERID": attachment.container_id,
            "CNI_NETNS": attachment.netns,
            "CNI_IFNAME": INTERFACE,
            "CNI_ARGS": ";".join(f"{key}={value}" for key, value in attachment.arguments),
        }
    return found


def plugin_input(
    network: Network,
    plugin: Mapping[str, Any],
    attachment: Attachment | None,
    previous: Mapping[str, Any] | None,
    more: Mapping[str, Any] | None = None,
) -> bytes:
    """What a plugin reads: its configuration with the network's name and version, the arguments of the
    capabilities that it declares, and the result of the plugin before it."""
    document = {key: value for key, value in plugin.items() if key != "plugins"}
    document |= {"name": network.name, "cniVersion": network.version}
    declared = plugin.get("capabilities")
    if attachment is not None and isinstance(declared, Mapping):
        arguments = {
            name: value for name, value in attachment.capabilities.items() if declared.get(name) is True
        }
        if arguments:
            document["runtimeConfig"] = arguments
    document.pop("capabilities", None)
    if previous is not None:
        document["prevResult"] = previous
    return msgspec.json.encode({**document, **(more or {})})


def result(text: bytes, kind: str) -> dict[str, Any]:
    """A plugin's answer to ADD. Raises Unavailable for what is none."""
    try:
        found = msgspec.json.decode(text, type=dict[str, Any])
    except (msgspec.MsgspecError, RecursionError):
        raise Unavailable(f"the CNI plugin {kind} answered what is no result", subject=kind) from None
    return found


def failure(text: bytes, errors: bytes, kind: str, command: str) -> NagayaError:
    """The error that a plugin ended with: in its own words, which are JSON, or what it wrote else."""
    said = ""
    try:
        document = msgspec.json.decode(text, type=dict[str, Any])
        said = ": ".join(str(document[key]) for key in ("msg", "details") if document.get(key))
    except (msgspec.MsgspecError, RecursionError):
        pass
    said = said or " ".join((errors or text).decode("utf-8", "replace").split())[:1000] or "no reason given"
    return Unavailable(f"CNI plugin {kind}, {command}: {said}", subject=kind, step=f"CNI {command}")


def addresses(document: Mapping[str, Any]) -> tuple[str, ...]:
    """The addresses of a result that are the container's, in their order. Raises Unavailable."""
    interfaces = document.get("interfaces") or []
    found = []
    for entry in document.get("ips") or []:
        index = entry.get("interface")
        if isinstance(index, int) and 0 <= index < len(interfaces) and not interfaces[index].get("sandbox"):
            continue  # the host's end
        try:
            found.append(str(ip_interface(str(entry.get("address", ""))).ip))
        except ValueError:
            raise Unavailable(f"a CNI plugin answered {entry.get('address')!r} as an address") from None
    if not found:
        raise Unavailable("the CNI plugins gave the pod no address")
    return tuple(found)


_QUANTITY = re.compile(r"([0-9]+)(k|M|G|T|Ki|Mi|Gi|Ti)?")
_FACTORS = {"": 1, "k": 10**3, "M": 10**6, "G": 10**9, "T": 10**12} | {
    f"{unit}i": 1 << 10 * power for power, unit in enumerate(("K", "M", "G", "T"), 1)
}


def bandwidth(annotations: Mapping[str, str]) -> dict[str, int] | None:
    """The argument of the capability "bandwidth" that a pod's annotations ask for, in bits a second.
    Raises InvalidArgument."""
    found: dict[str, int] = {}
    for way in ("ingress", "egress"):
        key = f"kubernetes.io/{way}-bandwidth"
        text = annotations.get(key)
        if text is None:
            continue
        match = _QUANTITY.fullmatch(text)
        rate = int(match[1]) * _FACTORS[match[2] or ""] if match else 0
        if not 1000 <= rate <= 10**15:
            raise InvalidArgument(f"{key}: {text!r} is no bandwidth from 1k to 1P", subject=key)
        found |= {f"{way}Rate": rate, f"{way}Burst": 2**31 - 1}
    return found or None


def port_mappings(ports: Sequence[tuple[int, int, str, str]]) -> list[dict[str, Any]]:
    """The argument of the capability "portMappings" of (host port, container port, protocol, address)."""
    return [
        {"hostPort": host, "containerPort": inner, "protocol": protocol, "hostIP": address}
        for host, inner, protocol, address in ports
    ]
