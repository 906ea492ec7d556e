"""Feetech STS/SMS ("protocol 0"): instruction packets and a strict decoder of status packets.

    FF FF | ID | LEN | INST or ERR | params... | CHK      LEN = params + 2, CHK = ~(ID + LEN + INST + params) & FF

Special: the decoder never trusts a length. A candidate that is too long for what was asked, or whose checksum fails,
costs one byte and the search goes on behind it, so garbage cannot swallow the reply that follows. The wire carries no
correlation number: that a reply belongs to *this* request is for the caller to make sure (drain first, compare sizes).
Source: Feetech memory tables and the packets of the vendor's SDK.
"""

from collections.abc import Mapping, Sequence

from real_robot.protocols.decoder import Decoder
from real_robot.protocols.rows import Status

BROADCAST = 0xFE
MAX_ID = 0xFD
MAX_PARAMS = 250  # a packet of the vendor's SDK is at most 250 bytes in all

PING, READ, WRITE, REG_WRITE, ACTION = 0x01, 0x02, 0x03, 0x04, 0x05
SYNC_READ, SYNC_WRITE = 0x82, 0x83

STATUS_OVERHEAD = 6  # bytes of a status packet beside its data
STATUS_BITS = {0x01: "voltage", 0x02: "encoder", 0x04: "temperature", 0x08: "current", 0x20: "overload"}


def checksum(body: bytes) -> int:
    """Of everything between the header and the checksum itself."""
    return ~sum(body) & 0xFF


def packet(device_id: int, instruction: int, params: bytes = b"") -> bytes:
    """One instruction packet. Raises ValueError for an ID or a length that the wire cannot carry."""
    if not 0 <= device_id <= BROADCAST:
        raise ValueError(f"device_id {device_id} is not in 0..{BROADCAST}")
    if len(params) > MAX_PARAMS - 6:
        raise ValueError(f"{len(params)} parameter bytes, at most {MAX_PARAMS - 6}")
    body = bytes([device_id, len(params) + 2, instruction]) + params
    return b"\xff\xff" + body + bytes([checksum(body)])


def ping(device_id: int) -> bytes:
    return packet(device_id, PING)


def read(device_id: int, address: int, size: int) -> bytes:
    return packet(device_id, READ, bytes([address, size]))


def write(device_id: int, address: int, data: bytes) -> bytes:
    return packet(device_id, WRITE, bytes([address]) + data)


def reg_write(device_id: int, address: int, data: bytes) -> bytes:
    """A write that waits for ACTION."""
    return packet(device_id, REG_WRITE, bytes([address]) + data)


def action(device_id: int = BROADCAST) -> bytes:
    """Carries out the pending REG_WRITEs, everywhere at once."""
    return packet(device_id, ACTION)


def sync_read(device_ids: Sequence[int], address: int, size: int) -> bytes:
    """Asks each listed servo for the same block; one status packet each, in this order."""
    _check_ids(device_ids)
    return packet(BROADCAST, SYNC_READ, bytes([address, size, *device_ids]))


def sync_write(address: int, data: Mapping[int, bytes]) -> bytes:
    """Writes blocks of one size to several servos; nobody answers."""
    _check_ids(list(data))
    sizes = {len(block) for block in data.values()}
    if len(sizes) != 1:
        raise ValueError(f"sync_write needs blocks of one size, got sizes {sorted(sizes)}")
    blocks = b"".join(bytes([device_id]) + block for device_id, block in data.items())
    return packet(BROADCAST, SYNC_WRITE, bytes([address, sizes.pop()]) + blocks)


def torque_off_all() -> bytes:
    """The stop that fits into one packet: broadcast torque off. No servo answers it."""
    return write(BROADCAST, 40, b"\x00")


def status_size(data_size: int) -> int:
    """Bytes on the wire of one status packet that carries `data_size` bytes."""
    return STATUS_OVERHEAD + data_size


def _check_ids(device_ids: Sequence[int]) -> None:
    if not device_ids or len(set(device_ids)) != len(device_ids) or not all(0 <= i <= MAX_ID for i in device_ids):
        raise ValueError(f"device_ids {list(device_ids)}: expected distinct IDs in 0..{MAX_ID}, at least one")


class StatusDecoder(Decoder):
    """Of this protocol."""

    @staticmethod
    def longest(data_size: int | None) -> int:
        return (MAX_PARAMS if data_size is None else data_size) + 2

    def candidate(self, start: int) -> int | None:
        head = self._buffer[start : start + 5]
        if head[0] != 0xFF or (len(head) > 1 and head[1] != 0xFF):
            return 0
        if len(head) > 2 and head[2] > MAX_ID:
            return 0
        if len(head) > 3 and not 2 <= head[3] <= self._max_length:
            return 0
        if len(head) > 4 and head[4] > 0x7F:  # no status bit is that high
            return 0
        size = head[3] + 4 if len(head) == 5 else None
        return size if size and len(self._buffer) - start >= size else None

    def status(self, whole: bytes) -> Status | None:
        body = whole[2:-1]
        if checksum(body) != whole[-1]:
            return None
        return Status(device_id=body[0], error=body[2], data=body[3:])
