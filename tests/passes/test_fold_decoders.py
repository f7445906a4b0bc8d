"""Random small decoders of twelve architectures: every scale that the algebra of the graph allows is folded."""

import numpy as np
import pytest

from qcompile.backends.onnxruntime import BACKEND
from qcompile.calibration import Calibrator
from qcompile.canonical import canonical_passes
from qcompile.models.random_decoders import ARCHITECTURES, tokens
from qcompile.passes.fold_scales import FoldScales
from qcompile.passes.observe_channels import ObserveChannels
from qcompile.passes.smooth_activations import SmoothActivations

LAYERS, HEAD = 2, 1
# Groups of linears of a layer that read one value: those that fold, and those behind Gelu, which do not.
PER_LAYER = {
    "llama": (4, 0),
    "mistral": (4, 0),
    "qwen3": (4, 0),
    "gemma3_text": (4, 0),
    "opt": (4, 0),
    "bloom": (3, 1),
    "falcon": (2, 1),
    "gpt2": (3, 1),
    "gpt_neox": (3, 1),
    "phi": (2, 1),
    "mpt": (3, 1),
    "stablelm": (4, 0),
}


def test_every_architecture_is_here():
    assert set(PER_LAYER) == set(ARCHITECTURES)


@pytest.mark.slow
@pytest.mark.parametrize("architecture", PER_LAYER)
def test_every_scale_that_the_algebra_allows_is_folded(architecture, traced_decoder):
    pytest.importorskip("transformers")
    model, feed = traced_decoder(architecture), tokens(2, 12, seed=0)
    for canonical in canonical_passes():
        model = canonical(model).model
    (before,) = BACKEND.open_session(model).run(feed).values()
    calibrator = Calibrator([feed], ObserveChannels, BACKEND.open_session)
    folding, refused = (count * LAYERS for count in PER_LAYER[architecture])

    smoothed = SmoothActivations(alpha=0.5, min_gain=1.0, calibrator=calibrator)(model)
    (between,) = BACKEND.open_session(model).run(feed).values()
    folded = FoldScales()(model)
    (after,) = BACKEND.open_session(model).run(feed).values()

    actions = [finding.action for finding in smoothed.findings]
    assert (actions.count("converted"), actions.count("kept")) == (folding + HEAD, refused)
    assert [finding.action for finding in folded.findings] == ["folded"] * (folding + HEAD)
    for output in (between, after):
        assert np.abs(output - before).max() <= 1e-5 * np.ptp(before)
    assert not FoldScales()(model).modified
