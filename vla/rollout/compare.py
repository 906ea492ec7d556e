"""Two policies on the same episodes: whether one is better, by how much, and what so many episodes could have shown.

Special: episodes pair by (task, initial state, seed), so that what makes an episode hard cancels. Results of other
simulator versions, renderers, scenes or protocols are refused by name.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from scipy.optimize import brentq
from scipy.stats import binom, bootstrap
from statsmodels.stats.contingency_tables import mcnemar

from vla.core.errors import GrasplineError
from vla.rollout.evaluate import wilson
from vla.rollout.sequential import anytime_p

type Results = Mapping[str, Any]
type Row = Mapping[str, Any]

POWER, ALPHA = 0.8, 0.05
_RESAMPLES = 9999
_SAME_SOFTWARE = ("mujoco", "robosuite", "hf-libero", "mujoco_gl")
_OWN_ENV = ("assets", "train_states")  # a folder, and what training saw: neither is in an episode
_PLAYED = ("horizon", "execute", "ensemble")  # belongs to how a policy is used, so it may differ


def compare(a: Results, b: Results, *, allow_differences: bool = False) -> dict[str, Any]:
    """What two contents of results.json say about policy b beside policy a.

    Returns:
        `pairs`, the number of episodes both played; for `a` and `b` successes with Wilson's interval on those pairs;
        `both`, `neither`, `only_a`, `only_b`; `difference` = b - a with its paired bootstrap interval `low`, `high`;
        `mcnemar_p`, exact; `anytime_p`, for who looks, adds episodes and looks again; `smallest_difference`, see there;
        `per_task`; `remarks`, sentences about what to keep in mind.

    Raises:
        GrasplineError: no pair, or results that are not comparable (unless `allow_differences`: then a remark).
    """
    rows_a, rows_b = _by_episode(a["rows"]), _by_episode(b["rows"])
    shared = [key for key in rows_a if key in rows_b]
    if not shared:
        raise GrasplineError(f"no episode is in both results: {_plans(a, b)}. Evaluate both with the same plan")
    refusals, remarks = _incomparable(a, b, {key[0] for key in shared}), list(_remarks(a, b))
    if refusals and not allow_differences:
        raise GrasplineError(
            f"not comparable: {'; '.join(refusals)}. Evaluate again, or say allow_differences=true and doubt what comes"
        )
    remarks = [f"NOT COMPARABLE: {each}" for each in refusals] + remarks
    if len(shared) < max(len(rows_a), len(rows_b)):
        remarks.insert(
            0, f"{len(shared)} of a's {len(rows_a)} and of b's {len(rows_b)} episodes pair; the rest is unused"
        )
    outcomes_N2 = np.array([(rows_a[key]["success"], rows_b[key]["success"]) for key in shared], bool)
    if errors := sum(bool(rows_a[key]["error"] or rows_b[key]["error"]) for key in shared):
        remarks.append(f"{errors} pairs hold an episode that ended in an error, which counts as a failure")
    counts = _counts(outcomes_N2)
    low, high = difference_interval(outcomes_N2[:, 1].astype(int) - outcomes_N2[:, 0])
    only_a, only_b = counts["only_a"], counts["only_b"]
    tasks = np.array([key[0] for key in shared])
    return {
        "pairs": len(shared),
        "a": _score(a, outcomes_N2[:, 0]),
        "b": _score(b, outcomes_N2[:, 1]),
        **counts,
        "difference": (only_b - only_a) / len(shared),
        "low": low,
        "high": high,
        "mcnemar_p": mcnemar_p(only_a, only_b),
        "anytime_p": anytime_p(only_b, only_a + only_b, 0.5),
        "smallest_difference": smallest_difference(len(shared), (only_a + only_b) / len(shared)),
        "per_task": {str(task): _counts(outcomes_N2[tasks == task]) for task in dict.fromkeys(tasks)},
        "remarks": remarks,
    }


def mcnemar_p(only_a: int, only_b: int) -> float:
    """Exact two-sided p of McNemar's test (Psychometrika 12, 1947) that discordant pairs favour neither side."""
    return float(mcnemar([[0, only_a], [only_b, 0]], exact=True).pvalue)  # pyright: ignore[reportAttributeAccessIssue]


def difference_interval(differences_N: np.ndarray) -> tuple[float, float]:
    """95 % percentile bootstrap interval of the mean of paired differences (N,), each -1, 0 or 1.

    Pairs are drawn from all tasks together. Drawn within tasks, few episodes of each give an interval that is too
    narrow (one of each: of width zero); drawing whole tasks asks about tasks that the suite does not have, and ten are
    too few for it. Where all pairs agree there is nothing to draw from, and the interval is as wide as that many can
    leave it: another outcome with a probability of up to 1 - 0.025^(1/N) would have stayed unseen.
    """
    first = float(differences_N[0])
    if (differences_N == first).all():
        unseen = 1 - (ALPHA / 2) ** (1 / len(differences_N))
        return max(-1.0, first - unseen * (1 + abs(first))), min(1.0, first + unseen * (1 + abs(first)))
    drawn = bootstrap(
        (differences_N,),
        np.mean,
        n_resamples=_RESAMPLES,
        batch=1000,
        vectorized=True,
        confidence_level=1 - ALPHA,
        method="percentile",
        rng=np.random.default_rng(0),
    )
    return float(drawn.confidence_interval.low), float(drawn.confidence_interval.high)


