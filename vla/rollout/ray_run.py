"""A plan on a Ray cluster: actors that play rows with envs and a policy of their own. The one door to Ray.

Special: a Ray run is a `Run` made of `Run`s, and knows nothing of envs and policies. An actor or a node that dies, or
that shows no sign of life for `timeout_s`, is replaced, and its rows go to others (`shards`): no result changes.
"""

import math
import os
import time
import traceback
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from queue import Empty, SimpleQueue
from typing import Any, Self

from vla.core.errors import GrasplineError, MissingAssetError
from vla.core.protocols import Policy
from vla.core.types import ActionChunk, Observation
from vla.rollout.evaluate import Run
from vla.rollout.runner import EpisodePlan, EpisodeResult, OnResult
from vla.rollout.shards import Shards

type Alive = Callable[[], None]
type MakeRun = Callable[[Alive], Run]

START_S = 600.0  # for the first actor to be ready, a model to be read from a slow disk included
_NEWS_S = 0.5  # an actor says something this often
_OBJECT_STORE_BYTES = 100 * 2**20  # rows are small; Ray's own default is 30 % of the memory
_CARRIED = ("MUJOCO_GL", "HF_HUB_OFFLINE", "GRASPLINE_LIBERO_ASSETS")  # variables that actors on every node inherit
_SECRET = "GRASPLINE_TOKEN"  # carried as an argument: Ray shows an actor's variables to whoever asks


