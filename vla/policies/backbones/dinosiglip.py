"""OpenVLA's eyes: DINOv2 and SigLIP look at the same image, their patch tokens are joined feature by feature.

What is special: tokens are taken after the last block but one, before the final norm, without class and register
tokens. The parts that come after are not built at all (4 % of the work); `unused_prefixes` names them, so that a loader
can account for every published tensor. DINOv2 comes first.

With FiLM (OFT+), every block's tokens are scaled and shifted by the instruction between attention and MLP. `scale` and
`shift` sit beside the block's own weights: `blocks.N.scale.weight`, and `blocks.N.attn...`, where the published wrapper
says `blocks.N.block.attn...`.

Sources: Kim et al. 2024 (OpenVLA), Kim et al. 2025 (OFT, arXiv 2502.19645, FiLM in its appendix), Perez et al. 2018.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from timm.models.vision_transformer import Block, VisionTransformer
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from vla.policies.preprocess import centre_crop, jpeg_round_trip, lanczos_resize

PATCH = 14  # side of a patch [px]
DINO_MEAN, DINO_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
SIGLIP_MEAN, SIGLIP_STD = (0.5, 0.5, 0.5), (0.5, 0.5, 0.5)


@dataclass(frozen=True, kw_only=True)
class Tower:
    """Geometry of one vision transformer. `depth` counts the published blocks, of which the last is not built."""

    width: int
    depth: int
    heads: int


class DinoSiglip(nn.Module):
    """Images to patch tokens of width `width` = both towers' widths together. A `VisionTower` of vlm.py."""

    def __init__(
        self,
        *,
        dino: Tower,
        siglip: Tower,
        image_size: int = 224,
        condition: int | None = None,
        jpeg: bool = True,
        crop: bool = True,
        dino_mean: Sequence[float] = DINO_MEAN,
        dino_std: Sequence[float] = DINO_STD,
        siglip_mean: Sequence[float] = SIGLIP_MEAN,
        siglip_std: Sequence[float] = SIGLIP_STD,
    ) -> None:
        """Builds both towers with random weights.

        Args:
            dino: geometry of the first tower.
            siglip: geometry of the second.
            image_size: side [px], a multiple of 14, to which images are resized.
            condition: width of the condition of FiLM; None builds none.
            jpeg: whether images go through JPEG first, as the published training data had.
            crop: whether the middle 90 % of the area is cut out in evaluation mode, which matches the random crops of
                training.
            dino_mean: of the colours in [0, 1], subtracted before the first tower.
            dino_std: divides them.
            siglip_mean: the same for the second tower.
            siglip_std: the same.
        """
        super().__init__()
        if image_size % PATCH:
            raise ValueError(f"image_size is {image_size}, expected a multiple of {PATCH}")
        self.image_size, self.jpeg, self.crop = image_size, jpeg, crop
        self.width, self.num_tokens = dino.width + siglip.width, (image_size // PATCH) ** 2
        self.featurizer = _vit(dino, image_size, condition, init_values=1e-5, reg_tokens=4, no_embed_class=True)
        self.fused_featurizer = _vit(siglip, image_size, condition, mlp_ratio=3.7362, class_token=False)
        self.unused_prefixes = (
            f"featurizer.blocks.{dino.depth - 1}.",
            "featurizer.norm.",
            f"fused_featurizer.blocks.{siglip.depth - 1}.",
            "fused_featurizer.norm.",
            "fused_featurizer.attn_pool.",
        )
        self.dino_colours, self.siglip_colours = (dino_mean, dino_std), (siglip_mean, siglip_std)

    def forward(self, images_NHWC: Tensor, condition_ND: Tensor | None = None) -> Tensor:
        """Patch tokens (N, num_tokens, width), row by row from the top left.

        Args:
            images_NHWC: uint8, any size.
            condition_ND: of FiLM, one per image.
        """
        pixels_NHWC = self.preprocess(images_NHWC).float() / 255
        seen = [
            _look(self.featurizer, _normalise(pixels_NHWC, *self.dino_colours), condition_ND),
            _look(self.fused_featurizer, _normalise(pixels_NHWC, *self.siglip_colours), condition_ND),
        ]
        return torch.cat(seen, dim=-1)

    def preprocess(self, images_NHWC: Tensor) -> Tensor:
        """The uint8 images (N, image_size, image_size, 3) that both towers see before their normalisations."""
        if self.jpeg:
            images_NHWC = jpeg_round_trip(images_NHWC)
        images_NHWC = lanczos_resize(images_NHWC, self.image_size)
        return centre_crop(images_NHWC) if self.crop and not self.training else images_NHWC

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Whether blocks are computed again in the backward pass, to save memory."""
        self.featurizer.set_grad_checkpointing(enable)
        self.fused_featurizer.set_grad_checkpointing(enable)


class FilmBlock(Block):
    """A block of timm's vision transformer with FiLM: x (1 + scale(c)) + shift(c) between attention and MLP."""

    def __init__(self, dim: int, *arguments, condition: int, **settings) -> None:
        super().__init__(dim, *arguments, **settings)
        self.scale, self.shift = nn.Linear(condition, dim), nn.Linear(condition, dim)

    def forward(self, x_NTD: Tensor, condition_ND: Tensor) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Tokens (N, T, D) of N images and one condition for each."""
        x_NTD = x_NTD + self.drop_path1(self.ls1(self.attn(self.norm1(x_NTD))))
        x_NTD = x_NTD * (1 + self.scale(condition_ND)[:, None]) + self.shift(condition_ND)[:, None]
        return x_NTD + self.drop_path2(self.ls2(self.mlp(self.norm2(x_NTD))))


class Projector(nn.Module):
    """Vision tokens to the width of the language model: three linear layers, the first four times as wide."""

    def __init__(self, *, vision: int, width: int) -> None:
        super().__init__()
        self.fc1, self.fc2, self.fc3 = (
            nn.Linear(vision, 4 * vision),
            nn.Linear(4 * vision, width),
            nn.Linear(width, width),
        )

    def forward(self, tokens_BND: Tensor) -> Tensor:
        """Tokens (B, N, vision width) to (B, N, D)."""
        return self.fc3(functional.gelu(self.fc2(functional.gelu(self.fc1(tokens_BND)))))


def _vit(tower: Tower, image_size: int, condition: int | None, **published) -> VisionTransformer:
    """A tower without what comes after its last block but one."""
    return VisionTransformer(
        img_size=image_size,
        patch_size=PATCH,
        embed_dim=tower.width,
        depth=tower.depth - 1,
        num_heads=tower.heads,
        num_classes=0,
        global_pool="",
        final_norm=False,
        block_fn=Block if condition is None else partial(FilmBlock, condition=condition),  # pyright: ignore[reportArgumentType]
        **published,
    )


def _normalise(pixels_NHWC: Tensor, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """(N, 3, h, w). The constants are no buffers, which a cast of the network to bfloat16 would round."""
    planes = zip(pixels_NHWC.unbind(-1), mean, std, strict=True)
    return torch.stack([(plane_NHW - m) / s for plane_NHW, m, s in planes], dim=1)


def _look(vit: VisionTransformer, pixels_NCHW: Tensor, condition_ND: Tensor | None) -> Tensor:
    """Patch tokens after the last block, without the prefix tokens."""
    pixels_NCHW = pixels_NCHW.to(vit.patch_embed.proj.weight.dtype)
    if condition_ND is None:
        return vit.forward_features(pixels_NCHW)[:, vit.num_prefix_tokens :]
    x_NTD = vit._pos_embed(vit.patch_embed(pixels_NCHW))
    recompute = vit.grad_checkpointing and torch.is_grad_enabled()
    for block in vit.blocks.children():
        run: Callable[..., Tensor] = partial(checkpoint, block, use_reentrant=False) if recompute else block  # pyright: ignore
        x_NTD = run(x_NTD, condition_ND)
    return x_NTD[:, vit.num_prefix_tokens :]
