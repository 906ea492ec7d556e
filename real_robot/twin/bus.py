"""The wire and the clockwork of a bus twin: bytes with arrival times, half duplex, physics in step with them.

Special: nothing here waits. The twin is told the time by its clock and catches up with it, so the same code runs
behind a pseudo-terminal in real time and in a test at a hundred times that, bit for bit the same. Events (a packet has
arrived, a reply begins) run at their own instants, with the physics brought to each of them first.
"""

import heapq
import itertools
import math
import random
import threading
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from real_robot.twin.monitors import Peaks, WireMonitor, Write
from real_robot.twin.physics import Plant
from real_robot.twin.servo import ServoTwin

STEP_S = 0.002
BITS_PER_BYTE = 10  # start, eight, stop
EVERYONE = 0xFE


@dataclass(kw_only=True)
class Burst:
    """Bytes on their way to the host: byte i is there at start_s + (i + 1) byte_s."""

    start_s: float
    byte_s: float
    data: bytearray
    taken: int = 0

    @property
    def end_s(self) -> float:
        return self.start_s + self.byte_s * len(self.data)


@dataclass(frozen=True, kw_only=True)
class Instruction:
    """A sound packet from the host. Both protocols number their instructions alike."""

    device_id: int
    code: int
    params: bytes


class Parser(Protocol):
    """Of one protocol. lost: packets that were broken."""

    lost: int

    def feed(self, byte: int) -> Instruction | None:
        """The packet that this byte completes, if it does and all of it is right."""
        ...


