"""Trains a judge of success: episodes -> frozen features -> head -> threshold -> test. See docs/rewards.md."""

import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from hydra.utils import instantiate
from numpy.typing import NDArray
from omegaconf import DictConfig, OmegaConf
from torch import Tensor
from tqdm import tqdm

from rewards.collection import Collection, play_row, rows_of
from rewards.debounce import first_declared
from rewards.learned.declared import FrameJudge, FrameScore
from rewards.learned.episodes import (
    SeenEpisode,
    Views,
    choose_frames,
    demonstrations,
    done_frames,
    labelled,
    split_by_start,
)
from rewards.learned.fit import fit, head_loss
from rewards.learned.frames import Encoder, random_crop
from rewards.learned.progress import ProgressModel, ProgressPotential, fit_progress, predict, save_progress
from rewards.learned.success import SuccessHead, TextEncoder, save_classifier, score_frames
from rewards.learned.threshold import Calibration, calibrate
from rewards.metrics import judge, judge_progress
from rewards.sheet import Tile, write_sheet
from rewards.success import TERM
from scripts.entry import entry
from sim.experts import expert_for
from vla.core.errors import GrasplineError, unknown_name
from vla.core.protocols import Env
from vla.core.spec import Camera
from vla.core.types import Episode, Float
from vla.data.cache import FrameCache
from vla.data.lerobot import LeRobotSource, write_dataset
from vla.data.staging import SUFFIX, read_staged, write_staged
from vla.rollout.evaluate import write_json
from vla.rollout.provenance import software

ENCODERS = ("efficientnet_lite0",)


@dataclass(frozen=True, kw_only=True, eq=False)
class Recording:
    """A dataset with its decoded frames and its episodes' features."""

    source: LeRobotSource
    cache: FrameCache
    cameras: tuple[str, ...]
    episodes: list[SeenEpisode]

    @property
    def camera_specs(self) -> tuple[Camera, ...]:
        by_name = {camera.name: camera for camera in self.source.spec.cameras}
        return tuple(by_name[name] for name in self.cameras)


def main(config: DictConfig) -> None:
    """Collects what is missing, then trains and tests once for each seed."""
    settings: Any = OmegaConf.to_container(config, resolve=True)
    _check(settings)
    _collect(settings)
    torch.set_num_threads(1)
    encoder, text = _encoder(settings), _text(settings)
    train = _see(Path(config.dataset), settings, encoder)
    test = _see(Path(config.test), settings, encoder) if config.test else None
    views = _views(train, settings, encoder)
    out = Path(config.out)
    out.mkdir(parents=True, exist_ok=True)
    reports = []
    for seed in settings["seeds"]:
        head, chosen = _train(train, views, text, settings, seed)
        one = _judge(partial(score_frames, head, text), chosen, train, encoder, settings)
        report = {"seed": seed, "calibration": {**chosen.report, "reached": chosen.reached}}
        if test is not None:
            report |= _test(one, test, {each.task for each in train.episodes})
        reports.append(report)
        _print(report)
        if seed == settings["seeds"][0]:
            save_classifier(out, one, head)
            if test is not None:
                write_sheet(out / "mistakes.png", _mistakes(one, test))
    told = {"seeds": reports, "settings": settings, "software": software()}
    if settings["progress_steps"] and text is not None:
        told["progress"] = _progress(train, test, text, encoder, settings)
    write_json(out / "metrics.json", told)
    print(f"judge of seed {settings['seeds'][0]} in {out}")


def _check(settings: Mapping[str, Any]) -> None:
    for key in ("every", "frames", "views", "steps", "batch", "consecutive"):
        if not isinstance(settings[key], int) or settings[key] < 1:
            raise GrasplineError(f"{key} is {settings[key]}, expected a whole number of at least 1")
    for key in ("heldout", "precision", "mismatched"):
        if not 0 <= settings[key] < 1:
            raise GrasplineError(f"{key} is {settings[key]}, expected a share in [0, 1)")
    if not settings["seeds"]:
        raise GrasplineError("seeds is empty, expected one number at least")


def _encoder(settings: Mapping[str, Any]) -> Encoder:
    """ImageNet features without the tower's own (random) place embedding: the same from every wheel."""
    if settings["encoder"] not in ENCODERS:
        raise unknown_name("encoder", settings["encoder"], ENCODERS)
    from vla.policies.backbones.efficientnet import imagenet_tower

    tower = imagenet_tower(settings["image_size"]).eval()
    torch.nn.init.zeros_(tower.place_NW)
    return Encoder(name=f"{settings['encoder']}/{settings['image_size']}", encode=tower)


def _text(settings: Mapping[str, Any]) -> TextEncoder | None:
    if not settings["instructions"]:
        return None
    from vla.policies.backbones.minilm import encode

    return encode


# Data: recording what is missing, and reading it


