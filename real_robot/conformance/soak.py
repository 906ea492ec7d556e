"""Case 60: hours of a working cell on a virtual clock, one tick in a hundred with a fault of some kind.

What is special: hours are split into pieces of half an hour with a seed and a process each. A piece stands alone, so
its faults can be had again from its seed; what only adds up over more than half an hour is not seen.
"""

import gc
import multiprocessing
import os
import random
import threading
from collections import Counter
from collections.abc import Callable, Mapping
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from real_robot.conformance.bench import Bench, Device, expect
from real_robot.core.faults import FaultCode, GrasplineError, fault
from real_robot.core.supervisor import State
from real_robot.twin.dxl_bus import DxlBusTwin

PIECE_S = 1800.0
SETTLED_S = 600.0  # histories of bounded length are full by then
MAX_GROWTH_MB = 8.0
BURST_S, SHARE = 0.2, 0.2  # every fifth burst of 20 ticks: one tick in a hundred

type Dice = random.Random


@dataclass(frozen=True, kw_only=True)
class Soaked:
    """What a run went through. `stops`: times an operator was needed; `growth_mb`: of memory once settled."""

    seconds: float
    faults: int
    stops: int
    kinds: Counter[str]
    growth_mb: float = 0.0


def soak(device: Device, *, seconds: float, seed: int = 0) -> Soaked:
    """Raises CaseFailed where the cell sticks, leaks, or breaks an invariant of the bench."""
    bench, dice, kinds = Bench(device, seed=seed).moving(), random.Random(seed), Counter()
    bench.judge_speed = False  # an encoder that lies drives the servo's own loop
    left, before = _left_open(), _memory_mb()
    start_s, stops, settled = bench.now, 0, False
    while bench.now < start_s + seconds:
        bench.reports.clear()
        if not settled and bench.now > start_s + SETTLED_S:
            settled, before = True, _memory_mb()
        if dice.random() < SHARE:
            kind = dice.choice([*FAULTS])
            kinds[kind] += 1
            FAULTS[kind](bench, dice)
        bench.run(BURST_S, driven=True)
        if bench.state not in (State.ACTIVE, State.STARVED):
            stops += 1
            _recover(bench)
    growth_mb = _memory_mb() - before if settled else 0.0
    expect(_left_open() <= left, f"left open: {_left_open()}, at first {left}")
    expect(growth_mb <= MAX_GROWTH_MB, f"grew by {growth_mb:.0f} MB in {seconds - SETTLED_S:.0f} s")
    bench.check_invariants()
    return Soaked(seconds=seconds, faults=kinds.total(), stops=stops, kinds=kinds, growth_mb=growth_mb)


def soaked(device: Device, *, hours: float, processes: int | None = None) -> str:
    """Pieces with a seed each, in as many processes as there are processors; in words."""
    pieces = max(1, round(hours * 3600.0 / PIECE_S))
    seconds = hours * 3600.0 / pieces
    context = multiprocessing.get_context("spawn")
    if pieces == 1:
        return told([soak(device, seconds=seconds)])
    with ProcessPoolExecutor(processes or len(os.sched_getaffinity(0)), mp_context=context) as pool:
        runs = [pool.submit(soak, device, seconds=seconds, seed=seed) for seed in range(pieces)]
        return told([run.result() for run in runs])


def told(runs: list[Soaked]) -> str:
    hours, kinds = sum(run.seconds for run in runs) / 3600.0, sum((run.kinds for run in runs), Counter())
    faults, stops = sum(run.faults for run in runs), sum(run.stops for run in runs)
    grown = f", memory at most {max(run.growth_mb for run in runs):+.1f} MB" if hours >= 0.5 else ""
    return (
        f"{hours:.3g} h: {faults} faults of {len(kinds)} kinds, {stops} stops, all recovered, nothing left open{grown}"
    )


