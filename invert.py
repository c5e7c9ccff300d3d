"""Invert an ensemble of frozen classifiers: optimise images until all of them agree."""

from ensemble.cli import process

if __name__ == "__main__":
    process()
