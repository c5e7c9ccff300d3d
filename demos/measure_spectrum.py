"""Measures the table of `kind: maco`: how much of each frequency photographs have, by colour.

    python demos/measure_spectrum.py --data photographs.tar --size 64 --output photographs.json

--data is a folder or an archive with train/CLASS/FILE. Only frequencies up to a quarter of --size are kept, half of
what such images can have: beyond, resampling and compression take amplitude off, and the power law of the table's last
octave serves better. Chroma subsampling does so earlier: JPEG files of the size itself are to have none.
"""

from __future__ import annotations

import argparse
import datetime
from pathlib import Path

from ensemble.data.labelled import load_images
from ensemble.image.spectrum import measure
from ensemble.machine.files import write_json


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True)
    parser.add_argument("--split", default="train")
    parser.add_argument("--size", type=int, default=64, help="pixels that images are resized to")
    parser.add_argument("--images", type=int, default=2000)
    parser.add_argument("--output", type=Path, required=True, metavar="FILE.json")
    options = parser.parse_args()
    images = load_images(options.data, options.split, options.size, at_most=options.images).images
    amplitude = measure(image / 255 for image in images).amplitude[:, : options.size // 4]
    table = {
        "measured_from": f"{Path(options.data).name}, {options.split}",
        "images": len(images),
        "size": options.size,
        "date": datetime.date.today().isoformat(),
        "unit": "mean |rfft2| / pixels, RGB in [0, 1], decorrelated; columns are 1, 2, ... cycles an image",
        "rows": ["luminance", "blue against red", "green against magenta"],
        "amplitude": [[float(f"{value:.5g}") for value in row] for row in amplitude.tolist()],
    }
    write_json(options.output, table)
    print(f"{len(images)} images, {amplitude.shape[1]} frequencies: {options.output}")


if __name__ == "__main__":
    main()
