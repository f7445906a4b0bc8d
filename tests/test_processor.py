"""What Linux says about the processor, and the processor itself."""

import pytest

from qcompile import processor


@pytest.fixture(autouse=True)
def _forget():
    yield
    for function in (processor.name, processor.identity, processor._described):
        function.cache_clear()


@pytest.fixture
def described(tmp_path, monkeypatch):
    def described(text):
        for function in (processor.name, processor.identity, processor._described):
            function.cache_clear()
        path = tmp_path / "cpuinfo"
        path.write_text(text)
        monkeypatch.setattr(processor, "_DESCRIPTION", path)
        monkeypatch.setattr(processor, "_denied", frozenset)

    return described


def test_what_the_processor_itself_denies_is_not_there(described, monkeypatch):
    """As in an emulator, where Linux describes the processor below; see test_emulated_processor.py."""
    described("model name : A Chip 3000\nflags : avx2 avx512_vnni\n")
    monkeypatch.setattr(processor, "_denied", lambda: frozenset({"avx512_vnni"}))
    assert processor.flags() == {"avx2"}
    assert processor.runs_target("avx2")


def test_linux_and_the_processor_agree_where_nothing_is_emulated():
    wanted = set(processor._CPUID_BITS)
    assert not processor._denied() & set(processor._described().get("flags", "").split()) & wanted


def test_name_and_abilities_are_those_of_the_first_core(described):
    described(
        "processor : 0\nmodel name\t: A Chip 3000\nflags\t: avx2 avx512_vnni\n\nprocessor : 1\nmodel name\t: Other\n"
    )
    assert processor.name() == "A Chip 3000"
    assert processor.identity().startswith("A Chip 3000, ")
    assert processor.identity().endswith(" avx2 avx512_vnni")
    assert processor.runs_target("avx512-vnni")
    assert not processor.runs_target("avx2")


def test_without_vnni_it_is_the_target_that_saturates(described):
    described("model name : Old\nflags : avx avx2\n")
    assert processor.runs_target("avx2")
    assert not processor.runs_target("avx512-vnni")


def test_where_nothing_is_said_it_is_no_target(described, monkeypatch, tmp_path):
    described("")
    monkeypatch.setattr(processor, "_DESCRIPTION", tmp_path / "missing")
    assert processor.name()
    assert not processor.runs_target("avx2")
    assert not processor.runs_target("avx512-vnni")
