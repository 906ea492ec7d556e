"""Cases 1 to 15: the policy is late, dead, mad, or leads into an obstacle."""

import re
from dataclasses import replace
from pathlib import Path

import numpy as np

from real_robot.conformance.bench import DT_S, HORIZON, Bench, Device, expect
from real_robot.conformance.case import Case
from real_robot.core.admission import Refusal
from real_robot.core.arms import koch_spec, so101_spec
from real_robot.core.collision import CollisionScene
from real_robot.core.faults import FaultCode, RefusedError
from real_robot.core.supervisor import State
from real_robot.core.types import Chunk, Verdict

HELD_M = 0.010
KOCH_MJCF = Path(__file__).with_name("koch.xml")


def late_chunks(device: Device) -> str:
    bench = Bench(device).moving()
    for late in (1, 3, 6, 9, 12, HORIZON - 1):
        bench.offer(age_s=min(late * DT_S, bench.now - bench._began_s))
        bench.run(0.1)
    bench.bounded()
    refusal = bench.offer(age_s=(HORIZON + 1) * DT_S).refusal
    expect(refusal == Refusal.OVERDUE, f"a chunk that is over: {refusal}")
    return "1 to 15 steps late: velocity and acceleration in bounds; 17 steps late refused"


def no_chunk(device: Device) -> str:
    bench = Bench(device).moving()
    end_s = bench.controller.timeline.end_s
    bench.until(lambda: bench.state == State.STARVED, HORIZON * DT_S + 0.5, "STARVED")
    rest_s = bench.now
    bench.rested(0.3)
    bench.bounded()
    bench.until(lambda: bench.state == State.PAUSED, 2.2, "PAUSED")
    bench.drives_again()
    return f"commanded rest {1e3 * (rest_s - end_s):+.0f} ms after the last setpoint, PAUSED after 2 s"


def policy_killed(device: Device) -> str:
    bench = Bench(device).moving()
    bench.daemon.release(None)  # what the server does when the connection ends
    passed_s = bench.until(lambda: bench.state == State.PAUSED, 0.03, "PAUSED")
    bench.rested(0.5)
    bench.bounded()
    expect(bench.daemon.leases.holder is None, "the lease is still held")
    bench.drives_again()
    return f"PAUSED {1e3 * passed_s:.0f} ms after the end of the connection, lease free"


def policy_silent(device: Device) -> str:
    bench = Bench(device).moving()
    bench.beats = False
    passed_s = bench.until(lambda: bench.state == State.PAUSED, 0.33, "PAUSED", driven=False)
    bench.rested(0.5)
    bench.beats = True
    bench.drives_again()
    return f"PAUSED {1e3 * passed_s:.0f} ms after the last heartbeat"


def partition(device: Device) -> str:
    bench = Bench(device).moving()
    bench.beats = False
    old = bench.chunk()
    bench.run(1.5)
    expect(bench.state == State.PAUSED, f"state {bench.state}")
    bench.beats, bench.token = True, ""
    bench.activate("a")
    refused = bench.daemon.submit(old, bench.token)
    expect(refused.refusal in (Refusal.TIME, Refusal.SEQUENCE), f"a chunk from before the break: {refused.refusal}")
    bench.run(0.4, driven=True)
    expect(bench.state == State.ACTIVE, f"after the heal: {bench.state}")
    bench.bounded()
    return "a chunk from before the break is refused, later ones drive"


def latency(device: Device) -> str:
    bench = Bench(device).moving()
    for _ in range(60):
        if bench.state == State.PAUSED:
            break
        bench.offer(horizon=4, age_s=0.115)
        bench.tick(2)
    expect(bench.state == State.PAUSED, f"state {bench.state}")
    reason = bench.supervisor.pause_reason
    expect("p95" in reason and "ms" in reason, f"no numbers in '{reason}'")
    bench.rested(0.5)
    return reason.split(";")[0]


def not_a_number(device: Device) -> str:
    bench = Bench(device).moving()
    one, whole = bench.chunk(), bench.chunk()
    one.q_HN[5, 2] = np.nan
    whole.q_HN[:] = np.nan
    for chunk in (one, whole):
        refusal = bench.daemon.submit(chunk, bench.token).refusal
        expect(refusal == Refusal.NON_FINITE, f"refusal {refusal}")
        bench.tick(3)
    expect(bench.state in (State.ACTIVE, State.STARVED), "the old tail is not played")
    third = bench.chunk()
    third.q_HN[0] = np.nan
    bench.daemon.submit(third, bench.token)
    bench.faulted(FaultCode.BAD_CHUNKS, within_s=0.03, driven=False)
    bench.bounded()
    bench.recovered()
    return "two refused while the tail played, the third within 10 s: FAULT"


