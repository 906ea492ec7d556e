"""Real sockets on the loopback, openpi's own client unmodified, and everything a client can get wrong."""

import json
import random
import ssl
import subprocess
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from openpi_client import msgpack_numpy
from openpi_client.websocket_client_policy import WebsocketClientPolicy
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import ClientConnection, connect

from sim.fake import FAKE
from vla.core import wire
from vla.core.errors import GrasplineError, MissingAssetError
from vla.core.types import ActionChunk, Observation
from vla.policies.vla import VLAPolicy
from vla.rollout import native
from vla.rollout.baselines import RandomPolicy, ZeroPolicy
from vla.rollout.server import Limits, PolicyServer, load_tls

RNG = np.random.default_rng(0)
OBSERVATION = FAKE.random(RNG)


class GatedPolicy(RandomPolicy):
    """Computes when told to, and notes the instructions of each batch. "poison" makes it raise."""

    def __init__(self, *, is_open: bool = True) -> None:
        super().__init__(spec=FAKE, horizon=3)
        self.gate, self.entered, self.batches = threading.Event(), threading.Event(), []
        if is_open:
            self.gate.set()

    def act(self, observations: Sequence[Observation], seeds: Sequence[int]) -> list[ActionChunk]:
        self.batches.append([each.instruction for each in observations])
        self.entered.set()
        assert self.gate.wait(20)
        if any(each.instruction == "poison" for each in observations):
            raise ZeroDivisionError("poisoned")
        return super().act(observations, seeds)


def element(observation: Observation = OBSERVATION, **changes: object) -> dict:
    """A request of openpi's client; underscores stand for the slash, ... takes a field away."""
    first, wrist = observation.images.values()
    fields = {
        "observation/image": first,
        "observation/wrist_image": wrist,
        "observation/state": observation.state_S,
        "prompt": observation.instruction,
    } | {name.replace("__", "/"): value for name, value in changes.items()}
    return {name: value for name, value in fields.items() if value is not ...}


def dial(server: PolicyServer, **options) -> ClientConnection:
    connection = connect(server.url, compression=None, proxy=None, max_size=None, **options)
    assert native.read_description(msgpack_numpy.unpackb(connection.recv())) is not None
    return connection


def ask(connection: ClientConnection, message: bytes | str):
    """A native answer: the chunk, or the refusal's code."""
    connection.send(message)
    reply = connection.recv(timeout=20)
    return native.decode_refusal(reply).code if isinstance(reply, str) else wire.decode_chunk(reply)


def get(server: PolicyServer, path: str, **headers: str) -> tuple[int, bytes]:
    request = urllib.request.Request(server.url.replace("ws", "http", 1) + path, headers=headers)
    try:
        with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(request, timeout=20) as response:
            return response.status, response.read()
    except urllib.error.HTTPError as error:
        return error.code, error.read()


def metrics(server: PolicyServer) -> dict:
    return json.loads(get(server, "/metrics")[1])


def test_many_clients_of_both_kinds_get_what_they_would_get_alone(
    serving: Callable, make_policy: Callable[..., VLAPolicy]
) -> None:
    policy = make_policy().eval()
    observations = [policy.spec.random(np.random.default_rng(seed), f"do {seed}") for seed in range(12)]
    alone = [policy.act([each], [3])[0].actions_HA for each in observations]

    def through_openpi(server: PolicyServer) -> list[np.ndarray]:
        client = WebsocketClientPolicy(server.url)
        assert client.get_server_metadata()["horizon"] == policy.horizon
        return [client.infer(element(each))["actions"] for each in observations]

    def through_ours(server: PolicyServer) -> list[np.ndarray]:
        with dial(server) as connection:
            return [ask(connection, native.encode_request(each, 3)).actions_HA for each in observations]

    with serving(policy, limits=Limits(deadline_s=60, max_wait_s=0.02)) as server, ThreadPoolExecutor(4) as threads:
        clients = [threads.submit(kind, server) for kind in (through_openpi, through_ours) * 2]
        for client in clients:
            np.testing.assert_array_equal(client.result(), alone)
        told = metrics(server)
    assert told["requests"] == told["answered"] == 48 and told["errors"] == told["shed"] == 0
    assert sum(int(size) * count for size, count in told["batch_sizes"].items()) == 48
    assert max(map(int, told["batch_sizes"])) > 1, "requests of several clients are computed together"
    for times_ms in told["latency_ms"].values():
        assert 0 <= times_ms["p50"] <= times_ms["p90"] <= times_ms["p99"]


