"""Write finished runs as one HTML file: one run, or several side by side.

Pictures with what every network reads in them, sorted and filtered by class, reading and probability; curves of all
losses; layers with statistics; settings, with what differs between runs. The file needs no other and no connection.
All of it comes from the results folders; no network runs.

examples:
  python invert.py report results/quickstart --output quickstart.html
  python invert.py report results/a results/b --output reports/a_and_b.html --overwrite
"""

from __future__ import annotations

import argparse

from ensemble.applications._options import Parser, add_file, file_of


def arguments(p: Parser) -> None:
    """The options."""
    p.add_argument("results", nargs="+", metavar="DIR", help="results folders of finished runs")
    add_file(p, "the file to write, *.html")


def run(options: argparse.Namespace) -> int:
    """Reads all folders before it writes anything."""
    file = file_of(options, ".html", ".htm")

    from ensemble.machine.files import write_bytes
    from ensemble.machine.words import plural
    from ensemble.report.page import page
    from ensemble.report.reading import read_run

    runs = [read_run(folder) for folder in dict.fromkeys(options.results)]
    content = page(runs).encode("utf-8", "replace")
    write_bytes(file, content)
    images = sum(len(made.images) for made in runs)
    print(f"{images} images of {plural(len(runs), 'run')}, {len(content) / 1e6:.1f} MB: {file}")
    return 0
