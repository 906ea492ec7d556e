"""A language model that is shown a picture and asked "is the task finished?": success by the next word.

    picture -> frozen tower -> tokens -> projector (trains) -> words' width
    [before] [picture tokens of all cameras] [question] -> causal language model -> next token

Score: logit("yes") - logit("no"), the log-odds of the two-way choice; above 0 is RoboFuME's p(yes) > p(no), and a
threshold chosen on held-out episodes is better. Loss: cross entropy of the answer token over the whole vocabulary.
The language model is frozen, or gets LoRA adapters; with either, only what trained is saved.
Source: RoboFuME's reward classifier (arXiv 2310.15145); projector as in LLaVA.
"""

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from rewards.learned import store
from rewards.learned.causal import CausalLanguage
from rewards.learned.declared import FrameJudge, load_parts, save_judge
from rewards.learned.fit import HalfBatch
from rewards.learned.frames import Encoder
from vla.core.errors import CorruptFileError, SpecMismatchError
from vla.core.types import Float

KIND = "yes_no"
QUESTION = "Is the robot's task '{task}' finished in this picture? yes or no"
SCORE_AT_ONCE = 16  # frames


class YesNo(nn.Module):
    """Picture tokens (B, K, P, D) and tasks to the logits of the answer (B, vocabulary)."""

    def __init__(self, *, language: CausalLanguage, width: int, rank: int | None = None) -> None:
        """Freezes the language model, adds a new projector and, with a rank, LoRA adapters.

        Args:
            language: changed in place.
            width: D, of a picture token.
            rank: of the adapters on queries and values; None for none.

        Raises:
            GrasplineError: "yes" or "no" is not one token of its vocabulary.
        """
        super().__init__()
        self.language, self.width, self.rank = language.model, width, rank
        self.language.requires_grad_(False)
        if rank is not None:
            _add_lora(self.language, rank)
        table_VW: Tensor = self.language.get_input_embeddings().weight
        inner = table_VW.shape[1]
        scaled = nn.LayerNorm(inner)
        # Tokens of a length that the language model is used to: without it the first steps only mend the scale.
        nn.init.constant_(scaled.weight, float(table_VW.std()))
        self.projector = nn.Sequential(nn.Linear(width, inner), nn.GELU(), nn.Linear(inner, inner), scaled)
        self.yes_id, self.no_id = language.answer_id("yes"), language.answer_id("no")
        self._before = language.tokenize(language.template[0])
        self._after, self._tokenize = language.template[1], language.tokenize
        self.language_name = language.name

    def forward(self, tokens_BKPD: Tensor, tasks: Sequence[str]) -> Tensor:
        """Raises SpecMismatchError for tokens of another width."""
        if tokens_BKPD.shape[-1] != self.width:
            raise SpecMismatchError(f"reward: tokens of width {tokens_BKPD.shape[-1]}, trained on {self.width}")
        embed = self.language.get_input_embeddings()
        before_1N = torch.tensor([self._before])
        questions = [self._tokenize(self._after.format(question=QUESTION.format(task=task))) for task in tasks]
        length_B = torch.tensor([len(each) for each in questions])
        longest = int(length_B.max())
        after_BN = torch.tensor([[*each, *[0] * (longest - len(each))] for each in questions])
        seen_BNW = self.projector(tokens_BKPD.flatten(1, 2))
        sequence_BNW = torch.cat([embed(before_1N).expand(len(seen_BNW), -1, -1), seen_BNW, embed(after_BN)], dim=1)
        last_B = sequence_BNW.shape[1] - longest + length_B - 1
        mask_BN = torch.arange(sequence_BNW.shape[1]) <= last_B[:, None]
        states_BNW = self.language.get_decoder()(
            inputs_embeds=sequence_BNW, attention_mask=mask_BN.long()
        ).last_hidden_state
        return self.language.get_output_embeddings()(states_BNW[torch.arange(len(last_B)), last_B])

    def trained(self) -> dict[str, Tensor]:
        """The parameters that train, by name."""
        return {name: parameter for name, parameter in self.named_parameters() if parameter.requires_grad}


def yes_no_loss(judge: YesNo, tasks: Sequence[str], batch: HalfBatch) -> Tensor:
    """Next-token cross entropy; all but the last argument bound, a loss for `fit`. `tasks` are the instructions."""
    logits_BV = judge(batch.tokens_BKPD, [tasks[text] for text in batch.text_B.tolist()])
    answer_B = torch.where(batch.label_B > 0.5, judge.yes_id, judge.no_id)
    return functional.cross_entropy(logits_BV, answer_B)


@torch.no_grad()
def score_frames(judge: YesNo, tokens_NKPD: Tensor, instruction: str) -> Float:
    """logit(yes) - logit(no) of frames (N,); with the judge bound, a `FrameScore`."""
    scores = []
    for part in tokens_NKPD.split(SCORE_AT_ONCE):
        logits_BV = judge(part.float(), [instruction] * len(part))
        scores.append(logits_BV[:, judge.yes_id] - logits_BV[:, judge.no_id])
    return torch.cat(scores).numpy()


def save_yes_no(folder: Path, frame_judge: FrameJudge, judge: YesNo) -> None:
    """Writes what trained, and the name of the language model that did not."""
    parts: dict[str, Any] = {"language": judge.language_name, "width": judge.width, "rank": judge.rank}
    save_judge(folder, frame_judge, KIND, parts, judge.trained())


def load_yes_no(*, folder: str | Path, encoder: Encoder, language: CausalLanguage) -> FrameJudge:
    """What `save_yes_no` wrote.

    Raises:
        MissingAssetError: none there.
        CorruptFileError: the files are not of such a judge.
        SpecMismatchError: another encoder or language model than it was trained with.
    """
    folder = Path(folder)
    arguments, parts, tensors = load_parts(folder, KIND, ("language", "width", "rank"), encoder)
    if parts["language"] != language.name:
        raise SpecMismatchError(
            f"{folder}: trained with '{parts['language']}', the language model is '{language.name}'"
        )
    if type(parts["width"]) is not int or not (parts["rank"] is None or type(parts["rank"]) is int):
        raise CorruptFileError(f"{folder / store.JSON}: width and rank are {parts['width']!r}, {parts['rank']!r}")
    judge = YesNo(language=language, width=parts["width"], rank=parts["rank"])
    store.fill(judge.trained(), tensors, folder)
    return FrameJudge(score=partial(score_frames, judge.eval()), **arguments)


def _add_lora(model: nn.Module, rank: int) -> None:
    from peft import LoraConfig, inject_adapter_in_model  # here: costs seconds that a frozen model need not pay

    names = ["q_proj", "v_proj"]
    inject_adapter_in_model(LoraConfig(r=rank, lora_alpha=2 * rank, target_modules=names), model)
