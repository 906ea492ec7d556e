"""A bus of Dynamixel X servos: hears Protocol 2.0 strictly, does what it says, answers in turn.

Strict: a frame with a wrong CRC, or with FF FF FD inside that is not stuffed, is dropped without an answer. The parser
is a state machine over single bytes and shares nothing with the drivers' codec. A servo whose secondary ID is that of a
packet follows it without an answer, in RAM alone (e-manual, Secondary ID); that a reboot is not followed is assumed.
"""

from dataclasses import dataclass, field

from real_robot.twin.bus import EVERYONE, BusTwin, Instruction
from real_robot.twin.registers_dxl import (
    ACCESS_ERROR,
    CURRENT_POSITION_MODE,
    EEPROM_SIZE,
    FIRMWARE,
    GOAL,
    LENGTH_ERROR,
    MAX_ANGLE,
    MIN_ANGLE,
    MODE,
    MODEL,
    POSITION_MODE,
    RESPONSE_LEVEL,
    DxlServo,
)

INSTRUCTION_ERROR = 2
WRITE, REG_WRITE, ACTION = 0x03, 0x04, 0x05
START = (0xFF, 0xFF, 0xFD, 0x00)


def _remainders() -> tuple[int, ...]:
    """x^16 times each byte modulo x^16 + x^15 + x^2 + 1."""
    polynomial, table = 0x18005, []
    for byte in range(256):
        value = byte << 16
        for bit in range(23, 15, -1):
            if value >> bit & 1:
                value ^= polynomial << (bit - 16)
        table.append(value)
    return tuple(table)


REMAINDERS = _remainders()


def remainder(data: bytes | bytearray) -> int:
    """The CRC of a frame."""
    value = 0
    for byte in data:
        value = (value & 0xFF) << 8 ^ REMAINDERS[value >> 8 ^ byte]
    return value


@dataclass(kw_only=True)
class DxlParser:
    """FF FF FD 00 ID LEN LEN, then LEN bytes of which the last two are the CRC."""

    lost: int = 0
    _frame: bytearray = field(default_factory=bytearray)

    def feed(self, byte: int) -> Instruction | None:
        """The packet that this byte completes, if it does and all of it is right."""
        frame = self._frame
        if len(frame) < 4 and byte != START[len(frame)]:
            # FF FF FF FD: the header may begin one byte later
            self._frame = bytearray(
                b"\xff\xff" if byte == 0xFF and len(frame) == 2 else b"\xff" if byte == 0xFF else b""
            )
            return None
        frame.append(byte)
        if len(frame) < 7 or len(frame) < 7 + frame[5] + 256 * frame[6]:
            return None
        self._frame = bytearray()
        body = _unstuffed(frame[7:-2])
        if len(frame) < 10 or body is None or remainder(frame[:-2]) != frame[-2] + 256 * frame[-1]:
            self.lost += 1
            return None
        return Instruction(device_id=frame[4], code=body[0], params=bytes(body[1:]))


def _unstuffed(body: bytearray) -> bytearray | None:
    """Without the FD behind each FF FF FD, or None where one is missing."""
    clean = bytearray()
    skip = False
    for byte in body:
        if skip:
            if byte != 0xFD:
                return None
            skip = False
            continue
        clean.append(byte)
        skip = clean[-3:] == b"\xff\xff\xfd" and byte == 0xFD
    return None if skip else clean


def _stuffed(body: bytes) -> bytearray:
    """With an FD behind each FF FF FD."""
    out, seen = bytearray(), 0  # FFs in a row
    for byte in body:
        out.append(byte)
        if byte == 0xFD and seen >= 2:
            out.append(0xFD)
        seen = seen + 1 if byte == 0xFF else 0
    return out