def _collect(settings: Mapping[str, Any]) -> None:
    """Records each of the two datasets that is not there."""
    plan = Collection(**settings["collect"])
    missing = [key for key in ("dataset", "test") if settings[key] and not (Path(settings[key]) / "meta").is_dir()]
    if missing:
        env = instantiate(settings["env"])
        for key in missing:
            record(env, Path(settings[key]), plan, test=key == "test")
        env.close()


def record(env: Env, out: Path, plan: Collection, *, test: bool) -> None:
    """Writes the dataset `out`. Killed, the same call goes on: finished episodes wait beside it."""
    staging = out.with_name(f"{out.name}.staging")
    rows = rows_of(env, plan, test=test)
    expert = expert_for(env)
    for row in tqdm(rows, desc=f"recording {out.name}", unit="episode"):
        if not (staging / f"{row.name}{SUFFIX}").exists():
            write_staged(staging, row.name, play_row(env, expert, row, plan))
    episodes: Iterator[Episode] = (read_staged(staging / f"{row.name}{SUFFIX}") for row in rows)
    write_dataset(episodes, out, env.spec, total=len(rows))
    shutil.rmtree(staging)


def _see(root: Path, settings: Mapping[str, Any], encoder: Encoder) -> Recording:
    """Features of every judged frame of a dataset."""
    source = LeRobotSource(root)
    cache, columns = FrameCache.open(source), source.columns()
    cameras = tuple(settings["cameras"] or source.spec.camera_names)
    if unknown := set(cameras) - set(source.spec.camera_names):
        raise unknown_name("camera", min(unknown), source.spec.camera_names)
    episodes = []
    for number, meta in enumerate(tqdm(source.episode_meta, desc=f"seeing {root.name}", unit="episode")):
        first, last = columns.starts[number : number + 2]
        recorded = columns.rewards.get(TERM)
        success_T = None if recorded is None else recorded[first:last]
        done_T = done_frames(success_T, success=meta["success"], steps=last - first)
        frame_T = np.arange(first, last, settings["every"])
        episodes.append(
            SeenEpisode(
                tokens_TKPD=encoder.frames(_images(cache, frame_T, cameras)).half(),
                done_T=done_T[:: settings["every"]],
                frame_T=frame_T,
                instruction=columns.instructions[number],
                task=str(meta["task"]),
                init_state=int(meta.get("init_state", number)),
                way=str(meta.get("way", "")),
            )
        )
    return Recording(source=source, cache=cache, cameras=cameras, episodes=episodes)


def _images(cache: FrameCache, frame_N: NDArray[np.int64], cameras: Sequence[str]) -> Tensor:
    return torch.from_numpy(cache.images(frame_N, cameras))


# Training


def _views(train: Recording, settings: Mapping[str, Any], encoder: Encoder) -> list[Views]:
    rng, generator = np.random.default_rng(0), torch.Generator().manual_seed(0)
    seen = []
    for episode in tqdm(train.episodes, desc="cropping", unit="episode"):
        rows = choose_frames(episode.done_T, settings["frames"], rng)
        images_NKHWC = _images(train.cache, episode.frame_T[rows], train.cameras)
        crops = [
            random_crop(images_NKHWC.flatten(0, 1), settings["crop"], generator).view_as(images_NKHWC)
            for _ in range(settings["views"])
        ]
        seen.append(Views(rows=rows, tokens_VNKPD=torch.stack([encoder.frames(crop).half() for crop in crops])))
    return seen


def _train(
    train: Recording, views: Sequence[Views], text: TextEncoder | None, settings: Mapping[str, Any], seed: int
) -> tuple[SuccessHead, Calibration]:
    """A head, and the threshold chosen on episodes it has not seen."""
    inside, outside = split_by_start(train.episodes, settings["heldout"], seed)
    kept = {id(each) for each in inside}
    frames = labelled([pair for pair in zip(train.episodes, views, strict=True) if id(pair[0]) in kept])
    cameras, places, width = frames.tokens_VNKPD.shape[2:]
    texts_XE = None if text is None else torch.stack([text(each) for each in frames.texts])
    torch.manual_seed(seed)
    head = SuccessHead(cameras=cameras, places=places, width=width, text=0 if texts_XE is None else texts_XE.shape[1])
    options = {key: settings[key] for key in ("steps", "batch", "lr", "mismatched")}
    losses = fit(head, partial(head_loss, head, texts_XE), frames, **options, seed=seed)
    print(
        f"seed {seed}: {len(frames.done_N)} frames of {len(inside)} episodes, loss {losses[0]:.3f} -> {losses[-1]:.3f}"
    )
    judged = [each.judged(partial(score_frames, head, text)) for each in outside]
    return head, calibrate(judged, precision=settings["precision"], consecutive=settings["consecutive"])


def _judge(
    score: FrameScore, chosen: Calibration, train: Recording, encoder: Encoder, settings: Mapping[str, Any]
) -> FrameJudge:
    return FrameJudge(
        score=score,
        cameras=train.camera_specs,
        encoder=encoder,
        threshold=chosen.threshold,
        consecutive=chosen.consecutive,
        every=settings["every"],
        provenance={"calibration": {**chosen.report, "reached": chosen.reached}, **_provenance(train, settings)},
    )


