"""Training on from a policy as a user does it: LoRA, parts of a step, recomputed layers, and a run that cannot fit."""

import importlib
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from scripts.entry import entry
from vla.policies.load import load_policy

TRAIN = ("experiment=debug_train", "steps=2", "checkpoint_every=1", "heldout=0")


def train(*overrides: object) -> None:
    entry("train", importlib.import_module("scripts.train").main, [*TRAIN, *map(str, overrides)])


def refused(*overrides: object) -> str:
    with pytest.raises(SystemExit) as stopped:
        train(*overrides)
    message = stopped.value.code
    assert isinstance(message, str) and message.startswith("error: ") and "\n" not in message
    return message


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("finetune")
    collect = importlib.import_module("scripts.collect").main
    words = ["env=fake", "tasks=all", "episodes=6", "workers=1", f"out={folder / 'dataset'}"]
    entry("collect", collect, words)
    train(f"dataset={folder / 'dataset'}", f"out={folder / 'base'}")
    return folder


def test_lora_from_a_policy_to_a_policy(made: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    parts = ("accumulate=2", "gradient_checkpointing=true", "lora.rank=4", "lr=5e-4", "keep_transforms=true")
    words = (f"dataset={made / 'dataset'}", f"init={made / 'base'}", f"out={tmp_path}", *parts)
    train(*words)
    output = capsys.readouterr().out
    assert "memory of one process" in output and "M trained)" in output
    base, tuned = (load_file(folder / "model.safetensors") for folder in (made / "base", tmp_path))
    assert base.keys() == tuned.keys()
    changed = {name for name in base if not torch.equal(base[name], tuned[name])}
    assert "backbone.state.0.weight" in changed, "an adapter's change is folded in"
    assert "backbone.queries_HD" not in changed, "frozen"
    assert any(name.startswith("head.") for name in changed)
    kept = load_file(tmp_path / "checkpoints" / "step_000002" / "model.safetensors")
    assert not any("base_layer" in name for name in kept)
    policy, start = load_policy(tmp_path), load_policy(made / "base")
    assert policy.transforms.to_dict() == start.transforms.to_dict()
    assert "lora.rank was 4, now 8" in refused(*words, "lora.rank=8")


def test_refusals_name_the_setting(made: Path, tmp_path: Path) -> None:
    data = (f"dataset={made / 'dataset'}", f"out={tmp_path}")
    assert "this run needs" in refused(*data, "memory_limit_gb=0.0001")
    assert "Did you mean 'fsdp2'" in refused(*data, "parallel=fsdp")
    assert "Did you mean 'bf16'" in refused(*data, "precision=bf8")
    assert "accumulate=16" in refused(*data, "accumulate=16")
    assert "has 8" in refused(*data, f"init={made / 'base'}", "horizon=4")
    assert "init, which is null" in refused(*data, "keep_transforms=true")
    assert not (tmp_path / "checkpoints").exists()
