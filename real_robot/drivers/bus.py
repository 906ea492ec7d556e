"""One request, its answers, and nothing else: what a servo bus needs because replies carry no correlation number.

A reply counts only if its ID, length and checksum are those that were asked for and no second, different reply claims
to be the same one. A reply of another length is the answer to an older question: its servo is then distrusted until
three exchanges in a row were clean. After anything odd the line is drained until it is quiet. Deadlines follow from
the number of bytes, so one dead servo costs milliseconds, not the 35 of the vendors' SDKs.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from real_robot.core.types import Clock
from real_robot.drivers.errors import BusError
from real_robot.protocols.rows import Status
from real_robot.transports import Transport

BITS_PER_BYTE = 10
SLACK_S = 3e-3  # a servo's own delay and the adapter's, on top of the time of the bytes
QUIET_BYTES = 2.0
MISSED_QUIET_S = 1e-3  # an answer that is missing may still be on its way
DISTRUST = 3  # clean exchanges until a servo that answered late is believed again


class Decoder(Protocol):
    """`StatusDecoder` of either codec."""

    refused: list[Status]
    discarded: int

    def feed(self, data: bytes) -> list[Status]: ...

    def finish(self) -> list[Status]: ...


class Codec(Protocol):
    """The functions that `protocols.sts` and `protocols.dxl2` have in common; the modules themselves are passed."""

    def ping(self, device_id: int) -> bytes: ...

    def read(self, device_id: int, address: int, size: int) -> bytes: ...

    def write(self, device_id: int, address: int, data: bytes) -> bytes: ...

    def sync_read(self, device_ids: Sequence[int], address: int, size: int) -> bytes: ...

    def sync_write(self, address: int, data: Mapping[int, bytes]) -> bytes: ...

    def torque_off_all(self) -> bytes: ...

    def status_size(self, data_size: int) -> int: ...

    def StatusDecoder(self, *, device_ids: Collection[int] | None = None, data_size: int | None = None) -> Decoder: ...


@dataclass(kw_only=True)
class BusCounts:
    """Since the port was opened. stray: requests that found bytes on the line which nobody had asked for."""

    requests: int = 0
    missing: int = 0
    refused: int = 0
    stray: int = 0


class Bus:
    """Transactions on an open transport. `echo`: the adapter returns what we send; `probe_echo` finds out."""

    def __init__(
        self, transport: Transport, codec: Codec, clock: Clock, *, baud: int = 1_000_000, slack_s: float = SLACK_S
    ) -> None:
        self.codec, self.clock = codec, clock
        self._transport = transport
        self._byte_s, self._slack_s = BITS_PER_BYTE / baud, slack_s
        self._dirty, self._quiet_s = False, QUIET_BYTES * self._byte_s
        self._distrusted: dict[int, int] = {}
        self.echo = False
        self.counts = BusCounts()

    def probe_echo(self, device_id: int) -> None:
        """Notes whether the adapter returns what is sent."""
        packet = self.codec.ping(device_id)
        self._transport.drain(QUIET_BYTES * self._byte_s)
        self._transport.write(packet)
        data = self._transport.read(len(packet), self._deadline(len(packet), len(packet)))
        self.echo, self._dirty = data == packet, True
        self._transport.drain(self._slack_s)

    def ping(self, device_id: int, *, data_size: int = 0) -> list[Status]:
        """Every answer to one PING: two of them mean that two servos share the ID."""
        packet = self.codec.ping(device_id)
        decoder = self.codec.StatusDecoder(device_ids=[device_id], data_size=data_size)
        self._send(packet)
        data = self._transport.read(1000, self._deadline(len(packet), 2 * self.codec.status_size(data_size)))
        return decoder.feed(data) + decoder.finish()

    def scan(self, ids: Sequence[int], *, data_size: int = 0) -> dict[int, Status]:
        """Those of `ids` that answer a PING."""
        found = {device_id: self.ping(device_id, data_size=data_size) for device_id in ids}
        return {device_id: answers[0] for device_id, answers in found.items() if answers}

    def read(self, device_id: int, address: int, size: int, *, tries: int = 3) -> Status:
        """One block of one servo. Raises BusError when no sound answer comes."""
        for _ in range(tries):
            answers = self._exchange(self.codec.read(device_id, address, size), [device_id], size)
            if device_id in answers:
                return answers[device_id]
        raise BusError(f"servo {device_id} does not answer (read @{address}, {tries} tries)")

    def write(self, device_id: int, address: int, data: bytes, *, tries: int = 3) -> Status | None:
        """Writes one block; None when no answer confirms it. Error bits ride on answers to writes that were done."""
        for _ in range(tries):
            answers = self._exchange(self.codec.write(device_id, address, data), [device_id], 0)
            if device_id in answers:
                return answers[device_id]
        return None

    def sync_read(self, device_ids: Sequence[int], address: int, size: int) -> dict[int, Status]:
        """The same block of several servos; those that did not answer soundly are left out."""
        return self._exchange(self.codec.sync_read(device_ids, address, size), device_ids, size)

    def sync_write(self, address: int, data: Mapping[int, bytes]) -> None:
        """One block for each of several servos; nobody confirms."""
        self._send(self.codec.sync_write(address, data))

    def send(self, packet: bytes) -> None:
        """A packet that nobody answers, such as the broadcast stop."""
        self._send(packet)

    def close(self) -> None:
        self._transport.close()

    def _exchange(self, packet: bytes, device_ids: Sequence[int], size: int) -> dict[int, Status]:
        decoder = self.codec.StatusDecoder(device_ids=set(device_ids), data_size=size)
        expected = len(device_ids) * self.codec.status_size(size)
        self._send(packet)
        deadline_s = self._deadline(len(packet), expected)
        found = decoder.feed(self._transport.read(expected, deadline_s))
        while len({status.device_id for status in found}) < len(device_ids):
            piece = self._transport.read(1, deadline_s)  # stuffing or garbage made the answer longer
            if not piece:
                found += decoder.finish()
                break
            found += decoder.feed(piece)
        extra = self._transport.drain(QUIET_BYTES * self._byte_s)
        found += decoder.feed(extra) + (decoder.finish() if extra else [])
        return self._sound(found, decoder, device_ids, odd=bool(extra))

    def _sound(
        self, found: list[Status], decoder: Decoder, device_ids: Sequence[int], *, odd: bool
    ) -> dict[int, Status]:
        """The answers that can be believed."""
        late = {status.device_id for status in decoder.refused if status.device_id in device_ids}
        answers: dict[int, Status] = {}
        twice: set[int] = set()
        for status in found:
            if answers.setdefault(status.device_id, status) != status:
                twice.add(status.device_id)
        for device_id in late | twice:
            self._distrusted[device_id] = DISTRUST
        believed = {}
        for device_id, status in answers.items():
            left = self._distrusted.get(device_id, 0)
            if device_id not in late | twice and left:
                self._distrusted[device_id] = left - 1
            if not left and device_id not in late | twice:
                believed[device_id] = status
        self.counts.requests += 1
        self.counts.missing += len(device_ids) - len(believed)
        self.counts.refused += len(decoder.refused) + len(twice)
        self._dirty = odd or len(believed) < len(device_ids) or bool(decoder.discarded)
        if len(believed) < len(device_ids):
            self._quiet_s = max(self._quiet_s, MISSED_QUIET_S)
        return believed

    def _send(self, packet: bytes) -> None:
        """Writes on a line that holds nothing old."""
        stray = self._transport.drain(self._quiet_s if self._dirty else 0.0)
        self.counts.stray += bool(stray) and not self._dirty
        self._dirty, self._quiet_s = False, QUIET_BYTES * self._byte_s
        self._transport.write(packet)
        if self.echo:
            back = self._transport.read(len(packet), self._deadline(len(packet), len(packet)))
            self._dirty = back != packet

    def _deadline(self, num_sent: int, num_expected: int) -> float:
        return self.clock.now() + (num_sent + num_expected) * self._byte_s + self._slack_s
