"""A published checkpoint to our format: `python -m scripts.convert checkpoint=<folder> out=outputs/oft`. See --help."""

from pathlib import Path

import torch
from omegaconf import DictConfig

from scripts.entry import entry
from vla.core.errors import GrasplineError, unknown_name
from vla.policies.load import save_policy
from vla.policies.published import load_published

DTYPES = {"bfloat16": torch.bfloat16, "float32": torch.float32}


def main(config: DictConfig) -> None:
    """Reads the checkpoint that the config names and writes the policy."""
    if config.checkpoint is None:
        raise GrasplineError("checkpoint is missing: give the folder of the published files, checkpoint=<folder>")
    if config.dtype not in (None, *DTYPES):
        raise unknown_name("dtype", config.dtype, DTYPES)
    torch.manual_seed(config.seed)
    policy = load_published(
        config.checkpoint,
        unnorm_key=config.unnorm_key,
        cameras=None if config.cameras is None else list(config.cameras),
        horizon=config.horizon,
        base=config.base,
        head=config.head,
        proprio=config.proprio,
        film=config.film,
        fresh_parts=config.fresh_parts,
        dtype=None if config.dtype is None else DTYPES[config.dtype],
    )
    save_policy(Path(config.out), policy)
    weights = sum(parameter.numel() for parameter in policy.parameters())
    print(
        f"wrote {config.out}: {weights / 1e6:.1f} M weights, {policy.head.__class__.__name__}, "
        f"chunks of {policy.horizon} for {policy.spec.name}, cameras {', '.join(policy.cameras)}"
    )


if __name__ == "__main__":
    entry("convert", main)
