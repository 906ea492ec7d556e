"""Our losses, and their gradients, against TRL's own code paths on fixed batches: trainers as TRL builds them.

TRL 1.16. The model is a random two-head Llama of one layer; TRL generates, scores and weighs the attempts itself.
"""

from pathlib import Path
from typing import Any

import pytest
import torch

from agents.advantages import group_advantages, leave_one_out_advantages
from agents.objectives.nll import dft_weights, nll
from agents.objectives.pair import pair_loss, pair_margin
from agents.objectives.policy_gradient import policy_gradient
from agents.objectives.reduce import sequence_sum
from agents.objectives.tokens import token_cross_entropy

pytestmark = pytest.mark.slow  # importing trl alone takes 20 s on a slow core

IDS = torch.tensor([[3, 4, 5, 6, 7, 1], [8, 9, 3, 4, 1, 0], [5, 5, 6, 12, 9, 1], [3, 7, 1, 0, 0, 0]])
LENGTHS = torch.tensor([6, 5, 6, 3])
ATTENTION = (torch.arange(6) < LENGTHS[:, None]).long()
ANSWER = (torch.arange(6) >= 2) & ATTENTION.bool()


def tiny_model(seed: int) -> Any:
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(seed)
    sizes = {
        "vocab_size": 16,
        "hidden_size": 16,
        "intermediate_size": 32,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "num_key_value_heads": 2,
        "max_position_embeddings": 64,
    }
    config = LlamaConfig.from_dict({**sizes, "initializer_range": 0.5, "pad_token_id": 0, "eos_token_id": 1})
    return LlamaForCausalLM(config)


def tokenizer() -> Any:
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = {word: i for i, word in enumerate(["<pad>", "<end>", "<unk>", *(f"w{i}" for i in range(13))])}
    plain = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    plain.pre_tokenizer = pre_tokenizers.Whitespace()  # type: ignore[assignment]
    return PreTrainedTokenizerFast(tokenizer_object=plain, pad_token="<pad>", eos_token="<end>", unk_token="<unk>")


def trainer(kind: str, folder: Path, rows: dict[str, list[str]], **options: Any) -> Any:
    import trl
    from datasets import Dataset

    settings = {name: options.pop(name) for name in list(options) if name not in ("reward_funcs", "ref_model")}
    config = getattr(trl, f"{kind}Config")(
        output_dir=str(folder), use_cpu=True, bf16=False, report_to="none", per_device_train_batch_size=4, **settings
    )
    made = getattr(trl, f"{kind}Trainer")(
        tiny_model(0), args=config, train_dataset=Dataset.from_dict(rows), processing_class=tokenizer(), **options
    )
    made.current_gradient_accumulation_steps = 1  # which the training loop would set
    made.model.eval()  # no dropout here; TRL divides as in a batch of its own
    return made


def logp_of(model: Any, ids: torch.Tensor, attention: torch.Tensor) -> torch.Tensor:
    """(B, N - 1) of each token but the first, from the plain logits."""
    logits = model(input_ids=ids, attention_mask=attention, use_cache=False).logits
    return -token_cross_entropy(logits[:, :-1], ids[:, 1:])


def assert_same(ours: torch.Tensor, theirs: torch.Tensor, model: Any) -> None:
    torch.testing.assert_close(ours, theirs)
    parameters = list(model.parameters())
    for a, b in zip(torch.autograd.grad(ours, parameters), torch.autograd.grad(theirs, parameters)):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("loss_type", ["nll", "dft"])
def test_supervised(tmp_path, loss_type):
    made = trainer("SFT", tmp_path, {"prompt": ["w1 w2"], "completion": ["w3"]}, loss_type=loss_type, max_length=None)
    inputs = {"input_ids": IDS, "attention_mask": ATTENTION, "labels": IDS.masked_fill(~ANSWER, -100)}
    theirs = made.compute_loss(made.model, inputs)
    logp = logp_of(made.model, IDS, ATTENTION)
    weights = dft_weights(logp) if loss_type == "dft" else None
    assert_same(nll(logp, ANSWER[:, 1:], weights), theirs, made.model)
    assert not torch.isclose(nll(logp, ANSWER[:, 1:], weights, how="sequence"), theirs)


@pytest.mark.parametrize(("loss_type", "kind"), [("sigmoid", "logistic"), ("hinge", "hinge"), ("ipo", "ipo")])
def test_preferences(tmp_path, loss_type, kind):
    rows = {"prompt": ["w1 w2"], "chosen": ["w3"], "rejected": ["w4"]}
    made = trainer("DPO", tmp_path, rows, loss_type=[loss_type], beta=0.3, ref_model=tiny_model(1))
    inputs = {"input_ids": IDS, "attention_mask": ATTENTION, "completion_mask": ANSWER.long()}
    theirs = made.compute_loss(made.model, inputs)
    mask = ANSWER[:, 1:]
    divisor = mask.sum(1) if kind == "ipo" else 1  # means of tokens, as TRL and the authors of IPO
    policy = sequence_sum(logp_of(made.model, IDS, ATTENTION), mask) / divisor
    reference = sequence_sum(logp_of(made.ref_model, IDS, ATTENTION), mask) / divisor
    margin = pair_margin(policy[:2], policy[2:], reference[:2], reference[2:])
    assert_same(pair_loss(margin, 0.3, kind).mean(), theirs, made.model)


