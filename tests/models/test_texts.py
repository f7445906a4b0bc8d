import pytest

from qcompile.errors import CalibrationError
from qcompile.models import texts


def test_calibration_and_held_out_texts_are_disjoint_and_repeatable() -> None:
    calibration, held_out = texts.calibration_texts(64), texts.held_out_texts(128)
    assert len(set(calibration)) == 64
    assert len(set(held_out)) == 128
    assert not set(calibration) & set(held_out)
    assert calibration == texts.calibration_texts(64)


def test_passages_are_prose_of_enough_words_and_share_no_paragraph() -> None:
    paragraphs = list(texts._paragraphs())
    assert len(paragraphs) == len(set(paragraphs))
    assert all(len(passage.split()) >= texts.WORDS_PER_PASSAGE for passage in texts.passages())


@pytest.mark.parametrize("count", [0, 100_000])
def test_refuses_more_than_there_is(count: int) -> None:
    with pytest.raises(CalibrationError, match="Ask for 1 to"):
        texts.calibration_texts(count)
