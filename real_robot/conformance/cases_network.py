"""Cases 57 and 58: whoever comes through the network to do harm, by garbage or by pretending."""

import contextlib
import socket
import ssl
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import msgpack
import numpy as np
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import connect
from websockets.typing import Origin

from real_robot.conformance.bench import Bench, Device, expect
from real_robot.conformance.case import Case
from real_robot.conformance.doors import PATIENCE_S, RemotePolicy, Tab, dashboard, served
from real_robot.core.faults import GrasplineError
from real_robot.core.supervisor import State
from real_robot.core.types import Array
from real_robot.serve import auth
from real_robot.serve.client import RobotClient
from real_robot.serve.messages import encode
from real_robot.serve.server import RobotServer

BETWEEN_S = 0.02  # of driving between two attacks
PAGE_GARBAGE = ("[", "[" * 3000, '{"deadman": {}}', "\x00", "x" * 10_000)
HUGE_FRAME = b"\x82\xff" + (2**32).to_bytes(8, "big") + bytes(4)  # of a WebSocket: 4 GiB will follow
NO_HTTP = b"\x16\x03\x01\x02\x00" + bytes(200)
SLOW = b"GET / HTTP/1.1\r\nHost: "  # and then nothing


def garbage() -> list[bytes | str]:
    """Messages that nobody may take."""
    chunk = {"type": "chunk", "session": "a", "seq": 10**6, "t_obs_s": 0.0, "dt_s": 0.1}
    arrays = [
        _array(b"", "|O", [1]),
        _array(bytes(8), "<f8,(2,)i4", [1]),
        _array(bytes(80), "<f8", [-2, -5]),
        _array(b"", "<f8", [2**31, 2**31]),
        _array(bytes(80), "<f8", [10**9, 5]),
        _array(b"", "<f8", [0] * 40),
    ]
    return [
        *(_packed({**chunk, "q_HN": array}) for array in arrays),
        _packed({**chunk, "q_HN": [[0.0] * 5], "more": 1}),
        _packed({**chunk, "q_HN": "cposix\nsystem\n(S'true'\ntR.", "seq": float("nan")}),
        _packed({"type": "eval"}),
        b"cposix\nsystem\n(S'true'\ntR.",  # a pickle that would call the shell
        b"",
        b"\x91" * 4000,  # nested lists
        b"\xdd\xff\xff\xff\xff",  # a list of four thousand million
        b"\xc6\xff\xff\xff\xff",  # four gigabytes of bytes
        b"\xc9\xff\xff\xff\xff\x01",  # an extension of that size
        bytes(2**21),  # longer than a request may be
        "text",
        *(np.random.default_rng(seed).bytes(1 + 10 * seed) for seed in range(20)),
    ]


def damaged() -> list[bytes]:
    """Good messages with one wrong byte: some are garbage, some only refused."""
    whole = encode({"type": "chunk", "session": "a", "seq": 9, "t_obs_s": 0.0, "dt_s": 0.1, "q_HN": np.ones((9, 5))})
    rng, found = np.random.default_rng(0), []
    for _ in range(20):
        one = bytearray(whole)
        one[rng.integers(len(whole))] ^= 1 << int(rng.integers(8))
        found.append(bytes(one))
    return found


def hostile(device: Device) -> str:
    bad, spoilt = garbage(), damaged()
    attacks: list[Callable[[str], object]] = [lambda url, data=data: _closed(url, data) for data in bad]
    attacks += [lambda url, data=data: _sent(url, data) for data in spoilt]
    quiet = _driven(device, [lambda _: None for _ in attacks], harm=False)
    noisy = _driven(device, attacks, harm=True)
    expect(np.array_equal(quiet, noisy), "the motion is another than without the attacks")
    return f"{len(attacks)} messages, 3 raw streams, a garbled page: connections closed, motion the same to the bit"


def _driven(device: Device, attacks: Sequence[Callable[[str], object]], *, harm: bool) -> Array:
    """Commands (T, J) of a policy that drives through the server while each attack comes once."""
    bench = Bench(device).start()
    with contextlib.ExitStack() as stack:
        server = stack.enter_context(served(bench.daemon))
        client = stack.enter_context(RobotClient(server.url, deadline_s=PATIENCE_S, clock=bench.clock.now))
        policy = RemotePolicy(bench, client)
        if harm:
            _raw(stack, server.url)
        for attack in attacks:
            attack(server.url)
            policy.run(BETWEEN_S)
        if harm:
            _garble_the_page(bench)
        client.ask("heartbeat")
        holder = bench.daemon.leases.holder
        expect(holder is not None and holder.generation == policy.generation, "the lease was touched")
    expect(bench.state == State.ACTIVE, f"{bench.state} {bench.supervisor.latched or ''}")
    bench.bounded()
    return np.array([report.tick.command.q_J for report in bench.reports if report.tick.command])


def _sent(url: str, data: bytes | str, within_s: float = 0.05) -> bool:
    """Whether the server closed the connection after its answer to this message."""
    with connect(url, proxy=None, compression=None) as attacker:
        try:
            attacker.send(data)
            attacker.recv(PATIENCE_S)
            attacker.recv(within_s)
        except ConnectionClosed:
            return True
        except TimeoutError:
            return False
    return False


def _closed(url: str, data: bytes | str) -> None:
    expect(_sent(url, data, PATIENCE_S), f"the connection stayed open after {data[:30]!r}")


