"""Files written whole or not at all."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from ensemble.machine.files import JsonLines, read_json, read_json_lines, write_bytes, write_json, write_json_lines


def files(folder: Path) -> set[str]:
    return {file.relative_to(folder).as_posix() for file in folder.rglob("*") if not file.is_dir()}


def test_metrics_append_and_flush(tmp_path):
    path = tmp_path / "run" / "metrics.jsonl"
    with JsonLines(path) as metrics:
        metrics.write({"step": 0, "loss": math.nan, "terms": {"bn": math.inf, "ce": np.float32(0.5)}})
        assert path.read_text().count("\n") == 1
    with JsonLines(path) as metrics:
        metrics.write({"step": 1, "loss": 0.25, "note": None})
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert lines == [
        {"step": 0, "loss": None, "terms": {"bn": None, "ce": 0.5}},
        {"step": 1, "loss": 0.25, "note": None},
    ]


def test_a_line_cut_by_a_crash_is_dropped(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 0}\n{"step": 1, "lo')
    with JsonLines(path) as metrics:
        metrics.write({"step": 1})
    assert [json.loads(line) for line in path.read_text().splitlines()] == [{"step": 0}, {"step": 1}]


@dataclass(frozen=True)
class Score:
    top1: float
    interval: tuple[float, float]


def test_json_of_dataclasses_and_numbers(tmp_path):
    path = tmp_path / "new" / "summary.json"
    write_json(path, {"score": Score(0.5, (0.25, -math.inf)), 3: [True, np.int64(2), Path("a/b"), "é"]})
    assert json.loads(path.read_text(encoding="utf-8")) == {
        "score": {"top1": 0.5, "interval": [0.25, None]},
        "3": [True, 2, "a/b", "é"],
    }


def test_a_file_is_replaced_not_rewritten(tmp_path):
    path = tmp_path / "summary.json"
    write_json(path, {"a": 1})
    with path.open() as reader:
        write_json(path, {"a": 2})
        assert json.load(reader) == {"a": 1}, "who reads meanwhile sees the old file whole"
    assert json.loads(path.read_text()) == {"a": 2}
    assert files(tmp_path) == {"summary.json"}


def test_a_failed_write_leaves_the_old_file(tmp_path):
    path = tmp_path / "summary.json"
    write_json(path, {"a": 1})
    with pytest.raises(TypeError, match="object as JSON"):
        write_json(path, {"a": object()})
    before = path.read_text()
    (tmp_path / "summary.json.tmp").mkdir()  # nothing can be written under the temporary name
    with pytest.raises(OSError):
        write_json(path, {"a": 2})
    assert path.read_text() == before


def test_lines_are_written_and_read_back(tmp_path):
    path = tmp_path / "rows.jsonl"
    write_json_lines(path, [{"a": 1}, {"b": math.nan}])
    assert read_json_lines(path) == [{"a": 1}, {"b": None}]
    path.write_text(path.read_text() + '{"cut')
    assert read_json_lines(path) == [{"a": 1}, {"b": None}]
    assert read_json_lines(tmp_path / "missing.jsonl") == []


def test_bytes_replace_and_leave_nothing_beside(tmp_path):
    for data in (b"first", b"second"):
        write_bytes(tmp_path / "new" / "file", data)
        assert (tmp_path / "new" / "file").read_bytes() == data
    assert files(tmp_path) == {"new/file"}


def test_json_that_is_none_is_named(tmp_path):
    (tmp_path / "summary.json").write_text("{")
    with pytest.raises(ValueError, match=r"summary\.json cannot be read as JSON"):
        read_json(tmp_path / "summary.json")


def test_names_that_are_no_unicode_and_line_ends_of_unicode(tmp_path):
    """A folder's name in bytes that are no UTF-8 comes as surrogates; U+2028 is no end of a line of JSON."""
    write_json(tmp_path / "summary.json", {"command": "--output M\udcfcller"})
    assert read_json(tmp_path / "summary.json") == {"command": "--output M\udcfcller"}
    rows = [{"class": "a\u2028b"}, {"class": "c\x85d"}, {"class": "M\udcfc"}]
    write_json_lines(tmp_path / "rows.jsonl", rows)
    assert read_json_lines(tmp_path / "rows.jsonl") == rows
    with JsonLines(tmp_path / "more.jsonl") as lines:
        for row in rows:
            lines.write(row)
    assert read_json_lines(tmp_path / "more.jsonl") == rows
