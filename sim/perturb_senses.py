"""What a policy is told and shown, changed on the way: noise, other words, and nothing at all (the blind controls)."""

import re
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from vla.core.spec import Embodiment
from vla.core.types import Image, Observation

PIXEL_NOISE = 50.0  # standard deviation at severity 1, of 255
STATE_NOISE = {"m": 0.01, "rad": 0.05}  # standard deviation at severity 1, by an axis's unit
GREY = 127

_SYNONYMS = {
    "pick up": ("grab", "take", "lift up"),
    "place": ("put", "set"),
    "put": ("place", "set"),
    "turn on": ("switch on", "start"),
    "turn off": ("switch off", "shut off"),
    "open": ("pull open",),
    "close": ("shut",),
    "push": ("slide", "shove"),
    "press": ("push down on", "hit"),
    "stack": ("pile", "set"),
    "move to": ("go to", "travel to"),
    "pull": ("draw", "drag"),
}
_FRAMES = (
    "please {}",
    "could you {}?",
    "I would like you to {}.",
    "your task is the following: {}.",
    "when you are ready, {}.",
)
_ASIDES = (
    "I have just come home and there is a lot to do.",
    "Dinner is in half an hour and the guests may come early.",
    "Take your time, nobody is in a hurry today.",
    "The kettle is already warm, do not mind it.",
)
_VERBS = re.compile(r"\b(" + "|".join(sorted(_SYNONYMS, key=len, reverse=True)) + r")\b")


def add_noise(observation: Observation, spec: Embodiment, severity: float, key: Sequence[int]) -> Observation:
    """Gaussian noise on pixels and proprioception; `key` seeds it and must differ from step to step."""
    images = {}
    for number, name in enumerate(spec.camera_names):
        if name in observation.images:
            rng = np.random.default_rng([*key, number])  # a camera's noise does not depend on which others are asked
            image = observation.images[name]
            noise = rng.standard_normal(image.shape, np.float32) * (severity * PIXEL_NOISE)
            images[name] = np.clip(np.rint(image + noise), 0, 255).astype(np.uint8)
    scale_S = np.array([STATE_NOISE.get(axis.unit, 0.05) for axis in spec.state], np.float32)
    noise_S = np.random.default_rng([*key, len(spec.cameras)]).standard_normal(len(scale_S), np.float32)
    return replace(observation, images=images, state_S=observation.state_S + severity * scale_S * noise_S)


def blind_vision(image: Image, severity: float) -> Image:
    """Fades to grey, which it is altogether at severity 1."""
    return np.rint((1 - severity) * image.astype(np.float32) + severity * GREY).astype(np.uint8)


def reword(instruction: str, severity: float, rng: np.random.Generator) -> str:
    """Says the same in other words: other verbs; above 0.34 also as a request; above 0.67 also after a remark.

    What is named stays as it is, so a reader who knows the language is never misled.
    """
    words = _VERBS.sub(lambda verb: str(rng.choice(_SYNONYMS[verb.group()])), instruction)
    frame, aside = str(rng.choice(_FRAMES)), str(rng.choice(_ASIDES))
    if severity > 0.34 or words == instruction:
        words = frame.format(words)
    return f"{aside} {words}" if severity > 0.67 else words


def blind_language(instruction: str, others: Sequence[str], severity: float, rng: np.random.Generator) -> str:
    """Says nothing; above severity 1/2 says what another task would say instead."""
    different = [other for other in others if other != instruction]
    return str(rng.choice(different)) if severity > 0.5 and different else ""
