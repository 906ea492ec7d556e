"""JPEG, Lanczos and crop against their definitions written as loops, PIL, and numbers that TensorFlow gave."""

import io
import math

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from vla.policies.preprocess import centre_crop, jpeg_round_trip, lanczos_resize

# tf.image.resize(..., (5, 5), "lanczos3", antialias=True), rounded, and the published centre crop, channel 0 of `odd`.
TENSORFLOW_LANCZOS = [
    [33, 50, 53, 57, 79],
    [107, 112, 141, 186, 134],
    [163, 86, 108, 84, 134],
    [197, 145, 88, 78, 165],
    [162, 91, 129, 128, 115],
]
TENSORFLOW_CROP = [
    [19, 57, 15, 67, 13, 76, 23, 77, 38, 80],
    [50, 93, 55, 112, 63, 130, 81, 140, 105, 127],
    [122, 154, 121, 182, 138, 209, 165, 228, 198, 70],
    [184, 48, 19, 79, 44, 115, 75, 142, 117, 172],
    [168, 220, 164, 40, 224, 72, 31, 103, 82, 142],
    [145, 206, 154, 29, 223, 70, 33, 109, 93, 157],
    [165, 230, 183, 46, 48, 107, 80, 161, 149, 218],
    [182, 94, 77, 122, 99, 194, 172, 78, 44, 117],
]


def odd() -> Tensor:
    """(1, 8, 10, 3) of no pattern."""
    return torch.from_numpy((np.arange(240) ** 2 * 7 % 251).astype(np.uint8).reshape(1, 8, 10, 3))


