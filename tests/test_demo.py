"""What the demo prints fits a terminal of 80 characters."""

import importlib.util
import io
from pathlib import Path

import pytest
from rich.console import Console

DEMO = Path(__file__).resolve().parents[1] / "examples" / "demo.py"


@pytest.fixture(scope="module")
def demo():
    spec = importlib.util.spec_from_file_location("demo", DEMO)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_no_cell_of_the_table_is_cut_off_at_80_characters(demo):
    rows = {recipe: ["1190.5", "1110.5", "147.25", "12.90", "0.9998", "0.634"] for recipe in demo.RECIPES}
    console = Console(file=io.StringIO(), width=80, color_system=None, legacy_windows=False)
    console.print(demo.table("onnxruntime", rows))
    for line in demo.LEGEND:
        console.print(line)
    lines = console.file.getvalue().splitlines()
    assert max(map(len, lines)) <= 80
    assert "…" not in console.file.getvalue()
    for recipe, cells in rows.items():
        (line,) = (line for line in lines if recipe in line)
        assert line.replace("│", " ").split() == [recipe, *cells]
