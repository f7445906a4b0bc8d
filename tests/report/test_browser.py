"""The page in a real browser, where one is installed: no message on its console, and no sideways scrolling."""

import dataclasses
import html
import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from qcompile.report import Report
from qcompile.report.budget import BudgetReport
from qcompile.report.page import render
from tests.report.test_page import report_of

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "chrome"))), None)

pytestmark = pytest.mark.skipif(BROWSER is None, reason="no Chromium is installed")

# The page runs no script; this one looks at it from outside, in a frame as wide as a screen.
OUTSIDE = """<!doctype html><title>?</title>
<iframe width="{width}" height="900" style="border:0" srcdoc="{page}"></iframe>
<script>
onload = () => {{
  const frame = frames[0], page = frame.document, style = frame.getComputedStyle(page.body);
  const cut = [...page.querySelectorAll("b, span, td, p, li, h1, code")].filter(
    (each) => !each.closest(".scroll, pre") && each.getBoundingClientRect().right > {width} + 1
  );
  console.info("looked");
  document.title = JSON.stringify(
    {{wide: page.documentElement.scrollWidth, cut: cut.map((each) => each.textContent),
      page: style.backgroundColor, text: style.color, dots: page.querySelectorAll("svg .dot").length}}
  );
}};
</script>
"""


def looked_at(report: Report, folder: Path, width: int, *options: str) -> dict:
    """Open the page in a frame of so many pixels; return what it looks like there."""
    file = folder / "outside.html"
    file.write_text(OUTSIDE.format(width=width, page=html.escape(render(report))), encoding="utf-8")
    command = [BROWSER, "--headless", "--no-sandbox", "--disable-gpu", "--enable-logging=stderr", "--dump-dom"]
    command += [f"--user-data-dir={folder / 'profile'}", "--virtual-time-budget=5000", *options, file.as_uri()]
    done = subprocess.run(command, check=True, capture_output=True, text=True, timeout=120)
    messages = re.findall(r"CONSOLE.*?\] (.*)", done.stderr)
    assert len(messages) == 1, messages
    assert "looked" in messages[0]
    return json.loads(html.unescape(re.search("<title>(.*?)</title>", done.stdout)[1]))


def long_names() -> Report:
    report = report_of(40, "encoder.layers.{}.self_attention.output.projection.with_a_long_name_without_end")
    report.accuracy = {"sqnr_db": 25.0, "cosine": {"last_hidden_state_of_the_encoder": 0.9985}}
    report.accuracy["measured on"] = "calibration samples"
    report.layers[0] = dataclasses.replace(report.layers[0], sqnr_db=4.0, gain_db=12.5)
    report.latency = {"float_ms": 10.0, "quantized_ms": 12.0}
    kept = tuple(layer.name for layer in report.layers[1:4])
    report.budget = BudgetReport("accuracy_on_held_out_data", 0.01, "relative", 0.8, 0.5, 0.7, False, kept, 32, 60.0)
    return report


@pytest.mark.parametrize("width", [360, 1200])
def test_nothing_leaves_the_screen(tmp_path, width):
    seen = looked_at(long_names(), tmp_path, width)
    assert seen["wide"] <= width
    assert seen["cut"] == []
    assert seen["dots"] == 40


def test_it_is_dark_where_the_user_likes_it_dark(tmp_path):
    def brightness(colour: str) -> int:
        return sum(map(int, re.findall(r"\d+", colour)[:3]))

    light = looked_at(long_names(), tmp_path, 800)
    dark = looked_at(long_names(), tmp_path, 800, "--blink-settings=preferredColorScheme=0")
    assert brightness(light["page"]) > 700 > 200 > brightness(light["text"])
    assert brightness(dark["page"]) < 100 < 600 < brightness(dark["text"])
