"""Published OpenVLA-OFT checkpoints as our policies: `moojink/openvla-7b-oft-finetuned-*`, their FiLM variants, and
`openvla/openvla-7b` to start from.

What is special: accounting is strict. Every published tensor has a place in our network or is named here as one that
nothing reads; every weight of our network is filled, or was asked to be fresh; else an error lists them. The network
is built without memory and takes the tensors as they come, so a 7B model is in memory once. The gripper's convention
is folded into the head, so a loaded policy speaks our embodiment's language. None of the published code is run.

`openvla/openvla-7b` itself decodes one token after the other, causally. Our network does not: it is a start here, not
the policy of that paper. Source: specification of OpenVLA-OFT, 1.3, 1.12 to 1.19 and 2.1.
"""

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vla.core.errors import CorruptFileError, MissingAssetError, NonFiniteError, SpecMismatchError, unknown_name
from vla.core.spec import Embodiment
from vla.data.transforms import Transforms
from vla.policies.backbones.dinosiglip import PATCH
from vla.policies.backbones.language import check_bidirectional
from vla.policies.empty import empty_weights
from vla.policies.openvla_oft import SIZES, TOKENIZER, openvla_oft_policy
from vla.policies.published_files import Checkpoint, open_checkpoint, read_json
from vla.policies.published_spec import platform_of, published_transforms
from vla.policies.vla import VLAPolicy

HEADS = ("l1", "diffusion", "tokens")
LIBERO_ACTION_DIM = 7
_PREPROCESSOR = "preprocessor_config.json"
# What a part that starts at random is called in our network.
_FRESH = {
    "action_head": re.compile(r"head\..*"),
    "proprio_projector": re.compile(r"backbone\.proprio_projector\..*"),
    "noisy_action_projector": re.compile(r"backbone\.noisy_action_projector\..*"),
    "vision_backbone": re.compile(r"backbone\.vision\..*\.(scale|shift)\.(weight|bias)"),
}
_RULES = tuple(
    (re.compile(pattern), ours)
    for pattern, ours in (
        (r"(\.blocks\.\d+)\.block\.", r"\1."),  # FiLM's wrapper
        (r"\.(ls[12])\.scale_factor$", r".\1.gamma"),
        (r"^vision_backbone\.", "backbone.vision."),
        (r"^((noisy_action_|proprio_)?projector)\.", r"backbone.\1."),
        (r"^language_model\.model\.", "backbone.language."),
        (r"^language_model\.lm_head\.", "head.bins."),
        (r"^action_head\.(model|noise_predictor\.mlp_resnet)\.", "head."),
        (r"^head\.layer_norm1\.", "head.project.0."),
        (r"^head\.fc1\.", "head.project.1."),
        (r"^head\.mlp_resnet_blocks\.(\d+)\.ffn\.", r"head.blocks.\1."),
        (r"^head\.layer_norm2\.", "head.out.0."),
        (r"^head\.fc2\.", "head.out.1."),
    )
)
_SHOWN = 30  # names that an error lists


def load_published(
    folder: str | Path,
    *,
    unnorm_key: str | None = None,
    cameras: Sequence[str] | None = None,
    spec: Embodiment | None = None,
    horizon: int | None = None,
    base: str | Path | None = None,
    head: str | None = None,
    proprio: bool | None = None,
    film: bool | None = None,
    fresh_parts: bool = False,
    transforms: Transforms | None = None,
    device: torch.device | str = "cpu",
    dtype: torch.dtype | None = None,
) -> VLAPolicy:
    """A published checkpoint as a policy in evaluation mode.

    Args:
        folder: as downloaded.
        unnorm_key: the dataset whose statistics are meant, needed where there are several.
        cameras: in the order of training; all of the embodiment's when None.
        spec: the embodiment; LIBERO's or ALOHA's by the number of action axes when None.
        horizon: H, which no file holds: 8 for LIBERO, 25 for ALOHA when None.
        base: folder of the base weights, to merge `folder/lora_adapter` into them; None takes the merged ones.
        head: "l1", "diffusion" or "tokens"; None: what the action head's file says. A checkpoint without such a file
            chooses tokens with its language head, if so asked.
        proprio: whether the state is a token; None: yes, or with tokens if there is a file for it.
        film: whether the words steer the vision towers; None: if there is a file for it.
        fresh_parts: parts without a file (an L1 head, the proprioception, FiLM) start at random, drawn from torch's
            global generator, instead of being an error. To fine-tune; a line that is printed names them.
        transforms: instead of those from the checkpoint's statistics, as fine-tuning on other data needs.
        device: where the weights go, one by one.
        dtype: of all weights; that of the shards when None.

    Raises:
        MissingAssetError: a file is missing.
        CorruptFileError: a file is damaged or doubled; tensors are unknown, missing or of another shape.
        NonFiniteError: a weight is NaN or infinite.
        UnknownNameError: no such statistics, camera or head.
        SpecMismatchError: the embodiment does not fit the statistics.
    """
    folder, base = Path(folder), None if base is None else Path(base)
    checkpoint = open_checkpoint(folder, base)
    plan = _plan(checkpoint, head, proprio=proprio, film=film, fresh_parts=fresh_parts)
    platform = platform_of(_action_dim(checkpoint, plan, spec), spec, horizon)
    if transforms is None:
        proprio = "proprio_projector" in plan.parts
        transforms = published_transforms(folder, checkpoint.config, unnorm_key, platform, proprio=proprio)
    with empty_weights():
        policy = openvla_oft_policy(
            spec=platform.spec,
            transforms=transforms,
            cameras=platform.spec.camera_names if cameras is None else cameras,
            horizon=platform.horizon,
            files={TOKENIZER: _first(folder, base, TOKENIZER).read_bytes()},
            size=_size(checkpoint),
            head=plan.head,
            film="vision_backbone" in plan.parts,
            proprio="proprio_projector" in plan.parts,
            **_colours(_first(folder, base, _PREPROCESSOR)),
        )
    tensors = _ours(checkpoint, policy, plan.head)
    _fill(policy, tensors, plan.fresh, device=torch.device(device), dtype=dtype or checkpoint.dtype(), folder=folder)
    policy = policy.to(device).eval()
    check_bidirectional(policy.backbone.language)  # pyright: ignore[reportArgumentType]
    return policy


