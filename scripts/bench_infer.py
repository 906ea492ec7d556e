"""Milliseconds for a chunk, beside what the device could do at best and what the published way of computing takes.

All figures come from one run, the ways timed alternately. The roofline is the larger of two times: the chunk's matrix
products at the rate of one large product measured here, and one reading of all weights at the rate of a copy.
"""

import time
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import torch
from omegaconf import DictConfig
from torch import Tensor, nn

from scripts.bench_reference import ReferenceWay
from scripts.bench_training import lora_steps
from scripts.entry import entry
from vla.core.errors import GrasplineError, unknown_name
from vla.data.transforms import Transforms
from vla.policies.backbones.prompt import Prompt, byte_tokenizer
from vla.policies.empty import empty_weights
from vla.policies.fast import accelerate
from vla.policies.flops import chunk_flops, sequence_length, skipped_flops, weight_bytes
from vla.policies.openvla_oft import openvla_oft_policy
from vla.policies.published_spec import PLATFORMS
from vla.policies.threads import single_thread
from vla.policies.vla import VLAPolicy
from vla.rollout.evaluate import write_json

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
DEVICES = ("cpu", "cuda")
SIDE = {"cpu": 1024, "cuda": 8192}  # of the matrices whose product gives the peak
COPIED = {"cpu": 2**27, "cuda": 2**31}  # bytes
PLATFORM = PLATFORMS[7]  # LIBERO


def main(config: DictConfig) -> None:
    """Measures, prints the tables, writes them."""
    _check(config)
    device, dtype = torch.device(config.device), DTYPES[config.dtype]
    torch.manual_seed(0)
    with single_thread():  # as policies compute on a processor
        limits = device_limits(device, dtype)
        figures = {"settings": dict(config), "device": device_name(device), "torch": torch.__version__, **limits}
        policy = random_policy(config.size, device, dtype, prompt=config.prompt, jpeg=config.jpeg).eval()
        figures |= inference(policy, config, limits)
        print_inference(figures)
        if config.train:
            del policy
            make = lambda: random_policy(  # noqa: E731
                config.size, device, torch.float32, prompt=config.prompt, jpeg=config.jpeg
            )
            figures["training"] = lora_steps(
                make, bf16=dtype == torch.bfloat16, most=config.train_batch, prompt=config.prompt, peak=limits["peak"]
            )
            print_training(figures["training"])
    out = Path(config.out)
    out.parent.mkdir(parents=True, exist_ok=True)
    write_json(out, figures)
    print(out)


def inference(policy: VLAPolicy, config: DictConfig, limits: Mapping[str, float]) -> dict:
    """The rows of the table, the work of a chunk, and how far the published way's actions are from ours."""
    one, many = accelerate(policy, compile=config.compile), accelerate(policy, compile=config.compile)
    many.compute_batch = config.batch
    published = ReferenceWay(policy)
    rng = np.random.default_rng(0)
    observations = [policy.spec.random(rng, "a" * (config.prompt - 2)) for _ in range(config.batch)]
    seeds = list(range(config.batch))
    ways = {
        "published way": (1, lambda: published.act(observations[0])),
        "ours, plain": (1, lambda: policy.act(observations[:1], [0])),
        "ours, fast": (1, lambda: one.act(observations[:1], [0])),
        f"ours, fast, {config.batch} together": (config.batch, lambda: many.act(observations, seeds)),
    }
    work = chunk_flops(policy, prompt=config.prompt)
    tokens = sequence_length(policy, prompt=config.prompt)
    medians = median_s({name: way for name, (_, way) in ways.items()}, config.repeats)
    rows = {}
    for name, (count, _) in ways.items():
        each_s = medians[name] / count
        roofline_s = max(sum(work.values()) / limits["peak"], weight_bytes(policy) / limits["bandwidth"] / count)
        rows[name] = {
            "rows": count,
            "ms_per_chunk": 1e3 * each_s,
            "chunks_per_s": 1 / each_s,
            "tflop_per_s": 1e-12 * sum(work.values()) / each_s,
            "roofline_ms": 1e3 * roofline_s,
            "times_roofline": each_s / roofline_s,
        }
    continuous_A = ~policy.spec.binary_A  # a binary axis near its threshold may fall on either side
    apart_HA = np.abs(one.act(observations[:1], [0])[0].actions_HA - published.act(observations[0]))
    return {
        "tokens": tokens,
        "flops": {**work, **skipped_flops(policy, prompt=config.prompt)},
        "weight_bytes": weight_bytes(policy),
        "rows": rows,
        "speed_up": rows["published way"]["ms_per_chunk"] / rows["ours, fast"]["ms_per_chunk"],
        "difference": float(apart_HA[:, continuous_A].max()),
    }


