"""Merging against loops over single numbers."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from agents.adapters.merge import breadcrumbs, task_arithmetic, task_vector, ties


def models(seed: int = 0) -> tuple[dict[str, torch.Tensor], list[dict[str, torch.Tensor]]]:
    generator = torch.Generator().manual_seed(seed)
    shapes = {"w": (4, 7), "b": (3,), "scalar": ()}
    base = {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}
    tuned = [{name: v + torch.randn(v.shape, generator=generator) for name, v in base.items()} for _ in range(3)]
    return base, tuned


def crumbs_by_loop(row: list[float], keep: float, remove: float) -> list[float]:
    """Sorts, drops the top, keeps the next."""
    order = sorted(range(len(row)), key=lambda i: -abs(row[i]))
    first = math.floor(remove * len(row))
    kept = order[first : first + math.ceil(keep * len(row))]
    return [value if i in kept else 0.0 for i, value in enumerate(row)]


@settings(max_examples=25, deadline=None)
@given(st.floats(0, 1), st.floats(0, 1), st.sampled_from(["row", "tensor"]), st.integers(0, 5))
def test_breadcrumbs_by_brute_force(keep, remove, scope, seed):
    base, tuned = models(seed)
    merged = breadcrumbs(base, tuned, 0.3, keep=keep, remove=remove, scope=scope)
    for name, start in base.items():
        total = torch.zeros_like(start)
        for state in tuned:
            vector = state[name] - start
            rows = (
                vector.reshape(-1, vector.shape[-1]) if scope == "row" and vector.dim() == 2 else vector.reshape(1, -1)
            )
            masked = torch.tensor([crumbs_by_loop(row, keep, remove) for row in rows.tolist()])
            total += masked.view_as(vector)
        torch.testing.assert_close(merged[name], start + 0.3 * total)


def test_small_tensors_do_not_vanish():
    """A share of a small tensor rounds to nothing: removing none, and keeping one, is what is meant."""
    base, tuned = {"b": torch.zeros(3)}, [{"b": torch.tensor([1.0, -5.0, 2.0])}]
    assert breadcrumbs(base, tuned, 1.0, keep=0.05, remove=0.01)["b"].tolist() == [0.0, -5.0, 0.0]


def test_ties_by_brute_force():
    base, tuned = models()
    merged = ties(base, tuned, 0.7, keep=0.5)
    for name, start in base.items():
        vectors = [(state[name] - start).flatten().tolist() for state in tuned]
        trimmed = [crumbs_by_loop(vector, 0.5, 0.0) for vector in vectors]
        for i, value in enumerate(merged[name].flatten().tolist()):
            entries = [vector[i] for vector in trimmed]
            sign = math.copysign(1, sum(entries))
            agreeing = [entry for entry in entries if entry * sign > 0]
            mean = sum(agreeing) / len(agreeing) if agreeing else 0.0
            assert value == pytest.approx(start.flatten()[i].item() + 0.7 * mean, abs=1e-6)


def test_one_task_at_scale_one_is_the_tuned_model():
    base, tuned = models()
    for merged in (task_arithmetic(base, tuned[:1], 1.0), ties(base, tuned[:1], 1.0, keep=1.0)):
        for name in base:
            torch.testing.assert_close(merged[name], tuned[0][name])


def test_statistics_and_integers_stay_the_base_s():
    def network(seed: int) -> nn.Sequential:
        torch.manual_seed(seed)
        net = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))
        net(torch.randn(5, 3) * (seed + 1))
        return net

    base, tuned = network(0).state_dict(), network(1).state_dict()
    tuned["1.weight"] += 1
    merged = task_arithmetic(base, [tuned], 1.0)
    for name in ("1.running_mean", "1.running_var", "1.num_batches_tracked"):
        assert torch.equal(merged[name], base[name])
        assert name not in task_vector(tuned, base)
    torch.testing.assert_close(merged["1.weight"], tuned["1.weight"])
    network(2).load_state_dict(merged)


def test_half_precision_is_merged_in_single():
    base = {"w": torch.tensor([1.0], dtype=torch.bfloat16)}
    tuned = [{"w": torch.tensor([1.0078125], dtype=torch.bfloat16)} for _ in range(2)]
    merged = task_arithmetic(base, tuned, 1.0)["w"]
    assert merged.dtype == torch.bfloat16
    assert merged.item() == 1.015625


def test_base_is_not_changed_and_not_shared():
    base, tuned = models()
    before = {name: value.clone() for name, value in base.items()}
    merged = task_arithmetic(base, tuned, 0.0)
    merged["w"] += 1
    assert all(torch.equal(base[name], before[name]) for name in base)


def test_errors_name_what_is_wrong():
    base, tuned = models()
    with pytest.raises(ValueError, match=r"differ in 1 name\(s\): head"):
        task_vector({**tuned[0], "head": torch.zeros(1)}, base)
    with pytest.raises(ValueError, match=r"b has shape \(2,\), expected \(3,\)"):
        task_vector({**tuned[0], "b": torch.zeros(2)}, base)
    with pytest.raises(ValueError, match="tuned is empty"):
        task_arithmetic(base, [], 1.0)
    with pytest.raises(ValueError, match=r"keep is 1\.5"):
        breadcrumbs(base, tuned, 1.0, keep=1.5, remove=0.0)
