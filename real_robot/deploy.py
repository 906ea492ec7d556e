"""A policy on an arm: pre-flight, episodes, and a stop when something is wrong.

    play_episode    each tick: cameras -> observation -> policy -> timed chunk -> daemon -> filter -> wire
    deploy          pre-flight on the limp arm, the first episode at reduced speed, then the others

What is special: on a virtual clock (`latency_s`) an episode is a function of its seed, and faster than real time.
Nothing resumes by itself: an episode in which the arm was paused or faulted is over.
"""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

from real_robot.cameras.eyes import Eyes
from real_robot.cameras.frames import Camera
from real_robot.core.admission import Admitted
from real_robot.core.supervisor import State
from real_robot.daemon import Daemon, Report
from real_robot.loop import first_in_line, run_loop
from real_robot.playing import Playing, Scheduler
from real_robot.policy_source import Asker, PolicySource
from real_robot.preflight import Line, require, table
from real_robot.record.recorder import Recorder
from real_robot.teleop.drive import Drive
from vla.core.errors import GrasplineError
from vla.core.protocols import Policy

START_S = 30.0  # patience with the first chunk, a slow move to its first posture included
_GOING = (State.ACTIVE, State.STARVED, State.ALIGNING)


@dataclass(frozen=True, kw_only=True)
class Played:
    """One episode as it went.

    ended       "time", "done" (`until` said so), or what stopped the arm
    seconds     from the first chunk that was taken to the end
    chunks      taken; clamped: numbers in them that were moved to a limit
    refused     chunks that were not taken, by reason
    verdicts    ticks in which the filter changed something, by rule, of `ticks`; `filtered` by any
    starved_s   time without setpoints
    latency_s   from picture to chunk: p50 and p95
    """

    ended: str
    seconds: float
    chunks: int
    clamped: int
    refused: Mapping[str, int]
    verdicts: Mapping[str, int]
    filtered: int
    ticks: int
    starved_s: float
    latency_s: tuple[float, float]

    def __str__(self) -> str:
        p50, p95 = self.latency_s
        rules = ", ".join(f"{name} {ticks}" for name, ticks in sorted(self.verdicts.items())) or "never"
        refused = ", ".join(f"{count} {why}" for why, count in sorted(self.refused.items())) or "none"
        return (
            f"{self.ended} after {self.seconds:.1f} s; {self.chunks} chunks, refused: {refused}; latency p50 "
            f"{1e3 * p50:.0f} ms, p95 {1e3 * p95:.0f} ms; starved {self.starved_s:.2f} s; "
            f"filter in {self.filtered} of {self.ticks} ticks ({rules})"
        )


def play_episode(
    daemon: Daemon,
    arm: str,
    policy: Policy,
    *,
    task: str,
    cameras: Mapping[str, Camera],
    playing: Playing,
    seconds: float,
    seed: int = 0,
    align: bool = True,
    latency_s: float | None = None,
    until: Callable[[], bool] = lambda: False,
    recorder: Recorder | None = None,
) -> Played:
    """Plays a policy until `seconds` have passed, `until()` holds or the arm stops; the arm then stands still.

    Args:
        daemon: with torque on, holding or paused, and ticked by this call alone.
        arm: its name in the daemon.
        policy: joints of the arm in and out, rad (`preflight` checks it).
        task: what it is told.
        cameras: by the names that the policy knows, started.
        playing: how its chunks are asked for and played.
        seconds: from the first chunk on.
        seed: of the policy's draws.
        align: a slow move to the first setpoint is allowed, should that be far away.
        latency_s: for a virtual clock, see `Asker`; None computes in a thread, in real time.
        until: success, asked each tick.
        recorder: shown every good picture; `start`, `finish` and its subscription are the caller's.

    Raises:
        RefusedError: the arm is not ready, or somebody else drives it.
    """
    eyes = Eyes(cameras, start_s=daemon.clock.now())
    gripper, dt_s = daemon.sides[arm].arm.spec.gripper_index, policy.spec.dt_s
    on_time = first_in_line() if latency_s is None else nullcontext()  # virtual time may as well be late
    with Asker(policy, latency_s) as asker, on_time:
        _settle(daemon)
        lease = daemon.lease("policy")
        session = f"policy-{lease.generation}"
        scheduler = Scheduler(playing, horizon=policy.horizon, dt_s=dt_s, session=session, gripper=gripper)
        source = PolicySource(asker, scheduler, eyes, daemon.clock, session=session, task=task, seed=seed)
        drive = Drive(daemon, source, token=lease.token, arm=arm)
        count = _Count(arm)
        daemon.subscribe(count.seen)
        try:
            drive.start(align=align)
            ended = _play(daemon, arm, drive, eyes, count, recorder, seconds=seconds, until=until)
            return count.played(ended, daemon, source)
        finally:
            count.over = True
            _rest(daemon, lease.token)


