"""The door for chunks: a table of what is taken, clamped and refused."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from real_robot.core.admission import Admission, Refusal
from real_robot.core.arms import so101_spec
from real_robot.core.faults import FaultCode, Reaction
from real_robot.core.types import ArmSpec, Chunk


def chunk(seq: int = 1, **changed) -> Chunk:
    fields = {"session": "a", "seq": seq, "t_obs_s": 10.0, "dt_s": 0.05, "q_HN": np.zeros((8, 5))}
    return Chunk(**fields | changed)


@pytest.fixture
def door(spec: ArmSpec) -> Admission:
    door = Admission(spec)
    door.open("a", 9.0)
    return door


def with_one(value: float, *, dtype=np.float64) -> np.ndarray:
    q_HN = np.zeros((8, 5), dtype)
    q_HN[:, 0] = value
    return q_HN


@pytest.mark.parametrize(
    ("changed", "refusal"),
    [
        ({}, None),
        ({"q_HN": np.zeros((8, 5), np.float32), "gripper_H": np.zeros(8, np.float32)}, None),
        ({"session": "b"}, Refusal.SESSION),
        ({"t_obs_s": 8.99}, Refusal.TIME),
        ({"t_obs_s": 10.2}, Refusal.TIME),
        ({"t_obs_s": np.nan}, Refusal.TIME),
        ({"dt_s": 0.0}, Refusal.TIME),
        ({"dt_s": np.nan}, Refusal.TIME),
        ({"dt_s": 2.0}, Refusal.TIME),
        ({"q_HN": np.zeros((8, 6))}, Refusal.SHAPE),
        ({"q_HN": np.zeros((0, 5))}, Refusal.SHAPE),
        ({"q_HN": np.zeros(5)}, Refusal.SHAPE),
        ({"q_HN": np.zeros((1001, 5))}, Refusal.SHAPE),
        ({"q_HN": np.zeros((8, 5), np.int64)}, Refusal.SHAPE),
        ({"q_HN": np.zeros((8, 5), object)}, Refusal.SHAPE),
        ({"q_HN": [[0.0] * 5]}, Refusal.SHAPE),
        ({"gripper_H": np.zeros(7)}, Refusal.SHAPE),
        ({"q_HN": with_one(np.nan)}, Refusal.NON_FINITE),
        ({"gripper_H": np.full(8, np.inf)}, Refusal.NON_FINITE),
        ({"q_HN": with_one(1e30)}, Refusal.POSITION),
        ({"q_HN": with_one(1e30, dtype=np.float32)}, Refusal.POSITION),
        ({"q_HN": with_one(np.radians(400))}, Refusal.POSITION),
        ({"q_HN": with_one(5e-324)}, None),
        ({"q_HN": np.linspace(0, 0.28 * 7, 8)[:, None] * np.eye(5)[0]}, None),  # 5.6 rad/s of 3: clamped by the filter
        ({"q_HN": np.linspace(0, 0.32 * 7, 8)[:, None] * np.eye(5)[0] - 1.0}, Refusal.SPEED),
    ],
)
def test_table(door: Admission, changed: dict, refusal: Refusal | None) -> None:
    result = door.admit(chunk(**changed), 10.1, np.zeros(6))
    assert result.refusal == refusal and (result.chunk is None) == (refusal is not None)
    assert bool(result.detail) == (refusal is not None)
    assert door.counts["admitted"] == (refusal is None)


def test_a_little_too_far_is_clamped_and_counted(door: Admission, spec: ArmSpec) -> None:
    """Up to 10 % of the travel or 0.2 rad beyond the soft limit; beyond that the chunk is refused."""
    high, beyond = spec.high_J[0], max(0.2, 0.1 * (spec.high_J[0] - spec.low_J[0]))
    result = door.admit(chunk(q_HN=with_one(high + 0.99 * beyond)), 10.1, np.zeros(6))
    assert result.clamped == 8 and (result.chunk.q_HN[:, 0] == high).all()
    assert door.counts["clamped"] == 8
    refused = door.admit(chunk(2, q_HN=with_one(high + 1.01 * beyond)), 10.1, np.zeros(6))
    assert refused.refusal == Refusal.POSITION and "shoulder_pan" in refused.detail
    gripper = door.admit(chunk(3, gripper_H=np.full(8, spec.low_J[5] - 0.1)), 10.1, np.zeros(6))
    assert (gripper.chunk.gripper_H == spec.low_J[5]).all()


def test_replays_and_reordered_chunks_are_refused(door: Admission) -> None:
    refusals = [door.admit(chunk(seq), 10.1, np.zeros(6)).refusal for seq in (5, 5, 4, 6)]
    assert refusals == [None, Refusal.SEQUENCE, Refusal.SEQUENCE, None]
    door.open("a", 10.5)  # the same session after a break: numbers go on, pictures must be newer
    assert door.admit(chunk(6, t_obs_s=10.6), 10.7, np.zeros(6)).refusal == Refusal.SEQUENCE
    assert door.admit(chunk(7, t_obs_s=10.4), 10.7, np.zeros(6)).refusal == Refusal.TIME
    assert door.admit(chunk(7, t_obs_s=10.6), 10.7, np.zeros(6)).refusal is None
    door.open("b", 11.0)
    assert door.admit(chunk(1, session="b", t_obs_s=11.0), 11.1, np.zeros(6)).refusal is None
    door.open(None, 12.0)
    assert door.admit(chunk(9, session="b", t_obs_s=12.0), 12.1, np.zeros(6)).refusal == Refusal.SESSION


def test_three_chunks_of_nan_in_ten_seconds_are_a_fault(door: Admission) -> None:
    bad = {"q_HN": with_one(np.nan), "t_obs_s": 9.0}
    faults = [
        door.admit(chunk(seq, **bad), now_s, np.zeros(6)).fault for seq, now_s in enumerate([10, 15, 20.5, 25.2, 26])
    ]
    assert [f is not None for f in faults] == [False, False, False, False, True]
    assert faults[-1].code == FaultCode.BAD_CHUNKS and faults[-1].reaction == Reaction.LATCH


@settings(max_examples=300, deadline=None)
@given(
    hnp.arrays(
        st.sampled_from([np.float32, np.float64]),
        st.tuples(st.integers(0, 4), st.sampled_from([5, 5, 5, 4])),
        elements=st.one_of(st.floats(width=32), st.floats(-2, 2, width=32)),
    ),
    st.floats(),
    st.floats(),
)
def test_whatever_is_admitted_is_inside(q_HN: np.ndarray, dt_s: float, t_obs_s: float) -> None:
    spec = so101_spec()
    door = Admission(spec)
    door.open("a", 0.0)
    with np.errstate(all="ignore"):
        result = door.admit(chunk(q_HN=q_HN, dt_s=dt_s, t_obs_s=t_obs_s), 10.0, np.zeros(6))
    if result.chunk is not None:
        assert (result.chunk.q_HN <= spec.high_J[:5]).all() and (result.chunk.q_HN >= spec.low_J[:5]).all()
        assert 0 < result.chunk.dt_s <= 1 and 0 <= result.chunk.t_obs_s <= 10.02
