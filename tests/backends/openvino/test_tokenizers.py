"""A folder for openvino_genai needs openvino-tokenizers, and that is said before any work."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

pytest.importorskip("openvino")

import qcompile
from qcompile.errors import MissingDependencyError
from qcompile.models.decoder_folders import write_decoder_folder


def test_what_is_not_installed_is_said_before_any_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stages = list[str]()
    monkeypatch.setitem(sys.modules, "openvino_tokenizers", None)
    with pytest.raises(MissingDependencyError, match="openvino-tokenizers") as caught:
        qcompile.compile(
            write_decoder_folder(tmp_path),
            "w4a16-rtn",
            backend="openvino",
            verify=False,
            progress=lambda stage, _part: stages.append(stage),
        )
    assert stages == []
    assert "output_format='model'" in caught.value.mend