def test_the_seed_arrives(serving: Callable) -> None:
    policy = RandomPolicy(spec=FAKE)
    wanted = [policy.act([OBSERVATION], [seed])[0].actions_HA for seed in (0, 0, 2**63 - 1, 5)]
    with serving(policy) as server:
        client, connection = WebsocketClientPolicy(server.url), dial(server)
        bare = ask(connection, wire.encode_observation(OBSERVATION))
        got = [
            bare.actions_HA,
            client.infer(element())["actions"],
            ask(connection, native.encode_request(OBSERVATION, 2**63 - 1)).actions_HA,
            client.infer(element(seed=5))["actions"],
        ]
        np.testing.assert_array_equal(got, wanted)
        assert (bare.start_s, bare.dt_s) == (OBSERVATION.time_s, FAKE.dt_s)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"observation__wrist_image": ...}, "observation/wrist_image"),
        ({"observation__extra": np.zeros(3)}, "unknown field 'observation/extra'"),
        ({"observation__state": np.zeros(7)}, r"state has shape \(7,\), expected \(8,\)"),
        ({"observation__state": np.full(8, np.nan)}, "state is not finite"),
        ({"observation__image": np.zeros((32, 64, 3), np.uint8)}, r"'agentview' is \(32, 64, 3\)"),
        ({"prompt": "x" * 5000}, "4096 characters"),
        ({"prompt": "poison"}, "policy_error: ZeroDivisionError: poisoned"),
    ],
)
def test_openpis_client_is_told_and_may_ask_again(serving: Callable, changes: dict, words: str) -> None:
    policy = GatedPolicy()
    policy.cameras = FAKE.camera_names
    with serving(policy) as server:
        client = WebsocketClientPolicy(server.url)
        with pytest.raises(RuntimeError, match=words):
            client.infer(element(**changes))
        assert client.infer(element())["actions"].shape == (3, 7)
        assert metrics(server)["errors"] == 1


def test_our_client_is_told_and_may_ask_again(serving: Callable) -> None:
    small = Observation(
        images={"agentview": np.zeros((8, 8, 3), np.uint8)}, state_S=OBSERVATION.state_S, instruction="", time_s=0.0
    )
    stranger = Observation(
        images={"agentvew": OBSERVATION.images["wrist"]}, state_S=OBSERVATION.state_S, instruction="", time_s=0.0
    )
    good = native.encode_request(OBSERVATION, 0)
    with serving(ZeroPolicy(spec=FAKE)) as server, dial(server) as connection:
        for bad in (
            wire.encode_observation(small),
            wire.encode_observation(stranger),
            good[:-1],
            good[:9],
            b"GL",
            b"GLW1",
        ):
            assert ask(connection, bad) == "bad_request"
        connection.send("a text")
        assert "expected bytes" in connection.recv()
        assert ask(connection, good).actions_HA.shape == (8, 7)


def test_an_oversized_message_ends_its_connection_only(serving: Callable) -> None:
    with serving(ZeroPolicy(spec=FAKE), limits=Limits(max_message_bytes=50_000, deadline_s=60)) as server:
        other = WebsocketClientPolicy(server.url)
        with dial(server) as connection, pytest.raises(ConnectionClosed) as closed:
            connection.send(bytes(60_000))
            connection.recv(timeout=20)
        assert closed.value.rcvd is not None and closed.value.rcvd.code == 1009
        assert other.infer(element())["actions"].shape == (8, 7)


def test_one_poisoned_request_spoils_no_other_of_its_batch(serving: Callable) -> None:
    policy = GatedPolicy(is_open=False)
    poison = Observation(images={}, state_S=OBSERVATION.state_S, instruction="poison", time_s=0.0)
    with serving(policy, limits=Limits(deadline_s=60)) as server, ThreadPoolExecutor(4) as threads:
        connections = [dial(server) for _ in range(4)]
        first = threads.submit(ask, connections[0], native.encode_request(OBSERVATION, 0))
        assert policy.entered.wait(20)
        rest = [
            threads.submit(ask, connection, native.encode_request(each, 1))
            for connection, each in zip(connections[1:], (OBSERVATION, poison, OBSERVATION))
        ]
        while metrics(server)["requests"] < 4:
            time.sleep(0.01)
        policy.gate.set()
        results = [future.result(20) for future in (first, *rest)]
    assert results[2] == "policy_error"
    assert all(isinstance(results[i], ActionChunk) for i in (0, 1, 3))
    assert [len(batch) for batch in policy.batches] == [1, 3, 1, 1, 1], "those that waited, together; then each alone"


