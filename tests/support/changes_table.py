"""What instructions make of a container with ENV A=1, LABEL own=1, ENTRYPOINT ["e"] and CMD ["a", "b"]."""

from __future__ import annotations

from typing import Any

CHANGES: tuple[tuple[str, dict[str, Any]], ...] = (
    ("CMD x", {"Entrypoint": ["e"], "Cmd": ["/bin/sh", "-c", "x"]}),
    ('CMD ["x", "y"]', {"Entrypoint": ["e"], "Cmd": ["x", "y"]}),
    ("CMD [", {"Cmd": ["/bin/sh", "-c", "["]}),
    ("ENTRYPOINT y", {"Entrypoint": ["/bin/sh", "-c", "y"], "Cmd": None}),
    ("ENV P=$A:/x", {"Env": ["P=1:/x"]}),
    ("ENV P=${N:-no}${A:+yes}", {"Env": ["P=noyes"]}),
    ("ENV a b c", {"Env": ["a=b c"]}),
    ("ENV B='b c' D=\"e $A\" E=f\\ g", {"Env": ["B=b c", "D=e 1", "E=f g"]}),
    ("env A=2", {"Env": ["A=2"]}),
    ("LABEL k=v \"m n\"=o", {"Labels": {"k": "v", "m n": "o", "own": "1"}}),
    ("EXPOSE 80 81-82/udp", {"ExposedPorts": {"80/tcp": {}, "81/udp": {}, "82/udp": {}}}),
    ("WORKDIR x/../y", {"WorkingDir": "/y"}),
    ("USER a b", {"User": "a b"}),
    ('VOLUME ["/a"]', {"Volumes": {"/a": {}}}),
    ("VOLUME /a /b", {"Volumes": {"/a": {}, "/b": {}}}),
    ("ONBUILD RUN x", {"OnBuild": ["RUN x"]}),
    ("HEALTHCHECK NONE", {"Healthcheck": {"Test": ["NONE"]}}),
    (
        "HEALTHCHECK --interval=1m30s --retries=2 CMD a b",
        {"Healthcheck": {"Test": ["CMD-SHELL", "a b"], "Interval": 90_000_000_000, "Retries": 2}},
    ),
)  # fmt: skip
REFUSED = (
    ("RUN x", "run is not a valid change command"),
    ("FROM x", "from is not a valid change command"),
    ("ENV", "ENV requires at least one argument"),
    ("LABEL a", "LABEL must have two arguments"),
    ("ONBUILD FROM x", "FROM isn't allowed as an ONBUILD trigger"),
    ("EXPOSE x", "Invalid containerPort: x"),
)