def rewards_by_length(completion_ids: list[list[int]], **_: Any) -> list[float]:
    return [float(sum(ids) % 7) for ids in completion_ids]


def attempts(made: Any) -> tuple[dict[str, Any], torch.Tensor, torch.Tensor]:
    """TRL samples 2 groups of 4; returns its batch, the rewards and the groups."""
    torch.manual_seed(0)
    made.model.train()
    batch = made._generate_and_score_completions([{"prompt": text} for text in ["w1 w2"] * 4 + ["w4 w5"] * 4])
    made.model.eval()
    ids = [row[mask.bool()].tolist() for row, mask in zip(batch["completion_ids"], batch["completion_mask"])]
    return batch, torch.tensor(rewards_by_length(ids)), torch.tensor([0] * 4 + [1] * 4)


def completion_logp(made: Any, batch: dict[str, Any]) -> torch.Tensor:
    ids = torch.cat([batch["prompt_ids"], batch["completion_ids"]], dim=1)
    attention = torch.cat([batch["prompt_mask"], batch["completion_mask"]], dim=1)
    return logp_of(made.model, ids, attention)[:, -batch["completion_ids"].shape[1] :]


GROUP = {"num_generations": 4, "max_completion_length": 6, "reward_funcs": rewards_by_length}


@pytest.mark.parametrize(
    ("options", "ours", "scale"),
    [
        ({"loss_type": "grpo"}, {"how": "sequence"}, True),
        ({"loss_type": "dapo", "epsilon_high": 0.28}, {"how": "token", "clip_high": 0.28}, True),
        ({"loss_type": "dr_grpo", "scale_rewards": "none"}, {"how": "constant", "length": 6}, False),
        ({"loss_type": "cispo", "epsilon_high": 1.2}, {"surrogate": "cispo", "clip_low": 1.0}, True),
        (
            {"loss_type": "grpo", "importance_sampling_level": "sequence"},
            {"how": "sequence", "ratio": "sequence_mean"},
            True,
        ),
    ],
    ids=["grpo", "dapo", "dr_grpo", "cispo", "gspo"],
)
@pytest.mark.parametrize(("kl", "unbiased"), [(0.0, True), (0.1, True), (0.1, False)])
def test_groups(tmp_path, options, ours, scale, kl, unbiased):
    options = options | {"use_bias_correction_kl": unbiased}
    made = trainer("GRPO", tmp_path, {"prompt": ["w1 w2", "w4 w5"]}, **GROUP, **options)
    batch, rewards, groups = attempts(made)
    advantages = group_advantages(rewards, groups, scale=scale).advantages_B
    torch.testing.assert_close(advantages, batch["advantages"])
    logp = completion_logp(made, batch)
    noise = torch.Generator().manual_seed(2)
    old, ref = (logp.detach() + 0.4 * torch.randn(logp.shape, generator=noise) for _ in range(2))
    batch |= {"old_per_token_logps": old, "ref_per_token_logps": ref}
    made.beta = kl
    theirs = made.compute_loss(made.model, batch)

    def loss(**changed: Any) -> torch.Tensor:
        settings = {"logp_old_BN": old, "logp_ref_BN": ref, "kl_coefficient": kl, "unbiased_kl": unbiased}
        return policy_gradient(logp, advantages, batch["completion_mask"], **{**settings, **ours, **changed})

    assert_same(loss(), theirs, made.model)
    assert not torch.isclose(loss(how="token" if ours.get("how") == "sequence" else "sequence"), theirs)


def test_leave_one_out(tmp_path):
    made = trainer("RLOO", tmp_path, {"prompt": ["w1 w2", "w4 w5"]}, **GROUP, beta=0.0)
    batch, rewards, groups = attempts(made)
    advantages = leave_one_out_advantages(rewards, groups).advantages_B
    torch.testing.assert_close(advantages, batch["advantages"])
    mask, logp = batch["completion_mask"], completion_logp(made, batch)
    old = logp.detach() + 0.1 * torch.randn(logp.shape, generator=torch.Generator().manual_seed(2))
    batch["old_logps"] = sequence_sum(old, mask)
    theirs = made.compute_loss(made.model, batch)
    loss = policy_gradient(logp, advantages, mask, logp_old_BN=old, ratio="sequence_sum", how="sequence")
    assert_same(loss, theirs, made.model)