def _raw(stack: contextlib.ExitStack, url: str) -> None:
    """Streams below the messages, left open: a frame of 4 GiB, no HTTP at all, a request that never ends."""
    stack.enter_context(connect(url, proxy=None, compression=None)).socket.sendall(HUGE_FRAME + bytes(1000))
    for data in (NO_HTTP, SLOW):
        address = (urlsplit(url).hostname or "", urlsplit(url).port or 0)
        stack.enter_context(socket.create_connection(address, PATIENCE_S)).sendall(data)


def _garble_the_page(bench: Bench) -> None:
    with dashboard(bench.daemon) as dash:
        tab = Tab(dash.url)
        for text in PAGE_GARBAGE:
            with tab.live() as live, contextlib.suppress(ConnectionClosed):
                live.send(text)
                live.recv(PATIENCE_S)
        tab.ask("POST", "/login", ["not a map"] * 2000)
        status, _ = tab.ask("GET", "/session")
        expect(status == 200, f"the page answers {status} afterwards")


def _array(data: bytes, dtype: str, shape: list[int]) -> dict[bytes, Any]:
    """An array as it stands in a message, with whatever is claimed of it."""
    return {b"__ndarray__": True, b"data": data, b"dtype": dtype, b"shape": shape}


def _packed(message: dict[str, Any]) -> bytes:
    data = msgpack.packb(message, use_bin_type=True)
    assert isinstance(data, bytes)
    return data


def strangers(device: Device) -> str:
    bench = Bench(device).start()
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as stack:
        certificate, key, secret = (Path(folder) / name for name in ("certificate", "key", "token"))
        pin, token = auth.make_certificate(certificate, key, hosts=("127.0.0.1",)), auth.make_token(secret)
        tls = auth.server_tls(certificate, key)
        server = stack.enter_context(served(bench.daemon, token=token, tls=tls))
        ours = RobotClient(server.url, token=token, pin=pin, deadline_s=PATIENCE_S, clock=bench.clock.now)
        policy = RemotePolicy(bench, stack.enter_context(ours))
        policy.run(0.4)
        attempts = [*_attempts(server, token=token, pin=pin), *_careless(bench, secret)]
        for word, attempt in attempts:
            _refused(word, attempt)
            policy.run(0.05)
        ours.ask("heartbeat")
        holder = bench.daemon.leases.holder
        expect(holder is not None and holder.generation == policy.generation, "the lease was touched")
    expect(bench.state == State.ACTIVE, f"{bench.state} {bench.supervisor.latched or ''}")
    bench.bounded()
    return (
        f"{len(attempts)} attempts refused: tokens, pins, a second controller, downgrades; lease and motion untouched"
    )


type Attempt = tuple[str, Callable[[], object]]


def _attempts(server: RobotServer, *, token: str, pin: str) -> list[Attempt]:
    """What strangers and a second controller try, and the word with which they are refused."""
    url = server.url

    def ask(kind: str, shown: str | None, **fields: Any) -> None:
        with RobotClient(url, token=shown, pin=pin) as client:
            client.ask(kind, **fields)

    return [
        ("401", lambda: ask("state", "0" * 64)),
        ("401", lambda: ask("state", "")),
        ("unauthorised", lambda: ask("lease", None, client="stranger")),
        ("unauthorised", lambda: ask("reset", None, cause="")),
        ("drives the arm", lambda: ask("lease", token, client="second")),
        ("acquire the lease", lambda: ask("heartbeat", token)),
        ("acquire the lease", lambda: ask("release", token)),
        ("acquire the lease", lambda: ask("activate", token, session="b", align=False)),
        ("acquire the lease", lambda: ask("pause", token, reason="mine now")),
        ("not the pinned", lambda: RobotClient(url, token=token, pin="0" * 64)),
        ("needs `pin`", lambda: RobotClient(url, token=token)),
        ("no connection", lambda: RobotClient(url.replace("wss", "ws"), token=token)),
        ("in the clear", lambda: RobotClient("ws://192.0.2.1:8100", token=token)),
        ("protocol", lambda: _old_tls(url)),
        ("403", lambda: connect(url, ssl=auth.client_tls(), origin=Origin("http://evil.example"), proxy=None)),
    ]


def _careless(bench: Bench, secret: Path) -> list[Attempt]:
    """What an operator may get wrong."""

    def readable() -> None:
        secret.chmod(0o644)
        auth.read_token(secret)

    return [
        ("token and no TLS", lambda: RobotServer(bench.daemon, {}, host="0.0.0.0")),
        ("no TLS", lambda: RobotServer(bench.daemon, {}, host="::", token="x")),
        ("others may read it", readable),
    ]


def _old_tls(url: str) -> None:
    context = auth.client_tls()
    context.minimum_version = ssl.TLSVersion.MINIMUM_SUPPORTED
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    address = (urlsplit(url).hostname or "", urlsplit(url).port or 0)
    with socket.create_connection(address, PATIENCE_S) as plain, context.wrap_socket(plain):
        pass


def _refused(word: str, attempt: Callable[[], object]) -> None:
    try:
        attempt()
    except (GrasplineError, InvalidStatus, ssl.SSLError) as error:
        said = str(error).replace("_", " ").lower()
        expect(word.lower() in said, f"does not say '{word}': {error}")
        return
    expect(False, f"not refused: '{word}'")


CASES = (
    Case(number=57, title="hostile network messages", run=hostile),
    Case(number=58, title="tokens, second controller, downgrade", run=strangers),
)
