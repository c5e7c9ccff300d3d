"""The folder of an audit: the one file that knows the names in it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from ensemble.machine.files import write_json, write_text
from ensemble.machine.lock import contents
from ensemble.machine.output_folder import OutputFolder, check_writable
from ensemble.privacy.content import Content
from ensemble.privacy.page import Titles, data, page, scores

PAGE, DATA, SCORES, REFERENCES = "audit.html", "audit.json", "scores.csv", "references"


@dataclass(frozen=True)
class AuditFolder(OutputFolder):
    """Three files, and what reference networks say, which serves the next audit by the same recipe, too."""

    what = "audit"

    @property
    def page(self) -> Path:
        """The page."""
        return self.path / PAGE

    @property
    def references(self) -> Path:
        """Where what reference networks say is kept."""
        return self.path / REFERENCES

    def check(self, *, overwrite: bool) -> None:
        """ValueError where an audit is there that is not to be replaced, and where nothing may be written.

        Other files may be there: an audit's names are its own, and an audit that was stopped has left its references.
        """
        names = contents(self.path)
        contents(self.references)  # ValueError for a file
        if (there := [name for name in (PAGE, DATA, SCORES) if name in names]) and not overwrite:
            raise ValueError(
                f"output: {self.path / there[0]} exists; pass --overwrite to replace it, or give another folder"
            )
        check_writable(self.path)

    def write(self, content: Content, command: str, versions: str) -> None:
        """The three files; the CSV has its header alone where no scores were made."""
        titles = Titles(
            f"Audit of {content.model}",
            "What was audited",
            f"{DATA} beside this page holds its figures, {SCORES} the scores of single images where there are any.",
        )
        write_text(self.page, page(content, command, versions, titles))
        write_json(self.path / DATA, data(content, command, versions))
        write_text(self.path / SCORES, scores(content))
