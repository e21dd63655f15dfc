"""What nagaya-vmm understands: every operation of Firecracker's API, and the words of its refusals. No VM."""

from __future__ import annotations

import json
from typing import Any

import msgspec
import pytest
from firecracker_api import OPERATIONS
from hypothesis import given
from hypothesis import strategies as st

from nagaya.api.firecracker import models, requests, serde
from nagaya.api.firecracker.faults import Fault

BODIES = [operation for operation in OPERATIONS if operation[2] and operation[1] != "/mmds"]


def parse(method: str, path: str, body: Any) -> requests.Action:
    return requests.parse(method, path, None if body is None else json.dumps(body).encode())


def fault(method: str, path: str, body: Any = None) -> str:
    with pytest.raises(Fault) as caught:
        parse(method, path, body)
    assert caught.value.status == 400
    return str(caught.value)


@pytest.mark.parametrize(("method", "path", "body", "_", "name"), OPERATIONS)
def test_every_operation_is_understood(method: str, path: str, body: Any, _: str, name: str) -> None:
    action = parse(method, path, body)
    assert action.name == name
    # and so with all of its fields
    shown = msgspec.to_builtins(action.argument)
    if body and isinstance(shown, dict) and path not in ("/logger", "/mmds"):
        assert {key: shown[key] for key in body} == body
    assert parse(method, f"{path}/" if path != "/" else path, body) == action


def test_every_action_can_be_asked_for() -> None:
    assert {operation[4] for operation in OPERATIONS} == set(requests.ACTIONS)


@pytest.mark.parametrize(("method", "path", "body", "required", "_"), BODIES)
def test_what_must_be_there_and_what_must_not(
    method: str, path: str, body: dict[str, Any], required: str, _: str
) -> None:
    words = "An error occurred when deserializing the json body of a request: "
    if (method, path) != ("PATCH", "/machine-config"):
        for name in required.split():
            without = {key: value for key, value in body.items() if key != name}
            assert fault(method, path, without).startswith(f"{words}missing field `{name}` at line 1 column ")
    if path != "/metrics":
        assert fault(method, path, {**body, "zz": 1}).startswith(f"{words}unknown field `zz`, expected ")
    for name in body:
        assert fault(method, path, {**body, name: {"zz": [1]} if body[name] != {} else 1}).startswith(words)


@pytest.mark.parametrize(
    ("model", "text", "words"),
    [
        (models.MachineConfig, '{"mem_size_mib": 128}', "missing field `vcpu_count` at line 1 column 21"),
        (models.MachineConfig, '{"vcpu_count": 2}', "missing field `mem_size_mib` at line 1 column 17"),
        (
            models.MachineConfig,
            '{"vcpu_count": "-2"}',
            'invalid type: string "-2", expected u8 at line 1 column 19',
        ),
        (
            models.MachineConfig,
            '{"vcpu_count": 256}',
            "invalid value: integer `256`, expected u8 at line 1 column 18",
        ),
        (
            models.MachineConfig,
            '{"vcpu_count": -2}',
            "invalid value: integer `-2`, expected u8 at line 1 column 17",
        ),
        (
            models.MachineConfig,
            '{"mem_size_mib":18446744073709551616}',
            "invalid type: floating point `18446744073709552000.0`, expected usize at line 1 column 36",
        ),
        (
            models.MachineConfig,
            '{"smt": null}',
            "invalid type: null, expected a boolean at line 1 column 12",
        ),
        (models.MachineConfig, '{"smt": true,\n"smt', "EOF while parsing a string at line 2 column 4"),
        (
            models.MmdsConfig,
            '{"version":"foo"}',
            "unknown variant `foo`, expected `V1` or `V2` at line 1 column 16",
        ),
        (
            models.Vm,
            '{"state":"Paused","state":"Paused"}',
            "duplicate field `state` at line 1 column 25",
        ),
        (
            models.MemBackendConfig,
            '{"backend_path":"","backend_type":"x"}',
            "unknown variant `x`, expected `File` or `Uffd` at line 1 column 37",
        ),
        (models.Vm, "", "EOF while parsing a value at line 1 column 0"),
        (models.Vm, "{", "EOF while parsing an object at line 1 column 1"),
        (models.Vm, "{} {}", "missing field `state` at line 1 column 2"),
        (models.Vm, '{"state":"Paused"} x', "trailing characters at line 1 column 20"),
        (models.Vm, "{1:2}", "key must be a string at line 1 column 2"),
        (models.Vm, '{"state" 1}', "expected `:` at line 1 column 10"),
        (models.Vm, '{"state":"Paused" 1}', "expected `,` or `}` at line 1 column 19"),
        (models.Vm, '{"state":"Paused",}', "trailing comma at line 1 column 19"),
        (models.Vm, "[]", "invalid type: sequence, expected struct Vm at line 1 column 0"),
        (models.Vm, '{"state":1}', "expected value at line 1 column 10"),
        (
            models.NetworkInterfaceConfig,
            '{"guest_mac":"0:1"}',
            "The provided MAC address is invalid. at line 1 column 18",
        ),
        (models.LoggerConfig, '{"level":"x"}', "Invalid LevelFilter at line 1 column 12"),
        (
            models.BlockDeviceUpdateConfig,
            '{"is_read_only":true}',
            (
                "unknown field `is_read_only`, expected one of `drive_id`, `path_on_host`, `rate_limiter`"
                " at line 1 column 15"
            ),
        ),
    ],
)
def test_complaints_are_those_of_serde(model: type[Any], text: str, words: str) -> None:
    with pytest.raises(serde.SerdeError) as caught:
        serde.decode(model, text.encode())
    assert str(caught.value) == words


