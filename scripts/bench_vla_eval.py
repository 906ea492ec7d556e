"""Our policy behind vla-eval's own server, with its batching and its chunks: `scripts.bench_peers` runs it.

`python -m scripts.bench_vla_eval <run directory> <port> <actions played of each chunk> <largest batch>`
"""

import sys
from collections.abc import Mapping, Sequence
from typing import Any

import anyio
import numpy as np
from vla_eval.model_servers.predict import PredictModelServer  # pyright: ignore[reportMissingImports]
from vla_eval.model_servers.serve import serve_async  # pyright: ignore[reportMissingImports]
from vla_eval.specs import RAW  # pyright: ignore[reportMissingImports]

from vla.core.types import Observation
from vla.policies.load import load_policy
from vla.policies.threads import single_thread


class GrasplineServer(PredictModelServer):
    """Answers the observations that wait with one call of `VLAPolicy.act`."""

    def __init__(self, run: str, *, execute: int, batch: int) -> None:
        super().__init__(chunk_size=execute, max_batch_size=batch)
        self.policy = load_policy(run)

    def get_observation_params(self) -> dict[str, Any]:
        return {"send_wrist_image": True, "send_state": True}

    def get_action_spec(self) -> dict[str, Any]:
        return {"actions": RAW}

    def get_observation_spec(self) -> dict[str, Any]:
        return {"image": RAW, "language": RAW}

    def predict_batch(self, obs_batch: Sequence[Mapping[str, Any]], ctx_batch: Sequence[Any]) -> list[dict[str, Any]]:
        observations = [
            Observation(
                images={name: np.asarray(each["images"][name], np.uint8) for name in self.policy.cameras},
                state_S=np.asarray(each["states"], np.float32),
                instruction=each["task_description"],
                time_s=context.step * self.policy.spec.dt_s,
            )
            for each, context in zip(obs_batch, ctx_batch, strict=True)
        ]
        chunks = self.policy.act(observations, [context.step for context in ctx_batch])
        return [{"actions": chunk.actions_HA} for chunk in chunks]


if __name__ == "__main__":
    run, port, execute, batch = sys.argv[1:]
    with single_thread():
        anyio.run(serve_async, GrasplineServer(run, execute=int(execute), batch=int(batch)), "127.0.0.1", int(port))