class RayRun:
    """Plays rows in Ray actors; a `Run`, for as long as it is not closed.

    A hung actor can be killed, whatever hangs in it: an env, the policy, a driver that holds Python's lock.

    Args:
        make_run: builds what plays rows in an actor, envs and policy included; picklable. It gets a function that must
            be called at least every `timeout_s` while rows are played: see `Watched`.
        actors: how many, each a process.
        slots: rows that an actor plays side by side; a shard is at most four times that.
        address: of a running cluster (`auto`: the one that this machine belongs to); None starts one here. A program
            that is connected already stays so.
        cpus, gpus: what each actor reserves; fractions share a device.
        timeout_s: an actor that stands still for so long [s] is killed.

    Raises:
        MissingAssetError: Ray is not installed.
        GrasplineError: no cluster answers, or none of its nodes can hold an actor.
    """

    def __init__(
        self,
        make_run: MakeRun,
        *,
        actors: int,
        slots: int,
        address: str | None = None,
        cpus: float = 1.0,
        gpus: float = 0.0,
        timeout_s: float = 300.0,
    ) -> None:
        if actors < 1 or slots < 1 or timeout_s <= 0:
            raise GrasplineError(f"ray.actors={actors}, batch={slots}, timeout_s={timeout_s}: all must be positive")
        self._ray, self._ours = _connect(address, num_cpus=math.ceil(actors * cpus))
        self._make_run, self._slots, self._timeout_s = make_run, slots, timeout_s
        variables = {name: os.environ[name] for name in _CARRIED if name in os.environ}
        variables["LP_NUM_THREADS"] = str(max(1, int(cpus)))  # Ray itself sets OMP_NUM_THREADS so
        self._remote = self._ray.remote(num_cpus=cpus, num_gpus=gpus, runtime_env={"env_vars": variables})(_Player)
        self._actors: list[_Actor | None] = [None] * actors
        self._check_room({"CPU": cpus, "GPU": gpus})

    def __call__(self, rows: Sequence[EpisodePlan], on_result: OnResult) -> None:
        """Plays the rows. Raises GrasplineError: that of an actor, or that actors never start or keep dying."""
        shards = Shards(rows, players=len(self._actors), largest=4 * self._slots)
        began = time.monotonic()
        while shards.left:
            owing = {actor.reply: number for number, actor in enumerate(self._staff(shards)) if actor.reply is not None}
            answered, _ = self._ray.wait(list(owing), num_returns=1, timeout=_NEWS_S)
            for reply in answered:
                self._read(owing[reply], shards, on_result)
            for number, actor in enumerate(self._actors):
                still_s = time.monotonic() - actor.moved if actor is not None and actor.ready else 0.0
                if still_s > self._timeout_s and shards.holds(number):
                    self._lose(number, f"no sign of life for {self._timeout_s:g} s", shards, on_result)
            if any(actor is not None and actor.ready for actor in self._actors):
                began = time.monotonic()
            elif time.monotonic() - began > START_S:
                raise GrasplineError(f"no Ray actor was ready within {START_S:g} s: {self._ray.available_resources()}")

    def close(self) -> None:
        """Ends the actors, and the cluster if it was started here; safe to call twice."""
        for actor in self._actors:
            if actor is not None:
                self._ray.kill(actor.handle)
        self._actors = [None] * len(self._actors)
        if self._ours:
            self._ray.shutdown()
            self._ours = False

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def _check_room(self, wanted: dict[str, float]) -> None:
        nodes = [node["Resources"] for node in self._ray.nodes() if node["Alive"]]
        if not any(all(node.get(name, 0.0) >= amount for name, amount in wanted.items()) for node in nodes):
            most = {name: max((node.get(name, 0.0) for node in nodes), default=0.0) for name in wanted}
            self.close()
            raise GrasplineError(f"ray.cpus, ray.gpus: an actor wants {wanted}, but the largest node has {most}")

    def _staff(self, shards: Shards) -> "list[_Actor]":
        """Everyone, with the dead replaced and something to do for who is idle."""
        staff = []
        for number, actor in enumerate(self._actors):
            if actor is None:
                handle = self._remote.remote(self._make_run, os.environ.get(_SECRET))
                actor = self._actors[number] = _Actor(handle, reply=handle.ready.remote(), moved=time.monotonic())
            if actor.reply is None and (shard := shards.take(number)):
                actor.handle.play.remote(shard)
                actor.reply, actor.moved = actor.handle.news.remote(), time.monotonic()
            staff.append(actor)
        return staff

    def _read(self, number: int, shards: Shards, on_result: OnResult) -> None:
        """Takes what an actor says; a row that it finished is handed on."""
        actor, errors = self._actors[number], self._ray.exceptions
        assert actor is not None, "only actors that live owe a reply"
        try:
            news = self._ray.get(actor.reply)
        except errors.ActorUnschedulableError as error:
            raise GrasplineError(f"ray.cpus, ray.gpus: no node can hold an actor ({error})") from error
        except (errors.RayActorError, errors.NodeDiedError, errors.OutOfMemoryError) as error:
            if getattr(error, "actor_init_failed", False):  # it would again: a module that the node has not, say
                raise GrasplineError(f"a Ray actor does not start: {_last_line(error)}") from error
            self._lose(number, f"its Ray actor died ({_last_line(error)})", shards, on_result)
            return
        if news.error is not None:
            raise news.error
        actor.ready, actor.moved = True, time.monotonic() - news.still_s
        for result in news.results:
            shards.finish(number, result)
            on_result(result)
        actor.reply = actor.handle.news.remote() if shards.holds(number) else None

    def _lose(self, number: int, cause: str, shards: Shards, on_result: OnResult) -> None:
        actor, self._actors[number] = self._actors[number], None
        if actor is not None:
            self._ray.kill(actor.handle)
        for result in shards.lose(number, cause):
            on_result(result)


class Watched:
    """A policy that says at every chunk that its actor is alive."""

    def __init__(self, policy: Policy, alive: Alive) -> None:
        self.spec, self.horizon, self.cameras = policy.spec, policy.horizon, policy.cameras
        self._policy, self._alive = policy, alive

    def act(self, observations: Sequence[Observation], seeds: Sequence[int]) -> list[ActionChunk]:
        self._alive()
        chunks = self._policy.act(observations, seeds)
        self._alive()
        return chunks


