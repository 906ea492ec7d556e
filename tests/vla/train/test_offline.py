import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from agents.objectives.reduce import masked_mean
from vla.core.errors import CorruptFileError, NonFiniteError
from vla.data.batch import Batch
from vla.policies.vla import VLAPolicy
from vla.train.checkpoint import latest_checkpoint
from vla.train.metrics import read_metrics
from vla.train.optim import adamw

GOLDEN = Path(__file__).parents[2] / "golden" / "tiny_l1_20_steps.txt"


def same(one: tuple, other: tuple) -> None:
    """Bitwise: weights, averages, moments."""
    for (name, weight), twin in zip(one[0].named_parameters(), other[0].parameters(), strict=True):
        assert torch.equal(weight, twin), name
        assert torch.equal(one[1].tensors[name], other[1].tensors[name]), name
        assert one[2].state[weight].keys() == other[2].state[twin].keys() != set()
        for key, value in one[2].state[weight].items():
            assert torch.equal(value, other[2].state[twin][key]), (name, key)


def test_four_steps_are_two_and_two_resumed(tmp_path: Path, run: Callable):
    whole = run(tmp_path / "whole", steps=4)
    run(tmp_path / "halves", steps=4, stop=2)
    assert latest_checkpoint(tmp_path / "halves") == tmp_path / "halves" / "checkpoints" / "step_000002"
    torch.manual_seed(12345)  # whatever the random state of the new process
    halves = run(tmp_path / "halves", steps=4)
    same(whole, halves)
    rows = [
        [(row["step"], row["loss"]) for row in read_metrics(tmp_path / name / "metrics.jsonl")]
        for name in ("whole", "halves")
    ]
    assert rows[0] == rows[1]


def test_killed_after_a_checkpoint_goes_on_from_it(tmp_path: Path, run: Callable):
    """Killed at step 3: step 3 is done again, exactly, and its row of metrics is not there twice."""
    whole = run(tmp_path / "whole", steps=5)
    run(tmp_path / "killed", steps=5, stop=3)
    same(whole, run(tmp_path / "killed", steps=5))
    assert [row["step"] for row in read_metrics(tmp_path / "killed" / "metrics.jsonl")] == [1, 2, 3, 4, 5]


def test_a_finished_run_is_left_as_it_is(tmp_path: Path, run: Callable):
    first = run(tmp_path, steps=2)
    same(first, run(tmp_path, steps=2))


def test_truncated_checkpoint_stops_with_its_name(tmp_path: Path, run: Callable):
    run(tmp_path, steps=4, stop=2)
    path = tmp_path / "checkpoints" / "step_000002" / "average.safetensors"
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(CorruptFileError, match=r"step_000002/average\.safetensors"):
        run(tmp_path, steps=4)


def test_the_policy_ends_with_its_averaged_weights(tmp_path: Path, run: Callable):
    policy, average, _ = run(tmp_path, steps=3)
    assert not policy.training
    for name, weight in policy.named_parameters():
        assert torch.equal(weight, average.tensors[name])
    last = load_file(tmp_path / "checkpoints" / "step_000003" / "model.safetensors")
    assert any(not torch.equal(average.tensors[name], last[name]) for name in last)


def test_nan_stops_the_run_and_keeps_the_evidence(tmp_path: Path, run: Callable):
    def poison(step: int, batch: Batch) -> Batch:
        if step == 3:
            batch.actions_BHA[0, 0, 0] = torch.nan
        return batch

    with pytest.raises(NonFiniteError, match=r"step 3: loss nan.*nonfinite"):
        run(tmp_path, steps=6, edit=poison)
    evidence = load_file(tmp_path / "nonfinite" / "batch.safetensors")
    assert evidence["actions_BHA"].isnan().sum() == 1
    assert json.loads((tmp_path / "nonfinite" / "step.json").read_text())["step"] == 3
    weights = load_file(tmp_path / "nonfinite" / "model.safetensors")
    assert all(tensor.isfinite().all() for tensor in weights.values())
    assert latest_checkpoint(tmp_path) == tmp_path / "checkpoints" / "step_000002"


