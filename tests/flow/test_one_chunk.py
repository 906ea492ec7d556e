"""The life of a chunk, once around: dataset -> batch -> policy -> chunk -> env -> episode -> dataset.

Reads as the README's section of that name; each step is one call.
"""

from pathlib import Path

import numpy as np
import torch

from agents.objectives.reduce import masked_mean
from sim.fake import FakeEnv, FakeExpert
from vla.data.batch import ChunkDataset
from vla.data.lerobot import LeRobotSource, write_dataset
from vla.policies.tiny import tiny_policy
from vla.rollout.collect import Perturbation, collect_plan, record_episode
from vla.rollout.executor import RecedingHorizon

SMALL = {"width": 48, "layers": 1, "heads": 2, "image_size": 48, "channels": (8, 16)}


def test_once_around(tmp_path: Path) -> None:
    env, rng = FakeEnv(), np.random.default_rng(0)
    rows = collect_plan(list(env.tasks.values()), episodes=3, seed=0)
    episodes = [record_episode(env, FakeExpert(), row, Perturbation(), rng) for row in rows]
    write_dataset(episodes, tmp_path / "dataset", env.spec)

    source = LeRobotSource(tmp_path / "dataset")  # 1 the dataset reads an episode
    np.testing.assert_array_equal(source[1].actions_TA, episodes[1].actions_TA)
    dataset = ChunkDataset(source=source, horizon=8)  # 2 windows  3 transforms, forward
    batch = dataset.batch(np.array([0, len(dataset) - 1]))  # 4 stacked
    assert batch.actions_BHA.shape == (2, 8, env.spec.action_dim)
    assert batch.mask_BH[0].all() and batch.mask_BH[1].tolist() == [True] + [False] * 7

    torch.manual_seed(0)
    policy = tiny_policy(spec=env.spec, transforms=dataset.transforms, cameras=dataset.cameras, horizon=8, **SMALL)
    loss_BH = policy.loss_BH(batch)  # 5 encoded, one loss per action
    loss = masked_mean(loss_BH, batch.mask_BH)  # 6 an objective reduces
    loss.backward()
    assert loss_BH.shape == (2, 8) and torch.isfinite(loss)

    policy.eval()
    env.reset(rows[0].task, 45, 0)
    observation = env.observe(policy.cameras)
    [chunk] = policy.act([observation], [0])  # 7 the same transforms, then their inverses
    assert chunk.actions_HA.shape == (8, env.spec.action_dim) and chunk.start_s == observation.time_s
    play = RecedingHorizon(4).start(env.spec)
    for action_A in play(chunk):  # 8 the executor picks the actions
        step = env.step(action_A)  # 9 the env says what was executed
        np.testing.assert_array_equal(step.executed_A, env.spec.clip(action_A))

    again = record_episode(env, FakeExpert(), rows[0], Perturbation(), rng)  # 10 an episode is gathered
    write_dataset([again], tmp_path / "dataset", env.spec)  # and back to 1
    assert len(LeRobotSource(tmp_path / "dataset")) == 4