def garbage_chunks(device: Device) -> str:
    bench = Bench(device).moving()
    q_HN = bench.chunk().q_HN
    wrong: dict[str, Chunk] = {
        "inf": bench.chunk(q_HN=np.where(q_HN == q_HN[3], np.inf, q_HN)),
        "1e30": bench.chunk(q_HN=np.full_like(q_HN, 1e30)),
        "float16": bench.chunk(q_HN=q_HN.astype(np.float16)),
        "integers": bench.chunk(q_HN=np.zeros(q_HN.shape, np.int64)),
        "seven joints": bench.chunk(q_HN=np.zeros((HORIZON, 7))),
        "one axis": bench.chunk(q_HN=np.zeros(HORIZON)),
        "no rows": bench.chunk(q_HN=np.zeros((0, 5))),
        "dt": bench.chunk(dt_s=float("nan")),
    }
    for name, chunk in wrong.items():
        expect(bench.daemon.submit(chunk, bench.token).chunk is None, f"'{name}' was admitted")
    tiny = bench.daemon.submit(bench.chunk(q_HN=q_HN + 1e-310), bench.token)
    expect(tiny.chunk is not None, f"denormal numbers were refused: {tiny.detail}")
    bench.run(0.2, driven=True)
    expect(bench.state == State.ACTIVE, f"state {bench.state}")
    bench.bounded()
    return f"{len(wrong)} kinds refused, the session goes on"


def just_past_a_limit(device: Device) -> str:
    bench = Bench(device).start()
    bench.activate()
    high = float(bench.spec.high_J[0])
    for step in range(25):
        at = min((step + 1) * 0.1, high + 0.1)
        q_HN = np.zeros((HORIZON, 5))
        q_HN[:, 0] = np.minimum(np.linspace(max(at - 0.1, 0.0), at + 0.1, HORIZON), high + 0.1)
        bench.offer(q_HN=q_HN)
        bench.tick(10)
    over = float(bench.positions[0]) - high
    expect(bench.controller.admission.counts["clamped"] > 0, "nothing was counted as clamped")
    expect(float(bench.positions[0]) > high - 0.1, "never came near the limit")
    expect(over < 0.01, f"{over:.3f} rad past the soft limit")
    bench.bounded()
    return f"clamped {bench.controller.admission.counts['clamped']} numbers, {1e3 * over:+.1f} mrad from the soft limit"


def far_past_a_limit(device: Device) -> str:
    bench = Bench(device).moving()
    before = bench.twin.monitor.num_violations
    q_HN = np.zeros((HORIZON, 5))
    for angle in (np.radians(400.0), (6600 - 2048) / 651.9, -50.0):
        q_HN[:] = angle
        refusal = bench.offer(q_HN=q_HN).refusal
        expect(refusal in (Refusal.POSITION, Refusal.SPEED), f"{angle:.1f} rad: {refusal}")
        bench.tick(5)
    expect(bench.twin.monitor.num_violations == before, "a goal out of range was on the wire")
    return "refused; nothing out of range on the wire"


def big_step(device: Device) -> str:
    bench = Bench(device).start()
    bench.activate()
    bench.offer(q_HN=np.zeros((HORIZON, 5)))
    bench.tick(10)
    bench.offer(q_HN=np.full((HORIZON, 5), 1.0))
    bench.run(0.3)
    bench.offer(q_HN=np.full((HORIZON, 5), 1.0))
    bench.run(0.4)
    bench.bounded()
    verdicts = [report.tick.command.verdict for report in bench.reports if report.tick.command]
    expect(any(v & (Verdict.VELOCITY | Verdict.ACCELERATION | Verdict.JERK) for v in verdicts), "no limiter spoke")
    return f"1 rad: at most {max(bench.twin.peaks.speed_rad_s):.2f} rad/s at the motors"


