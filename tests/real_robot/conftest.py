"""A cell that lives: SO-101 twin, wire, driver and daemon on the real clock, ticking in a thread."""

import threading
import time
from collections.abc import Iterator

import pytest

from real_robot.conformance.bench import stored_calibration
from real_robot.core.arms import so101_spec
from real_robot.core.clock import RealClock
from real_robot.core.leases import Leases
from real_robot.daemon import Daemon
from real_robot.drivers.build import so101 as so101_arm
from real_robot.loop import run_loop
from real_robot.twin.arms import so101
from real_robot.twin.link import VirtualLink


@pytest.fixture
def cell() -> Iterator[Daemon]:
    """Torque on, holding, 100 ticks a second."""
    clock = RealClock()
    twin = so101(clock=clock.now)
    link = VirtualLink(twin, sleep_until=clock.sleep_until)
    calibration = stored_calibration(twin, so101_spec(normal_speed=True))
    arm = so101_arm(calibration=calibration, open_port=link.open, clock=clock, normal_speed=True)
    daemon = Daemon({"arm": arm}, clock=clock)
    patient = Leases(heartbeat_s=3.0)  # a busy test machine is no lost controller
    daemon.leases = daemon.sides["arm"].controller.leases = patient
    daemon.connect()
    running = threading.Event()
    running.set()
    loop = threading.Thread(target=run_loop, args=(daemon.tick, clock, daemon.dt_s, running.is_set, daemon.lateness))
    loop.start()
    daemon.enable()
    enough = len(daemon.lateness) + 5  # the loop waited for `enable`: let it count that as its overrun first
    while len(daemon.lateness) < enough:
        time.sleep(0.01)
    yield daemon
    running.clear()
    loop.join()
