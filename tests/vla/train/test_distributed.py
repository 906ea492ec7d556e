"""Two real processes against one, on the CPU through gloo."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from safetensors.torch import load_file

from vla.train.metrics import read_metrics

PROGRAM = """
import sys
from pathlib import Path
import numpy as np, torch
from vla.core.spec import Axis, Camera, Embodiment
from vla.data.batch import Batch
from vla.data.transforms import Transforms
from vla.policies.presets import tiny_policy
from vla.train.distributed import Processes
from vla.train.metrics import Metrics
from vla.train.offline import fit
from vla.train.optim import Average, adamw

torch.set_num_threads(1)
out = Path(sys.argv[1])
axes = tuple(Axis(name=name, unit="m") for name in "xy")
spec = Embodiment(name="t", state=axes, action=axes, cameras=(Camera(name="c", height=16, width=16),), control_hz=20.0)
rng = np.random.default_rng(0)
transforms = Transforms.fit(spec, rng.normal(size=(50, 2)), rng.normal(size=(50, 2)))
torch.manual_seed(0)
processes = Processes()
policy = tiny_policy(
    spec=spec, transforms=transforms, cameras=("c",), horizon=3, width=16, layers=1, heads=2, image_size=16,
    channels=(8, 8), shift=0, contrast=0, brightness=0, state_noise=0,
).to(processes.device)

def batches(start):
    for step in range(start, 4):
        rng = np.random.default_rng(step)
        yield Batch(
            images_BKHWC=torch.from_numpy(rng.integers(0, 256, (6, 1, 16, 16, 3), np.uint8)),
            state_BS=torch.from_numpy(rng.standard_normal((6, 2), np.float32)),
            instructions=[f"go {i}" for i in range(6)],
            actions_BHA=torch.from_numpy(rng.standard_normal((6, 3, 2), np.float32)),
            mask_BH=torch.from_numpy(np.arange(3) < rng.integers(1, 4, (6, 1))),
        )

fit(
    policy, batches, optimizer=adamw(policy, lr=1e-3), schedule=lambda step: 1.0, average=Average(policy, 0.9),
    metrics=Metrics(out, steps=4, every=1, enabled=processes.is_main), processes=processes, steps=4, seed=0, out=out,
)
processes.close()
"""


@pytest.mark.slow
def test_two_processes_train_as_one_does(tmp_path: Path):
    """Rows have different numbers of valid actions, so averaging the processes' own means would show here."""
    program = tmp_path / "program.py"
    program.write_text(PROGRAM)
    clean = os.environ | {
        "PYTHONPATH": str(Path(__file__).parents[3]),
        "CUDA_VISIBLE_DEVICES": "",
        "ACCELERATE_USE_CPU": "true",
        "OMP_NUM_THREADS": "1",
    }
    launch = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--master-port", "29517"]
    subprocess.run([sys.executable, program, tmp_path / "one"], env=clean, check=True, timeout=240)
    subprocess.run([*launch, program, tmp_path / "two"], env=clean, check=True, timeout=240)
    one, two = ([row["loss"] for row in read_metrics(tmp_path / name / "metrics.jsonl")] for name in ("one", "two"))
    assert two == pytest.approx(one, rel=1e-4)
    last = "checkpoints/step_000004/model.safetensors"
    weights, twins = load_file(tmp_path / "one" / last), load_file(tmp_path / "two" / last)
    assert weights.keys() == twins.keys()
    assert all((weights[name] - twins[name]).abs().max() < 2e-3 for name in weights)