def test_late_and_busy_are_said_at_once_and_never_computed(serving: Callable) -> None:
    policy = GatedPolicy(is_open=False)
    with serving(policy, limits=Limits(deadline_s=1, max_queue=1)) as server, ThreadPoolExecutor(3) as threads:
        connections = [dial(server) for _ in range(3)]
        first = threads.submit(ask, connections[0], native.encode_request(OBSERVATION, 0))
        assert policy.entered.wait(20)
        client = WebsocketClientPolicy(server.url)
        late = threads.submit(client.infer, element(prompt="late one"))
        while metrics(server)["requests"] < 2:
            time.sleep(0.01)
        assert ask(connections[1], native.encode_request(OBSERVATION, 0)) == "busy"
        with pytest.raises(RuntimeError, match=r"late: waited .* deadline_ms is 1000"):
            late.result(20)
        policy.gate.set()
        assert isinstance(first.result(20), ActionChunk), "what has begun is answered"
        assert metrics(server)["refused"] | {"busy": 1, "late": 1} == metrics(server)["refused"]
        assert "late one" not in [instruction for batch in policy.batches for instruction in batch]
        for _ in range(100):  # the one slow batch is forgotten after a few refusals
            if isinstance(answer := ask(connections[1], native.encode_request(OBSERVATION, 0)), ActionChunk):
                break
            assert answer == "late"
        assert isinstance(answer, ActionChunk)


def test_stopping_answers_what_was_asked(serving: Callable) -> None:
    policy = GatedPolicy(is_open=False)
    with ThreadPoolExecutor(1) as threads:
        with serving(policy) as server:
            connection = dial(server)
            asked = threads.submit(ask, connection, native.encode_request(OBSERVATION, 0))
            assert policy.entered.wait(20)
            threading.Timer(0.2, policy.gate.set).start()
        assert isinstance(asked.result(20), ActionChunk)
        with pytest.raises(ConnectionClosed):
            ask(connection, native.encode_request(OBSERVATION, 0))


def test_a_token_is_needed_and_both_schemes_show_it(serving: Callable) -> None:
    with serving(ZeroPolicy(spec=FAKE), token="sesame") as server:
        for wrong in (None, "", "sesam", "sesame2", "sésame"):
            with pytest.raises(InvalidStatus, match="401"):
                WebsocketClientPolicy(server.url, api_key=wrong)
        client = WebsocketClientPolicy(server.url, api_key="sesame")
        assert client.infer(element())["actions"].shape == (8, 7)
        dial(server, additional_headers={"Authorization": "Bearer sesame"}).close()
        assert get(server, "/healthz") == (200, b"OK\n")
        assert get(server, "/metrics")[0] == 401
        assert get(server, "/metrics", Authorization="Bearer sesame")[0] == 200
        assert get(server, "/")[0] == 401 and get(server, "/", Authorization="Bearer sesame")[0] == 426


def test_who_may_listen_where() -> None:
    for host in ("0.0.0.0", "192.168.1.5", "::", "robot.local", ""):
        with pytest.raises(GrasplineError, match="give clients a token"):
            PolicyServer(ZeroPolicy(spec=FAKE), host=host)
    PolicyServer(ZeroPolicy(spec=FAKE), host="0.0.0.0", token="t")
    PolicyServer(ZeroPolicy(spec=FAKE), host="0.0.0.0", insecure=True)
    for host in ("127.0.0.1", "::1", "localhost"):
        PolicyServer(ZeroPolicy(spec=FAKE), host=host)


def test_an_address_in_use_is_one_line(serving: Callable) -> None:
    with serving(ZeroPolicy(spec=FAKE)) as server:
        port = int(server.url.rpartition(":")[2])
        with (
            pytest.raises(GrasplineError, match=f"cannot listen on 127.0.0.1:{port}"),
            serving(ZeroPolicy(spec=FAKE), port=port),
        ):
            pass