def random_policy(size: str, device: torch.device, dtype: torch.dtype, *, prompt: int, jpeg: bool) -> VLAPolicy:
    """OpenVLA-OFT for LIBERO, whose weights are drawn where they stay. A character of an instruction is a token."""
    spec, rng = PLATFORM.spec, np.random.default_rng(0)
    data = rng.standard_normal((99, spec.state_dim)), rng.uniform(-1, 1, (99, spec.action_dim))
    with empty_weights():
        policy = openvla_oft_policy(
            spec=spec,
            transforms=Transforms.fit(spec, *data),
            cameras=spec.camera_names,
            horizon=PLATFORM.horizon,
            size=size,
            jpeg=jpeg,
        )
    for module in policy.modules():
        for name, empty in list(module.named_parameters(recurse=False)):
            weight = torch.empty(empty.shape, device=device, dtype=dtype)
            weight = weight.normal_(std=0.02) if weight.ndim > 1 else weight.fill_(name != "bias")
            setattr(module, name, nn.Parameter(weight))
    policy.backbone.prompt = Prompt(tokenizer=byte_tokenizer(), template="{}")  # pyright: ignore[reportArgumentType]
    return policy.to(device)


def device_limits(device: torch.device, dtype: torch.dtype) -> dict[str, float]:
    """What it reaches at best: `peak` [FLOP/s] in a large matrix product, `bandwidth` [B/s] of a copy, both ways."""
    side, copied = SIDE[device.type], COPIED[device.type]
    left, right = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))
    source = torch.zeros(copied, dtype=torch.uint8, device=device)
    target, product = torch.empty_like(source), torch.empty_like(left)
    multiply_s = fastest_s(lambda: torch.mm(left, right, out=product), device)
    copy_s = fastest_s(lambda: target.copy_(source), device)
    return {"peak": 2.0 * side**3 / multiply_s, "bandwidth": 2.0 * copied / copy_s}


def fastest_s(run: Callable[[], Tensor], device: torch.device, *, tries: int = 5, repeats: int = 5) -> float:
    """Seconds for one run: the best of several series, after one to warm up."""
    best = float("inf")
    for _ in range(tries + 1):
        _wait(device)
        started = time.perf_counter()
        for _ in range(repeats):
            run()
        _wait(device)
        best = min(best, (time.perf_counter() - started) / repeats)
    return best


def median_s(ways: Mapping[str, Callable[[], object]], repeats: int, warm_up: int = 2) -> dict[str, float]:
    """Seconds for each way, timed alternately, so that all meet the same load of the machine."""
    spent: dict[str, list[float]] = {name: [] for name in ways}
    for number in range(warm_up + repeats):
        for name, way in ways.items():
            started = time.perf_counter()
            way()
            if number >= warm_up:
                spent[name].append(time.perf_counter() - started)
    return {name: float(np.median(times)) for name, times in spent.items()}


def device_name(device: torch.device) -> str:
    """The card, or what the processor's kernels are built for."""
    if device.type == "cuda":
        return torch.cuda.get_device_name()
    return f"one processor core, {torch.backends.cpu.get_cpu_capability()}"


def print_inference(figures: Mapping) -> None:
    """The table for a person."""
    work = figures["flops"]
    print(f"{figures['device']}: {figures['peak'] / 1e12:.3g} TFLOP/s, {figures['bandwidth'] / 1e9:.3g} GB/s measured")
    print(f"{figures['tokens']} tokens; TFLOP " + ", ".join(f"{name} {1e-12 * x:.3g}" for name, x in work.items()))
    print(f"{'':24}{'ms/chunk':>10}{'chunks/s':>10}{'TFLOP/s':>10}{'roofline ms':>13}{'ratio':>8}")
    for name, row in figures["rows"].items():
        print(
            f"{name:24}{row['ms_per_chunk']:10.2f}{row['chunks_per_s']:10.2f}{row['tflop_per_s']:10.3g}"
            f"{row['roofline_ms']:13.2f}{row['times_roofline']:8.2f}"
        )
    print(f"fast is {figures['speed_up']:.2f} times the published way; actions differ by {figures['difference']:.2g}")


def print_training(row: Mapping[str, float]) -> None:
    """The line for a person."""
    print(
        f"LoRA, batch {row['batch']:.0f}: {row['steps_per_s']:.3g} steps/s, {row['samples_per_s']:.3g} samples/s, "
        f"{row['tflop_per_s']:.3g} TFLOP/s, {100 * row['of_peak']:.0f} % of the measured peak"
    )


def _check(config: DictConfig) -> None:
    if config.dtype not in DTYPES:
        raise unknown_name("dtype", str(config.dtype), DTYPES)
    if config.device not in DEVICES:
        raise unknown_name("device", str(config.device), DEVICES)
    if config.device == "cuda" and not torch.cuda.is_available():
        raise GrasplineError("device is cuda, and torch finds none here")
    for key, least in (("prompt", 3), ("batch", 1), ("repeats", 1), ("train_batch", 1)):
        if not isinstance(config[key], int) or config[key] < least:
            raise GrasplineError(f"{key} is {config[key]}, expected a whole number of at least {least}")


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


if __name__ == "__main__":
    entry("bench_infer", main)
