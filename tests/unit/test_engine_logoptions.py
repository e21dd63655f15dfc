"""Log drivers and their options: what is refused, what io is told, what a syslog is sent."""

from __future__ import annotations

import asyncio
import socket
from pathlib import Path

import pytest

from nagaya.engine import logoptions, logtargets
from nagaya.engine.model import Container, ContainerConfig, LogConfig, LogLine
from nagaya.engine.settings import Settings
from nagaya.errors import InvalidArgument

ID = "ab" * 32
SETTINGS = Settings("/r", "/n", log_max_size=7, log_max_file=2)


def container(driver: str = "json-file", **options: str) -> Container:
    given = {name.replace("_", "-"): value for name, value in options.items()}
    return Container(
        ID,
        "name",
        ContainerConfig("img", log=LogConfig(driver, given)),
        image_digest="sha256:" + "c" * 64,
        labels={"color": "red", "com.size": "9"},
        env=("A=1", "AB=2", "B=x=y"),
        path="/bin/sh",
        args=("-c", "true"),
    )


def test_what_io_is_told() -> None:
    path = f"/r/containers/{ID}/{ID}-json.log"
    assert logoptions.for_io(SETTINGS, container()) == {
        "driver": "json-file",
        "path": path,
        "max_size": 7,
        "max_file": 2,
    }
    found = logoptions.for_io(SETTINGS, container("local", max_size="10m", max_file="3"))
    assert found is not None
    assert (found["max_size"], found["max_file"], found["path"]) == (10 << 20, 3, path)
    assert logoptions.for_io(SETTINGS, container("none")) is None
    shown = container(labels="color,nothing", env_regex="^A", tag="{{.Name}}/{{ .ID }}")
    found = logoptions.for_io(SETTINGS, shown)
    assert found is not None
    assert found["attributes"] == f'{{"A":"1","AB":"2","color":"red","tag":"name/{ID[:12]}"}}'


@pytest.mark.parametrize(
    ("driver", "options", "says"),
    [
        ("foo", {}, 'error looking up logging plugin foo: plugin "foo" not found'),
        ("json-file", {"foo": "x"}, "unknown log opt 'foo' for json-file log driver"),
        ("local", {"foo": "x"}, "unknown log opt 'foo' for log driver local"),
        ("local", {"labels": "x"}, "unknown log opt 'labels' for log driver local"),
        ("syslog", {"foo": "x"}, "unknown log opt 'foo' for syslog log driver"),
        ("syslog", {"syslog-address": "x://y"}, "syslog-address should be in form proto://address"),
        ("syslog", {"syslog-address": "tcp://h:x"}, "syslog-address should be in form proto://address"),
        ("syslog", {"syslog-facility": "x"}, "invalid syslog facility"),
        ("syslog", {"syslog-format": "x"}, "Invalid syslog format"),
        ("journald", {}, "journald is not enabled on this host"),
        ("json-file", {"max-size": "x"}, "invalid size: 'x'"),
        ("json-file", {"max-size": "k"}, "invalid size: 'k'"),
        ("json-file", {"max-size": ""}, "invalid size: ''"),
        ("json-file", {"max-file": "0"}, "max-file cannot be less than 1"),
        ("json-file", {"max-file": "\u00b2"}, "max-file cannot be less than 1"),
        ("json-file", {"mode": "foo"}, "logger: logging mode not supported: foo"),
        ("json-file", {"max-buffer-size": "x"}, "error parsing option max-buffer-size: invalid size: 'x'"),
        ("json-file", {"compress": "maybe"}, 'strconv.ParseBool: parsing "maybe": invalid syntax'),
        ("json-file", {"tag": "{{.Nope}}"}, "can't evaluate field Nope"),
        ("json-file", {"tag": "{{if}}"}, "only fields such as"),
        ("json-file", {"env-regex": "("}, "env-regex: "),
    ],
)
def test_refusals(driver: str, options: dict[str, str], says: str) -> None:
    with pytest.raises(InvalidArgument) as refused:
        logoptions.check(LogConfig(driver, options))
    assert says in refused.value.message


def test_none_takes_any_option_and_compress_is_only_warned_of() -> None:
    assert logoptions.check(LogConfig("none", {"foo": "x"})) == []
    assert "compress" in logoptions.check(LogConfig(options={"compress": "true"}))[0]


def test_addresses() -> None:
    def target(address: str) -> logoptions.Target:
        return logoptions.target({"syslog-address": address} if address else {})

    assert target("") == logoptions.Target("unixgram", "/dev/log")
    assert target("unix:///a/b") == logoptions.Target("unix", "/a/b")
    assert target("udp://1.2.3.4:99") == logoptions.Target("udp", host="1.2.3.4", port=99)
    assert target("tcp://host") == logoptions.Target("tcp", host="host", port=514)
    assert target("tcp://[::1]:7") == logoptions.Target("tcp", host="::1", port=7)


LINE = LogLine("stderr", 1_700_000_000_123_456_789, b"hello\n")


@pytest.mark.parametrize(
    ("style", "begin", "end"),
    [
        ("", b"<27>", b" t["),
        ("rfc3164", b"<27>", b" h t["),
        ("rfc5424", b"<27>1 2023-11-14T22:13:20Z h t ", b" t - hello\n"),
        ("rfc5424micro", b"<27>1 2023-11-14T22:13:20.123456Z h t ", b" t - hello\n"),
    ],
)
def test_syslog_formats(style: str, begin: bytes, end: bytes) -> None:
    found = logtargets.record(style, 27, "t", "h", LINE)
    assert found.startswith(begin) and end in found and found.endswith(b" hello\n")


def test_journald_s_own_protocol(tmp_path: Path) -> None:

    place = tmp_path / "journal"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as journal:
        journal.bind(str(place))

        async def send() -> None:
            target = logtargets.Journal(container("journald", labels="com.size"), str(place))
            await target.open()
            await target.send(LINE)
            await target.send(LogLine("stdout", 1, b"two\nlines\n"))
            target.close()

        asyncio.run(send())
        fields = dict(f.split(b"=", 1) for f in journal.recv(65536).splitlines())
        assert fields[b"MESSAGE"] == b"hello" and fields[b"PRIORITY"] == b"3"
        assert fields[b"CONTAINER_NAME"] == b"name" and fields[b"COM_SIZE"] == b"9"
        assert fields[b"SYSLOG_IDENTIFIER"] == ID[:12].encode()
        assert b"MESSAGE\n\x09\0\0\0\0\0\0\0two\nlines\n" in journal.recv(65536)
