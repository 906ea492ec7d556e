import math

import pytest
import torch
from torch import nn

from vla.core.errors import UnknownNameError
from vla.policies.heads.l1 import L1Head


class Fixed(L1Head):
    """Answers with given outputs, so that losses can be computed by hand."""

    def forward(self, features_BHD: torch.Tensor) -> torch.Tensor:
        return features_BHD


def test_bce_loss_by_hand():
    head = Fixed(width=3, binary=[False, False, True], gripper_weight=0.1)
    outputs_BHA = torch.tensor([[[0.5, -0.5, 0.0], [0.0, 0.0, 3.0]]])
    targets_BHA = torch.tensor([[[1.0, -0.5, 1.0], [0.2, 0.4, -1.0]]])
    expected = [0.25 + 0.1 * math.log(2), 0.3 + 0.1 * math.log(1 + math.exp(3))]
    assert head.loss_BH(lambda: outputs_BHA, targets_BHA)[0].tolist() == pytest.approx(expected, rel=1e-6)


def test_l1_on_all_axes_by_hand():
    head = Fixed(width=3, binary=[False, False, True], gripper_loss="l1")
    loss_BH = head.loss_BH(lambda: torch.tensor([[[0.5, -0.5, 0.1]]]), torch.tensor([[[1.0, -0.5, 1.0]]]))
    assert loss_BH.item() == pytest.approx((0.5 + 0.0 + 0.9) / 3)


@pytest.mark.parametrize(("binary", "expected"), [([False, False], 0.75), ([True, True], 0.1 * math.log(2))])
def test_only_continuous_or_only_binary_axes(binary: list[bool], expected: float):
    outputs = torch.zeros(1, 1, 2)
    loss_BH = Fixed(width=2, binary=binary).loss_BH(lambda: outputs, torch.tensor([[[1.0, -0.5]]]))
    assert loss_BH.item() == pytest.approx(expected)


def test_sample_answers_signs_on_binary_axes_and_values_elsewhere():
    head = Fixed(width=3, binary=[False, True, True])
    actions_BHA = head.sample(lambda: torch.tensor([[[0.3, 0.01, -7.0]]]), [torch.Generator()])
    assert actions_BHA.tolist() == [[[pytest.approx(0.3), 1.0, -1.0]]]


def test_sample_does_not_hide_a_nan_gripper():
    head = Fixed(width=2, binary=[False, True])
    assert head.sample(lambda: torch.tensor([[[0.0, float("nan")]]]), [torch.Generator()]).isnan().any()


def test_unknown_gripper_loss_names_the_valid_ones():
    with pytest.raises(UnknownNameError, match=r"gripper_loss 'bcr'.*'bce'.*bce, l1"):
        L1Head(width=4, binary=[True], gripper_loss="bcr")


def test_resnet_follows_the_published_block():
    """OpenVLA-OFT's MLPResNet, written out independently: x + relu(linear(norm(x))) between two normed linears."""
    torch.manual_seed(0)
    head, x = L1Head(width=6, binary=[False] * 2), torch.randn(2, 3, 6)
    norms = [module for module in head.modules() if isinstance(module, nn.LayerNorm)]
    linears = [module for module in head.modules() if isinstance(module, nn.Linear)]
    assert len(norms) == len(linears) == 4
    h = linears[0](norms[0](x)).relu()
    for norm, linear in zip(norms[1:3], linears[1:3], strict=True):
        h = h + linear(norm(h)).relu()
    torch.testing.assert_close(head(x), linears[3](norms[3](h)))
