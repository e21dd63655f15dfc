"""nagaya-vm for tests: its launcher, and where the machines that have booted already are kept, so that each
kind boots once and not once for each test."""

from __future__ import annotations

from pathlib import Path

import pytest
from bundles import SOURCE, nagaya_oci

from nagaya.errors import NotFound
from nagaya.vm import assets

STATE = SOURCE.parent / "build" / "vm" / "state"


def installed() -> bool:
    """Has `./dev vm` been run, and is there a QEMU?"""
    try:
        return bool(assets.find("full") and assets.find_qemu())
    except NotFound:
        return False


needed = [
    pytest.mark.root,
    pytest.mark.vm,
    pytest.mark.skipif(not installed(), reason="./dev vm was not run"),
]


def command(directory: Path, *options: str) -> str:
    """A command that is nagaya-vm with these global options, below a directory of its own."""
    launcher = nagaya_oci(directory / "env", "nagaya-vm")
    script = directory / "nagaya-vm"
    script.write_text(f'#!/bin/sh\nexec {launcher} --state {STATE} {" ".join(options)} "$@"\n')
    script.chmod(0o755)
    return str(script)
