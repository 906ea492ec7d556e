"""The published augmentation against colorsys, numpy and its own definition, with known draws."""

import colorsys
import math

import numpy as np
import pytest
import torch
from torch import Tensor

from vla.policies.augment_openvla import OpenVLAAugmentation, adjust_contrast, adjust_hue, adjust_saturation

OFF = {"area": 1.0, "brightness": 0.0, "contrast": 0.0, "saturation": 0.0, "hue": 0.0}
SPECIAL = [
    (0, 0, 0),
    (1, 1, 1),
    (0.5, 0.5, 0.5),
    (1, 0, 0),
    (0, 1, 0),
    (0, 0, 1),
    (1, 1, 0),
    (0.2, 0.7, 0.7),
    (1, 0.3, 1),
]

TENSORFLOW_COLOURS = [
    [[0.14123, 0.16029, 0.21265], [0.48217, 0.73951, 0.87559], [0.25939, 0.755, 0.9748]],
    [[0.35517, 1.0, 0.60532], [0.54804, 0.34016, 0.31279], [0.30629, 0.33669, 0.39304]],
]


def colours() -> Tensor:
    """(1, 1, W, 3): corners and edges of the cube, then colours at random."""
    rng = np.random.default_rng(0)
    return torch.tensor(np.concatenate([SPECIAL, rng.random((300, 3))]), dtype=torch.float32)[None, None]


def turned(rgb, turn: float, factor: float = 1.0) -> tuple[float, float, float]:
    hue, saturation, value = colorsys.rgb_to_hsv(*map(float, rgb))
    return colorsys.hsv_to_rgb((hue + turn) % 1, min(saturation * factor, 1), value)


@pytest.mark.parametrize("factor", [0.0, 0.8, 1.0, 1.2, 5.0])
def test_saturation_is_that_of_hsv(factor: float) -> None:
    wanted = torch.tensor([turned(rgb, 0, factor) for rgb in colours()[0, 0]])
    torch.testing.assert_close(adjust_saturation(colours(), torch.tensor([factor]))[0, 0], wanted, rtol=0, atol=1e-6)


@pytest.mark.parametrize("turn", [-0.4, -0.05, 0.0, 0.03, 1 / 3, 0.9])
def test_hue_is_that_of_hsv(turn: float) -> None:
    wanted = torch.tensor([turned(rgb, turn) for rgb in colours()[0, 0]])
    torch.testing.assert_close(adjust_hue(colours(), torch.tensor([turn]))[0, 0], wanted, rtol=0, atol=2e-6)


def test_contrast_keeps_each_images_mean_colour() -> None:
    images_NHWC = torch.rand(3, 6, 5, 3, generator=torch.Generator().manual_seed(0))
    factor_N = torch.tensor([0.0, 0.8, 1.3])
    adjusted_NHWC = adjust_contrast(images_NHWC, factor_N)
    torch.testing.assert_close(adjusted_NHWC.mean((1, 2)), images_NHWC.mean((1, 2)))
    spread = adjusted_NHWC.std((1, 2)) / images_NHWC.std((1, 2))
    torch.testing.assert_close(spread, factor_N[:, None].expand(3, 3))


def test_the_chain_is_tensorflows() -> None:
    """Brightness .15, contrast 1.15, saturation .85, hue -.04, clipped between, by tf.image of TensorFlow 2.21."""
    image = torch.from_numpy((np.arange(240) ** 2 * 7 % 251).astype(np.float32).reshape(1, 8, 10, 3))[:, :2, :3] / 255
    image = adjust_contrast((image + 0.15).clamp(0, 1), torch.tensor([1.15])).clamp(0, 1)
    image = adjust_hue(adjust_saturation(image, torch.tensor([0.85])), torch.tensor([-0.04]))
    wanted = torch.tensor(TENSORFLOW_COLOURS)
    torch.testing.assert_close(image[0], wanted, rtol=0, atol=1e-5)


