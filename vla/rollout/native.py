"""Our own messages between a served policy and `RemotePolicy`: vla/core/wire.py plus a seed, errors and a description.

A request is `GLS1`, the seed (uint64, little-endian) and a GLW1 observation; a bare GLW1 observation has seed 0. The
answer is a GLW1 chunk, or a text frame: `{"kind": "error", "code": "late", "message": "..."}`. The server's first
message, the same to all clients, is openpi's: a msgpack map. Ours describes the policy in it.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from vla.core.errors import CorruptFileError, GrasplineError, SpecMismatchError
from vla.core.protocols import Policy
from vla.core.spec import Embodiment
from vla.core.types import Observation
from vla.core.wire import MAX_NUMBERS, decode_observation, encode_observation

VERSION = 1
OURS = b"GL"  # no msgpack map begins like this

_SEEDED = b"GLS1"
_PREFIX = len(_SEEDED) + 8


@dataclass(frozen=True, kw_only=True)
class Description:
    """What a client must know of a served policy."""

    spec: Embodiment
    horizon: int
    cameras: tuple[str, ...]


class RefusalError(GrasplineError):
    """Words instead of a chunk. `code` is one of bad_request, late, busy, stopping, policy_error."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code


def encode_request(observation: Observation, seed: int) -> bytes:
    """The message for an observation and its seed, 0 <= seed < 2^64."""
    return _SEEDED + seed.to_bytes(8, "little") + encode_observation(observation)


def decode_request(message: bytes) -> tuple[Observation, int]:
    """Inverse of `encode_request`, also for a bare observation. Raises CorruptFileError for anything else."""
    if message[:4] != _SEEDED:
        return decode_observation(message), 0
    if len(message) < _PREFIX:
        raise CorruptFileError("message: cut off in the seed")
    return decode_observation(message[_PREFIX:]), int.from_bytes(message[4:_PREFIX], "little")


def encode_refusal(refusal: RefusalError) -> str:
    """The text frame for an error."""
    return json.dumps({"kind": "error", "code": refusal.code, "message": str(refusal)})


def decode_refusal(text: str) -> RefusalError:
    """Inverse of `encode_refusal`. Raises CorruptFileError when the text is something else."""
    try:
        content = json.loads(text)
        if content["kind"] != "error":
            raise ValueError(f"kind is {content['kind']!r}")
        return RefusalError(str(content["code"]), str(content["message"]))
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise CorruptFileError(f"message: text that is not an error of ours ({error!r})") from error


def describe(policy: Policy) -> dict[str, Any]:
    """The entries of the server's first message that describe the policy."""
    return {
        "graspline": VERSION,
        "embodiment": policy.spec.to_dict(),
        "horizon": policy.horizon,
        "cameras": list(policy.cameras),
    }


def read_description(metadata: Mapping[str, Any]) -> Description | None:
    """Inverse of `describe`; None when the server is not ours.

    Raises:
        CorruptFileError: ours, but of another version or malformed.
    """
    if "graspline" not in metadata:
        return None
    if metadata["graspline"] != VERSION:
        raise CorruptFileError(f"the server speaks version {metadata['graspline']!r}, this client {VERSION}")
    try:
        spec = Embodiment.from_dict(metadata["embodiment"])
        cameras, horizon = tuple(metadata["cameras"]), metadata["horizon"]
        known = set(cameras) <= set(spec.camera_names)
    except (KeyError, TypeError, SpecMismatchError) as error:
        raise CorruptFileError(f"the server's description is malformed: {error!r}") from error
    if type(horizon) is not int or not 1 <= horizon <= MAX_NUMBERS or not known:
        raise CorruptFileError(f"the server's description is malformed: horizon {horizon!r}, cameras {cameras}")
    return Description(spec=spec, horizon=horizon, cameras=cameras)
