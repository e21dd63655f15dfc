"""Binds ("src:dst:ro,z") and Mounts, with the rules and messages of moby's volume/mounts parser."""

from __future__ import annotations

import posixpath
import re
from collections.abc import Callable, Iterable, Mapping

from nagaya.api.docker.types.structs import (
    BindOptionsBody,
    DriverConfigBody,
    MountBody,
    VolumeOptionsBody,
)
from nagaya.engine.model import MountSpec
from nagaya.errors import InvalidArgument

PROPAGATIONS = frozenset({"private", "rprivate", "slave", "rslave", "shared", "rshared"})
_MODE_GROUPS: tuple[frozenset[str], ...] = (
    frozenset({"rw", "ro"}),
    frozenset({"z", "Z"}),
    PROPAGATIONS,
    frozenset({"nocopy"}),
    frozenset({"consistent", "cached", "delegated"}),
)
_VOLUME_NAME = re.compile(r"[a-zA-Z0-9][a-zA-Z0-9_.-]+")


def _valid_mode(mode: str) -> bool:
    seen: set[int] = set()
    for option in mode.split(","):
        group = next((i for i, names in enumerate(_MODE_GROUPS) if option in names), -1)
        if group < 0 or group in seen:
            return False
        seen.add(group)
    return bool(mode)


def _target(path: str, kind: str) -> str:
    """A clean absolute destination that is not the root."""
    if not path:
        raise InvalidArgument(f'invalid mount config for type "{kind}": field Target must not be empty')
    if "\0" in path:
        raise InvalidArgument(f"invalid mount path: {path!r} contains a NUL byte")
    if not path.startswith("/"):
        raise InvalidArgument(
            f'invalid mount config for type "{kind}": '
            f"invalid mount path: '{path}' mount path must be absolute"
        )
    clean = posixpath.normpath("/" + path.lstrip("/"))
    if clean == "/":
        raise InvalidArgument(
            f"invalid mount config for type \"{kind}\": invalid specification: destination can't be '/'"
        )
    return clean


def _bind_target(raw: str, path: str, kind: str) -> str:
    try:
        return _target(path, kind)
    except InvalidArgument as error:
        raise InvalidArgument(f"invalid volume specification: '{raw}': {error.message}") from None


def _volume_name(name: str) -> str:
    if not _VOLUME_NAME.fullmatch(name):
        raise InvalidArgument(
            f'"{name}" includes invalid characters for a local volume name, only "[a-zA-Z0-9][a-zA-Z0-9_.-]" '
            "are allowed. If you intended to pass a host directory, use absolute path"
        )
    return name


def parse_bind(raw: str) -> MountSpec:
    """One element of HostConfig.Binds: "dst", "src:dst" or "src:dst:mode"; src is an absolute host path
    (made when it is missing) or a volume's name. Raises InvalidArgument with dockerd's messages."""
    parts = raw.split(":", 3)
    mode = ""
    if len(parts) == 1:
        source, target = "", parts[0]
    elif len(parts) == 2:
        if _valid_mode(parts[1]):
            raise InvalidArgument(f"invalid volume specification: '{raw}'")
        source, target = parts
    elif len(parts) == 3:
        source, target, mode = parts
        if not _valid_mode(mode):
            raise InvalidArgument(f"invalid mode: {mode}")
    else:
        raise InvalidArgument(f"invalid volume specification: '{raw}'")
    if len(parts) > 1 and (not source or not target):
        raise InvalidArgument(f"invalid volume specification: '{raw}'")
    if "\0" in raw:
        raise InvalidArgument(f"invalid volume specification: {raw!r}")
    options = mode.split(",") if mode else []
    propagation = next((o for o in options if o in PROPAGATIONS), "")
    if source.startswith("/"):
        if "nocopy" in options:
            raise InvalidArgument(f"invalid volume specification: '{raw}'")
        return MountSpec(
            type="bind",
            target=_bind_target(raw, target, "bind"),
            source=posixpath.normpath("/" + source.lstrip("/")),
            read_only="ro" in options,
            propagation=propagation,
            create_source=True,
        )
    if propagation:
        raise InvalidArgument(f"invalid volume specification: '{raw}'")
    return MountSpec(
        type="volume",
        target=_bind_target(raw, target, "volume"),
        source=_volume_name(source) if source else "",
        read_only="ro" in options,
        no_copy="nocopy" in options,
    )


def parse_mount(body: MountBody) -> MountSpec:
    """One element of HostConfig.Mounts. Raises InvalidArgument."""
    kind = body.Type or ""

    def refuse(reason: str) -> InvalidArgument:
        return InvalidArgument(f'invalid mount config for type "{kind}": {reason}')

    if kind in ("cluster", "npipe"):
        raise InvalidArgument(f"HostConfig.Mounts of type {kind} is not supported yet")
    if kind not in ("bind", "volume", "tmpfs", "image"):
        raise refuse("mount type unknown")
    target = _target(body.Target or "", kind)
    for owner in ("bind", "volume", "tmpfs", "image"):
        field = f"{owner.capitalize()}Options"
        if getattr(body, field) is not None and kind != owner:
            raise refuse(f"field {field} must not be specified")
    if "\0" in (body.Source or ""):
        raise refuse("field Source has a NUL in it")
    if kind == "bind":
        return _bind_mount(body, target, refuse)
    if kind == "volume":
        return _volume_mount(body, target, refuse)
    if kind == "image":
        return _image_mount(body, target, refuse)
    if body.Source:
        raise refuse("field Source must not be specified")
    return MountSpec(
        type="tmpfs",
        target=target,
        read_only=bool(body.ReadOnly),
        options=_tmpfs_options(body),
        listed=True,
    )