def _left_open() -> tuple[int, int, int]:
    """Files, threads, and shared memory of this process."""
    gc.collect()
    shared = sum("/dev/shm/" in line for line in Path("/proc/self/maps").read_text().splitlines())
    return len(list(Path("/proc/self/fd").iterdir())), threading.active_count(), shared


def _memory_mb() -> float:
    gc.collect()
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e6


def _servo(kind: str, *values: float) -> Callable[[Bench, Dice], None]:
    """A servo's fault, of one of these values if it has one, on a servo that the dice choose, for a while."""

    def happens(bench: Bench, dice: Dice) -> None:
        servo = bench.twin.servos[dice.randrange(len(bench.twin.servos))]
        value = [dice.choice(values)] if values else []
        getattr(servo, kind)(*value, for_=dice.choice([0.01, 0.05, 0.2]))

    return happens


def _reboot(bench: Bench, dice: Dice) -> None:
    bench.twin.servos[dice.randrange(len(bench.twin.servos))].reboot()


def _own_error(bench: Bench, dice: Dice) -> None:
    servo = bench.twin.servos[dice.randrange(len(bench.twin.servos))]
    if isinstance(bench.twin, DxlBusTwin):
        bench.twin.servo(servo.device_id).hardware_error(0x20)
    else:
        servo.overload(for_=0.2)


def _pull(bench: Bench, _: Dice) -> None:
    bench.link.unplug()
    bench.run(0.1)
    bench.link.replug()


def _mute(bench: Bench, _: Dice) -> None:
    bench.beats = False
    bench.run(0.5)
    bench.beats = True


def _poison(bench: Bench, _: Dice) -> None:
    if bench.playing:
        bench.offer(q_HN=np.full((4, 5), np.nan))


def _blind(bench: Bench, _: Dice) -> None:
    bench.daemon.fail(fault(FaultCode.OBSERVATION_STALE, "soak", bench.now))


FAULTS: Mapping[str, Callable[[Bench, Dice], None]] = {
    "silent": _servo("silent"),
    "flip_bit": _servo("flip_bit", 0.3),
    "truncate": _servo("truncate", 0.5),
    "double": _servo("double", 0.5),
    "garbage": _servo("garbage", 0.3),
    "stale_reply": _servo("stale_reply"),
    "delay_reply": _servo("delay_reply", 0.002, 0.0105, 0.08),
    "wrong_id": _servo("wrong_id"),
    "duplicate": _servo("duplicate"),
    "jump": _servo("jump", 500.0, -500.0),
    "freeze": _servo("freeze"),
    "stall": _servo("stall"),
    "overload": _servo("overload"),
    "heat": _servo("heat", 56.0, 63.0),
    "reboot": _reboot,
    "own_error": _own_error,
    "lost_writes": lambda bench, dice: bench.twin.lose_sync_writes(dice.randrange(1, 6)),
    "sag": lambda bench, dice: bench.twin.sag(dice.choice([0.8, 1.16]), for_=dice.choice([0.1, 0.4])),
    "pulled": _pull,
    "estop": lambda bench, _: bench.daemon.estop("soak"),
    "client_gone": lambda bench, _: bench.daemon.release(None),
    "client_mute": _mute,
    "not_a_number": _poison,
    "blind": _blind,
    "host_paused": lambda bench, dice: bench.clock.advance(dice.choice([0.03, 0.1, 0.25])),
}


def _recover(bench: Bench) -> None:
    """As an operator would: wait, reset, enable, drive; patience for what needs to settle."""
    for _ in range(10):
        for servo in bench.twin.servos:
            servo.heal()
        bench.run(1.5)
        try:
            if bench.state in (State.FAULT, State.ESTOP):
                bench.daemon.reset()
            if bench.state == State.CONNECTED:
                bench.daemon.enable()
            bench._due_s = bench.now
            bench.drives_again()
            return
        except GrasplineError:
            bench._due_s = bench.now
    expect(False, f"stuck in {bench.state}: {bench.supervisor.latched} {bench.side.trouble}")
