"""Comparing: pairs, exact test, interval and power against independent computations; what is refused, what is said."""

import math
from itertools import product
from typing import Any

import numpy as np
import pytest
from scipy.stats import binomtest, norm

from vla.core.errors import GrasplineError
from vla.rollout.compare import compare, difference_interval, mcnemar_p, mcnemar_power, smallest_difference
from vla.rollout.evaluate import wilson

KEYS: list[tuple[str, int, int]] = list(product(("push", "pull"), range(50), (7,)))


def results(successes: list[bool], keys: list[tuple[str, int, int]] = KEYS, **changes: Any) -> dict[str, Any]:
    """Results with one row per key; `changes`: dotted names in the provenance, with __ for the dot."""
    provenance: dict[str, Any] = {
        "policy": {"name": "p"},
        "env": {"_target_": "sim.libero.LiberoEnv", "image_size": 256, "train_states": 40},
        "protocol": {"name": "openvla", "execute": 8, "tasks": {task: {"max_steps": 220} for task in ("push", "pull")}},
        "software": {"mujoco": "3.8.1", "robosuite": "1.4.0", "mujoco_gl": "egl", "torch": "2.11", "commit": "abc"},
        "hardware": {"cpu": "x", "gpus": []},
        "gl_renderer": "llvmpipe",
    }
    for name, value in changes.items():
        part, _, key = name.partition("__")
        if key:
            provenance[part][key] = value
        else:
            provenance[part] = value
    rows = [
        {"task": task, "init_state": state, "seed": seed, "success": success, "error": None}
        for (task, state, seed), success in zip(keys, successes)
    ]
    return {"rows": rows, "per_task": {task: {} for task, _, _ in keys}, "provenance": provenance}


def outcomes(both: int, only_a: int, only_b: int, neither: int) -> tuple[list[bool], list[bool]]:
    a = [True] * (both + only_a) + [False] * (only_b + neither)
    b = [True] * both + [False] * only_a + [True] * only_b + [False] * neither
    return a, b


def test_the_whole_account() -> None:
    a, b = outcomes(60, 5, 20, 15)
    told = compare(results(a), results(b))
    assert told["pairs"] == 100 and told["difference"] == pytest.approx(0.15)
    assert (told["both"], told["only_a"], told["only_b"], told["neither"]) == (60, 5, 20, 15)
    assert told["mcnemar_p"] == pytest.approx(binomtest(5, 25).pvalue)
    assert (told["a"]["low"], told["a"]["high"]) == wilson(65, 100) and told["b"]["successes"] == 80
    assert told["mcnemar_p"] < told["anytime_p"] < 1
    assert sum(task["only_b"] for task in told["per_task"].values()) == 20
    assert told["remarks"] == []
    swapped = compare(results(b), results(a))
    assert swapped["difference"] == -told["difference"] and swapped["mcnemar_p"] == told["mcnemar_p"]
    assert swapped["low"] == pytest.approx(-told["high"], abs=0.011)


def test_pairs_by_task_state_and_seed_in_any_order() -> None:
    a, b = outcomes(60, 5, 20, 15)
    backwards = compare(results(a), results(b[::-1], KEYS[::-1]))
    assert backwards["difference"] == pytest.approx(0.15)
    fewer = compare(results(a), results(b[:80], KEYS[:80]))
    assert fewer["pairs"] == 80 and "80 of a's 100 and of b's 80 episodes pair" in fewer["remarks"][0]
    with pytest.raises(GrasplineError, match="no episode is in both"):
        compare(results(a), results(b, [(task, state, 8) for task, state, _ in KEYS]))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"software__mujoco": "3.9.0"}, r"software\.mujoco is 3\.8\.1 in a, 3\.9\.0 in b"),
        ({"software__robosuite": "1.4.1"}, r"software\.robosuite"),
        ({"software__mujoco_gl": "osmesa"}, r"software\.mujoco_gl is egl in a, osmesa in b"),
        ({"gl_renderer": "NVIDIA"}, "gl_renderer is llvmpipe in a, NVIDIA in b"),
        ({"env__image_size": 128}, r"env\.image_size"),
        ({"protocol__name": "openpi"}, "protocol is openvla in a, openpi in b"),
        ({"protocol__name": None}, "protocol is openvla in a, none in b"),
        ({"protocol__tasks": {"push": {"max_steps": 512}, "pull": {"max_steps": 220}}}, r"protocol\.tasks"),
    ],
)
def test_other_conditions_are_refused_by_name(change: dict[str, Any], words: str) -> None:
    a, b = outcomes(60, 5, 20, 15)
    with pytest.raises(GrasplineError, match=f"not comparable: {words}"):
        compare(results(a), results(b, **change))
    told = compare(results(a), results(b, **change), allow_differences=True)
    assert told["pairs"] == 100 and told["remarks"][0].startswith("NOT COMPARABLE")


