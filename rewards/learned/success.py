"""Pictures (and the instruction) to success: a small head on frozen pretrained features, with a calibrated threshold.

    cameras -> frozen encoder -> tokens -> FrameReader (trains) -> x (1 + scale(text)) + shift(text) -> MLP -> logit

What is special against lerobot's reward classifier: everything behind the frozen encoder trains (there, a `no_grad`
around the whole of a camera's branch leaves its spatial embedding and bottleneck as they were drawn), the threshold is
chosen on held-out episodes, success is declared after several frames in a row, and pictures of other cameras are
refused. Sources: HIL-SERL's classifier (arXiv 2410.21845); FiLM (Perez et al. 2018).
"""

from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn

from rewards.learned import store
from rewards.learned.declared import FrameJudge, load_parts, save_judge
from rewards.learned.frames import Encoder, FrameReader
from vla.core.errors import CorruptFileError, SpecMismatchError
from vla.core.types import Float

KIND = "success_classifier"

type TextEncoder = Callable[[str], Tensor]  # instruction -> (E,)


class SuccessHead(nn.Module):
    """Tokens (B, K, P, D) and text (B, E) to logits (B,)."""

    def __init__(
        self, *, cameras: int, places: int, width: int, text: int = 0, channels: int = 32, latent: int = 128
    ) -> None:
        """Builds the head.

        Args:
            cameras: K.
            places: P.
            width: D.
            text: E, width of the instruction's vector; 0 for a head that serves one task.
            channels: see `FrameReader`.
            latent: see `FrameReader`.
        """
        super().__init__()
        self.reader = FrameReader(cameras=cameras, places=places, width=width, channels=channels, latent=latent)
        joint = self.reader.latent
        self.film = nn.Linear(text, 2 * joint) if text else None
        self.out = nn.Sequential(nn.Linear(joint, latent), nn.LayerNorm(latent), nn.GELU(), nn.Linear(latent, 1))
        self.sizes = {"cameras": cameras, "places": places, "width": width, "text": text}
        self.sizes |= {"channels": channels, "latent": latent}

    def forward(self, tokens_BKPD: Tensor, text_BE: Tensor | None = None) -> Tensor:
        """Raises SpecMismatchError if a text is missing, or one too many."""
        if (text_BE is None) != (self.film is None):
            raise SpecMismatchError(f"reward: the head was built {'with' if self.film else 'without'} an instruction")
        x_BL = self.reader(tokens_BKPD)
        if self.film is not None:
            scale_BL, shift_BL = self.film(text_BE).chunk(2, dim=1)
            x_BL = x_BL * (1 + scale_BL) + shift_BL
        return self.out(x_BL)[:, 0]


@torch.no_grad()
def score_frames(head: SuccessHead, text: TextEncoder | None, tokens_NKPD: Tensor, instruction: str) -> Float:
    """Logits (N,) of frames under one instruction; all but the first two bound, a `FrameScore`."""
    text_NE = None if text is None else text(instruction).expand(len(tokens_NKPD), -1)
    return head(tokens_NKPD.float(), text_NE).numpy()


def save_classifier(folder: Path, judge: FrameJudge, head: SuccessHead) -> None:
    """Writes `folder`. The frozen encoders are not in it; the name of the pictures' is."""
    save_judge(folder, judge, KIND, {"sizes": head.sizes}, head.state_dict())


def load_classifier(*, folder: str | Path, encoder: Encoder, text: TextEncoder | None = None) -> FrameJudge:
    """What `save_classifier` wrote, in evaluation mode.

    Raises:
        MissingAssetError: none there.
        CorruptFileError: the files are not of such a classifier.
        SpecMismatchError: it was trained on features of another encoder, or needs a text encoder.
    """
    folder = Path(folder)
    arguments, parts, tensors = load_parts(folder, KIND, ("sizes",), encoder)
    try:
        head = SuccessHead(**parts["sizes"])
    except (TypeError, RuntimeError) as error:
        raise CorruptFileError(f"{folder / store.JSON}: sizes are {parts['sizes']!r} ({error})") from error
    if (text is None) != (head.film is None):
        raise SpecMismatchError(f"{folder}: trained {'with' if head.film else 'without'} instructions")
    store.fill(head.state_dict(), tensors, folder)
    return FrameJudge(score=partial(score_frames, head.eval(), text), **arguments)