@dataclass(frozen=True, kw_only=True)
class _Plan:
    """What to build: the head, the components beside the base model, and those of them that no file fills."""

    head: str
    parts: frozenset[str]
    fresh: frozenset[str]


def _plan(
    checkpoint: Checkpoint, head: str | None, *, proprio: bool | None, film: bool | None, fresh_parts: bool
) -> _Plan:
    files, folder = checkpoint.components.keys(), checkpoint.folder
    if head is not None and head not in HEADS:
        raise unknown_name("head", head, HEADS)
    found = None
    if "action_head" in files:
        found = (
            "diffusion" if any(".noise_predictor." in name for name in checkpoint.component("action_head")) else "l1"
        )
    head = head or found or ("l1" if fresh_parts else None)
    if head is None:
        raise MissingAssetError(
            f"no action_head--*checkpoint.pt in '{folder}'. Say head=tokens if the checkpoint chooses tokens, "
            f"fresh_parts=true to start fine-tuning from it"
        )
    if found not in (None, head):
        raise SpecMismatchError(f"{checkpoint.components['action_head']} holds a head of kind {found}, not {head}")
    wanted = {
        "action_head": head != "tokens",
        "proprio_projector": head != "tokens" or "proprio_projector" in files if proprio is None else proprio,
        "noisy_action_projector": head == "diffusion",
        "vision_backbone": "vision_backbone" in files if film is None else film,
    }
    parts = frozenset(name for name, needed in wanted.items() if needed)
    if unused := sorted(files - parts):
        raise SpecMismatchError(f"'{folder}' has weights for {', '.join(unused)}, which this network would not use")
    fresh = parts - files
    if fresh and not fresh_parts:
        raise MissingAssetError(
            f"no {', '.join(f'{name}--*checkpoint.pt' for name in sorted(fresh))} in '{folder}' "
            f"(proprio=false if it was trained without; fresh_parts=true to start at random)"
        )
    if fresh:
        print(f"{folder}: at random, as no file has them: {', '.join(sorted(fresh))}")  # noqa: T201
    return _Plan(head=head, parts=parts, fresh=fresh)


def _action_dim(checkpoint: Checkpoint, plan: _Plan, spec: Embodiment | None) -> int:
    """A, from the last layer of the head; a checkpoint without one does not tell."""
    if "action_head" in checkpoint.components:
        for name, tensor in checkpoint.component("action_head").items():
            if _our_name(name) == "head.out.1.bias":
                return len(tensor)
    return LIBERO_ACTION_DIM if spec is None else spec.action_dim


def _size(checkpoint: Checkpoint) -> str:
    """The name of the network's geometry, from the shapes in the files (none tells the number of heads)."""
    shapes = checkpoint.shapes()

    def shape(name: str) -> tuple[int, ...]:
        if name not in shapes:
            raise CorruptFileError(f"{checkpoint.folder}: no tensor '{name}': not an OpenVLA checkpoint")
        return shapes[name]

    def depth(prefix: str) -> int:
        blocks = [int(name.removeprefix(prefix).split(".")[0]) for name in shapes if name.startswith(prefix)]
        return 1 + max(blocks, default=-1)

    vision, language = "vision_backbone.", "language_model.model."
    _, patches, dino = shape(f"{vision}featurizer.pos_embed")
    vocabulary, width = shape(f"{language}embed_tokens.weight")
    seen = {
        "dino": (dino, depth(f"{vision}featurizer.blocks.")),
        "siglip": (shape(f"{vision}fused_featurizer.pos_embed")[2], depth(f"{vision}fused_featurizer.blocks.")),
        "image_size": round(patches**0.5) * PATCH,
        "language": (
            width,
            depth(f"{language}layers."),
            shape(f"{language}layers.0.mlp.up_proj.weight")[0],
            vocabulary,
        ),
    }
    for name, size in SIZES.items():
        known = {
            "dino": (size.dino.width, size.dino.depth),
            "siglip": (size.siglip.width, size.siglip.depth),
            "image_size": size.image_size,
            "language": (size.width, size.layers, size.mlp, size.vocabulary),
        }
        if seen == known:
            return name
    raise SpecMismatchError(f"{checkpoint.folder}: the geometry {seen} is none of {', '.join(SIZES)}")


