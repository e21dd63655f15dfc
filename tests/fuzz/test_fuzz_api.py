"""Whatever arrives, the API answers: no input may raise anything but its own errors, or hang."""

from __future__ import annotations

import asyncio
import contextlib
from typing import Any, cast

import msgspec
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from nagaya.api.docker.server import COMMON_HEADERS, DockerApplication
from nagaya.api.docker.types.create import container_config, create_request
from nagaya.api.docker.types.filters import Filters
from nagaya.api.docker.types.image import reference_matches, registry_auth
from nagaya.api.docker.types.inspect import inspect
from nagaya.api.docker.types.mounts import parse_bind
from nagaya.api.docker.types.ports import parse_port
from nagaya.api.docker.types.structs import (
    CreateBody,
    HostConfigBody,
    MountBody,
    PortBindingBody,
    decode_body,
)
from nagaya.api.docker.types.times import parse_timestamp
from nagaya.api.http.connection import Connection
from nagaya.engine.model import Container
from nagaya.errors import InvalidArgument

QUICK = settings(max_examples=200, deadline=None, suppress_health_check=list(HealthCheck))

scalars = st.none() | st.booleans() | st.integers(-(1 << 40), 1 << 40) | st.text(max_size=12)
values = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6), inner, max_size=3),
)
host_names = st.sampled_from(HostConfigBody.__struct_fields__)
config_names = st.sampled_from(CreateBody.__struct_fields__)


@QUICK
@given(st.dictionaries(config_names, values, max_size=6), st.dictionaries(host_names, values, max_size=8))
def test_any_create_body_is_decoded_or_refused(config: dict[str, Any], host: dict[str, Any]) -> None:
    document = {"Image": "x", **config, "HostConfig": host}
    with contextlib.suppress(InvalidArgument):
        decoded = container_config(decode_body(msgspec.json.encode(document), CreateBody), 2)
        msgspec.json.encode(inspect(Container("a" * 64, "n", decoded), "/r"))


numbers = st.none() | st.integers(-2, 1 << 40)
strings = st.none() | st.lists(st.text(max_size=12), max_size=3)
host_ports = st.builds(PortBindingBody, HostPort=st.text("0123456789-", max_size=6))
bodies = st.builds(
    HostConfigBody,
    Memory=numbers,
    NanoCpus=numbers,
    CpusetCpus=st.none() | st.text(max_size=5),
    Binds=strings | st.lists(st.from_regex(r"/?[a-z.]*(:/[a-z./]*(:[a-z,]*)?)?", fullmatch=True), max_size=3),
    PortBindings=st.dictionaries(
        st.from_regex(r"[0-9]{1,6}(/(tcp|udp|x))?", fullmatch=True),
        st.none() | st.lists(host_ports, max_size=2),
        max_size=2,
    ),
    Mounts=st.lists(st.builds(MountBody, Type=st.sampled_from(["bind", "volume", "tmpfs"])), max_size=2),
    NetworkMode=st.none() | st.sampled_from(["none", "host", "container:", "container:x", "mine"]),
    Tmpfs=st.none() | st.dictionaries(st.text("/a.", max_size=4), st.text(max_size=4), max_size=2),
)


@QUICK
@given(st.builds(CreateBody, Image=st.just("x"), Env=strings, HostConfig=bodies), st.text(max_size=8))
def test_any_well_typed_body_is_decoded_or_refused(body: CreateBody, name: str) -> None:
    with contextlib.suppress(InvalidArgument):
        create_request(body, name, "", 2)


@QUICK
@given(st.binary(max_size=200), st.text(max_size=60))
def test_small_languages(data: bytes, text: str) -> None:
    registry_auth(data)
    with contextlib.suppress(InvalidArgument):
        reference_matches(text, text)
    for parse in (parse_bind, parse_port, Filters.parse):
        with contextlib.suppress(InvalidArgument):
            cast(Any, parse)(text)
    with contextlib.suppress(InvalidArgument):
        parse_timestamp(text, "since", 0)
    with contextlib.suppress(InvalidArgument):
        decode_body(data, CreateBody)


class Wire(asyncio.Transport):
    """A transport that keeps what is written."""

    def __init__(self) -> None:
        super().__init__()
        self.out = bytearray()
        self.closed = False

    def write(self, data: Any) -> None:
        self.out += data

    def is_closing(self) -> bool:
        return self.closed

    def close(self) -> None:
        self.closed = True

    abort = close

    def pause_reading(self) -> None: ...

    def resume_reading(self) -> None: ...

    def can_write_eof(self) -> bool:
        return True

    def write_eof(self) -> None: ...


pieces = st.sampled_from(
    [
        b"GET /_ping HTTP/1.1\r\n", b"POST /containers/create HTTP/1.1\r\n", b"HEAD /_ping HTTP/1.0\r\n",
        b"Host: d\r\n", b"Content-Length: 3\r\n", b"Content-Length: 0\r\n", b"Transfer-Encoding: chunked\r\n",
        b"Expect: 100-continue\r\n", b"Upgrade: tcp\r\nConnection: Upgrade\r\n", b"Connection: close\r\n",
        b"\r\n", b"{}\n", b"3\r\n{}\n\r\n", b"0\r\n\r\n", b"GET /v9999999999999.9/x HTTP/1.1\r\n",
        b"\0", b":\r\n",
        b"GET /containers/json?limit=x&filters=%00 HTTP/1.1\r\n",
    ]
)  # fmt: skip


@QUICK
@given(st.lists(pieces | st.binary(max_size=30), max_size=12))
def test_any_bytes_get_http_back_or_nothing(stream: list[bytes]) -> None:
    async def run() -> bytearray:
        wire = Wire()
        application = DockerApplication(cast(Any, object()))
        connection = Connection(application, set(), COMMON_HEADERS)
        connection.connection_made(wire)
        for piece in stream:
            if wire.closed:
                break
            connection.data_received(piece)
            await asyncio.sleep(0)
        for _ in range(20):
            await asyncio.sleep(0)
        connection.connection_lost(None)
        for _ in range(3):
            await asyncio.sleep(0)
        assert len(asyncio.all_tasks()) <= 1, "a request outlived its connection"
        return wire.out

    out = asyncio.run(run())
    assert not out or out.startswith(b"HTTP/1.1 ")
