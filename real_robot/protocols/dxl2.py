"""Dynamixel Protocol 2.0: instruction packets, byte stuffing and a strict decoder of status packets.

    FF FF FD 00 | ID | LEN_L LEN_H | INST | params | CRC_L CRC_H        LEN = INST + params + CRC, after stuffing
    status: INST = 55, then ERR (bit 7: hardware alert, bits 0-6: code), then data
    stuffing: inside INST..params every FF FF FD is followed by one more FD, so no header can stand there

Special: stuffing is exact in both directions (the vendor's SDK sends packets that need it unstuffed, and does not
always undo its own), and a packet whose stuffing is broken is refused even if its CRC is right.
Source: Robotis e-manual, Protocol 2.0. CRC-16 of polynomial 0x8005, start 0, no reflection.
"""

from collections.abc import Mapping, Sequence

from real_robot.protocols.decoder import Decoder
from real_robot.protocols.rows import Status

BROADCAST = 0xFE
MAX_ID = 0xFC
MAX_DATA = 1000

PING, READ, WRITE, REG_WRITE, ACTION = 0x01, 0x02, 0x03, 0x04, 0x05
REBOOT, CLEAR, STATUS, SYNC_READ, SYNC_WRITE = 0x08, 0x10, 0x55, 0x82, 0x83

HEADER = b"\xff\xff\xfd\x00"
STATUS_OVERHEAD = 11  # bytes of a status packet beside its (stuffed) data
ALERT_BIT = 0x80
ERRORS = {
    1: "result fail",
    2: "instruction error",
    3: "CRC error",
    4: "data range error",
    5: "data length error",
    6: "data limit error",
    7: "access error",
}


def _crc_table() -> list[int]:
    table = []
    for byte in range(256):
        register = byte << 8
        for _ in range(8):
            register = (register << 1 ^ (0x8005 if register & 0x8000 else 0)) & 0xFFFF
        table.append(register)
    return table


_CRC = _crc_table()


def crc16(data: bytes) -> int:
    """Of everything from the header to the last parameter."""
    register = 0
    for byte in data:
        register = (register << 8 & 0xFFFF) ^ _CRC[register >> 8 ^ byte]
    return register


def stuff(body: bytes) -> bytes:
    """Puts FD behind every FF FF FD. `body` is INST..params."""
    return body.replace(b"\xff\xff\xfd", b"\xff\xff\xfd\xfd")


def unstuff(body: bytes) -> bytes | None:
    """Inverse of `stuff`, or None where FF FF FD stands without its FD: no sender makes that."""
    if body.count(b"\xff\xff\xfd") != body.count(b"\xff\xff\xfd\xfd"):
        return None
    return body.replace(b"\xff\xff\xfd\xfd", b"\xff\xff\xfd")


def packet(device_id: int, instruction: int, params: bytes = b"") -> bytes:
    """One instruction packet. Raises ValueError for an ID or a length that the wire cannot carry."""
    if not (0 <= device_id <= MAX_ID or device_id == BROADCAST):
        raise ValueError(f"device_id {device_id} is not in 0..{MAX_ID} and not {BROADCAST}")
    if len(params) > MAX_DATA:
        raise ValueError(f"{len(params)} parameter bytes, at most {MAX_DATA}")
    body = stuff(bytes([instruction]) + params)
    head = HEADER + bytes([device_id]) + (len(body) + 2).to_bytes(2, "little") + body
    return head + crc16(head).to_bytes(2, "little")


def ping(device_id: int) -> bytes:
    return packet(device_id, PING)


def read(device_id: int, address: int, size: int) -> bytes:
    return packet(device_id, READ, _word(address) + _word(size))


def write(device_id: int, address: int, data: bytes) -> bytes:
    return packet(device_id, WRITE, _word(address) + data)


def reg_write(device_id: int, address: int, data: bytes) -> bytes:
    """A write that waits for ACTION."""
    return packet(device_id, REG_WRITE, _word(address) + data)


def action(device_id: int = BROADCAST) -> bytes:
    """Carries out the pending REG_WRITEs, everywhere at once."""
    return packet(device_id, ACTION)


def reboot(device_id: int) -> bytes:
    """Restarts one servo: the only way out of a hardware error."""
    return packet(device_id, REBOOT)


def clear_turns(device_id: int) -> bytes:
    """CLEAR 01: folds a multi-turn position back into one turn."""
    return packet(device_id, CLEAR, b"\x01\x44\x58\x4c\x22")


def sync_read(device_ids: Sequence[int], address: int, size: int) -> bytes:
    """Asks each listed servo for the same block; one status packet each, in this order."""
    _check_ids(device_ids)
    return packet(BROADCAST, SYNC_READ, _word(address) + _word(size) + bytes(device_ids))


def sync_write(address: int, data: Mapping[int, bytes]) -> bytes:
    """Writes blocks of one size to several servos; nobody answers."""
    _check_ids(list(data))
    sizes = {len(block) for block in data.values()}
    if len(sizes) != 1:
        raise ValueError(f"sync_write needs blocks of one size, got sizes {sorted(sizes)}")
    blocks = b"".join(bytes([device_id]) + block for device_id, block in data.items())
    return packet(BROADCAST, SYNC_WRITE, _word(address) + _word(sizes.pop()) + blocks)


def torque_off_all() -> bytes:
    """The stop that fits into one packet: broadcast torque off. No servo answers it."""
    return write(BROADCAST, 64, b"\x00")


def status_size(data_size: int) -> int:
    """Bytes on the wire of one status packet that carries `data_size` bytes and needs no stuffing."""
    return STATUS_OVERHEAD + data_size


def _word(value: int) -> bytes:
    return value.to_bytes(2, "little")


def _check_ids(device_ids: Sequence[int]) -> None:
    if not device_ids or len(set(device_ids)) != len(device_ids) or not all(0 <= i <= MAX_ID for i in device_ids):
        raise ValueError(f"device_ids {list(device_ids)}: expected distinct IDs in 0..{MAX_ID}, at least one")


class StatusDecoder(Decoder):
    """Of this protocol."""

    @staticmethod
    def longest(data_size: int | None) -> int:
        size = MAX_DATA if data_size is None else data_size
        return size + 4 + (size + 2) // 3  # INST, ERR, CRC, and the worst stuffing

    def candidate(self, start: int) -> int | None:
        head = self._buffer[start : start + 8]
        if bytes(head[:4]) != HEADER[: len(head)]:
            return 0
        if len(head) > 4 and head[4] > MAX_ID:
            return 0
        if len(head) < 8:
            return None
        length = head[5] | head[6] << 8
        if not 4 <= length <= self._max_length or head[7] != STATUS:
            return 0
        return length + 7 if len(self._buffer) - start >= length + 7 else None

    def status(self, whole: bytes) -> Status | None:
        if crc16(whole[:-2]) != whole[-2] | whole[-1] << 8:
            return None
        body = unstuff(whole[7:-2])
        if body is None or len(body) < 2:
            return None
        return Status(device_id=whole[4], error=body[1], data=body[2:])
