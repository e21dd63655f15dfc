"""What the guest reads from the metadata service, in both versions. No VM."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nagaya.api.firecracker.mmds import Mmds, merge_patch
from nagaya.api.firecracker.server import Reply

DATA = {"latest": {"meta-data": {"ami-id": "ami-1", "n": 5, "tags": {"a/b": "x"}}, "list": ["one"]}}
NO_TOKEN = "No MMDS token provided. Use `X-metadata-token` or `X-aws-ec2-metadata-token` header to specify"


class Clock:
    def __init__(self) -> None:
        self.seconds = 1000.0

    def __call__(self) -> float:
        return self.seconds


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def mmds(clock: Clock) -> Mmds:
    made = Mmds(51200, now=clock)
    made.put(DATA)
    return made


def get(mmds: Mmds, path: str, **headers: str) -> tuple[int, str]:
    answer = mmds.answer("GET", path, {k.replace("_", "-"): v for k, v in headers.items()})
    return answer.status, answer.body.decode()


@pytest.mark.parametrize(
    ("path", "status", "body"),
    [
        ("/", 200, "latest/"),
        ("/latest", 200, "list\nmeta-data/"),
        ("/latest/", 200, "list\nmeta-data/"),
        ("//latest///meta-data", 200, "ami-id\nn\ntags/"),
        ("/latest/meta-data/ami-id", 200, "ami-1"),
        ("/latest/meta-data/tags/a~1b", 200, "x"),
        ("/latest/list/0", 200, "one"),
        ("/latest/list/1", 404, "Resource not found: /latest/list/1."),
        ("/latest/list", 501, "Cannot retrieve value. The value has an unsupported type."),
        ("/latest/meta-data/n", 501, "Cannot retrieve value. The value has an unsupported type."),
        ("/other", 404, "Resource not found: /other."),
    ],
)
def test_plain_text(mmds: Mmds, path: str, status: int, body: str) -> None:
    assert get(mmds, path) == (status, body)


def test_json_is_for_who_accepts_it(mmds: Mmds) -> None:
    answer = mmds.answer("GET", "/latest/meta-data", {"accept": "application/json"})
    assert (answer.status, json.loads(answer.body)) == (200, DATA["latest"]["meta-data"])
    assert answer.kind == "application/json"
    assert get(mmds, "/latest/meta-data/n", accept="application/json") == (200, "5")
    mmds.imds_compat = True
    assert get(mmds, "/latest/meta-data/ami-id", accept="application/json") == (200, "ami-1")


def put(mmds: Mmds, path: str = "/latest/api/token", **headers: str) -> Reply:
    return mmds.answer("PUT", path, {k.replace("_", "-"): v for k, v in headers.items()})


@pytest.mark.parametrize("prefix", ["x_metadata_token", "x_aws_ec2_metadata_token"])
def test_version_2_asks_for_a_token(mmds: Mmds, clock: Clock, prefix: str) -> None:
    mmds.version = "V2"
    path = "/latest/meta-data/ami-id"
    status, body = get(mmds, path)
    assert status == 401 and body.startswith(NO_TOKEN)
    answer = put(mmds, **{f"{prefix}_ttl_seconds": "60"})
    assert answer.status == 200 and "60" in answer.headers.values()
    token = answer.body.decode()
    assert get(mmds, path, **{prefix: token}) == (200, "ami-1")
    for wrong in (
        token[:-1],
        token[:-1] + ("0" if token[-1] != "0" else "1"),
        token.replace(token[47], "f", 1),
    ):
        if wrong != token:
            assert get(mmds, path, **{prefix: wrong}) == (401, "MMDS token not valid.")
    clock.seconds += 61
    assert get(mmds, path, **{prefix: token}) == (401, "MMDS token not valid.")
    other = Mmds(100)
    assert not other.valid(put(mmds, **{f"{prefix}_ttl_seconds": "60"}).body.decode())


@pytest.mark.parametrize(
    ("path", "headers", "status", "words"),
    [
        ("/latest/api/token", {}, 400, "Token time to live value not found."),
        ("/latest/api/token", {"x_metadata_token_ttl_seconds": "0"}, 400, "Invalid time to live value"),
        ("/latest/api/token", {"x_metadata_token_ttl_seconds": "21601"}, 400, "Invalid time to live value"),
        ("/latest/api/token", {"x_metadata_token_ttl_seconds": "-1"}, 400, "Invalid header."),
        ("/latest/api/token", {"x_forwarded_for": "10.0.0.1"}, 400, "Invalid header."),
        ("/latest/other", {"x_metadata_token_ttl_seconds": "1"}, 404, "Resource not found: /latest/other."),
    ],
)
def test_tokens_are_refused(mmds: Mmds, path: str, headers: dict[str, str], status: int, words: str) -> None:
    answer = put(mmds, path, **headers)
    assert answer.status == status and answer.body.decode().startswith(words)


def test_only_get_and_put(mmds: Mmds) -> None:
    answer = mmds.answer("DELETE", "/", {})
    assert (answer.status, answer.body, answer.headers["Allow"]) == (
        405,
        b"Not allowed HTTP method.",
        "GET, PUT",
    )


# RFC 7396, appendix A
@pytest.mark.parametrize(
    ("target", "patch", "result"),
    [
        ({"a": "b"}, {"a": "c"}, {"a": "c"}),
        ({"a": "b"}, {"b": "c"}, {"a": "b", "b": "c"}),
        ({"a": "b"}, {"a": None}, {}),
        ({"a": "b", "b": "c"}, {"a": None}, {"b": "c"}),
        ({"a": ["b"]}, {"a": "c"}, {"a": "c"}),
        ({"a": "c"}, {"a": ["b"]}, {"a": ["b"]}),
        ({"a": {"b": "c"}}, {"a": {"b": "d", "c": None}}, {"a": {"b": "d"}}),
        ({"a": [{"b": "c"}]}, {"a": [1]}, {"a": [1]}),
        (["a", "b"], ["c", "d"], ["c", "d"]),
        ({"a": "b"}, ["c"], ["c"]),
        ({"a": "foo"}, None, None),
        ({"a": "foo"}, "bar", "bar"),
        ({"e": None}, {"a": 1}, {"e": None, "a": 1}),
        ([1, 2], {"a": "b", "c": None}, {"a": "b"}),
        ({}, {"a": {"bb": {"ccc": None}}}, {"a": {"bb": {}}}),
    ],
)
def test_merge_patch(target: Any, patch: Any, result: Any) -> None:
    assert merge_patch(target, patch) == result


@given(
    st.text(max_size=30),
    st.dictionaries(st.sampled_from(["accept", "x-metadata-token"]), st.text(max_size=90)),
)
def test_no_request_of_a_guest_breaks_it(path: str, headers: dict[str, str]) -> None:
    mmds = Mmds(51200)
    mmds.put(DATA)
    for mmds.version in ("V1", "V2"):
        for method in ("GET", "PUT", "PATCH"):
            assert mmds.answer(method, path, headers).status in (200, 400, 401, 404, 405, 501)
