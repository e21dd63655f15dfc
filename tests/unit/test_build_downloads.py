"""What a URL of ADD that cannot be had says."""

from __future__ import annotations

import socket

import pytest

from nagaya.build import downloads
from nagaya.errors import Unavailable


def test_nobody_there_is_one_line() -> None:
    with socket.socket() as taken:  # a port that nobody listens at
        taken.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{taken.getsockname()[1]}/x"
        with pytest.raises(Unavailable) as caught, downloads.stream(url):
            pass
    assert str(caught.value) == f'Get "{url}": connection refused'


def test_an_address_that_is_none() -> None:
    with (
        pytest.raises(Unavailable, match=r"not a valid URL|connection broken"),
        downloads.stream("http://[/x"),
    ):
        pass
