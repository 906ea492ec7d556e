"""Every config composes, names one thing of ours, and says only what its constructor takes."""

import inspect
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from scripts.entry import CONFIG_DIR, compose
from vla.core.errors import GrasplineError, UnknownNameError

ROOTS = sorted(path.stem for path in CONFIG_DIR.glob("*.yaml"))
PARTS = sorted(path for path in CONFIG_DIR.glob("*/*.yaml") if path.parent.name != "experiment")
RECIPES = sorted(path for path in (CONFIG_DIR / "experiment").glob("*.yaml"))


@pytest.mark.parametrize("root", ROOTS)
def test_roots_compose_and_are_named_as_scripts(root: str) -> None:
    assert compose(root, [])
    assert (CONFIG_DIR.parent / "scripts" / f"{root}.py").exists()
    assert (CONFIG_DIR / f"{root}.yaml").read_text().startswith("#"), "--help prints the opening comment"


@pytest.mark.parametrize("path", PARTS, ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_parts_match_their_constructor(path: Path) -> None:
    config = OmegaConf.to_container(OmegaConf.load(path))
    assert isinstance(config, dict)
    target = _target(config.pop("_target_"))
    parameters = inspect.signature(target).parameters
    assert set(config) <= set(parameters), "a key that the constructor does not take"
    assert all(p.kind is p.KEYWORD_ONLY for p in parameters.values())


def _target(name: str):
    module, _, attribute = name.rpartition(".")
    return getattr(__import__(module, fromlist=[attribute]), attribute)


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_recipes_compose_in_a_root(path: Path) -> None:
    composed = 0
    for root in ROOTS:
        if "experiment" not in (CONFIG_DIR / f"{root}.yaml").read_text():
            continue
        try:
            compose(root, [f"experiment={path.stem}"])
            composed += 1
        except GrasplineError:
            continue
    assert composed >= 1


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["env=tabeltop"], "Did you mean 'tabletop'"),
        (["episods=3"], "Did you mean 'episodes'"),
        (["env.image_siz=64"], "Did you mean 'env.image_size'"),
    ],
)
def test_unknown_keys_name_the_nearest(overrides: list[str], message: str) -> None:
    with pytest.raises(UnknownNameError, match=message):
        compose("evaluate", overrides)


def test_policy_is_a_group_to_train_and_a_folder_to_evaluate() -> None:
    assert compose("train", ["policy=tiny"]).policy.width > 0
    assert compose("evaluate", ["policy=outputs/run"]).policy == "outputs/run"