def picture(height: int, width: int, seed: int = 0) -> Tensor:
    """Shades, edges and some noise, away from black and white."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:height, :width]
    shades = np.stack([128 + 60 * np.sin(x / 5), 50 + 120 * y / height, 60 + 130 * ((x // 9 + y // 7) % 2)], -1)
    return torch.from_numpy(np.clip(shades + rng.normal(0, 5, shades.shape), 30, 225).astype(np.uint8))[None]


def lanczos_by_loops(image_HW: np.ndarray, size: int) -> np.ndarray:
    def kernel(x: float) -> float:
        x = abs(x)
        if x >= 3:
            return 0.0
        return 1.0 if x < 1e-9 else 3 * math.sin(math.pi * x) * math.sin(math.pi * x / 3) / (math.pi * x) ** 2

    def along(column: np.ndarray) -> np.ndarray:
        step, out = len(column) / size, []
        for i in range(size):
            weights = [kernel(((j + 0.5) - (i + 0.5) * step) / max(step, 1)) for j in range(len(column))]
            out.append(sum(w * v for w, v in zip(weights, column, strict=True)) / sum(weights))
        return np.array(out)

    rows = np.apply_along_axis(along, 0, image_HW.astype(float))
    return np.apply_along_axis(along, 1, rows)


def crop_by_loops(image_HW: np.ndarray, area: float) -> np.ndarray:
    height, width = image_HW.shape
    side, out = math.sqrt(area), np.empty(image_HW.shape)
    for i in range(height):
        for j in range(width):
            y, x = (1 - side) / 2 * (height - 1) + i * side, (1 - side) / 2 * (width - 1) + j * side
            top, left = math.floor(y), math.floor(x)
            bottom, right = min(top + 1, height - 1), min(left + 1, width - 1)
            upper = image_HW[top, left] * (1 - x + left) + image_HW[top, right] * (x - left)
            lower = image_HW[bottom, left] * (1 - x + left) + image_HW[bottom, right] * (x - left)
            out[i, j] = upper * (1 - y + top) + lower * (y - top)
    return out


@pytest.mark.parametrize(("height", "width", "size"), [(32, 32, 28), (13, 21, 8), (9, 6, 16)])
def test_lanczos_is_its_definition(height: int, width: int, size: int) -> None:
    image_1HWC = picture(height, width)
    exact_HWC = np.stack([lanczos_by_loops(image_1HWC[0, :, :, c].numpy(), size) for c in range(3)], -1)
    resized_HWC = lanczos_resize(image_1HWC, size)[0].numpy()
    assert resized_HWC.shape == (size, size, 3)
    assert np.abs(resized_HWC - exact_HWC).max() < 0.501


def test_both_are_tensorflows() -> None:
    """Numbers from TensorFlow 2.21."""
    assert lanczos_resize(odd(), 5)[0, ..., 0].tolist() == TENSORFLOW_LANCZOS
    assert centre_crop(odd())[0, ..., 0].tolist() == TENSORFLOW_CROP


def test_lanczos_is_nearly_pils() -> None:
    """PIL rounds between the axes."""
    image_1HWC = picture(256, 256)
    theirs_HWC = np.array(Image.fromarray(image_1HWC[0].numpy()).resize((224, 224), Image.Resampling.LANCZOS))
    difference_HWC = np.abs(lanczos_resize(image_1HWC, 224)[0].numpy().astype(int) - theirs_HWC)
    assert difference_HWC.max() <= 1
    assert difference_HWC.mean() < 0.3


def test_overshoot_is_clipped() -> None:
    """At an edge from black to white the filter swings beyond both, and must not wrap around."""
    image_1HWC = torch.zeros(1, 16, 16, 3, dtype=torch.uint8)
    image_1HWC[:, :, 8:] = 255
    resized_HWC = lanczos_resize(image_1HWC, 14)[0]
    assert (resized_HWC[:, :6] < 40).all()
    assert (resized_HWC[:, 8:] > 215).all()


@pytest.mark.parametrize("grey", [0, 1, 127, 254, 255])
def test_plain_images_stay(grey: int) -> None:
    image_1HWC = torch.full((1, 20, 20, 3), grey, dtype=torch.uint8)
    assert (lanczos_resize(image_1HWC, 14) == grey).all()
    assert (centre_crop(image_1HWC) == grey).all()


def test_nothing_to_do() -> None:
    image_1HWC = picture(24, 24)
    assert torch.equal(lanczos_resize(image_1HWC, 24), image_1HWC)
    assert torch.equal(centre_crop(image_1HWC, area=1.0), image_1HWC)


@pytest.mark.parametrize(("height", "width", "area"), [(28, 28, 0.9), (15, 24, 0.5)])
def test_the_crop_is_its_definition(height: int, width: int, area: float) -> None:
    """Times 255.5 / 255, and the fraction dropped."""
    image_1HWC = picture(height, width)
    exact_HWC = np.stack([crop_by_loops(image_1HWC[0, :, :, c].numpy().astype(float), area) for c in range(3)], -1)
    scaled_HWC = exact_HWC * 255.5 / 255
    cropped_HWC = centre_crop(image_1HWC, area)[0].numpy()
    assert (cropped_HWC <= scaled_HWC + 1e-3).all()
    assert (cropped_HWC > scaled_HWC - 1 - 1e-3).all()


@pytest.mark.parametrize("area", [0.0, -1.0, 1.1])
def test_a_crop_needs_an_area(area: float) -> None:
    with pytest.raises(ValueError, match="area is"):
        centre_crop(picture(8, 8), area)


def test_jpeg_is_pils() -> None:
    """The same library underneath, with the same halved colour resolution, at another quality too."""
    images_NHWC = torch.cat([picture(64, 48), picture(64, 48, seed=1)])
    for quality in (95, 60):
        ours_NHWC = jpeg_round_trip(images_NHWC, quality).numpy()
        for ours_HWC, image_HWC in zip(ours_NHWC, images_NHWC.numpy(), strict=True):
            file = io.BytesIO()
            Image.fromarray(image_HWC).save(file, "JPEG", quality=quality)
            theirs_HWC = np.array(Image.open(file))
            assert np.abs(ours_HWC.astype(int) - theirs_HWC).max() <= 1
            assert not np.array_equal(ours_HWC, image_HWC)


def test_images_do_not_mix() -> None:
    images_NHWC = torch.cat([picture(32, 32, seed) for seed in range(3)])
    for step in (jpeg_round_trip, centre_crop, lambda images: lanczos_resize(images, 28)):
        together = step(images_NHWC)
        assert torch.equal(together, torch.cat([step(image_HWC[None]) for image_HWC in images_NHWC]))
