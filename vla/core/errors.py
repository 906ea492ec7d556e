"""The few exceptions a user can meet. Each message names the field and the valid values."""

import difflib
from collections.abc import Iterable


class GrasplineError(Exception):
    """Base of every error that a user can cause; scripts print it as one line and exit with status 1."""


class UnknownNameError(GrasplineError, ValueError):
    """A task, camera, key or suite that does not exist; the message carries the nearest valid name."""


class SpecMismatchError(GrasplineError, ValueError):
    """Data or a policy that does not fit the embodiment it meets."""


class NonFiniteError(GrasplineError, ValueError):
    """NaN or infinity in a dataset, an action, a loss or a gradient."""


class MissingAssetError(GrasplineError, FileNotFoundError):
    """Assets, a system library or a dataset that has to be installed or downloaded first."""


class CorruptFileError(GrasplineError, ValueError):
    """A checkpoint, dataset, message or results file that is truncated or not what it claims to be."""


class StorageError(GrasplineError, OSError):
    """The disk refused a write; what was written before is intact."""


def unknown_name(kind: str, name: str, valid: Iterable[str]) -> UnknownNameError:
    """An error for `name` that lists the valid names, the nearest first.

    Args:
        kind: what the name names, e.g. "task".
        name: what the user wrote.
        valid: every name that would have been accepted.
    """
    names = sorted(valid)
    near = difflib.get_close_matches(name, names, n=1, cutoff=0.4)
    hint = f" Did you mean '{near[0]}'?" if near else ""
    shown = ", ".join(names[:30]) + (f", and {len(names) - 30} more" if len(names) > 30 else "")
    return UnknownNameError(f"unknown {kind} '{name}'.{hint} Valid: {shown}")
