"""PP-OCRv4 text recognition: an .onnx file whose weights are Constant nodes, and rendered lines of text to read."""

from __future__ import annotations

import numpy as np

from qcompile.models import texts
from qcompile.models.installed import import_optional, package_file
from qcompile.models.reference import Feed, ReferenceModel

REQUIREMENT = "--no-deps rapidocr-onnxruntime==1.4.4"
HEIGHT, WIDTH = 48, 320


def rendered_line(text: str, *, seed: int) -> np.ndarray:
    """Draw a line of text, dark on light, with random contrast and noise, as the model wants to see it.

    Args:
        text: what to write; what does not fit into 320 pixels is cut off.
        seed: of size, contrast and noise.

    Returns:
        float32 [1, 3, 48, 320] in -1..1.
    """
    image = import_optional("PIL.Image", "pillow")
    draw = import_optional("PIL.ImageDraw", "pillow")
    font = import_optional("PIL.ImageFont", "pillow")
    generator = np.random.default_rng(seed)
    paper, ink = int(generator.integers(180, 256)), int(generator.integers(0, 90))
    canvas = image.new("L", (WIDTH, HEIGHT), paper)
    draw.Draw(canvas).text((6, 6), text, fill=ink, font=font.load_default(size=int(generator.integers(24, 33))))
    pixels = np.asarray(canvas, dtype=np.float32) + generator.normal(0, generator.uniform(0, 12), (HEIGHT, WIDTH))
    scaled = (pixels.clip(0, 255).astype(np.float32) / 255 - 0.5) / 0.5
    return np.repeat(scaled[None, None], 3, axis=1)


def _feeds(passages: list[str], seed: int) -> list[Feed]:
    return [{"x": rendered_line(text[:28], seed=seed + index)} for index, text in enumerate(passages)]


def load(calibration: int = 64, held_out: int = 64) -> ReferenceModel:
    """Return the path of the model, and rendered lines to calibrate on and to measure on.

    Raises:
        MissingDependencyError: when rapidocr-onnxruntime or pillow is not installed.
    """
    path = package_file("rapidocr_onnxruntime", REQUIREMENT, "models", "ch_PP-OCRv4_rec_infer.onnx")
    calibration_feeds = _feeds(texts.calibration_texts(calibration), seed=0)
    held_out_feeds = _feeds(texts.held_out_texts(held_out), seed=1000)
    return ReferenceModel(path, calibration_feeds[0], calibration_feeds, held_out_feeds)
