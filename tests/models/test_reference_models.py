"""The real models give the right answers on their data: a wrong preprocessing would hide what quantization costs."""

import numpy as np
import onnxruntime
import pytest
import torch

from qcompile.models import crepe, efficientnet_lite, magika, ppocr, smollm2, texts
from qcompile.models.reference import ReferenceModel, top1

pytestmark = pytest.mark.data


def _scores(reference: ReferenceModel) -> list[np.ndarray]:
    if isinstance(reference.model, torch.nn.Module):
        with torch.no_grad():
            return [reference.model(*map(torch.from_numpy, feed.values())).numpy() for feed in reference.held_out]
    session = onnxruntime.InferenceSession(reference.model)
    return [session.run(None, feed)[0] for feed in reference.held_out]


def _disjoint(reference: ReferenceModel) -> bool:
    calibration = {next(iter(feed.values())).tobytes() for feed in reference.calibration}
    return not any(next(iter(feed.values())).tobytes() in calibration for feed in reference.held_out)


def test_efficientnet_recognises_the_photos() -> None:
    reference = efficientnet_lite.load(calibration=8, held_out=16)
    assert _disjoint(reference)
    cats = efficientnet_lite.crops_of(["chelsea.png"], 8, seed=0)
    with torch.no_grad():
        classes = [int(top1(reference.model(torch.from_numpy(feed["inputs"])).numpy())[0]) for feed in cats]
    assert np.mean([281 <= label <= 285 for label in classes]) > 0.8  # the cats of ImageNet


def test_magika_knows_the_type_of_installed_files() -> None:
    reference = magika.load(calibration=16, held_out=64)
    assert _disjoint(reference)
    labels = magika.configuration()["target_labels_space"]
    expected = [label for _, label in magika.labelled_samples(80)[16:]]
    right = [labels[int(top1(scores)[0])] == label for scores, label in zip(_scores(reference), expected, strict=True)]
    assert np.mean(right) > 0.8


def test_magika_features_of_short_and_padded_content() -> None:
    settings = {"beg_size": 6, "end_size": 4, "padding_token": 256, "block_size": 16}
    assert magika.features(b"  ab ", settings).tolist() == [[97, 98, 32, 256, 256, 256, 32, 32, 97, 98]]


def test_ppocr_reads_rendered_lines() -> None:
    reference = ppocr.load(calibration=4, held_out=4)
    assert _disjoint(reference)
    characters = onnxruntime.InferenceSession(reference.model).get_modelmeta().custom_metadata_map["character"]
    alphabet = ["", *characters.split("\n"), " "]
    lines = []
    for scores in _scores(reference):
        steps = top1(scores)[0]
        kept = [step for step, before in zip(steps, [0, *steps[:-1]], strict=True) if step and step != before]
        lines.append("".join(alphabet[step] for step in kept))
    assert lines[1].startswith(texts.held_out_texts(4)[1][:12])


def test_crepe_hears_the_pitch() -> None:
    reference = crepe.load(calibration=4, held_out=32)
    assert _disjoint(reference)
    expected = np.array([crepe.pitch_bin(frequency) for frequency in crepe.tones(32, seed=1)[1]])
    heard = np.concatenate([top1(scores) for scores in _scores(reference)])
    assert np.abs(heard - expected).max() <= 2


@pytest.mark.slow
def test_smollm2_predicts_english() -> None:
    loaded = smollm2.load()
    feed = next(loaded.batches(texts.held_out_texts(1)))
    with torch.no_grad():
        logits = loaded.module(**{name: torch.from_numpy(array) for name, array in feed.items()})["logits"]
    loss = torch.nn.functional.cross_entropy(logits[0, :-1], torch.from_numpy(feed["input_ids"][0, 1:]))
    assert loss.exp() < 60
