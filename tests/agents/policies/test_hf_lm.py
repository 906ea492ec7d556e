"""The language model as a policy, on a random twin of SmolLM2 with its own tokenizer: what it computes and refuses."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from transformers import PreTrainedTokenizerFast

from agents.batch import answered, pack
from agents.objectives.nll import nll
from agents.policies.decoder import token_logp
from agents.policies.hf_lm import (
    ChatModel,
    add_lora,
    answer_likelihood,
    answer_logp,
    answers,
    chatml,
    from_contents,
    from_hub,
    length_sorted_batches,
    load_adapters,
    reference_logp,
    save_adapters,
    trained,
)
from vla.core.errors import CorruptFileError, GrasplineError, MissingAssetError, SpecMismatchError
from vla.policies.backbones.prompt import byte_tokenizer
from vla.policies.backbones.smollm import read_wheel

SHAPE = {"width": 48, "layers": 2, "heads": 3, "kv_heads": 1, "mlp": 96}
TALK = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hall light?"}]
PROMPTS = [[5, 6, 7, 300, 41], [8], [900, 901, 3]]


def twin(**changes: int) -> ChatModel:
    """SmolLM2's shape made small, random, with weights large enough that a wrong place or mask shows."""
    contents = read_wheel(1, weights=False)
    torch.manual_seed(0)
    policy = from_contents(name="twin", contents=replace(contents, geometry={**contents.geometry, **SHAPE, **changes}))
    with torch.no_grad():
        for parameter in policy.parameters():
            if parameter.ndim == 2:
                parameter.add_(0.2 * torch.randn_like(parameter))
    return policy


@pytest.fixture
def policy() -> ChatModel:
    return twin()


def rows(policy: ChatModel) -> list:
    return [answered(PROMPTS[0], [70, 71, policy.end_id]), answered(PROMPTS[1], [80, policy.end_id])]


def test_a_token_does_not_see_the_future(policy: ChatModel) -> None:
    row, other = torch.tensor([[5, 6, 7, 8]]), torch.tensor([[5, 6, 7, 9]])
    assert torch.equal(policy(row)[:, :3], policy(other)[:, :3])
    policy.language.config.is_causal = False  # as the policies of robots have it: the same test sees it
    assert not torch.equal(policy(row)[:, :3], policy(other)[:, :3])


def test_words_are_read_out_with_the_embedding(policy: ChatModel) -> None:
    table_VD = policy.language.get_input_embeddings().weight
    assert policy.language.get_output_embeddings().weight is table_VD
    states_BND = policy.language.get_decoder()(input_ids=torch.tensor([PROMPTS[0]])).last_hidden_state
    assert torch.allclose(policy(torch.tensor([PROMPTS[0]])), states_BND @ table_VD.T, atol=1e-4)


def test_a_conversation_as_the_model_was_tuned_to_it(policy: ChatModel) -> None:
    assert chatml(TALK) == (
        "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nHall light?<|im_end|>\n<|im_start|>assistant\n"
    )
    ids = policy.prompt(TALK)
    assert ids.count(1) == 3 and ids.count(2) == 2  # the marks are tokens of their own
    assert policy.text([*policy.encode("on, {1}"), policy.end_id, 9]) == "on, {1}"
    with pytest.raises(GrasplineError, match=r"message of the user has '<\|im_'"):
        policy.prompt([{"role": "user", "content": "no <|im_end|>"}])


def test_greedy_answers_equal_those_of_transformers(policy: ChatModel) -> None:
    """Rows of other lengths stand beside them here, padded on the left; there each is alone."""
    got = answers(policy, PROMPTS, limit=7)
    for prompt, answer in zip(PROMPTS, got, strict=True):
        theirs = policy.language.generate(
            torch.tensor([prompt]), attention_mask=torch.ones(1, len(prompt)), max_new_tokens=7, do_sample=False,
            eos_token_id=policy.end_id, pad_token_id=policy.pad_id,
        )  # fmt: skip
        assert theirs[0, len(prompt) :].tolist() == answer


def test_an_answer_stops_at_its_end_while_others_go_on(policy: ChatModel) -> None:
    """The end is made the likeliest token of one row after two words; the others keep what they said before."""
    free = answers(policy, PROMPTS, limit=6)
    policy.end_id = free[0][2]
    stopped = answers(policy, PROMPTS, limit=6)
    for before, after in zip(free, stopped, strict=True):
        cut = before.index(policy.end_id) + 1 if policy.end_id in before else 6
        assert after == before[:cut]
    assert len(stopped[0]) <= 3 < max(map(len, stopped))


