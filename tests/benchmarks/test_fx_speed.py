"""The goals of the lowering to torch.fx, decided on rows made by hand."""

from __future__ import annotations

from benchmarks import fx_speed


def test_two_models_have_a_time_to_be_lowered_in_and_all_one_to_run_in() -> None:
    rows = [
        {"model": "MiniLM", "s to lower": 3.5, "of torch's": 1.1},
        {"model": "SmolLM2", "s to lower": 3.5, "of torch's": 1.3},
        {"model": "CREPE", "s to lower": 99.0, "of torch's": 1.2},
    ]
    goals = {goal.name: goal.holds for goal in fx_speed.goals(rows)}
    assert goals == {
        "MiniLM, seconds to lower": False,
        "SmolLM2, seconds to lower": True,
        "MiniLM, time over torch's": True,
        "SmolLM2, time over torch's": False,
        "CREPE, time over torch's": True,
    }
