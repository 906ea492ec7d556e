import pytest
import timm
import torch
from torch import Tensor, nn

from vla.policies.backbones import dinosiglip
from vla.policies.backbones.dinosiglip import DinoSiglip, FilmBlock, Tower

pytestmark = pytest.mark.usefixtures("one_thread")

DINO, SIGLIP = Tower(width=32, depth=3, heads=2), Tower(width=48, depth=4, heads=2)
PUBLISHED = {"featurizer": "vit_large_patch14_reg4_dinov2", "fused_featurizer": "vit_so400m_patch14_siglip_224"}


def tower(**changes) -> DinoSiglip:
    torch.manual_seed(0)
    built = DinoSiglip(**{"dino": DINO, "siglip": SIGLIP, "image_size": 28, "jpeg": False, "crop": False, **changes})
    for name, parameter in built.named_parameters():  # LayerScale starts at 1e-5: blocks would hardly count
        parameter.data.copy_(0.3 * torch.randn_like(parameter) + ("gamma" in name or "norm" in name))
    return built.eval()


def pictures(size: int = 2, side: int = 28) -> Tensor:
    return torch.randint(0, 256, (size, side, side, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(3))


def timm_model(name: str, geometry: Tower | None) -> nn.Module:
    small = {} if geometry is None else {"img_size": 28, "embed_dim": geometry.width, "depth": geometry.depth}
    heads = {} if geometry is None else {"num_heads": geometry.heads}
    return timm.create_model(PUBLISHED[name], pretrained=False, num_classes=0, **{"img_size": 224, **small, **heads})


def unused(net: DinoSiglip, name: str) -> tuple[str, ...]:
    return tuple(prefix.removeprefix(f"{name}.") for prefix in net.unused_prefixes if prefix.startswith(f"{name}."))


@torch.no_grad()
def test_tokens_are_timms_after_the_last_block_but_one():
    net, images = tower(), pictures()
    tokens = net(images)
    assert tokens.shape == (2, 4, 80) == (2, net.num_tokens, net.width)
    means = {"featurizer": ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]), "fused_featurizer": ([0.5] * 3, [0.5] * 3)}
    expected = []
    for name, geometry in (("featurizer", DINO), ("fused_featurizer", SIGLIP)):
        whole = timm_model(name, geometry)
        missing = whole.load_state_dict(getattr(net, name).state_dict(), strict=False).missing_keys
        assert missing
        assert all(key.startswith(unused(net, name)) for key in missing)
        mean, std = (torch.tensor(values)[:, None, None] for values in means[name])
        pixels = (images.permute(0, 3, 1, 2) / 255 - mean) / std
        taps = {"indices": [geometry.depth - 2], "norm": False, "output_fmt": "NLC", "intermediates_only": True}
        expected += whole.eval().forward_intermediates(pixels, **taps)
    torch.testing.assert_close(tokens, torch.cat(expected, dim=-1), atol=1e-5, rtol=1e-5)
    assert tokens.std() > 0.1


def test_the_published_towers_minus_the_unused_parts():
    with torch.device("meta"):
        net = DinoSiglip(dino=Tower(width=1024, depth=24, heads=16), siglip=Tower(width=1152, depth=27, heads=16))
        for name in PUBLISHED:
            whole = timm_model(name, None).state_dict()
            used = {key: t.shape for key, t in whole.items() if not key.startswith(unused(net, name))}
            assert {key: t.shape for key, t in getattr(net, name).state_dict().items()} == used
    assert "featurizer.blocks.0.ls1.gamma" in net.state_dict()
    assert (net.width, net.num_tokens) == (2176, 256)
    assert set(net.unused_prefixes) == {
        "featurizer.blocks.23.",
        "featurizer.norm.",
        "fused_featurizer.blocks.26.",
        "fused_featurizer.norm.",
        "fused_featurizer.attn_pool.",
    }


