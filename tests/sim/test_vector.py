"""EnvPool: chunks, failures of workers, and nobody left behind."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np
import psutil
import pytest

from sim.fake import FAKE, FakeEnv, FaultyEnv
from sim.vector import MAX_DEATHS, EnvPool, Reply
from vla.core.errors import GrasplineError, MissingAssetError, UnknownNameError
from vla.core.types import Observation

ROOT = Path(__file__).resolve().parents[2]


FAULTS = {13: "raise", 9: "kill", 40: "missing", 7: "hang"}


class CountingEnv(FakeEnv):
    """Counts what it draws."""

    drawn = 0

    def observe(self, cameras: Sequence[str] | None = None) -> Observation:
        CountingEnv.drawn += len(FAKE.cameras if cameras is None else cameras)
        return super().observe(cameras)


def chunk(steps: int = 8) -> np.ndarray:
    return np.zeros((steps, 7), np.float32)


def gather(pool: EnvPool, count: int) -> dict[int, Reply]:
    replies: dict[int, Reply] = {}
    while len(replies) < count:
        replies.update({reply.slot: reply for reply in pool.wait()})
    return replies


@pytest.mark.parametrize("workers", [0, 2])
def test_a_chunk_is_one_message(workers: int) -> None:
    with EnvPool(FakeEnv, num_slots=3, num_workers=workers) as pool:
        for slot in range(3):
            pool.reset(slot, "reach_red", slot, 0, ("wrist",))
        first = gather(pool, 3)
        env = FakeEnv()
        for slot, reply in first.items():
            env.reset("reach_red", slot, 0)
            assert reply.step is None and reply.steps == 0 and reply.observation is not None
            np.testing.assert_array_equal(reply.observation.images["wrist"], env.observe().images["wrist"])
            assert set(reply.observation.images) == {"wrist"}
            assert reply.observation.privileged == {}, "simulator truth must not reach a policy"
        pool.play(1, chunk(8), ())
        [reply] = pool.wait()
        assert (reply.slot, reply.steps) == (1, 8)
        assert reply.observation is not None and reply.observation.time_s == pytest.approx(8 / 20)
        pool.play(1, chunk(50), ("agentview",))
        [reply] = pool.wait()
        assert reply.steps == 32 and reply.step is not None and reply.step.truncated
        assert reply.observation is None, "nothing is rendered after the end"


def test_cameras_are_drawn_once_per_chunk_and_not_after_the_end() -> None:
    CountingEnv.drawn = 0
    with EnvPool(CountingEnv, num_slots=1, num_workers=0) as pool:
        pool.reset(0, "reach_red", 0, 0, ("wrist",))
        pool.wait()
        for _ in range(5):
            pool.play(0, chunk(8), ("wrist",))
            pool.wait()
    assert CountingEnv.drawn == 5  # the reset and four of the five chunks: forty steps end the episode


def test_workers_are_single_threaded() -> None:
    before = os.environ.get("OMP_NUM_THREADS")
    with EnvPool(FakeEnv, num_slots=2, num_workers=5) as pool:
        assert len(pool.pids) == 2 and os.getpid() not in pool.pids
        for slot in range(2):
            pool.call(slot, partial(os.getenv, "OMP_NUM_THREADS"))
        assert {reply.value for reply in gather(pool, 2).values()} == {"1"}
    assert os.environ.get("OMP_NUM_THREADS") == before


@pytest.mark.parametrize("workers", [0, 2])
def test_an_exception_costs_one_episode(workers: int) -> None:
    with EnvPool(partial(FaultyEnv, faults=FAULTS), num_slots=3, num_workers=workers) as pool:
        for slot, state in enumerate([13, 1, 2]):
            pool.reset(slot, "reach_red", state, 0, ())
        gather(pool, 3)
        for slot in range(3):
            pool.play(slot, chunk(), ())
        replies = gather(pool, 3)
        assert replies[0].error is not None
        assert replies[0].error.startswith("RuntimeError: the physics exploded (fake.py:")
        assert replies[1].error is None and replies[2].steps == 8
        pool.reset(0, "reach_red", 3, 0, ())
        assert pool.wait()[0].error is None, "the slot goes on with a fresh env"


def test_a_nan_action_costs_one_episode() -> None:
    with EnvPool(FakeEnv, num_slots=1, num_workers=0) as pool:
        pool.reset(0, "reach_red", 0, 0, ())
        pool.wait()
        pool.play(0, np.full((1, 7), np.nan, np.float32), ())
        [reply] = pool.wait()
        assert reply.error is not None and "NonFiniteError" in reply.error


def test_a_killed_worker_costs_its_own_episodes() -> None:
    with EnvPool(partial(FaultyEnv, faults=FAULTS), num_slots=4, num_workers=2) as pool:
        for slot, state in enumerate([9, 1, 2, 3]):
            pool.reset(slot, "reach_red", state, 0, ())
        gather(pool, 4)
        pids = pool.pids
        for slot in (0, 1, 3):  # slot 2 shares the worker of slot 0 and is in mid-episode, though idle
            pool.play(slot, chunk(), ())
        replies = gather(pool, 4)
        assert "SIGKILL" in (replies[0].error or "") and "SIGKILL" in (replies[2].error or "")
        assert replies[1].steps == 8 and replies[3].steps == 8
        assert pool.pids[0] != pids[0] and pool.pids[1] == pids[1]
        pool.reset(0, "reach_red", 0, 1, ())
        pool.play(1, chunk(), ())
        assert all(reply.error is None for reply in gather(pool, 2).values())


def test_a_worker_that_dies_from_outside_while_idle_is_replaced() -> None:
    with EnvPool(FakeEnv, num_slots=1, num_workers=1) as pool:
        pool.reset(0, "reach_red", 0, 0, ())
        pool.wait()
        os.kill(pool.pids[0], signal.SIGKILL)
        while psutil.Process(pool.pids[0]).status() != psutil.STATUS_ZOMBIE:
            time.sleep(0.01)
        pool.play(0, chunk(), ())
        assert "SIGKILL" in (pool.wait()[0].error or "")
        pool.reset(0, "reach_red", 0, 0, ())
        assert pool.wait()[0].error is None


def test_dying_without_end_is_given_up() -> None:
    with EnvPool(partial(os._exit, 3), num_slots=1, num_workers=1) as pool:
        for _ in range(MAX_DEATHS):
            pool.reset(0, "reach_red", 0, 0, ())
            assert "exit status 3" in (pool.wait()[0].error or "")
        pool.reset(0, "reach_red", 0, 0, ())
        with pytest.raises(GrasplineError, match="in a row"):
            pool.wait()


@pytest.mark.parametrize("workers", [0, 1])
def test_what_the_user_must_mend_arrives_as_the_same_error(workers: int) -> None:
    with EnvPool(partial(FaultyEnv, faults=FAULTS), num_slots=1, num_workers=workers) as pool:
        pool.reset(0, "reach_red", 40, 0, ())
        with pytest.raises(MissingAssetError, match="no OpenGL: install libegl1"):
            pool.wait()
    with EnvPool(partial(FaultyEnv, faults=FAULTS), num_slots=1, num_workers=workers) as pool:
        pool.reset(0, "reach_rod", 0, 0, ())
        with pytest.raises(UnknownNameError, match="Did you mean 'reach_red'"):
            pool.wait()


def test_misuse_is_refused() -> None:
    with pytest.raises(ValueError, match="num_slots"):
        EnvPool(FakeEnv, num_slots=0, num_workers=0)
    with EnvPool(FakeEnv, num_slots=1, num_workers=0) as pool:
        with pytest.raises(ValueError, match="nothing to wait for"):
            pool.wait()
        pool.reset(0, "reach_red", 0, 0, ())
        with pytest.raises(ValueError, match="has not answered"):
            pool.play(0, chunk(), ())
        with pytest.raises(ValueError, match=r"0\.\.0"):
            pool.reset(1, "reach_red", 0, 0, ())


def test_close_leaves_nobody_even_in_mid_chunk() -> None:
    pool = EnvPool(partial(FaultyEnv, faults=FAULTS), num_slots=2, num_workers=2)
    pids = pool.pids
    pool.reset(0, "reach_red", 7, 0, ())
    pool.wait()
    pool.play(0, chunk(), ())
    pool.close()
    pool.close()
    assert not any(psutil.pid_exists(pid) for pid in pids)


PARENT = """
from functools import partial
import numpy as np
from sim.fake import FaultyEnv
from sim.vector import EnvPool
if __name__ == "__main__":
    with EnvPool(partial(FaultyEnv, faults={7: "hang"}), num_slots=2, num_workers=2) as pool:
        pool.reset(0, "reach_red", 7, 0, ())
        pool.wait()
        pool.play(0, np.zeros((8, 7), np.float32), ())
        print(*pool.pids, flush=True)
        while True:
            pool.wait()
"""


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGKILL])
def test_workers_end_with_their_parent(how: signal.Signals, tmp_path: Path) -> None:
    (tmp_path / "parent.py").write_text(PARENT)
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    parent = subprocess.Popen(
        [sys.executable, tmp_path / "parent.py"], env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert parent.stdout is not None
    workers = [psutil.Process(int(pid)) for pid in parent.stdout.readline().split()]
    assert len(workers) == 2
    parent.send_signal(how)
    parent.wait(timeout=20)
    _, alive = psutil.wait_procs(workers, timeout=20)
    assert not [worker for worker in alive if worker.status() != psutil.STATUS_ZOMBIE]