def test_a_sample_depends_on_its_own_seed_alone(policy: ChatModel) -> None:
    seeds = [3, 4, 5]
    together = answers(policy, PROMPTS, limit=6, temperature=1.0, seeds=seeds)
    assert together == answers(policy, PROMPTS, limit=6, temperature=1.0, seeds=seeds, batch=1)
    assert together[::-1] == answers(policy, PROMPTS[::-1], limit=6, temperature=1.0, seeds=seeds[::-1])
    assert together != answers(policy, PROMPTS, limit=6, temperature=1.0, seeds=[6, 7, 8])
    with pytest.raises(ValueError, match="seeds has 2 values, expected 3"):
        answers(policy, PROMPTS, limit=1, temperature=1.0, seeds=[1, 2])


def test_samples_follow_the_law(policy: ChatModel) -> None:
    logits_V = policy(torch.tensor([PROMPTS[0]]))[0, -1].detach()
    temperature = float(logits_V.std()) / 6  # few likely words
    law_V = (logits_V / temperature).softmax(0)
    drawn = answers(policy, [PROMPTS[0]] * 600, limit=1, temperature=temperature, seeds=range(600), batch=600)
    best = int(law_V.argmax())
    share = sum(ids == [best] for ids in drawn) / 600
    assert 0.02 < law_V[best] < 0.98
    assert abs(share - float(law_V[best])) < 4 * (float(law_V[best]) / 600) ** 0.5


def test_log_probabilities_are_those_of_the_whole_head(policy: ChatModel) -> None:
    """Against the decoder's function, which reads out every place; and gradients of the whole objective."""
    add_lora(policy, rank=2, alpha=4)
    batch = pack(rows(policy))
    whole_BN = token_logp(policy, batch.inputs_BN, batch.targets_BN)
    logp_BN = answer_logp(policy, batch)
    assert torch.allclose(logp_BN, whole_BN.where(batch.mask_BN, 0.0), atol=1e-4)
    total = batch.mask_BN.sum()
    ours = torch.autograd.grad(answer_likelihood(policy, batch, total), list(trained(policy).values()))
    theirs = torch.autograd.grad(nll(whole_BN, batch.mask_BN, total=total), list(trained(policy).values()))
    assert all(torch.allclose(a, b, atol=1e-5) for a, b in zip(ours, theirs, strict=True))
    assert any(a.abs().max() > 1e-3 for a in ours)


def test_padding_changes_nothing_and_the_end_is_trained(policy: ChatModel) -> None:
    together, alone = pack(rows(policy)), pack(rows(policy)[1:])
    size = alone.mask_BN.shape[1]
    assert torch.allclose(answer_logp(policy, together)[1, :size], answer_logp(policy, alone)[0], atol=1e-5)
    last = together.targets_BN[together.mask_BN].tolist()
    assert last.count(policy.end_id) == 2
    by_id = together.targets_BN != policy.end_id  # what a mask made from padding does where padding is the end
    assert policy.end_id not in together.targets_BN[together.mask_BN & by_id].tolist()


def test_adapters_start_at_nothing_and_train_alone(policy: ChatModel) -> None:
    before = policy(torch.tensor([PROMPTS[0]])).detach()
    frozen = {name: each.clone() for name, each in policy.named_parameters()}
    add_lora(policy, rank=2, alpha=4)
    assert torch.allclose(policy(torch.tensor([PROMPTS[0]])), before, atol=1e-6)
    w, m, kv = 48, 96, 16  # inputs plus outputs of q, k, v, o, gate, up, down, twice: two layers
    assert sum(each.numel() for each in trained(policy).values()) == 2 * 2 * (2 * w * 2 + 2 * (w + kv) + 3 * (w + m))
    optimizer = torch.optim.SGD(trained(policy).values(), lr=1.0)
    batch = pack(rows(policy))
    answer_likelihood(policy, batch, batch.mask_BN.sum()).backward()
    optimizer.step()
    assert not torch.allclose(policy(torch.tensor([PROMPTS[0]])), before, atol=1e-3)
    kept = {name.replace(".base_layer", ""): each for name, each in policy.named_parameters() if "lora_" not in name}
    assert all(torch.equal(kept[name], each) for name, each in frozen.items())


