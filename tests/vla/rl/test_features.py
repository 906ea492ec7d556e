"""Features: what they promise of numbers, and that a policy's own chunk among them is the one it plays."""

import numpy as np
import pytest
import torch

from sim.fake import FAKE, FakeEnv
from sim.slow_reach import SLOW_REACH, SlowReachEnv
from vla.core.errors import GrasplineError, UnknownNameError
from vla.data.transforms import Transforms
from vla.policies.tiny import tiny_policy
from vla.policies.vla import VLAPolicy
from vla.rl.features import PolicyFeatures, StateFeatures, bounded_transforms


@pytest.fixture(scope="module")
def policy() -> VLAPolicy:
    torch.manual_seed(0)
    rng = np.random.default_rng(0)
    states = rng.standard_normal((50, FAKE.state_dim)) * 0.1
    actions = np.stack([FAKE.random_chunk(rng, 1).actions_HA[0] for _ in range(50)])
    sizes = {"width": 48, "layers": 1, "heads": 2, "image_size": 48, "channels": (8, 16)}
    transforms = Transforms.fit(FAKE, states, actions)
    return tiny_policy(spec=FAKE, transforms=transforms, cameras=("wrist", "agentview"), horizon=3, **sizes)


def observations(count: int) -> list:
    env, found = FakeEnv(), []
    for number in range(count):
        env.reset("reach_red", number, number)
        found.append(env.observe())
    return found


def test_a_state_is_scaled_by_its_bounds() -> None:
    features = StateFeatures(spec=SLOW_REACH, instructions=["move to the goal and stay there"])
    env = SlowReachEnv()
    env.reset("reach", 0, 0)
    seen = env.observe(())
    expected = [*(seen.state_S[:2] / 0.2), *(seen.state_S[2:4] / 0.4), seen.state_S[4] / 3 * 2 - 1]
    np.testing.assert_allclose(features(seen), expected, atol=1e-6)
    assert features.width == 5 == len(features(seen))
    with pytest.raises(UnknownNameError, match="instruction"):
        StateFeatures(spec=SLOW_REACH, instructions=["move to the goat"])(seen)


def test_several_instructions_are_told_apart() -> None:
    """The same state under another instruction differs in the last numbers alone."""
    texts = ["move to the goal and stay there", "do not move"]
    features = StateFeatures(spec=SLOW_REACH, instructions=texts)
    env = SlowReachEnv()
    env.reset("reach", 0, 0)
    seen = env.observe(())
    assert features.width == 7
    np.testing.assert_array_equal(features(seen)[5:], [1, 0])


def test_actions_keep_their_whole_range() -> None:
    """Slow demonstrations must not forbid fast actions, as statistics of them would: full command stays 1."""
    action = bounded_transforms(SLOW_REACH).action
    np.testing.assert_allclose(action.forward(np.array([1.0, -0.5])), [1.0, -0.5], atol=1e-6)
    np.testing.assert_allclose(action.inverse(np.array([1.0, -0.5])), [1.0, -0.5], atol=1e-6)
    slow = Transforms.fit(SLOW_REACH, np.zeros((9, 5)), np.random.default_rng(0).uniform(-0.5, 0.5, (9, 2))).action
    assert np.abs(slow.inverse(np.array([1.0, 1.0]))).max() <= 0.5, "the mistake that this avoids"


def test_a_state_without_bounds_is_refused() -> None:
    with pytest.raises(GrasplineError, match=r"no bounds.*policy=<run directory>"):
        StateFeatures(spec=FAKE, instructions=["x"])


def test_the_own_chunk_is_the_one_that_is_played(policy: VLAPolicy) -> None:
    """Bit for bit what VLAPolicy.act plays, once the transforms are undone."""
    features = PolicyFeatures(policy)
    for seen in observations(4):
        chunk_HA = features.own_chunk(features(seen))
        played = np.clip(policy.transforms.inverse_actions(chunk_HA), FAKE.action_low_A, FAKE.action_high_A)
        np.testing.assert_array_equal(played.astype(np.float32), policy.act([seen], [5])[0].actions_HA)


def test_a_policys_features_see_and_are_told(policy: VLAPolicy) -> None:
    """They depend on pictures, words and state; the state's part is the normalised state."""
    features = PolicyFeatures(policy)
    seen, other = observations(2)
    found_D = features(seen)
    pooled = features.width - FAKE.state_dim - 3 * FAKE.action_dim
    assert pooled == 48 and found_D.dtype == np.float32
    np.testing.assert_allclose(found_D[pooled : pooled + 8], policy.transforms.observation(seen.state_S), atol=1e-6)
    assert (found_D[:pooled] != features(other)[:pooled]).any()
    blind = type(seen)(**{**vars(seen), "images": other.images})
    reworded = type(seen)(**{**vars(seen), "instruction": "move to the blue target and close the gripper"})
    assert all((features(changed)[:pooled] != found_D[:pooled]).any() for changed in (blind, reworded))


def test_a_number_does_not_depend_on_threads_or_what_came_before(policy: VLAPolicy) -> None:
    features, seen = PolicyFeatures(policy), observations(3)
    first = [features(each) for each in seen]
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        again = [features(each) for each in seen[::-1]][::-1]
    finally:
        torch.set_num_threads(before)
    np.testing.assert_array_equal(first, again)
