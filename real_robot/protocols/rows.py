"""Two rows that both servo protocols share: a register of the control table and a decoded status packet."""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Register:
    """One row of a control table. Both families are little-endian.

    sign_bit: sign-magnitude, the bit that says "negative" (Feetech); None and not twos_complement: unsigned.
    unit: of one count, in words, e.g. "0.1 V".
    """

    name: str
    address: int
    width: int
    sign_bit: int | None = None
    twos_complement: bool = False
    eeprom: bool = False
    read_only: bool = False
    unit: str = "1"

    @property
    def low(self) -> int:
        """Smallest value that the register holds."""
        if self.sign_bit is not None:
            return 1 - (1 << self.sign_bit)
        return -(1 << (8 * self.width - 1)) if self.twos_complement else 0

    @property
    def high(self) -> int:
        """Largest value that the register holds."""
        if self.sign_bit is not None:
            return (1 << self.sign_bit) - 1
        return (1 << (8 * self.width - self.twos_complement)) - 1

    def pack(self, value: int) -> bytes:
        """The bytes that write `value`. Raises ValueError when it does not fit."""
        if not self.low <= value <= self.high:
            raise ValueError(f"register '{self.name}': {value} is not in {self.low}..{self.high}")
        raw = encode_sign(value, self.sign_bit) if self.sign_bit is not None else value
        return raw.to_bytes(self.width, "little", signed=self.twos_complement)

    def unpack(self, data: bytes) -> int:
        """The value in `data`. Raises ValueError unless it is as long as the register."""
        if len(data) != self.width:
            raise ValueError(f"register '{self.name}': {len(data)} bytes, expected {self.width}")
        raw = int.from_bytes(data, "little", signed=self.twos_complement)
        return decode_sign(raw, self.sign_bit) if self.sign_bit is not None else raw

    def find(self, block: bytes, start: int) -> int:
        """The register's value in a block that was read from address `start` on."""
        offset = self.address - start
        if offset < 0 or offset + self.width > len(block):
            raise ValueError(f"register '{self.name}' @{self.address} is not in {start}..{start + len(block) - 1}")
        return self.unpack(block[offset : offset + self.width])


@dataclass(frozen=True, kw_only=True)
class Status:
    """A reply whose framing and checksum are right. `error` is the raw error or status byte, never dropped."""

    device_id: int
    error: int
    data: bytes


def encode_sign(value: int, sign_bit: int) -> int:
    """Sign-magnitude: the magnitude below `sign_bit`, which says whether it is negative. Raises ValueError."""
    if abs(value) >= 1 << sign_bit:
        raise ValueError(f"{value} does not fit below sign bit {sign_bit}: +-{(1 << sign_bit) - 1}")
    return abs(value) | (1 << sign_bit if value < 0 else 0)


def decode_sign(raw: int, sign_bit: int) -> int:
    """Inverse of `encode_sign`. Bits above the sign bit are not part of the value."""
    magnitude = raw & ((1 << sign_bit) - 1)
    return -magnitude if raw >> sign_bit & 1 else magnitude
