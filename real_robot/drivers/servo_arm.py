"""The moving half of a servo arm: start up, read, write, stop, shut down; one servo family is a subclass.

Start-up: open exclusively, identify every servo, compare the calibration, two readings agree, resident limits written
and read back; then goal := present, 15 % torque, torque on, verified, and a ramp to full torque while nothing moves.
Shutdown: torque off for every servo, errors gathered, then the broadcast packet, then verified.

What is special: each reading asks for a block of another length. The wire carries no correlation number, so the
length is one: the answer to an older question does not fit.
"""

import random
from abc import abstractmethod
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from real_robot.calibration import COUNTS_PER_RAD, ArmCalibration
from real_robot.core.faults import Fault, FaultCode, fault
from real_robot.core.rules import jumped
from real_robot.core.types import ArmSpec, ArmState, Array, Clock, JointCommand, StopKind
from real_robot.drivers.bus import SLACK_S
from real_robot.drivers.errors import BusError, EnableError, TorqueOffError
from real_robot.drivers.servo import Block, Reading, Servo
from real_robot.drivers.servo_config import ServoConfig
from real_robot.protocols.rows import Status
from real_robot.transports import Transport

BELIEVED = 3  # a jump that is seen so many times in a row is true
AGREE_RAD = 0.02  # between the two first readings
VARIANTS = 8  # of a block's length
STRAY_TICKS, STRAY_WINDOW = 5, 100
OUTSIDE_RAD = 0.01
FIRST_SHARE, RAMP_S, RAMP_STEPS = 0.15, 0.5, 10
HELD_RAD, ECHO_RAD = np.radians(3.0), 0.004


@dataclass(kw_only=True)
class _Seen:
    """The last believed reading of one joint, and how often a later one was not."""

    reading: Reading
    time_s: float
    jumps: int = 0
    differences: list[str] = field(default_factory=list)


