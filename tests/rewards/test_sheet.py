from pathlib import Path

import numpy as np
from PIL import Image

from rewards.sheet import COLOURS, GAP_PX, Tile, write_sheet


def tile(level: int, kind: str) -> Tile:
    return Tile(images=[np.full((20, 30, 3), level, np.uint8)] * 2, kind=kind, caption="a task\nlogit 1.0")


def test_pictures_stand_side_by_side_in_a_frame_of_their_kind(tmp_path: Path):
    write_sheet(tmp_path / "sheet.png", [tile(10, "false positive"), tile(200, "false negative")], columns=4)
    pixels = np.asarray(Image.open(tmp_path / "sheet.png"))
    assert pixels.shape[1] == 2 * (64 + GAP_PX) + GAP_PX
    assert (pixels[GAP_PX + 10, GAP_PX + 10] == 10).all() and (pixels[GAP_PX + 10, GAP_PX + 55] == 10).all()
    assert tuple(pixels[GAP_PX, GAP_PX]) == COLOURS["false positive"]
    second = 2 * GAP_PX + 64
    assert (pixels[GAP_PX + 10, second + 10] == 200).all() and tuple(pixels[GAP_PX, second]) == COLOURS[
        "false negative"
    ]


def test_rows_wrap_and_an_empty_sheet_says_so(tmp_path: Path):
    write_sheet(tmp_path / "one.png", [tile(0, "false positive")], columns=2)
    write_sheet(tmp_path / "three.png", [tile(0, "false positive")] * 3, columns=2)
    one, three = (Image.open(tmp_path / name).size for name in ("one.png", "three.png"))
    assert three[1] == 2 * one[1] - GAP_PX
    write_sheet(tmp_path / "none.png", [])
    assert Image.open(tmp_path / "none.png").size == (320, 40)
