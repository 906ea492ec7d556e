from collections.abc import Callable

import numpy as np
import pytest
import torch

from vla.core.errors import NonFiniteError, SpecMismatchError, UnknownNameError
from vla.core.protocols import Policy
from vla.core.spec import Embodiment
from vla.core.types import Observation
from vla.data.batch import Batch
from vla.policies.augment import Augmentation
from vla.policies.vla import VLAPolicy

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def observations(toy_spec: Embodiment) -> list[Observation]:
    rng = np.random.default_rng(0)
    return [toy_spec.random(rng, f"pick up object {i}") for i in range(5)]


def actions(policy: Policy, observations: list[Observation]) -> list[bytes]:
    return [chunk.actions_HA.tobytes() for chunk in policy.act(observations, range(len(observations)))]


@pytest.mark.parametrize("compute_batch", [1, 4])
def test_an_answer_does_not_depend_on_its_batch(
    compute_batch: int, make_policy: Callable[..., VLAPolicy], observations: list[Observation]
):
    policy = make_policy().eval()
    policy.compute_batch = compute_batch
    together = actions(policy, observations)
    assert len(set(together)) == 5
    assert [actions(policy, [observation])[0] for observation in observations] == together
    assert actions(policy, observations[::-1])[::-1] == together
    assert actions(policy, [observations[3]] * 3 + [observations[1]]) == [together[3]] * 3 + [together[1]]


def test_an_answer_does_not_depend_on_the_number_of_threads(
    make_policy: Callable[..., VLAPolicy], observations: list[Observation]
):
    policy = make_policy(width=192, heads=6, image_size=96, channels=(32, 96)).eval()
    answers = []
    for threads in (1, 2):
        torch.set_num_threads(threads)
        answers.append(actions(policy, observations[:2]))
        assert torch.get_num_threads() == threads
    assert answers[0] == answers[1]


def test_a_chunk_is_physical_bounded_and_timed(
    make_policy: Callable[..., VLAPolicy], observations: list[Observation], toy_spec: Embodiment
):
    policy = make_policy()
    policy.head.out[-1].bias.data[:2] = torch.tensor([30.0, -30.0])  # pyright: ignore[reportIndexIssue]
    chunk = policy.act(observations[:1], [0])[0]
    assert chunk.actions_HA.shape == (policy.horizon, 3)
    assert chunk.actions_HA.dtype == np.float32
    assert (chunk.actions_HA[:, :2] == [0.5, -0.5]).all()
    assert set(np.unique(chunk.actions_HA[:, 2])) <= {0.0, 1.0}
    assert chunk.start_s == observations[0].time_s
    assert chunk.dt_s == toy_spec.dt_s


def test_act_is_sample_in_physical_units(make_policy: Callable[..., VLAPolicy], observations: list[Observation]):
    policy, observation = make_policy().eval(), observations[0]
    images = torch.from_numpy(np.stack([observation.images[name] for name in policy.cameras]))[None]
    state = torch.from_numpy(policy.transforms.observation(observation.state_S))[None]
    with torch.no_grad():
        scaled_BHA = policy.sample(images, state, [observation.instruction], [torch.Generator()])
    expected_HA = policy.transforms.inverse_actions(scaled_BHA[0].numpy())
    expected_HA = np.stack([policy.spec.clip(action_A) for action_A in expected_HA])
    np.testing.assert_array_equal(policy.act([observation], [0])[0].actions_HA, expected_HA)


def test_cameras_in_the_policys_order(make_policy: Callable[..., VLAPolicy], observations: list[Observation]):
    policy = make_policy(cameras=("wrist",))
    only_wrist = Observation(**{**vars(observations[0]), "images": {"wrist": observations[0].images["wrist"]}})
    assert actions(policy, [only_wrist]) == actions(policy, observations[:1])
    assert actions(make_policy(cameras=("front",)), observations[:1]) != actions(policy, observations[:1])


