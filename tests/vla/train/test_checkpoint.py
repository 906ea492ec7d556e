import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from vla.core.errors import CorruptFileError
from vla.policies.vla import VLAPolicy
from vla.train.checkpoint import latest_checkpoint, load_checkpoint, save_checkpoint
from vla.train.optim import Average, adamw

type State = tuple[VLAPolicy, Average, torch.optim.AdamW]


@pytest.fixture
def make_state(make_policy: Callable[..., VLAPolicy]) -> Callable[[int], State]:
    def make(seed: int) -> State:
        policy = make_policy(seed)
        optimizer, average = adamw(policy, lr=1e-3), Average(policy, 0.9)
        for parameter in policy.parameters():
            parameter.grad = torch.randn_like(parameter)
        optimizer.step()
        average.update(policy, 0)
        return policy, average, optimizer

    return make


def save(out: Path, state: State, step: int) -> Path:
    policy, average, optimizer = state
    return save_checkpoint(out, step=step, module=policy, average=average, optimizer=optimizer)


def load(folder: Path, state: State) -> int:
    policy, average, optimizer = state
    return load_checkpoint(folder, module=policy, average=average, optimizer=optimizer)


def test_everything_comes_back_and_goes_on_alike(tmp_path: Path, make_state: Callable[[int], State]):
    old, new = make_state(0), make_state(1)
    assert load(save(tmp_path, old, 7), new) == 7
    for policy, _, optimizer in (old, new):
        torch.manual_seed(3)
        for parameter in policy.parameters():
            parameter.grad = torch.randn_like(parameter)
        optimizer.step()
    for (name, weight), other in zip(old[0].named_parameters(), new[0].parameters(), strict=True):
        assert torch.equal(weight, other), name
        assert torch.equal(old[1].tensors[name], new[1].tensors[name]), name
        for key, value in old[2].state[weight].items():
            assert torch.equal(value, new[2].state[other][key]), (name, key)
            assert value.stride() == new[2].state[other][key].stride(), (name, key)


def test_the_last_two_are_kept(tmp_path: Path, make_state: Callable[[int], State]):
    state = make_state(0)
    for step in (2, 4, 10, 6000):
        save(tmp_path, state, step)
    assert sorted(path.name for path in (tmp_path / "checkpoints").iterdir()) == ["step_000010", "step_006000"]
    assert latest_checkpoint(tmp_path) == tmp_path / "checkpoints" / "step_006000"


def test_a_kill_while_writing_leaves_the_previous_one(
    tmp_path: Path, make_state: Callable[[int], State], monkeypatch: pytest.MonkeyPatch
):
    state = make_state(0)
    good = save(tmp_path, state, 2)

    def killed(*arguments: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr("vla.train.checkpoint.replace_folder", killed)
        save(tmp_path, state, 4)
    assert len(list((tmp_path / "checkpoints").iterdir())) == 2  # the unfinished one is there, hidden
    assert latest_checkpoint(tmp_path) == good
    assert load(good, make_state(1)) == 2
    save(tmp_path, state, 4)
    assert sorted(p.name for p in (tmp_path / "checkpoints").iterdir()) == ["step_000002", "step_000004"]


def test_no_checkpoint(tmp_path: Path):
    assert latest_checkpoint(tmp_path) is None


@pytest.mark.parametrize("name", ["model.safetensors", "average.safetensors", "optimizer.safetensors", "state.json"])
@pytest.mark.parametrize("damage", ["cut", "gone"])
def test_a_damaged_file_is_named(tmp_path: Path, make_state: Callable[[int], State], name: str, damage: str):
    path = save(tmp_path, make_state(0), 2) / name
    if damage == "cut":
        path.write_bytes(path.read_bytes()[: -max(10, path.stat().st_size // 2)])
    else:
        path.unlink()
    with pytest.raises(CorruptFileError, match=name):
        load(path.parent, make_state(1))


def test_another_format_is_refused(tmp_path: Path, make_state: Callable[[int], State]):
    folder = save(tmp_path, make_state(0), 2)
    (folder / "state.json").write_text(json.dumps({"format": 2, "step": 2}))
    with pytest.raises(CorruptFileError, match="expected format 1"):
        load(folder, make_state(1))
