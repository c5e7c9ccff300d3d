"""A damaged cell is told with what to do."""

from __future__ import annotations

from pathlib import Path

import pytest

from ensemble.privacy.study.folder import LeakageFolder


@pytest.mark.parametrize("damage", ["", '{"a": ', "[1]"])
def test_a_damaged_cell_is_to_be_removed(damage: str, tmp_path: Path) -> None:
    folder = LeakageFolder(tmp_path)
    (tmp_path / "cells").mkdir()
    folder.write("read_plain_00", {"a": 1.0})
    assert folder.has("read_plain_00")
    (tmp_path / "cells" / "read_plain_00.json").write_text(damage)
    for read in (folder.figures, folder.has):
        with pytest.raises(ValueError, match=r"^output: .*read_plain_00\.json .*; remove it, and go on with --resume$"):
            read("read_plain_00")
