"""The generated code of CRI's and NRI's messages is what `./dev proto` makes of their .proto files."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from nagaya.api.cri import runtime_pb2 as cri
from nagaya.api.cri.server import LISTERS, UNARY, WATCHERS

SOURCE = Path(__file__).resolve().parents[2] / "src"


@pytest.mark.parametrize("proto", ["nagaya/api/cri/runtime", "nagaya/api/nri/nri"])
def test_generating_again_gives_the_same(tmp_path: Path, proto: str) -> None:
    out = [f"--python_out={tmp_path}", f"--pyi_out={tmp_path}"]
    argv = [sys.executable, "-m", "grpc_tools.protoc", "-I.", *out, f"{proto}.proto"]
    subprocess.run(argv, cwd=SOURCE, check=True)
    for name in (f"{proto}_pb2.py", f"{proto}_pb2.pyi"):
        assert (tmp_path / name).read_text() == (SOURCE / name).read_text(), name


def test_every_rpc_is_served() -> None:
    services = cri.DESCRIPTOR.services_by_name
    assert {name: len(s.methods) for name, s in services.items()} == {"RuntimeService": 37, "ImageService": 6}
    methods = {m.name: m.server_streaming for s in services.values() for m in s.methods}
    assert methods.keys() == {*UNARY, *WATCHERS, *LISTERS}
    assert {name for name, streams in methods.items() if streams} == {*WATCHERS, *LISTERS}


def test_a_daemon_without_the_interface_does_not_load_it() -> None:
    wanted = "('grpclib', 'google.protobuf')"
    code = f"import sys, nagaya.daemon.compose; print(*[m for m in sys.modules if m in {wanted}])"
    argv = [sys.executable, "-c", code]
    done = subprocess.run(argv, capture_output=True, text=True, check=True, cwd=SOURCE)
    assert done.stdout == "\n"
