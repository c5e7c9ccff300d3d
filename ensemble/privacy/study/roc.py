"""Attacks on membership as one picture: how many members at how few false positives."""

from __future__ import annotations

import io

import torch
from matplotlib.figure import Figure

from ensemble.privacy.rates import LEAST_EXPECTED
from ensemble.privacy.study.leave_one_out import roc_band

_ATTACKS = {"loss": "loss", "lira": "LiRA", "lira_offline": "LiRA, offline", "rmia_2": "RMIA, 2 references"}


def roc(margins: torch.Tensor, inside: torch.Tensor, canaries: torch.Tensor, arm: str, seed: int) -> bytes:
    """A PNG on log axes: means over targets and their 95 % bands; left all images but canaries, right canaries.

    Arguments as of `leave_one_out.attacks`. ValueError where there are too few images; too few canaries have no panel.
    """
    figure = Figure(figsize=(10, 4.6), layout="constrained")
    panels = [(False, f"{arm}: images with their own labels")]
    if int((~inside[:, canaries]).sum(1).min()) > LEAST_EXPECTED:
        panels.append((True, f"{arm}: canaries, with wrong labels"))
    for i, (of_canaries, title) in enumerate(panels):
        axes = figure.add_subplot(1, len(panels), 1 + i)
        for attack, label in _ATTACKS.items():
            band = roc_band(margins, inside, canaries, attack, of_canaries=of_canaries, seed=seed)
            axes.plot(band.fpr, band.mean, label=label)
            axes.fill_between(band.fpr, band.low, band.high, alpha=0.2)
        axes.plot([1e-3, 1], [1e-3, 1], color="0.6", linestyle=":", label="chance")
        axes.set(xscale="log", yscale="log", xlim=(1e-3, 1), ylim=(1e-3, 1.1), title=title)
        axes.set(xlabel="false positive rate", ylabel="true positive rate")
        axes.legend(loc="lower right")
    stream = io.BytesIO()
    figure.savefig(stream, format="png", dpi=110)
    return stream.getvalue()
