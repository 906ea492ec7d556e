"""Stopping early is wrong no more often than it says, at any rate, however often one looks: computed and simulated."""

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from scipy.integrate import quad
from scipy.stats import beta, binom, binomtest

from vla.core.errors import GrasplineError
from vla.rollout.evaluate import evaluate, wilson
from vla.rollout.runner import EpisodePlan, EpisodeResult, OnResult
from vla.rollout.sequential import StopWhen, anytime_interval, anytime_p, log_evidence

ALPHA, EPISODES = 0.05, 500
PLAN = [EpisodePlan(task, number, 7 * number) for task in ("push", "pull") for number in range(100)]


def decisions(target: float, alpha: float = ALPHA) -> tuple[np.ndarray, np.ndarray]:
    """(EPISODES + 1, EPISODES + 1) bool by episodes and successes: refuted, and the success seen was higher."""
    episodes, successes = np.mgrid[: EPISODES + 1, : EPISODES + 1]
    possible = successes <= episodes
    evidence = log_evidence(np.where(possible, successes, 0), episodes, target)
    return possible & (evidence >= -math.log(alpha)), successes > target * episodes


def walk(rate: float, target: float) -> tuple[float, float, float]:
    """Exact probabilities of deciding above and below within EPISODES, and the expected number of episodes played."""
    refuted, higher = decisions(target)
    here = np.zeros(EPISODES + 1)
    here[0] = 1.0
    above = below = played = 0.0
    for episodes in range(1, EPISODES + 1):
        played += here.sum()
        here = here * (1 - rate) + np.concatenate([[0.0], here[:-1] * rate])
        stopped = here * refuted[episodes]
        above += stopped[higher[episodes]].sum()
        below += stopped[~higher[episodes]].sum()
        here = here - stopped
    return above, below, played


@pytest.mark.parametrize("target", [0.5, 0.9])
def test_the_error_rate_is_kept_at_every_rate(target: float) -> None:
    """Not simulated but added up over all sequences of 500 outcomes."""
    print(f"\ntarget {target:.0%}, alpha {ALPHA:.0%}: rate, wrong, right, episodes of {EPISODES}")
    for rate in (0.05, 0.3, 0.45, 0.5, 0.55, 0.7, 0.8, 0.85, 0.88, 0.9, 0.92, 0.95, 0.99, 1.0):
        above, below, played = walk(rate, target)
        wrong = (above if rate <= target else 0.0) + (below if rate >= target else 0.0)
        print(f"{rate:6.0%} {wrong:8.3%} {above + below - wrong:8.1%} {played:7.0f}")
        assert wrong <= ALPHA
        if abs(rate - target) >= 0.15:
            assert above + below - wrong > 0.99 and played < 0.3 * EPISODES, "the answer is clear, and comes early"


def test_a_test_at_every_look_would_not_keep_it() -> None:
    """What the evidence is for: the ordinary exact test, looked at each time, is wrong several times as often."""
    rng = np.random.default_rng(0)
    successes = np.cumsum(rng.random((2000, 200)) < 0.5, axis=1)
    episodes = np.arange(1, 201)
    ordinary = 2 * binom.cdf(np.minimum(successes, episodes - successes), episodes, 0.5) <= ALPHA
    assert ordinary.any(axis=1).mean() > 3 * ALPHA
    assert (log_evidence(successes, episodes, 0.5) >= -math.log(ALPHA)).any(axis=1).mean() <= ALPHA


