"""Verb of `scripts.robot` that lets a policy drive: deploy.

A run directory is served by a process of its own, so that no network computes in the process that owns the arm; a
ws:// address is asked as it is. dry_run=true plays on a twin and touches no arm.
"""

import contextlib
import json
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
from omegaconf import DictConfig, open_dict

from real_robot.daemon import Daemon
from real_robot.deploy import Played, deploy, play_episode
from real_robot.playing import Playing
from real_robot.preflight import Line, Training, preflight
from real_robot.record.recorder import Driver, Recorder, RecordingError, embodiment_of
from scripts.robot_cell import ARM, TWIN, Cell, cell, confirmation, connected
from scripts.robot_staging import Staging
from vla.core.errors import CorruptFileError, GrasplineError, unknown_name
from vla.core.protocols import Policy
from vla.data.lerobot import LeRobotSource
from vla.rollout.remote import RemotePolicy

SPEEDS = ("reduced", "normal")


def deploy_policy(config: DictConfig) -> None:
    """Plays `episodes=` of `policy=` for `task=`, after a pre-flight; with `out=` they become a dataset."""
    if config.policy is None:
        raise GrasplineError("policy=: name a run directory or ws://host:port")
    if config.speed not in SPEEDS:
        raise unknown_name("speed", str(config.speed), SPEEDS)
    if config.dry_run:
        config = config.copy()
        with open_dict(config):
            config.port = TWIN
    playing = Playing(execute=config.execute, wait=config.wait)
    training = training_of(config.dataset, str(config.policy))
    with (
        policy_named(str(config.policy), config.token_file) as policy,
        cell(config) as one,
        _recorded(config, one) as keep,
    ):
        cameras, task = one.cameras, str(config.task)
        meta = {"calibration": one.calibration.sha256, "policy": str(config.policy)}
        recorder = Recorder(arm=ARM, cameras=tuple(cameras), rate_hz=config.rate_hz, meta=meta)
        recorder.driver = Driver.POLICY

        @contextlib.contextmanager
        def opened(normal_speed: bool) -> Iterator[Daemon]:
            with connected(one, normal_speed=normal_speed) as daemon:
                daemon.subscribe(recorder.tick)
                yield daemon

        def check(daemon: Daemon) -> list[Line]:
            return preflight(daemon, ARM, policy, task=task, cameras=cameras, playing=playing, training=training)

        def play(daemon: Daemon, number: int) -> Played:
            recorder.start(task)
            played = play_episode(
                daemon,
                ARM,
                policy,
                task=task,
                cameras=cameras,
                playing=playing,
                seconds=config.seconds,
                seed=config.seed + number,
                align=config.align,
                recorder=recorder,
            )
            keep(recorder)
            return played

        normal = config.speed == "normal"
        wait = confirmation(config)
        played = deploy(opened, check, play, episodes=config.episodes, normal_speed=normal, wait=wait, say=_say)
    if played and played[-1].ended not in ("time", "done"):
        raise GrasplineError(f"stopped in episode {len(played) - 1}: {played[-1].ended}")


@contextlib.contextmanager
def _recorded(config: DictConfig, one: Cell) -> Iterator[Callable[[Recorder], None]]:
    """What becomes of an episode: a dataset at `out=`, or nothing. Nobody has said whether it was a success."""
    if config.out is None:
        yield Recorder.discard
        return
    staging = Staging(Path(config.out))
    with staging.writing() as writer:

        def keep(recorder: Recorder) -> None:
            try:
                writer.put(recorder.finish(success=False, truncated=True))
            except RecordingError as error:
                _say(f"not recorded: {error}")

        yield keep
    specs = [camera.spec for camera in one.cameras.values()]
    _say(f"{staging.publish(embodiment_of(one.build().spec, specs, config.rate_hz))} episodes in {staging.out}")


def _say(words: str) -> None:
    print(words, flush=True)


@contextlib.contextmanager
def policy_named(name: str, token_file: str | None = None) -> Iterator[Policy]:
    """The policy behind an address, or of a run directory in a process of its own."""
    if name.startswith(("ws://", "wss://")):
        token = None if token_file is None else Path(token_file).read_text().strip()
        with RemotePolicy(name, token=token) as policy:
            yield policy
        return
    if not Path(name).is_dir():
        raise unknown_name("policy", name, ["ws://<host>:<port>", "<an existing run directory>"])
    command = [sys.executable, "-W", "ignore", "-m", "scripts.serve", f"policy={name}", "port=0"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, start_new_session=True)  # Ctrl-C is ours
    try:
        assert process.stdout is not None
        said = process.stdout.readline()
        url = next((word.rstrip(";") for word in said.split() if word.startswith("ws://")), None)
        if url is None:
            raise GrasplineError(f"policy={name}: its server did not start (its words are above)")
        with RemotePolicy(url) as policy:
            yield policy
    finally:
        process.send_signal(signal.SIGINT)
        try:
            process.wait(10.0)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def training_of(dataset: str | None, policy: str) -> Training | None:
    """What the training data looked like: from the dataset, or from the statistics that a run directory keeps."""
    if dataset is not None:
        source = LeRobotSource(Path(dataset))
        states_NS = source.columns().states_NS.astype(np.float64)
        pictures = {name: next(iter(source.frames(0, name))) for name in source.spec.camera_names}
        return Training(low_S=states_NS.min(axis=0), high_S=states_NS.max(axis=0), pictures=pictures)
    recipe = Path(policy) / "policy.json"
    if not recipe.is_file():
        return None
    try:
        seen = json.loads(recipe.read_text())["transforms"]["state"]["statistics"]
        return Training(low_S=np.array(seen["min"]), high_S=np.array(seen["max"]), pictures={})
    except (ValueError, KeyError, TypeError) as error:
        raise CorruptFileError(f"{recipe} cannot be read: {error!r}") from error


VERBS = {"deploy": deploy_policy}
