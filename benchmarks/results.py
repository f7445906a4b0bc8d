"""Results of benchmarks: rows of a table, goals with what was measured, the machine they were measured on."""

from __future__ import annotations

import dataclasses
import importlib.metadata
import json
import os
import platform
import re
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table

ROOT = Path(__file__).parents[1]
FOLDER = ROOT / "benchmarks" / "results"
DOCUMENTS = tuple(ROOT / name for name in ("README.md", "BENCHMARKS.md"))
PACKAGES = ("onnxruntime", "openvino", "nncf", "torch", "onnx", "onnxscript", "transformers")

Row = Mapping[str, str | float]


@dataclasses.dataclass(frozen=True)
class Goal:
    """A number that the project has set itself.

    Attributes:
        name: what is measured.
        measured: the figure of this run.
        bound: what it has to reach.
        at_most: True when smaller is better.
    """

    name: str
    measured: float
    bound: float
    at_most: bool = False

    @property
    def holds(self) -> bool:
        """Whether this run reached the goal."""
        return self.measured <= self.bound if self.at_most else self.measured >= self.bound


@dataclasses.dataclass(frozen=True)
class Benchmark:
    """What one benchmark found out.

    Attributes:
        title: one line over the table.
        rows: all with the same keys, which become the columns.
        goals: the goals that the rows decide.
    """

    title: str
    rows: Sequence[Row]
    goals: Sequence[Goal] = ()


def machine() -> str:
    """Model of the CPU and number of cores, as the operating system tells them."""
    model = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        text = cpuinfo.read_text(encoding="utf-8")
        name = re.search(r"^model name\s*: (.*)$", text, re.M)
        model = name[1] if name else model
        features = [
            flag for flag in ("avx2", "avx512_vnni", "avx512_bf16", "amx_int8") if re.search(rf"\b{flag}\b", text)
        ]
        model = f"{model} ({', '.join(features)})" if features else model
    return f"{model}, {os.cpu_count()} cores"


def versions() -> dict[str, str]:
    """Versions of everything that is measured; a peer that is not installed was not measured, and is left out."""
    installed = {distribution.name for distribution in importlib.metadata.distributions()}
    return {name: importlib.metadata.version(name) for name in PACKAGES if name in installed}


def commit() -> str:
    """Short hash of the commit that is checked out, with a "+" where files differ from it; "unknown" without git.

    Results and the documents that show them do not count: a benchmark writes them itself.
    """
    outputs = [FOLDER, *DOCUMENTS]
    others = [f":(exclude){path.relative_to(ROOT)}" for path in outputs]
    try:
        head = _git("rev-parse", "--short", "HEAD")
        changed = _git("status", "--porcelain", "--", ".", *others)
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return f"{head}+" if changed else head


def _git(*arguments: str) -> str:
    command = ["git", *arguments]
    return subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout.strip()


def save(name: str, benchmark: Benchmark, revision: str) -> Path:
    """Write benchmarks/results/<name>.json; the revision is the `commit` before the first benchmark ran."""
    FOLDER.mkdir(exist_ok=True)
    path = FOLDER / f"{name}.json"
    data = {"machine": machine(), "commit": revision, "versions": versions(), **dataclasses.asdict(benchmark)}
    path.write_text(json.dumps(data, indent=1) + "\n", encoding="utf-8")
    return path


def show(benchmark: Benchmark, console: Console) -> None:
    """Print the rows, and then every goal with what was measured."""
    table = Table(title=benchmark.title, title_justify="left")
    for column in benchmark.rows[0]:
        table.add_column(column, justify="left" if isinstance(benchmark.rows[0][column], str) else "right")
    for row in benchmark.rows:
        table.add_row(*map(format_cell, row.values()))
    console.print(table)
    for goal in benchmark.goals:
        sign, verdict = "≤" if goal.at_most else "≥", "[green]holds" if goal.holds else "[red]falls short"
        console.print(f"  {goal.name}: {format_cell(goal.measured)} (goal {sign} {format_cell(goal.bound)}) {verdict}")


def format_cell(cell: str | float) -> str:
    """Three significant digits for numbers; text as it is."""
    if isinstance(cell, str):
        return cell
    return f"{cell:.0f}" if abs(cell) >= 100 else f"{cell:.3g}"


def markdown(benchmark: Benchmark) -> str:
    """Return the rows as a Markdown table."""
    columns = list(benchmark.rows[0])
    lines = [columns, ["---" if isinstance(benchmark.rows[0][column], str) else "---:" for column in columns]]
    lines += [[format_cell(row[column]) for column in columns] for row in benchmark.rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def update_documents(name: str, benchmark: Benchmark, where: str, revision: str) -> None:
    """Put table, machine and commit between the markers `<!-- name -->` and `<!-- /name -->` of every document."""
    source = f"Measured by `make bench` at commit {revision} on {where}."
    block = f"<!-- {name} -->\n{markdown(benchmark)}\n\n{source}\n<!-- /{name} -->"
    for document in DOCUMENTS:
        text = document.read_text(encoding="utf-8")
        updated = re.sub(rf"<!-- {name} -->.*?<!-- /{name} -->", lambda _: block, text, flags=re.S)
        if updated != text:
            document.write_text(updated, encoding="utf-8")
