"""What a picture's answer is worth: class, boxes, format (CLS-RL, arXiv 2503.16188; Visual-RFT, arXiv 2503.01785)."""

import re
from collections.abc import Sequence

Box = tuple[float, float, float, float]

_ANSWER = re.compile(r"<think>.*</think>\s*<answer>(.*)</answer>", re.DOTALL)


def class_reward(text: str, label: str, *, thinking: bool) -> float:
    """1 where the class is right. With thinking it stands in an answer tag, any case, and the format counts 1 more;
    without, the text is the class and nothing else.
    """
    if not thinking:
        return float(text == label)
    found = _ANSWER.fullmatch(text.strip())
    if found is None:
        return 0.0
    return 1.0 + float(found.group(1).strip().casefold() == label.casefold())


def overlap(first: Box, second: Box) -> float:
    """Intersection over union of two boxes (left, top, right, bottom), any unit."""
    wide = min(first[2], second[2]) - max(first[0], second[0])
    high = min(first[3], second[3]) - max(first[1], second[1])
    shared = max(wide, 0.0) * max(high, 0.0)
    both = _area(first) + _area(second) - shared
    return shared / both if both > 0 else 0.0


def boxes_reward(said: Sequence[Box], right: Sequence[Box]) -> float:
    """Sum of overlaps, each right box matched once and the best pairs first, over the larger number of boxes."""
    scored = [(overlap(one, two), i, j) for i, one in enumerate(said) for j, two in enumerate(right)]
    total, used_said, used_right = 0.0, set[int](), set[int]()
    for score, i, j in sorted(scored, key=lambda each: -each[0]):
        if i not in used_said and j not in used_right:
            total += score
            used_said.add(i)
            used_right.add(j)
    return total / max(len(said), len(right), 1)


def _area(box: Box) -> float:
    return max(box[2] - box[0], 0.0) * max(box[3] - box[1], 0.0)
