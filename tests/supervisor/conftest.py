"""One busybox root file system for all live tests of a worker."""

from __future__ import annotations

from pathlib import Path

import pytest
from keeping import make_rootfs


@pytest.fixture(scope="session")
def rootfs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with busybox in it; containers have it read-only."""
    path = make_rootfs(tmp_path_factory.mktemp("busybox") / "rootfs")
    path.parent.chmod(0o755)
    return path