def old_sessions(device: Device) -> str:
    bench = Bench(device).moving()
    last = bench.chunk()
    expect(bench.daemon.submit(last, bench.token).chunk is not None, "a good chunk was refused")
    replay = bench.daemon.submit(last, bench.token).refusal
    reordered = bench.offer(seq=last.seq - 1).refusal
    foreign = bench.offer(session="someone else", seq=10_000).refusal
    expect(replay == reordered == Refusal.SEQUENCE, f"replay {replay}, reordered {reordered}")
    expect(foreign == Refusal.SESSION, f"other session: {foreign}")
    try:
        bench.daemon.submit(bench.chunk(), "0" * 32)
    except RefusedError:
        return "refused by session, number and lease"
    expect(False, "a foreign token was taken")
    return ""


def clock_skew(device: Device) -> str:
    bench = Bench(device).moving()
    for skew_s in (10.0, -10.0):
        refusal = bench.offer(t_obs_s=bench.now + skew_s).refusal
        expect(refusal in (Refusal.TIME, Refusal.OVERDUE), f"skew of {skew_s} s: {refusal}")
    bench.run(0.2, driven=True)
    expect(bench.state == State.ACTIVE, f"state {bench.state}")
    package = Path(__file__).resolve().parents[1]
    timed = [package / "daemon.py", package / "loop.py", package / "transports.py"]
    timed += [path for folder in ("core", "drivers", "protocols") for path in (package / folder).glob("*.py")]
    wall = re.compile(r"\btime\.time\(|\bdatetime\b")
    users = [path.name for path in timed if wall.search(path.read_text())]
    expect(not users, f"wall clock in {users}")
    return "chunks 10 s off refused, the session goes on; nothing that times motion reads the wall clock"


def _collision(bench: Bench, scene: CollisionScene, goal_N: list[float]) -> str:
    """Admission refuses the way; then the same way past admission, to the filter alone."""
    bench.activate()
    ramp_HN = np.linspace(np.zeros(5), goal_N, 60)
    refusal = bench.offer(q_HN=ramp_HN).refusal
    expect(refusal == Refusal.COLLISION, f"admission: {refusal}")
    chunk = bench.chunk(q_HN=ramp_HN)
    bench.controller.timeline.push(chunk, bench.now)
    least_m, slowed = np.inf, False
    for _ in range(220):
        bench.tick()
        least_m = min(least_m, scene.clearance(bench.positions))
        command = bench.reports[-1].tick.command
        slowed |= command is not None and bool(command.verdict & Verdict.COLLISION)
    expect(slowed, "the filter said nothing")
    expect(least_m >= HELD_M, f"clearance fell to {1e3 * least_m:.1f} mm")
    return f"refused at admission; past it, the filter kept {1e3 * least_m:.0f} mm at the motors"


def _scene(device: Device) -> CollisionScene:
    return CollisionScene(so101_spec() if device == "sts" else replace(koch_spec(), mjcf=KOCH_MJCF))


def self_collision(device: Device) -> str:
    scene = _scene(device)
    folded_N = [0.0, -1.2, 1.6, 1.6, 0.0] if device == "sts" else [0.0, 0.0, 1.7, 1.7, 0.0]
    return _collision(Bench(device, scene=scene).start(), scene, folded_N)


def table_collision(device: Device) -> str:
    scene = _scene(device)
    return _collision(Bench(device, scene=scene).start(), scene, [0.0, 1.5, 0.0, 0.0, 0.0])


CASES = (
    Case(number=1, title="chunks late by 1 to H steps", run=late_chunks),
    Case(number=2, title="no chunk at all", run=no_chunk),
    Case(number=3, title="policy process killed", run=policy_killed),
    Case(number=4, title="policy alive and silent", run=policy_silent),
    Case(number=5, title="network partition, then heal", run=partition),
    Case(number=6, title="latency beyond the chunk", run=latency),
    Case(number=7, title="NaN in a chunk", run=not_a_number),
    Case(number=8, title="inf, 1e30, wrong type or shape", run=garbage_chunks),
    Case(number=9, title="target 0.1 rad past a limit", run=just_past_a_limit),
    Case(number=10, title="target of 400 degrees, raw 6600", run=far_past_a_limit),
    Case(number=11, title="step of 1 rad between chunks", run=big_step),
    Case(number=12, title="old session, replay, reordering", run=old_sessions),
    Case(number=13, title="clock skew of 10 s", run=clock_skew),
    Case(number=14, title="self-collision", run=self_collision),
    Case(number=15, title="table collision", run=table_collision),
)
