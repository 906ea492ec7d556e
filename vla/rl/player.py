"""What an algorithm learnt, behind the Policy protocol and on disk.

A run directory holds `player.json` (which algorithm, its settings, the problem, the features), `player.safetensors`
(its state) and, where features are a trained policy's, that policy in `base/`. The json names an algorithm of this
package, never code, and the other file's sha256; loading is strict.
"""

import hashlib
import json
import pkgutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

import vla.rl.algorithms
from vla.core.errors import CorruptFileError, GrasplineError, MissingAssetError, NonFiniteError, unknown_name
from vla.core.spec import Embodiment
from vla.core.types import ActionChunk, Float, Observation
from vla.policies.load import load_policy, policy_hash, save_policy
from vla.policies.threads import single_thread
from vla.rl.backup import chunk_values
from vla.rl.critics import EnsembleCritic
from vla.rl.features import Features, PolicyFeatures, StateFeatures
from vla.rl.gather import physical
from vla.rl.interfaces import Algorithm
from vla.rl.learner import Learner
from vla.rl.problem import Problem
from vla.rl.states import load_state, save_state

FORMAT = 1
_JSON, _STATE, _BASE = "player.json", "player.safetensors", "base"


class ChunkPlayer:
    """A policy of vla/core/protocols.py: features, the algorithm's choice, back to physical units.

    Observations are answered one at a time on one thread, so a chunk depends on its own observation and seed alone.
    """

    def __init__(self, *, features: Features, algorithm: Algorithm, horizon: int) -> None:
        self.features, self.algorithm, self.horizon = features, algorithm, horizon
        self.spec, self.cameras = features.spec, features.cameras

    def propose(self, features_D: Float, seed: int) -> Float:
        """The normalised chunk (H, A) for these features. Raises NonFiniteError."""
        generator = torch.Generator().manual_seed(seed)
        with single_thread(), torch.no_grad():
            chunk_HA = self.algorithm.choose(torch.from_numpy(features_D)[None], generator)[0].numpy()
        if not np.isfinite(chunk_HA).all():
            raise NonFiniteError("the player's actions are not finite: its weights are damaged")
        return chunk_HA

    def act(self, observations: Sequence[Observation], seeds: Sequence[int]) -> list[ActionChunk]:
        return [
            ActionChunk(
                actions_HA=physical(self.propose(self.features(observation), seed), self.features),
                start_s=observation.time_s,
                dt_s=self.spec.dt_s,
            )
            for observation, seed in zip(observations, seeds, strict=True)
        ]

    @property
    def critic(self) -> EnsembleCritic | None:
        """The algorithm's critic of chunks, if it has one."""
        critic = vars(self.algorithm).get("critic")
        return critic if isinstance(critic, EnsembleCritic) else None

    def judge(self, features_D: Float, chunks_NHA: Float) -> NDArray:
        """What the critic thinks of chunks in one state: (N,), mean over the ensemble."""
        assert self.critic is not None
        features_ND = torch.from_numpy(features_D).expand(len(chunks_NHA), -1)
        with single_thread(), torch.no_grad():
            return chunk_values(self.critic, features_ND, torch.from_numpy(chunks_NHA)).mean(dim=0).numpy()


def make_algorithm(name: str, problem: Problem, settings: Mapping[str, Any]) -> Algorithm:
    """An algorithm of vla/rl/algorithms by the name of its file.

    Raises:
        UnknownNameError: there is no such file.
        GrasplineError: settings that it does not take.
    """
    names = [module.name for module in pkgutil.iter_modules(vla.rl.algorithms.__path__)]
    if name not in names:
        raise unknown_name("algorithm", name, names)
    build = _only_learner(import_module(f"{vla.rl.algorithms.__name__}.{name}"))
    try:
        return build(problem=problem, **settings)
    except (TypeError, ValueError) as error:
        raise GrasplineError(f"algorithm '{name}': {error}") from error


def _only_learner(module: ModuleType) -> Any:
    """The one algorithm that a module defines; those it imports do not count."""
    classes = [value for value in vars(module).values() if isinstance(value, type)]
    [found] = [each for each in classes if issubclass(each, Learner) and each.__module__ == module.__name__]
    return found


