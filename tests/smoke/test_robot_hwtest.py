"""`hwtest` on a twin: what it asks, what it moves, what it writes."""

import json

import pytest

from real_robot import hwtest
from real_robot.conformance.bench import Bench
from scripts import robot_hwtest
from scripts.entry import compose
from vla.core.errors import GrasplineError


def test_every_step_on_a_virtual_clock(monkeypatch, capsys) -> None:
    """What it measures is in tests/real_robot/test_hwtest.py; here that all of it happens, in this order."""
    monkeypatch.setattr(hwtest, "SWING_S", 2.0)
    monkeypatch.setattr(hwtest, "READS", 20)
    bench = Bench("sts")
    bench.daemon.connect()
    measured: dict[str, hwtest.Numbers] = {}
    robot_hwtest.measure(compose("robot", ["confirm=false", "hold_s=0.5"]), bench.daemon, measured)
    names = bench.spec.names
    assert list(measured) == ["firmware", "link", "enable", "hold", *(f"swing.{name}" for name in names), "stop"]
    assert all(0.1 < measured[f"swing.{name}"]["travel_rad"] < 0.2 for name in names), measured
    assert measured["firmware"] == {str(i): 10.0 for i in range(1, 7)} and measured["stop"]["holds_again"] == 1.0
    said = capsys.readouterr().out
    assert said.index("enable: hold the arm") < said.index("swing shoulder_pan") < said.index("end: support the arm")
    with pytest.raises(robot_hwtest.Ended, match="SIGINT before 'link'"):
        bench.daemon.ending = "SIGINT"
        robot_hwtest.measure(compose("robot", ["confirm=false"]), bench.daemon, {})


@pytest.mark.slow
def test_a_report_of_everything(tmp_path, monkeypatch, capsys) -> None:
    """On the twin, at a fifth of the length; two joints."""
    monkeypatch.setattr(hwtest, "SWING_S", 1.0)
    monkeypatch.setattr(hwtest, "READS", 50)
    out = tmp_path / "reports" / "arm.json"
    config = compose("robot", ["port=twin", "confirm=false", "scene=none", "hold_s=0.5", f"out={out}"])
    robot_hwtest.run_hwtest(config)
    report = json.loads(out.read_text())
    names = ["shoulder_pan", "shoulder_lift", "elbow_flex", "wrist_flex", "wrist_roll", "gripper"]
    assert set(report["measured"]) == {
        *("firmware", "link", "enable", "hold", "stop"),
        *(f"swing.{name}" for name in names),
    }
    assert report["complete"] and report["arm"] == "so101" and set(report["answers"]) == set(robot_hwtest.QUESTIONS)
    assert all(0.1 < report["measured"][f"swing.{name}"]["travel_rad"] < 0.2 for name in names)
    assert report["measured"]["stop"]["latched"] == 1.0
    said = capsys.readouterr().out
    assert said.index("enable: hold the arm") < said.index("swing shoulder_pan") < said.index("end: support the arm")


@pytest.mark.slow
def test_a_report_is_written_even_when_it_ends_early(tmp_path, monkeypatch) -> None:
    def broken(*_: object) -> dict[str, float]:
        raise GrasplineError("the torque did not come on")

    monkeypatch.setattr(hwtest, "enable", broken)
    monkeypatch.setattr(hwtest, "READS", 20)
    out = tmp_path / "arm.json"
    with pytest.raises(GrasplineError, match="did not come on"):
        robot_hwtest.run_hwtest(compose("robot", ["port=twin", "confirm=false", "scene=none", f"out={out}"]))
    report = json.loads(out.read_text())
    assert "link" in report["measured"] and not report["complete"]
    with pytest.raises(GrasplineError, match="out="):
        robot_hwtest.run_hwtest(compose("robot", ["port=twin"]))