def _bind_mount(body: MountBody, target: str, refuse: Callable[[str], InvalidArgument]) -> MountSpec:
    source = body.Source or ""
    if not source:
        raise refuse("field Source must not be empty")
    if not source.startswith("/"):
        raise refuse(f"invalid mount path: '{source}' mount path must be absolute")
    options = body.BindOptions or BindOptionsBody()
    propagation = options.Propagation or ""
    if propagation and propagation not in PROPAGATIONS:
        raise refuse(f'invalid propagation mode: "{propagation}"')
    if options.ReadOnlyForceRecursive:
        if options.ReadOnlyNonRecursive:
            raise refuse("mount options conflict: ReadOnlyNonRecursive && ReadOnlyForceRecursive")
        if options.NonRecursive:
            raise refuse("mount options conflict: NonRecursive && ReadOnlyForceRecursive")
        if not body.ReadOnly:
            raise refuse("ReadOnlyForceRecursive requires ReadOnly")
        if propagation not in ("", "rprivate"):
            raise refuse("ReadOnlyForceRecursive requires the propagation rprivate")
    return MountSpec(
        type="bind",
        target=target,
        source=posixpath.normpath("/" + source.lstrip("/")),
        read_only=bool(body.ReadOnly),
        propagation=propagation,
        create_source=bool(options.CreateMountpoint),
        listed=True,
        recursive=not options.NonRecursive,
        recursive_ro="force"
        if options.ReadOnlyForceRecursive
        else "no"
        if options.ReadOnlyNonRecursive
        else "",
    )


def _volume_mount(body: MountBody, target: str, refuse: Callable[[str], InvalidArgument]) -> MountSpec:
    source, options = body.Source or "", body.VolumeOptions or VolumeOptionsBody()
    driver = options.DriverConfig or DriverConfigBody()
    if not source and body.ReadOnly:
        raise refuse("must not set ReadOnly mode when using anonymous volumes")
    if not source and options.Subpath:
        raise refuse("must not set Subpath when using anonymous volumes")
    return MountSpec(
        type="volume",
        target=target,
        source=_volume_name(source) if source else "",
        read_only=bool(body.ReadOnly),
        no_copy=bool(options.NoCopy),
        listed=True,
        subpath=_subpath(options.Subpath, refuse),
        labels=options.Labels or {},
        driver=driver.Name or "",
        driver_options=driver.Options or {},
    )


def _image_mount(body: MountBody, target: str, refuse: Callable[[str], InvalidArgument]) -> MountSpec:
    if not body.Source:
        raise refuse("field Source must not be empty")
    subpath = body.ImageOptions.Subpath if body.ImageOptions is not None else ""
    return MountSpec(
        type="image",
        target=target,
        source=body.Source,
        read_only=bool(body.ReadOnly),
        listed=True,
        subpath=_subpath(subpath, refuse),
    )


def _subpath(path: str | None, refuse: Callable[[str], InvalidArgument]) -> str:
    """A path inside, "" for all."""
    if not path:
        return ""
    if path.startswith("/") or ".." in path.split("/") or "\0" in path:
        raise refuse("subpath must be a relative path within the volume")
    clean = posixpath.normpath(path)
    return "" if clean == "." else clean


def _tmpfs_options(body: MountBody) -> tuple[str, ...]:
    options: list[str] = []
    if body.TmpfsOptions is not None:
        size = body.TmpfsOptions.SizeBytes or 0
        if size < 0:
            raise InvalidArgument('invalid mount config for type "tmpfs": SizeBytes must not be negative')
        if size:
            options.append(f"size={size}")
        if body.TmpfsOptions.Mode:
            options.append(f"mode={body.TmpfsOptions.Mode:o}")
        options.extend("=".join(pair) for pair in body.TmpfsOptions.Options or ())
    return tuple(options)


def mounts(
    binds: Iterable[str], bodies: Iterable[MountBody], tmpfs: Mapping[str, str]
) -> tuple[tuple[MountSpec, ...], dict[str, str]]:
    """All mounts of a create request and its Tmpfs map, targets clean and each used once."""
    result = [parse_bind(raw) for raw in binds]
    result.extend(parse_mount(body) for body in bodies)
    clean = {_target(path, "tmpfs"): options for path, options in tmpfs.items()}
    seen: set[str] = set()
    for target in [*(mount.target for mount in result), *clean]:
        if target in seen:
            raise InvalidArgument(f"Duplicate mount point: {target}")
        seen.add(target)
    return tuple(result), clean
