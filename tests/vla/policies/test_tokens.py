import math

import numpy as np
import pytest
import torch
from torch import Tensor

from vla.policies.heads.tokens import TokensHead, draw_by_row, from_ids, to_ids

PUBLISHED = {"vocabulary": 32064, "first_id": 31744}


class Fixed(TokensHead):
    """Answers with given logits (B, H, A, V)."""

    def forward(self, features_BHD: Tensor) -> Tensor:
        return features_BHD


def generators(*seeds: int) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(seed) for seed in seeds]


def published_ids(actions: np.ndarray) -> np.ndarray:
    """OpenVLA's own arithmetic, with numpy: 32000 minus the number of the bin."""
    return 32000 - np.digitize(np.clip(actions, -1, 1), np.linspace(-1, 1, 256))


def published_actions(ids: np.ndarray) -> np.ndarray:
    edges = np.linspace(-1, 1, 256)
    return ((edges[:-1] + edges[1:]) / 2)[np.clip(32000 - ids - 1, 0, 254)]


def test_ids_are_the_published_ones():
    rng = np.random.default_rng(0)
    edges = np.linspace(-1, 1, 256)
    actions = np.concatenate([rng.uniform(-1.2, 1.2, 5000), edges, edges - 1e-6, edges + 1e-6]).astype(np.float32)
    ids = to_ids(torch.from_numpy(actions), 31744).numpy()
    np.testing.assert_array_equal(ids, published_ids(actions))
    assert (ids.min(), ids.max()) == (31744, 31999)
    np.testing.assert_array_equal(to_ids(torch.from_numpy(actions), 0).numpy(), ids - 31744)


def test_values_of_ids_are_the_published_ones():
    """Over the whole vocabulary: tokens that are no action count as the nearer end."""
    ids = np.arange(32064)
    values = from_ids(torch.from_numpy(ids), 31744).numpy()
    np.testing.assert_allclose(values, published_actions(ids), rtol=0, atol=0)
    assert values[31999] == pytest.approx(-1 + 1 / 255)
    assert values[31744] == values[31745] == values[5] == pytest.approx(1 - 1 / 255)


def test_a_round_trip_is_off_by_half_a_bin_at_most():
    actions = torch.linspace(-1, 1, 10001, dtype=torch.float64)
    assert (from_ids(to_ids(actions, 7), 7) - actions).abs().max() <= 1 / 255 + 1e-12


def test_loss_by_hand():
    """Uniform over 256: log 256 nats. A logit of 5 on one axis's right token, of two axes: the mean of both."""
    head, targets_BHA = Fixed(width=4, binary=[False, False]), torch.tensor([[[-1.0, 0.0]]])
    logits_BHAV = torch.zeros(1, 1, 2, 256)
    assert head.loss_BH(lambda: logits_BHAV, targets_BHA).item() == pytest.approx(math.log(256), rel=1e-6)
    logits_BHAV[0, 0, 0, 255] = 5.0  # bin 1, the lowest value, is the last token
    sure = math.log(255 + math.exp(5)) - 5
    assert head.loss_BH(lambda: logits_BHAV, targets_BHA).item() == pytest.approx((sure + math.log(256)) / 2, rel=1e-6)


def test_one_matrix_for_all_axes_is_the_language_models():
    """A slots of D: logits are the slots times the rows of `lm_head`, the loss and the choice are over all of them."""
    torch.manual_seed(0)
    lm_head_VD, states_BMD = torch.randn(32064, 6), torch.randn(2, 6, 6)  # two actions of three axes in a row
    features_BHD, targets_BHA = states_BMD.reshape(2, 2, 18), torch.rand(2, 2, 3) * 2 - 1
    head = TokensHead(width=18, binary=[False] * 3, slots_per_action=3, **PUBLISHED)
    head.load_state_dict({"bins.weight": lm_head_VD})
    logits_BMV = states_BMD @ lm_head_VD.T
    losses_BM = torch.nn.functional.cross_entropy(
        logits_BMV.transpose(1, 2), torch.from_numpy(published_ids(targets_BHA.numpy())).view(2, 6), reduction="none"
    )
    torch.testing.assert_close(head.loss_BH(lambda: features_BHD, targets_BHA), losses_BM.view(2, 2, 3).mean(-1))
    expected = published_actions(logits_BMV.argmax(-1).numpy()).reshape(2, 2, 3).astype(np.float32)
    np.testing.assert_array_equal(head.sample(lambda: features_BHD, []).detach().numpy(), expected)


def test_restricted_to_the_action_tokens():
    """The likeliest token is no action; restricted, the likeliest of the 256 is taken, and the loss knows only them."""
    logits_BHAV = torch.zeros(1, 1, 1, 32064)
    logits_BHAV[..., 100], logits_BHAV[..., 31999] = 9.0, 5.0
    head = TokensHead(width=1, binary=[False], restrict=True, **PUBLISHED)
    free = TokensHead(width=1, binary=[False], **PUBLISHED)
    for each in (head, free):
        each.load_state_dict({"bins.weight": logits_BHAV.view(-1, 1)})
    one = lambda: torch.ones(1, 1, 1)  # noqa: E731
    assert free.sample(one, []).item() == pytest.approx(1 - 1 / 255)
    assert head.sample(one, []).item() == pytest.approx(-1 + 1 / 255)
    target = torch.tensor([[[-1.0]]])
    assert head.loss_BH(one, target).item() == pytest.approx(math.log(255 + math.exp(5)) - 5, rel=1e-5)
    everything = math.log(32062 + math.exp(5) + math.exp(9)) - 5
    assert free.loss_BH(one, target).item() == pytest.approx(everything, rel=1e-5)


