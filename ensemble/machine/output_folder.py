"""A folder that one command writes its results to: what may be there before, and who holds it."""

from __future__ import annotations

import errno
from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from ensemble.machine.files import user_path, why_unwritable
from ensemble.machine.lock import contents, held, not_empty

_MAY_NOT = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOENT, errno.ENOTDIR, errno.EISDIR)
_ANOTHER = "or give another folder"
_INSTEAD = f"pass overwrite (--overwrite) instead to replace it, {_ANOTHER}"


@dataclass(frozen=True)
class OutputFolder:
    """What a command writes and reads below `path`. A class of this one knows the names there."""

    path: Path
    begins_with: ClassVar[str] = ""
    """The file that is written first: half-written and alone it says that nothing began."""

    @property
    def what(self) -> str:
        """What is made there, in words."""
        return "run"

    def held(self) -> AbstractContextManager[None]:
        """Makes the folder and holds it; ValueError where another process does (see `ensemble.machine.lock`)."""
        return held(self.path)

    def is_taken(self, *, resume: bool, overwrite: bool) -> bool:
        """Whether something is there, which the caller asked to go on with or to replace.

        Raises ValueError where something is there and neither was asked for, for a file, and where nothing may be
        written. Changes nothing.
        """
        names = contents(self.path)
        names = names if names != {f"{self.begins_with}.tmp"} else set()
        check_writable(self.path)
        if names and not resume and not overwrite:
            raise not_empty(
                self.path,
                f"pass resume (--resume) to go on with a {self.what} there, overwrite (--overwrite) to replace it, "
                f"{_ANOTHER}",
            )
        return bool(names)

    def removes(self, name: str) -> bool:
        """Whether what lies in the folder under this name is removed where it is replaced."""
        return False

    def check_kept(self, sources: Iterable[str | Path]) -> None:
        """ValueError where one of these, from which a run begins, would be removed before it ends."""
        folder = self.path.resolve()
        for source in map(user_path, sources):
            place = source.resolve()
            within = place.relative_to(folder).parts if source.exists() and place.is_relative_to(folder) else ()
            if within and self.removes(within[0]):
                raise ValueError(f"output: {source} would be replaced by what begins from it; give another folder")

    def remove(self, names: Iterable[str]) -> None:
        """Files of these names, also half-written ones, in this order."""
        for name in names:
            for file in (self.path / name, self.path / f"{name}.tmp"):
                file.unlink(missing_ok=True)

    # --- mistakes ---------------------------------------------------------------------------------------------

    def holds_none(self, option: str) -> ValueError:
        """Of going on with, or replacing, what is somebody else's."""
        return ValueError(f"{option}: {self.path} holds other files and no {self.what}; give another folder")

    def holds_another(self, changed: Sequence[str]) -> ValueError:
        """Of going on with something else than what began there; `changed` are fields."""
        fields = ", ".join(changed[:5]) + (f" and {len(changed) - 5} more" if len(changed) > 5 else "")
        return ValueError(f"resume: {self.path} holds a {self.what} that differs in {fields}; {_INSTEAD}")

    def holds_damaged(self, why: str) -> ValueError:
        """Of going on with what cannot be read."""
        return ValueError(f"resume: {self.path} holds a {self.what} that cannot be gone on with ({why}); {_INSTEAD}")

    def has_foreign(self, name: str) -> ValueError:
        """Of replacing a file that has a name of ours."""
        return ValueError(f"output: {self.path / name} is no {self.what}'s, and is not replaced; give another folder")


@contextmanager
def writing(output: Path) -> Iterator[None]:
    """A folder that may not be written is the user's mistake, ValueError; a disk that is full is none, and stays."""
    try:
        yield
    except OSError as error:
        if error.errno not in _MAY_NOT:
            raise
        why = error.strerror or error
        raise ValueError(f"output: {output} cannot be written ({why}); give another folder") from None


def check_writable(output: Path, what: str = "output") -> None:
    """ValueError where the folder cannot be made or written; `what` is the option that names it."""
    if why := why_unwritable(output):
        raise ValueError(f"{what}: {output} cannot be made, {why}; give another folder")
