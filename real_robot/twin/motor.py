"""One geared servo motor behind the registers: profile generator, PD on duty, torque-speed line, winding temperature.

Everything is in encoder counts, as in the servo's own firmware; torque comes out in N m. Equations: a trapezoidal
profile whose speed obeys the exact discrete braking law v = (-a dt + sqrt((a dt)^2 + 8 a d)) / 2; duty = kp e + kd
de/dt, clipped; torque = stall (duty supply - w/w0); dT/dt = (T_room + c i^2 - T) / tau.
"""

import math
from dataclasses import dataclass

COUNTS_PER_TURN = 4096
COUNTS_PER_RAD = COUNTS_PER_TURN / (2.0 * math.pi)


@dataclass(frozen=True, kw_only=True)
class MotorModel:
    """Constants of a motor and its gear at its nominal voltage. Defaults: STS3215 at 12 V.

    heating_k_a2: steady rise above the room per ampere squared.
    """

    stall_torque_nm: float = 2.94
    no_load_rad_s: float = 4.72
    stall_current_a: float = 2.4
    nominal_v: float = 12.0
    room_c: float = 25.0
    heating_k_a2: float = 25.0
    heating_tau_s: float = 120.0


@dataclass(kw_only=True)
class Command:
    """What the registers ask of the motor, in counts of the present-position register.

    torque: 0 free, 1 on, 2 damping (terminals shorted). Limits of 0 speed or acceleration mean none.
    """

    torque: int = 0
    goal: float = 0.0
    max_speed: float = math.inf
    max_acceleration: float = math.inf
    kp: float = 0.0
    kd: float = 0.0
    duty_limit: float = 1.0


class Motor:
    """State of one motor. `step` returns the torque on the joint, signed as the counts are."""

    def __init__(self, model: MotorModel) -> None:
        self.model = model
        self.reference = 0.0
        self.reference_speed = 0.0
        self.duty = 0.0
        self.current_a = 0.0
        self.temperature_c = model.room_c + 5.0

    def hold(self, counts: float) -> None:
        """Makes the profile start here, at rest."""
        self.reference, self.reference_speed = counts, 0.0

    def step(self, command: Command, measured: float, speed_rad_s: float, supply: float, dt_s: float) -> float:
        """One tick. measured: counts as the encoder shows them; speed_rad_s: of the joint, signed as the counts.

        supply: voltage as a share of the nominal one.
        """
        model = self.model
        slip = speed_rad_s / model.no_load_rad_s
        if command.torque == 1:
            self.reference, self.reference_speed = profile(
                self.reference, self.reference_speed, command.goal, command.max_speed, command.max_acceleration, dt_s
            )
            error = self.reference - measured
            damping = self.reference_speed - speed_rad_s * COUNTS_PER_RAD
            duty = command.kp * error + command.kd * damping
            self.duty = min(max(duty, -command.duty_limit), command.duty_limit)
            drive = self.duty * supply - slip
        else:
            self.hold(measured)
            self.duty = 0.0
            drive = -slip if command.torque == 2 else 0.0
        self.current_a = model.stall_current_a * abs(drive)
        heated_c = model.room_c + model.heating_k_a2 * self.current_a * self.current_a
        self.temperature_c += (heated_c - self.temperature_c) * dt_s / model.heating_tau_s
        return model.stall_torque_nm * drive


def profile(
    position: float, speed: float, goal: float, max_speed: float, max_acceleration: float, dt_s: float
) -> tuple[float, float]:
    """Next (position, speed) of the generator, which reaches `goal` without passing it."""
    distance = goal - position
    wanted = min(abs(distance) / dt_s, max_speed)
    if math.isfinite(max_acceleration):
        change = max_acceleration * dt_s
        brake = (math.sqrt(change * change + 8.0 * max_acceleration * abs(distance)) - change) / 2.0
        wanted = math.copysign(min(wanted, brake), distance)
        speed = min(max(wanted, speed - change), speed + change)
    else:
        speed = math.copysign(wanted, distance)
    return position + speed * dt_s, speed
