"""A bus of Feetech STS servos: hears instruction packets byte by byte, does what they say, answers in turn.

The parser is a state machine over single bytes and shares nothing with the drivers' codec.
"""

from dataclasses import dataclass, field

from real_robot.twin.bus import EVERYONE, BusTwin, Instruction
from real_robot.twin.registers_sts import (
    EEPROM_SIZE,
    GOAL,
    MAX_ANGLE,
    MIN_ANGLE,
    RESPONSE_LEVEL,
    SET_MIDDLE,
    TORQUE,
    StsServo,
)


@dataclass(kw_only=True)
class StsParser:
    """FF FF ID LEN then LEN bytes, the last of which is the inverted sum of all since ID."""

    lost: int = 0
    _head: int = 0  # FFs seen
    _body: bytearray = field(default_factory=bytearray)

    def feed(self, byte: int) -> Instruction | None:
        """The packet that this byte completes, if it does and its sum is right."""
        if self._head < 2:
            self._head = self._head + 1 if byte == 0xFF else 0
            return None
        if not self._body and byte == 0xFF:  # a third FF: the header begins one byte later
            return None
        self._body.append(byte)
        if len(self._body) == 2 and byte < 2:
            return self._give_up()
        if len(self._body) < 2 or len(self._body) < 2 + self._body[1]:
            return None
        *inside, last = self._body
        if (sum(inside) + last) & 0xFF != 0xFF:
            return self._give_up()
        self._head, self._body = 0, bytearray()
        return Instruction(device_id=inside[0], code=inside[2], params=bytes(inside[3:]))

    def _give_up(self) -> None:
        self.lost += 1
        self._head, self._body = 0, bytearray()


class StsBusTwin(BusTwin[StsServo]):
    """See the module and `BusTwin`; its servos are `StsServo`s."""

    parser = StsParser
    status_overhead = 6

    def _on_packet(self, packet: Instruction, at_s: float, host_baud: int) -> None:
        self.monitor.packets += 1
        servos = self._listeners(at_s, host_baud)
        if packet.code in (0x82, 0x83) and len(packet.params) < 2:
            return
        if packet.code == 0x82:
            self._sync_read(servos, _block(packet), packet.params[2:], at_s, host_baud)
        elif packet.code == 0x83:
            self._sync_write(servos, _block(packet), packet.params[2:], at_s)
        elif packet.device_id == EVERYONE:
            for servo in sorted(servos, key=lambda servo: servo.device_id):
                self._carry_out(servo, packet, at_s, answers=False)
                if packet.code == 0x01:
                    at_s = self._reply(servo, servo.error, b"", at_s)
        else:
            for servo in [servo for servo in servos if servo.device_id == packet.device_id]:
                self._carry_out(servo, packet, at_s, answers=True)

    def _carry_out(self, servo: StsServo, packet: Instruction, at_s: float, *, answers: bool) -> None:
        code, params = packet.code, packet.params
        if code in (0x01, 0x02) and answers:
            data = servo.read(params[0], params[1]) if code == 0x02 and len(params) == 2 else b""
            self._reply(servo, servo.error, data, at_s, address=params[0] if params else 0)
            return
        # the answer carries the ID that was asked, even where the write changes it
        if answers and servo.memory[RESPONSE_LEVEL]:
            self._reply(servo, servo.error, b"", at_s)
        if code == 0x03 and len(params) > 1:
            self._write(servo, params[0], params[1:], at_s)
        elif code == 0x04 and len(params) > 1:
            servo.pending = (params[0], params[1:])
        elif code == 0x05 and servo.pending is not None:
            pending, servo.pending = servo.pending, None
            self._write(servo, *pending, at_s)

    def _write(self, servo: StsServo, address: int, data: bytes, at_s: float) -> int:
        broken = []
        if servo.torque_on and address < EEPROM_SIZE:
            broken.append("eeprom_while_torque_on")
        if address <= TORQUE < address + len(data) and data[TORQUE - address] == SET_MIDDLE:
            broken.append("set_middle")
        if address <= GOAL and address + len(data) >= GOAL + 2:
            raw = int.from_bytes(data[GOAL - address : GOAL - address + 2], "little")
            goal = -(raw & 0x7FFF) if raw & 0x8000 else raw
            if not servo.get(MIN_ANGLE, 2) <= goal <= servo.get(MAX_ANGLE, 2):
                broken.append("goal_out_of_range")
        self._note(servo, address, data, at_s, broken)
        return servo.write(address, data)

    def _status(self, device_id: int, error: int, data: bytes) -> bytes:
        middle = [device_id, len(data) + 2, error, *data]
        return bytes([0xFF, 0xFF, *middle, 0xFF - sum(middle) % 256])

    def _ghost_data(self, address: int, data: bytes) -> bytes:
        return _shifted(address, data, 56, 2)


def _block(packet: Instruction) -> tuple[int, int]:
    """(address, size) of a SYNC instruction."""
    return packet.params[0], packet.params[1]


def _shifted(address: int, data: bytes, position: int, width: int) -> bytes:
    """`data` with the position register in it, if it is, a quarter turn on."""
    start = position - address
    if start < 0 or start + width > len(data):
        return data
    moved = (int.from_bytes(data[start : start + width], "little") + 1024) % 4096
    return data[:start] + moved.to_bytes(width, "little") + data[start + width :]