def test_own_rows_for_each_axis_of_one_vector():
    head = TokensHead(width=5, binary=[False] * 3)
    x = torch.randn(2, 4, 5)
    expected = torch.stack([x @ head.bins.weight[256 * axis : 256 * (axis + 1)].T for axis in range(3)], dim=-2)
    torch.testing.assert_close(head(x), expected)


def test_binary_axes_by_the_side_of_their_bin():
    head, logits_BHAV = Fixed(width=4, binary=[True] * 4), torch.zeros(1, 1, 4, 256)
    for axis, value in enumerate((-1.0, -0.01, 0.01, 1.0)):
        logits_BHAV[0, 0, axis, to_ids(torch.tensor(value), 0)] = 1.0
    assert head.sample(lambda: logits_BHAV, []).tolist() == [[[-1.0, -1.0, 1.0, 1.0]]]


def test_binary_axes_with_published_values():
    """Published: a gripper is open at 1 and closed at 0, and 1 - 2 g of its sign goes to the robot (-1 opens)."""
    head = Fixed(width=4, binary=[True] * 4, binary_codes=(1.0, 0.0))
    values, logits_BHAV = torch.tensor([1.0, 0.0, 0.6, 0.4]), torch.zeros(1, 1, 4, 256)
    for axis, id in enumerate(to_ids(values, 0)):
        logits_BHAV[0, 0, axis, id] = 9.0
    actions_BHA = head.sample(lambda: logits_BHAV, [])
    assert actions_BHA[0, 0].tolist() == (-(2 * values - 1).sign()).tolist() == [-1.0, 1.0, -1.0, 1.0]
    head = Fixed(width=4, binary=[True] * 2, binary_codes=(1.0, 0.0))
    assert head.loss_BH(lambda: logits_BHAV[..., :2, :], torch.tensor([[[-1.0, 1.0]]])).item() < 0.05
    assert head.loss_BH(lambda: logits_BHAV[..., :2, :], torch.tensor([[[1.0, -1.0]]])).item() > 9


def test_a_temperature_samples_its_softmax():
    """Three tokens in the ratio 1 : 4 : 1 at temperature 1, so 1 : 2 : 1 at temperature 2."""
    logits_BHAV = torch.full((1, 4000, 1, 256), -1e4)
    logits_BHAV[..., [10, 20, 30]] = torch.tensor([0.0, math.log(4), 0.0])
    head = Fixed(width=4, binary=[False], temperature=2.0)
    values, counts = head.sample(lambda: logits_BHAV, generators(0)).flatten().unique(return_counts=True)
    torch.testing.assert_close(values, from_ids(torch.tensor([30, 20, 10]), 0).float())
    assert (counts / 4000).tolist() == pytest.approx([0.25, 0.5, 0.25], abs=0.03)


def test_a_row_draws_from_its_own_generator():
    head, logits_BHAV = Fixed(width=4, binary=[False], temperature=1.0), torch.randn(3, 5, 2, 256)
    together_BHA = head.sample(lambda: logits_BHAV, generators(4, 5, 6))
    alone_BHA = head.sample(lambda: logits_BHAV[1:2], generators(5))
    assert torch.equal(together_BHA[1], alone_BHA[0])
    assert not torch.equal(head.sample(lambda: logits_BHAV, generators(4, 7, 6))[1], together_BHA[1])


def test_draws_never_take_what_has_no_probability():
    probabilities_BHAV = torch.zeros(1, 3000, 1, 9)
    probabilities_BHAV[..., [1, 4]] = torch.tensor([0.999999, 1e-6])
    assert set(draw_by_row(probabilities_BHAV, generators(0)).unique().tolist()) <= {1, 4}


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_a_nan_among_the_logits_is_not_a_choice(temperature: float):
    logits_BHAV = torch.zeros(1, 1, 2, 256)
    logits_BHAV[0, 0, 1, 3] = torch.nan
    head = Fixed(width=4, binary=[False, True], temperature=temperature)
    assert head.sample(lambda: logits_BHAV, generators(0)).isnan().tolist() == [[[False, True]]]


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"slots_per_action": 2}, "slots_per_action is 2, expected 1 or 3"),
        ({"width": 8, "slots_per_action": 3}, "a divisor of 8"),
        ({"vocabulary": 300, "first_id": 45}, "first_id is 45, expected 0 to vocabulary - 256 = 44"),
        ({"temperature": -1.0}, "temperature is -1"),
    ],
)
def test_arguments_that_do_not_fit(changes: dict, told: str):
    with pytest.raises(ValueError, match=told):
        TokensHead(**{"width": 6, "binary": [False] * 3, **changes})
