"""A vision-language backbone small enough to train on a laptop's CPU: about 2.5 M parameters, fp32.

Per camera a convolutional tower (its own weights: a scene view and a wrist view share little) keeps places sharp:
24x24 cells of 4 px, then 12x12. The instruction steers every block by FiLM, so "which object" is answered where the
object is seen. A camera gives 36 patch tokens and one token of 32 keypoints (spatial soft-argmax, which places a
feature more finely than its grid). Learned queries, one per action of the chunk, attend to all of them, to the
instruction and to the state, and come out all at once: one forward pass, no action waits for another.
Vision tokens are read, not rewritten, by the transformer: that is what makes it cheap.
Built for a denoising head, it adds to each query what its noisy action is, and how noisy.

Sources: FiLM (Perez et al. 2018); spatial soft-argmax (Levine et al. 2016); action queries (Zhao et al. 2023); waves of
the noise's time (Black et al. 2024).
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from vla.policies.backbones import minilm

KEYPOINTS = 32
CONDITION = 128  # width of the instruction where it steers the towers
WAVES = 64  # in which the time of noise is written, with periods from 0.004 to 4


class TinyBackbone(nn.Module):
    """Images, state and instructions to one feature vector per action of the chunk."""

    def __init__(
        self,
        *,
        cameras: int,
        state_dim: int,
        horizon: int,
        width: int = 192,
        layers: int = 3,
        heads: int = 6,
        image_size: int = 96,
        channels: tuple[int, int] = (32, 96),
        noisy_action_dim: int | None = None,
    ) -> None:
        """Builds the network.

        Args:
            cameras: K.
            state_dim: S.
            horizon: H.
            width: D, of tokens and features.
            layers: decoder layers.
            heads: attention heads.
            image_size: side [px], a multiple of 8, to which images are resized inside.
            channels: of a tower at a quarter and at an eighth of that size.
            noisy_action_dim: A, for a denoising head; None for one that asks for features once.
        """
        super().__init__()
        if image_size % 8:
            raise ValueError(f"image_size is {image_size}, expected a multiple of 8")
        self.width, self.image_size = width, image_size
        patches = (image_size // 16) ** 2
        self.condition = nn.Sequential(nn.Linear(minilm.WIDTH, CONDITION), nn.SiLU())
        self.towers = nn.ModuleList(
            Tower(width=width, image_size=image_size, channels=channels) for _ in range(cameras)
        )
        self.place_KND = nn.Parameter(0.02 * torch.randn(cameras, patches + 1, width))
        self.language = nn.Linear(minilm.WIDTH, width)
        self.state = nn.Sequential(nn.Linear(state_dim, width), nn.SiLU(), nn.Linear(width, width))
        self.memory_norm = nn.LayerNorm(width)
        self.queries_HD = nn.Parameter(0.02 * torch.randn(horizon, width))
        self.layers = nn.ModuleList(DecoderLayer(width=width, heads=heads) for _ in range(layers))
        self.norm = nn.LayerNorm(width)
        self.denoises = noisy_action_dim is not None
        if noisy_action_dim is not None:  # last: without it, the same seed gives the same weights as ever
            self.noisy_action = nn.Linear(noisy_action_dim, width)
            self.time = nn.Sequential(nn.Linear(2 * WAVES, width), nn.SiLU(), nn.Linear(width, width))
        for module in self.modules():
            if isinstance(module, nn.Conv2d):  # channels last: twice as fast on a CPU
                module.weight.data = module.weight.data.contiguous(memory_format=torch.channels_last)

    def encode(self, images_BKHWC: Tensor, state_BS: Tensor, instructions: Sequence[str]) -> Tensor:
        """The tokens (B, N, D) that the action queries attend to.

        Args:
            images_BKHWC: uint8, any size.
            state_BS: normalised.
            instructions: B texts.
        """
        text_BE = torch.stack([minilm.encode(text) for text in instructions]).to(state_BS.device)
        condition_BC = self.condition(text_BE)
        seen = [
            tower(self._pixels(images_BKHWC[:, k]), condition_BC) + self.place_KND[k]
            for k, tower in enumerate(self.towers)
        ]
        told = [self.language(text_BE)[:, None], self.state(state_BS)[:, None]]
        return self.memory_norm(torch.cat([*seen, *told], dim=1))

    def forward(self, memory_BND: Tensor, noisy_BHA: Tensor | None = None, time_B: Tensor | None = None) -> Tensor:
        """Features (B, H, D) from what `encode` returned and, for a denoising head, noisy actions and their time."""
        if (noisy_BHA is not None and time_B is not None) != self.denoises:
            raise ValueError(f"noisy actions and their time: {'expected' if self.denoises else 'not expected'} here")
        x_BHD = self.queries_HD.expand(len(memory_BND), -1, -1)
        if noisy_BHA is not None and time_B is not None:
            x_BHD = x_BHD + self.noisy_action(noisy_BHA) + self.time(_waves(time_B))[:, None]
        for layer in self.layers:
            x_BHD = layer(x_BHD, memory_BND)
        return self.norm(x_BHD)

    def _pixels(self, images_BHWC: Tensor) -> Tensor:
        """Resized with antialiasing, in about [-2, 2], (B, 3, h, w) with channels last in memory."""
        images_BCHW = images_BHWC.permute(0, 3, 1, 2)
        size = (self.image_size, self.image_size)
        if images_BCHW.shape[-2:] != size:
            if images_BCHW.device.type != "cpu":  # only the CPU has the (fast) kernel for bytes
                images_BCHW = images_BCHW.float()
            images_BCHW = functional.interpolate(images_BCHW, size=size, mode="bilinear", antialias=True)
        return images_BCHW.float().sub_(127.5).mul_(1 / 64)


class Tower(nn.Module):
    """One camera: pixels (B, 3, 8n, 8n) to tokens (B, n*n/4 + 1, D), the last one being the keypoints."""

    grid_P2: Tensor

    def __init__(self, *, width: int, image_size: int, channels: tuple[int, int]) -> None:
        super().__init__()
        fine, coarse = channels
        cells = image_size // 8
        self.stem = nn.Conv2d(3, fine, kernel_size=4, stride=4)
        self.place = nn.Parameter(0.02 * torch.randn(1, fine, image_size // 4, image_size // 4))
        self.fine = Block(fine)
        self.down = nn.Conv2d(fine, coarse, kernel_size=2, stride=2)
        self.coarse = Block(coarse)
        self.patches = nn.Conv2d(coarse, width, kernel_size=2, stride=2)
        self.attention = nn.Conv2d(coarse, KEYPOINTS, kernel_size=1)
        self.keypoints = nn.Linear(2 * KEYPOINTS, width)
        ticks = torch.linspace(-1, 1, cells)
        grid_P2 = torch.stack(torch.meshgrid(ticks, ticks, indexing="xy"), dim=-1).view(-1, 2)
        self.register_buffer("grid_P2", grid_P2, persistent=False)

    def forward(self, pixels_BCHW: Tensor, condition_BC: Tensor) -> Tensor:
        fine_BCHW = self.fine(self.stem(pixels_BCHW) + self.place, condition_BC)
        coarse_BCHW = self.coarse(self.down(fine_BCHW), condition_BC)
        patches_BND = self.patches(coarse_BCHW).flatten(2).transpose(1, 2)
        heat_BMP = self.attention(coarse_BCHW).flatten(2).softmax(-1)
        keypoints_BD = self.keypoints((heat_BMP @ self.grid_P2).flatten(1))
        return torch.cat([patches_BND, keypoints_BD[:, None]], dim=1)


class Block(nn.Module):
    """Residual block of two 3x3 convolutions, the second modulated by the instruction: h (1 + gain) + bias."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        # One group: torch's CPU kernel for channels-last images is several times slower with more.
        self.norm1, self.norm2 = nn.GroupNorm(1, channels), nn.GroupNorm(1, channels)
        self.conv1 = nn.Conv2d(channels, channels, kernel_size=3, padding=1)
        self.conv2 = nn.Conv2d(channels, channels, kernel_size=3, padding=1)
        self.film = nn.Linear(CONDITION, 2 * channels)

    def forward(self, x_BCHW: Tensor, condition_BC: Tensor) -> Tensor:
        gain, bias = self.film(condition_BC)[:, :, None, None].chunk(2, dim=1)
        h_BCHW = self.conv1(functional.silu(self.norm1(x_BCHW)))
        h_BCHW = self.norm2(h_BCHW) * (1 + gain) + bias
        return x_BCHW + self.conv2(functional.silu(h_BCHW))


