import math
from collections.abc import Callable

import pytest
import torch

from vla.policies.vla import VLAPolicy
from vla.train.optim import Average, adamw, warmup_cosine


def test_warmup_cosine_by_hand():
    factors = [warmup_cosine(step, steps=12, warmup=4) for step in range(13)]
    assert factors[:5] == pytest.approx([0.25, 0.5, 0.75, 1.0, 1.0])
    assert factors[8] == pytest.approx(0.5)
    assert factors[10] == pytest.approx(0.5 * (1 + math.cos(0.75 * math.pi)))
    assert factors[12] == pytest.approx(0.0, abs=1e-12)


def test_decay_reaches_matrices_only(make_policy: Callable[..., VLAPolicy]):
    policy = make_policy()
    optimizer = adamw(policy, lr=0.1, weight_decay=0.5)
    before = {name: parameter.detach().clone() for name, parameter in policy.named_parameters()}
    for parameter in policy.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    for name, parameter in policy.named_parameters():
        factor = 1 - 0.1 * 0.5 if parameter.ndim >= 2 else 1.0
        torch.testing.assert_close(parameter.detach(), factor * before[name], msg=name)


def test_fused_adamw_agrees_with_the_textbook(make_policy: Callable[..., VLAPolicy]):
    """Weights of convolutions lie channels-last in memory; a fused step must still pair weight and gradient rightly."""
    policy = make_policy()
    optimizer = adamw(policy, lr=0.01, weight_decay=0.1)
    weight = policy.get_parameter("backbone.towers.0.fine.conv1.weight")
    expected, gradient = weight.detach().clone(), torch.randn(weight.shape)
    weight.grad = gradient.contiguous(memory_format=torch.channels_last)
    optimizer.step()
    expected = expected * (1 - 0.01 * 0.1) - 0.01 * gradient / (gradient.abs() + 1e-8)
    torch.testing.assert_close(weight.detach(), expected, atol=1e-6, rtol=1e-5)


def test_average_by_hand():
    module = torch.nn.Linear(1, 1, bias=False)
    module.weight.data.fill_(1.0)
    average = Average(module, 0.5)
    module.weight.data.fill_(2.0)
    average.update(module, step=0)  # decay (1 + 0) / (10 + 0)
    assert average.tensors["weight"].item() == pytest.approx(0.1 * 1 + 0.9 * 2)
    average.tensors["weight"].fill_(1.0)
    average.update(module, step=1000)
    assert average.tensors["weight"].item() == pytest.approx(1.5)
    assert module.weight.item() == 2.0
