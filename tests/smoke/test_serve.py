"""`scripts.serve` as a user runs it: in a process of its own, asked by openpi's client, stopped by a signal."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch
from openpi_client.websocket_client_policy import WebsocketClientPolicy

from scripts.entry import entry
from scripts.serve import main
from sim.fake import FAKE
from vla.data.transforms import Transforms
from vla.policies.load import save_policy
from vla.policies.tiny import tiny_policy
from vla.rollout.remote import RemotePolicy

ROOT = Path(__file__).resolve().parents[2]


@contextmanager
def served(*overrides: str, **environment: str) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """The process and the URL that it printed."""
    process = subprocess.Popen(
        [sys.executable, "-W", "ignore", "-m", "scripts.serve", "env=fake", "port=0", *overrides],
        cwd=ROOT,
        env={**os.environ, **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        assert " on ws://127.0.0.1:" in line, line + process.stdout.read()
        yield process, line.partition(" on ")[2].partition(";")[0]
    finally:
        process.kill()
        process.wait()


def refused(*overrides: str) -> str:
    """The one line of a refusal."""
    with pytest.raises(SystemExit) as stopped:
        entry("serve", main, ["env=fake", "port=0", *overrides])
    message = stopped.value.code
    assert isinstance(message, str) and message.startswith("error: ") and "\n" not in message
    return message


def test_a_run_directory_is_served_and_stops_when_told(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    small = {"width": 32, "layers": 1, "heads": 2, "image_size": 32, "channels": (8, 16)}
    transforms = Transforms.fit(FAKE, rng.standard_normal((50, 8)), rng.uniform(-1, 1, (50, 7)).round())
    torch.manual_seed(0)
    policy = tiny_policy(spec=FAKE, transforms=transforms, cameras=FAKE.camera_names, horizon=4, **small).eval()
    save_policy(tmp_path, policy)
    observation = FAKE.random(rng)
    [wanted] = policy.act([observation], [0])
    with served(f"policy={tmp_path}", "deadline_ms=60000", GRASPLINE_TOKEN="sesame") as (process, url):
        with RemotePolicy(url, spec=FAKE, token="sesame") as remote:
            np.testing.assert_array_equal(remote.act([observation], [0])[0].actions_HA, wanted.actions_HA)
        client = WebsocketClientPolicy(url, api_key="sesame")
        element = {
            "observation/image": observation.images["agentview"],
            "observation/wrist_image": observation.images["wrist"],
            "observation/state": observation.state_S,
            "prompt": observation.instruction,
        }
        np.testing.assert_array_equal(client.infer(element)["actions"], wanted.actions_HA)
        process.send_signal(signal.SIGTERM)
        output, _ = process.communicate(timeout=60)
        assert process.returncode == 0 and "stopped: 2 requests, 2 answered" in output
        assert "sesame" not in output and "Traceback" not in output


def test_what_a_user_can_get_wrong(tmp_path: Path) -> None:
    empty = tmp_path / "token.txt"
    empty.touch()
    assert "policy=" in refused()
    assert "Did you mean 'random'" in refused("policy=randm")
    assert "no policy in" in refused(f"policy={tmp_path}")
    assert "give clients a token" in refused("policy=zero", "host=0.0.0.0")
    assert "token_file" in refused("policy=zero", f"token_file={empty}")
    assert "token_file" in refused("policy=zero", f"token_file={tmp_path / 'none'}")
    assert "give both" in refused("policy=zero", "cert=cert.pem")
    assert "cert=cert.pem" in refused("policy=zero", "cert=cert.pem", "key=key.pem")
    assert "Did you mean 'agentview'" in refused("policy=zero", "fields={images: {agentvew: a}}")
    assert "max_batch=0" in refused("policy=zero", "max_batch=0")
    assert "Did you mean 'deadline_ms'" in refused("policy=zero", "deadline=3")


def test_help_teaches(capsys: pytest.CaptureFixture[str]) -> None:
    entry("serve", main, ["--help"])
    assert "python -m scripts.serve policy=" in capsys.readouterr().out
