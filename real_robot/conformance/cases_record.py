"""Cases 49 and 50: a disk that is full, an encoder that fails, a recorder that is killed."""

import functools
import itertools
import multiprocessing
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

from real_robot.cameras.frames import CameraSpec, Frame
from real_robot.conformance.bench import EVERY, Bench, Device, expect
from real_robot.conformance.case import Case, Product
from real_robot.conformance.small_disk import small_disk
from real_robot.core.supervisor import State
from real_robot.record.recorder import Driver, Recorder, embodiment_of
from real_robot.record.writer import Writer
from vla.core.types import Episode

CAMERA = CameraSpec(name="front", serial="F7", height=32, width=32, rate_hz=30.0)
EPISODE_S, EPISODES = 0.6, 5
DISK_BYTES = 160_000  # two episodes of noise, which does not compress
FRAME_EVERY = 3  # ticks
KILL_PATIENCE_S, SPAWN_S = 5.0, 60.0

type Picture = Callable[[int], np.ndarray]
type Write = Callable[[Path, str, Episode], object]


def noise(seq: int) -> np.ndarray:
    """A picture that no other number gives."""
    return np.random.default_rng(seq).integers(0, 256, (CAMERA.height, CAMERA.width, 3), np.uint8)


def episodes_of(bench: Bench, picture: Picture = noise) -> Iterator[Episode]:
    """Episodes of a moving arm, one after another, the same for every bench of a device."""
    recorder = Recorder(arm="arm", cameras=[CAMERA.name])
    recorder.driver = Driver.POLICY
    bench.daemon.subscribe(recorder.tick)
    bench.moving()
    ticks = itertools.count()
    while True:
        recorder.start("fill the disk")
        for _ in range(round(EPISODE_S / bench.daemon.dt_s)):
            tick = next(ticks)
            if tick % FRAME_EVERY == 0:
                recorder.see(CAMERA.name, Frame(seq=tick, time_s=bench.now, image=picture(tick)))
            if tick % EVERY == 0 and bench.playing:
                bench.offer()
            bench.tick()
        yield recorder.finish(success=True)


def stage(write: Write, folder: Path, numbers: Iterator[int]) -> Callable[[Episode], None]:
    """What a `Writer` calls."""

    def one(episode: Episode) -> None:
        write(folder, f"{next(numbers):06d}", episode)

    return one


def disk_full(device: Device, *, product: Product) -> str:
    calm = Bench(device)
    kept = list(itertools.islice(episodes_of(calm), EPISODES))
    with small_disk(DISK_BYTES) as (folder, how):
        bench = Bench(device)
        with Writer(stage(product.write, folder, itertools.count())) as writer:
            for episode in itertools.islice(episodes_of(bench), EPISODES):
                writer.put(episode)
        left = sorted(path.name for path in folder.iterdir())
        whole = product.read(folder)
    counts = f"{writer.written} written, {writer.discarded} discarded"
    expect(writer.written > 0 and writer.written + writer.discarded == EPISODES, counts)
    expect(bool(writer.trouble) and writer.discarded > 0, f"the disk never got full: {counts}")
    expect(len(left) == len(whole) == writer.written, f"{counts}, and the folder holds {left}")
    _same(whole, kept)
    _unmoved(bench, calm)
    broken = Bench(device)
    with Writer(stage(product.write, Path("/nonexistent"), itertools.count())) as encoder:
        encoder.put(next(episodes_of(broken, picture=lambda seq: noise(seq)[..., 0])))
    expect(encoder.discarded == 1 and "image" in encoder.trouble, f"an encoder that fails: '{encoder.trouble}'")
    return f"{how}: {counts}, said '{writer.trouble.rsplit(': ', 1)[-1]}'; motion the same to the bit"


def _unmoved(bench: Bench, calm: Bench) -> None:
    """Both benches commanded the same, tick by tick."""
    rows, wanted = (
        np.array([report.tick.command.q_J for report in one.reports if report.tick.command]) for one in (bench, calm)
    )
    expect(bench.state == State.ACTIVE, f"state {bench.state}")
    expect(np.array_equal(rows, wanted), "the motion is another than with room on the disk")
    bench.bounded()


def _same(found: list[Episode], wanted: list[Episode]) -> None:
    for number, (one, other) in enumerate(zip(found, wanted)):
        same = np.array_equal(one.actions_TA, other.actions_TA) and len(one.observations) == len(other.observations)
        pairs = zip(one.observations, other.observations)
        same = same and all(np.array_equal(a.images[CAMERA.name], b.images[CAMERA.name]) for a, b in pairs)
        expect(same, f"episode {number} came back changed")


def killed(device: Device, *, product: Product) -> str:
    """A child records until it gets SIGKILL while a file is being written."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name) / "staging"
        child = multiprocessing.get_context("spawn").Process(target=_record, args=(device, folder, product.write))
        child.start()
        try:
            _wait(lambda: len(_files(folder)) >= 2, SPAWN_S, "two episodes")
            caught = _wait(lambda: any(folder.glob(".*")), KILL_PATIENCE_S)
        finally:
            child.kill()
            child.join()
        expect(child.exitcode == -9, f"exit code {child.exitcode}")
        files, whole = _files(folder), product.read(folder)
        expect(len(whole) == len(files) >= 2, f"{len(whole)} of {len(files)} episodes can be read")
        bench = Bench(device)
        episodes = episodes_of(bench)
        _same(whole, list(itertools.islice(episodes, len(whole))))
        with Writer(stage(product.write, folder, itertools.count(len(whole)))) as writer:
            writer.put(next(episodes))
        expect(not writer.trouble and len(product.read(folder)) == len(whole) + 1, f"cannot go on: {writer.trouble}")
        spec = embodiment_of(bench.spec, [CAMERA], 30.0)
        dataset = product.publish(whole[:2], Path(name) / "dataset", spec)
        same = len(dataset) == 2 and np.array_equal(dataset[1].actions_TA, whole[1].actions_TA)
        expect(same, "the dataset holds other actions")
    when = "while it wrote a file" if caught else "between two files"
    return f"SIGKILL {when}: {len(whole)} earlier episodes read back, the next appended, the dataset readable"


def _record(device: Device, folder: Path, write: Write) -> None:
    """In a child: records without end."""
    with Writer(stage(write, folder, itertools.count())) as writer:
        for episode in episodes_of(Bench(device)):
            writer.put(episode)


def _files(folder: Path) -> list[Path]:
    return [path for path in folder.glob("*") if not path.name.startswith(".")]


def _wait(happened: Callable[[], bool], within_s: float, what: str = "") -> bool:
    """Whether it happened in time; CaseFailed if not, where `what` names it."""
    until_s = time.monotonic() + within_s
    while not happened():
        if time.monotonic() > until_s:
            expect(not what, f"{what}: not within {within_s:.0f} s")
            return False
        time.sleep(0.001)
    return True


def cases(product: Product | None) -> tuple[Case, ...]:
    if product is None:
        missing = "where episodes are kept, which `scripts` knows"
        return (
            Case(number=49, title="disk full while recording", missing=missing),
            Case(number=50, title="killed in mid-episode", missing=missing),
        )
    return (
        Case(number=49, title="disk full while recording", run=functools.partial(disk_full, product=product)),
        Case(number=50, title="killed in mid-episode", run=functools.partial(killed, product=product)),
    )
