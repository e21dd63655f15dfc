"""Runtimes and bundles. Behaviour that runc defines is tested on runc too: that proves the tests.

`OCI_RUNTIME=/path/to/runtime` tests that one alone.
"""

from __future__ import annotations

import os
import shutil
import tempfile
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest
from bundles import Bundle, bundle, forget, nagaya_oci


@pytest.fixture(scope="session")
def ours(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """nagaya-oci."""
    launcher = nagaya_oci(tmp_path_factory.mktemp("env"))
    yield launcher
    forget(launcher)


@pytest.fixture(params=[os.environ["OCI_RUNTIME"]] if "OCI_RUNTIME" in os.environ else ["nagaya-oci", "runc"])
def runtime(request: pytest.FixtureRequest, ours: str) -> str:
    """Each runtime that is there."""
    name = str(request.param)
    if name == "nagaya-oci":
        return ours
    path = shutil.which(name)
    if path is None:
        pytest.skip(f"{name} is not installed")
    return path


def _bundle(runtime: str) -> Iterator[Bundle]:
    tag = f"nagt-{uuid.uuid4().hex[:10]}"
    # not pytest's: its names are long, and a Unix socket's path has 107 bytes
    with bundle(runtime, Path(tempfile.mkdtemp(prefix=f"{tag}-")), tag) as made:
        yield made


@pytest.fixture
def box(runtime: str) -> Iterator[Bundle]:
    """A bundle of each runtime."""
    yield from _bundle(runtime)


@pytest.fixture
def our_box(ours: str) -> Iterator[Bundle]:
    """A bundle of nagaya-oci alone."""
    yield from _bundle(ours)
