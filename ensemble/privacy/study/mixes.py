"""A classifier that tells plain images from mixed ones, trained on real images, to be shown others."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from ensemble.machine.rng import generator
from ensemble.privacy.candidates import cut_and_mixed
from ensemble.privacy.study.mix_features import mix_features
from ensemble.training.augment import crop_and_flip, cutout, padded_crop

KINDS = ("plain", "cutmix", "mixup", "cutout")
_BATCH = 128
_TOGETHER = 8
"""Images of a batch that share a rectangle or a weight."""
_PENALTY = 1e-3
_ITERATIONS = 100
_FARTHEST = 5.0
"""Standard deviations of a feature: what is further off than training images are says no more than that."""


class MixClassifier(nn.Module):
    """A linear layer on standardised `mix_features`."""

    mean: torch.Tensor
    deviation: torch.Tensor

    def __init__(self, mean: torch.Tensor, deviation: torch.Tensor) -> None:
        super().__init__()
        self.register_buffer("mean", mean)
        self.register_buffer("deviation", deviation)
        self.linear = nn.utils.skip_init(nn.Linear, len(mean), len(KINDS))
        nn.init.zeros_(self.linear.weight)
        nn.init.zeros_(self.linear.bias)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """(N, 4) logits of features (N, F)."""
        return self.linear(((features - self.mean) / self.deviation).clamp(-_FARTHEST, _FARTHEST))

    @torch.no_grad()
    def scores(self, images: torch.Tensor) -> torch.Tensor:
        """(N, 4) log-probabilities in the order of KINDS, of images (N, 3, H, W), RGB in [0, 1]."""
        return torch.cat([self(mix_features(part.float())).log_softmax(1) for part in images.split(250)])


def train_mix_classifier(images: torch.Tensor, seed: int, steps: int) -> MixClassifier:
    """A frozen classifier of KINDS from uint8 images (N, 3, H, W); one seed makes one classifier.

    Learns from `steps` batches of 128 images, drawn and made by `mixed`, a quarter into each kind. Before that they are
    flipped and cropped, with mirrored borders or, as often, black ones, whose edges are no seams of CutMix. Minimises
    the mean cross-entropy + 0.001 |W|^2 / 2, which is convex, by L-BFGS.
    """
    rng = generator(seed, "mix classifier")
    colour = images.float().mean((0, 2, 3), keepdim=True) / 255
    made = torch.cat([_batch(images, colour, rng) for _ in range(steps)])
    kinds = torch.arange(len(KINDS)).repeat_interleave(_BATCH // len(KINDS)).repeat(steps)
    net = MixClassifier(made.mean(0), made.std(0).clamp_min(1e-6))
    optimizer = torch.optim.LBFGS(net.parameters(), max_iter=_ITERATIONS, line_search_fn="strong_wolfe")

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        loss = F.cross_entropy(net(made), kinds) + _PENALTY * net.linear.weight.square().sum() / 2
        loss.backward()
        return loss

    optimizer.step(closure)  # type: ignore[no-untyped-call]
    return net.eval().requires_grad_(False)


def _batch(images: torch.Tensor, colour: torch.Tensor, rng: torch.Generator) -> torch.Tensor:
    """(128, F): the features of as many of each kind, one kind after the other."""
    drawn = images[torch.randint(len(images), (_BATCH,), generator=rng)].float() / 255
    padding, black = drawn.shape[-1] // 8, float(torch.rand(1, generator=rng)) < 0.5
    cropped = padded_crop(drawn, padding, True, rng) if black else crop_and_flip(drawn, padding, True, rng)
    parts = cropped.chunk(len(KINDS))
    return mix_features(torch.cat([mixed(part, kind, colour, rng) for part, kind in zip(parts, KINDS, strict=True)]))


def mixed(images: torch.Tensor, kind: str, colour: torch.Tensor, rng: torch.Generator) -> torch.Tensor:
    """Images (N, 3, H, W), RGB in [0, 1], made into one of KINDS; 8 that follow each other share what is drawn.

    Shares of CutMix and mixup are uniform in [0.1, 0.9], cutout's side in a quarter to a half of the image's; its
    square has the colour (1, 3, 1, 1).
    """
    return torch.cat([_mixed(part, kind, colour, rng) for part in images.split(_TOGETHER)])


def _mixed(images: torch.Tensor, kind: str, colour: torch.Tensor, rng: torch.Generator) -> torch.Tensor:
    u = float(torch.rand(1, generator=rng))
    share = 0.1 + 0.8 * u
    if kind == "cutmix":
        return cut_and_mixed(images, share, rng)
    if kind == "mixup":
        return share * images + (1 - share) * images[torch.randperm(len(images), generator=rng)]
    if kind == "cutout":
        return cutout(images - colour, round((1 + u) / 4 * images.shape[-1]), rng) + colour
    return images