class BusTwin[S: ServoTwin](ABC):
    """Servos of class S on one wire, moving one plant.

    clock: monotonic seconds. baud: what the host is assumed to use where the link cannot tell. echo: the adapter
    returns what the host sends. seed: of all random faults.
    """

    parser: Callable[[], Parser]
    status_overhead: int  # bytes of an answer beside its data

    def __init__(
        self,
        servos: Sequence[S],
        plant: Plant,
        *,
        clock: Callable[[], float],
        baud: int = 1_000_000,
        echo: bool = False,
        seed: int = 0,
    ) -> None:
        self.servos, self.plant, self.clock = list(servos), plant, clock
        self.baud, self.echo = baud, echo
        self.monitor = WireMonitor()
        self.peaks = Peaks(len(plant.positions_rad))
        self.lock = threading.RLock()
        self.random = random.Random(seed)
        self.supply = 1.0  # share of the nominal voltage
        self._sag_until_s = -math.inf
        self._lost_sync_writes = 0
        self._parser = self.parser()
        self._blocked: set[int] = set()
        self._host_free_s = -math.inf
        self._wire_free_s = -math.inf
        self._bursts: deque[Burst] = deque()
        self._events: list[tuple[float, int, Callable[[float], None]]] = []
        self._order = itertools.count()
        self._simulated_s = clock()
        self.place(plant.positions_rad)
        for servo in self.servos:
            servo.power_on()
            servo.update_command()

    # for tests

    def servo(self, device_id: int) -> S:
        """The servo of this ID, up to date: its script of faults, memory and motor. Raises KeyError."""
        self.advance()
        for servo in self.servos:
            if servo.device_id == device_id:
                return servo
        raise KeyError(f"no servo {device_id} on this bus: {[s.device_id for s in self.servos]}")

    def place(self, positions_rad: Sequence[float]) -> None:
        """Puts the arm here, at rest, as a hand would that moves a limp arm."""
        with self.lock:
            self.advance()
            self.plant.place(positions_rad)
            for servo in self.servos:
                servo.place(self.plant.positions_rad[servo.joint])

    def torque_flags(self) -> dict[int, bool]:
        self.advance()
        return {servo.device_id: servo.torque_on for servo in self.servos}

    def sag(self, share: float, *, for_: float = math.inf) -> None:
        """The supply gives this share of its nominal voltage, for so many seconds."""
        self.advance()
        self.supply, self._sag_until_s = share, self.clock() + for_

    def lose_sync_writes(self, count: int) -> None:
        """The next `count` SYNC_WRITEs reach nobody."""
        self._lost_sync_writes = count

    def inject(self, data: bytes) -> None:
        """Foreign bytes on the wire, to the host."""
        with self.lock:
            self._put_on_wire(self.clock(), bytearray(data), self.baud)

    # for links

    def receive(self, data: bytes, host_baud: int | None = None) -> None:
        """The host has written `data`, now."""
        with self.lock:
            self.advance()
            baud = host_baud or self.baud
            byte_s = BITS_PER_BYTE / baud
            start_s = max(self.clock(), self._host_free_s)
            self._host_free_s = start_s + byte_s * len(data)
            if self._collides(start_s):
                self.monitor.collisions += 1
                data = self._noise(len(data))
            if self.echo:
                self._bursts.append(Burst(start_s=start_s, byte_s=byte_s, data=bytearray(data)))
            for index, packet in self._parse(data):
                self._schedule(
                    start_s + byte_s * (index + 1), lambda t, packet=packet: self._on_packet(packet, t, baud)
                )

    def transmit(self) -> bytes:
        """The bytes that have reached the host since the last call."""
        with self.lock:
            self.advance()
            now_s, data = self.clock(), b""
            while self._bursts:
                burst = self._bursts[0]
                due = min(int((now_s - burst.start_s) / burst.byte_s + 1e-6), len(burst.data))
                data += burst.data[burst.taken : max(due, burst.taken)]
                burst.taken = max(due, burst.taken)
                if burst.taken < len(burst.data):
                    break
                self._bursts.popleft()
            return data

    def next_s(self, size: int) -> float:
        """When something will happen next that a host waiting for `size` bytes should look at; infinity for never."""
        with self.lock:
            event_s = self._events[0][0] if self._events else math.inf
            for burst in self._bursts:
                left = len(burst.data) - burst.taken
                if size <= left:
                    return min(event_s, burst.start_s + burst.byte_s * (burst.taken + size))
                size -= left
            # fewer are on their way than wanted: an event may bring more, the last burst's end shows what there is
            end_s = self._bursts[-1].end_s if self._bursts and not self._events else math.inf
            return min(event_s, end_s)

    def advance(self) -> None:
        """Catches up with the clock."""
        with self.lock:
            now_s = self.clock()
            while self._events and self._events[0][0] <= now_s:
                at_s, _, event = heapq.heappop(self._events)
                self._simulate(at_s)
                event(at_s)
            self._simulate(now_s)

    # for the protocols

    @abstractmethod
    def _on_packet(self, packet: Instruction, at_s: float, host_baud: int) -> None: ...

    @abstractmethod
    def _write(self, servo: S, address: int, data: bytes, at_s: float) -> int:
        """Writes down what is written, and does it. Returns an error code of the protocol."""
        ...

    @abstractmethod
    def _status(self, device_id: int, error: int, data: bytes) -> bytes: ...

    @abstractmethod
    def _ghost_data(self, address: int, data: bytes) -> bytes:
        """What a second servo of the same ID, a quarter turn away, would have read."""
        ...

    def _hears(self, servo: S, device_id: int) -> bool:
        """Whether a write to `device_id` is for this servo."""
        return servo.device_id == device_id

    def _parse(self, data: bytes) -> list[tuple[int, Instruction]]:
        """Packets that `data` completes, each with the index of its last byte. What is broken is counted as lost."""
        parser = self._parser
        found = [(index, packet) for index, byte in enumerate(data) if (packet := parser.feed(byte)) is not None]
        self.monitor.lost, parser.lost = self.monitor.lost + parser.lost, 0
        return found

    def _sync_read(
        self, servos: Sequence[S], block: tuple[int, int], device_ids: bytes, at_s: float, host_baud: int
    ) -> None:
        """One answer after the other, in the order of the list; a silent servo leaves its place empty."""
        address, size = block
        for device_id in device_ids:
            owners = [servo for servo in servos if servo.device_id == device_id]
            for servo in owners:
                at_s = self._reply(servo, servo.error, servo.read(address, size), at_s, address=address)
            if not owners:
                at_s += (self.status_overhead + size) * BITS_PER_BYTE / host_baud

    def _sync_write(self, servos: Sequence[S], block: tuple[int, int], rows: bytes, at_s: float) -> None:
        """`rows`: an ID and its data, one after the other."""
        if self._lost_sync_writes:
            self._lost_sync_writes -= 1
            return
        address, size = block
        for start in range(0, len(rows) - size, size + 1):
            for servo in servos:
                if self._hears(servo, rows[start]):
                    self._write(servo, address, rows[start + 1 : start + 1 + size], at_s)

    def _listeners(self, at_s: float, host_baud: int) -> list[S]:
        """Servos that can hear a packet: awake, plugged in, at the host's speed."""
        return [servo for servo in self.servos if servo.baud == host_baud and servo.awake(at_s)]

    def _reply(self, servo: S, error: int, data: bytes, at_s: float, *, address: int = 0) -> float:
        """Sends a status packet from `at_s` on, plus the return delay. Returns when its place on the wire ends."""
        start_s = at_s + servo.return_delay_s
        wrong = servo.active("wrong_id", at_s)
        shown = servo.device_id if wrong is None else int(wrong) if wrong >= 0 else (servo.device_id + 100) % 250
        clean = self._status(shown, error, data)
        end_s = start_s + len(clean) * BITS_PER_BYTE / servo.baud
        packet = self._spoilt(servo, clean, at_s)
        if servo.active("stale_reply", at_s) is not None:
            if servo.held_reply is None:
                servo.held_reply = packet
                return end_s
            packet, servo.held_reply = servo.held_reply + packet, None
        if servo.active("duplicate", at_s) is not None:
            packet += self._status(shown, error, self._ghost_data(address, data))
        start_s += servo.active("delay_reply", at_s) or 0.0
        self._schedule(start_s, lambda t: self._put_on_wire(t, bytearray(packet), servo.baud))
        return end_s + (len(packet) - len(clean)) * BITS_PER_BYTE / servo.baud

    def _note(self, servo: S, address: int, data: bytes, at_s: float, broken: Sequence[str]) -> None:
        write = Write(
            time_s=at_s, device_id=servo.device_id, address=address, data=bytes(data), torque_on=servo.torque_on
        )
        self.monitor.record(write, eeprom=address < servo.eeprom_size, broken=broken)

    # inside

    def _schedule(self, at_s: float, event: Callable[[float], None]) -> None:
        heapq.heappush(self._events, (at_s, next(self._order), event))

    def _collides(self, at_s: float) -> bool:
        """Whether a servo is still talking; its rest is then noise too."""
        if not self._bursts or self._bursts[-1].end_s <= at_s + 1e-9 or self.echo:
            return False
        burst = self._bursts[-1]
        first = max(burst.taken, int((at_s - burst.start_s) / burst.byte_s))
        burst.data[first:] = self._noise(len(burst.data) - first)
        return True

    def _put_on_wire(self, at_s: float, data: bytearray, baud: int) -> None:
        if at_s < self._host_free_s - 1e-9 and not self.echo:  # the host is talking
            self.monitor.collisions += 1
            data = bytearray(self._noise(len(data)))
        start_s = max(at_s, self._wire_free_s)
        burst = Burst(start_s=start_s, byte_s=BITS_PER_BYTE / baud, data=data)
        self._wire_free_s = burst.end_s
        self._bursts.append(burst)

    def _spoilt(self, servo: S, packet: bytes, at_s: float) -> bytes:
        """The packet after the wire's share of this servo's faults."""

        def happens(kind: str) -> bool:
            share = servo.active(kind, at_s)
            return share is not None and self.random.random() < share

        if happens("flip_bit"):
            place = self.random.randrange(8 * len(packet))
            flipped = bytearray(packet)
            flipped[place // 8] ^= 1 << place % 8
            packet = bytes(flipped)
        if happens("truncate"):
            packet = packet[: len(packet) // 2]
        if happens("double"):
            packet = packet + packet
        if happens("garbage"):
            packet = self._noise(5) + packet[:3] + self._noise(4) + packet
        return packet

    def _noise(self, size: int) -> bytes:
        return self.random.randbytes(size)

    def _simulate(self, until_s: float) -> None:
        plant, supply = self.plant, self.supply
        while self._simulated_s + STEP_S <= until_s:
            now_s = self._simulated_s = self._simulated_s + STEP_S
            if now_s >= self._sag_until_s:
                supply = self.supply = 1.0
                self._sag_until_s = math.inf
            blocked = {servo.joint for servo in self.servos if servo.active("stall", now_s) is not None}
            for joint in blocked ^ self._blocked:
                plant.block(joint, joint in blocked)
            self._blocked = blocked
            torques = [0.0] * len(plant.positions_rad)
            for servo in self.servos:
                joint = servo.joint
                position, speed = plant.positions_rad[joint], plant.speeds_rad_s[joint]
                torques[joint] += servo.step(now_s, STEP_S, position, speed, supply)
            plant.step(torques, STEP_S)
            self.peaks.add(plant.positions_rad, plant.speeds_rad_s, plant.contact_n)
