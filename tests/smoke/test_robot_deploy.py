"""`deploy` as a user runs it: a policy behind a real socket, the twin behind a pseudo-terminal, in real time."""

import asyncio
import threading
from collections.abc import Iterator, Sequence

import numpy as np
import pytest
from omegaconf import OmegaConf

from real_robot.cameras.frames import CameraSpec
from real_robot.core.arms import so101_spec
from real_robot.preflight import PreflightError
from real_robot.record.recorder import Driver, embodiment_of
from scripts.entry import compose
from scripts.robot import VERBS
from scripts.robot_cell import camera_specs
from scripts.robot_deploy import training_of
from vla.core.errors import GrasplineError, UnknownNameError
from vla.core.types import ActionChunk, Observation
from vla.data.lerobot import LeRobotSource
from vla.rollout.server import PolicyServer

FRONT = CameraSpec(name="front", serial="pattern", height=48, width=64, rate_hz=30.0)
CAMERAS = "cameras={front:{serial:pattern,height:48,width:64}}"
GOAL = np.float32([0.3, -0.2, 0.2, 0.1, 0.1, 0.4])


class Reach:
    """Goes to `GOAL` at 0.5 rad/s."""

    spec = embodiment_of(so101_spec(), [FRONT], 30.0)
    horizon, cameras = 30, ("front",)

    def __init__(self) -> None:
        self.seen: list[Observation] = []

    def act(self, observations: Sequence[Observation], seeds: Sequence[int]) -> list[ActionChunk]:
        chunks = []
        for observation in observations:
            self.seen.append(observation)
            away_J = GOAL - observation.state_S
            share_H = np.minimum(0.5 / 30.0 * np.arange(1, 31) / max(np.abs(away_J).max(), 1e-6), 1.0)
            actions_HA = observation.state_S + share_H[:, None].astype(np.float32) * away_J
            chunks.append(ActionChunk(actions_HA=actions_HA, start_s=observation.time_s, dt_s=1 / 30.0))
        return chunks


@pytest.fixture
def served() -> Iterator[tuple[Reach, str]]:
    policy, loop, over = Reach(), asyncio.new_event_loop(), asyncio.Event()
    server, ready = PolicyServer(policy, port=0), threading.Event()

    async def main() -> None:
        async with server:
            ready.set()
            await over.wait()

    thread = threading.Thread(target=loop.run_until_complete, args=(main(),))
    thread.start()
    assert ready.wait(10.0)
    yield policy, server.url
    loop.call_soon_threadsafe(over.set)
    thread.join(10.0)


def deploy(*overrides: str) -> None:
    VERBS["deploy"](compose("robot", ["dry_run=true", "confirm=false", "task=reach", "scene=none", *overrides]))


@pytest.mark.slow
def test_a_dry_run_plays_a_served_policy_and_keeps_what_it_did(served, tmp_path, capsys) -> None:
    policy, url = served
    deploy(f"policy={url}", CAMERAS, "episodes=1", "seconds=2", f"out={tmp_path / 'data'}")
    said = capsys.readouterr().out
    for name in ("task", "dimensions", "units", "bounds", "rate", "camera front", "state", "first action", "latency"):
        assert f"\n{name} " in f"\n{said}", name
    assert "reduced: 250 mm/s" in said and "episode 0: time after 2.0 s" in said, said
    assert {observation.instruction for observation in policy.seen} == {"reach"}
    episode = LeRobotSource(tmp_path / "data")[0]
    first, last = (np.abs(episode.actions_TA[t] - GOAL).max() for t in (0, -1))
    assert last < 0.6 * first, "at reduced speed it is on its way"
    assert (episode.columns["source"] == Driver.POLICY).all() and episode.meta["policy"] == url


@pytest.mark.slow
def test_what_does_not_fit_is_refused_before_there_is_torque(served, capsys) -> None:
    _, url = served
    with pytest.raises(PreflightError, match=r"camera front .*there are \['wrist'\]"):
        deploy(f"policy={url}", "cameras={wrist:{serial:pattern,height:48,width:64}}", "episodes=1")
    with pytest.raises(PreflightError, match="48x64"):
        deploy(f"policy={url}", "cameras={front:pattern}", "episodes=1")
    assert "the torque comes on" not in capsys.readouterr().out


def test_mistakes(tmp_path) -> None:
    for overrides, said in (
        ([], "policy="),
        (["policy=outputs/nothing_here"], "an existing run directory"),
        (["policy=ws://127.0.0.1:9", CAMERAS], "cannot connect"),
        (["policy=ws://127.0.0.1:9", "speed=fast"], "speed"),
        ([f"policy={tmp_path}", CAMERAS], "server did not start"),
    ):
        with pytest.raises(GrasplineError, match=said):
            deploy(*overrides)
    with pytest.raises(UnknownNameError, match="key of camera 'front'"):
        camera_specs(OmegaConf.create({"front": {"serial": "pattern", "hight": 48}}))
    with pytest.raises(GrasplineError, match="serial= names"):
        camera_specs(OmegaConf.create({"front": {"height": 48}}))


def test_training_is_known_from_the_run_or_from_its_dataset(tmp_path) -> None:
    assert training_of(None, "ws://127.0.0.1:8000") is None
    (tmp_path / "policy.json").write_text(
        '{"transforms": {"state": {"statistics": {"min": [-1.0, 0.0], "max": [1.0, 2.0]}}}}'
    )
    training = training_of(None, str(tmp_path))
    assert training is not None and training.high_S.tolist() == [1.0, 2.0] and training.pictures == {}
    (tmp_path / "policy.json").write_text("{}")
    with pytest.raises(GrasplineError, match=r"policy\.json"):
        training_of(None, str(tmp_path))
