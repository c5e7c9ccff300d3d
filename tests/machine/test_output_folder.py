"""Whose fault it is that a folder cannot be written."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from ensemble.machine.output_folder import OutputFolder, writing
from ensemble.runs.dataset_folder import DatasetFolder
from ensemble.runs.rounds import RoundsFolder
from ensemble.search.folder import SearchFolder
from ensemble.training.folder import TrainingFolder


@pytest.mark.parametrize("kind", [DatasetFolder, RoundsFolder, SearchFolder, TrainingFolder])
def test_a_folder_whose_first_file_is_half_written_is_free(kind: type[OutputFolder], tmp_path: Path) -> None:
    (tmp_path / f"{kind.begins_with}.tmp").write_text("half")
    assert not kind(tmp_path).is_taken(resume=True, overwrite=False)
    (tmp_path / "mine").touch()
    assert kind(tmp_path).is_taken(resume=True, overwrite=False)
    (tmp_path / f"{kind.begins_with}.tmp").unlink()
    assert kind(tmp_path).is_taken(resume=True, overwrite=False)


@pytest.mark.parametrize("number", [errno.EACCES, errno.EROFS, errno.ENOENT, errno.ENOTDIR])
def test_a_folder_that_may_not_be_written_is_the_users_mistake(number: int) -> None:
    why = os.strerror(number)
    said = rf"output: out cannot be written \({why}\); give another folder"
    with pytest.raises(ValueError, match=said), writing(Path("out")):
        raise OSError(number, why)


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EIO])
def test_a_full_disk_is_not(number: int) -> None:
    with pytest.raises(OSError, match="told as it is"), writing(Path("out")):
        raise OSError(number, "told as it is")
