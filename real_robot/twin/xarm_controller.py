"""An xArm's control box on its command socket (502), for the unmodified `xarm-python-sdk`. No report stream.

Frames of UFACTORY's private TCP protocol: transaction (2), protocol (2), length (2), register (1), then parameters; the
answer repeats the four and begins with a status byte: 0x40 error, 0x20 warning, 0x10 not ready to move. Numbers in the
header are big-endian, joint angles little-endian floats. Only what a driver in servo mode (mode 1) needs is here; port
502 needs the right to open it.
"""

import select
import socket
import struct
import threading
import time

JOINTS = 6
PORT, PERIOD_S = 502, 0.004
VERSION = b"6,6,XI130006A1B2C3,AC130006A1B2C3,v1.12.10"
GET_VERSION, MOTION_ENABLE, SET_STATE, GET_STATE, GET_ERROR = 1, 11, 12, 13, 15
CLEAN_ERROR, CLEAN_WARNING, SET_MODE, MOVE_SERVOJ, GET_JOINTS = 16, 17, 19, 29, 42
ERROR_BIT, NOT_READY_BIT, INVALID_BIT = 0x40, 0x10, 0x08
READY, MOVING, STOPPED = 2, 1, 4  # states
SERVO_MODE = 1
COLLISION = 31  # error code: abnormal current
MOST_RAD_S, MOST_RAD_S2, BRAKE_RAD_S2 = 3.14, 20.0, 20.0
REACH_S = 0.03  # in which it would be at its goal, were it fast enough
HEADER = struct.Struct(">HHHB")


class XarmController:
    """See the module; runs in a thread between `start` and `close`. host: any 127.0.0.x; the port is fixed."""

    def __init__(self, host: str = "127.0.0.1", *, q_J: tuple[float, ...] = (0.0, -0.5, -0.6, 0.0, 1.1, 0.0)) -> None:
        self.host = host
        self.q_J, self.qd_J, self.goal_J = list(q_J), [0.0] * JOINTS, list(q_J)
        self.enabled, self.mode, self.state, self.error = False, 0, STOPPED, 0
        self.refused = 0  # setpoints
        self.muted = False  # answers nothing
        self._server: socket.socket | None = None
        self._lines: dict[socket.socket, bytes] = {}
        self._lock = threading.RLock()
        self._open = threading.Event()
        self._thread = threading.Thread(target=self._serve, daemon=True)

    def start(self) -> "XarmController":
        """Raises PermissionError where port 502 may not be opened."""
        self._server = socket.create_server((self.host, PORT))
        self._open.set()
        self._thread.start()
        return self

    def close(self) -> None:
        """The box is gone, and its connections with it."""
        if not self._open.is_set():
            return
        self._open.clear()
        self._thread.join()
        for line in [self._server, *self._lines]:
            if line is not None:
                line.close()

    def __enter__(self) -> "XarmController":
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.close()

    def fail(self, code: int = COLLISION) -> None:
        """An error of the box: it brakes, and takes no motion before the error is cleaned."""
        with self._lock:
            self.error, self.state = code, STOPPED

    def _serve(self) -> None:
        assert self._server is not None
        before_s = time.monotonic()
        while self._open.is_set():
            wait_s = max(0.0, before_s + PERIOD_S - time.monotonic())
            for line in select.select([self._server, *self._lines], [], [], wait_s)[0]:
                if line is self._server:
                    connection, _ = line.accept()
                    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                    self._lines[connection] = b""
                else:
                    self._hear(line)
            now_s = time.monotonic()
            if now_s - before_s >= PERIOD_S:
                with self._lock:
                    self._move(now_s - before_s)
                before_s = now_s

    def _hear(self, line: socket.socket) -> None:
        try:
            data = line.recv(4096)
        except OSError:
            data = b""
        if not data:
            self._lines.pop(line)
            line.close()
            return
        data = self._lines[line] + data
        while len(data) >= HEADER.size:
            transaction, protocol, length, register = HEADER.unpack(data[: HEADER.size])
            if len(data) < 6 + length:
                break
            parameters, data = data[HEADER.size : 6 + length], data[6 + length :]
            if protocol == 1 or self.muted:  # a heartbeat has no answer
                continue
            with self._lock:
                answer = self._carry_out(register, parameters)
                status = (ERROR_BIT if self.error else 0) | (NOT_READY_BIT if self.state == STOPPED else 0)
            if answer is None:
                answer, status = b"", status | INVALID_BIT
            line.sendall(HEADER.pack(transaction, protocol, len(answer) + 2, register) + bytes([status]) + answer)
        self._lines[line] = data

    def _carry_out(self, register: int, parameters: bytes) -> bytes | None:
        """The answer's data, or None for what it does not know."""
        if register == GET_VERSION:
            return VERSION.ljust(40, b"\0")
        if register == GET_STATE:
            return bytes([self.state])
        if register == GET_ERROR:
            return bytes([self.error, 0])
        if register == GET_JOINTS:
            rows = [self.q_J, self.qd_J, [0.0] * JOINTS][: (parameters or b"\x01")[0] & 0x0F]
            return b"".join(struct.pack("<7f", *row, 0.0) for row in rows)
        if register == MOVE_SERVOJ:
            self._take_goal(struct.unpack("<6f", parameters[:24]))
            return b""
        return b"" if self._set(register, parameters) else None

    def _set(self, register: int, parameters: bytes) -> bool:
        if register == MOTION_ENABLE:
            self.enabled = bool(parameters[1])
            self.state = self.state if self.enabled else STOPPED
        elif register == SET_STATE:
            ready = parameters[0] == 0 and self.enabled and not self.error
            self.state = READY if ready else STOPPED
            self.goal_J = list(self.q_J)
        elif register == SET_MODE:
            self.mode = parameters[0]
            self.goal_J = list(self.q_J)
        elif register == CLEAN_ERROR:
            self.error = 0
        elif register != CLEAN_WARNING:
            return False
        return True

    def _take_goal(self, goal_J: tuple[float, ...]) -> None:
        if self.state == STOPPED or self.mode != SERVO_MODE or self.error:
            self.refused += 1
            return
        self.goal_J = list(goal_J)

    def _move(self, dt_s: float) -> None:
        for j in range(JOINTS):
            wanted = 0.0 if self.state == STOPPED else (self.goal_J[j] - self.q_J[j]) / REACH_S
            wanted = min(max(wanted, -MOST_RAD_S), MOST_RAD_S)
            change = dt_s * (BRAKE_RAD_S2 if self.state == STOPPED else MOST_RAD_S2)
            self.qd_J[j] = min(max(wanted, self.qd_J[j] - change), self.qd_J[j] + change)
            self.q_J[j] += self.qd_J[j] * dt_s
        if self.state != STOPPED:
            self.state = MOVING if max(map(abs, self.qd_J)) > 1e-3 else READY
