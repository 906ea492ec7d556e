"""A UR controller on its three sockets: RTDE (30004), scripts (30003), dashboard (29999). For the unmodified `ur-rtde`.

Special: it does not interpret URScript. It knows the control program that ur-rtde uploads by its text, takes the number
of each command from there, and does what the program's register loop would: servoj, servo stop, watchdog, stop. RTDE is
written from Universal Robots' guide (version 2, big-endian): recipes, data packages, registers. The motors are a
first-order servo with bounded acceleration; what counts here is what the controller says and when it stops.
"""

import json
import re
import select
import socket
import struct
import sys
import threading
import time
from dataclasses import dataclass, field

JOINTS = 6
PERIOD_S = 0.002
PORT_RTDE, PORT_SCRIPT, PORT_DASHBOARD = 30004, 30003, 29999
VERSION = (5, 11, 0, 108249)
STOPPED, PLAYING = 1, 2  # runtime_state
READY, DONE = 1, 2  # what the control program says in output_int_register_0
NORMAL_BIT, PROTECTIVE_BIT, EMERGENCY_BIT = 0x1, 0x4, 0x80  # of safety_status_bits
MOST_RAD_S, MOST_RAD_S2 = 3.14, 25.0
BRAKE_RAD_S2 = {"servo_stop": 10.0, "stop": 5.0, "protective": 30.0}
FORMATS = {
    "DOUBLE": "d",
    "VECTOR6D": "6d",
    "VECTOR3D": "3d",
    "VECTOR6INT32": "6i",
    "UINT64": "Q",
    "UINT32": "I",
    "INT32": "i",
    "UINT8": "B",
}
# What a command does -> what the program prints for it, from which its number is read.
COMMANDS = {"servoj": "servo_target", "servo_stop": "servo_stop", "watchdog": "set_watchdog", "stop": "stop script"}


def type_of(name: str) -> str:
    """RTDE's type of a variable; NOT_FOUND for a name that it does not have."""
    kinds = {
        r"(in|out)put_double_register_\d+|timestamp|speed_scaling": "DOUBLE",
        r"target_(q|qd|qdd|current|moment|TCP_pose|TCP_speed)|actual_(q|qd|current|TCP_pose|TCP_speed|TCP_force)"
        r"|joint_temperatures|actual_joint_voltage|joint_control_output": "VECTOR6D",
        r"robot_status_bits|safety_status_bits|runtime_state": "UINT32",
        r"(in|out)put_int_register_\d+|robot_mode|safety_mode|safety_status": "INT32",
        r"actual_digital_(in|out)put_bits": "UINT64",
        r"joint_mode": "VECTOR6INT32",
    }
    return next((kind for pattern, kind in kinds.items() if re.fullmatch(pattern, name)), "NOT_FOUND")


@dataclass(kw_only=True)
class _Client:
    """One connection to port 30004."""

    line: socket.socket
    received: bytes = b""
    outputs: list[str] = field(default_factory=list)
    inputs: dict[int, list[str]] = field(default_factory=dict)
    started: bool = False