class _Count:
    """What happened in one episode."""

    def __init__(self, arm: str) -> None:
        self._arm = arm
        self.over = False  # a daemon keeps its listeners
        self.began_s: float | None = None
        self._chunks = self._clamped = self._ticks = self._filtered = self._starved = 0
        self._refused: Counter[str] = Counter()
        self._verdicts: Counter[str] = Counter()

    def offered(self, admitted: Admitted | None, now_s: float) -> None:
        """What the door said to a chunk."""
        if admitted is None:
            return
        if admitted.chunk is None:
            self._refused[str(admitted.refusal)] += 1
            return
        self._chunks += 1
        self._clamped += admitted.clamped
        self.began_s = now_s if self.began_s is None else self.began_s

    def seen(self, report: Report) -> None:
        """For `Daemon.subscribe`."""
        if self.over or report.arm != self._arm or self.began_s is None:
            return
        self._ticks += 1
        self._starved += report.tick.starved_s > 0.0
        if report.tick.command is not None:
            self._verdicts.update(str(rule.name).lower() for rule in report.tick.command.verdict)
            self._filtered += bool(report.tick.command.verdict)

    def played(self, ended: str, daemon: Daemon, source: PolicySource) -> Played:
        latency = source.scheduler.latency
        return Played(
            ended=ended,
            seconds=0.0 if self.began_s is None else daemon.clock.now() - self.began_s,
            chunks=self._chunks,
            clamped=self._clamped,
            refused={**self._refused, **({"non_finite": source.non_finite} if source.non_finite else {})},
            verdicts=dict(self._verdicts),
            filtered=self._filtered,
            ticks=self._ticks,
            starved_s=self._starved * daemon.dt_s,
            latency_s=(latency.p50, latency.p95),
        )


def _play(
    daemon: Daemon,
    arm: str,
    drive: Drive,
    eyes: Eyes,
    count: _Count,
    recorder: Recorder | None,
    *,
    seconds: float,
    until: Callable[[], bool],
) -> str:
    """Ticks until the episode has ended, and says why."""
    clock, start_s, ended = daemon.clock, daemon.clock.now(), ""

    def tick() -> None:
        now_s = clock.now()
        for finding in eyes.look(now_s):
            daemon.fail(finding)
        if recorder is not None:
            for name, frame in (eyes.frames or {}).items():
                recorder.see(name, frame)
        count.offered(drive.step(), now_s)
        daemon.tick()

    def going() -> bool:
        nonlocal ended
        over_s = start_s + START_S if count.began_s is None else count.began_s + seconds
        ended = _stopped(daemon, arm) or ("done" if until() else "") or ("time" if clock.now() >= over_s else "")
        return not ended

    run_loop(tick, clock, daemon.dt_s, going, daemon.lateness)
    return ended


def _stopped(daemon: Daemon, arm: str) -> str:
    """Why the arm does not play any more; empty while it does."""
    side = daemon.sides[arm]
    if daemon.ending or side.state in _GOING:
        return daemon.ending
    supervisor = side.controller.supervisor
    return str(supervisor.latched or supervisor.pause_reason or supervisor.state)


def deploy(
    open_cell: Callable[[bool], AbstractContextManager[Daemon]],
    check: Callable[[Daemon], Sequence[Line]],
    play: Callable[[Daemon, int], Played],
    *,
    episodes: int = 1,
    normal_speed: bool = False,
    wait: Callable[[str], Callable[[], bool]] = lambda _: lambda: False,
    say: Callable[[str], None] = lambda _: None,
) -> list[Played]:
    """Pre-flight, then `episodes`: all at reduced speed, or the first one so and then the others at normal speed.

    The speed belongs to the cell: between the two the arm is parked, let go of and taken up again.

    Args:
        open_cell: (normal speed) -> a connected cell without torque; leaving it parks, and switches the torque off.
        check: the pre-flight, such as `preflight` with its arguments filled in.
        play: (daemon, number of the episode) -> what came of it; `play_episode` with its arguments filled in.
        episodes: how many; the first that neither ran its time nor was done is the last one.
        normal_speed: of all episodes but the first.
        wait: shown what comes next; gives a function that is true while the operator takes time. The arm is watched
            meanwhile.
        say: for the operator.

    Raises:
        GrasplineError: the pre-flight names what does not fit; nothing has moved then.
    """
    played: list[Played] = []
    while len(played) < episodes:
        fast = normal_speed and bool(played)
        with open_cell(fast) as daemon:
            lines = check(daemon)
            say(table(lines))
            require(lines)
            _watch(daemon, wait(f"the torque comes on; {'normal' if fast else 'reduced'} speed"))
            daemon.enable()
            last = episodes if fast or not normal_speed else 1
            while len(played) < last:
                _watch(daemon, wait(f"episode {len(played)} begins"))
                played.append(play(daemon, len(played)))
                say(f"episode {len(played) - 1}: {played[-1]}")
                if played[-1].ended not in ("time", "done"):
                    return played
    return played


def _watch(daemon: Daemon, waiting: Callable[[], bool]) -> None:
    """Ticks while `waiting()`; raises when the daemon is asked to end."""
    run_loop(daemon.tick, daemon.clock, daemon.dt_s, lambda: waiting() and not daemon.ending, daemon.lateness)
    if daemon.ending:
        raise GrasplineError(f"ended by {daemon.ending}")


def _settle(daemon: Daemon) -> None:
    """Two ticks, so that the pause in which nobody ticked is over before anything depends on it."""
    run_loop(daemon.tick, daemon.clock, daemon.dt_s, iter((True, True, False)).__next__, daemon.lateness)


def _rest(daemon: Daemon, token: str) -> None:
    """Decelerates, stands still, and gives the lease back."""
    daemon.pause("the episode is over")

    def moving() -> bool:
        return any(side.linked and not side.controller.at_rest for side in daemon.sides.values())

    run_loop(daemon.tick, daemon.clock, daemon.dt_s, moving, daemon.lateness)
    if daemon.leases.holder is not None and daemon.leases.holder.token == token:
        daemon.release(token)
