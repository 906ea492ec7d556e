"""One arm's tick: readings in, one command out. Ties timeline, filter, rules, leases and supervisor together; knows
no I/O.

    daemon:  clock.sleep_until -> arm.read -> controller.tick -> arm.write(tick.command) or arm.stop(tick.stop)

Everything is a function of what is handed in, times included, so a day of faults runs in seconds on a virtual clock.
The daemon owns the devices and tells the controller what it did (`connected`, `enabled`, `released`, `lost`).
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from real_robot.core.admission import Admission, Admitted, Refusal, refused
from real_robot.core.faults import Fault, FaultCode, Reaction, RefusedError, fault
from real_robot.core.filter import Filter, Filtered, Scene
from real_robot.core.latency import LatencyWindow
from real_robot.core.leases import Leases
from real_robot.core.moves import ALIGN_SPEED, Move, needs_alignment, plan_move
from real_robot.core.rules import History, check, derating, overrun
from real_robot.core.supervisor import Order, State, Supervisor
from real_robot.core.timeline import Timeline
from real_robot.core.types import ArmSpec, ArmState, Array, Chunk, JointCommand, StopKind

LATENCY_LEAST = 5  # chunks that have been seen before their latency is judged
ARRIVED_RAD, MOVE_PATIENCE_S = 0.01, 3.0  # a move that is short of its goal for so long was held up
HELD_LONG_S = 60.0
_PLAYING = (State.ACTIVE, State.STARVED)
_DRIVEN = (*_PLAYING, State.ALIGNING)


@dataclass(frozen=True, kw_only=True, eq=False)
class Tick:
    """What to do now.

    command      for `Arm.write`; None: write nothing
    stop         for `Arm.stop`; the daemon then calls `released`
    findings     of this tick's rules
    requested_J  (J,) what was wanted before the filter, for the recorder; None when nothing was
    starved_s    time since the last setpoint was due
    """

    order: Order
    command: JointCommand | None = None
    stop: StopKind | None = None
    findings: tuple[Fault, ...] = ()
    requested_J: Array | None = None
    starved_s: float = 0.0


class Controller:
    """The core of the daemon for one arm.

    Args:
        spec: the arm.
        scene: geometry for filter, admission and moves; None leaves obstacles out.
    """

    def __init__(self, spec: ArmSpec, *, scene: Scene | None = None) -> None:
        self.spec, self._scene = spec, scene
        self.supervisor = Supervisor()
        self.leases = Leases()
        self.admission = Admission(spec, scene)
        self.latency = LatencyWindow()
        self.timeline = Timeline(spec)
        self._filter = Filter(spec, scene)
        self._motion = self._filter.rest(0.5 * (spec.low_J + spec.high_J))
        self._history = History(spec)
        self._command: JointCommand | None = None
        self._move: Move | None = None
        self._present: tuple[Fault, ...] = ()
        self._noted: set[tuple[FaultCode, str | None]] = set()
        self._tick_s: float | None = None
        self._held_from_s: float | None = None
        self._align = self._first = False
        self._source = ""
        self._grip_stop: float | None = None
        self._give_way_J = np.full(len(spec.joints), np.nan)

    @property
    def at_rest(self) -> bool:
        """The commanded motion stands still."""
        return self._motion.at_rest

    @property
    def commanded_J(self) -> Array:
        """(J,) where the arm is commanded to be."""
        return self._motion.q_J

    # what the daemon did

    def connected(self, now_s: float) -> None:
        self.supervisor.connected(now_s)

    def enabled(self, state: ArmState) -> None:
        """Torque is on. The commanded position is the goal that the servos hold, or where they are."""
        self.supervisor.enabled(state.time_s)
        self._seed(np.where(np.isfinite(state.goal_J), state.goal_J, state.q_J))

    def released(self, now_s: float) -> None:
        """Torque is off."""
        self._command = self._move = None
        self.supervisor.released(now_s)

    def lost(self, now_s: float, detail: str) -> None:
        """The link is gone, whatever the operating system called it."""
        self._command = self._move = None
        self.supervisor.report(fault(FaultCode.LINK_LOST, detail, now_s), now_s)
        self.supervisor.disconnected(now_s)

    # what a client asks for; RefusedError says why not

    def activate(self, token: str, session: str, now_s: float, *, align: bool = False) -> None:
        """Lets the holder of the lease drive with chunks of `session`.

        While another session plays, the new one takes over at speed: its first chunk blends in.

        Args:
            token: of the lease.
            session: named in its chunks; only those with pictures from now on are taken.
            now_s: now.
            align: confirms a slow move to the first setpoint, should that be far away.
        """
        source = self.leases.check(token, now_s).client
        if self.supervisor.state == State.ALIGNING or not (self.supervisor.state in _PLAYING or self._motion.at_rest):
            raise RefusedError("cannot activate while the arm moves by itself: wait until it rests, or pause it")
        self._source = source
        if self.supervisor.state not in _PLAYING:
            self.supervisor.activate(self._source, now_s)
            self.timeline.reset(self._motion.q_J, now_s)
        self._align, self._first = align, True
        self.admission.open(session, now_s)

    def offer(self, chunk: Chunk, now_s: float) -> Admitted:
        """Takes a chunk, or says why not. Never raises for what stands in it."""
        if self.supervisor.state not in _PLAYING:
            return refused(Refusal.STATE, f"state is '{self.supervisor.state}'")
        admitted = self.admission.admit(chunk, now_s, self._motion.q_J)
        if admitted.fault is not None:
            self.supervisor.report(admitted.fault, now_s)
        if admitted.chunk is None:
            return admitted
        if self._latency_fault(admitted.chunk, now_s):
            return refused(Refusal.OVERDUE, self.supervisor.pause_reason)
        if self._first and (no := self._too_far(admitted.chunk, now_s)) is not None:
            return no
        if self.timeline.push(admitted.chunk, now_s) == len(admitted.chunk.q_HN):
            return refused(
                Refusal.OVERDUE, f"every setpoint was due before now, {now_s - chunk.t_obs_s:.3f} s after t_obs"
            )
        self._first = False
        return admitted

    def pause(self, now_s: float, reason: str) -> None:
        self.supervisor.pause(now_s, reason)

    def park(self, now_s: float) -> None:
        """Moves to the park posture and asks for torque off there."""
        if self.spec.park is None:
            raise RefusedError(f"{self.spec.name} has no park posture")
        if not self._motion.at_rest:
            raise RefusedError("cannot park: the arm still moves")
        move = self._plan(np.array(self.spec.park), now_s)
        self.supervisor.park(now_s)
        self._move = move

    def reset(self, state: ArmState, device: Sequence[Fault] = ()) -> None:
        """Leaves FAULT or ESTOP for HOLD, with goal := present; refused while a cause is present.

        `state` is judged without a command: what counts is what is wrong now, not what was a tick ago.
        """
        self._history.push(state, None)
        rules_now = check(self._history, self.spec) if self.supervisor.energised else ()
        self.supervisor.reset(state.time_s, [*rules_now, *device])
        self._seed(state.q_J)

    # once per tick

    def tick(self, state: ArmState, now_s: float, device: Sequence[Fault] = ()) -> Tick:
        """One tick. `device`: what the arm itself reports (`Arm.faults`)."""
        findings = self._watch(state, now_s, device)
        for finding in findings:
            if finding.reaction > Reaction.CLAMP or (finding.code, finding.joint) not in self._noted:
                self.supervisor.report(finding, now_s)
        self._noted = {(finding.code, finding.joint) for finding in findings}
        self._present = tuple(findings)
        order = self.supervisor.order
        starved_s, filtered, stop = 0.0, None, None
        if order == Order.FOLLOW:
            filtered, starved_s = self._follow(state, now_s)
        elif order == Order.MOVE:
            filtered, stop = self._play_move(now_s)
        elif order == Order.HOLD:
            filtered = self._hold(state, now_s)
        elif order == Order.LOWER:
            filtered, stop = self._lower(now_s)
        elif order == Order.RELEASE:
            stop = StopKind.RELEASE
        if order not in (Order.MOVE, Order.LOWER):
            self._move = None
        self._command = None
        if filtered is not None:
            self._motion, self._command = filtered.state, filtered.command
        return Tick(
            order=order,
            command=self._command,
            stop=stop,
            findings=self._present,
            requested_J=None if filtered is None else filtered.requested_J,
            starved_s=starved_s,
        )

    def _watch(self, state: ArmState, now_s: float, device: Sequence[Fault]) -> list[Fault]:
        """Everything that is wrong now, as this arm takes it."""
        late = overrun(now_s - self._tick_s, self.spec.dt_s, now_s) if self._tick_s is not None else None
        self._tick_s = now_s
        self._history.push(state, self._command)
        findings = [*device, *([late] if late else [])]
        if self.supervisor.energised:
            findings += [*check(self._history, self.spec), *self._held_long(now_s)]
        if self.supervisor.state in _DRIVEN and (self.leases.expired(now_s) or self.leases.holder is None):
            self.leases.release()
            findings.append(fault(FaultCode.CONTROLLER_LOST, "no heartbeat from the controller", now_s))
        return [self._softened(finding, state) for finding in findings]

    def _held_long(self, now_s: float) -> list[Fault]:
        """A warning after a minute of standing still under torque: servos heat without moving."""
        if self.supervisor.order != Order.HOLD:
            self._held_from_s = None
            return []
        self._held_from_s = now_s if self._held_from_s is None else self._held_from_s
        if now_s - self._held_from_s <= HELD_LONG_S:
            return []
        return [fault(FaultCode.HELD_LONG, f"held for {HELD_LONG_S:.0f} s: parking would let it cool", now_s)]

    def _softened(self, finding: Fault, state: ArmState) -> Fault:
        """A gripper that is blocked has gripped something: it relaxes and goes on."""
        gripper, g = self.spec.gripper, self.spec.gripper_index
        if gripper is None or finding.joint != gripper.joint:
            return finding
        if finding.code not in (FaultCode.STALL, FaultCode.OVERLOAD):
            return finding
        closing = np.sign(gripper.closed - gripper.open)
        self._grip_stop = float(state.q_J[g] + closing * gripper.grip_margin)
        return replace(finding, reaction=Reaction.CLAMP)

    def _gripped(self, setpoint_J: Array) -> Array:
        """The setpoint, its gripper no further closed than just beyond what it holds; opening ends that."""
        gripper, g = self.spec.gripper, self.spec.gripper_index
        if self._grip_stop is None or gripper is None or g is None:
            return setpoint_J
        ahead = (setpoint_J[g] - self._grip_stop) * np.sign(gripper.closed - gripper.open)
        if ahead < -2.0 * gripper.grip_margin:
            self._grip_stop = None
            return setpoint_J
        held_J = setpoint_J.copy()
        held_J[g] = self._grip_stop
        return held_J

    def _follow(self, state: ArmState, now_s: float) -> tuple[Filtered, float]:
        setpoint = self.timeline.sample(now_s)
        if setpoint.resting:
            self.supervisor.starving(now_s)
        else:
            self.supervisor.fed(now_s)
        derate = derating(state.temperature_J, self.spec.ratings)
        filtered = self._filter.step(self._motion, self._gripped(setpoint.q_J), time_s=now_s, derate=derate)
        return filtered, setpoint.starved_s

    def _hold(self, state: ArmState, now_s: float) -> Filtered:
        """Stop and stand still. A joint that does not get where it should stops pushing: its goal comes to it.

        Not after a jump of a position, which would then be followed by a motion.
        """
        latched = self.supervisor.latched
        believed = latched is None or FaultCode.ENCODER_JUMP not in (
            latched.first.code,
            *(f.code for f in latched.later),
        )
        for finding in self._present:
            blocked = finding.code in (FaultCode.STALL, FaultCode.TRACKING) and finding.reaction >= Reaction.LATCH
            if blocked and believed and finding.joint in self.spec.names:
                j = self.spec.names.index(finding.joint)
                self._give_way_J[j] = state.q_J[j]
        if not np.isnan(self._give_way_J).all():
            return self._filter.hold(self._motion, time_s=now_s, give_way_J=self._give_way_J)
        if self._grip_stop is not None and self._motion.at_rest:
            return self._filter.step(self._motion, self._gripped(self._motion.q_J), time_s=now_s)
        return self._filter.hold(self._motion, time_s=now_s)

    def _play_move(self, now_s: float) -> tuple[Filtered, StopKind | None]:
        assert self._move is not None
        filtered = self._filter.step(self._motion, self._move.at(now_s), time_s=now_s)
        short = float(np.abs(filtered.state.q_J - self._move.q_TJ[-1]).max())
        if now_s < self._move.end_s + MOVE_PATIENCE_S and (not filtered.state.at_rest or short > ARRIVED_RAD):
            return filtered, None
        if self.supervisor.latched is not None:
            return filtered, StopKind.RELEASE
        if short > ARRIVED_RAD:
            self.supervisor.pause(now_s, f"the move was held up {short:.2f} rad before its goal")
            return filtered, None
        if self.supervisor.state == State.PARKING:
            return filtered, StopKind.RELEASE
        self.supervisor.activate(self._source, now_s)
        self.timeline.reset(filtered.state.q_J, now_s)
        self.admission.open(self.admission.session, now_s)
        return filtered, None

    def _lower(self, now_s: float) -> tuple[Filtered, StopKind | None]:
        """Stop, park where that is possible, torque off."""
        if self._move is None:
            if not self._motion.at_rest:
                return self._filter.hold(self._motion, time_s=now_s), None
            try:
                self._move = self._plan(np.array(self.spec.park if self.spec.park is not None else np.nan), now_s)
            except (RefusedError, ValueError):  # no way to a park posture: torque off where it stands
                return self._filter.hold(self._motion, time_s=now_s), StopKind.RELEASE
        return self._play_move(now_s)

    def _plan(self, goal_J: Array, now_s: float) -> Move:
        return plan_move(self.spec, self._motion.q_J, goal_J, now_s, speed=ALIGN_SPEED, scene=self._scene)

    def _too_far(self, chunk: Chunk, now_s: float) -> Admitted | None:
        """The rule for the first setpoint of a source: near, or reached by a slow move that was confirmed."""
        late = int(np.sum(chunk.t_obs_s + chunk.dt_s * np.arange(1, len(chunk.q_HN) + 1) <= now_s))
        if late == len(chunk.q_HN):
            return None
        first_J = self._motion.q_J
        first_J[self.spec.arm_N] = chunk.q_HN[late]
        if not needs_alignment(self._motion.q_J, first_J):
            return None
        worst = int(np.argmax(np.abs(first_J - self._motion.q_J)))
        away = f"first setpoint is {abs(first_J - self._motion.q_J)[worst]:.2f} rad away at {self.spec.names[worst]}"
        if not self._align or not self._motion.at_rest:
            return refused(Refusal.ALIGNMENT, f"{away}: activate with align=True confirms a slow move there")
        try:
            self._move = self._plan(first_J, now_s)
        except RefusedError as error:
            return refused(Refusal.ALIGNMENT, f"{away}: {error}")
        self.supervisor.align(now_s)
        return refused(Refusal.ALIGNMENT, f"{away}: moving there until {self._move.end_s - now_s:.1f} s from now")

    def _latency_fault(self, chunk: Chunk, now_s: float) -> bool:
        """True when chunks come too late for their length: the arm would starve again and again."""
        self.latency.add(max(0.0, now_s - chunk.t_obs_s))
        if len(self.latency) < LATENCY_LEAST or self.latency.feasible(len(chunk.q_HN), chunk.dt_s):
            return False
        report = self.latency.report(len(chunk.q_HN), chunk.dt_s)
        self.supervisor.report(fault(FaultCode.LATENCY, report, now_s), now_s)
        return True

    def _seed(self, q_J: Array) -> None:
        """Stands still at `q_J` and forgets the past."""
        self._motion = self._filter.rest(q_J)
        self._history.clear()
        self._command = self._move = self._grip_stop = None
        self._give_way_J[:] = np.nan
        self._present, self._noted = (), set()
        self._tick_s = None
