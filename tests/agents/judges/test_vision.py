"""Rewards of pictures, by hand."""

import pytest

from agents.judges.vision import boxes_reward, class_reward, overlap


def test_overlap() -> None:
    assert overlap((0, 0, 2, 2), (1, 1, 3, 3)) == pytest.approx(1 / 7)
    assert overlap((0, 0, 1, 1), (2, 2, 3, 3)) == 0.0
    assert overlap((0, 0, 0, 0), (0, 0, 0, 0)) == 0.0


def test_each_box_is_matched_once_and_extra_boxes_cost() -> None:
    box, other = (0.0, 0.0, 1.0, 1.0), (5.0, 5.0, 6.0, 6.0)
    assert boxes_reward([box, other], [other, box]) == 1.0
    assert boxes_reward([box, box], [box]) == 0.5
    assert boxes_reward([box], [box, other]) == 0.5
    assert boxes_reward([], []) == 0.0


def test_class_reward() -> None:
    assert class_reward("<think>dark</think> <answer> Cup</answer>", "cup", thinking=True) == 2.0
    assert class_reward("<think>dark</think><answer>arm</answer>", "cup", thinking=True) == 1.0
    assert class_reward("cup", "cup", thinking=True) == 0.0
    assert class_reward("cup", "cup", thinking=False) == 1.0
    assert class_reward("Cup", "cup", thinking=False) == 0.0