def mcnemar_power(pairs: int, discordance: float, difference: float) -> float:
    """Probability that McNemar's exact test at 5 % sees a difference, `discordance` being the share of unlike pairs."""
    number_D = np.arange(pairs + 1)
    largest_D = binom.ppf(ALPHA / 2, number_D, 0.5)  # of the smaller count, at which the test still refutes
    largest_D -= 2 * binom.cdf(largest_D, number_D, 0.5) > ALPHA
    favoured = (1 + difference / discordance) / 2
    refuted_D = binom.cdf(largest_D, number_D, favoured) + binom.sf(number_D - largest_D - 1, number_D, favoured)
    return float(binom.pmf(number_D, pairs, discordance) @ refuted_D)


def smallest_difference(pairs: int, discordance: float) -> float | None:
    """The difference that McNemar's exact test finds with 80 % power; None if so few pairs can find none.

    A smaller one would probably have stayed unseen: "no difference" then means "not enough episodes". Where the pairs
    seen were less discordant than the difference itself has to be, they are taken to be as discordant as it.
    """

    def missing(difference: float) -> float:
        return mcnemar_power(pairs, max(discordance, difference), difference) - POWER

    return None if missing(1.0) < 0 else float(brentq(missing, 1e-9, 1.0, xtol=1e-6))  # pyright: ignore[reportArgumentType]


def _by_episode(rows: Iterable[Row]) -> dict[tuple[str, int, int], Row]:
    return {(row["task"], row["init_state"], row["seed"]): row for row in rows}


def _counts(outcomes_N2: np.ndarray) -> dict[str, int]:
    a_N, b_N = outcomes_N2.T
    parts = {"both": a_N & b_N, "only_a": a_N & ~b_N, "only_b": ~a_N & b_N, "neither": ~a_N & ~b_N}
    return {name: int(part_N.sum()) for name, part_N in parts.items()}


def _score(results: Results, success_N: np.ndarray) -> dict[str, Any]:
    successes = int(success_N.sum())
    low, high = wilson(successes, len(success_N))
    name = results["provenance"].get("policy", {}).get("name")
    return {"policy": name, "successes": successes, "success": successes / len(success_N), "low": low, "high": high}


def _plans(a: Results, b: Results) -> str:
    parts = []
    for name, results in (("a", a), ("b", b)):
        protocol = results["provenance"].get("protocol", {})
        plan = {key: protocol.get(key) for key in ("episodes", "init_states", "seed")}
        parts.append(f"{name} played {len(results['per_task'])} tasks with {plan}")
    return ", ".join(parts)


def _incomparable(a: Results, b: Results, tasks: set[str]) -> list[str]:
    """What makes the same episode another episode, by name."""

    def conditions(results: Results) -> dict[str, Any]:
        provenance = results["provenance"]
        software, protocol = provenance.get("software", {}), provenance.get("protocol", {})
        env = {f"env.{key}": value for key, value in provenance.get("env", {}).items() if key not in _OWN_ENV}
        steps = {task: limits for task, limits in protocol.get("tasks", {}).items() if task in tasks}
        return {
            "protocol": (protocol.get("name") or "none").partition(" (")[0],
            "protocol.tasks": steps,
            **{f"software.{key}": software.get(key) for key in _SAME_SOFTWARE},
            "gl_renderer": provenance.get("gl_renderer"),
            **env,
        }

    return _differing(conditions(a), conditions(b))


def _remarks(a: Results, b: Results) -> Iterable[str]:
    """What does not forbid a comparison, and what a reader of it should know."""

    def background(results: Results) -> dict[str, Any]:
        provenance = results["provenance"]
        software, protocol = provenance.get("software", {}), provenance.get("protocol", {})
        return {
            **{f"software.{key}": value for key, value in software.items() if key not in _SAME_SOFTWARE},
            **{f"hardware.{key}": value for key, value in provenance.get("hardware", {}).items()},
            **{f"protocol.{key}": protocol.get(key) for key in _PLAYED},
        }

    yield from _differing(background(a), background(b))
    for name, results in (("a", a), ("b", b)):
        if results.get("stopping", {}).get("decision"):
            yield f"{name} was stopped early: its success and McNemar's p are biased by that, the anytime p is not"


def _differing(a: Mapping[str, Any], b: Mapping[str, Any]) -> list[str]:
    names: Sequence[str] = [*a, *(name for name in b if name not in a)]
    return [f"{name} is {a.get(name)} in a, {b.get(name)} in b" for name in names if a.get(name) != b.get(name)]
