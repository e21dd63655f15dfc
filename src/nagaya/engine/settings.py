"""What the engine is told about its house: directories, names, defaults. Made by `daemon.config`."""

from __future__ import annotations

import msgspec


class Range(msgspec.Struct, frozen=True):
    """So many ids of a user namespace, and those of the host that they are."""

    inside: int
    outside: int
    count: int


class Remap(msgspec.Struct, frozen=True):
    """Whom the ids of containers are on the host (engine/remap.py)."""

    uids: tuple[Range, ...]
    gids: tuple[Range, ...]

    @property
    def root(self) -> tuple[int, int]:
        """(uid, gid) of the containers' root on the host."""
        return self.uids[0].outside, self.gids[0].outside


class Settings(msgspec.Struct, frozen=True):
    """Fixed for the life of the process."""

    root: str
    run: str
    bridge: str = "nagaya0"
    ipv6: bool = False  # of the default bridge
    address_pools: tuple[tuple[str, int], ...] = ()  # those that were configured
    cgroup_parent: str = "nagaya"
    cgroup_driver: str = "cgroupfs"
    default_runtime: str = "nagaya"
    runtimes: dict[str, str] = {}  # name -> executable of an OCI runtime
    init_path: str = ""  # catatonit; "": none was found
    stop_timeout: int = 10
    log_max_size: int = 20 << 20
    log_max_file: int = 5
    dns: tuple[str, ...] = ()
    dns_search: tuple[str, ...] = ()
    dns_options: tuple[str, ...] = ()
    default_ulimits: dict[str, tuple[int, int]] = {}
    cdi_spec_dirs: tuple[str, ...] = ("/etc/cdi", "/var/run/cdi")
    cni_conf_dir: str = "/etc/cni/net.d"
    cni_bin_dir: str = "/opt/cni/bin"
    remap: Remap | None = None

    def container_dir(self, container_id: str) -> str:
        """ROOT/containers/ID: the files the engine writes for it, and its log."""
        return f"{self.root}/containers/{container_id}"

    def bundle(self, container_id: str) -> str:
        """RUN/bundles/ID: config.json while it runs."""
        return f"{self.run}/bundles/{container_id}"

    def netns(self, container_id: str) -> str:
        """RUN/ns/ID/net: its pinned network namespace."""
        return f"{self.run}/ns/{container_id}/net"

    def shm(self, container_id: str) -> str:
        """RUN/shm/ID: the /dev/shm that others may share."""
        return f"{self.run}/shm/{container_id}"

    def runtime_root(self) -> str:
        """RUN/runtime: the built-in runtime's state."""
        return f"{self.run}/runtime"
