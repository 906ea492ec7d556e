"""A toy body and toy batches for tests of policies and training: small, seeded, on one thread."""

from collections.abc import Callable, Iterator

import numpy as np
import pytest
import torch

from vla.core.spec import Axis, Camera, Embodiment
from vla.data.batch import Batch
from vla.data.transforms import Transforms
from vla.policies.tiny import tiny_policy
from vla.policies.vla import VLAPolicy

HORIZON = 4
SMALL = {"width": 32, "layers": 2, "heads": 2, "image_size": 32, "channels": (8, 16)}


@pytest.fixture
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def toy_spec() -> Embodiment:
    return Embodiment(
        name="toy",
        state=tuple(Axis(name=name, unit="m") for name in "xyz"),
        action=(
            Axis(name="dx", unit="m", low=-0.5, high=0.5),
            Axis(name="dy", unit="m", low=-0.5, high=0.5),
            Axis(name="gripper", unit="1", low=0, high=1, binary=True),
        ),
        cameras=(Camera(name="front", height=40, width=40), Camera(name="wrist", height=40, width=40)),
        control_hz=20.0,
    )


@pytest.fixture(scope="session")
def toy_transforms(toy_spec: Embodiment) -> Transforms:
    rng = np.random.default_rng(0)
    actions_NA = rng.uniform(-0.6, 0.6, (200, 3))  # wider than the bounds, so that clipping shows
    actions_NA[:, 2] = rng.integers(0, 2, 200)
    return Transforms.fit(toy_spec, rng.standard_normal((200, 3)), actions_NA)


@pytest.fixture(scope="session")
def make_policy(toy_spec: Embodiment, toy_transforms: Transforms) -> Callable[..., VLAPolicy]:
    def make(seed: int = 0, **changes) -> VLAPolicy:
        torch.manual_seed(seed)
        parts = {"spec": toy_spec, "transforms": toy_transforms, "cameras": toy_spec.camera_names, "horizon": HORIZON}
        return tiny_policy(**{**parts, **SMALL, **changes})

    return make


@pytest.fixture(scope="session")
def make_batch() -> Callable[..., Batch]:
    def make(seed: int = 0, size: int = 8) -> Batch:
        rng = np.random.default_rng(seed)
        actions_BHA = rng.uniform(-1, 1, (size, HORIZON, 3)).astype(np.float32)
        actions_BHA[..., 2] = np.sign(actions_BHA[..., 2])
        mask_BH = np.arange(HORIZON) < rng.integers(1, HORIZON + 1, (size, 1))
        return Batch(
            images_BKHWC=torch.from_numpy(rng.integers(0, 256, (size, 2, 40, 40, 3), np.uint8)),
            state_BS=torch.from_numpy(rng.standard_normal((size, 3), np.float32)),
            instructions=[f"pick up object {i % 3}" for i in range(size)],
            actions_BHA=torch.from_numpy(actions_BHA),
            mask_BH=torch.from_numpy(mask_BH),
        )

    return make
