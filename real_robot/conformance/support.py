"""The page docs/robot_support.md: which arms, what was shown for them and by what, and what no test can show here.

What is special: verdicts and figures come from a run of the suite. What does not (arms, titles, what only hardware can
show) stands in this module, and a test compares it with the page.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from real_robot.conformance.bench import Device
from real_robot.conformance.table import Outcome, Verdict, score

COMMAND = "python -m scripts.robot conformance device=all peer=lerobot out=docs/robot_support.md"
HEADINGS: dict[Device, str] = {"sts": "STS", "dxl": "Dynamixel"}
HARDWARE_ONLY = (
    "latency, jitter and resets of USB adapters and hubs",
    "electrical noise, bad crimps, a supply that sags under load; a baud rate that is really a little off",
    "backlash, flex and wear of gears; how long windings and gears take to heat and to cool",
    "forces: of grips, of collisions, of an arm that falls when the torque goes",
    "undocumented firmware: STS torque value 2 (damping), STS return delay, how fast an overloaded servo recovers",
    "whether every Dynamixel firmware answers a block that begins in undefined registers (91 to 97)",
    "cameras: exposure, rolling shutter, drivers that stop counting, USB bandwidth shared by two of them",
    "a foot pedal and a gamepad of flesh and plastic: here they are the bytes that such devices send",
    "that a person reaches the stop in time: nothing here is safety-rated or replaces a switch in the supply line",
)


@dataclass(frozen=True, kw_only=True)
class SupportedArm:
    """device: the twin on which the suite stands for it, or None where it was not run."""

    name: str
    driver: str
    twin: str
    device: Device | None
    note: str


@dataclass(frozen=True, kw_only=True)
class PeerRow:
    """What a stock driver did in a case."""

    number: int
    passed: bool
    detail: str


ARMS = (
    SupportedArm(
        name="SO-100, SO-101: follower and leader (6 x STS3215)",
        driver="drivers/sts_arm.py",
        twin="twin/arms.so101",
        device="sts",
        note="packets, registers and lerobot's bus checked against the vendor's SDK",
    ),
    SupportedArm(
        name="two SO-101 as one cell",
        driver="the same, one daemon",
        twin="two of them",
        device="sts",
        note="case 51",
    ),
    SupportedArm(
        name="Koch v1.1 (2 x XL430, 4 x XL330)",
        driver="drivers/dxl_arm.py",
        twin="twin/arms.koch",
        device="dxl",
        note="collisions by a model of primitive shapes",
    ),
    SupportedArm(
        name="WidowX-250, ViperX-300, ALOHA",
        driver="drivers/interbotix.py",
        twin="twin/arms",
        device=None,
        note="second motors by shadow ID; tests of their own on the Dynamixel twin",
    ),
    SupportedArm(
        name="UR5e",
        driver="drivers/ur.py",
        twin="twin/ur_controller",
        device=None,
        note="through the unmodified ur-rtde on the controller's sockets; case 59",
    ),
    SupportedArm(
        name="Franka FR3",
        driver="drivers/franka.py",
        twin="franky-sim",
        device=None,
        note="through the unmodified franky on libfranka's protocol; tests of its own",
    ),
    SupportedArm(
        name="xArm",
        driver="drivers/xarm.py",
        twin="twin/xarm_controller",
        device=None,
        note="through the unmodified xarm-python-sdk on the box's socket; tests of its own",
    ),
)


def page(outcomes: Sequence[Outcome], peers: Sequence[PeerRow]) -> str:
    """The whole page, as Markdown."""
    parts = [
        "# Supported arms, and what shows it",
        f"Written by `{COMMAND}`; do not edit. Every row ran against a wire-level twin (servo registers behind their\n"
        "protocol, on a virtual clock), real sockets, files and processes. **Not one was run on hardware.**",
        "## Arms",
        _table(["arm", "driver", "twin", "suite", "note"], [_arm(arm, outcomes) for arm in ARMS]),
        "## Conformance",
        f"{_scores(outcomes)}. A row whose fault cannot exist on a device is left out of its total (n/a); `part` and\n"
        "`not built` count as not passed.",
        _table(["#", "fault", *HEADINGS.values(), "measured (STS; Dynamixel where it has none)"], _rows(outcomes)),
    ]
    if peers:
        parts += [
            "## lerobot's stock driver",
            "`SO101Follower`, its time-outs longer by a second, else unmodified, on the STS twin behind a\n"
            "pseudo-terminal in real time, judged by the same requirement. Most other rows have no counterpart in it.",
            _table(["#", "fault", "ours", "lerobot", "what it did"], [_peer(row, outcomes) for row in peers]),
        ]
    parts += ["## What only hardware can show", "\n".join(f"- {line}" for line in HARDWARE_ONLY)]
    return "\n\n".join(parts) + "\n"


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    return "\n".join(f"| {' | '.join(row)} |" for row in [head, ["---"] * len(head), *rows])


def _arm(arm: SupportedArm, outcomes: Sequence[Outcome]) -> list[str]:
    return [arm.name, arm.driver, arm.twin, _score(outcomes, arm.device), arm.note]


def _score(outcomes: Sequence[Outcome], device: Device | None) -> str:
    passed, total = score(outcome for outcome in outcomes if outcome.device == device)
    return f"{passed}/{total}" if total else "not run"


def _scores(outcomes: Sequence[Outcome]) -> str:
    told = [f"{heading} twin **{_score(outcomes, device)}**" for device, heading in HEADINGS.items()]
    minutes = sum(outcome.wall_s for outcome in outcomes if outcome.case.number != 60) / 60.0
    return f"{', '.join(told)}, in {minutes:.1f} minutes without the soak"


def _rows(outcomes: Sequence[Outcome]) -> list[list[str]]:
    cases = {outcome.case.number: outcome.case for outcome in outcomes}
    by_row = {(outcome.case.number, outcome.device): outcome for outcome in outcomes}
    rows = []
    for number, case in sorted(cases.items()):
        found = [by_row.get((number, device)) for device in HEADINGS]
        ran = [outcome for outcome in found if outcome is not None and outcome.verdict != Verdict.ABSENT]
        detail = ran[0].detail.replace("|", "/") if ran else ""
        rows.append([str(number), case.title, *(str(one.verdict) if one else "not run" for one in found), detail])
    return rows


def _peer(row: PeerRow, outcomes: Sequence[Outcome]) -> list[str]:
    ours = next((one for one in outcomes if one.case.number == row.number and one.device == "sts"), None)
    title, verdict = (ours.case.title, str(ours.verdict)) if ours else ("", "not run")
    return [str(row.number), title, verdict, "pass" if row.passed else "FAIL", row.detail]
