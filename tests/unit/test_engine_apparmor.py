"""Which AppArmor profile a container gets, and what is said on hosts without."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from nagaya.engine import apparmor, pods_spec
from nagaya.engine.pods_model import ContainerSecurity, LinuxContainer, PodContainerConfig, SecurityProfile
from nagaya.errors import FailedPrecondition, InvalidArgument


@pytest.mark.parametrize(
    ("named", "privileged", "expected"),
    [
        (None, False, "default"),
        (None, True, ""),
        ("unconfined", False, ""),
        ("mine", False, "mine"),
        ("mine", True, "mine"),
    ],
)
def test_the_chosen_profile(named: str | None, privileged: bool, expected: str) -> None:
    assert apparmor.chosen(named, privileged=privileged, default="default") == expected


@pytest.mark.parametrize(
    ("security", "expected"),
    [
        (ContainerSecurity(), "default"),
        (ContainerSecurity(privileged=True), ""),
        (ContainerSecurity(apparmor=SecurityProfile("RuntimeDefault")), "default"),
        (ContainerSecurity(apparmor=SecurityProfile("Unconfined")), ""),
        (ContainerSecurity(apparmor=SecurityProfile("Localhost", "localhost/mine")), "mine"),
        (ContainerSecurity(apparmor=SecurityProfile("Localhost", "mine"), privileged=True), "mine"),
        (ContainerSecurity(apparmor_profile="localhost/old"), "old"),
        (ContainerSecurity(apparmor_profile="unconfined"), ""),
        (ContainerSecurity(apparmor_profile="runtime/default"), "default"),
    ],
)
def test_the_words_of_a_kubelet(security: ContainerSecurity, expected: str) -> None:
    world = cast("Any", SimpleNamespace(apparmor="default"))
    config = PodContainerConfig(linux=LinuxContainer(security_context=security))
    assert pods_spec.apparmor_profile(world, config) == expected


def test_a_profile_must_be_loaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """securityfs has a line NAME (MODE) for each; a name may have blanks."""
    (tmp_path / "enabled").write_text("Y\n")
    (tmp_path / "profiles").write_text("mine (enforce)\na b (complain)\n")
    monkeypatch.setattr(apparmor, "_LOADED", str(tmp_path / "profiles"))
    monkeypatch.setattr(apparmor, "_ENABLED", str(tmp_path / "enabled"))
    apparmor.require("mine", "x")
    apparmor.require("a b", "x")
    with pytest.raises(InvalidArgument, match="apparmor profile not found: a"):
        apparmor.require("a", "x")
    (tmp_path / "enabled").write_text("N\n")
    with pytest.raises(FailedPrecondition, match="no AppArmor"):
        apparmor.require("mine", "x")
    assert apparmor.load_default() == ""
