"""A policy that lerobot trained, as a Policy: whatever evaluates or serves ours does the same with theirs.

Special: lerobot's processor files may name any class of any module, and its loaders go on without statistics. Here a
file may name only the steps in `STEPS`, and what is missing is an error. A chunk follows from one observation and one
seed (`predict_action_chunk` right after `reset`, never lerobot's queue), so a policy that asks for a history of
observations (diffusion, as lerobot sets it up) is refused. The second of two doors to lerobot; vla/data has the other.
"""

import contextlib
import hashlib
import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from draccus.utils import DraccusException
from lerobot.configs import FeatureType, PolicyFeature, PreTrainedConfig
from lerobot.policies import PreTrainedPolicy, get_policy_class, prepare_observation_for_inference
from lerobot.processor import PolicyProcessorPipeline
from lerobot.processor.converters import (
    batch_to_transition,
    policy_action_to_transition,
    transition_to_batch,
    transition_to_policy_action,
)
from lerobot.utils.constants import ACTION, OBS_STATE
from safetensors import SafetensorError
from safetensors.torch import load_file

from vla.core.errors import (
    CorruptFileError,
    GrasplineError,
    MissingAssetError,
    NonFiniteError,
    SpecMismatchError,
    unknown_name,
)
from vla.core.spec import Embodiment
from vla.core.types import ActionChunk, Float, Observation
from vla.policies.threads import single_thread

# Others keep a history, run code from the Hub (groot, pi0_fast, wall_x), or keep silent about weights that did not load
# (pi0, pi05).
TYPES = ("act", "smolvla")
STEPS = frozenset(
    {
        "rename_observations_processor",
        "to_batch_processor",
        "device_processor",
        "normalizer_processor",
        "unnormalizer_processor",
        "smolvla_new_line_processor",
        "tokenizer_processor",
    }
)
_CONFIG, _WEIGHTS = "config.json", "model.safetensors"
_BEFORE, _AFTER = "policy_preprocessor.json", "policy_postprocessor.json"


class LeRobotPolicy:
    """A folder with lerobot's config.json, model.safetensors and its two processors, such as `.../pretrained_model`.

    Its horizon is the whole chunk that the network predicts; lerobot itself plays the first `n_action_steps` of it.

    Args:
        folder: as above, on this machine.
        spec: the embodiment it reads and drives; lerobot's files know names and shapes only.
        cameras: {name after `observation.images.`: camera of `spec`}; equal names when None, or else the cameras in
            their order.
        device: where it computes.

    Raises:
        MissingAssetError: a file is not there.
        CorruptFileError: a file cannot be read, weights do not fit the network, or statistics are missing.
        UnknownNameError: a step of a processor that is not in `STEPS`, or a camera that is not in `spec`.
        SpecMismatchError: other shapes of images, state or actions than those of `spec`.
        GrasplineError: a type that is not in `TYPES`, a policy that needs a history, or an adapter.
    """

    def __init__(
        self,
        folder: str | Path,
        *,
        spec: Embodiment,
        cameras: Mapping[str, str] | None = None,
        device: str = "cpu",
    ) -> None:
        folder = Path(folder)
        config = _read_config(folder, device)
        before, after = _read_json(folder / _BEFORE), _read_json(folder / _AFTER)
        states = [_read_states(folder, name, steps) for name, steps in ((_BEFORE, before), (_AFTER, after))]
        self.spec = spec
        self._camera_of = _check_features(folder / _CONFIG, config, spec, cameras)
        self.cameras = tuple(self._camera_of.values())
        self.horizon: int = getattr(config, "chunk_size")  # noqa: B009 - both types have it, their base has not
        self._device = torch.device(device)
        self._policy = _load(folder, config)
        try:
            self._before = PolicyProcessorPipeline.from_config(
                before,
                state_dict=states[0],
                overrides={"device_processor": {"device": device}} if "device_processor" in _names(before) else {},
                to_transition=batch_to_transition,
                to_output=transition_to_batch,
            )
            self._after = PolicyProcessorPipeline.from_config(
                after,
                state_dict=states[1],
                to_transition=policy_action_to_transition,
                to_output=transition_to_policy_action,
            )
        except (ImportError, KeyError, OSError, RuntimeError, TypeError, ValueError) as error:
            raise CorruptFileError(f"{folder}: lerobot does not build its processors: {error}") from error

    def act(self, observations: Sequence[Observation], seeds: Sequence[int]) -> list[ActionChunk]:
        """One chunk per observation, in physical units, within the embodiment's bounds.

        Raises:
            SpecMismatchError: an observation does not fit the embodiment.
            NonFiniteError: the state or the network's output holds NaN or infinity.
        """
        for observation in observations:
            self.spec.validate(observation, self.cameras)
        with single_thread():
            return [
                ActionChunk(
                    actions_HA=self._actions(observation, seed), start_s=observation.time_s, dt_s=self.spec.dt_s
                )
                for observation, seed in zip(observations, seeds, strict=True)
            ]

    def _actions(self, observation: Observation, seed: int) -> Float:
        seen: dict[str, np.ndarray] = {
            feature: observation.images[camera].copy() for feature, camera in self._camera_of.items()
        }
        seen[OBS_STATE] = observation.state_S.copy()
        accelerators = [self._device] if self._device.type == "cuda" else []
        with torch.random.fork_rng(devices=accelerators), torch.inference_mode():
            torch.manual_seed(seed)
            self._policy.reset()
            batch = prepare_observation_for_inference(seen, self._device, observation.instruction)
            chunk_BHA = self._policy.predict_action_chunk(self._before(batch))
            actions_HA = self._after(chunk_BHA[0]).float().cpu().numpy()
        if actions_HA.shape != (self.horizon, self.spec.action_dim):
            raise SpecMismatchError(
                f"actions have shape {actions_HA.shape}, expected {self.horizon, self.spec.action_dim}"
            )
        if not np.isfinite(actions_HA).all():
            raise NonFiniteError(f"the policy's actions are not finite for '{observation.instruction}'")
        low_A, high_A = self.spec.action_low_A, self.spec.action_high_A
        binary_A = self.spec.binary_A
        nearest_HA = np.where(
            actions_HA[:, binary_A] > (low_A + high_A)[binary_A] / 2, high_A[binary_A], low_A[binary_A]
        )
        actions_HA = np.clip(actions_HA, low_A, high_A)
        actions_HA[:, binary_A] = nearest_HA
        return actions_HA


