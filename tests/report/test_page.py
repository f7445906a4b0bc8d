import html.parser
import re
import subprocess
import sys

import numpy as np
import pytest

from qcompile.errors import MissingDependencyError
from qcompile.report import ActivationRange, LayerReport, PassReport, Report
from qcompile.report.budget import BudgetReport
from qcompile.report.forms import FormReport
from qcompile.report.page import render
from qcompile.session import Agreement

HOSTILE = """<script>alert("x")</script><img src=//evil/x onerror='y'>&"""
VOID = {"meta", "br", "img", "input", "line", "path"}


class Page(html.parser.HTMLParser):
    """Collects the text, the tags and the addresses of a page, and checks that tags are closed in order."""

    def __init__(self, source: str) -> None:
        super().__init__()
        self.text, self.tags, self.addresses, self.open = "", [], [], []
        self.feed(source)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self.addresses += [value for name, value in attributes if name in ("src", "href", "action", "xlink:href")]
        assert not any(name.startswith("on") for name, _ in attributes)
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        if tag not in VOID:
            assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += f"{data} "


def report_of(layers: int, name: str = "model.layers.{}.fc") -> Report:
    generator = np.random.default_rng(0)
    ranges = []
    for index in range(layers):
        before = generator.uniform(0.5, 1.5, 1024)
        before[index] = 80.0
        ranges.append(ActivationRange.of(name.format(index), before, np.sqrt(before)))
    return Report(
        model=name.format("x"),
        recipe="w8a8-static",
        backend="onnxruntime",
        layers=[
            LayerReport(name.format(index), "Linear", "quantized", "", 15.0 + index, (8, 8)) for index in range(layers)
        ],
        channel_scales={"folded": layers, "explicit": 1},
        latency={"float_ms": 11.0, "quantized_ms": 4.0},
        accuracy={f"measure {index}": 0.5 + index for index in range(6)},
        size={"float_bytes": 90_000_000, "quantized_bytes": 23_000_000},
        passes=[
            PassReport("InsertQdq(observer='mse')", 1.0, True, "lossy", sqnr_db=30.0),
            PassReport("FuseGelu()", 0.1, False),
            PassReport("FuseGelu()", 0.1, False),
        ],
        activation_ranges=ranges,
    )


def test_the_page_shows_what_the_report_says():
    text = re.sub(r"\s+", " ", Page(render(report_of(8))).text)
    for words in ("2.75× as fast as float", "3.91× smaller", "8 / 8 layers quantized", "8 / 9 smoothing scales folded"):
        assert words in text
    assert "11 ms" in text
    assert "InsertQdq observer='mse'" in text
    assert "Looked and changed nothing: FuseGelu." in text
    assert "lossy: 30.0 dB" in text
    assert "ignore:" in text
    assert "measure 5" in text


def test_the_picture_of_smoothing_is_drawn_for_the_layers_that_changed_most():
    source = render(report_of(30))
    assert source.count('<figure class="range">') == 24
    assert source.count('class="before" d="M0 100V') == source.count('class="after" d="M0 100V') == 24
    assert "18 more" in source


def test_the_page_needs_no_network_and_runs_no_script():
    page = Page(render(report_of(8)))
    assert page.addresses == []
    assert not {"script", "link", "iframe", "img", "object"} & set(page.tags)
    assert not re.search(r"url\(|@import|https?:", render(report_of(8)))


def test_every_text_is_escaped():
    report = report_of(3, HOSTILE + "{}")
    report.layers.append(LayerReport("kept", HOSTILE, "kept", HOSTILE, None, (), HOSTILE))
    report.recipe = report.backend = report.target = HOSTILE
    report.accuracy = {HOSTILE: {HOSTILE: HOSTILE}}
    report.passes = [PassReport(HOSTILE, 1.0)]
    page = Page(render(report))
    assert not {"script", "img"} & set(page.tags)
    assert page.text.count('alert("x")') >= 12


def test_a_large_model_gives_a_small_page():
    assert len(render(report_of(300)).encode()) < 400_000


@pytest.mark.parametrize("report", [Report(), Report(layers=[LayerReport("fc", "Linear", "kept")])])
def test_what_was_not_measured_is_not_on_the_page(report):
    page = Page(render(report))
    assert "svg" not in page.tags
    assert "Latency" not in page.text


