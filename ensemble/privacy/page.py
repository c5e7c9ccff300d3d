"""An audit as files: audit.html, audit.json and scores.csv."""

from __future__ import annotations

import csv
import io
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, PrefixLoader, StrictUndefined
from markupsafe import Markup

from ensemble.machine.files import write_json, write_text
from ensemble.privacy.audit import Audit, plain
from ensemble.privacy.findings import FIXED, SCHEMA_VERSION
from ensemble.report.thumbnails import thumbnails

PAGE, DATA, SCORES, REFERENCES = "audit.html", "audit.json", "scores.csv", "references"
_SHOWN = 16


@dataclass(frozen=True)
class Titles:
    """What a page of findings is called, what its first part is, and what lies beside it."""

    heading: str
    about: str
    beside: str


def write(audit: Audit, folder: Path, command: str, versions: str) -> None:
    """Writes the three files; the CSV has its header alone where no scores were made."""
    folder.mkdir(parents=True, exist_ok=True)
    titles = Titles(
        f"Audit of {audit.model}",
        "What was audited",
        f"{DATA} beside this page holds its figures, {SCORES} the scores of single images where there are any.",
    )
    write_text(folder / PAGE, page(audit, command, versions, titles))
    write_json(folder / DATA, data(audit, command, versions))
    write_text(folder / SCORES, scores(audit))


def page(audit: Audit, command: str, versions: str, titles: Titles) -> str:
    """One HTML file that asks for no other."""
    environment = Environment(
        loader=PrefixLoader(
            {
                "report": PackageLoader("ensemble.report", "template"),
                "audit": PackageLoader("ensemble.privacy", "template"),
            }
        ),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    assert environment.loader is not None
    sheets = [environment.loader.get_source(environment, name)[0] for name in ("report/page.css", "audit/audit.css")]
    strips = [(row.title, [Markup(uri) for uri in thumbnails(row.images[:_SHOWN])]) for row in audit.pictures]
    return environment.get_template("audit/audit.html").render(
        audit=audit,
        heading=titles.heading,
        about=titles.about,
        beside=titles.beside,
        strips=strips,
        fixed=FIXED,
        style=Markup("\n".join(sheets)),
        command=command,
        versions=versions,
    )


def data(audit: Audit, command: str, versions: str) -> dict[str, Any]:
    """What the page says, but for its pictures."""
    return {
        "schema_version": SCHEMA_VERSION,
        "model": audit.model,
        "facts": dict(audit.facts),
        "sentences": list(audit.sentences),
        "findings": plain(audit.findings),
        "figures": audit.figures,
        "tables": plain(audit.tables),
        "not_tested": list(audit.untested),
        "seconds": audit.seconds,
        "command": command,
        "versions": versions,
    }


def scores(audit: Audit) -> str:
    """attack,set,image,score: one line an image and attack; images are numbered as they were drawn."""
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(["attack", "set", "image", "score"])
    for attack, sets in audit.scores.items():
        for name, values in zip(("members", "non-members"), sets, strict=True):
            writer.writerows([attack, name, i, f"{float(value):.6g}"] for i, value in enumerate(values))
    return stream.getvalue()
