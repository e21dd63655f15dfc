"""A client of Firecracker that is not ours (microheart) talks to nagaya-vmm: its requests, and the
configuration that it writes for a machine of its own."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import microheart.api
import microheart.assets
import microheart.state
import microheart.vm
import pytest
import vmm
from vmm import Vmm

from nagaya.vm import assets

pytestmark = [pytest.mark.root, pytest.mark.vm, pytest.mark.skipif(bool(vmm.missing()), reason=vmm.missing())]


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Path]:
    made = Path(f"/tmp/nagt-vmmc-{tmp_path.name[-12:]}")
    made.mkdir()
    yield made
    shutil.rmtree(made)


def test_its_requests(place: Path) -> None:
    initrd = vmm.make_initrd(place)

    def ask(method: str, route: str, body: dict[str, object] | None = None) -> Any:
        return microheart.api.request(machine.path, method, route, body)

    with Vmm(place / "a") as machine:
        assert ask("GET", "/machine-config")["vcpu_count"] == 1
        assert ask("PUT", "/machine-config", {"vcpu_count": 1, "mem_size_mib": 128}) is None
        with pytest.raises(RuntimeError, match=r"PUT /vsock -> 400: .*missing field `uds_path`"):
            ask("PUT", "/vsock", {"guest_cid": 3})
        boot: dict[str, object] = {"kernel_image_path": assets.find().kernel, "initrd_path": str(initrd)}
        ask("PUT", "/boot-source", {**boot, "boot_args": vmm.BOOT_ARGS})
        ask("PUT", "/actions", {"action_type": "InstanceStart"})
        machine.read_until(rb"READY\r?\n")
        ask("PATCH", "/vm", {"state": "Paused"})
        assert ask("GET", "/")["state"] == "Paused"
        with pytest.raises(RuntimeError, match="not supported after starting the microVM"):
            ask("PUT", "/boot-source", boot)


def test_its_configuration_file(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As it writes it for a machine of its own, but the kernel and the tap's namespace."""
    monkeypatch.setattr(microheart.assets, "kernel_path", lambda: assets.find().kernel)
    registry = microheart.state.Registry(place / "registry.json")
    (place / "rootfs.ext4").write_bytes(bytes(1 << 20))
    rootfs = str(place / "rootfs.ext4")
    owner = microheart.vm.MicroVM("box", rootfs=rootfs, registry=registry, run_dir=place, mem_mib=128)
    registry.create("box")
    config = owner.config(place / "rootfs.ext4")
    (place / "config.json").write_text(json.dumps(config))
    words = ["unshare", "--net", str(vmm.LAUNCHER), "--api-sock", str(place / "api.sock")]
    words += ["--config-file", str(place / "config.json"), "--enable-pci"]
    with Vmm(place / "a", argv=words, api=str(place / "api.sock")) as machine:
        shown = microheart.api.request(machine.path, "GET", "/vm/config")
        config["network-interfaces"][0]["guest_mac"] = config["network-interfaces"][0]["guest_mac"].lower()
        for key, value in config.items():
            given, told = (value, shown[key]) if isinstance(value, dict) else (value[0], shown[key][0])
            assert {name: told[name] for name in given} == given
        assert microheart.api.request(machine.path, "GET", "/")["state"] == "Running"
        machine.read_until(rb"Linux version 6")
