from collections import OrderedDict

import pytest
import torch
from torch import nn

from agents.adapters.loramoe import LoRAMoELinear, add_experts
from agents.objectives.balance import balance_loss, expert_usage


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(OrderedDict(mlp=nn.Sequential(nn.Linear(5, 8), nn.GELU(), nn.Linear(8, 3))))


def test_it_starts_as_the_base():
    model, x = network(), torch.randn(2, 4, 5)
    before = model(x)
    add_experts(model, ["mlp.0", "mlp.2"], experts=3, rank=2)
    torch.testing.assert_close(model(x), before)


def test_forward_by_a_loop_over_experts():
    layer = LoRAMoELinear(nn.Linear(5, 3), experts=4, rank=2, alpha=6.0)
    nn.init.normal_(layer.up_EOR)
    x = torch.randn(2, 7, 5)
    gates = layer.router(x).softmax(-1)
    expected = layer.base(x)
    for e in range(4):
        delta = layer.up_EOR[e] @ layer.down_ERI[e]
        expected = expected + gates[..., e, None] * (6.0 / 2) * (x @ delta.T)
    torch.testing.assert_close(layer(x), expected)


def test_only_the_experts_are_trained_and_the_balance_reaches_the_router():
    model, x = network(), torch.randn(3, 4, 5)
    layers = add_experts(model, ["mlp.0"], experts=4)
    names = {name for name, p in model.named_parameters() if p.requires_grad}
    assert names == {"mlp.0.router.weight", "mlp.0.down_ERI", "mlp.0.up_EOR"}
    model(x)
    assert layers[0].gates_BNE is not None
    usage = expert_usage(layers[0].gates_BNE, torch.ones(3, 4, dtype=torch.bool))
    balance_loss(usage, torch.tensor([0, 1, 1]), torch.tensor([0, 0, 1, 1]), 0.1).backward()
    assert layers[0].router.weight.grad is not None
    assert layers[0].router.weight.grad.abs().max() > 0
    assert layers[0].base.weight.grad is None


def test_errors_name_what_is_wrong():
    with pytest.raises(ValueError, match=r"mlp\.1 is a GELU, expected nn\.Linear"):
        add_experts(network(), ["mlp.1"])
    with pytest.raises(ValueError, match="experts is 0"):
        LoRAMoELinear(nn.Linear(2, 2), experts=0)
