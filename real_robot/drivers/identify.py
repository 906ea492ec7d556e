"""Who is on the bus, against who should be: a table with one line per ID, in well under two seconds."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from real_robot.drivers.bus import Bus
from real_robot.drivers.errors import BusError, IdentityError
from real_robot.drivers.servo import Servo
from real_robot.protocols.rows import Register

TRIES = 2
STRANGERS = range(1, 16)  # IDs that are looked at when one is missing


@dataclass(frozen=True, kw_only=True)
class Found:
    """One servo that answers. `answers`: 2 when two servos share the ID."""

    device_id: int
    model: int
    firmware: tuple[int, ...]
    answers: int = 1


@dataclass(frozen=True, kw_only=True)
class Table:
    """What a bus holds. strangers: IDs that answer and were not asked for."""

    found: Mapping[int, Found]
    strangers: tuple[int, ...] = ()
    wanted: Mapping[int, frozenset[int]] = field(default_factory=dict)

    def problems(self) -> dict[int, str]:
        """By ID, what is wrong with it."""
        wrong = {}
        for device_id, models in self.wanted.items():
            found = self.found.get(device_id)
            if found is None:
                wrong[device_id] = "no answer"
            elif found.answers > 1:
                wrong[device_id] = "two servos share this ID: they answered differently or twice"
            elif found.model not in models:
                wrong[device_id] = f"model {found.model}, expected one of {sorted(models)}"
            elif len({f.firmware for f in self.found.values() if f.model == found.model}) > 1:
                wrong[device_id] = f"firmware {'.'.join(map(str, found.firmware))}, others of its model differ"
        return wrong

    def check(self, names: Mapping[int, str]) -> None:
        """Raises IdentityError with the whole table unless every servo is as expected."""
        wrong = self.problems()
        if not wrong:
            return
        lines = [f"  ID {i:3d} {names.get(i, ''):14s} {wrong.get(i, 'ok')}" for i in self.wanted]
        lines += [f"  ID {i:3d} {'':14s} answers, but belongs to no joint" for i in self.strangers]
        hint = "" if self.found else "\nnobody answers: power, cable or baud (python -m scripts.robot find)"
        raise IdentityError("the servos on the bus are not those of this arm:\n" + "\n".join(lines) + hint)


def identify(bus: Bus, servos: Sequence[Servo], registers: Mapping[str, Register], identity_size: int) -> Table:
    """Pings every expected ID, reads model and firmware, and looks for strangers when one is missing."""
    wanted = {i: servo.models for servo in servos for i in servo.motors}
    found: dict[int, Found] = {}
    for device_id in wanted:
        for _ in range(TRIES):
            if (one := look(bus, device_id, registers, identity_size)) is not None:
                found[device_id] = one
                break
    strangers: tuple[int, ...] = ()
    if found and len(found) < len(wanted):
        strangers = tuple(bus.scan([i for i in STRANGERS if i not in wanted], data_size=identity_size))
    return Table(found=found, strangers=strangers, wanted=wanted)


def look(bus: Bus, device_id: int, registers: Mapping[str, Register], identity_size: int) -> Found | None:
    """Model and firmware of one ID; None when it does not answer."""
    answers = bus.ping(device_id, data_size=identity_size)
    if not answers:
        return None
    names = ("firmware",) if "firmware" in registers else ("firmware_major", "firmware_minor")
    for _ in range(TRIES):
        try:
            model, *firmware = (_register(bus, device_id, registers[name]) for name in ("model", *names))
            return Found(device_id=device_id, model=model, firmware=tuple(firmware), answers=len(answers))
        except BusError:
            continue
    # it answers to PING and garbles the rest: two servos of one ID talk at the same time
    return Found(device_id=device_id, model=-1, firmware=(), answers=max(2, len(answers)))


def _register(bus: Bus, device_id: int, row: Register) -> int:
    return row.unpack(bus.read(device_id, row.address, row.width).data)
