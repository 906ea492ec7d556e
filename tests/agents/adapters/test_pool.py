import pytest
import torch
from torch import nn

from agents.adapters.pool import KeyPool, PooledLoRALinear, use_adapters


def pool_with(keys: list[list[float]]) -> KeyPool:
    pool = KeyPool(size=len(keys), width=len(keys[0]))
    pool.keys_MD.data = torch.tensor(keys)
    return pool


def test_the_nearest_key_by_cosine():
    pool = pool_with([[1.0, 0.0], [0.0, 3.0], [-1.0, 0.0]])
    index, pull = pool.choose(torch.tensor([[5.0, 0.1], [0.1, 0.2], [-2.0, 0.5]]))
    assert index.tolist() == [0, 1, 2]
    cosines = torch.cosine_similarity(torch.tensor([[5.0, 0.1], [0.1, 0.2], [-2.0, 0.5]]), pool.keys_MD, dim=1)
    torch.testing.assert_close(pull, (1 - cosines).mean())
    assert pool.choose(torch.tensor([[5.0, 0.1]]), allowed_M=torch.tensor([False, True, True]))[0].tolist() == [1]


def test_pulling_moves_the_chosen_key_towards_the_query_and_no_other():
    pool, query = pool_with([[1.0, 0.2], [-1.0, 0.2]]), torch.tensor([[0.5, 1.0]], requires_grad=True)
    before, pull = pool.choose(query)
    pull.backward()
    assert query.grad is None
    assert pool.keys_MD.grad is not None
    assert pool.keys_MD.grad[1].abs().max() == 0
    pool.keys_MD.data -= 0.5 * pool.keys_MD.grad
    index, nearer = pool.choose(query)
    assert index.tolist() == before.tolist() == [0]
    assert nearer < pull


def test_usage_is_a_running_mean_and_spreads_the_choice():
    pool = pool_with([[1.0, 0.0], [0.9, 0.5], [-1.0, 0.0]])
    query = torch.tensor([[1.0, 0.01]])
    assert pool.choose(query, spread=True)[0].tolist() == [0]
    pool.count(torch.tensor([0, 0, 0, 2]))
    pool.count(torch.tensor([0, 0, 0, 0]))
    assert pool.usage_M.tolist() == pytest.approx([0.875, 0.0, 0.125])
    assert pool.choose(query, spread=True)[0].tolist() == [1]
    assert pool.choose(query)[0].tolist() == [0]


def test_each_row_has_its_own_adapter():
    """Equal to merging that adapter's product into the weight; outside the context the layer is the base."""
    layer = PooledLoRALinear(nn.Linear(5, 3), size=4, rank=2)
    assert layer.scaling == 2
    x, index = torch.randn(3, 6, 5), torch.tensor([3, 0, 1])
    with use_adapters([layer], index):
        torch.testing.assert_close(layer(x), layer.base(x))  # up is zero at the start
    nn.init.normal_(layer.up_MOR)
    with use_adapters([layer], index):
        found = layer(x)
    for row, m in enumerate(index.tolist()):
        weight = layer.base.weight + 2 * layer.up_MOR[m] @ layer.down_MRI[m]
        torch.testing.assert_close(found[row], nn.functional.linear(x[row], weight, layer.base.bias))
    torch.testing.assert_close(layer(x), layer.base(x))


def test_adapters_that_were_not_chosen_do_not_forget():
    """Training one task's adapter leaves the others bit-identical."""
    layer = PooledLoRALinear(nn.Linear(5, 3), size=4)
    with use_adapters([layer], torch.tensor([1, 1])):
        layer(torch.randn(2, 5)).square().mean().backward()
    assert layer.up_MOR.grad is not None
    assert layer.up_MOR.grad[[0, 2, 3]].abs().max() == 0
    assert layer.up_MOR.grad[1].abs().max() > 0
    assert layer.base.weight.grad is None


def test_errors_name_what_is_wrong():
    layer = PooledLoRALinear(nn.Linear(5, 3), size=4)
    with use_adapters([layer], torch.tensor([0])), pytest.raises(ValueError, match="for 1 rows, but the input has 2"):
        layer(torch.zeros(2, 5))
    assert layer.index_B is None
    with pytest.raises(ValueError, match="allowed has no key"):
        KeyPool(size=2, width=3).choose(torch.zeros(1, 3), allowed_M=torch.zeros(2, dtype=torch.bool))
