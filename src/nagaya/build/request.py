"""What a client wants to be built, of whatever API."""

from __future__ import annotations

import msgspec

from nagaya.engine.model import RegistryAuth, Resources, Ulimit


class BuildRequest(msgspec.Struct, frozen=True):
    """names: canonical or familiar references. arguments: None for one that was named without a value.
    text: the Dockerfile itself, when it does not come with the context. secrets: by id. auths: by registry.
    network: of RUN, "" for the default one."""

    dockerfile: str = "Dockerfile"
    text: bytes | None = None
    names: tuple[str, ...] = ()
    target: str = ""
    arguments: dict[str, str | None] = {}
    labels: dict[str, str] = {}
    platform: str = ""
    use_cache: bool = True
    cache_from: tuple[str, ...] = ()
    pull: bool = False
    network: str = ""
    resources: Resources = Resources()
    shm_size: int = 0
    cgroup_parent: str = ""
    security_opt: tuple[str, ...] = ()
    extra_hosts: tuple[str, ...] = ()
    ulimits: tuple[Ulimit, ...] = ()
    auths: dict[str, RegistryAuth] = {}
    secrets: dict[str, bytes] = {}
    agents: dict[str, str] = {}  # ssh agents: id -> socket
    insecure: bool = False  # may RUN --security=insecure be obeyed?
