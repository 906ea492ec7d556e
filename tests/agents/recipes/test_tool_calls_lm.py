"""The recipe from requests to counts: on a random twin of SmolLM2 in seconds, and on SmolLM2 itself as a slow test."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from agents.envs.tools_english import COLUMNS, KNOWN, tool_requests, written
from agents.policies.hf_lm import ChatModel, answers, from_contents, from_wheel, load_adapters
from agents.recipes import tool_calls_lm as recipe
from vla.policies.backbones.smollm import read_wheel

SMALL = {"rank": 4, "alpha": 8, "lr": 1e-2, "records": 16, "steps": 4, "batch": 8, "test": 4, "limit": 6}


def twin(language: str = "twin", layers: int = 2) -> ChatModel:
    contents = read_wheel(1, weights=False)
    shape = {"width": 48, "layers": layers, "heads": 3, "kv_heads": 1, "mlp": 96}
    torch.manual_seed(0)
    policy = from_contents(name=language, contents=replace(contents, geometry={**contents.geometry, **shape}))
    with torch.no_grad():  # words as far apart as a trained model's: with fresh ones no answer could be likely
        policy.language.get_input_embeddings().weight.mul_(10)
    return policy


def test_the_conversation() -> None:
    asked = tool_requests(1, KNOWN, torch.Generator().manual_seed(0), fresh=False)[0]
    system, user = recipe.told(asked)
    assert '{"name": tool, "arguments"' in system["content"]
    assert user["content"].endswith(f"Request: {asked.text}") and "set_light(room:" in user["content"]
    shown = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    assert recipe.told(asked, shown) == [system, *shown, user]


def test_the_call_and_its_end_are_trained_and_the_prompt_is_not(monkeypatch: pytest.MonkeyPatch) -> None:
    """Batches as the loop sees them, against the requests written anew."""
    policy, seen = twin(), []
    monkeypatch.setattr(recipe, "train", lambda state, draw, objective, **_: seen.append(draw(policy, state.generator)))
    recipe.tune(policy, seed=1, **{key: SMALL[key] for key in ("rank", "alpha", "lr", "records", "steps", "batch")})
    asked = tool_requests(16, KNOWN, torch.Generator().manual_seed(2001), fresh=False)
    wanted = {written(each.call) for each in asked}
    for ids, mask in zip(seen[0].targets_BN, seen[0].mask_BN, strict=True):
        answer = ids[mask].tolist()
        assert answer[-1] == policy.end_id and policy.text(answer) in wanted
        prompt = policy.words.decode(ids[: int(mask.nonzero()[0])].tolist(), skip_special_tokens=False)
        assert prompt.endswith("<|im_end|>\n<|im_start|>assistant\n")


def test_the_twin_goes_all_the_way(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(recipe, "read", twin)
    recipe.untuned.cache_clear()
    run = {"seed": 3, "language": "twin", "layers": 2, **SMALL, "steps": 24}
    effect = recipe.tool_calls_lm(**run, out=str(tmp_path))
    arms = [f"{arm}, {name}" for arm in (recipe.RELEASED, recipe.SHOWN, recipe.TUNED) for name in recipe.SETS]
    assert list(effect.scores) == arms and {effect.baseline, effect.method} <= set(arms)
    losses = [json.loads(line)["loss"] for line in (tmp_path / "losses_3.jsonl").read_text().splitlines()]
    assert len(losses) == 24 and losses[0] > 10 and losses[-1] < losses[0] - 1.5
    found = json.loads((tmp_path / "all_3.json").read_text())["counts"]
    assert found[recipe.TUNED]["new tools"]["valid"][:2] == [0, 4]
    tuned = twin()
    recipe.add_lora(tuned, rank=4, alpha=8)
    load_adapters(tuned, tmp_path / "adapters_3.safetensors")
    kept = json.loads((tmp_path / "tuned_3.json").read_text())["answers"][recipe.TUNED]
    assert json.loads(json.dumps(recipe.measured(tuned, recipe.asked_in_tests(4), limit=6))) == kept
    assert recipe.tool_calls_lm(**run).scores == effect.scores
    recipe.untuned.cache_clear()


def test_counts_and_their_interval() -> None:
    rows = [dict.fromkeys(COLUMNS, True)] * 9 + [dict.fromkeys(COLUMNS, False)]
    count, total, low, high = recipe.counts({"new tools": rows})["new tools"]["valid"]
    assert (count, total) == (9, 10) and recipe.share(rows) == 0.9
    assert (low, high) == (pytest.approx(0.5958, abs=1e-4), pytest.approx(0.9821, abs=1e-4))  # Wilson, z = 1.96


@pytest.mark.slow
def test_smollm2_answers_as_transformers_makes_it_and_learns() -> None:
    policy = from_wheel()
    prompts = [
        policy.prompt([{"role": "user", "content": text}])
        for text in ("What is the capital of France?", "Say hello.", "Name three colours, and nothing else.")
    ]
    said = answers(policy, prompts, limit=20)
    assert "Paris" in policy.text(said[0])
    for prompt, answer in zip(prompts, said, strict=True):
        theirs = policy.language.generate(
            torch.tensor([prompt]), attention_mask=torch.ones(1, len(prompt)), max_new_tokens=20, do_sample=False,
            eos_token_id=policy.end_id, pad_token_id=policy.pad_id,
        )  # fmt: skip
        assert theirs[0, len(prompt) :].tolist() == answer
    rows = recipe.tune(policy, seed=0, rank=8, alpha=16, lr=1e-3, records=32, steps=8, batch=4)
    assert rows[-1]["loss"] < 0.6 * rows[0]["loss"]
