"""The judges of the comparison: fair to a driver that does well, and right about lerobot's."""

import time

import pytest

pytest.importorskip("scservo_sdk")
lerobot_peer = pytest.importorskip("real_robot.conformance.lerobot_peer")


def test_a_goal_inside_the_limits_is_no_failure() -> None:
    with lerobot_peer.peer() as one:
        one.connect()
        one.send(20.0)
        assert "raw goal" in lerobot_peer._in_range(one)
        time.sleep(0.3)
        assert abs(one.positions()["shoulder_pan.pos"] - 20.0) < 3.0


@pytest.mark.parametrize("number", [10, 18, 25])
def test_what_lerobot_does(number: int) -> None:
    """If one of these passes one day, lerobot has mended it: publish the table again."""
    passed, detail = lerobot_peer.run_peer(number)
    assert not passed, detail
