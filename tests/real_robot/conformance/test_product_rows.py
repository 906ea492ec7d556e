"""The rows that need more than the cell: people, pictures, files, sockets. Each can fail."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from real_robot.cameras import frames, v4l2, watch
from real_robot.cameras.watch import Watch
from real_robot.conformance import cases_record, table
from real_robot.conformance.bench import Device
from real_robot.conformance.table import Verdict, run_case, run_suite, score
from real_robot.core import controller
from real_robot.core.leases import Lease, Leases
from real_robot.dash import app
from real_robot.dash.app import Dashboard
from real_robot.record.recorder import Recorder
from real_robot.serve import auth
from real_robot.serve.server import RobotServer
from real_robot.teleop import leader
from vla.core.types import Episode
from vla.data.staging import SUFFIX, _encode

robot_conformance = pytest.importorskip("scripts.robot_conformance")
PRODUCT = robot_conformance.PRODUCT
BY_NUMBER = {case.number: case for case in table.cases(PRODUCT)}


def verdict(number: int, device: Device = "sts") -> tuple[Verdict, str]:
    outcome = run_case(BY_NUMBER[number], device)
    return outcome.verdict, str(outcome)


@pytest.mark.parametrize("number", [44, 45, 46, 48, 49, 58])
def test_they_pass(number: int) -> None:
    seen, line = verdict(number)
    assert seen == Verdict.PASS, line


@pytest.mark.slow
@pytest.mark.parametrize("device", ["sts", "dxl"])
def test_whole_suite(device: Device) -> None:
    outcomes = list(run_suite(BY_NUMBER.values(), [device]))
    failed = [str(outcome) for outcome in outcomes if outcome.verdict == Verdict.FAIL]
    assert not failed, "\n".join(failed)
    open_rows = [outcome.case.number for outcome in outcomes if outcome.verdict in (Verdict.PART, Verdict.NOT_BUILT)]
    assert set(open_rows) <= {38, 59, 60}
    assert score(outcomes)[1] == (57 if device == "sts" else 60)


def _deaf_page(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Dashboard, "_press", lambda *_: None)


def _patient_page(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(app, "DEADMAN_S", 2.0)


def _blind_watch(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Watch, "fault", lambda *_: None)


def _frozen_is_fine(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(frames, "frozen", lambda *_: False)


def _dark_is_fine(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(frames, "black", lambda _: False)


def _hasty_watch(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(watch, "PATIENCE_S", 2.0)


def _bound_to_numbers(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(v4l2, "_serial", lambda node: {"video0": "F7", "video2": "A1"}.get(node.name, ""))


def _jumps_are_fine(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(leader, "JUMP_RAD", 10.0)


def _anywhere_is_near(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(controller, "needs_alignment", lambda *_: False)


def _no_mark(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Recorder, "intervention", property(lambda _: False, lambda *_: None), raising=False)


def _any_token(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(auth, "same_token", lambda *_: True)


def _anybody_drives(patch: pytest.MonkeyPatch) -> None:
    def acquire(self: Leases, client: str, now_s: float) -> Lease:
        self._generation += 1
        self._lease, self._beat_s = Lease(client=client, token="t", generation=self._generation), now_s
        return self._lease

    patch.setattr(Leases, "acquire", acquire)


@pytest.mark.parametrize(
    ("number", "broken"),
    [
        (39, _patient_page),
        (44, _blind_watch),
        (44, _frozen_is_fine),
        (44, _dark_is_fine),
        (44, _hasty_watch),
        (45, _bound_to_numbers),
        (46, _jumps_are_fine),
        (47, _anywhere_is_near),
        (48, _no_mark),
        (58, _any_token),
        (58, _anybody_drives),
    ],
)
def test_a_protection_that_is_taken_out_is_missed(
    number: int, broken: Callable[[pytest.MonkeyPatch], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    broken(monkeypatch)
    seen, line = verdict(number)
    assert seen == Verdict.FAIL, line


@pytest.mark.slow
def test_a_page_that_does_not_stop_is_missed(monkeypatch: pytest.MonkeyPatch) -> None:
    _deaf_page(monkeypatch)
    assert verdict(38)[0] == Verdict.FAIL


@pytest.mark.slow
def test_a_server_that_keeps_talking_to_garbage_is_missed(monkeypatch: pytest.MonkeyPatch) -> None:
    answer = RobotServer._answer

    async def patient(self: RobotServer, *args: object) -> tuple[object, bool]:
        return (await answer(self, *args))[0], False  # type: ignore[arg-type]

    monkeypatch.setattr(RobotServer, "_answer", patient)
    assert verdict(57)[0] == Verdict.FAIL


def test_half_an_episode_under_its_final_name_is_missed() -> None:
    """A writer without a temporary file: what a full disk then leaves is half an episode."""

    def write(folder: Path, name: str, episode: Episode) -> None:
        with (folder / f"{name}{SUFFIX}").open("wb") as file:
            file.write(_encode(episode))

    careless = replace(PRODUCT, write=write)
    case = next(case for case in cases_record.cases(careless) if case.number == 49)
    outcome = run_case(case, "sts")
    assert outcome.verdict == Verdict.FAIL and "truncated" in outcome.detail