def test_what_may_differ_is_said() -> None:
    a, b = outcomes(60, 5, 20, 15)
    other = results(b, software__commit="def", hardware__cpu="y", protocol__execute=4, env__train_states=30)
    other["provenance"]["protocol"]["name"] = "openvla (changed: execute)"
    other["stopping"] = {"decision": "above"}
    other["rows"][0]["error"] = "boom"
    remarks = " ".join(compare(results(a), other)["remarks"])
    for words in ("commit is abc in a, def in b", "hardware.cpu", "protocol.execute", "stopped early", "1 pairs hold"):
        assert words in remarks
    assert "train_states" not in remarks


@pytest.mark.parametrize(("only_a", "only_b"), [(0, 0), (0, 5), (3, 3), (1, 9), (40, 20)])
def test_mcnemar_is_the_binomial_test_of_the_discordant(only_a: int, only_b: int) -> None:
    exact = binomtest(only_a, only_a + only_b).pvalue if only_a + only_b else 1.0
    assert mcnemar_p(only_a, only_b) == pytest.approx(exact)


def test_the_interval_is_the_normal_one_for_many_pairs() -> None:
    differences_N = np.repeat([-1, 0, 1], [60, 800, 140])
    low, high = difference_interval(differences_N)
    half = norm.ppf(0.975) * differences_N.std() / math.sqrt(1000)
    assert (low, high) == pytest.approx((0.08 - half, 0.08 + half), abs=0.002)
    assert difference_interval(differences_N) == (low, high), "the same numbers every time"


def test_pairs_that_all_agree_leave_room() -> None:
    """Nothing seen in 20 pairs: what happens in 16.8 % of episodes would have stayed unseen with 2.5 %."""
    low, high = difference_interval(np.zeros(20, int))
    assert (-low, high) == pytest.approx((0.1684, 0.1684), abs=1e-4)
    assert high == pytest.approx(binomtest(0, 20).proportion_ci(method="exact").high)
    assert difference_interval(np.ones(20, int)) == pytest.approx((1 - 2 * 0.1684, 1.0), abs=1e-4)
    assert difference_interval(np.array([0])) == pytest.approx((-0.975, 0.975))


def test_power_is_how_often_simulated_pairs_come_out_significant() -> None:
    rng = np.random.default_rng(0)
    pairs, discordance, difference = 100, 0.25, 0.15
    wins, losses, _ = rng.multinomial(pairs, [0.2, 0.05, 0.75], size=4000).T
    significant = {(win, loss): mcnemar_p(loss, win) <= 0.05 for win, loss in set(zip(wins.tolist(), losses.tolist()))}
    simulated = np.mean([significant[win, loss] for win, loss in zip(wins.tolist(), losses.tolist())])
    assert mcnemar_power(pairs, discordance, difference) == pytest.approx(simulated, abs=0.025)


def test_the_smallest_difference_has_the_power_it_promises() -> None:
    for pairs, discordance in [(50, 0.3), (500, 0.1), (2000, 0.05)]:
        smallest = smallest_difference(pairs, discordance)
        assert smallest is not None
        assert mcnemar_power(pairs, max(discordance, smallest), smallest) == pytest.approx(0.8, abs=1e-3)
        alpha, beta = norm.ppf(0.975), norm.ppf(0.8)  # Connett, Smith, McHugh, Statistics in Medicine 6, 1987
        needed = (alpha * math.sqrt(discordance) + beta * math.sqrt(discordance - smallest**2)) ** 2 / smallest**2
        assert needed == pytest.approx(pairs, rel=0.25)


def test_no_pairs_to_speak_of_show_nothing() -> None:
    """Six pairs, all against one, are the fewest that the exact test takes for a difference."""
    assert smallest_difference(5, 0.2) is None
    six = smallest_difference(6, 0.0)
    assert six is not None and six**6 == pytest.approx(0.8, abs=1e-3)
    alike = smallest_difference(500, 0.0)
    assert alike is not None and 0.01 < alike < 0.03