@dataclass
class _Actor:
    """The driver's view of an actor. `reply`: the answer that it owes; `moved`: when it last moved [s], our clock."""

    handle: Any
    reply: Any
    moved: float
    ready: bool = False


@dataclass(frozen=True, kw_only=True)
class _News:
    """What an actor says: rows that it finished, what went wrong for good, and how long [s] nothing has moved in it."""

    results: Sequence[EpisodeResult] = ()
    error: Exception | None = None
    still_s: float = 0.0


class _Player:
    """An actor's body. It plays in one thread for all its life, since an OpenGL context belongs to a thread."""

    def __init__(self, make_run: MakeRun, token: str | None) -> None:
        if token is not None:
            os.environ[_SECRET] = token
        self._finished: SimpleQueue[EpisodeResult | Exception] = SimpleQueue()
        self._moved = time.monotonic()
        self._thread = ThreadPoolExecutor(max_workers=1)
        self._run: Run | None = None
        self._built = self._thread.submit(self._build, make_run)

    def ready(self) -> _News:
        """Returns when rows can be played, or with the error for which they cannot."""
        self._built.result()
        return self.news(wait_s=0.0)

    def play(self, rows: Sequence[EpisodePlan]) -> None:
        """Begins to play; `news` tells the rest."""
        self._alive()
        self._thread.submit(self._play, rows)

    def news(self, wait_s: float = _NEWS_S) -> _News:
        """What has happened since the last call, as soon as there is something, or after `wait_s`."""
        told: list[EpisodeResult | Exception] = []
        try:
            told.append(self._finished.get(timeout=wait_s))
            while True:
                told.append(self._finished.get_nowait())
        except Empty:
            pass
        return _News(
            results=[each for each in told if isinstance(each, EpisodeResult)],
            error=next((each for each in told if isinstance(each, Exception)), None),
            still_s=time.monotonic() - self._moved,
        )

    def _alive(self) -> None:
        self._moved = time.monotonic()

    def _build(self, make_run: MakeRun) -> None:
        try:
            self._run = make_run(self._alive)
        except Exception as error:  # noqa: BLE001  whatever it is, the driver raises it
            self._finished.put(_portable(error))

    def _play(self, rows: Sequence[EpisodePlan]) -> None:
        assert self._run is not None, "rows are given to actors that are ready"
        try:
            self._run(rows, self._keep)
        except Exception as error:  # noqa: BLE001  whatever it is, the driver raises it
            self._finished.put(_portable(error))

    def _keep(self, result: EpisodeResult) -> None:
        self._alive()
        self._finished.put(result)


def _portable(error: Exception) -> Exception:
    """What the user can mend, as it is; anything else as its traceback, since not every exception can be pickled."""
    if isinstance(error, GrasplineError):
        return error
    return RuntimeError("in a Ray actor:\n" + "".join(traceback.format_exception(error)))


def _last_line(error: Exception) -> str:
    return str(error).strip().splitlines()[-1].strip()[:200]


def _connect(address: str | None, *, num_cpus: int) -> tuple[Any, bool]:
    """The module `ray`, connected, and whether the cluster is ours to shut down. Quiet: no dashboard, no statistics."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    try:
        import ray
        import ray.exceptions
    except ImportError as error:
        raise MissingAssetError(
            "executor=ray needs Ray, which is not installed: pip install 'graspline[ray]'"
        ) from error
    if ray.is_initialized():
        return ray, False
    quiet: dict[str, Any] = {"logging_level": "ERROR", "log_to_driver": False}
    if address is None:
        quiet |= {"num_cpus": num_cpus, "include_dashboard": False, "object_store_memory": _OBJECT_STORE_BYTES}
    try:
        ray.init(address=address or "local", **quiet)
    except (ConnectionError, ValueError) as error:
        raise GrasplineError(f"ray.address={address}: {error}") from error
    return ray, True
