"""Paths to handlers."""

from __future__ import annotations

from nagaya.api.docker.server import _ROUTES
from nagaya.api.http.messages import Answer, Request
from nagaya.api.http.router import Route, Router


async def _handler(context: None, request: Request) -> Answer:
    return None


def test_variables_and_order() -> None:
    router: Router[None] = Router(
        Route(method, pattern, _handler)
        for method, pattern in (
            ("GET", "/images/json"),
            ("GET", "/images/{name:path}/json"),
            ("GET", "/containers/{id}/json"),
        )
    )

    def find(path: str) -> tuple[str, dict[str, str]] | None:
        found = router.find("GET", path)
        return None if found is None else (found[0].pattern, found[1])

    assert find("/images/json") == ("/images/json", {})
    assert find("/images/h:5/a/b:1/json") == ("/images/{name:path}/json", {"name": "h:5/a/b:1"})
    assert find("/images/h%3A5%2Fa/json") == ("/images/{name:path}/json", {"name": "h:5/a"})
    assert find("/containers/a/b/json") is None
    assert find("") is None and find("images/json") is None and find("/") is None
    assert router.find("POST", "/images/json") is None


def test_no_route_hides_another() -> None:
    router = Router(_ROUTES)
    for route in _ROUTES:
        path = route.pattern.replace("{id}", "x").replace("{name}", "x").replace("{verb}", "x")
        path = path.replace("{name:path}", "x").replace("{rest:path}", "x")
        found = router.find(route.method, path)
        assert found is not None and found[0] is route, route