class ServoArm(ServoConfig):
    """See the module; satisfies `core.types.Arm`. `seed`: of the sequence of block lengths. The rest: `ServoConfig`."""

    blocks: tuple[Block, ...]
    second_blocks: tuple[Block, ...] = ()  # of second motors

    def __init__(
        self,
        spec: ArmSpec,
        servos: Sequence[Servo],
        calibration: ArmCalibration,
        *,
        open_port: Callable[[], Transport],
        clock: Clock,
        baud: int = 1_000_000,
        slack_s: float = SLACK_S,
        seed: int = 0,
    ) -> None:
        super().__init__(spec, servos, calibration, open_port=open_port, clock=clock, baud=baud, slack_s=slack_s)
        self._random = random.Random(seed)
        self._seen: dict[int, _Seen] = {}
        self._goal_J: Array | None = None
        self._strays: deque[int] = deque(maxlen=STRAY_WINDOW)

    def connect(self) -> None:
        """See the module. Whatever fails, the port is closed again; torque stays as it was found."""
        self.shadow.clear()
        self.open()
        done = False
        try:
            self.check_identity()
            self.check_calibration()
            self._two_readings()
            self.write_resident()
            done = True
        finally:
            if not done:
                self.close()

    def enable(self) -> None:
        """Torque on where the arm stands. Raises EnableError with the torque off again."""
        try:
            self._enable()
        except BusError as error:
            self._goal_J = None
            self._torque_off()
            raise EnableError(f"{error}; the torque is off again") from error

    def read(self) -> ArmState:
        """One reading of all servos; what did not answer, or cannot be true, is old and says so."""
        now_s = self.clock.now()
        strays = self.bus.counts.stray
        for device_id, blocks in self._read_blocks().items():
            self._take(device_id, self.parse(device_id, *blocks), now_s)
        self._strays.append(self.bus.counts.stray - strays)
        return self._state(now_s)

    def write(self, command: JointCommand) -> None:
        """Sends goals, never outside the calibrated travel."""
        self._goal_J = command.q_J
        self.write_goals({i: self.joint(i).to_count(q) for i, q in zip(self.ids, command.q_J.tolist(), strict=True)})

    def stop(self, kind: StopKind) -> None:
        """HOLD writes the last goals again; RELEASE switches every servo off. Raises TorqueOffError."""
        if kind not in self.spec.stop_kinds:
            raise ValueError(f"stop '{kind}' is not one of {sorted(self.spec.stop_kinds)}")
        if kind == StopKind.RELEASE:
            self._torque_off()
        elif self._goal_J is not None:
            self._stand_at(self._goal_J)

    def faults(self) -> tuple[Fault, ...]:
        """Error bits of the last reading, registers that were reset, foreign traffic."""
        now_s, found = self.clock.now(), []
        for device_id, name in self.names.items():
            seen = self._seen.get(device_id)
            if seen is None:
                continue
            for code, text in self.describe(seen.reading.status):
                found.append(fault(code, f"{text} (servo {device_id})", now_s, name))
            if seen.differences:
                text = f"servo {device_id} was reset or written to: {', '.join(seen.differences)}"
                found.append(fault(FaultCode.DEVICE, text, now_s, name))
        if sum(self._strays) >= STRAY_TICKS:
            text = f"bytes nobody asked for, {sum(self._strays)} times in {len(self._strays)} readings: foreign traffic"
            found.append(fault(FaultCode.DEVICE, text, now_s))
        return tuple(found)

    def clear(self) -> None:
        """Takes servos out of their own errors, limits and goal := present first; switches no torque on."""
        self._strays.clear()
        self.recover(self.standing())
        self.write_resident()
        self._two_readings()
        for device_id in self.ids:
            self.shadow.expect(device_id, {"torque_enable": self.get(device_id, "torque_enable")})
        self._stand_at(self.standing().q_J)
        self.standing()

    def disconnect(self) -> None:
        """Torque off and port closed, in this order and whatever fails. Raises TorqueOffError afterwards."""
        if self._bus is None:
            return
        try:
            self._torque_off()
        finally:
            self.close()

    def standing(self) -> ArmState:
        """A fresh reading of every joint. Raises BusError where one is missing."""
        for _ in range(8):
            state = self.read()
            if not state.age_J.any():
                return state
        state = self.read()
        silent = [name for name, age in zip(self.spec.names, state.age_J) if age > 0]
        raise BusError(f"{self.spec.name}: no sound answer from {silent}")

    # what a family of servos says

    @abstractmethod
    def parse(self, device_id: int, *blocks: tuple[int, Status]) -> Reading:
        """(first address, answer) of each block, then of each second motor's blocks -> reading of the joint."""
        ...

    @abstractmethod
    def describe(self, status: int) -> list[tuple[FaultCode, str]]:
        """Error bits -> codes and words."""
        ...

    @abstractmethod
    def write_goals(self, counts: Mapping[int, int]) -> None: ...

    @abstractmethod
    def limit_torque(self, device_id: int, share: float) -> None:
        """Torque limit, volatile, as a share of what `resident` sets."""
        ...

    @abstractmethod
    def recover(self, state: ArmState) -> None:
        """Takes servos out of their own error states; `state` is where they stand."""
        ...

    # inside

    def _enable(self) -> None:
        state = self.standing()
        self._refuse_outside(state.q_J)
        # a joint that has torque, if of one motor, keeps it all: less would drop the arm
        limp = [s.device_id for s in self.servos if all(self.get(i, "torque_enable") != 1 for i in s.motors)]
        for device_id in limp:
            self.limit_torque(device_id, FIRST_SHARE)
        self._stand_at(state.q_J)
        row = self.registers["torque_enable"]
        for servo in self.servos:
            self.shadow.expect(servo.device_id, {"torque_enable": 1})
            for device_id in servo.motors:
                self.bus.write(device_id, row.address, row.pack(1))
        self._verify(state.q_J)
        for step in range(1, RAMP_STEPS + 1):
            self.clock.sleep_until(self.clock.now() + RAMP_S / RAMP_STEPS)
            for device_id in limp:
                self.limit_torque(device_id, FIRST_SHARE + (1.0 - FIRST_SHARE) * step / RAMP_STEPS)
            self._verify(state.q_J)

    def _verify(self, goal_J: Array) -> None:
        """Raises BusError unless every joint has torque, holds this goal, and stands near it."""
        state = self.standing()
        rows = zip(self.spec.names, state.torque_on_J, state.goal_J - goal_J, state.q_J - goal_J, strict=True)
        for name, on, echo_rad, moved_rad in rows:
            if not on:
                raise BusError(f"{name}: torque did not come on")
            if abs(echo_rad) > ECHO_RAD:
                raise BusError(f"{name}: holds a goal {echo_rad:.3f} rad from the one that was written")
            if abs(moved_rad) > HELD_RAD:
                raise BusError(f"{name}: moved by {np.degrees(moved_rad):.1f} degrees while the torque came on")

    def _refuse_outside(self, q_J: Array) -> None:
        """Outside its travel a servo clips the goal, and that is a jump."""
        for device_id, q in zip(self.ids, q_J.tolist(), strict=True):
            joint = self.joint(device_id)
            beyond_rad = abs(joint.to_rad(joint.to_count(q)) - q)
            if beyond_rad > OUTSIDE_RAD:
                name = self.names[device_id]
                raise BusError(f"{name} stands {beyond_rad:.3f} rad outside its calibrated travel: move it in by hand")

    def _stand_at(self, q_J: Array) -> None:
        self.write(JointCommand(time_s=self.clock.now(), q_J=q_J, dq_J=np.zeros_like(q_J)))

    def _read_blocks(self) -> dict[int, list[tuple[int, Status]]]:
        """The blocks of each joint whose motors, second ones too, answered all that they were asked."""
        found = self._ask(self.ids, self.blocks)
        seconds = self._ask([i for servo in self.servos for i in servo.shadow_ids], self.second_blocks)
        return {
            servo.device_id: found[servo.device_id] + [row for i in servo.shadow_ids for row in seconds[i]]
            for servo in self.servos
            if servo.device_id in found and all(i in seconds for i in servo.shadow_ids)
        }

    def _ask(self, device_ids: Sequence[int], blocks: Sequence[Block]) -> dict[int, list[tuple[int, Status]]]:
        """All blocks of each of these motors that answered for each of them."""
        found: dict[int, list[tuple[int, Status]]] = {device_id: [] for device_id in device_ids}
        for block in blocks if device_ids else ():
            more = self._random.randrange(VARIANTS)
            answers = self.bus.sync_read(device_ids, block.start - more, block.size + more)
            for device_id, status in answers.items():
                found[device_id].append((block.start - more, status))
        return {device_id: rows for device_id, rows in found.items() if len(rows) == len(blocks)}

    def _take(self, device_id: int, reading: Reading, now_s: float) -> None:
        """Keeps a reading, unless the joint cannot have got there; three times in a row it has."""
        seen = self._seen.get(device_id)
        if seen is not None and seen.jumps < BELIEVED - 1 and self._jumped(device_id, seen, reading, now_s):
            seen.jumps += 1
            return
        differences = self.shadow.differences(device_id, reading.volatile)
        self._seen[device_id] = _Seen(reading=reading, time_s=now_s, differences=differences)

    def _jumped(self, device_id: int, seen: _Seen, reading: Reading, now_s: float) -> bool:
        joint, j = self.joint(device_id), self.ids.index(device_id)
        before_J, q_J = np.zeros(len(self.ids)), np.zeros(len(self.ids))
        before_J[j], q_J[j] = joint.to_rad(seen.reading.count), joint.to_rad(reading.count)
        return bool(jumped(before_J, q_J, now_s - seen.time_s, self.spec)[j])

    def _state(self, now_s: float) -> ArmState:
        missing = [i for i in self.ids if i not in self._seen]
        if missing:
            raise BusError(f"{self.spec.name}: servos {missing} have never answered soundly")
        seen = [self._seen[device_id] for device_id in self.ids]
        rows = [(self.joint(device_id), each.reading) for device_id, each in zip(self.ids, seen, strict=True)]
        age_J = np.array([now_s - each.time_s for each in seen])
        goal_J = np.array([joint.to_rad(row.goal_count) for joint, row in rows])
        return ArmState(
            time_s=now_s,
            q_J=np.array([joint.to_rad(row.count) for joint, row in rows]),
            dq_J=np.array([joint.direction * row.counts_s / COUNTS_PER_RAD for joint, row in rows]),
            effort_J=np.array([joint.direction * row.effort for joint, row in rows]),
            current_J=np.array([row.current_a for _, row in rows]),
            temperature_J=np.array([row.temperature_c for _, row in rows]),
            voltage_J=np.array([row.voltage_v for _, row in rows]),
            goal_J=np.where(age_J > 0.0, np.nan, goal_J),  # an old echo says nothing about the last write
            torque_on_J=np.array([row.torque_on for _, row in rows]),
            status_J=np.array([row.status for _, row in rows], np.int64),
            age_J=age_J,
        )

    def _two_readings(self) -> None:
        """Forgets the past. Raises BusError unless two readings in a row agree."""
        self._seen.clear()
        first_J = self._first_reading().q_J
        second_J = self.standing().q_J
        worst = int(np.argmax(np.abs(second_J - first_J)))
        if abs(second_J - first_J)[worst] > AGREE_RAD:
            text = f"{first_J[worst]:.3f} and {second_J[worst]:.3f} rad"
            raise BusError(f"{self.spec.names[worst]}: two readings in a row say {text}; is the arm being moved?")

    def _first_reading(self) -> ArmState:
        """Several tries: a noisy line may swallow the first answers."""
        for _ in range(8):
            now_s = self.clock.now()
            for device_id, blocks in self._read_blocks().items():
                self._take(device_id, self.parse(device_id, *blocks), now_s)
            if len(self._seen) == len(self.ids):
                break
        return self._state(self.clock.now())

    def _torque_off(self) -> None:
        """Every servo, then everybody at once, then a look. A write with an error bit in its answer was done."""
        row = self.registers["torque_enable"]
        for servo in self.servos:
            for device_id in servo.motors:
                self.bus.write(device_id, row.address, row.pack(0), tries=2)
            self.shadow.expect(servo.device_id, {"torque_enable": 0})
        for _ in range(2):
            self.bus.send(self.codec.torque_off_all())
        doubtful = []
        for name, device_id in ((self.names[s.device_id], i) for s in self.servos for i in s.motors):
            try:
                if self.get(device_id, "torque_enable"):
                    doubtful.append(f"{name} (servo {device_id}) still has torque")
            except BusError:
                doubtful.append(f"{name} (servo {device_id}) does not answer")
        if doubtful:
            raise TorqueOffError(f"torque off is not confirmed: {', '.join(doubtful)}. Every other servo is off")
