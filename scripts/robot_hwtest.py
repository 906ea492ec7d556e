"""Verb of `scripts.robot` for owners of an arm: hwtest, what no twin can show, as a report to send or to keep.

It asks before every step, moves one joint at a time by 0.15 rad at no more than 0.24 rad/s, and ends limp. About five
minutes with six joints. The report is JSON: what was measured, what the operator saw, and on what.
"""

import json
import platform
import sys
import time
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from real_robot import hwtest
from real_robot.daemon import Daemon
from real_robot.drivers.servo_arm import ServoArm
from real_robot.loop import first_in_line
from scripts.robot_cell import ARM, cell, confirmation, connected
from scripts.robot_serve import watched
from vla.core.errors import GrasplineError

QUESTIONS = {
    "falls": "When the torque went off, how far did the arm fall, and did it hit anything?",
    "noise": "Did any joint buzz, jerk or smell?",
    "heat": "Is any servo too hot to touch?",
    "supply_switch": "With the switch in the supply line opened now, does everything go dark?",
    "cable": "What happens to the reading when a motor's cable is moved by hand?",
}


class Ended(GrasplineError):  # noqa: N818  (the operator's word, not a program's error)
    """The operator ended the test; what was measured so far is written."""


def run_hwtest(config: DictConfig) -> None:
    """Measures, asks, writes `out=`."""
    if config.out is None:
        raise GrasplineError("out=: name the report's file, such as outputs/hwtest.json")
    report: dict[str, Any] = {"measured": {}, "answers": {}}
    try:
        with cell(config) as one:
            report |= {"arm": one.build().spec.name, "calibration": one.calibration.sha256, "host": _host()}
            with connected(one) as daemon, first_in_line():
                measure(config, daemon, report["measured"])
        for key, question in QUESTIONS.items():
            report["answers"][key] = _answer(config, question)
    finally:
        report["complete"] = set(report["answers"]) == set(QUESTIONS)
        Path(config.out).parent.mkdir(parents=True, exist_ok=True)
        Path(config.out).write_text(json.dumps(report, indent=1) + "\n")
        print(f"report in {config.out}")


def measure(config: DictConfig, daemon: Daemon, measured: dict[str, hwtest.Numbers]) -> None:
    """Every step, into `measured` as it goes. Raises Ended."""
    arm = daemon.sides[ARM].arm
    assert isinstance(arm, ServoArm)

    def step(name: str, words: str) -> None:
        if not watched(daemon, confirmation(config)(f"{name}: {words}")):
            raise Ended(f"ended by {daemon.ending} before '{name}'")

    def note(name: str, numbers: hwtest.Numbers) -> None:
        measured[name] = {key: round(value, 4) for key, value in numbers.items()}
        print("  " + ", ".join(f"{key} {value:g}" for key, value in measured[name].items()), flush=True)

    step("link", f"{hwtest.READS} block reads, nothing moves")
    measured["firmware"] = {f"{i}": float(arm.get(i, _firmware(arm))) for i in arm.ids}
    note("link", hwtest.link(arm, time.monotonic))
    step("enable", "hold the arm: the torque comes on")
    note("enable", hwtest.enable(daemon, ARM))
    step("hold", f"{config.hold_s:g} s of standing still")
    note("hold", hwtest.hold(daemon, ARM, config.hold_s))
    for joint, name in enumerate(arm.spec.names):
        step(f"swing {name}", f"this joint moves by {hwtest.SWING_RAD} rad and back; hands off")
        note(f"swing.{name}", hwtest.swing(daemon, ARM, joint))
    step("stop", "an e-stop, then a reset; nothing should move")
    note("stop", hwtest.stop(daemon, ARM))
    step("end", "support the arm: it parks if it can, then the torque goes off")


def _firmware(arm: ServoArm) -> str:
    return "firmware" if "firmware" in arm.registers else "firmware_minor"


def _answer(config: DictConfig, question: str) -> str:
    print(question, flush=True)
    if not config.confirm:
        return "not asked"
    return sys.stdin.readline().strip()


def _host() -> str:
    return f"{platform.system()} {platform.release()}, Python {platform.python_version()}"


VERBS = {"hwtest": run_hwtest}