def lerobot_hash(folder: str | Path) -> str:
    """sha256 over what decides the policy's actions: config, weights, processors and their statistics."""
    digest = hashlib.sha256()
    for path in sorted(Path(folder).iterdir()):
        if path.name in (_CONFIG, _WEIGHTS) or path.name.startswith("policy_"):
            with path.open("rb") as file:
                digest.update(path.name.encode() + hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()


def _read_config(folder: Path, device: str) -> PreTrainedConfig:
    path = folder / _CONFIG
    described = _read_json(path)
    if (kind := described.get("type")) not in TYPES:
        raise GrasplineError(f"{path}: type is '{kind}', the types of lerobot's that run here are {', '.join(TYPES)}")
    if (history := described.get("n_obs_steps", 1)) != 1:
        raise GrasplineError(f"{path}: n_obs_steps is {history}, expected 1: policies keep no history here")
    if described.get("use_peft"):
        raise GrasplineError(f"{path}: use_peft is true, expected weights with the adapter merged in")
    try:
        config = PreTrainedConfig.from_pretrained(folder, cli_overrides=[f"--device={device}"])
    except (DraccusException, OSError, TypeError, ValueError) as error:
        raise CorruptFileError(f"{path}: {error.__cause__ or error}") from error
    if hasattr(config, "pretrained_backbone_weights"):
        setattr(config, "pretrained_backbone_weights", None)  # noqa: B010 - all weights come from the folder
    return config


def _check_features(
    path: Path, config: PreTrainedConfig, spec: Embodiment, cameras: Mapping[str, str] | None
) -> dict[str, str]:
    """{feature: camera of `spec`}, after every shape was compared."""
    inputs, outputs = config.input_features or {}, config.output_features or {}
    images = [name for name, feature in inputs.items() if feature.type is FeatureType.VISUAL]
    _check_shape(path, inputs, OBS_STATE, (spec.state_dim,))
    _check_shape(path, outputs, ACTION, (spec.action_dim,))
    if others := sorted(set(inputs) - {OBS_STATE, *images}):
        raise SpecMismatchError(f"{path}: it needs {others}, which {spec.name} does not have")
    short = {name: name.removeprefix("observation.images.") for name in images}
    if cameras is not None:
        camera_of = {name: cameras.get(short[name], short[name]) for name in images}
    elif set(short.values()) <= set(spec.camera_names):
        camera_of = short
    elif len(images) <= len(spec.cameras):
        camera_of = dict(zip(images, spec.camera_names))
    else:
        raise SpecMismatchError(f"{path}: it looks at {images}, {spec.name} has cameras {list(spec.camera_names)}")
    sizes = {camera.name: (3, camera.height, camera.width) for camera in spec.cameras}
    for name, camera in camera_of.items():
        if camera not in sizes:
            raise unknown_name("camera", camera, spec.camera_names)
        _check_shape(path, inputs, name, sizes[camera])
    return camera_of


def _check_shape(path: Path, features: Mapping[str, PolicyFeature], name: str, expected: tuple[int, ...]) -> None:
    shape = tuple(features[name].shape) if name in features else None
    if shape != expected:
        raise SpecMismatchError(f"{path}: {name} has shape {shape}, the embodiment's is {expected}")


def _load(folder: Path, config: PreTrainedConfig) -> PreTrainedPolicy:
    if not (folder / _WEIGHTS).is_file():
        raise MissingAssetError(f"no policy in '{folder}': {_WEIGHTS} is missing")
    try:
        with contextlib.redirect_stdout(io.StringIO()):  # lerobot tells that it loads
            return get_policy_class(config.type).from_pretrained(folder, config=config, strict=True)
    except (ImportError, OSError) as error:  # a language model of the Hub's, or a package that it needs
        raise MissingAssetError(f"{folder}: type '{config.type}' needs what is not on this machine: {error}") from error
    except (KeyError, RuntimeError, SafetensorError, TypeError, ValueError) as error:
        raise CorruptFileError(f"{folder / _WEIGHTS}: {' '.join(str(error).split())}") from error


def _read_json(path: Path) -> dict[str, Any]:
    try:
        described = json.loads(path.read_bytes())
    except FileNotFoundError as error:
        hint = "; lerobot makes it of an old policy: python -m lerobot.processor.migrate_policy_normalization"
        raise MissingAssetError(
            f"no lerobot policy in '{path.parent}': {path.name} is missing{'' if path.name == _CONFIG else hint}"
        ) from error
    except ValueError as error:
        raise CorruptFileError(f"{path}: not JSON ({error})") from error
    if not isinstance(described, dict):
        raise CorruptFileError(f"{path}: expected a table")
    return described


def _names(pipeline: Mapping[str, Any]) -> list[str]:
    return [step.get("registry_name") or step.get("class") for step in pipeline["steps"]]


def _read_states(folder: Path, name: str, pipeline: Mapping[str, Any]) -> dict[str, dict[str, torch.Tensor]]:
    """The tensors of a pipeline's steps, by file name without suffix, after every step's name was checked."""
    steps = pipeline.get("steps")
    if not isinstance(steps, list) or not all(isinstance(step, dict) for step in steps):
        raise CorruptFileError(f"{folder / name}: expected a list of steps")
    states: dict[str, dict[str, torch.Tensor]] = {}
    for step in steps:
        if "class" in step or step.get("registry_name") not in STEPS:
            raise unknown_name(f"step in {folder / name}", str(step.get("class") or step.get("registry_name")), STEPS)
        tensors: dict[str, torch.Tensor] = {}
        if file := step.get("state_file"):
            if Path(file).name != file:
                raise CorruptFileError(f"{folder / name}: '{file}' is not the name of a file in this folder")
            try:
                tensors = states[file.removesuffix(".safetensors")] = load_file(folder / file)
            except FileNotFoundError as error:
                raise MissingAssetError(f"no policy in '{folder}': {file} is missing") from error
            except (OSError, SafetensorError) as error:
                raise CorruptFileError(f"{folder / file}: {error}") from error
        _check_statistics(folder / name, step, tensors)
    return states


def _check_statistics(path: Path, step: Mapping[str, Any], tensors: Mapping[str, torch.Tensor]) -> None:
    """Every feature that a step must scale has statistics: lerobot passes the others on as they are."""
    if "normalizer_processor" not in step["registry_name"]:
        return
    scales_actions = step["registry_name"] == "unnormalizer_processor"
    settings = step.get("config", {})
    for feature, described in settings.get("features", {}).items():
        mode = settings.get("norm_map", {}).get(described["type"], "IDENTITY")
        wanted = mode != "IDENTITY" and (feature == ACTION) == scales_actions
        if wanted and not any(name.startswith(f"{feature}.") for name in tensors):
            raise CorruptFileError(f"{path}: {step['registry_name']} has no statistics of {feature}")
