"""What a run's checkpoints tell of it, merged by hand."""

from __future__ import annotations

import json

from ensemble.runs.history import History


def saved(**told: object) -> dict[str, object]:
    return json.loads(json.dumps(History(**told).plain()))  # type: ignore[arg-type]


def test_a_run_that_goes_on_keeps_its_command_and_adds_its_time() -> None:
    told = [(saved(command="A", wall_seconds=5.0, startup_seconds=1.0, steps=8, steady_seconds=4.0), 20)]
    history = History.of(told, 20, "A --resume").plus(wall=3.0, startup=0.5, steps=2, steady=1.0)
    assert history == History("A", 8.0, 1.0, 10, 5.0) and not history.notes()


def test_a_run_that_is_made_longer_says_from_where_whichever_trial_is_behind() -> None:
    """Two trials of 20 steps, then 40, of which the second was not saved, then 60."""
    first = saved(command="A && B", wall_seconds=9.0, shorter=(20,))
    history = History.of([(saved(command="A", wall_seconds=5.0), 20), (first, 40)], 60, "C")
    assert history.command == "A && B && C" and history.shorter == (20, 40)
    assert "began with 20, then 40 steps" in history.notes()[0]
    again = History.of([(saved(command="A", wall_seconds=5.0), 20), (first, 40)], 40, "B --resume")
    assert again.command == "A && B" and again.shorter == (20,)


def test_what_checkpoints_of_another_version_do_not_tell_is_not_known() -> None:
    assert History.of([({}, 20)], 20, "C") == History() and History.of([], 20, "C") == History("C")