def problem_of(features: Features, *, horizon: int, discount: float, tasks: int, high: float = 1.0) -> Problem:
    """The problem of reaching success: it pays 1 and ends the episode, so returns lie in [0, `high`].

    Raises:
        GrasplineError: a horizon longer than the chunk of the policy whose features these are.
    """
    base, action_dim = features.base_horizon, features.spec.action_dim
    if base is not None and horizon > base:
        raise GrasplineError(f"horizon is {horizon}, but the policy's own chunk has only {base} actions")
    return Problem(
        features=features.width,
        horizon=horizon,
        binary=features.spec.binary_A.tolist(),
        discount=discount,
        low=0.0,
        high=high,
        tasks=tasks,
        base_chunk=None if base is None else features.width - base * action_dim,
    )


def save_player(folder: Path, *, player: ChunkPlayer, name: str, problem: Problem, settings: Mapping[str, Any]) -> None:
    """Writes the player into a run directory, replacing an older one; the json, which makes it valid, last."""
    save_state(folder / _STATE, player.algorithm.state_dict())
    features = player.features
    if isinstance(features, PolicyFeatures):
        save_policy(folder / _BASE, features.policy)
        told: dict[str, Any] = {"kind": "policy"}
    else:
        assert isinstance(features, StateFeatures)
        told = {"kind": "state", "instructions": list(features.instructions), "embodiment": features.spec.to_dict()}
    recipe = {
        "format": FORMAT,
        "algorithm": name,
        "settings": dict(settings),
        "problem": asdict(problem),
        "features": told,
        "state_sha256": _sha256(folder / _STATE),
    }
    part = folder / f".{_JSON}.part"
    part.write_text(json.dumps(recipe, indent=2))
    part.replace(folder / _JSON)


def load_player(folder: Path) -> ChunkPlayer:
    """The player in a run directory.

    Raises:
        MissingAssetError: there is none.
        CorruptFileError: a file is damaged or of another run.
    """
    recipe = _read_recipe(folder)
    if not (folder / _STATE).exists() or _sha256(folder / _STATE) != recipe["state_sha256"]:
        raise CorruptFileError(f"{folder / _STATE}: not the file that {_JSON} describes (missing, cut short, replaced)")
    told = recipe["features"]
    try:
        if told["kind"] == "policy":
            features: Features = PolicyFeatures(load_policy(folder / _BASE))
        elif told["kind"] == "state":
            spec = Embodiment.from_dict(told["embodiment"])
            features = StateFeatures(spec=spec, instructions=told["instructions"])
        else:
            raise unknown_name("kind of features", str(told["kind"]), ("policy", "state"))
        problem = Problem(**recipe["problem"])
        algorithm = make_algorithm(recipe["algorithm"], problem, recipe["settings"])
        algorithm.load_state_dict(load_state(folder / _STATE))
    except (KeyError, TypeError, RuntimeError) as error:
        raise CorruptFileError(f"{folder / _JSON}: {error}") from error
    return ChunkPlayer(features=features, algorithm=algorithm, horizon=problem.horizon)


def player_hash(folder: Path) -> str:
    """sha256 over what makes the player: names it in results, whatever its folder is called."""
    digest = hashlib.sha256((folder / _JSON).read_bytes())
    if (folder / _BASE).is_dir():
        digest.update(policy_hash(folder / _BASE).encode())
    return digest.hexdigest()


def _read_recipe(folder: Path) -> dict[str, Any]:
    try:
        recipe = json.loads((folder / _JSON).read_text())
    except FileNotFoundError as error:
        raise MissingAssetError(f"no player in '{folder}': {_JSON} is missing") from error
    except ValueError as error:
        raise CorruptFileError(f"{folder / _JSON}: not JSON ({error})") from error
    fields = ("format", "algorithm", "settings", "problem", "features", "state_sha256")
    if missing := [field for field in fields if not isinstance(recipe, dict) or field not in recipe]:
        raise CorruptFileError(f"{folder / _JSON}: lacks {missing}")
    if recipe["format"] != FORMAT:
        raise CorruptFileError(f"{folder / _JSON}: format {recipe['format']}, this version reads {FORMAT}")
    return recipe


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
