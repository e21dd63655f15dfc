"""An overlay as a detached mount (overlayfs.rst)."""

from __future__ import annotations

import errno

from nagaya.errors import KernelError
from nagaya.linux import mounts as m
from nagaya.linux import os

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

_OVERLAY_STRING = 255  # fsconfig(2) takes no longer strings


def mount_overlay(overlay: dict[str, Any]) -> int:
    """A detached overlay mount (overlayfs.rst): lower directories from top to bottom."""
    lower: list[str] = overlay["lower"]
    upper, work = overlay.get("upper") or "", overlay.get("work") or ""
    options: list[str] = overlay.get("options") or []
    fd = m.fsopen("overlay")
    try:
        try:
            for layer in lower:
                m.fsconfig_string(fd, "lowerdir+", layer)
        except KernelError as error:
            if (
                error.errno != errno.EINVAL
                or len(joined := ":".join(_escape(p) for p in lower)) > _OVERLAY_STRING
            ):
                raise
            m.fsconfig_string(fd, "lowerdir", joined)  # Linux < 6.5 has no lowerdir+
        if upper:
            m.fsconfig_string(fd, "upperdir", upper)
            m.fsconfig_string(fd, "workdir", work)
        m.fsconfig_options(fd, options)
        m.fsconfig_create(fd)
        return m.fsmount(fd)
    finally:
        os.close(fd)


def _escape(path: str) -> str:
    return path.replace("\\", "\\\\").replace(":", "\\:")
