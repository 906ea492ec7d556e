from collections.abc import Callable

import numpy as np
import pytest
import torch

from vla.data.batch import Batch
from vla.policies.backbones.tiny import TinyBackbone, Tower
from vla.policies.vla import VLAPolicy

pytestmark = pytest.mark.usefixtures("one_thread")


def small_backbone(**changes) -> TinyBackbone:
    torch.manual_seed(0)
    sizes = {"width": 32, "layers": 2, "heads": 2, "image_size": 32, "channels": (8, 16)}
    return TinyBackbone(**{"cameras": 2, "state_dim": 3, "horizon": 4, **sizes, **changes})


def look(backbone: TinyBackbone, images_BKHWC: torch.Tensor, state_BS: torch.Tensor, texts: list[str]) -> torch.Tensor:
    return backbone(backbone.encode(images_BKHWC, state_BS, texts))


def test_parameters_are_within_the_budget(make_policy: Callable[..., VLAPolicy]):
    policy = make_policy(width=192, layers=3, heads=6, image_size=96, channels=(32, 96))
    own = sum(parameter.numel() for parameter in policy.parameters())
    assert 2e6 < own < 4e6
    assert all(parameter.requires_grad for parameter in policy.parameters())


def test_feature_shape_and_dtype(make_batch: Callable[..., Batch]):
    batch = make_batch(size=3)
    features_BHD = look(small_backbone(), batch.images_BKHWC, batch.state_BS, batch.instructions)
    assert features_BHD.shape == (3, 4, 32)
    assert features_BHD.dtype == torch.float32


def test_all_actions_come_from_one_pass(make_batch: Callable[..., Batch]):
    """A long chunk costs no more passes than a short one: each layer runs once."""
    batch = make_batch(size=2)
    for horizon in (1, 16):
        backbone, calls = small_backbone(horizon=horizon), []
        for layer in backbone.layers:
            layer.register_forward_hook(lambda module, inputs, output, calls=calls: calls.append(output.shape[1]))
        look(backbone, batch.images_BKHWC, batch.state_BS, batch.instructions)
        assert calls == [horizon] * len(backbone.layers)


def test_actions_of_a_chunk_see_each_other_both_ways(make_batch: Callable[..., Batch]):
    """No causal mask: the last query changes the first action's features, and the first the last's."""
    batch, backbone = make_batch(size=1), small_backbone()
    before = look(backbone, batch.images_BKHWC, batch.state_BS, batch.instructions).detach()
    for changed, watched in ((3, 0), (0, 3)):
        backbone.queries_HD.data[changed] += torch.randn(32)
        after = look(backbone, batch.images_BKHWC, batch.state_BS, batch.instructions).detach()
        assert (after[:, watched] - before[:, watched]).abs().max() > 1e-6
        before = after


@pytest.mark.parametrize("part", ["instruction", "state", "first camera", "second camera"])
def test_every_input_changes_the_features(part: str, make_batch: Callable[..., Batch]):
    batch, other, backbone = make_batch(0, size=1), make_batch(1, size=1), small_backbone()
    images, state, texts = batch.images_BKHWC.clone(), batch.state_BS, ["pick up the can"]
    before = look(backbone, images, state, texts)
    if part == "instruction":
        texts = ["open the drawer"]
    elif part == "state":
        state = other.state_BS
    else:
        images[:, ("first camera", "second camera").index(part)] = 255
    assert (look(backbone, images, state, texts) - before).abs().max() > 1e-3


def test_the_instruction_steers_what_the_towers_see():
    tower, pixels = Tower(width=8, image_size=32, channels=(8, 16)), torch.randn(1, 3, 32, 32)
    one, other = tower(pixels, torch.randn(1, 128)), tower(pixels, torch.randn(1, 128))
    assert (one - other).abs().max() > 1e-3


def test_keypoints_are_expected_places():
    """A heat map that peaks in one cell gives that cell's place, x to the right and y down."""
    tower = Tower(width=64, image_size=32, channels=(8, 16))
    x, y = tower.grid_P2.view(4, 4, 2)[1, 3].tolist()
    assert (x, y) == pytest.approx((1.0, -1 / 3))


def test_images_of_any_size_are_resized_inside():
    backbone = small_backbone()
    state, texts = torch.zeros(1, 3), ["push"]
    ramp = torch.linspace(0, 255, 128).to(torch.uint8)
    large = ramp[None, None, None, :, None].expand(1, 2, 128, 128, 3)
    small = large[..., ::4, ::4, :].contiguous()
    features = [look(backbone, images, state, texts) for images in (large.contiguous(), small)]
    assert (features[0] - features[1]).abs().max() < 0.1


def test_resizing_averages_the_pixels_it_drops():
    """Antialiasing: stripes finer than the network's grid become grey, not black or white."""
    stripes = torch.zeros(1, 128, 128, 3, dtype=torch.uint8)
    stripes[:, :, ::2] = 255
    pixels = small_backbone()._pixels(stripes)
    assert pixels.shape == (1, 3, 32, 32)
    assert pixels[..., 2:-2].abs().max() < 0.2


def test_size_that_does_not_divide_is_refused():
    with pytest.raises(ValueError, match="image_size is 90, expected a multiple of"):
        small_backbone(image_size=90)


def test_gradient_reaches_every_weight(make_policy: Callable[..., VLAPolicy], make_batch: Callable[..., Batch]):
    policy = make_policy()
    policy.loss_BH(make_batch()).mean().backward()
    without = [name for name, p in policy.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
    assert without == []


def test_a_position_can_be_read_off_the_image():
    """The point of the towers: after a few steps the place of a blob is known to a fraction of a patch."""
    torch.manual_seed(0)
    backbone = small_backbone(cameras=1, horizon=1)
    head = torch.nn.Linear(32, 2)
    optimizer = torch.optim.AdamW([*backbone.parameters(), *head.parameters()], lr=3e-3)
    rng = np.random.default_rng(0)
    errors = []
    for _ in range(80):
        place_B2 = rng.uniform(4, 28, (16, 2)).astype(np.float32)
        rows, columns = np.mgrid[0:32, 0:32]
        distance = (columns - place_B2[:, 0, None, None]) ** 2 + (rows - place_B2[:, 1, None, None]) ** 2
        images = np.repeat((255 * np.exp(-distance / 8))[:, None, :, :, None], 3, axis=-1).astype(np.uint8)
        outputs = head(look(backbone, torch.from_numpy(images), torch.zeros(16, 3), ["look"] * 16)[:, 0])
        error = (outputs - torch.from_numpy(place_B2 / 16 - 1)).abs().mean()
        optimizer.zero_grad()
        error.backward()
        optimizer.step()
        errors.append(error.item())
    assert np.mean(errors[-10:]) * 16 < 2.0  # [px], on images of 32
