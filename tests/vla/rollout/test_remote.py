"""A served policy stands in for itself: through our server, and through a stub that speaks openpi's protocol."""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
from openpi_client import msgpack_numpy
from websockets.sync.server import ServerConnection, serve

from sim.fake import FAKE, FakeEnv
from vla.core.errors import CorruptFileError, GrasplineError, NonFiniteError, SpecMismatchError
from vla.core.protocols import Policy
from vla.core.types import ActionChunk, Observation
from vla.rollout.baselines import RandomPolicy, ZeroPolicy
from vla.rollout.executor import RecedingHorizon
from vla.rollout.openpi import Fields
from vla.rollout.remote import RemotePolicy
from vla.rollout.runner import EpisodePlan, run_episode

OBSERVATION = FAKE.random(np.random.default_rng(0))


@contextmanager
def openpi_server(infer: Callable[[dict], Any], greeting: Any = None) -> Iterator[str]:
    """A stub that behaves as openpi's own server: greets, answers maps, sends a traceback as text and hangs up."""

    def talk(connection: ServerConnection) -> None:
        connection.send(msgpack_numpy.packb({"reset_pose": [0.0, 0.5]}) if greeting is None else greeting)
        for message in connection:
            try:
                answer = infer(msgpack_numpy.unpackb(message))
            except Exception as error:  # noqa: BLE001  as openpi's server does
                connection.send(f"Traceback (most recent call last):\n  ...\n{type(error).__name__}: {error}\n")
                connection.close(1011)
                return
            connection.send(answer if isinstance(answer, bytes | str) else msgpack_numpy.packb(answer))

    with serve(talk, "127.0.0.1", 0, compression=None, max_size=None) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"ws://127.0.0.1:{server.socket.getsockname()[1]}"
        finally:
            server.shutdown()
            thread.join(20)


class Sighted(RandomPolicy):
    """Its actions depend on pixels, state, instruction and seed."""

    cameras = ("wrist",)

    def act(self, observations, seeds):
        def mixed(observation: Observation, seed: int) -> int:
            assert set(observation.images) == {"wrist"}
            return seed + int(observation.images["wrist"].sum()) + hash(observation.state_S.tobytes()) % 1000

        return super().act(observations, [mixed(each, seed) for each, seed in zip(observations, seeds)])


def outcome(policy: Policy, row: EpisodePlan) -> tuple:
    result = run_episode(FakeEnv(horizon=24), policy, row, RecedingHorizon(4))
    return result.success, result.steps, result.error


def rollout(policy: Policy) -> np.ndarray:
    """States (T, S) of an episode driven by the policy, chunk by chunk."""
    env, states = FakeEnv(), []
    env.reset("reach_red", 0, 0)
    for seed in range(4):
        [chunk] = policy.act([env.observe()], [seed])
        assert chunk.dt_s == FAKE.dt_s
        for action_A in chunk.actions_HA:
            env.step(action_A)
            states.append(env.observe(()).state_S)
    return np.array(states)


def test_an_episode_is_the_same_here_and_there(serving: Callable) -> None:
    local = Sighted(spec=FAKE, horizon=5)

    class Bare(Sighted):
        """Sees what a remote one is sent: its cameras, no simulator truth."""

        def act(self, observations, seeds):
            bare = [
                Observation(images={"wrist": o.images["wrist"]}, state_S=o.state_S, instruction="", time_s=o.time_s)
                for o in observations
            ]
            return super().act(bare, seeds)

    with serving(local) as server, RemotePolicy(server.url, spec=FAKE) as remote:
        assert remote.native and remote.spec == FAKE
        assert (remote.horizon, remote.cameras) == (5, ("wrist",))
        np.testing.assert_array_equal(rollout(remote), rollout(Bare(spec=FAKE, horizon=5)))
        row = EpisodePlan("reach_green", 1, 3)
        assert outcome(remote, row) == outcome(Bare(spec=FAKE, horizon=5), row)
        [first, second] = remote.act([OBSERVATION, OBSERVATION], [1, 2])
        assert (first.actions_HA != second.actions_HA).any() and first.start_s == OBSERVATION.time_s
        with RemotePolicy(server.url, horizon=2) as short:
            np.testing.assert_array_equal(short.act([OBSERVATION], [1])[0].actions_HA, first.actions_HA[:2])
        with pytest.raises(GrasplineError, match="chunks of 5 actions"):
            RemotePolicy(server.url, horizon=6)


def test_any_openpi_server_can_be_evaluated() -> None:
    rng = np.random.default_rng(1)
    requests: list[dict] = []

    def infer(request: dict) -> dict:
        requests.append(request)
        return {"actions": np.clip(rng.standard_normal((10, 7)), -1, 1), "policy_timing": {"infer_ms": 1.5}}

    with openpi_server(infer) as url, RemotePolicy(url, spec=FAKE) as remote:
        assert (remote.native, remote.horizon, remote.cameras) == (False, 10, FAKE.camera_names)
        success, steps, error = outcome(remote, EpisodePlan("reach_red", 0, 0))
        assert error is None and (success or steps == 24)
    seen = FakeEnv()
    seen.reset("reach_red", 0, 0)
    first = seen.observe()
    asked = requests[1]  # the one before it found out the horizon
    assert set(asked) == {"observation/image", "observation/wrist_image", "observation/state", "prompt"}
    assert asked["prompt"] == first.instruction
    np.testing.assert_array_equal(asked["observation/image"], first.images["agentview"])
    np.testing.assert_array_equal(asked["observation/state"], first.state_S)