def _provenance(train: Recording, settings: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "dataset": str(train.source.root),
        "episodes": len(train.episodes),
        "tasks": sorted({each.task for each in train.episodes}),
        "settings": {key: value for key, value in settings.items() if key not in ("env", "collect")},
        **software(),
    }


def _progress(
    train: Recording, test: Recording | None, text: TextEncoder, encoder: Encoder, settings: Mapping[str, Any]
) -> dict[str, Any]:
    """Trains and saves a progress potential from the successes; what it says of other test episodes, by kind."""
    data = demonstrations(train.episodes, text)
    cameras, places, width = data.tokens[0].shape[1:]
    torch.manual_seed(settings["seeds"][0])
    model = ProgressModel(cameras=cameras, places=places, width=width, text=data.texts_XE.shape[1])
    fit_progress(model, data, steps=settings["progress_steps"], seed=settings["seeds"][0])
    potential = ProgressPotential(
        model=model, cameras=train.camera_specs, encoder=encoder, text=text, provenance=_provenance(train, settings)
    )
    save_progress(Path(settings["out"]) / "progress", potential)
    known = sorted({each.instruction for each in train.episodes})
    kinds: dict[str, list[Float]] = {"successes": [], "reversed": [], "failures": [], "mismatched": []}
    for each in test.episodes if test else ():
        if each.instruction not in known:
            continue
        own, other = text(each.instruction), text(known[(known.index(each.instruction) + 1) % len(known)])
        if not each.done_T.any():
            kinds["failures"].append(predict(model, each.tokens_TKPD, own))
            continue
        tokens_TKPD = each.tokens_TKPD[: int(each.done_T.argmax()) + 1]
        kinds["successes"].append(predict(model, tokens_TKPD, own))
        kinds["reversed"].append(predict(model, tokens_TKPD.flip(0), own))
        kinds["mismatched"].append(predict(model, tokens_TKPD, other))
    return {kind: judge_progress(predictions) for kind, predictions in kinds.items() if predictions}


# Test


def _test(one: FrameJudge, test: Recording, seen_tasks: set[str]) -> dict[str, dict[str, Any]]:
    """Reports over the tasks that were trained on, over those that were not, and over each task and way."""
    judged = [(each, each.judged(one.score)) for each in test.episodes]
    groups = {
        "seen": [seen for each, seen in judged if each.task in seen_tasks],
        "unseen": [seen for each, seen in judged if each.task not in seen_tasks],
    }
    for key in sorted({each.task for each, _ in judged}):
        groups[f"task {key}"] = [seen for each, seen in judged if each.task == key]
    for key in sorted({each.way for each, _ in judged}):
        groups[f"way {key}"] = [seen for each, seen in judged if each.way == key and each.task in seen_tasks]
    at = partial(judge, threshold=one.threshold, consecutive=one.consecutive)
    return {name: at(group) for name, group in groups.items() if group}


def _mistakes(one: FrameJudge, test: Recording) -> list[Tile]:
    """The frame at which each false success was declared, and the best frame of each missed one."""
    tiles = []
    for episode in test.episodes:
        scores_T = episode.judged(one.score).scores_T
        at = first_declared(scores_T >= one.threshold, one.consecutive)
        if at is not None and not episode.done_T[at]:
            tiles.append(_tile(test, episode, at, "false positive", scores_T))
        elif at is None and episode.done_T.any():
            best = int(np.where(episode.done_T, scores_T, -np.inf).argmax())
            tiles.append(_tile(test, episode, best, "false negative", scores_T))
    return tiles


def _tile(test: Recording, episode: SeenEpisode, at: int, kind: str, scores_T: Float) -> Tile:
    images = list(test.cache.images(episode.frame_T[at : at + 1], test.cameras)[0])
    done = int(episode.done_T.argmax()) if episode.done_T.any() else None
    caption = f"{kind}: {episode.task}, {episode.way}\nframe {at}, done at {done}, logit {scores_T[at]:.1f}"
    return Tile(images=images, kind=kind, caption=caption)


def _print(report: Mapping[str, Any]) -> None:
    if not report["calibration"]["reached"]:
        print("warning: no threshold reached the precision that was asked for; the most precise one is used")
    for name in ("calibration", "seen", "unseen"):
        if name in report:
            told = ", ".join(f"{key} {_share(report[name][key])}" for key in ("precision", "recall", "false_alarms"))
            print(f"  {name:12s} {told}, auc {report[name]['auc']:.3f}")


def _share(part: Mapping[str, Any]) -> str:
    if part["share"] is None:
        return "none"
    return f"{part['share']:.0%} ({part['low']:.0%}-{part['high']:.0%}, {part['count']} of {part['total']})"


if __name__ == "__main__":
    entry("train_reward", main)
