"""What the user asked for, laid over what the image says (pure; `docker run`'s rules)."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence

import msgspec

from nagaya.engine.model import ContainerConfig, HealthCheck
from nagaya.errors import InvalidArgument
from nagaya.oci import defaults
from nagaya.oci.imageconfig import ContainerDefaults, Healthcheck, words


def merge(config: ContainerConfig, image: ContainerDefaults) -> ContainerConfig:
    """The configuration with the image's defaults filled in, as dockerd stores and inspects it.

    Raises InvalidArgument: "no command specified", a relative working directory, a bad variable.
    """
    entrypoint, command = config.entrypoint, config.command or None
    if entrypoint == ("",):  # `--entrypoint ""` resets, and the image's command goes with it
        entrypoint = ()
    if not entrypoint:
        if entrypoint is None:
            if not command:
                command = words(image.cmd) or None
            entrypoint = words(image.entrypoint) or None
        else:
            entrypoint = None
    if not entrypoint and not command:
        raise InvalidArgument("no command specified", subject="Cmd")
    working_dir = config.working_dir or image.working_dir or ""
    if working_dir and not working_dir.startswith("/"):
        raise InvalidArgument(
            f"the working directory '{working_dir}' is invalid, it needs to be an absolute path",
            subject="WorkingDir",
        )
    for variable in config.env:
        if variable.startswith("=") or not variable or "\0" in variable:
            raise InvalidArgument(f"invalid environment variable: {variable!r}", subject="Env")
    given = {variable.partition("=")[0] for variable in config.env}
    return msgspec.structs.replace(
        config,
        entrypoint=entrypoint,
        command=command,
        env=(*config.env, *(v for v in image.env or () if v.partition("=")[0] not in given)),
        working_dir=os.path.normpath(working_dir).replace("//", "/") if working_dir else "",
        user=config.user or image.user or "",
        labels={**(image.labels or {}), **config.labels},
        stop_signal=config.stop_signal or image.stop_signal or "",
        exposed_ports=tuple(dict.fromkeys([*(image.exposed_ports or ()), *config.exposed_ports])),
        health=_health(config.health, image.healthcheck),
        image_volumes=tuple(dict.fromkeys([*(image.volumes or ()), *config.image_volumes])),
    )


def _health(own: HealthCheck | None, image: Healthcheck | None) -> HealthCheck | None:
    """The user's check; what it leaves out is the image's."""
    if image is None:
        return own
    given = own or HealthCheck()
    return HealthCheck(
        given.test or tuple(image.test or ()),
        given.interval or image.interval or 0,
        given.timeout or image.timeout or 0,
        given.start_period or image.start_period or 0,
        given.start_interval or image.start_interval or 0,
        given.retries or image.retries or 0,
    )


def argv(config: ContainerConfig) -> tuple[str, ...]:
    """The arguments of a merged configuration."""
    return (*(config.entrypoint or ()), *(config.command or ()))


def environment(
    variables: Iterable[str], *, hostname: str, tty: bool, home: str = "", base: Sequence[str] = ()
) -> tuple[str, ...]:
    """The process's environment in dockerd's order: PATH, HOSTNAME, TERM, `base`, then the merged
    variables, a later one replacing an earlier one in its place. A name without "=" removes the
    variable. HOME, when nobody set it, is the user's home directory."""
    found: dict[str, str] = {"PATH": defaults.PATH}
    if hostname:
        found["HOSTNAME"] = hostname
    if tty:
        found["TERM"] = "xterm"
    for variable in (*base, *variables):
        name, equals, value = variable.partition("=")
        if equals:
            found[name] = value
        else:
            found.pop(name, None)
    if home and "HOME" not in found:
        found["HOME"] = home
    return tuple(f"{name}={value}" for name, value in found.items())