def test_other_robots_names_and_cameras() -> None:
    asked: list[dict] = []

    def infer(request: dict) -> dict:
        asked.append(request)
        return {"actions": np.zeros((4, 7), np.float32)}

    fields = Fields(images={"wrist": "images.cam_wrist"}, state="state")
    with openpi_server(infer) as url:
        with RemotePolicy(url, spec=FAKE, cameras=("wrist",), horizon=3, fields=fields) as remote:
            assert remote.act([OBSERVATION], [0])[0].actions_HA.shape == (3, 7)
        assert set(asked[0]) == {"images", "state", "prompt"} and set(asked[0]["images"]) == {"cam_wrist"}
        with (
            RemotePolicy(url, spec=FAKE, horizon=3, fields=fields) as remote,
            pytest.raises(GrasplineError, match="no name for the cameras"),
        ):
            remote.act([OBSERVATION], [0])


@pytest.mark.parametrize(
    ("answer", "error", "words"),
    [
        ({"actions": np.full((4, 7), np.nan)}, NonFiniteError, "not finite"),
        ({"actions": np.zeros((4, 6))}, SpecMismatchError, r"\(4, 6\)"),
        ({"actions": np.zeros((2, 7))}, SpecMismatchError, "2 actions, expected 4"),
        ({"actoins": np.zeros((4, 7))}, CorruptFileError, "actions"),
        (b"\xc1", CorruptFileError, "msgpack"),
        (KeyError("observation/image"), GrasplineError, "the server said: KeyError: 'observation/image'$"),
    ],
)
def test_a_wrong_answer_is_told_and_the_next_one_heard(answer: Any, error: type, words: str) -> None:
    answers = iter([answer, {"actions": np.zeros((4, 7))}])

    def infer(request: dict) -> Any:
        if isinstance(each := next(answers), Exception):
            raise each
        return each

    with openpi_server(infer) as url, RemotePolicy(url, spec=FAKE, horizon=4) as remote:
        with pytest.raises(error, match=words):
            remote.act([OBSERVATION], [0])
        assert remote.act([OBSERVATION], [0])[0].actions_HA.shape == (4, 7)


def test_an_answer_that_comes_too_late_is_not_taken_for_the_next() -> None:
    delays_s = iter([1.5, 0.0])

    def infer(request: dict) -> dict:
        time.sleep(next(delays_s))
        return {"actions": np.full((1, 7), float(request["prompt"]))}

    def numbered(number: int) -> Observation:
        return Observation(images=OBSERVATION.images, state_S=OBSERVATION.state_S, instruction=str(number), time_s=0.0)

    with openpi_server(infer) as url, RemotePolicy(url, spec=FAKE, horizon=1, timeout_s=1.0) as remote:
        with pytest.raises(GrasplineError, match="no answer within 1 s"):
            remote.act([numbered(1)], [0])
        assert remote.act([numbered(2)], [0])[0].actions_HA[0, 0] == 2


def test_a_restarted_server_is_found_again_if_it_serves_the_same(serving: Callable) -> None:
    with serving(ZeroPolicy(spec=FAKE)) as server:
        port = int(server.url.rpartition(":")[2])
        remote = RemotePolicy(server.url)
        assert remote.act([OBSERVATION], [0])[0].actions_HA.shape == (8, 7)
    with serving(ZeroPolicy(spec=FAKE), port=port):
        assert remote.act([OBSERVATION], [0])[0].actions_HA.shape == (8, 7)
    with serving(ZeroPolicy(spec=FAKE, horizon=3), port=port), pytest.raises(SpecMismatchError, match="another policy"):
        remote.act([OBSERVATION], [0])
    with pytest.raises(GrasplineError, match="cannot connect"):
        remote.act([OBSERVATION], [0])


def test_what_our_server_refuses_is_one_line(serving: Callable) -> None:
    class Broken(ZeroPolicy):
        def act(self, observations, seeds) -> list[ActionChunk]:
            raise ZeroDivisionError("no")

    with serving(Broken(spec=FAKE), token="sesame") as server:
        with RemotePolicy(server.url, token="sesame") as remote:
            with pytest.raises(GrasplineError, match="the server said: policy_error: ZeroDivisionError: no"):
                remote.act([OBSERVATION], [0])
            with pytest.raises(SpecMismatchError):
                remote.act([Observation(images={}, state_S=np.zeros(2, np.float32), instruction="", time_s=0.0)], [0])
            with pytest.raises(ValueError, match="seeds"):
                remote.act([OBSERVATION], [])
        with pytest.raises(GrasplineError, match="refused with 401: a token is needed"):
            RemotePolicy(server.url)


def test_what_cannot_be_connected_to() -> None:
    with pytest.raises(GrasplineError, match="expected ws://"):
        RemotePolicy("http://127.0.0.1:1")
    with pytest.raises(GrasplineError, match="cannot connect"):
        RemotePolicy("ws://127.0.0.1:1")
    with openpi_server(lambda _: {}) as url, pytest.raises(GrasplineError, match="give spec"):
        RemotePolicy(url)
    for greeting in ("hello", b"\xc1", msgpack_numpy.packb({"graspline": 99}), msgpack_numpy.packb({"graspline": 1})):
        with openpi_server(lambda _: {}, greeting) as url, pytest.raises(GrasplineError, match="neither graspline nor"):
            RemotePolicy(url, spec=FAKE)
