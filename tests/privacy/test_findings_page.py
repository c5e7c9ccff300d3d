"""A figure of one network has no interval: the page says so by a dash, the JSON by null."""

from __future__ import annotations

import json
import re
from pathlib import Path

from ensemble.evaluation.estimate import Estimate, t_interval
from ensemble.machine.files import write_json
from ensemble.privacy.content import Content
from ensemble.privacy.findings import Finding, Table
from ensemble.privacy.page import Titles, data, page

FIGURES = (t_interval([0.7]), t_interval([0.6, 0.7, 0.8]), Estimate(0.7, float("-inf"), float("inf")), 0.7, None)


def content() -> Content:
    findings = tuple(Finding(question=f"{i}?", word="indicated", figure=figure) for i, figure in enumerate(FIGURES))
    table = Table("one network", ("arm", "mean [95 %]"), (("black", f"{t_interval([0.7]):.2f}"),))
    return Content(
        model="net",
        facts=(),
        sentences=(),
        findings=findings,
        figures={},
        tables=(table,),
        pictures=(),
        untested=(),
        seconds=0.0,
    )


def test_what_has_no_interval_is_a_dash(tmp_path: Path) -> None:
    text = page(content(), "command", "versions", Titles("heading", "about", "beside"))
    dash, whole = "0.7 <small>[–]</small>", "0.7 <small>[0.452, 0.948]</small>"
    assert re.findall(r"<td>(0\.7.*?)</td>", text) == [dash, whole, dash, "0.7", "0.70 [–]"]
    assert not re.search(r"\b(nan|inf)\b", text)
    write_json(tmp_path / "page.json", data(content(), "command", "versions"))
    found = json.loads((tmp_path / "page.json").read_text())
    assert [row["interval"] is None for row in found["findings"]] == [True, False, True, True, True]
