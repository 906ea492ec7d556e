"""Verbs of `scripts.robot` that need no arm: the conformance suite and the loop's lateness."""

import functools
import sys
from dataclasses import replace
from pathlib import Path

from omegaconf import DictConfig

from real_robot.conformance.cases_cell import SOAK_HOURS, soak
from real_robot.conformance.lateness import measure
from real_robot.conformance.table import CASES, Outcome, run_case, score
from vla.core.errors import GrasplineError, unknown_name

DEVICES = ("sts", "dxl")


def conformance(config: DictConfig) -> None:
    """Prints the table and `passed/total` last; exit status 0 only when all pass."""
    outcomes, peers = [], []
    numbers = set(config.cases or range(1, 61))
    for device in _devices(config.device):
        for case in CASES:
            if case.number not in numbers:
                continue
            if case.number == 60 and config.soak_hours:
                seconds, missing = 3600.0 * config.soak_hours, case.missing if config.soak_hours < SOAK_HOURS else ""
                case = replace(case, run=functools.partial(soak, seconds=seconds), missing=missing)
            outcomes.append(run_case(case, device))
            print(outcomes[-1], flush=True)
    if config.peer is not None:
        peers = _peer(config.peer, numbers)
    if config.out is not None:
        Path(config.out).write_text(markdown(outcomes, peers))
    passed, total = score(outcomes)
    print(f"{passed}/{total}")
    if passed < total:
        sys.exit(1)


def bench(config: DictConfig) -> None:
    """Prints how late ticks begin, idle and driving a paced twin."""
    for device in _devices(config.device):
        print(f"{device}, {config.busy} busy processes")
        print(measure(device, seconds=config.seconds, num_busy=config.busy))


def markdown(outcomes: list[Outcome], peers: list[tuple[int, bool, str]]) -> str:
    """The tables of docs/real_robot.md."""
    lines = ["| # | fault | device | result | measured |", "|---|---|---|---|---|"]
    lines += [
        f"| {row.case.number} | {row.case.title} | {row.device} | {row.verdict} | {row.detail} |" for row in outcomes
    ]
    if peers:
        ours = {row.case.number: row for row in outcomes if row.device == "sts"}
        lines += ["", "| # | fault | ours | lerobot | what lerobot's stock driver did |", "|---|---|---|---|---|"]
        for number, passed, detail in peers:
            row = ours.get(number)
            title, verdict = (row.case.title, row.verdict) if row else ("", "not run")
            lines.append(f"| {number} | {title} | {verdict} | {'pass' if passed else 'FAIL'} | {detail} |")
    return "\n".join(lines) + "\n"


def _peer(name: str, numbers: set[int]) -> list[tuple[int, bool, str]]:
    """Rows (case, passed, detail) of a stock driver; not in the score, which is ours."""
    if name != "lerobot":
        raise unknown_name("peer", name, ["lerobot"])
    try:
        from real_robot.conformance import lerobot_peer  # an optional extra, behind its own door
    except ImportError as error:
        raise GrasplineError(f"peer=lerobot: lerobot is not installed with its Feetech extra ({error})") from error
    rows = []
    for number in sorted(numbers & set(lerobot_peer.RUNS)):
        passed, detail = lerobot_peer.run_peer(number)
        rows.append((number, passed, " ".join(detail.split()).replace("|", "/")))
        print(f"{number:2d} lerobot {'pass' if passed else 'FAIL'} {rows[-1][2]}", flush=True)
    return rows


def _devices(device: str) -> tuple:
    if device == "all":
        return DEVICES
    if device not in DEVICES:
        raise unknown_name("device", device, [*DEVICES, "all"])
    return (device,)


VERBS = {"conformance": conformance, "bench": bench}