class DxlBusTwin(BusTwin[DxlServo]):
    """See the module and `BusTwin`; its servos are `DxlServo`s."""

    parser = DxlParser
    status_overhead = 11

    def _on_packet(self, packet: Instruction, at_s: float, host_baud: int) -> None:
        self.monitor.packets += 1
        servos = self._listeners(at_s, host_baud)
        for servo in servos:
            servo.hear(at_s)
        if packet.code in (0x82, 0x83) and len(packet.params) < 4:
            return
        if packet.code == 0x82:
            self._sync_read(servos, _block(packet), packet.params[4:], at_s, host_baud)
        elif packet.code == 0x83:
            self._sync_write(servos, _block(packet), packet.params[4:], at_s)
        elif packet.device_id == EVERYONE:
            for servo in sorted(servos, key=lambda servo: servo.device_id):
                if packet.code == 0x01:
                    at_s = self._reply(servo, servo.error, self._identity(servo), at_s)
                else:
                    self._carry_out(servo, packet, at_s)
        else:
            for servo in servos:
                if servo.device_id == packet.device_id:
                    self._answer(servo, packet, at_s)
                elif servo.follows(packet.device_id) and packet.code in (WRITE, REG_WRITE, ACTION):
                    self._carry_out(servo, packet, at_s, followed=True)

    def _answer(self, servo: DxlServo, packet: Instruction, at_s: float) -> None:
        """PING and READ always answer (unless the level forbids it), the rest at level 2."""
        level = servo.memory[RESPONSE_LEVEL]
        if packet.code == 0x01:
            self._reply(servo, servo.error, self._identity(servo), at_s)
        elif packet.code == 0x02:
            if level == 0:
                return
            if len(packet.params) != 4:
                self._reply(servo, servo.error | LENGTH_ERROR, b"", at_s)
                return
            address, size = _word(packet.params, 0), _word(packet.params, 2)
            self._reply(servo, servo.error, servo.read(address, size), at_s, address=address)
        else:
            device_id = servo.device_id
            code = self._carry_out(servo, packet, at_s)
            if level >= 2 and packet.code != ACTION:
                # the answer carries the ID that was asked, even where the write changes it
                now_id, servo.device_id = servo.device_id, device_id
                self._reply(servo, servo.error | code, b"", at_s)
                servo.device_id = now_id

    def _hears(self, servo: DxlServo, device_id: int) -> bool:
        return servo.device_id == device_id or servo.follows(device_id)

    def _carry_out(self, servo: DxlServo, packet: Instruction, at_s: float, *, followed: bool = False) -> int:
        """Returns the error code. `followed`: it is another servo's packet, which cannot reach the EEPROM."""
        code, params = packet.code, packet.params
        if followed and len(params) > 2 and _word(params, 0) < EEPROM_SIZE:
            return ACCESS_ERROR
        if code == WRITE and len(params) > 2:
            return self._write(servo, _word(params, 0), params[2:], at_s)
        if code == REG_WRITE and len(params) > 2:
            servo.pending = (_word(params, 0), params[2:])
            return 0
        if code == ACTION:
            pending, servo.pending = servo.pending, None
            return self._write(servo, *pending, at_s) if pending else 0
        if code == 0x08:
            # the answer leaves before the power does
            self._schedule(at_s + 1e-3, servo.reboot)
            return 0
        if code == 0x10 and params == b"\x01\x44\x58\x4c\x22":
            servo.clear_turns()
            return 0
        return LENGTH_ERROR if code in (WRITE, REG_WRITE) else INSTRUCTION_ERROR

    def _write(self, servo: DxlServo, address: int, data: bytes, at_s: float) -> int:
        broken = []
        if servo.torque_on and address < EEPROM_SIZE:
            broken.append("eeprom_while_torque_on")
        if address <= GOAL and address + len(data) >= GOAL + 4:
            goal = int.from_bytes(data[GOAL - address : GOAL - address + 4], "little", signed=True)
            low, high = servo.get(MIN_ANGLE, 4), servo.get(MAX_ANGLE, 4)
            if servo.memory[MODE] in (POSITION_MODE, CURRENT_POSITION_MODE) and not low <= goal <= high:
                broken.append("goal_out_of_range")
        self._note(servo, address, data, at_s, broken)
        return servo.write(address, data)

    def _identity(self, servo: DxlServo) -> bytes:
        return bytes(servo.memory[MODEL : MODEL + 2]) + bytes([servo.memory[FIRMWARE]])

    def _status(self, device_id: int, error: int, data: bytes) -> bytes:
        body = _stuffed(bytes([0x55, error]) + data)
        size = len(body) + 2
        frame = bytes([*START, device_id, size % 256, size // 256]) + body
        crc = remainder(frame)
        return frame + bytes([crc % 256, crc // 256])

    def _ghost_data(self, address: int, data: bytes) -> bytes:
        start = 132 - address
        if start < 0 or start + 4 > len(data):
            return data
        moved = int.from_bytes(data[start : start + 4], "little", signed=True) + 1024
        return data[:start] + moved.to_bytes(4, "little", signed=True) + data[start + 4 :]


def _block(packet: Instruction) -> tuple[int, int]:
    """(address, size) of a SYNC instruction."""
    return _word(packet.params, 0), _word(packet.params, 2)


def _word(data: bytes, start: int) -> int:
    return data[start] + 256 * data[start + 1]
