import math

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from vla.policies.backbones.layerwise import LayerwiseReader, ReaderBlock

pytestmark = pytest.mark.usefixtures("one_thread")
BATCH, LAYERS, HORIZON, WIDTH, SEEN = 2, 3, 4, 24, 5


def small_reader(**changes) -> LayerwiseReader:
    torch.manual_seed(0)
    sizes = {"language_width": WIDTH, "layers": LAYERS, "horizon": HORIZON, "width": 16, "heads": 2}
    return LayerwiseReader(**{**sizes, **changes})


def states(seed: int = 0) -> tuple[list[Tensor], list[Tensor], Tensor]:
    generator = torch.Generator().manual_seed(seed)
    slots = [torch.randn(BATCH, HORIZON, WIDTH, generator=generator) for _ in range(LAYERS)]
    seen = [torch.randn(BATCH, SEEN, WIDTH, generator=generator) for _ in range(LAYERS)]
    return slots, seen, torch.randn(BATCH, WIDTH, generator=generator)


def slow_block(block: ReaderBlock, x: Tensor, told: Tensor, steps: Tensor, seen: Tensor) -> Tensor:
    """One row and one head at a time, logits and gate as the paper writes them."""
    told = block.told_norm(told)
    told = torch.stack([torch.stack([t + steps[m] if m < len(steps) else t for m, t in enumerate(b)]) for b in told])
    q, k_own, v_own = block.own(block.norm(x)).chunk(3, -1)
    k_told, v_told = block.told(told).chunk(2, -1)
    k_seen, v_seen = block.seen(block.seen_norm(seen)).chunk(2, -1)
    mixed, size = torch.zeros_like(x), x.shape[-1] // block.heads
    for b in range(len(x)):
        for h in range(x.shape[1]):
            for head in range(block.heads):
                part = slice(head * size, (head + 1) * size)
                logits = [q[b, h, part] @ key[part] / math.sqrt(size) for key in (*k_own[b], *k_told[b])]
                gate = torch.tanh(block.gate)
                logits += [gate * (q[b, h, part] @ key[part]) / math.sqrt(size) for key in k_seen[b]]
                weights = torch.stack(logits).softmax(0)
                values = torch.cat([v_own[b], v_told[b], v_seen[b]])[:, part]
                mixed[b, h, part] = weights @ values
    x = x + functional.linear(mixed, block.out.weight, block.out.bias)
    return x + block.mlp(block.mlp_norm(x))


@pytest.mark.parametrize("proprio", [True, False])
@pytest.mark.parametrize("gate", [0.0, -0.7, 2.0])
def test_a_block_is_what_the_formula_says(gate: float, proprio: bool):
    block = ReaderBlock(width=16, language_width=WIDTH, heads=2)
    block.gate.data.fill_(gate)
    (slots, *_), (seen, *_), state = states()
    told = torch.cat([slots, state[:, None]], dim=1) if proprio else slots
    x, steps = torch.randn(BATCH, HORIZON, 16), torch.randn(HORIZON, WIDTH)
    with torch.no_grad():
        expected = slow_block(block, x, told, steps, seen)
        torch.testing.assert_close(block(x, told, steps, seen), expected, atol=1e-5, rtol=0)


def test_shape_with_and_without_proprioception():
    slots, seen, state = states()
    reader = small_reader()
    with_state, without = reader(slots, seen, state), reader(slots, seen, None)
    assert with_state.shape == without.shape == (BATCH, HORIZON, reader.width)
    assert (with_state - without).abs().max() > 1e-4


@pytest.mark.parametrize("layer", range(LAYERS))
@pytest.mark.parametrize("kind", ["slots", "seen"])
def test_every_layer_conditions_the_actions(kind: str, layer: int):
    reader, (slots, seen, state), (slots_2, seen_2, _) = small_reader(), states(), states(1)
    before = reader(slots, seen, state)
    if kind == "slots":
        slots[layer] = slots_2[layer]
    else:
        seen[layer] = seen_2[layer]
    assert (reader(slots, seen, state) - before).abs().max() > 1e-4


def test_steps_of_the_chunk_are_told_apart_only_by_the_embedding():
    """The flaw of the published base head: without it all rows are the same, whatever the slots say."""
    reader, (slots, seen, state) = small_reader(), states()
    assert (reader(slots, seen, state).diff(dim=1)).abs().amax(-1).min() > 1e-4
    reader.steps_HR.data.zero_()
    assert reader(slots, seen, state).diff(dim=1).abs().max() < 1e-6


def test_slots_are_told_apart_by_their_place():
    """Swapping two slots' states matters, though attention by itself knows no order."""
    reader, (slots, seen, state) = small_reader(), states()
    swapped = [x[:, [1, 0, 2, 3]] for x in slots]
    assert (reader(swapped, seen, state) - reader(slots, seen, state)).abs().max() > 1e-5
    reader.slot_steps_HD.data.zero_()
    assert (reader(swapped, seen, state) - reader(slots, seen, state)).abs().max() < 1e-5


def test_gradient_reaches_every_weight():
    reader = small_reader()
    reader(*states()).square().sum().backward()
    assert [n for n, p in reader.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0] == []


def test_what_does_not_fit_is_refused():
    slots, seen, state = states()
    with pytest.raises(ValueError, match="2 and 3 layers of states, expected 3 of both"):
        small_reader()(slots[:2], seen, state)
    with pytest.raises(ValueError, match="3 slots, expected 4: one per action"):
        small_reader()([x[:, :3] for x in slots], seen, state)
    with pytest.raises(ValueError, match="width is 10, expected a multiple of heads"):
        small_reader(width=10, heads=4)
