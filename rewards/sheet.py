"""A contact sheet: the pictures on which a judge was wrong, side by side, so that a person sees why."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image as Pictures
from PIL import ImageDraw

from vla.core.types import Image

CAPTION_PX, GAP_PX = 26, 6
COLOURS = {"false positive": (200, 60, 40), "false negative": (40, 90, 200)}


@dataclass(frozen=True, kw_only=True, eq=False)
class Tile:
    """One mistake: the cameras' pictures of a frame, a kind of `COLOURS`, and up to two lines of caption."""

    images: Sequence[Image]
    kind: str
    caption: str


def write_sheet(path: Path, tiles: Sequence[Tile], *, columns: int = 4) -> None:
    """A PNG with the tiles in rows; one that says so where there are none."""
    if not tiles:
        sheet = Pictures.new("RGB", (320, 40), "white")
        ImageDraw.Draw(sheet).text((10, 12), "no episode was judged wrongly", fill="black")
        sheet.save(path)
        return
    drawn = [_draw(tile) for tile in tiles]
    width, height = max(each.width for each in drawn), max(each.height for each in drawn)
    rows = -(-len(drawn) // columns)
    size = (min(columns, len(drawn)) * (width + GAP_PX) + GAP_PX, rows * (height + GAP_PX) + GAP_PX)
    sheet = Pictures.new("RGB", size, "white")
    for number, each in enumerate(drawn):
        row, column = divmod(number, columns)
        sheet.paste(each, (GAP_PX + column * (width + GAP_PX), GAP_PX + row * (height + GAP_PX)))
    sheet.save(path)


def _draw(tile: Tile) -> Pictures.Image:
    picture = Pictures.fromarray(np.concatenate(list(tile.images), axis=1))
    drawn = Pictures.new("RGB", (picture.width + 4, picture.height + 4 + CAPTION_PX), COLOURS[tile.kind])
    drawn.paste(picture, (2, 2))
    ImageDraw.Draw(drawn).multiline_text((4, picture.height + 4), tile.caption, fill="white", font_size=10, spacing=1)
    return drawn