@torch.no_grad()
def test_film_scales_and_shifts_between_attention_and_mlp():
    torch.manual_seed(0)
    block = FilmBlock(8, num_heads=2, condition=5, qkv_bias=True)
    x, condition = torch.randn(2, 3, 8), torch.randn(2, 5)
    gain = 1 + condition @ block.scale.weight.T + block.scale.bias
    shift = condition @ block.shift.weight.T + block.shift.bias
    attended = x + block.attn(block.norm1(x))
    steered = torch.stack([attended[i] * gain[i] + shift[i] for i in range(2)])
    torch.testing.assert_close(block(x, condition), steered + block.mlp(block.norm2(steered)))


@torch.no_grad()
def test_film_at_zero_is_the_plain_tower():
    plain, steered, images = tower(), tower(condition=6), pictures()
    steered.load_state_dict(plain.state_dict(), strict=False)
    condition = torch.randn(2, 6)
    assert (steered(images, condition) - plain(images)).abs().max() > 1e-2
    for name, parameter in steered.named_parameters():
        if ".scale." in name or ".shift." in name:
            parameter.zero_()
    torch.testing.assert_close(steered(images, condition), plain(images), atol=1e-5, rtol=1e-5)


def test_film_gradient_reaches_every_weight_and_checkpointing_keeps_it():
    net, images, condition, gradients = tower(condition=6), pictures(), torch.randn(2, 6), []
    for again in (False, True):
        net.set_grad_checkpointing(again)
        net.zero_grad()
        net(images, condition).square().mean().backward()
        gradients.append({name: p.grad.clone() for name, p in net.named_parameters()})
        assert [name for name, gradient in gradients[-1].items() if not gradient.abs().sum() > 0] == []
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], gradient, atol=1e-6, rtol=1e-4)


def test_published_size_of_film():
    """456.2 M for all blocks (arXiv 2502.19645's OFT+), less the two last blocks, whose output nobody reads."""
    with torch.device("meta"):
        blocks = [FilmBlock(width, num_heads=16, condition=4096) for width in (1024, 1152)]
    one = [sum(p.numel() for part in (b.scale, b.shift) for p in part.parameters()) for b in blocks]
    assert 24 * one[0] + 27 * one[1] == pytest.approx(456.2e6, abs=0.05e6)


@torch.no_grad()
def test_each_tower_has_its_own_colours():
    net = tower(dino_mean=[0.1, 0.2, 0.3], dino_std=[0.5, 0.25, 0.125], siglip_mean=[0.0] * 3, siglip_std=[2.0] * 3)
    got = {}
    for name in PUBLISHED:
        getattr(net, name).patch_embed.register_forward_hook(lambda _, x, __, name=name: got.update({name: x[0]}))
    net(torch.full((1, 28, 28, 3), 51, dtype=torch.uint8))
    torch.testing.assert_close(got["featurizer"][0, :, 0, 0], torch.tensor([0.2, 0.0, -0.8]), atol=1e-6, rtol=0)
    torch.testing.assert_close(got["fused_featurizer"][0, :, 9, 9], torch.full((3,), 0.1))


@torch.no_grad()
def test_half_precision():
    net, images = tower(), pictures()
    exact = net(images)
    half = net.to(torch.bfloat16)(images)
    assert half.dtype == torch.bfloat16
    assert (half.float() - exact).abs().mean() < 0.05 * exact.abs().mean()


def test_images_are_prepared_in_order(monkeypatch: pytest.MonkeyPatch):
    """JPEG, then resizing, then the crop, which training leaves to its augmentation."""
    calls = []
    for name in ("jpeg_round_trip", "lanczos_resize", "centre_crop"):
        monkeypatch.setattr(dinosiglip, name, lambda images, *_, name=name: (calls.append(name), images)[1])
    net = tower(jpeg=True, crop=True)
    net.preprocess(pictures())
    net.train().preprocess(pictures())
    tower().preprocess(pictures())
    whole = ["jpeg_round_trip", "lanczos_resize", "centre_crop"]
    assert calls == [*whole, *whole[:2], whole[1]]


def test_real_images_of_any_size():
    net = tower(jpeg=True, crop=True)
    assert net.preprocess(pictures(1, 40)).shape == (1, 28, 28, 3)
    assert net(pictures(1, 40)).shape == (1, 4, 80)


def test_size_that_does_not_divide_is_refused():
    with pytest.raises(ValueError, match="image_size is 30, expected a multiple of 14"):
        tower(image_size=30)
