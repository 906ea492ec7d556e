"""A LIBERO protocol by name: every constant that a published score depends on, and which of them somebody changed.

Special: the constants stand in `configs/protocol/<name>.yaml` alone. Results carry all of them, and a name that is only
the published one while all of them are the published ones. `docs/protocols.md` says how the protocols differ.
"""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from typing import Any

from vla.core.errors import GrasplineError, unknown_name
from vla.core.protocols import Task
from vla.rollout.plan import InitStates, make_plan
from vla.rollout.runner import EpisodePlan


@dataclass(frozen=True, kw_only=True)
class Protocol:
    """How somebody evaluates on LIBERO.

    name                whose
    source              where the constants were read
    horizons            control steps of an episode after settling, by suite
    settle_steps        idle control steps before them
    image_size          height and width of both cameras as rendered [pixels]; what follows belongs to the policy
    image_rotation_deg  images are turned by this before a policy sees them
    look                "original" or "fast" drawing, see `sim.libero`
    scene_seed          seed of the fixtures' places; None: each episode's own
    trials              episodes of each task; trial i starts from stored state i
    init_states         which of the stored states: all, heldout or train
    seed                trial i gets seed + i, for the policy's sampling and, if `scene_seed` is None, for the fixtures
    execute             actions played of each chunk; None: as many as the policy's chunks hold
    """

    name: str
    source: str
    horizons: Mapping[str, int]
    settle_steps: int
    image_size: int
    image_rotation_deg: int
    look: str
    scene_seed: int | None
    trials: int
    init_states: InitStates
    seed: int
    execute: int | None

    def __post_init__(self) -> None:
        if self.image_rotation_deg != 180:
            raise GrasplineError(f"protocol.image_rotation_deg is {self.image_rotation_deg}, the env turns by 180 only")
        for field in ("settle_steps", "image_size", "trials", "seed", "scene_seed", "execute"):
            value, least = getattr(self, field), 1 if field in ("image_size", "trials", "execute") else 0
            if value is not None and (not isinstance(value, int) or value < least):
                raise GrasplineError(f"protocol.{field} is {value!r}, expected a whole number from {least} on")

    def env(self, suite: str) -> dict[str, Any]:
        """Arguments of `sim.libero.LiberoEnv`. Raises UnknownNameError for a suite that the protocol does not have."""
        if suite not in self.horizons:
            raise unknown_name(f"suite of protocol {self.name}", suite, self.horizons)
        return {
            "horizon": self.horizons[suite],
            "settle_steps": self.settle_steps,
            "image_size": self.image_size,
            "look": self.look,
            "scene_seed": self.scene_seed,
        }

    def plan(self, tasks: Sequence[Task], episodes: int | None = None) -> list[EpisodePlan]:
        """Its rows; `episodes` in all, spread evenly over the tasks, where it is not `trials` of each."""
        rows = make_plan(tasks, self.trials * len(tasks) if episodes is None else episodes, self.init_states, self.seed)
        number: Counter[str] = Counter()
        plan = []
        for row in rows:
            plan.append(replace(row, seed=self.seed + number[row.task]))
            number[row.task] += 1
        return plan

    def describe(self, published: "Protocol", also_changed: Iterable[str] = ()) -> dict[str, Any]:
        """For results: the name, with what differs from the `published` protocol, and every constant."""
        differing = [
            field.name for field in fields(self) if getattr(self, field.name) != getattr(published, field.name)
        ]
        changed = [*differing, *also_changed]
        name = f"{published.name} (changed: {', '.join(changed)})" if changed else published.name
        constants = asdict(self)
        del constants["name"]
        return {"name": name, "constants": constants}
