"""An audit as a page, as data for JSON, and its scores as CSV."""

from __future__ import annotations

import csv
import io
from dataclasses import dataclass
from typing import Any

from jinja2 import Environment, PackageLoader, PrefixLoader, StrictUndefined
from markupsafe import Markup

from ensemble.machine.words import readable
from ensemble.privacy.content import Content, plain
from ensemble.privacy.findings import FIXED, SCHEMA_VERSION, WORDS
from ensemble.report.thumbnails import data_uris

_SHOWN = 16


@dataclass(frozen=True)
class Titles:
    """What a page of findings is called, what its facts are about, and what lies beside it."""

    heading: str
    about: str
    beside: str


def page(content: Content, command: str, versions: str, titles: Titles) -> str:
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
    strips = [(row.title, [Markup(uri) for uri in data_uris(row.images[:_SHOWN])]) for row in content.pictures]
    return environment.get_template("audit/audit.html").render(
        content=content,
        heading=titles.heading,
        about=titles.about,
        beside=titles.beside,
        strips=strips,
        fixed=FIXED,
        words=WORDS,
        style=Markup("\n".join(sheets)),
        command=command,
        versions=versions,
    )


def data(content: Content, command: str, versions: str) -> dict[str, Any]:
    """What the page says, but for its pictures."""
    return {
        "schema_version": SCHEMA_VERSION,
        "model": content.model,
        "facts": dict(content.facts),
        "sentences": list(content.sentences),
        "findings": plain(content.findings),
        "figures": content.figures,
        "tables": plain(content.tables),
        "not_tested": list(content.untested),
        "seconds": content.seconds,
        "command": command,
        "versions": versions,
    }


def scores(content: Content) -> str:
    """attack,set,image,score: one line an image and attack; images by CLASS/FILE, else by their number."""
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(["attack", "set", "image", "score"])
    for attack, sets in content.scores.items():
        for name, values, files in zip(("members", "non-members"), sets, content.scored, strict=True):
            shown = [*map(readable, files)] or range(len(values))
            writer.writerows([attack, name, i, f"{float(value):.6g}"] for i, value in zip(shown, values, strict=True))
    return stream.getvalue()
