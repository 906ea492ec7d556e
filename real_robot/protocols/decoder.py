"""Finds status packets in a stream of bytes, whatever the pieces it comes in; a protocol says what a packet is."""

from abc import ABC, abstractmethod
from collections.abc import Collection

from real_robot.protocols.rows import Status


class Decoder(ABC):
    """Bytes in, status packets out.

    device_ids, data_size: what was asked for. A sound packet of another ID or size goes to `refused`, never to the
    result. discarded: bytes that belonged to no sound packet.
    """

    def __init__(self, *, device_ids: Collection[int] | None = None, data_size: int | None = None) -> None:
        self._ids, self._size = device_ids, data_size
        self._max_length = self.longest(data_size)
        self._buffer = bytearray()
        self.refused: list[Status] = []
        self.discarded = 0

    def feed(self, data: bytes) -> list[Status]:
        """The packets that `data` completes."""
        self._buffer += data
        return self._scan(final=False)

    def finish(self) -> list[Status]:
        """The line is quiet: nothing will complete a half packet, so looks for whole ones inside what is left."""
        return self._scan(final=True)

    @staticmethod
    @abstractmethod
    def longest(data_size: int | None) -> int:
        """Largest length field of a packet with so many data bytes; None: with as many as there can be."""
        ...

    @abstractmethod
    def candidate(self, start: int) -> int | None:
        """Size of the packet that may begin at `start`: 0 if none can, None if more bytes must tell."""
        ...

    @abstractmethod
    def status(self, whole: bytes) -> Status | None:
        """The packet in these bytes, or None where its checksum is wrong."""
        ...

    def _scan(self, *, final: bool) -> list[Status]:
        found: list[Status] = []
        start = 0
        buffer = self._buffer
        while start < len(buffer):
            size = self.candidate(start)
            if size is None and not final:
                break
            status = self.status(bytes(buffer[start : start + size])) if size else None
            if status is None:
                start += 1
                self.discarded += 1
                continue
            start += size or 0
            (found if self._asked(status) else self.refused).append(status)
        del buffer[:start]
        return found

    def _asked(self, status: Status) -> bool:
        return (self._ids is None or status.device_id in self._ids) and self._size in (None, len(status.data))
