"""EnvPool: many envs in worker processes, one message per chunk instead of one per control step.

Special: only the cameras that are asked for are rendered, once per chunk, and only where the episode goes on. A worker
that dies costs the episodes that were running in it and no others. Workers are spawned, never forked: an EGL context
does not survive a fork.
"""

import contextlib
import os
import signal
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from multiprocessing import get_context
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from typing import Any, Self

import numpy as np

from vla.core.errors import GrasplineError, NonFiniteError
from vla.core.protocols import Env
from vla.core.types import Observation, Step

_STARTED = "started"  # a worker's first word
_LOOK_S = 0.2  # how often workers are looked after, where there is a time limit
MAX_DEATHS = 3  # in a row, without one reply in between: then the fault is not one episode's
_THREAD_VARIABLES = (
    "LP_NUM_THREADS",
    "OMP_NUM_THREADS",
    "OPENBLAS_NUM_THREADS",
    "MKL_NUM_THREADS",
    "NUMEXPR_NUM_THREADS",
)


@dataclass(frozen=True, kw_only=True, eq=False)
class Reply:
    """What one command did.

    steps        control steps taken
    step         the last of them (None after a reset, a call or an error)
    observation  what the slot sees now, without privileged entries; None when the episode is over
    value        what a called function returned
    error        why the episode in this slot was lost, else None
    physics_s    time [s] in Env.reset and Env.step;  render_s  time [s] in Env.observe
    """

    slot: int
    steps: int = 0
    step: Step | None = None
    observation: Observation | None = None
    value: Any = None
    error: str | None = None
    physics_s: float = 0.0
    render_s: float = 0.0


