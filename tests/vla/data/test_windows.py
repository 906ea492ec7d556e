"""Windows, weights and transition chunks, by hand."""

import numpy as np
import pytest

from vla.data.windows import chunk_windows, gripper_change_weights, transition_chunks


def test_windows_by_hand():
    indices_NH, mask_NH = chunk_windows(np.array([4, 4, 4, 9, 9]), 3)
    np.testing.assert_array_equal(indices_NH, [[0, 1, 2], [1, 2, 2], [2, 2, 2], [3, 4, 4], [4, 4, 4]])
    np.testing.assert_array_equal(mask_NH.astype(int), [[1, 1, 1], [1, 1, 0], [1, 0, 0], [1, 1, 0], [1, 0, 0]])


def test_windows_of_nothing_and_of_no_horizon():
    indices_NH, mask_NH = chunk_windows(np.zeros(0), 4)
    assert indices_NH.shape == mask_NH.shape == (0, 4)
    with pytest.raises(ValueError, match="horizon is 0"):
        chunk_windows(np.zeros(3), 0)


def test_weights_by_hand():
    """Axis 1 is the gripper; it changes at frame 4 of episode 0 and at frame 9 = frame 1 of episode 1."""
    labels_NA = np.zeros((12, 2))
    labels_NA[:, 0] = np.arange(12)  # an arm axis that always changes
    labels_NA[:4, 1], labels_NA[4:8, 1], labels_NA[8, 1], labels_NA[9:, 1] = -1, 1, -1, 1
    episode_N = np.array([0] * 8 + [1] * 4)
    weights_N = gripper_change_weights(labels_NA, np.array([False, True]), episode_N, before=2, after=1, factor=3.0)
    #                                  change v           end|     v change
    np.testing.assert_array_equal(weights_N, [1, 1, 3, 3, 3, 3, 1, 1, 3, 3, 3, 1])


def test_a_new_episode_is_not_a_change():
    labels_NA = np.array([[-1.0], [-1.0], [1.0], [1.0]])
    weights_N = gripper_change_weights(labels_NA, np.array([True]), np.array([0, 0, 1, 1]))
    np.testing.assert_array_equal(weights_N, np.ones(4))


def test_surroundings_do_not_wrap_at_the_start():
    labels_NA = np.array([[-1.0], [1.0], [1.0], [1.0]])
    weights_N = gripper_change_weights(labels_NA, np.array([True]), np.zeros(4), before=10, after=1, factor=2.0)
    np.testing.assert_array_equal(weights_N, [2, 2, 2, 1])


def test_transition_chunks_by_hand(make_episode):
    rewards = {"a": np.float32([1, 0, 2, 0, 4]), "b": np.float32([0, 1, 0, 0, 0])}
    episode = make_episode(0, 5, rewards=rewards, terminated=True, truncated=False)
    chunks = transition_chunks(episode, horizon=3, discount=0.5)
    assert len(chunks) == 5
    assert chunks[0].observation is episode.observations[0]
    assert [episode.observations.index(chunk.next_observation) for chunk in chunks] == [3, 4, 5, 5, 5]
    np.testing.assert_array_equal([chunk.valid_H.sum() for chunk in chunks], [3, 3, 3, 2, 1])
    np.testing.assert_array_equal(chunks[0].rewards_H, [1, 1, 2])
    np.testing.assert_array_equal(chunks[3].rewards_H, [0, 4, 0])
    np.testing.assert_array_equal(chunks[1].actions_HA, episode.actions_TA[1:4])
    np.testing.assert_array_equal(chunks[3].actions_HA[:2], episode.actions_TA[3:])
    np.testing.assert_array_equal(chunks[3].actions_HA[2], 0)
    assert [chunk.terminated for chunk in chunks] == [False, False, True, True, True]
    assert not any(chunk.truncated for chunk in chunks)
    # backwards: 4; 0 + 2; 2 + 1; 1 + 1.5; 1 + 1.25
    assert [chunk.return_mc for chunk in chunks] == [2.25, 2.5, 3.0, 2.0, 4.0]


def test_truncation_is_not_termination(make_episode):
    chunks = transition_chunks(make_episode(1, 4, terminated=False, truncated=True), horizon=2, discount=0.9)
    assert [chunk.truncated for chunk in chunks] == [False, False, True, True]
    assert not any(chunk.terminated for chunk in chunks)
