"""`nagaya image ls --tree`: what images share, drawn."""

from __future__ import annotations

from typing import Any

from nagaya.cli.layers import draw

A, B, C, D = (f"sha256:{letter * 64}" for letter in "abcd")
SIZES = {A: 1_995_883, B: 4100, C: 12, D: 5}


def image(letter: str, *layers: str, tags: tuple[str, ...] = ()) -> dict[str, Any]:
    return {
        "Id": f"sha256:{letter * 64}",
        "RepoTags": list(tags),
        "Layers": [{"DiffId": layer, "Size": SIZES[layer]} for layer in layers],
    }


def test_a_tree_of_layers_with_the_images_that_end_there() -> None:
    found = draw(
        [
            image("1", A, tags=("base:1",)),
            image("2", A, B, tags=("mine:1", "mine:2")),
            image("3", A, B, C),
            image("4", A, D, tags=("other:1",)),
            image("5", A, B, tags=("same:1",)),
            image("6"),
        ]
    )
    assert found == [
        "LAYER                    SIZE   IMAGE",
        "└─ aaaaaaaaaaaa           2MB   111111111111  base:1",
        "   ├─ bbbbbbbbbbbb      4.1kB   222222222222  mine:1, mine:2",
        "   │  │                         555555555555  same:1",
        "   │  └─ cccccccccccc     12B   333333333333  <none>",
        "   └─ dddddddddddd         5B   444444444444  other:1",
        "─                          0B   666666666666  <none>",
        "6 images, 4 layers, 2MB",
    ]
    assert draw([]) == ["LAYER   SIZE   IMAGE", "0 images, 0 layers, 0B"]
    assert draw([image("1", A)], full=True)[1].startswith(f"└─ {A}")