def test_all_off_changes_nothing() -> None:
    images_BKHWC = torch.randint(0, 256, (2, 2, 16, 16, 3), generator=torch.Generator().manual_seed(0)).to(torch.uint8)
    assert torch.equal(OpenVLAAugmentation(**OFF).images(images_BKHWC), images_BKHWC)
    state_BS = torch.randn(4, 8)
    assert torch.equal(OpenVLAAugmentation().state(state_BS), state_BS)
    assert (OpenVLAAugmentation(state_noise=0.1).state(torch.zeros(1000)).std() - 0.1).abs() < 0.02


def test_the_crop_has_nine_tenths_of_the_area() -> None:
    """On a picture of its own coordinates: size and place are read off, and every image has its own place."""
    torch.manual_seed(0)
    ramp_S = torch.arange(200, dtype=torch.uint8)
    y_HW, x_HW = ramp_S[:, None].expand(200, 200), ramp_S.expand(200, 200)
    images_BKHWC = torch.stack([y_HW, x_HW, torch.zeros_like(x_HW)], -1).expand(8, 2, 200, 200, 3)
    cropped_NHWC = OpenVLAAugmentation(**{**OFF, "area": 0.9}).images(images_BKHWC).flatten(0, 1).numpy().astype(float)
    places = set()
    for cropped_HWC in cropped_NHWC:
        for line_S in (cropped_HWC[:, 100, 0], cropped_HWC[100, :, 1]):
            side, start = np.polyfit(np.arange(200), (line_S + 0.5) * 255 / 255.5, 1)
            assert abs(side - math.sqrt(0.9)) < 1e-3
            assert -1 < start < (1 - math.sqrt(0.9)) * 199 + 1
            places.add(round(start, 1))
    assert len(places) > 20
    assert max(places) - min(places) > 7  # of 10.2 px


@pytest.mark.parametrize(("part", "strength"), [("brightness", 0.2), ("contrast", 0.2), ("saturation", 0.2)])
def test_each_part_uses_its_whole_range(part: str, strength: float) -> None:
    """Two halves, light and dark red: brightness moves both, contrast parts them, saturation moves green alone."""
    torch.manual_seed(0)
    image_HWC = torch.tensor([[150, 110, 110], [110, 70, 70]], dtype=torch.uint8)[:, None].expand(2, 2, 3)
    augmented = OpenVLAAugmentation(**{**OFF, part: strength}).images(image_HWC.expand(100, 2, 2, 2, 3)).float()
    light, dark = augmented[:, :, 0, 0], augmented[:, :, 1, 0]
    measured = {
        "brightness": (light[..., 0] - 150) / 255,
        "contrast": (light[..., 0] - dark[..., 0]) / 40 - 1,
        "saturation": (light[..., 0] - light[..., 1]) / 40 - 1,
    }[part]
    assert measured.abs().max() < strength + 0.03
    assert measured.max() > 0.85 * strength
    assert measured.min() < -0.85 * strength
    assert len(set(measured.flatten().tolist())) > 10


def test_the_parts_come_in_order_with_clipping_between() -> None:
    """Colours at the ends of the range, where another order or a missing clip shows; crop off."""
    rng = np.random.default_rng(1)
    images = (rng.random((6, 1, 4, 4, 3)) ** 0.3 * 255).astype(np.uint8)
    torch.manual_seed(3)
    augmented = OpenVLAAugmentation(**{**OFF, "brightness": 0.4, "contrast": 0.9, "saturation": 0.9, "hue": 0.3})
    ours = augmented.images(torch.from_numpy(images))[:, 0].numpy()
    torch.manual_seed(3)
    draws = 2 * torch.rand(6, 6).numpy()[:, 2:] - 1
    for image_HWC, ours_HWC, (brightness, contrast, saturation, hue) in zip(images[:, 0], ours, draws, strict=True):
        x = np.clip(image_HWC / 255 + 0.4 * brightness, 0, 1)
        mean = x.mean((0, 1))
        x = np.clip((x - mean) * (1 + 0.9 * contrast) + mean, 0, 1)
        x = np.array([[turned(rgb, 0.3 * hue, 1 + 0.9 * saturation) for rgb in row] for row in x])
        assert np.abs(ours_HWC - np.floor(np.minimum(x * 255.5, 255))).max() <= 1
        assert np.mean(ours_HWC != np.floor(np.minimum(x * 255.5, 255))) < 0.02