class UrController:
    """See the module; runs in a thread between `start` and `close`. host: any 127.0.0.x; ports are fixed."""

    def __init__(
        self, host: str = "127.0.0.1", *, q_J: tuple[float, ...] = (0.0, -1.57, 1.57, -1.57, -1.57, 0.0)
    ) -> None:
        self.host = host
        self.q_J, self.qd_J, self.target_J = list(q_J), [0.0] * JOINTS, list(q_J)
        self.registers: dict[str, float] = {}
        self.runtime, self.safety_bits = STOPPED, NORMAL_BIT
        self.muted = False  # sends no more states
        self.commands: dict[str, int] = {}
        self.uploads = 0
        self._servoing = self._done = False
        self._lookahead_s, self._brake = 0.1, BRAKE_RAD_S2["stop"]
        self._watchdog_s, self._fed_s = float("inf"), 0.0
        self._script = ""
        self._clients: list[_Client] = []
        self._lock = threading.RLock()
        self._open = threading.Event()
        self._servers: dict[int, socket.socket] = {}
        self._others: dict[socket.socket, int] = {}  # script and dashboard connections
        self._thread = threading.Thread(target=self._serve, daemon=True)

    def start(self) -> "UrController":
        for port in (PORT_RTDE, PORT_SCRIPT, PORT_DASHBOARD):
            server = socket.create_server((self.host, port))
            server.setblocking(False)
            self._servers[port] = server
        self._open.set()
        self._thread.start()
        return self

    def close(self) -> None:
        """The controller is gone, and its connections with it."""
        self._open.clear()
        self._thread.join()
        for line in [*self._servers.values(), *self._others, *(client.line for client in self._clients)]:
            line.close()

    def __enter__(self) -> "UrController":
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.close()

    # faults

    def protective_stop(self) -> None:
        """As after a collision: the arm brakes, the program ends, and only the dashboard unlocks."""
        with self._lock:
            self.safety_bits = PROTECTIVE_BIT
            self._end_program("protective")

    def emergency_stop(self) -> None:
        with self._lock:
            self.safety_bits = EMERGENCY_BIT
            self._end_program("protective")

    # the clockwork

    def _serve(self) -> None:
        due_s = time.monotonic()
        while self._open.is_set():
            due_s = max(due_s + PERIOD_S, time.monotonic() - 0.05)
            with self._lock:
                self._accept()
                self._listen()
                self._program(time.monotonic())
                self._move()
                self._send_states()
            time.sleep(max(0.0, due_s - time.monotonic()))

    def _program(self, now_s: float) -> None:
        """One turn of the control program's loop."""
        if self.runtime != PLAYING:
            return
        if now_s - self._fed_s > self._watchdog_s:
            self._end_program("stop")
            return
        command = int(self.registers.get("input_int_register_0", 0))
        done = {number: name for name, number in self.commands.items()}.get(command, "")
        if done == "servoj":
            self.target_J = [self._input(i) for i in range(JOINTS)]
            self._lookahead_s, self._servoing, self._done = max(self._input(9), 0.03), True, False
        elif done == "stop":
            self._end_program("stop")
        elif command and not self._done:
            if done == "servo_stop":
                self._servoing, self._brake = False, self._input(0) or BRAKE_RAD_S2["servo_stop"]
            elif done == "watchdog":
                self._watchdog_s, self._fed_s = 1.0 / self._input(0), now_s
            self._done = True
        elif not command:
            self._done = False
        self.registers["output_int_register_0"] = DONE if self._done else READY

    def _input(self, index: int) -> float:
        return self.registers.get(f"input_double_register_{index}", 0.0)

    def _end_program(self, why: str) -> None:
        self.runtime, self._servoing, self._brake = STOPPED, False, BRAKE_RAD_S2[why]
        self._watchdog_s, self.registers["output_int_register_0"] = float("inf"), 0

    def _move(self) -> None:
        for j in range(JOINTS):
            if self._servoing:
                wanted = (self.target_J[j] - self.q_J[j]) / self._lookahead_s
                change = MOST_RAD_S2 * PERIOD_S
            else:
                wanted, change = 0.0, self._brake * PERIOD_S
            wanted = min(max(wanted, -MOST_RAD_S), MOST_RAD_S)
            self.qd_J[j] = min(max(wanted, self.qd_J[j] - change), self.qd_J[j] + change)
            self.q_J[j] += self.qd_J[j] * PERIOD_S

    # RTDE

    def _accept(self) -> None:
        for line in select.select(list(self._servers.values()), [], [], 0)[0]:
            port = line.getsockname()[1]
            connection, _ = line.accept()
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            if port == PORT_RTDE:
                self._clients.append(_Client(line=connection))
            else:
                self._others[connection] = port
            if port == PORT_DASHBOARD:
                connection.sendall(b"Connected: Universal Robots Dashboard Server\n")

    def _listen(self) -> None:
        lines = {client.line: client for client in self._clients}
        for line in select.select([*lines, *self._others], [], [], 0)[0]:
            try:
                data = line.recv(65536)
            except OSError:
                data = b""
            if not data:
                self._clients = [client for client in self._clients if client.line is not line]
                self._others.pop(line, None)
                line.close()
            elif line in lines:
                self._hear(lines[line], data)
            elif self._others[line] == PORT_SCRIPT:
                self._upload(data.decode())
            else:
                for question in data.decode().splitlines():
                    line.sendall(self._dashboard(question.strip()).encode() + b"\n")

    def _hear(self, client: _Client, data: bytes) -> None:
        client.received += data
        while len(client.received) >= 3:
            size, kind = struct.unpack(">HB", client.received[:3])
            if len(client.received) < size:
                return
            payload, client.received = client.received[3:size], client.received[size:]
            answer = self._answer(client, chr(kind), payload)
            if answer is not None:
                _send(client, kind, answer)

    def _answer(self, client: _Client, kind: str, payload: bytes) -> bytes | None:
        if kind == "V":
            return b"\x01"
        if kind == "v":
            return struct.pack(">4I", *VERSION)
        if kind == "O":
            client.outputs = [name for name in payload[8:].decode().split(",") if name]
            return b"\x01" + ",".join(map(type_of, client.outputs)).encode()
        if kind == "I":
            names = [name for name in payload.decode().split(",") if name]
            client.inputs[len(client.inputs) + 1] = names
            kinds = ["UINT8" if "mask" in name or "digital" in name else type_of(name) for name in names]
            return bytes([len(client.inputs)]) + ",".join(kinds).encode()
        if kind in "SP":
            client.started = kind == "S"
            return b"\x01"
        if kind == "U":
            self._take_inputs(client.inputs[payload[0]], payload[1:])
        return None

    def _take_inputs(self, names: list[str], data: bytes) -> None:
        kinds = ["UINT8" if type_of(name) == "NOT_FOUND" else type_of(name) for name in names]
        values = struct.unpack(">" + "".join(FORMATS[kind] for kind in kinds), data)
        self.registers.update(zip(names, values, strict=True))
        if "input_int_register_0" in names:
            self._fed_s = time.monotonic()

    def _send_states(self) -> None:
        for client in self._clients:
            if client.started and not self.muted:
                kinds = [type_of(name) for name in client.outputs]
                values = [value for name in client.outputs for value in self._value(name)]
                packed = struct.pack(">" + "".join(FORMATS[kind] for kind in kinds), *values)
                _send(client, ord("U"), b"\x01" + packed)

    def _value(self, name: str) -> tuple[float, ...]:
        known: dict[str, tuple[float, ...]] = {
            "timestamp": (time.monotonic(),),
            "actual_q": tuple(self.q_J),
            "actual_qd": tuple(self.qd_J),
            "target_q": tuple(self.target_J),
            "joint_temperatures": (35.0,) * JOINTS,
            "actual_joint_voltage": (48.0,) * JOINTS,
            "robot_status_bits": (0x1 | (0x2 if self.runtime == PLAYING else 0),),
            "safety_status_bits": (self.safety_bits,),
            "runtime_state": (self.runtime,),
            "robot_mode": (7,),
            "safety_mode": (1 if self.safety_bits == NORMAL_BIT else 3,),
            "speed_scaling": (1.0,),
        }
        if name in known:
            return known[name]
        if "register" in name:
            value = self.registers.get(name, 0)
            return (value if "double" in name else int(value),)
        return (0,) * (JOINTS if type_of(name) in ("VECTOR6D", "VECTOR6INT32") else 1)

    # scripts and dashboard

    def _upload(self, text: str) -> None:
        """Collects a program; the control program starts when its last line is there."""
        self._script += text
        if "Control Script Terminated" not in self._script or self.safety_bits != NORMAL_BIT:
            return
        rows = re.split(r"(?:el)?if cmd == (\d+):", self._script)
        for name, words in COMMANDS.items():
            numbers = [int(n) for n, body in zip(rows[1::2], rows[2::2]) if words in body]
            self.commands[name] = numbers[0]
        self._script, self.runtime, self._fed_s = "", PLAYING, time.monotonic()
        self.uploads += 1

    def _dashboard(self, question: str) -> str:
        if question == "unlock protective stop":
            if self.safety_bits == PROTECTIVE_BIT:
                self.safety_bits = NORMAL_BIT
            return "Protective stop releasing"
        if question == "stop":
            self._end_program("stop")
            return "Stopped"
        answers = {
            "PolyscopeVersion": "URSoftware {}.{}.{}.{} (Oct 01 2021)".format(*VERSION),
            "get serial number": "20215500000",
            "is in remote control": "true",
            "robotmode": "Robotmode: RUNNING",
            "safetystatus": "Safetystatus: " + ("NORMAL" if self.safety_bits == NORMAL_BIT else "PROTECTIVE_STOP"),
        }
        return answers.get(
            question, "showing popup" if question.startswith("popup") else f"could not understand: {question}"
        )


def _send(client: _Client, kind: int, payload: bytes) -> None:
    """A client that is gone is noticed when it is read."""
    try:
        client.line.sendall(struct.pack(">HB", len(payload) + 3, kind) + payload)
    except OSError:
        client.started = False


def main(host: str) -> None:
    """A process of its own, which ur-rtde needs: its calls hold the interpreter's lock while they wait for an answer.

    Reads a word a line (protective_stop, emergency_stop, mute, state) and answers each with what the controller is at.
    """
    with UrController(host) as controller:
        _say("ready")
        for line in sys.stdin:
            word = line.strip()
            controller.muted |= word == "mute"
            if word in ("protective_stop", "emergency_stop"):
                getattr(controller, word)()
            keys = ("q_J", "qd_J", "runtime", "uploads", "commands")
            _say(json.dumps({key: getattr(controller, key) for key in keys}))


def _say(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main(sys.argv[1])
