"""Every recipe runs from the script in seconds, keeps nothing, and gives the same scores for the same seed."""

import json
from pathlib import Path

import pytest

from scripts.agents import main
from scripts.entry import CONFIG_DIR, compose
from vla.core.errors import UnknownNameError

NAMES = sorted(path.stem for path in (CONFIG_DIR / "recipe").glob("*.yaml"))


def run(capsys: pytest.CaptureFixture[str], name: str, results: Path) -> dict:
    main(compose("agents", ["verb=run", f"recipe={name}", "seeds=[3]", "smoke=true", f"results={results}"]))
    return json.loads(capsys.readouterr().out)


@pytest.mark.parametrize("name", NAMES)
def test_smoke(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first, second = (run(capsys, name, tmp_path / "results.json") for _ in range(2))
    assert first["scores"] == second["scores"]
    assert first["recipe"] == name and first["cpu_s"] < 60
    assert not list(tmp_path.iterdir())


def test_a_seed_is_run_once_and_kept(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    results = tmp_path / "results.json"
    for _ in range(2):
        main(compose("agents", ["recipe=078_suboptimal_data", "seeds=[1,0]", f"results={results}"]))
    assert [row["seed"] for row in json.loads(results.read_text())] == [0, 1]
    assert capsys.readouterr().out.count("there already") == 2


def test_unknown_recipes_name_the_nearest(tmp_path: Path) -> None:
    with pytest.raises(UnknownNameError, match="058_raft"):
        main(compose("agents", ["recipe=058_rafd", f"results={tmp_path / 'r.json'}"]))
    with pytest.raises(UnknownNameError, match="verb"):
        main(compose("agents", ["verb=runs"]))