class DecoderLayer(nn.Module):
    """Pre-norm: the queries attend to the memory, then to each other (no causal mask), then an MLP."""

    def __init__(self, *, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.cross_norm, self.self_norm, self.mlp_norm = (nn.LayerNorm(width) for _ in range(3))
        self.cross_query, self.cross_memory = nn.Linear(width, width), nn.Linear(width, 2 * width)
        self.cross_out = nn.Linear(width, width)
        self.self_all, self.self_out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

    def forward(self, x_BHD: Tensor, memory_BND: Tensor) -> Tensor:
        key, value = self.cross_memory(memory_BND).chunk(2, dim=-1)
        x_BHD = x_BHD + self.cross_out(self._attend(self.cross_query(self.cross_norm(x_BHD)), key, value))
        query, key, value = self.self_all(self.self_norm(x_BHD)).chunk(3, dim=-1)
        x_BHD = x_BHD + self.self_out(self._attend(query, key, value))
        return x_BHD + self.mlp(self.mlp_norm(x_BHD))

    def _attend(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        query, key, value = (x.unflatten(-1, (self.heads, -1)).transpose(1, 2) for x in (query, key, value))
        return functional.scaled_dot_product_attention(query, key, value).transpose(1, 2).flatten(2)


def _waves(time_B: Tensor) -> Tensor:
    """Sines and cosines (B, 2 WAVES) of times in [0, 1]."""
    periods_W = torch.logspace(math.log10(0.004), math.log10(4), WAVES, device=time_B.device)
    phase_BW = 2 * math.pi * time_B[:, None] / periods_W
    return torch.cat([phase_BW.sin(), phase_BW.cos()], dim=-1)