@pytest.mark.parametrize(
    ("method", "path", "body", "words"),
    [
        ("GET", "/", {}, "GET request cannot have a body."),
        ("PUT", "/actions", None, "Empty PUT request."),
        ("PATCH", "/vm", None, "Empty PATCH request."),
        ("PATCH", "/balloon", None, "Empty PATCH request."),
        ("PATCH", "/machine-config", {}, "Empty PATCH request."),
        ("DELETE", "/drives/a", {}, "Empty Delete request."),
        ("PATCH", "/boot-source", {}, "Invalid request method and/or path: PATCH boot-source."),
        ("PATCH", "/logger", {}, "Invalid request method and/or path: PATCH logger."),
        ("POST", "/actions", {}, "Invalid request method and/or path: POST actions."),
        ("GET", "/vm", None, "Invalid request method and/or path: GET vm."),
        ("PUT", "/drives", {}, "The ID cannot be empty."),
        ("PUT", "/snapshot", {}, "Missing snapshot operation type."),
        ("PUT", "/snapshot/x", {}, "Invalid request method and/or path: PUT /snapshot/x."),
        ("PUT", "/mmds/x", {}, "Unrecognized PUT request path `x`."),
        ("GET", "/balloon/x", None, "Unrecognized GET request path `x`."),
        ("GET", "/balloon/hinting", None, "Unrecognized GET request path `/hinting/`."),
        (
            "PUT",
            "/drives/a-b",
            {},
            "API Resource IDs can only contain alphanumeric characters and underscores.",
        ),
        (
            "PATCH",
            "/drives/a",
            {"drive_id": "b"},
            "The id from the path does not match the id from the body!",
        ),
        (
            "PATCH",
            "/network-interfaces/a",
            {"iface_id": "b"},
            "The id from the path [a] does not match the id from the body [b]!",
        ),
        (
            "PUT",
            "/snapshot/load",
            {"snapshot_path": "s"},
            (
                "An error occurred when deserializing the json body of a request: "
                "missing field: either `mem_backend` or `mem_file_path` is required."
            ),
        ),
        (
            "PUT",
            "/snapshot/load",
            {
                "snapshot_path": "s",
                "mem_file_path": "m",
                "mem_backend": {"backend_type": "File", "backend_path": "m"},
            },
            (
                "An error occurred when deserializing the json body of a request: "
                "too many fields: either `mem_backend` or `mem_file_path` exclusively is required."
            ),
        ),
    ],
)
def test_refusals(method: str, path: str, body: Any, words: str) -> None:
    assert fault(method, path, body) == words


@pytest.mark.parametrize(
    ("method", "path", "body"),
    [
        ("PUT", "/machine-config", {"vcpu_count": 1, "mem_size_mib": 1, "cpu_template": "None"}),
        ("PATCH", "/machine-config", {"cpu_template": "None"}),
        ("PUT", "/vsock", {"guest_cid": 3, "uds_path": "v", "vsock_id": "i"}),
        ("PUT", "/mmds/config", {"network_interfaces": []}),
        ("PUT", "/snapshot/load", {"snapshot_path": "s", "mem_file_path": "m"}),
    ],
)
def test_what_is_deprecated_is_said_so(method: str, path: str, body: Any) -> None:
    assert parse(method, path, body).deprecated.startswith(f"{method} {path}: ")


TEXT = st.text(st.characters(exclude_categories=["Cs"]))
JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=8,
)


@given(JSON, st.booleans())
def test_any_json_is_read_as_python_reads_it(value: Any, ascii_only: bool) -> None:
    text = json.dumps(value, ensure_ascii=ascii_only, indent=1)
    assert serde.decode_any(text.encode()) == json.loads(text)


@given(
    st.binary(max_size=60) | st.text(alphabet='{}[]:,"\\u0dD8cf-1.eE truefalsnl', max_size=30).map(str.encode)
)
def test_what_is_no_json_is_refused(text: bytes) -> None:
    """By us and by Python's parser alike; that one only takes more (NaN, any depth, lone surrogates)."""
    try:
        value = serde.decode_any(text)
    except serde.SerdeError:
        return
    assert value == json.loads(text)


@given(
    st.sampled_from(["GET", "PUT", "PATCH", "DELETE", "POST"]),
    st.sampled_from(sorted({operation[1] for operation in OPERATIONS})) | st.text(max_size=20),
    st.none() | JSON | st.sampled_from([operation[2] for operation in OPERATIONS if operation[2]]),
)
def test_no_request_is_answered_but_by_an_action_or_a_fault(method: str, path: str, body: Any) -> None:
    try:
        action = parse(method, path, body)
    except Fault:
        return
    assert action.name in requests.ACTIONS