def _colours(path: Path) -> dict[str, Any]:
    """Means and deviations of the colours as the published processor uses them: those of its `tvf` transforms."""
    config = read_json(path.parent, path.name)
    try:
        (dino, siglip) = config["tvf_normalize_params"]
        return {
            "dino_mean": dino["mean"],
            "dino_std": dino["std"],
            "siglip_mean": siglip["mean"],
            "siglip_std": siglip["std"],
        }
    except (KeyError, TypeError, ValueError) as error:
        raise CorruptFileError(f"{path}: tvf_normalize_params of two towers expected ({error!r})") from error


def _first(folder: Path, base: Path | None, name: str) -> Path:
    """The file `name` of the checkpoint, else that of its base."""
    for each in (folder, base):
        if each is not None and (each / name).exists():
            return each / name
    raise MissingAssetError(f"no checkpoint in '{folder}': {name} is missing")


def _our_name(name: str) -> str:
    for pattern, ours in _RULES:
        name = pattern.sub(ours, name)
    return name


def _ours(checkpoint: Checkpoint, policy: VLAPolicy, head: str) -> Iterator[tuple[str, str, Tensor]]:
    """(published name, our name, tensor) of all but what nothing reads: what follows the tapped blocks, and lm_head."""
    unread = [f"vision_backbone.{prefix}" for prefix in policy.backbone.vision.unused_prefixes]  # pyright: ignore
    if head != "tokens":
        unread.append("language_model.lm_head.")
    grippers_A = torch.from_numpy(policy.spec.binary_A)
    for name, tensor in checkpoint.tensors():
        ours = _our_name(name)
        if name.startswith(tuple(unread)):
            continue
        if head == "l1" and ours.startswith("head.out.1.") and len(tensor) == len(grippers_A):
            tensor = _fold_grippers(tensor.float(), grippers_A, is_bias=ours.endswith(".bias"))
        yield name, ours, tensor


def _fold_grippers(tensor: Tensor, grippers_A: Tensor, *, is_bias: bool) -> Tensor:
    """The last layer's weight (A, D) or bias (A,) so that a gripper's output is 1 - 2 g instead of g.

    Published g is 1 for open and 0 for closed, and its command -sign(2 g - 1). Our heads command +1 where their output
    is positive, -1 elsewhere. 1 - 2 g has the sign of that command, and is linear in g: it folds in exactly.
    """
    folded = torch.where(grippers_A if is_bias else grippers_A[:, None], -2 * tensor, tensor)
    return folded + grippers_A if is_bias else folded


def _fill(
    policy: VLAPolicy,
    tensors: Iterable[tuple[str, str, Tensor]],
    fresh: frozenset[str],
    *,
    device: torch.device,
    dtype: torch.dtype,
    folder: Path,
) -> None:
    """Gives the policy its weights, one by one; all must be used and all must come.

    Raises:
        CorruptFileError: lists tensors that are unknown, missing or of another shape.
        NonFiniteError: lists tensors with NaN or infinity.
    """
    wanted, found = policy.state_dict(), {}
    problems: dict[str, list[str]] = {"unknown": [], "of another shape": [], "missing": []}
    damaged = []
    for name, ours, tensor in tensors:
        if ours not in wanted:
            problems["unknown"].append(name)
        elif wanted[ours].shape != tensor.shape:
            problems["of another shape"].append(f"{name} {tuple(tensor.shape)} for {tuple(wanted[ours].shape)}")
        elif not tensor.isfinite().all():
            damaged.append(name)
        else:
            found[ours] = torch.empty_like(wanted[ours], device=device, dtype=dtype).copy_(tensor)
    if damaged:
        raise NonFiniteError(f"{folder}: NaN or infinity in {_listed(damaged)}")
    started = {name for name in wanted if any(_FRESH[part].fullmatch(name) for part in fresh)}
    refused = [name.split(" ")[0] for name in problems["of another shape"]]
    problems["missing"] = sorted(wanted.keys() - found.keys() - started - {_our_name(name) for name in refused})
    if any(problems.values()):
        told = "; ".join(f"{kind}: {_listed(names)}" for kind, names in problems.items() if names)
        raise CorruptFileError(f"{folder}: tensors do not fit the network ({told})")
    policy.load_state_dict(found, strict=False, assign=True)
    for module in policy.modules():
        if any(parameter.is_meta for parameter in module.parameters(recurse=False)):
            module.to_empty(device=device, recurse=False).to(dtype)
            module.reset_parameters()  # pyright: ignore[reportCallIssue]  all of them linear or layer norms


def _listed(names: list[str]) -> str:
    return ", ".join(names[:_SHOWN]) + (f", and {len(names) - _SHOWN} more" if len(names) > _SHOWN else "")