def test_padding_is_not_learnt_from(tmp_path: Path, run: Callable):
    def repaint(step: int, batch: Batch) -> Batch:
        return replace(batch, actions_BHA=batch.actions_BHA.where(batch.mask_BH[..., None], torch.tensor(-0.9)))

    same(run(tmp_path / "a", steps=2), run(tmp_path / "b", steps=2, edit=repaint))


@pytest.mark.parametrize("accumulate", [3, 4])
def test_a_step_in_parts_is_the_same_step(
    tmp_path: Path, run: Callable, make_policy: Callable[..., VLAPolicy], accumulate: int
):
    """Rows have from one to all of their actions, so the mean of the parts' own means would be another number."""
    plain = {"shift": 0, "contrast": 0, "brightness": 0, "state_noise": 0}
    whole, _, _ = run(tmp_path / "whole", steps=3, policy=make_policy(**plain))
    cut, _, _ = run(tmp_path / "parts", steps=3, policy=make_policy(**plain), accumulate=accumulate)
    expected, found = (read_metrics(tmp_path / name / "metrics.jsonl") for name in ("whole", "parts"))
    for key in ("loss", "grad_norm"):
        assert [row[key] for row in found] == pytest.approx([row[key] for row in expected], rel=1e-4), key
    for (name, weight), twin in zip(whole.named_parameters(), cut.named_parameters(), strict=True):
        assert (weight - twin[1]).abs().max() < 1e-3, name  # a third of a step, where a gradient is nearly zero


def test_gradients_are_clipped(tmp_path: Path, run: Callable):
    policy, _, _ = run(tmp_path, steps=1, max_grad_norm=1e-3)
    norm = torch.cat([parameter.grad.flatten() for parameter in policy.parameters()]).norm()
    assert norm.item() == pytest.approx(1e-3, rel=1e-3)
    assert read_metrics(tmp_path / "metrics.jsonl")[0]["grad_norm"] > 0.1


def test_validation_is_logged_at_checkpoints(tmp_path: Path, run: Callable, make_batch: Callable[..., Batch]):
    policy, _, _ = run(tmp_path, steps=4, validation=[make_batch(90), make_batch(91)])
    logged = {row["step"]: row["val_loss"] for row in read_metrics(tmp_path / "metrics.jsonl") if "val_loss" in row}
    assert logged.keys() == {2, 4}
    losses, masks = zip(
        *[(policy.loss_BH(batch).detach(), batch.mask_BH) for batch in (make_batch(90), make_batch(91))]
    )
    assert logged[4] == pytest.approx(float(masked_mean(torch.cat(losses), torch.cat(masks))), rel=1e-5)
    assert (tmp_path / "loss.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.usefixtures("one_thread")
def test_one_batch_can_be_overfitted(make_policy: Callable[..., VLAPolicy], make_batch: Callable[..., Batch]):
    policy, batch = (
        make_policy(shift=0, contrast=0, brightness=0, state_noise=0, gripper_weight=1.0),
        make_batch(size=8),
    )
    optimizer = adamw(policy, lr=3e-3, weight_decay=0)
    for step in range(150):
        for group in optimizer.param_groups:
            group["lr"] = 3e-3 * (1 - step / 150)
        optimizer.zero_grad()
        loss = masked_mean(policy.loss_BH(batch), batch.mask_BH)
        loss.backward()
        optimizer.step()
    assert loss.item() < 0.1
    predicted = policy.sample(batch.images_BKHWC, batch.state_BS, batch.instructions, [])
    assert (predicted[..., 2] == batch.actions_BHA[..., 2])[batch.mask_BH].all()


def test_loss_curve_is_the_stored_one(tmp_path: Path, run: Callable):
    """Refactoring must not move it. After a deliberate change, delete the file, run once, and say so in the change."""
    run(tmp_path, steps=20)
    losses = [row["loss"] for row in read_metrics(tmp_path / "metrics.jsonl")]
    if not GOLDEN.exists():
        GOLDEN.write_text("".join(f"{loss:.8f}\n" for loss in losses))
        pytest.fail(f"wrote {GOLDEN}; look at it and run again")
    assert losses == pytest.approx([float(line) for line in GOLDEN.read_text().split()], rel=1e-4)
