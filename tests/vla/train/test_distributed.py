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
from safetensors.torch import save_file
from vla.core.spec import Axis, Camera, Embodiment
from vla.data.batch import Batch
from vla.data.transforms import Transforms
from vla.policies.tiny import tiny_policy
from vla.train.distributed import Processes
from vla.train.metrics import Metrics
from vla.train.offline import fit
from vla.train.optim import Average, adamw

torch.set_num_threads(1)
out, parallel, accumulate, stop = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
axes = tuple(Axis(name=name, unit="m") for name in "xy")
spec = Embodiment(name="t", state=axes, action=axes, cameras=(Camera(name="c", height=16, width=16),), control_hz=20.0)
rng = np.random.default_rng(0)
transforms = Transforms.fit(spec, rng.normal(size=(50, 2)), rng.normal(size=(50, 2)))
processes = Processes(parallel=parallel)

def make():
    torch.manual_seed(0)
    return tiny_policy(
        spec=spec, transforms=transforms, cameras=("c",), horizon=3, width=16, layers=1, heads=2, image_size=16,
        channels=(8, 8), shift=0, contrast=0, brightness=0, state_noise=0,
    ).to(processes.device)

policy = make()
policy.backbone.towers.requires_grad_(False)
processes.shard(policy)

def batches(start):
    for step in range(start, stop):
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
    accumulate=accumulate, checkpoint_every=2, validation=list(batches(0))[:1],
)
whole = processes.unshard(policy, make)
if processes.is_main:
    save_file({name: tensor.contiguous() for name, tensor in whole.state_dict().items()}, out / "done.safetensors")
processes.close()
"""


@pytest.mark.slow
def test_two_processes_train_as_one_does(tmp_path: Path):
    """Rows have different numbers of valid actions, so averaging means of processes or of parts would show here."""
    program = tmp_path / "program.py"
    program.write_text(PROGRAM)
    clean = os.environ | {
        "PYTHONPATH": str(Path(__file__).parents[3]),
        "CUDA_VISIBLE_DEVICES": "",
        "ACCELERATE_USE_CPU": "true",
        "OMP_NUM_THREADS": "1",
    }
    launch = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--master-port", "29517"]

    def train(name: str, start: list[str], *, parallel: str = "ddp", accumulate: int = 1, stop: int = 4) -> None:
        words = [program, tmp_path / name, parallel, str(accumulate), str(stop)]
        subprocess.run([*start, *words], env=clean, check=True, timeout=400)

    def weights(name: str) -> dict:
        """What was trained, as the checkpoint has it, and the whole averaged policy at the end."""
        folder = tmp_path / name
        done = {f"done {key}": value for key, value in load_file(folder / "done.safetensors").items()}
        return load_file(folder / "checkpoints/step_000004/model.safetensors") | done

    train("one", [sys.executable])
    train("ddp", launch, accumulate=3)
    train("fsdp2", launch, parallel="fsdp2", accumulate=2, stop=2)  # killed after two steps
    train("fsdp2", launch, parallel="fsdp2", accumulate=2)
    rows = read_metrics(tmp_path / "one" / "metrics.jsonl")
    for name in ("ddp", "fsdp2"):
        found = read_metrics(tmp_path / name / "metrics.jsonl")
        for key in ("loss", "grad_norm", "val_loss"):
            expected = [row[key] for row in rows if key in row]
            assert [row[key] for row in found if key in row] == pytest.approx(expected, rel=1e-4), (name, key)
        assert weights(name).keys() == weights("one").keys()
        for key, weight in weights("one").items():
            assert (weights(name)[key] - weight).abs().max() < 2e-3, (name, key)