class EnvPool:
    """`num_slots` envs over `num_workers` processes; slot s lives in worker s % num_workers.

    `reset`, `play` and `call` return at once; `wait` blocks for at least one reply. A slot takes one command at a time.

    Args:
        make_env: builds one env; picklable, so a module-level function or a functools.partial of a class.
        num_slots: envs in all.
        num_workers: processes; 0 plays everything in this one.
        timeout_s: a worker that needs longer [s] for one command is killed, and replaced as one that died; None waits
            for ever, and so does a pool without workers.
    """

    def __init__(
        self, make_env: Callable[[], Env], *, num_slots: int, num_workers: int, timeout_s: float | None = None
    ) -> None:
        if num_slots < 1 or num_workers < 0:
            raise ValueError(f"num_slots {num_slots} must be >= 1 and num_workers {num_workers} >= 0")
        self.num_slots = num_slots
        self._make_env = make_env
        self._timeout_s = timeout_s
        self._busy: set[int] = set()  # slots whose command has no reply yet
        self._open: set[int] = set()  # slots in the middle of an episode
        self._local: _Slots | None = None
        self._queue: list[tuple[Any, ...]] = []
        self._workers: list[_Worker] = []
        if num_workers == 0:
            self._local = _Slots(make_env)
        for _ in range(min(num_workers, num_slots)):
            self._workers.append(_Worker(make_env))

    def reset(self, slot: int, task: str, init_state: int, seed: int, cameras: Sequence[str]) -> None:
        """Starts an episode in a slot; the reply carries its first observation."""
        self._open.add(slot)
        self._send(slot, "reset", task, init_state, seed, tuple(cameras))

    def play(self, slot: int, actions_HA: np.ndarray, cameras: Sequence[str]) -> None:
        """Plays actions (H, A) one after the other, up to the episode's end."""
        self._send(slot, "play", actions_HA, tuple(cameras))

    def call(self, slot: int, function: Callable[..., Any], *arguments: Any) -> None:
        """Runs `function(env, *arguments)` beside the slot's env; the reply's value is what it returns. Picklable."""
        self._send(slot, "call", function, arguments)

    def wait(self) -> list[Reply]:
        """Blocks until a slot has something to say; every reply that is there.

        Raises:
            GrasplineError: the worker met what only the user can mend (missing assets or OpenGL, an unknown task): the
                same error as in this process; or a worker died MAX_DEATHS times in a row.
        """
        if not self._busy:
            raise ValueError("nothing to wait for: no slot has a command")
        replies: dict[int, Reply] = {}
        if self._local is not None:
            queue, self._queue = self._queue, []
            for command in queue:
                self._take(self._local.handle(*command), replies)
            return list(replies.values())
        while not replies:
            by_connection = {worker.connection: worker for worker in self._workers}
            for connection in wait(list(by_connection), timeout=None if self._timeout_s is None else _LOOK_S):
                self._receive(by_connection[connection], replies)  # pyright: ignore[reportArgumentType]
            self._bury_the_hung(replies)
        return list(replies.values())

    def close(self) -> None:
        """Ends the workers; safe to call twice."""
        for worker in self._workers:
            worker.connection.close()
        for worker in self._workers:
            worker.end()
        self._workers = []
        if self._local is not None:
            self._local.close()
        self._busy.clear()
        self._open.clear()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    @property
    def pids(self) -> list[int]:
        """The workers' process ids."""
        return [worker.process.pid for worker in self._workers if worker.process.pid is not None]

    def _send(self, slot: int, *command: Any) -> None:
        if not 0 <= slot < self.num_slots:
            raise ValueError(f"slot {slot} is not in 0..{self.num_slots - 1}")
        if slot in self._busy:
            raise ValueError(f"slot {slot} has not answered its last command")
        if self._local is not None:
            self._busy.add(slot)
            self._queue.append((slot, *command))
            return
        worker = self._workers[slot % len(self._workers)]
        if self._busy.isdisjoint(self._slots_of(worker)):
            worker.moved = time.monotonic()
        self._busy.add(slot)
        # A worker that is gone is found, reported and replaced by the next `wait`.
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            worker.connection.send((slot, *command))

    def _receive(self, worker: "_Worker", replies: dict[int, Reply]) -> None:
        try:
            answer = worker.connection.recv()
        except (EOFError, ConnectionResetError):
            self._bury(worker, worker.cause_of_death(), replies)
            return
        worker.moved = time.monotonic()
        if answer == _STARTED:
            worker.started = True
            return
        worker.deaths = 0
        self._take(answer, replies)

    def _take(self, answer: "Reply | GrasplineError", replies: dict[int, Reply]) -> None:
        if isinstance(answer, GrasplineError):
            raise answer
        self._busy.discard(answer.slot)
        if answer.error or (answer.step and (answer.step.terminated or answer.step.truncated)):
            self._open.discard(answer.slot)
        replies[answer.slot] = answer

    def _slots_of(self, worker: "_Worker") -> range:
        return range(self._workers.index(worker), self.num_slots, len(self._workers))

    def _bury_the_hung(self, replies: dict[int, Reply]) -> None:
        """Kills workers that have been at one command for too long. Their start, with its imports, does not count."""
        if self._timeout_s is None:
            return
        for worker in self._workers:
            busy = not self._busy.isdisjoint(self._slots_of(worker))
            if busy and worker.started and time.monotonic() - worker.moved > self._timeout_s:
                worker.process.kill()
                worker.cause_of_death()  # "SIGKILL", which is ours
                self._bury(worker, f"killed after {self._timeout_s:g} s without an answer", replies)

    def _bury(self, worker: "_Worker", cause: str, replies: dict[int, Reply]) -> None:
        """Replaces a dead worker and reports the episodes that ran in it, even those that just answered."""
        worker.deaths += 1
        if worker.deaths > MAX_DEATHS:
            raise GrasplineError(f"a worker process died {worker.deaths} times in a row ({cause}); giving up")
        for slot in self._slots_of(worker):
            if slot in self._busy or slot in self._open:
                self._busy.discard(slot)
                self._open.discard(slot)
                replies[slot] = Reply(slot=slot, error=f"the worker process died: {cause}")
        worker.restart(self._make_env)


class _Worker:
    """One process and the parent's end of its pipe."""

    def __init__(self, make_env: Callable[[], Env]) -> None:
        self.deaths = 0
        self.restart(make_env)

    def restart(self, make_env: Callable[[], Env]) -> None:
        # The pipe pickles, but joins only this process and a child that it started itself.
        context = get_context("spawn")
        mine, theirs = context.Pipe()
        with _single_threaded():
            process = context.Process(target=_serve, args=(theirs, make_env), daemon=True, name="graspline-envs")
            process.start()
        theirs.close()  # else the pipe would not end when the worker does
        self.connection: Connection = mine
        self.process: BaseProcess = process
        self.started = False
        self.moved = time.monotonic()  # when it last answered, or was asked while idle

    def cause_of_death(self) -> str:
        self.connection.close()
        self.process.join(timeout=5)
        code = self.process.exitcode
        if code is None:
            self.process.kill()
            return "it closed its pipe"
        return signal.Signals(-code).name if code < 0 else f"exit status {code}"

    def end(self) -> None:
        """The pipe is closed, so an idle worker leaves by itself; a busy one is told to, then made to."""
        self.process.join(timeout=1)
        for stop in (self.process.terminate, self.process.kill):
            if self.process.is_alive():
                stop()
                self.process.join(timeout=2)


