"""LoRA steps a second at the largest batch that memory has room for, and how much of the device's peak they use.

Counted are the operations that the step needs (a frozen weight takes part in two products, a trained one in three),
not what is computed twice.
"""

import time
from collections.abc import Callable

import numpy as np
import torch

from vla.data.batch import Batch
from vla.policies.flops import chunk_flops
from vla.policies.vla import VLAPolicy
from vla.train.layers import frozen_in_bf16
from vla.train.lora import add_lora
from vla.train.memory import RESERVE_CUDA, Settings, available_bytes, kept_for_backward, plan
from vla.train.optim import adamw

STEPS = 5  # timed, after two to warm up


def lora_steps(make: Callable[[], VLAPolicy], *, bf16: bool, most: int, prompt: int, peak: float) -> dict[str, float]:
    """Times steps of forward, backward and AdamW on random data.

    Args:
        make: the policy, in float32 on its device.
        bf16: precision of matrix products and frozen weights.
        most: samples in a step at most; halved until they fit.
        prompt: tokens of the instruction.
        peak: measured on this device [FLOP/s].

    Returns:
        `batch`, `steps_per_s`, `samples_per_s`, `tflop_per_s`, `of_peak`.
    """
    policy = make()
    add_lora(policy)
    if bf16:
        frozen_in_bf16(policy)
    policy.train()
    batch = _largest(policy, most, bf16)
    while True:
        try:
            step_s = _step_s(policy, _random_batch(policy, batch, prompt), bf16)
            break
        except torch.OutOfMemoryError:
            if batch == 1:
                raise
            batch //= 2
            policy.zero_grad(set_to_none=True)
            torch.cuda.empty_cache()
    work = batch * sum(chunk_flops(policy, prompt=prompt, training=True).values())
    return {
        "batch": batch,
        "steps_per_s": 1 / step_s,
        "samples_per_s": batch / step_s,
        "tflop_per_s": 1e-12 * work / step_s,
        "of_peak": work / step_s / peak,
    }


def _largest(policy: VLAPolicy, most: int, bf16: bool) -> int:
    """The largest of most, most / 2, ... that the memory plan has room for; 1 if none."""
    available = available_bytes(policy.device, policy)
    reserve, kept = (RESERVE_CUDA if policy.device.type == "cuda" else 0.0), kept_for_backward(policy, bf16)
    batch = most
    while batch > 1:
        settings = Settings(batch=batch, bf16=bf16)
        if plan(policy, settings, available=available, reserve=reserve, kept=kept).fits:
            break
        batch //= 2
    return batch


def _step_s(policy: VLAPolicy, batch: Batch, bf16: bool) -> float:
    """Median seconds of a step."""
    optimizer, times = adamw(policy, lr=1e-5), []
    for _ in range(2 + STEPS):
        started = time.perf_counter()
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast(policy.device.type, torch.bfloat16, enabled=bf16):
            loss = policy(batch).mean()
        loss.backward()
        optimizer.step()
        loss.item()  # waits for the device
        if policy.device.type == "cuda":
            torch.cuda.synchronize()
        times.append(time.perf_counter() - started)
    return float(np.median(times[2:]))


def _random_batch(policy: VLAPolicy, rows: int, prompt: int) -> Batch:
    rng, spec = np.random.default_rng(0), policy.spec
    shape = (rows, len(policy.cameras), spec.cameras[0].height, spec.cameras[0].width, 3)
    numbers = lambda *shape: torch.from_numpy(rng.uniform(-1, 1, shape).astype(np.float32))  # noqa: E731
    return Batch(
        images_BKHWC=torch.from_numpy(rng.integers(0, 256, shape, np.uint8)),
        state_BS=numbers(rows, spec.state_dim),
        instructions=["a" * (prompt - 2)] * rows,
        actions_BHA=numbers(rows, policy.horizon, spec.action_dim),
        mask_BH=torch.ones(rows, policy.horizon, dtype=torch.bool),
    ).to(policy.device)
