"""Write finished runs as one HTML file: one run, or several side by side.

Pictures with what every network reads in them, sorted and filtered by class, reading and probability; curves of all
losses; BatchNorm layers; settings, with what differs between runs. The file needs no other and no connection. All of
it comes from the results folders; no network runs.

examples:
  python invert.py report results/quickstart --output quickstart.html
  python invert.py report results/a results/b --output reports/a_and_b.html --overwrite
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path

from ensemble.applications._options import Parser


def arguments(p: Parser) -> None:
    """The options."""
    p.add_argument("results", nargs="+", metavar="DIR", help="results folders of finished runs")
    p.add_argument("--output", required=True, metavar="FILE", help="the file to write, *.html")
    p.add_argument("--overwrite", action="store_true", help="replace FILE where it exists")


def run(options: argparse.Namespace) -> int:
    """Reads all folders before it writes anything."""
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise ValueError("report is one process; start it without torchrun")
    file = Path(options.output).expanduser()
    _check_output(file, options.overwrite)

    from ensemble.machine.files import write_bytes
    from ensemble.report.page import page
    from ensemble.report.reading import read_run

    runs = [read_run(folder) for folder in dict.fromkeys(options.results)]
    content = page(runs).encode("utf-8", "replace")
    write_bytes(file, content)
    images = sum(len(made.images) for made in runs)
    what = "1 run" if len(runs) == 1 else f"{len(runs)} runs"
    print(f"{images} images of {what}, {len(content) / 1e6:.1f} MB: {file}")
    return 0


def _check_output(file: Path, overwrite: bool) -> None:
    if file.suffix.lower() not in (".html", ".htm"):
        raise ValueError(f"output: {file} is no page's name; let it end in .html")
    if file.is_dir():
        raise ValueError(f"output: {file} is a folder; give a file's name")
    if (file.exists() or file.is_symlink()) and not overwrite:
        raise ValueError(f"output: {file} exists; pass --overwrite to replace it, or give another name")
    above = next(folder for folder in file.absolute().parents if folder.exists())
    if not above.is_dir():
        raise ValueError(f"output: {above} is a file, so nothing can be written below it; give another name")