def test_observations_that_do_not_fit_are_refused(
    make_policy: Callable[..., VLAPolicy], observations: list[Observation]
):
    policy, good = make_policy(), vars(observations[0])
    bad_state, nan_state = np.zeros(5, np.float32), np.full(3, np.nan, np.float32)
    for changes, error in (
        ({"images": {}}, SpecMismatchError),
        ({"state_S": bad_state}, SpecMismatchError),
        ({"state_S": nan_state}, NonFiniteError),
    ):
        with pytest.raises(error):
            policy.act([Observation(**{**good, **changes})], [0])
    with pytest.raises(ValueError, match="seeds: 2 for 1 observations"):
        policy.act(observations[:1], [0, 1])


def test_damaged_weights_are_noticed_before_anything_moves(
    make_policy: Callable[..., VLAPolicy], observations: list[Observation]
):
    policy = make_policy()
    next(policy.head.parameters()).data.fill_(torch.nan)
    with pytest.raises(NonFiniteError, match="pick up object 0"):
        policy.act(observations[:1], [0])


def test_unknown_camera(make_policy: Callable[..., VLAPolicy]):
    with pytest.raises(UnknownNameError, match=r"camera 'wirst'.*'wrist'"):
        make_policy(cameras=("wirst",))


def test_loss_is_per_step_and_not_masked(make_policy: Callable[..., VLAPolicy], make_batch: Callable[..., Batch]):
    policy, batch = make_policy().eval(), make_batch()
    assert not batch.mask_BH.all()
    loss_BH = policy.loss_BH(batch)
    assert loss_BH.shape == batch.mask_BH.shape
    assert (loss_BH > 0).all()


def test_augmentation_is_for_training_and_seeded(
    make_policy: Callable[..., VLAPolicy], make_batch: Callable[..., Batch]
):
    policy, batch = make_policy(), make_batch()
    losses = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        losses.append(policy.train().loss_BH(batch).detach())
    assert torch.equal(losses[0], losses[1])
    assert not torch.equal(losses[0], losses[2])
    torch.manual_seed(2)
    assert torch.equal(policy.eval().loss_BH(batch), policy.loss_BH(batch))


def test_shift_moves_each_image_by_itself_and_repeats_the_edge():
    torch.manual_seed(0)
    images = torch.arange(20, dtype=torch.uint8).view(1, 1, 1, 20, 1).expand(6, 2, 20, 20, 3).contiguous()
    shifted = Augmentation(shift=0.1, contrast=0, brightness=0).images(images)
    assert shifted.shape == images.shape
    offsets = set()
    for image in shifted.flatten(0, 1):
        row = image[0, :, 0].int()
        offset = int(row[10]) - 10
        assert row.tolist() == [min(max(x + offset, 0), 19) for x in range(20)]
        offsets.add(offset)
    assert offsets <= {-2, -1, 0, 1, 2}
    assert len(offsets) >= 3


def test_jitter_keeps_the_order_of_grey_levels():
    torch.manual_seed(0)
    images = torch.arange(256, dtype=torch.uint8).view(1, 1, 16, 16, 1).expand(4, 2, 16, 16, 3).contiguous()
    jittered = Augmentation(shift=0, contrast=0.2, brightness=0.1).images(images)
    levels = jittered.flatten(0, 1)[..., 0].flatten(1).int()
    assert (levels.diff(dim=1) >= 0).all()
    middles = levels[:, 127]
    assert middles.unique().numel() > 3
    assert ((middles - 127).abs() <= 0.1 * 255 + 1).all()


def test_strength_zero_changes_nothing(make_batch: Callable[..., Batch]):
    batch, off = make_batch(), Augmentation(shift=0, contrast=0, brightness=0, state_noise=0)
    assert torch.equal(off.images(batch.images_BKHWC), batch.images_BKHWC)
    assert torch.equal(off.state(batch.state_BS), batch.state_BS)