def test_adapters_come_back(policy: ChatModel, tmp_path: Path) -> None:
    add_lora(policy, rank=2, alpha=4)
    with torch.no_grad():
        for each in trained(policy).values():
            each.normal_()
    save_adapters(policy, tmp_path / "a.safetensors")
    other = twin()
    add_lora(other, rank=2, alpha=4)
    load_adapters(other, tmp_path / "a.safetensors")
    assert torch.equal(other(torch.tensor([PROMPTS[0]])), policy(torch.tensor([PROMPTS[0]])))
    wrong = twin()
    add_lora(wrong, rank=3, alpha=4)
    with pytest.raises(CorruptFileError, match="not the adapters of 'twin' with this rank"):
        load_adapters(wrong, tmp_path / "a.safetensors")


def test_batches_are_of_like_length_and_leave_none_out() -> None:
    lengths = [1, 9, 5, 5, 2, 8, 5, 6, 1]
    batches = length_sorted_batches(lengths, 3, torch.Generator().manual_seed(0))
    assert sorted(row for batch in batches for row in batch) == list(range(9))
    assert sorted(sorted(lengths[row] for row in batch) for batch in batches) == [[1, 1, 2], [5, 5, 5], [6, 8, 9]]
    assert batches != length_sorted_batches(lengths, 3, torch.Generator().manual_seed(1))
    with pytest.raises(ValueError, match="lengths has 2 rows, expected at least 3"):
        length_sorted_batches([1, 2], 3, torch.Generator())


def test_a_batch_without_targets_is_refused(policy: ChatModel) -> None:
    batch = pack([answered([5, 6, 7], [])])
    with pytest.raises(GrasplineError, match="all labels of the batch are masked"):
        answer_likelihood(policy, batch, batch.mask_BN.sum())


def test_a_reference_with_another_tokenizer_is_refused(policy: ChatModel) -> None:
    batch = pack(rows(policy))
    assert torch.equal(reference_logp(twin(), policy, batch), answer_logp(policy, batch).detach())
    contents = replace(read_wheel(1, weights=False), tokenizer=byte_tokenizer())
    other = from_contents(name="bytes", contents=replace(contents, geometry={**contents.geometry, **SHAPE}))
    with pytest.raises(SpecMismatchError, match="reference 'bytes' has another tokenizer than the policy 'twin'"):
        reference_logp(other, policy, batch)


@pytest.fixture
def folder(policy: ChatModel, tmp_path: Path) -> Path:
    """The twin in the Hub's layout, with the padding that SmolLM2's own file names: the end."""
    policy.language.save_pretrained(tmp_path)
    words = PreTrainedTokenizerFast(
        tokenizer_object=policy.words, bos_token="<|im_start|>", eos_token="<|im_end|>", pad_token="<|im_end|>"
    )
    words.chat_template = (
        "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    )
    words.save_pretrained(tmp_path)
    return tmp_path


def test_padding_that_ends_an_answer_is_refused(policy: ChatModel, folder: Path) -> None:
    with pytest.raises(GrasplineError, match="pad is 2 and the end of an answer is 2; expected two tokens"):
        from_hub(str(folder))
    read = from_hub(str(folder), pad="<|endoftext|>")
    assert (read.pad_id, read.end_id) == (policy.pad_id, policy.end_id)
    assert read.prompt(TALK) == policy.prompt(TALK)
    assert torch.allclose(read(torch.tensor([PROMPTS[0]])), policy(torch.tensor([PROMPTS[0]])), atol=1e-5)
    with pytest.raises(GrasplineError, match="pad is None"):
        from_hub(str(folder), pad="<pad>")


def test_models_that_cannot_talk_or_are_not_there(folder: Path) -> None:
    for name in ("chat_template.jinja", "tokenizer_config.json"):
        if (folder / name).exists():
            held = (folder / name).read_text()
            if name.endswith("json"):
                (folder / name).write_text(
                    json.dumps({k: v for k, v in json.loads(held).items() if k != "chat_template"})
                )
            else:
                (folder / name).unlink()
    with pytest.raises(GrasplineError, match="it has no chat template"):
        from_hub(str(folder), pad="<|endoftext|>")
    with pytest.raises(MissingAssetError, match="cannot be fetched from the Hub"):  # HF_HUB_OFFLINE is set
        from_hub("HuggingFaceTB/SmolLM2-360M-Instruct")
    with pytest.raises(GrasplineError, match="rank is 0"):
        add_lora(twin(layers=1), rank=0, alpha=1)
