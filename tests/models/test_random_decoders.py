import numpy as np
import pytest
import torch

from qcompile.errors import ModelError
from qcompile.models.random_decoders import ARCHITECTURES, random_decoder, tokens


def _logits(module: torch.nn.Module, feed: dict[str, np.ndarray]) -> np.ndarray:
    with torch.no_grad():
        return module(**{name: torch.from_numpy(array) for name, array in feed.items()})["logits"].numpy()


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_decoder_is_small_repeatable_and_causal(architecture: str) -> None:
    module, feed = random_decoder(architecture)
    logits = _logits(module, feed)
    assert logits.shape == (2, 12, 256)
    assert sum(parameter.numel() for parameter in module.parameters()) < 500_000
    assert not any(part.training for part in module.modules())
    np.testing.assert_array_equal(logits, _logits(random_decoder(architecture)[0], feed))
    changed = {**feed, "input_ids": feed["input_ids"].copy()}
    changed["input_ids"][0, -1] += 1
    later = _logits(module, changed)
    np.testing.assert_allclose(later[0, :-1], logits[0, :-1], atol=1e-5)
    assert np.abs(later[0, -1] - logits[0, -1]).max() > 0.1


def test_norm_weights_differ_from_one() -> None:
    module, _ = random_decoder("llama")
    norms = [parameter for name, parameter in module.named_parameters() if "norm" in name]
    assert len(norms) == 5
    assert all(parameter.std() > 0.1 for parameter in norms)


def test_unknown_architecture() -> None:
    with pytest.raises(ModelError, match="Use one of llama, mistral"):
        random_decoder("lama")


def test_random_state_of_the_caller_is_untouched() -> None:
    torch.manual_seed(7)
    expected = torch.rand(3)
    torch.manual_seed(7)
    random_decoder("gpt2")
    assert torch.equal(torch.rand(3), expected)


def test_last_sequence_is_padded() -> None:
    assert tokens(3, 9, seed=0)["attention_mask"].sum(axis=1).tolist() == [9, 9, 7]
