"""What the documents show is true: their code runs, and their tables name what there is."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from qcompile.recipe import named_recipes

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def test_python_blocks_of_the_readme_run_in_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"^```python\n(.*?)^```", README, re.M | re.S)
    assert len(blocks) > 3
    namespace: dict[str, object] = {"__name__": "readme"}
    for block in blocks:
        exec(compile(block, "README.md", "exec"), namespace)
    assert (tmp_path / "report.html").is_file()


def test_recipe_table_names_every_recipe() -> None:
    table = re.search(r"<!-- recipes -->(.*?)<!-- /recipes -->", README, re.S)
    assert table is not None
    assert set(re.findall(r"^\| `([\w-]+)` \|", table[1], re.M)) == set(named_recipes())


@pytest.mark.parametrize("document", sorted(path.name for path in ROOT.glob("*.md")))
def test_links_lead_to_files(document: str) -> None:
    text = (ROOT / document).read_text(encoding="utf-8")
    links = [link for link in re.findall(r"\]\(([^)#]+)", text) if "://" not in link]
    assert [link for link in links if not (ROOT / link).exists()] == []
