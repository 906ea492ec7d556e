"""A policy behind a WebSocket: `python -m scripts.serve policy=outputs/run port=8000`. See --help."""

import asyncio
import logging
import os
import signal
from pathlib import Path

import torch
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf

from scripts.entry import entry
from vla.core.errors import GrasplineError, MissingAssetError, unknown_name
from vla.core.protocols import Policy
from vla.policies.load import load_policy
from vla.rollout.baselines import RandomPolicy, ZeroPolicy
from vla.rollout.openpi import Fields
from vla.rollout.server import Limits, PolicyServer, load_tls

BASELINES = {"random": RandomPolicy, "zero": ZeroPolicy}
TOKEN_VARIABLE = "GRASPLINE_TOKEN"


def main(config: DictConfig) -> None:
    # A stranger's broken handshake is not our error, and would be logged with a traceback.
    logging.getLogger("websockets").setLevel(logging.CRITICAL)
    if (config.cert is None) != (config.key is None):
        raise GrasplineError("cert and key: give both, or neither")
    policy = _policy(config)
    server = PolicyServer(
        policy,
        host=config.host,
        port=config.port,
        limits=_limits(config),
        fields=_fields(config, policy),
        resize=config.resize,
        token=_token(config.token_file),
        tls=load_tls(config.cert, config.key) if config.cert else None,
        insecure=config.insecure,
    )
    policy.act([policy.spec.zeros()], [0])  # what is slow only once is done before anybody waits
    asyncio.run(_serve(server, f"{config.policy}, {policy.horizon} actions of {policy.spec.action_dim}"))


async def _serve(server: PolicyServer, told: str) -> None:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stop.set)
    async with server:
        print(f"serving {told}, on {server.url}; Ctrl-C stops", flush=True)
        await stop.wait()
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.remove_signal_handler(number)  # a second signal does not wait
    counts = server.metrics.counts
    print(f"stopped: {counts['requests']} requests, {counts['answered']} answered", flush=True)


def _policy(config: DictConfig) -> Policy:
    if config.policy is None:
        raise GrasplineError("policy=: name a run directory, random or zero")
    name = str(config.policy)
    if name in BASELINES:
        return BASELINES[name](spec=instantiate(config.env, _convert_="all").spec)
    if not Path(name).is_dir():
        raise unknown_name("policy", name, [*BASELINES, "<an existing run directory>"])
    return load_policy(Path(name), "cuda" if torch.cuda.is_available() else "cpu")


def _limits(config: DictConfig) -> Limits:
    for key in ("max_batch", "max_queue", "max_clients", "max_message_bytes", "deadline_ms"):
        if not config[key] > 0:
            raise GrasplineError(f"{key}={config[key]}: expected more than 0")
    if config.max_wait_ms < 0:
        raise GrasplineError(f"max_wait_ms={config.max_wait_ms}: expected 0 or more")
    return Limits(
        max_message_bytes=config.max_message_bytes,
        max_clients=config.max_clients,
        max_batch=config.max_batch,
        max_queue=config.max_queue,
        max_wait_s=config.max_wait_ms / 1000,
        deadline_s=config.deadline_ms / 1000,
    )


def _fields(config: DictConfig, policy: Policy) -> Fields | None:
    if config.fields is None:
        return None
    plain = OmegaConf.to_container(config.fields)
    if not isinstance(plain, dict):
        raise GrasplineError("fields: expected a table with images, state, prompt")
    return Fields.from_dict({str(key): value for key, value in plain.items()}, policy.spec)


def _token(path: str | None) -> str | None:
    """The clients' token, from a file or the environment; never from the command line, which others can read."""
    if path is None:
        return os.environ.get(TOKEN_VARIABLE) or None
    try:
        token = Path(path).read_text().strip()
    except OSError as error:
        raise MissingAssetError(f"token_file={path}: {error.strerror}") from error
    if not token:
        raise GrasplineError(f"token_file={path}: the file is empty")
    return token


if __name__ == "__main__":
    entry("serve", main)