def test_the_float_model_is_not_said_to_be_quantized():
    latency, passes = {"float_ms": 4.0, "quantized_ms": 4.4}, [PassReport("FuseGelu()", 0.1, False)]
    text = render(Report(recipe="float", latency=latency, passes=passes)).partition("</head>")[2]
    assert "quantized" not in text
    assert "as fast as float" not in text
    assert "promise and check" not in text
    assert "FuseGelu" in text


def test_a_layer_shows_both_of_its_errors_and_only_those_that_were_measured():
    layers = [
        LayerReport("fc", "Linear", "quantized", sqnr_db=31.25, accumulated_db=12.5),
        LayerReport("attention", "Attention", "quantized", accumulated_db=17.75),
    ]
    source = render(Report(layers=layers))
    titles = re.findall(r"<title>(.*?)</title>", source)[1:]
    assert titles == ["fc: 12.5 dB in all", "attention: 17.8 dB in all", "fc: 31.2 dB alone"]


def test_the_budget_and_what_ignoring_a_layer_brings_are_on_the_page():
    layers = [
        LayerReport("worst", "Linear", "quantized", sqnr_db=9.0, gain_db=6.25),
        LayerReport("fine", "Linear", "quantized", sqnr_db=31.0),
        LayerReport("head", "Linear", "kept", "it stays float for the accuracy budget"),
    ]
    budget = BudgetReport("top1", 0.01, "absolute", 0.8, 0.7, 0.75, False, ("head",), 5, 3.0)
    source = render(Report(layers=layers, budget=budget, latency={"float_ms": 4.0, "quantized_ms": 5.0}))
    text = Page(source).text
    assert budget.headline() in text
    assert budget.warning() in text
    assert "slower than float on this runtime: 5 ms where float takes 4 ms" in text
    assert "ignore:\n- head" in text
    assert "ignore:\n- worst  # alone: +6.2 dB at the outputs" in text
    assert re.findall(r'<td class="number gained">(.*?)</td>', source) == ["6.2", "", ""]
    without = render(Report(layers=layers[1:]))
    assert "gained" not in without.partition("</head>")[2]
    assert "Accuracy budget" not in without


def test_the_forms_of_lowering_are_on_the_page():
    form = FormReport("addition", "apart", ("norm", "head"), ((1, 8),), {"fused": 0.2, "apart": 0.1})
    text = Page(render(Report(forms=[form, FormReport("weight", "float", ("fc",))]))).text
    assert re.search(r"Forms of lowering.*2\s*addition\s*apart\s*apart 0\.1 ms, fused 0\.2 ms\s*norm", text, re.S)
    assert re.search(r"1\s*weight\s*float\s*not measured\s*fc", text)
    assert "Forms of lowering" not in render(Report())


def test_the_page_is_written_as_utf_8(tmp_path):
    Report(model="モデル").save_html(tmp_path / "report.html")
    assert "モデル" in (tmp_path / "report.html").read_text(encoding="utf-8")


def test_without_jinja2_the_mend_names_the_extra(tmp_path):
    code = (
        "import sys; sys.modules['jinja2'] = None\n"
        "from qcompile.errors import MissingDependencyError\n"
        "from qcompile.report import Report\n"
        "Report().summary()\n"
        "try: Report().save_html(sys.argv[1])\n"
        "except MissingDependencyError as error: print(error.mend)\n"
    )
    target = tmp_path / "report.html"
    done = subprocess.run([sys.executable, "-c", code, target], check=True, capture_output=True, text=True)
    assert done.stdout.strip() == "Run: pip install 'qcompile[report]'"
    assert not target.exists()
    assert issubclass(MissingDependencyError, Exception)


def test_the_page_says_how_far_the_artifact_is_from_the_reference_or_why_nobody_knows():
    page = Page(render(Report(agreements=[Agreement(HOSTILE, ("a", "b"), 0.75, 0.012, "b")])))
    assert "Compared with the reference" in page.text
    assert [part in page.text for part in (HOSTILE, "0.75", "0.012")] == [True] * 3
    page = Page(render(Report(not_compared=HOSTILE)))
    assert "Not compared with the reference" in page.text
    assert HOSTILE in page.text
    assert "ompared with the reference" not in Page(render(Report())).text
