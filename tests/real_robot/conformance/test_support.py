"""docs/robot_support.md says what the suite says, in all that does not change from run to run."""

import re
from pathlib import Path

from real_robot.conformance import support
from real_robot.conformance.case import Case
from real_robot.conformance.support import ARMS, COMMAND, HARDWARE_ONLY, HEADINGS, PeerRow, page
from real_robot.conformance.table import Outcome, Verdict, cases

ROOT = Path(__file__).resolve().parents[3]
PAGE = (ROOT / "docs" / "robot_support.md").read_text()


def section(heading: str) -> list[str]:
    return PAGE.split(f"## {heading}\n\n")[1].split("\n\n## ")[0].splitlines()


def table(heading: str) -> list[list[str]]:
    return [line[2:-2].split(" | ") for line in section(heading) if re.match(r"\| (?!---)", line)][1:]


def test_every_case_has_its_row() -> None:
    rows = {int(row[0]): row for row in table("Conformance")}
    assert {number: row[1] for number, row in rows.items()} == {case.number: case.title for case in cases()}
    for case in cases():
        for device, seen in zip(HEADINGS, rows[case.number][2:4], strict=True):
            assert (seen == Verdict.ABSENT) == (device not in case.devices and not case.absent), case.title
            assert seen != Verdict.FAIL, case.title


def test_the_scores_are_those_of_the_table() -> None:
    rows = table("Conformance")
    for column, heading in enumerate(HEADINGS.values(), start=2):
        counted = [row[column] for row in rows if row[column] != Verdict.ABSENT]
        assert f"{heading} twin **{counted.count(Verdict.PASS)}/{len(counted)}**" in PAGE


def test_arms_and_limits_are_those_of_the_module() -> None:
    for arm, row in zip(ARMS, table("Arms"), strict=True):
        assert [row[0], row[1], row[2], row[4]] == [arm.name, arm.driver, arm.twin, arm.note]
    for arm in ARMS:
        path = ROOT / "real_robot" / arm.driver
        assert not arm.driver.endswith(".py") or path.is_file(), arm.driver
    assert section("What only hardware can show") == [f"- {line}" for line in HARDWARE_ONLY]
    assert COMMAND in PAGE and "Not one was run on hardware" in PAGE


def test_a_page_of_outcomes() -> None:
    case = Case(number=7, title="a fault")
    seen = [
        Outcome(case=case, device="sts", verdict=Verdict.ABSENT, detail="cannot exist"),
        Outcome(case=case, device="dxl", verdict=Verdict.PART, detail="one|two", wall_s=60.0),
    ]
    text = page(seen, [PeerRow(number=7, passed=False, detail="jumps")])
    assert "| 7 | a fault | n/a | part | one/two |" in text
    assert "| 7 | a fault | n/a | FAIL | jumps |" in text
    assert "STS twin **not run**, Dynamixel twin **0/1**, in 1.0 minutes" in text
    assert "## lerobot" not in page(seen, [])
    assert support.page([], []).count("not run") >= len(ARMS)
