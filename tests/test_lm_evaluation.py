"""Tasks of lm-evaluation-harness give an artifact the figures that they give the float model in transformers."""

from __future__ import annotations

import importlib.metadata
import json
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml

import qcompile
from qcompile.errors import ModelError, QCompileError
from qcompile.models.decoder_folders import write_decoder_folder
from qcompile.models.texts import held_out_texts

pytestmark = pytest.mark.data
pytest.importorskip("lm_eval", reason="lm_eval is not installed: pip install 'qcompile[evaluate]'")
pytest.importorskip("transformers")

NUMBER = 6
TASKS: dict[str, dict[str, Any]] = {
    "choices": {
        "output_type": "multiple_choice",
        "doc_to_text": "{{begin}}",
        "doc_to_choice": [" the", " of a value", " object is", " zz"],
        "doc_to_target": "{{label}}",
        "metric_list": [{"metric": "acc"}, {"metric": "acc_norm"}],
    },
    "goes_on": {
        "output_type": "generate_until",
        "doc_to_text": "{{begin}}",
        "doc_to_target": "{{text}}",
        "generation_kwargs": {"until": [" "], "max_gen_toks": 12, "do_sample": False},
        "metric_list": [{"metric": "exact_match"}],
    },
    "prose": {
        "output_type": "loglikelihood_rolling",
        "doc_to_text": "",
        "doc_to_target": "{{text}}",
        "metric_list": [{"metric": "word_perplexity"}, {"metric": "bits_per_byte"}],
    },
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A decoder, an artifact of it with its tokenizer beside it, and tasks on a local file."""
    root = tmp_path_factory.mktemp("lm_eval")
    write_decoder_folder(root / "decoder")
    qcompile.compile(root / "decoder", "float", output=root / "artifact", tune="none", verify=False)
    texts = [text[:240] for text in held_out_texts(NUMBER)]
    lines = [{"text": text, "begin": text[:50], "label": index % 4} for index, text in enumerate(texts)]
    (root / "texts.json").write_text("\n".join(map(json.dumps, lines)), encoding="utf-8")
    (root / "tasks").mkdir()
    for name, settings in TASKS.items():
        data = {"data_files": {"test": str(root / "texts.json")}, "cache_dir": str(root / "cache")}
        common = {"task": name, "dataset_path": "json", "dataset_kwargs": data, "test_split": "test"}
        (root / "tasks" / f"{name}.yaml").write_text(yaml.safe_dump({**common, **settings}))
    return root


def arguments(folder: Path, **others: Any) -> dict[str, Any]:
    return {"pretrained": str(folder / "artifact"), "tokenizer": str(folder / "decoder"), "max_length": 64, **others}


def results(folder: Path, model: str, model_args: dict[str, Any]) -> dict[str, Any]:
    from lm_eval import simple_evaluate
    from lm_eval.tasks import TaskManager

    found: dict[str, Any] = simple_evaluate(
        model,
        model_args=model_args,
        tasks=list(TASKS),
        task_manager=TaskManager(include_path=str(folder / "tasks"), include_defaults=False),
        bootstrap_iters=0,
        log_samples=True,
    )
    return found


def test_every_kind_of_task_gives_what_transformers_gives(folder: Path) -> None:
    import qcompile.lm_evaluation  # noqa: F401 # registers the model

    found = results(folder, "qcompile", arguments(folder))
    transformers = {"pretrained": str(folder / "decoder"), "device": "cpu", "max_length": 64, "dtype": "float32"}
    expected = results(folder, "hf", transformers)
    for task in TASKS:
        for own, theirs in zip(found["samples"][task], expected["samples"][task], strict=True):
            assert own["arguments"] == theirs["arguments"]
            if task == "goes_on":
                assert own["resps"] == theirs["resps"]
            else:
                np.testing.assert_allclose(numbers(own["resps"]), numbers(theirs["resps"]), rtol=1e-5)
        assert found["results"][task].keys() == expected["results"][task].keys()
    assert any(sample["resps"][0][0] for sample in found["samples"]["goes_on"])


def numbers(responses: Any) -> Any:
    """Log likelihoods, and whether they are what greedy decoding gives, as numbers."""
    return np.asarray(responses, dtype=np.float64)


def test_its_command_line_knows_the_model(folder: Path) -> None:
    options = ",".join(f"{name}={value}" for name, value in arguments(folder).items())
    command = [sys.executable, "-m", "qcompile.lm_evaluation", "--model", "qcompile", "--model_args", options]
    command += ["--tasks", "prose", "--include_path", str(folder / "tasks"), "--output_path", str(folder / "out.json")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "word_perplexity" in done.stdout


def requests(*arguments: Any) -> list[Any]:
    from lm_eval.api.instance import Instance

    return [Instance("generate_until", {}, each, index) for index, each in enumerate(arguments)]


def test_generation_ends_at_stop_strings_and_the_most_tokens(folder: Path) -> None:
    from qcompile.lm_evaluation import QCompileLM

    model = QCompileLM(**arguments(folder))
    begin = json.loads((folder / "texts.json").read_text().splitlines()[0])["begin"]
    (whole,) = model.generate_until(requests((begin, {"max_gen_toks": 20})), disable_tqdm=True)
    stop = whole[7:9]
    cut = requests((begin, {"max_gen_toks": 20, "until": [stop, "never said"]}), (begin, {"max_gen_toks": 3}))
    until, short = model.generate_until(cut, disable_tqdm=True)
    assert until == whole[: whole.index(stop)]
    assert whole.startswith(short)
    assert 0 < len(short) < len(whole)
    assert model.generate_until(requests(("", {"max_gen_toks": 3})), disable_tqdm=True) != [""]


def test_a_context_that_is_too_long_is_cut_at_its_beginning(folder: Path) -> None:
    from qcompile.lm_evaluation import QCompileLM

    model = QCompileLM(**arguments(folder, max_length=20))
    context = held_out_texts(1)[0]
    short = model.text.decode(model.tok_encode(context)[-15:])
    assert model.tok_encode(short) == model.tok_encode(context)[-15:]
    whole, cut = model.generate_until(requests((context, {"max_gen_toks": 5}), (short, {"max_gen_toks": 5})), True)
    assert whole == cut


def test_a_continuation_is_greedy_where_all_of_it_is(folder: Path) -> None:
    from qcompile.lm_evaluation import QCompileLM

    model = QCompileLM(**arguments(folder))
    context = model.tok_encode("The value of")
    likely: list[int] = []
    for _ in range(3):
        likely.append(int(model.model.logits(np.array([context + likely]))[0, -1].argmax()))
    other = [*likely[:2], (likely[2] + 1) % 256]
    found = model._loglikelihood_tokens([(None, context, likely), (None, context, other)], disable_tqdm=True)
    assert [greedy for _, greedy in found] == [True, False]
    assert found[0][0] > found[1][0]


def test_generation_ends_where_the_model_ends_the_text(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from qcompile.lm_evaluation import QCompileLM

    model = QCompileLM(**arguments(folder))
    ids = torch.tensor([model.tok_encode("The value of")])
    from transformers import AutoModelForCausalLM

    decoder = AutoModelForCausalLM.from_pretrained(folder / "decoder")
    said = decoder.generate(ids, max_new_tokens=12, do_sample=False, eos_token_id=None)[0, ids.shape[1] :].tolist()
    new = next(index for index in range(2, 12) if said[index] not in said[:index])
    monkeypatch.setattr(model, "_ends", frozenset([said[new]]))
    found = model.generate_until(requests(("The value of", {"max_gen_toks": 12})), disable_tqdm=True)
    assert found == [model.text.decode(said[:new])]


def test_the_entry_point_is_the_model() -> None:
    from qcompile.lm_evaluation import QCompileLM

    project = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    (entry,) = project["entry-points"]["lm_eval.models"].items()
    assert entry[0] == "qcompile"
    assert importlib.metadata.EntryPoint(*entry, "lm_eval.models").load() is QCompileLM


@pytest.mark.parametrize(
    ("others", "reason"),
    [
        ({"batch_size": 8}, "batch_size 8"),
        ({"tokenizer": None}, "tokenizer"),
        ({"pretrained": "nowhere"}, "nowhere"),
    ],
)
def test_what_it_cannot_do_is_refused(others: dict[str, Any], reason: str, folder: Path) -> None:
    from qcompile.lm_evaluation import QCompileLM

    with pytest.raises(QCompileError, match=reason):
        QCompileLM(**arguments(folder, **others))


@pytest.mark.parametrize("settings", [{"do_sample": True, "temperature": 1.0}, {"max_gen_toks": 64}])
def test_generation_that_it_cannot_do_is_refused(settings: dict[str, Any], folder: Path) -> None:
    from qcompile.lm_evaluation import QCompileLM

    with pytest.raises(QCompileError, match="gen_kwargs"):
        QCompileLM(**arguments(folder)).generate_until(requests(("The", settings)), disable_tqdm=True)


def test_lengths_and_ends_are_those_that_the_files_say(folder: Path, tmp_path: Path) -> None:
    from qcompile import lm_evaluation

    model = lm_evaluation.QCompileLM(**arguments(folder, max_length=None, batch_size="auto:4"))
    assert (model.max_length, model.eot_token_id, model.prefix_token_id) == (2048, 2, 1)
    assert model.tok_encode("<s>The") == [1, *model.tok_encode("The")]
    (tmp_path / "tokenizer.json").write_bytes((folder / "decoder" / "tokenizer.json").read_bytes())
    nameless = lm_evaluation.QCompileLM(**arguments(folder, tokenizer=str(tmp_path)))
    with pytest.raises(ModelError, match="ends a text"):
        _ = nameless.eot_token_id
    assert lm_evaluation._ends([2, 7], 1) == {2, 7}
    assert lm_evaluation._ends(5, 1) == {5}
    assert lm_evaluation._ends(None, 1) == {1}
    assert lm_evaluation._ends(None, None) == frozenset()