def test_browsers_and_too_many_clients_are_refused(serving: Callable) -> None:
    with serving(ZeroPolicy(spec=FAKE), limits=Limits(max_clients=1, deadline_s=60)) as server:
        with pytest.raises(InvalidStatus, match="403"):
            dial(server, origin="https://example.com")
        first = dial(server)
        with pytest.raises(ConnectionClosed, match="busy: 1 clients already"):
            WebsocketClientPolicy(server.url)
        first.close()
        for _ in range(200):
            if metrics(server)["clients"] == 0:
                break
            time.sleep(0.01)
        assert WebsocketClientPolicy(server.url).infer(element())["actions"].shape == (8, 7)


def test_tls(serving: Callable, tmp_path: Path) -> None:
    key, certificate = tmp_path / "key.pem", tmp_path / "cert.pem"
    made = "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2 -subj /CN=localhost"
    words = [*made.split(), "-addext", "subjectAltName=IP:127.0.0.1", "-keyout", str(key), "-out", str(certificate)]
    subprocess.run(words, check=True, capture_output=True)
    with serving(ZeroPolicy(spec=FAKE), tls=load_tls(certificate, key)) as server:
        assert server.url.startswith("wss://127.0.0.1:")
        with dial(server, ssl=ssl.create_default_context(cafile=certificate)) as connection:
            assert ask(connection, native.encode_request(OBSERVATION, 0)).actions_HA.shape == (8, 7)
        with pytest.raises(ssl.SSLError):
            dial(server)
    with pytest.raises(MissingAssetError, match="No such file"):
        load_tls(tmp_path / "none.pem", key)
    with pytest.raises(GrasplineError, match=r"cert=.*key\.pem"):
        load_tls(key, key)


def test_pictures_are_scaled_on_request_without_distortion(serving: Callable) -> None:
    seen = []

    class Watching(ZeroPolicy):
        def act(self, observations, seeds):
            seen.extend(observations)
            return super().act(observations, seeds)

    halves = np.zeros((224, 224, 3), np.uint8)
    halves[:, 112:] = (200, 100, 50)
    with serving(Watching(spec=FAKE), resize=True) as server:
        client = WebsocketClientPolicy(server.url)
        client.infer(element(observation__image=halves))
        with pytest.raises(RuntimeError, match="proportions"):
            client.infer(element(observation__image=halves[:100]))
    image = seen[0].images["agentview"]
    assert image.shape == (64, 64, 3) and (image[:, :30] == 0).all() and (image[:, 34:] == (200, 100, 50)).all()
    assert seen[0].images["wrist"].tobytes() == OBSERVATION.images["wrist"].tobytes()


def test_thousands_of_broken_messages_leave_the_server_answering(serving: Callable) -> None:
    rng = random.Random(0)
    small = Observation(images={}, state_S=OBSERVATION.state_S, instruction="go", time_s=0.0)
    no_pictures = {"observation/state": OBSERVATION.state_S, "prompt": "go"}
    good = (native.encode_request(small, 1), wire.encode_observation(small), msgpack_numpy.packb(no_pictures))

    def broken() -> bytes:
        if rng.random() < 0.2:
            return rng.randbytes(rng.randrange(60))
        message = bytearray(rng.choice(good))
        for _ in range(rng.randrange(1, 4)):
            place, kind = rng.randrange(len(message)), rng.random()
            if kind < 0.6:
                message[place] = rng.randrange(256)
            elif kind < 0.8:
                del message[place : place + rng.randrange(1, 20)]
                message += b"" if message else b"\x80"
            else:
                message[place:place] = rng.randbytes(rng.randrange(1, 9))
        return bytes(message)

    with serving(ZeroPolicy(spec=FAKE), limits=Limits(max_wait_s=0, deadline_s=60)) as server:
        other = WebsocketClientPolicy(server.url)
        with dial(server) as connection:
            for _ in range(100):
                batch = [broken() for _ in range(20)]
                for message in batch:
                    connection.send(message)
                for _ in batch:
                    connection.recv(timeout=20)
            assert ask(connection, good[0]).actions_HA.shape == (8, 7), "even on the connection that sent all that"
        assert other.infer(element())["actions"].shape == (8, 7)
        told = metrics(server)
        assert told["requests"] == 2002 and told["errors"] > 1000
        assert told["refused"]["policy_error"] == 0
