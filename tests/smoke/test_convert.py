"""`python -m scripts.convert` on a twin of a published checkpoint, and what a user can get wrong."""

import json
from pathlib import Path

import numpy as np
import pytest

from scripts.convert import main
from scripts.entry import entry
from tests.golden.openvla_twin import write_twin
from vla.policies.load import load_policy
from vla.policies.published import load_published


def convert(*overrides: object) -> None:
    """The script in this process, exit status 0."""
    entry("convert", main, [str(each) for each in overrides])


def test_what_is_written_acts_as_what_was_published(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_twin(tmp_path / "twin")
    out = tmp_path / "ours"
    convert(f"checkpoint={tmp_path / 'twin'}", f"out={out}", "unnorm_key=libero_spatial", "horizon=3")
    assert "L1Head, chunks of 3 for libero_panda, cameras agentview, wrist" in capsys.readouterr().out
    assert {path.name for path in out.iterdir()} == {"policy.json", "model.safetensors", "tokenizer.json"}
    assert json.loads((out / "policy.json").read_text())["arguments"]["size"] == "twin"
    policy, published = load_policy(out), load_published(tmp_path / "twin", horizon=3)
    observation = policy.spec.random(np.random.default_rng(0))
    actions_HA, expected_HA = (each.act([observation], [0])[0].actions_HA for each in (policy, published))
    np.testing.assert_array_equal(actions_HA, expected_HA)


@pytest.mark.parametrize(
    ("overrides", "told"),
    [
        ([], "checkpoint is missing"),
        (["checkpoint=/nowhere"], "'/nowhere' is not a folder"),
        (["checkpoint=/nowhere", "dtype=bfloat"], "Did you mean 'bfloat16'"),
        (["checkpont=/nowhere"], "Did you mean 'checkpoint'"),
    ],
)
def test_refusals_are_one_line(overrides: list[str], told: str) -> None:
    with pytest.raises(SystemExit) as stopped:
        convert(*overrides)
    message = str(stopped.value.code)
    assert message.startswith("error: ") and told in message and "\n" not in message
