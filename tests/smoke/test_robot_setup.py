"""New servos get their IDs: one at a time on the cable, as they leave the shop. On a virtual clock."""

from collections.abc import Callable

import pytest

from real_robot.core.clock import VirtualClock
from real_robot.drivers.build import koch, so101
from real_robot.drivers.errors import IdentityError
from real_robot.drivers.servo_arm import ServoArm
from real_robot.protocols import dxl2_table, sts_table
from real_robot.twin import registers_dxl, registers_sts
from real_robot.twin.bus import BusTwin
from real_robot.twin.dxl_bus import DxlBusTwin
from real_robot.twin.link import VirtualLink
from real_robot.twin.motor import MotorModel
from real_robot.twin.physics import FreePlant
from real_robot.twin.registers_dxl import DxlServo
from real_robot.twin.registers_sts import StsServo
from real_robot.twin.sts_bus import StsBusTwin
from scripts import robot_setup
from scripts.entry import compose
from vla.core.errors import GrasplineError

CLOCK = VirtualClock(start_s=10.0)


def sts(*ids: int, baud: int = 0, model: int = 777) -> BusTwin:
    """Servos in a row on one bus."""
    changed = {registers_sts.BAUD: (1, baud), 3: (2, model)}
    servos = [
        StsServo(
            device_id=device_id,
            joint=j,
            clock=CLOCK.now,
            motor=MotorModel(),
            defaults=registers_sts.SHOP | changed | {registers_sts.ID: (1, device_id)},
        )
        for j, device_id in enumerate(ids)
    ]
    return StsBusTwin(servos, FreePlant(len(ids)), clock=CLOCK.now, baud=registers_sts.BAUDS[baud])


def dxl(device_id: int, *, model: int) -> BusTwin:
    """As Robotis delivers them: ID 1 at 57600 baud."""
    changed = {registers_dxl.MODEL: (2, model), registers_dxl.BAUD: (1, 1), registers_dxl.ID: (1, device_id)}
    servo = DxlServo(
        device_id=device_id,
        joint=0,
        clock=CLOCK.now,
        motor=MotorModel(),
        defaults=registers_dxl.SHOP | changed,
    )
    return DxlBusTwin([servo], FreePlant(1), clock=CLOCK.now, baud=57_600)


class Bench:
    """A cable; when the next servo is asked for, the twin of that is on it instead of the last one."""

    def __init__(self, make: Callable[[int], BusTwin]) -> None:
        self.make = make
        self.twins: list[BusTwin] = []
        self.words: list[str] = []

    def plug(self, words: str) -> None:
        self.words.append(words)
        self.twins.append(self.make(len(self.twins)))
        self.link = VirtualLink(self.twins[-1], sleep_until=CLOCK.sleep_until)

    def run(self, *joints: str, arm: Callable[..., ServoArm] = so101) -> None:
        limp = arm(calibration=None, clock=CLOCK)
        robot_setup.guide(limp, lambda baud: self.link.open(baud=baud), joints or None, self.plug)


def test_six_servos_with_the_same_id_become_an_arm(capsys) -> None:
    """The second comes at half the speed, the third has had another ID."""
    shop = {1: lambda: sts(1, baud=1), 2: lambda: sts(9)}
    bench = Bench(lambda n: shop.get(n, lambda: sts(1))())
    bench.run()
    assert [words.split(":")[0] for words in bench.words] == [
        *("gripper", "wrist_roll", "wrist_flex", "elbow_flex", "shoulder_lift", "shoulder_pan"),
    ]
    for twin, device_id in zip(bench.twins, (6, 5, 4, 3, 2, 1), strict=True):
        servo = twin.servo(device_id)
        assert servo.memory[registers_sts.BAUD] == 0 and servo.memory[registers_sts.LOCK] == 1
        servo.reboot()  # what is not in the EEPROM is gone
        assert (servo.device_id, servo.baud) == (device_id, 1_000_000)
    said = capsys.readouterr().out
    assert "was ID 1 at 500000 baud, is ID 5 at 1000000" in said and "was ID 9 at 1000000 baud, is ID 4" in said


def test_without_the_open_lock_a_reboot_forgets_the_id(monkeypatch) -> None:
    """The mutation: EEPROM stays locked, so the ID is only in memory."""
    monkeypatch.setattr(robot_setup, "UNLOCKED", 1)
    bench = Bench(lambda _: sts(1))
    bench.run("gripper")
    servo = bench.twins[0].servo(6)
    servo.reboot()
    assert servo.device_id == 1


def test_a_koch_motor_from_its_own_speed() -> None:
    bench = Bench(lambda _: dxl(1, model=1200))
    bench.run("gripper", arm=koch)
    servo = bench.twins[0].servo(6)
    assert servo.baud == 1_000_000
    servo.reboot()
    assert (servo.device_id, servo.baud) == (6, 1_000_000)


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda _: sts(1, 2), "more than one servo"),
        (lambda _: sts(1, 1), "more than one servo"),
        (lambda _: sts(1, model=2825), "is a sts3250, expected sts3215"),
        (lambda _: dxl(1, model=1200), "no servo answers"),
    ],
)
def test_what_is_on_the_cable_is_not_the_one_servo(make, said: str) -> None:
    bench = Bench(make)
    with pytest.raises(IdentityError, match=said):
        bench.run("gripper")
    assert not bench.twins[0].monitor.num_eeprom_writes


def test_mistakes() -> None:
    with pytest.raises(GrasplineError, match="port="):
        robot_setup.setup(compose("robot", []))
    with pytest.raises(GrasplineError, match="names none of"):
        Bench(lambda _: sts(1)).run("thumb")


def test_speeds_of_both_families_are_looked_at_bus_speed_first() -> None:
    for table in (sts_table, dxl2_table):
        assert robot_setup.BAUD in table.BAUDS.values()