@dataclass
class _Slots:
    """The envs of one process, each built on its first use."""

    make_env: Callable[[], Env]
    envs: dict[int, Env] = field(default_factory=dict)

    def handle(self, slot: int, command: str, *arguments: Any) -> Reply | GrasplineError:
        try:
            return getattr(self, f"_{command}")(slot, self._env(slot), *arguments)
        except NonFiniteError as error:  # one bad action: this episode's fault alone
            return Reply(slot=slot, error=_describe(error))
        except GrasplineError as error:
            return error
        except Exception as error:  # noqa: BLE001  whatever an env raises is this row's error, not the end of the run
            self._drop(slot)
            return Reply(slot=slot, error=_describe(error))

    def close(self) -> None:
        for slot in list(self.envs):
            self.envs.pop(slot).close()

    def _env(self, slot: int) -> Env:
        if slot not in self.envs:
            self.envs[slot] = self.make_env()
        return self.envs[slot]

    def _drop(self, slot: int) -> None:
        """Forgets an env that failed, so that the next episode starts from a fresh one."""
        env = self.envs.pop(slot, None)
        if env is not None:
            with contextlib.suppress(Exception):
                env.close()

    def _reset(self, slot: int, env: Env, task: str, init_state: int, seed: int, cameras: Sequence[str]) -> Reply:
        start = time.perf_counter()
        env.reset(task, init_state, seed)
        physics_s = time.perf_counter() - start
        return _with_observation(Reply(slot=slot, physics_s=physics_s), env, cameras)

    def _play(self, slot: int, env: Env, actions_HA: np.ndarray, cameras: Sequence[str]) -> Reply:
        start = time.perf_counter()
        steps, step = 0, None
        for action_A in actions_HA:
            step = env.step(action_A)
            steps += 1
            if step.terminated or step.truncated:
                break
        physics_s = time.perf_counter() - start
        reply = Reply(slot=slot, steps=steps, step=step, physics_s=physics_s)
        over = step is not None and (step.terminated or step.truncated)
        return reply if over else _with_observation(reply, env, cameras)

    def _call(self, slot: int, env: Env, function: Callable[..., Any], arguments: tuple[Any, ...]) -> Reply:
        return Reply(slot=slot, value=function(env, *arguments))


def _with_observation(reply: Reply, env: Env, cameras: Sequence[str]) -> Reply:
    start = time.perf_counter()
    observation = replace(env.observe(cameras), privileged={})  # simulator truth never reaches a policy
    return replace(reply, observation=observation, render_s=time.perf_counter() - start)


def _serve(connection: Connection, make_env: Callable[[], Env]) -> None:
    """A worker's life: one reply for each command, until the parent closes the pipe or dies."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to handle
    slots = _Slots(make_env)
    try:
        connection.send(_STARTED)
        while True:
            connection.send(slots.handle(*connection.recv()))
    except (EOFError, BrokenPipeError, ConnectionResetError):
        slots.close()


def _describe(error: Exception) -> str:
    """'ValueError: what (file.py:12)', with the line that raised it."""
    frames = traceback.extract_tb(error.__traceback__)
    where = f" ({os.path.basename(frames[-1].filename)}:{frames[-1].lineno})" if frames else ""  # noqa: PTH119
    return f"{type(error).__name__}: {error}{where}"


@contextlib.contextmanager
def _single_threaded() -> Iterator[None]:
    """Worker processes inherit one thread each: they share the cores with each other and with the policy."""
    before = {name: os.environ.get(name) for name in _THREAD_VARIABLES}
    os.environ.update(dict.fromkeys(_THREAD_VARIABLES, "1"))
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
