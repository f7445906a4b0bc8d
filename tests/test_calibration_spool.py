"""The spool keeps samples on disk, tells what they are and cleans up after itself."""

import itertools
import os

import numpy as np
import onnx_ir as ir
import pytest

from qcompile.calibration_data import Calibration
from qcompile.calibration_spool import Spool
from qcompile.decoder_inputs import ABSENT
from qcompile.errors import CalibrationError

IDS = np.arange(12, dtype=np.int64).reshape(3, 1, 4)  # three samples [1, 4]
SCALES = np.linspace(0, 1, 3, dtype=np.float32).reshape(3, 1, 1)
FEEDS = [{"ids": ids, "scale": scale} for ids, scale in zip(IDS, SCALES, strict=True)]
ONE = [ir.val("ids", ir.DataType.INT64, ["batch", "sequence"])]
TWO = [*ONE, ir.val("scale", ir.DataType.FLOAT, ["batch", 1])]


class UsedUpReader:
    """A calibration data reader of ONNX Runtime with nothing left."""

    def get_next(self):
        return None


@pytest.mark.parametrize(
    "empty", [[], iter(()), {}, {"ids": IDS[:0], "scale": SCALES[:0]}, lambda: iter([]), UsedUpReader()]
)
def test_no_samples_are_refused(empty):
    with pytest.raises(CalibrationError, match="it holds no sample"):
        Spool(Calibration(empty), TWO)


def test_samples_can_be_gone_through_again():
    spool = Spool(Calibration(iter(FEEDS)), TWO)
    for _ in range(2):
        found = list(spool)
        assert [list(feed) for feed in found] == [["ids", "scale"]] * 3
        for one, other in zip(found, FEEDS, strict=True):
            np.testing.assert_array_equal(one["ids"], other["ids"])
            np.testing.assert_array_equal(one["scale"], other["scale"])
    assert spool.count == 3


def test_it_reads_no_more_than_it_was_asked_for():
    endless = ({"ids": np.array([[index]])} for index in itertools.count())
    assert Spool(Calibration(endless, 5), ONE).count == 5
    assert next(endless)["ids"].item() == 5


def test_the_fingerprint_is_that_of_the_content():
    def fingerprint(feeds):
        return Spool(Calibration(feeds), TWO).fingerprint

    assert fingerprint(FEEDS) == fingerprint(iter(FEEDS))
    assert fingerprint(FEEDS) != fingerprint(FEEDS[::-1])
    assert fingerprint(FEEDS) != fingerprint(FEEDS[:2])
    flat, square = (Spool(Calibration([{"ids": np.zeros(shape, int)}]), ONE) for shape in ((1, 4), (2, 2)))
    assert flat.fingerprint != square.fingerprint


def test_bfloat16_comes_back_as_it_was():
    spool = Spool(Calibration([{"x": np.array([[1.5]])}]), [ir.val("x", ir.DataType.BFLOAT16, ["batch", 1])])
    (feed,) = spool
    assert feed["x"].dtype == ir.DataType.BFLOAT16.numpy()
    assert feed["x"].item() == 1.5


@pytest.mark.skipif(os.name == "nt", reason="there an open file has a name")
def test_samples_have_no_name_on_the_disk_that_a_killed_process_would_leave(tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    spool = Spool(Calibration(FEEDS), TWO)
    assert not list(tmp_path.iterdir())
    assert len(list(spool)) == 3


def test_the_file_is_closed_with_the_spool():
    spool = Spool(Calibration(FEEDS), TWO)
    file = spool._file
    del spool
    assert file.closed


def test_two_may_go_through_the_samples_at_once():
    spool = Spool(Calibration(FEEDS), TWO)
    for one, other in zip(spool, spool, strict=True):
        np.testing.assert_array_equal(one["ids"], other["ids"])
        np.testing.assert_array_equal(one["scale"], other["scale"])


def test_what_looks_like_a_mask():
    masks = [[[1, 1]], [[0, 1]], [[0, 0]]]
    feeds = [{"ids": np.array(mask)} for mask in masks]
    levels = Spool(Calibration(feeds), ONE).levels["ids"]
    assert levels.masks_out(0)
    assert levels.constant_in == {1: 0, 0: 2}
    assert not Spool(Calibration(feeds[:1]), ONE).levels["ids"].masks_out(0)
    assert not Spool(Calibration([*feeds, {"ids": np.array([[2]])}]), ONE).levels["ids"].masks_out(0)


def test_the_empty_cache_of_a_decoder_holds_neither_0_nor_1():
    cache = ir.val("cache", ir.DataType.FLOAT, ["batch", 2, "past", 4])
    cache.metadata_props[ABSENT] = "empty"
    spool = Spool(Calibration([{"ids": np.array([[3, 4]])}]), [*ONE, cache])
    (feed,) = spool
    assert feed["cache"].shape == (1, 2, 0, 4)
    levels = spool.levels["cache"]
    assert (levels.seen, levels.constant_in) == (set(), {})


def test_texts_come_back_as_objects_and_their_content_is_in_the_fingerprint():
    text = [ir.val("s", ir.DataType.STRING, [None])]
    forms = [np.array(["hi", "é"], object), np.array(["hi", "é"]), ["hi", "é"], np.array([b"hi", "é".encode()])]
    spools = [Spool(Calibration([{"s": form}]), text) for form in forms]
    for spool in spools:
        (feed,) = spool
        assert feed["s"].dtype == object
        assert feed["s"].tolist() == ["hi", "é"]
    assert len({spool.fingerprint for spool in spools}) == 1
    assert Spool(Calibration([{"s": ["hi", "e"]}]), text).fingerprint != spools[0].fingerprint


@pytest.mark.parametrize(
    ("content", "reason"),
    [([3], "it holds a int"), (np.array(["a", None], object), "NoneType"), ([b"\xff"], "not UTF-8")],
)
def test_what_is_no_text_is_refused(content, reason):
    with pytest.raises(CalibrationError, match=f"input s, calibration sample 0.*{reason}"):
        Spool(Calibration([{"s": content}]), [ir.val("s", ir.DataType.STRING, [None])])