@pytest.mark.parametrize("share", [0.6, 0.9])
def test_it_is_kept_for_a_suite_of_unlike_tasks_in_shuffled_order(share: float) -> None:
    """Ten tasks from hopeless to safe, 50 episodes of each, played in any order: draws without replacement.

    The target is the mean itself, where both decisions are wrong.
    """
    rng = np.random.default_rng(1)
    rates = np.clip(np.linspace(share - 0.4, share + 0.4, 10), 0, 1).repeat(EPISODES // 10)
    outcomes = rng.permuted(rng.random((4000, EPISODES)) < rates, axis=1)
    successes = np.cumsum(outcomes, axis=1)
    refuted, _ = decisions(float(rates.mean()))
    wrong = refuted[np.arange(1, EPISODES + 1), successes].any(axis=1).mean()
    print(f"\nmean {rates.mean():.0%}: wrong in {wrong:.2%}")
    assert wrong <= ALPHA


def test_evidence_is_the_averaged_likelihood() -> None:
    for successes, episodes, rate in [(3, 10, 0.6), (9, 9, 0.7), (0, 4, 0.2)]:
        averaged, _ = quad(
            lambda p, s=successes, n=episodes: beta.pdf(p, 0.5, 0.5) * p**s * (1 - p) ** (n - s), 0, 1, epsabs=1e-12
        )
        expected = math.log(averaged / (rate**successes * (1 - rate) ** (episodes - successes)))
        assert log_evidence(successes, episodes, rate) == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize(("successes", "episodes"), [(0, 1), (1, 1), (0, 60), (60, 60), (54, 60), (1, 1000), (7, 20)])
def test_the_interval_holds_what_is_not_refuted(successes: int, episodes: int) -> None:
    low, high = anytime_interval(successes, episodes, ALPHA)
    usual_low, usual_high = wilson(successes, episodes)
    assert 0 <= low <= usual_low + 0.06 and usual_high - 0.06 <= high <= 1 and low <= successes / episodes <= high
    assert high - low > usual_high - usual_low, "looking has a price"
    for edge, outside in ((low, low * 0.999), (high, 1 - (1 - high) * 0.999)):
        if 0 < edge < 1:
            assert log_evidence(successes, episodes, edge) == pytest.approx(-math.log(ALPHA), abs=1e-6)
            assert log_evidence(successes, episodes, outside) > -math.log(ALPHA)
    assert anytime_interval(episodes - successes, episodes, ALPHA) == pytest.approx((1 - high, 1 - low))


def test_anytime_p_is_no_smaller_than_the_exact_one() -> None:
    for successes, episodes in [(0, 0), (5, 5), (8, 10), (30, 40)]:
        exact = binomtest(successes, episodes, 0.5).pvalue if episodes else 1.0
        assert exact <= anytime_p(successes, episodes, 0.5) <= 1.0


def test_settings_out_of_range_are_refused() -> None:
    for wrong in ({"target": 0.0}, {"target": 90}, {"target": 0.9, "alpha": 1.0}):
        with pytest.raises(GrasplineError, match="stop_when"):
            StopWhen(**wrong)
    with pytest.raises(ValueError):
        anytime_interval(3, 2, ALPHA)


def test_the_order_is_shuffled_and_belongs_to_the_rows() -> None:
    order = [row for block in StopWhen(target=0.5).blocks(PLAN) for row in block]
    assert sorted(order, key=PLAN.index) == PLAN and order != PLAN
    assert 30 <= sum(row.task == "push" for row in order[:100]) <= 70
    fewer = [row for block in StopWhen(target=0.5).blocks(PLAN[::-1][:150]) for row in block]
    assert fewer == [row for row in order if row in fewer]


class Runner:
    """Ends episodes in an order of its own; two of three succeed."""

    def __init__(self, backwards: bool, stop_after: int = 10**9) -> None:
        self.played: list[EpisodePlan] = []
        self.backwards, self.stop_after = backwards, stop_after

    def __call__(self, rows: Sequence[EpisodePlan], on_result: OnResult) -> None:
        for row in reversed(rows) if self.backwards else rows:
            if len(self.played) == self.stop_after:
                raise KeyboardInterrupt
            self.played.append(row)
            times = {"wall_s": 1.0, "physics_s": 0.5, "render_s": 0.1, "policy_s": 0.1}
            end = {"success": row.init_state % 3 > 0, "steps": 9, "terminated": True, "truncated": False, "error": None}
            on_result(
                EpisodeResult(task=row.task, init_state=row.init_state, seed=row.seed, **end, **times)  # pyright: ignore
            )


def test_an_evaluation_stops_at_the_same_row_however_episodes_end(tmp_path: Path) -> None:
    stop = StopWhen(target=0.3)
    forth, back = Runner(backwards=False), Runner(backwards=True)
    first = evaluate(forth, PLAN, tmp_path / "1", {}, stop=stop)
    other = evaluate(back, PLAN, tmp_path / "2", {}, stop=stop)
    assert first["rows"] == other["rows"] and len(first["rows"]) < len(forth.played) + 1 < len(PLAN)
    order = [row for block in stop.blocks(PLAN) for row in block]
    outcomes = [row.init_state % 3 > 0 for row in order]
    count = stop.decided_after(outcomes)
    assert count is not None and count == len(first["rows"]) and stop.decided_after(outcomes[: count - 1]) is None
    assert {(row["task"], row["init_state"]) for row in first["rows"]} == {
        (r.task, r.init_state) for r in order[:count]
    }
    assert first["stopping"] == {"target": 0.3, "alpha": 0.05, "decision": "above", "planned": 200}
    total = first["total"]
    assert (total["low"], total["high"]) == anytime_interval(total["successes"], total["episodes"], 0.05)
    assert total["low"] > 0.3


def test_a_stopped_evaluation_resumes_and_then_plays_nothing(tmp_path: Path) -> None:
    stop = StopWhen(target=0.3)
    whole = evaluate(Runner(backwards=False), PLAN, tmp_path / "whole", {}, stop=stop)
    with pytest.raises(KeyboardInterrupt):
        evaluate(Runner(backwards=True, stop_after=5), PLAN, tmp_path / "out", {}, stop=stop)
    assert evaluate(Runner(backwards=False), PLAN, tmp_path / "out", {}, stop=stop)["rows"] == whole["rows"]
    nothing, before = Runner(backwards=False), (tmp_path / "out/results.json").read_bytes()
    evaluate(nothing, PLAN, tmp_path / "out", {}, stop=stop)
    assert not nothing.played and (tmp_path / "out/results.json").read_bytes() == before


def test_without_a_decision_everything_is_played(tmp_path: Path) -> None:
    runner = Runner(backwards=False)
    results = evaluate(runner, PLAN, tmp_path, {}, stop=StopWhen(target=0.66))
    assert len(runner.played) == len(results["rows"]) == 200 and results["stopping"]["decision"] is None
