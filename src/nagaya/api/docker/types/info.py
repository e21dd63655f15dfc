"""GET /info: the engine's facts in the fields of dockerd 28."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import nagaya
from nagaya.api.docker.types.times import rfc3339_nano
from nagaya.engine.model import Container


def info_document(
    facts: Mapping[str, Any], containers: Iterable[Container], images: int, host: Mapping[str, Any]
) -> dict[str, Any]:
    """`facts` are `EngineService.info()`, `host` the machine's."""
    states = [container.state for container in containers]
    runtimes = facts.get("runtimes") or {"nagaya": {"path": "nagaya-oci"}}
    return {
        "ID": facts.get("id", ""),
        "Containers": len(states),
        "ContainersRunning": states.count("running") + states.count("restarting"),
        "ContainersPaused": states.count("paused"),
        "ContainersStopped": sum(state in ("created", "exited", "dead", "removing") for state in states),
        "Images": images,
        "Driver": facts.get("driver", "overlay2"),
        "DriverStatus": [list(pair) for pair in facts.get("driver_status") or ()],
        "Plugins": {
            "Volume": ["local"],
            "Network": ["bridge", "host", "macvlan", "null"],
            "Authorization": None,
            "Log": list(facts.get("log_drivers") or ("json-file", "none")),
        },
        "MemoryLimit": True,
        "SwapLimit": bool(facts.get("swap_limit", True)),
        "CpuCfsPeriod": True,
        "CpuCfsQuota": True,
        "CPUShares": True,
        "CPUSet": True,
        "PidsLimit": True,
        "IPv4Forwarding": True,
        "BridgeNfIptables": host["BridgeNfIptables"],
        "BridgeNfIp6tables": host["BridgeNfIp6tables"],
        "Debug": False,
        "NFd": host["NFd"],
        "OomKillDisable": str(facts.get("cgroup_version", "1")) == "1",
        "NGoroutines": host["Tasks"],
        "SystemTime": rfc3339_nano(host["SystemTimeNs"]),
        "LoggingDriver": "json-file",
        "CgroupDriver": facts.get("cgroup_driver", "cgroupfs"),
        "CgroupVersion": str(facts.get("cgroup_version", "1")),
        "NEventsListener": facts.get("event_listeners", 0),
        "KernelVersion": host["KernelVersion"],
        "OperatingSystem": host["OperatingSystem"],
        "OSVersion": host["OSVersion"],
        "OSType": "linux",
        "Architecture": host["Architecture"],
        "IndexServerAddress": "https://index.docker.io/v1/",
        "RegistryConfig": {
            "InsecureRegistryCIDRs": ["127.0.0.0/8", "::1/128"],
            "IndexConfigs": {
                "docker.io": {"Name": "docker.io", "Mirrors": [], "Secure": True, "Official": True}
            },
            "Mirrors": [],
        },
        "NCPU": host["NCPU"],
        "MemTotal": host["MemTotal"],
        "GenericResources": None,
        "DockerRootDir": facts.get("root", ""),
        "HttpProxy": "",
        "HttpsProxy": "",
        "NoProxy": "",
        "Name": host["Name"],
        "Labels": [],
        "ExperimentalBuild": False,
        "ServerVersion": nagaya.__version__,
        "Runtimes": _runtimes(runtimes),
        "DefaultRuntime": facts.get("default_runtime", "nagaya"),
        "Swarm": {
            "NodeID": "",
            "NodeAddr": "",
            "LocalNodeState": "inactive",
            "ControlAvailable": False,
            "Error": "",
            "RemoteManagers": None,
        },
        "LiveRestoreEnabled": True,
        "Isolation": "",
        "InitBinary": facts.get("init_binary", "catatonit"),
        "ContainerdCommit": {"ID": ""},
        "RuncCommit": {"ID": nagaya.__version__},
        "InitCommit": {"ID": ""},
        "SecurityOptions": list(facts.get("security_options") or ("name=seccomp,profile=builtin",)),
        "FirewallBackend": {"Driver": "nftables"},
        "DiscoveredDevices": [{"Source": "cdi", "ID": name} for name in facts.get("cdi_devices") or ()],
        "CDISpecDirs": list(facts.get("cdi_spec_dirs") or ()),
        "Warnings": list(facts.get("warnings") or ()) or None,
        **_pools(facts.get("address_pools") or ()),
    }


def _pools(pools: Iterable[tuple[str, int]]) -> dict[str, Any]:
    """Those of the configuration; dockerd, too, is silent about its own."""
    shown = [{"Base": base, "Size": size} for base, size in pools]
    return {"DefaultAddressPools": shown} if shown else {}


def _runtimes(runtimes: Any) -> dict[str, Any]:
    if isinstance(runtimes, Mapping):
        return {
            str(name): value if isinstance(value, Mapping) else {"path": str(value)}
            for name, value in runtimes.items()
        }
    return {str(name): {"path": str(name)} for name in runtimes}
