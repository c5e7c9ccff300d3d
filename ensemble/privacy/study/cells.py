"""What is computed for each network and each set of inversions, cell by cell."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch
from torch import nn

from ensemble.image.pictures import to_eight_bits
from ensemble.machine.rng import generator
from ensemble.privacy.candidates import Candidate
from ensemble.privacy.inversions import Networks, bn_inversions, class_inversions
from ensemble.privacy.membership import answers
from ensemble.privacy.moments import Moments, moments_of, running_layers, stored, with_stored
from ensemble.privacy.rates import auc
from ensemble.privacy.reestimation import explain, share
from ensemble.privacy.seams import seam_scores, turned_control
from ensemble.privacy.study.bank import CPU, Bank, BankTeacher
from ensemble.privacy.study.features import statistics_features, weight_features
from ensemble.privacy.study.folder import LeakageFolder
from ensemble.privacy.study.mixes import KINDS, MixClassifier, train_mix_classifier
from ensemble.privacy.study.planted import theory_line
from ensemble.privacy.study.probes import probe_scores
from ensemble.privacy.study.recency import last_batches, recency_auc
from ensemble.privacy.study.stress import stressed
from ensemble.privacy.study.windows import second_class
from ensemble.privacy.tracing import image_moments, released, tracing_scores
from ensemble.training.reading import black_pixel, evaluate, inputs_of
from ensemble.training.weights import save_weights
from models import create_model

BATCH = 128
_BATCHES = 32
"""That statistics are re-estimated from."""
_RECENT = 20
"""Batches at the end of a training that a running average of momentum 0.1 is mostly of."""
_WHITENED_BY, _TRACED = 2000, 1000
_PLANTED = (50, 100, 250, 500)
_MIX_STEPS = 60
"""Batches that the classifier of mixes learns from."""
CANDIDATES = {
    "plain": Candidate("mirrored"),
    "cutmix": Candidate("mirrored", "cutmix"),
    "mixup": Candidate("mirrored", "mixup"),
    "cutout": Candidate("mirrored", "cutout"),
    "black": Candidate("black"),
    "none": Candidate(),
}
"""What statistics are re-estimated under: the crops of all arms, and no crops."""


@dataclass(frozen=True)
class Cell:
    """One thing to compute, which writes itself."""

    name: str
    what: str
    """As progress tells it."""
    make: Callable[[], None]


@dataclass(frozen=True)
class Cells:
    """All that a study computes, in phases: those of a phase need only earlier ones."""

    bank: Bank
    folder: LeakageFolder

    def phases(self) -> list[list[Cell]]:
        teachers = [*self.bank.teachers()]
        images = [*self._inversions(teachers), *self._ensembles()]
        return [
            [*map(self._trained, teachers), *map(self._stressed, range(self.bank.recipe.stress.networks))],
            images,
            [*map(self._read, teachers), *(self._seen(cell.name) for cell in images), self._planted(teachers[0])],
        ]

    # --- networks ---------------------------------------------------------------------------------------------

    def _trained(self, teacher: BankTeacher) -> Cell:
        def make() -> None:
            net, card, bank = self.bank.trained(teacher), self.bank.card, self.bank
            save_weights(net, self.folder.weights(teacher.name), card)
            outside = bank.outside(teacher.seed).subset(slice(_BATCHES * BATCH))
            size = min(BATCH, len(outside) // 4)
            tensors = answers(net, card, bank.pool.images, bank.pool.labels)._asdict()
            for name, candidate in CANDIDATES.items():
                found = moments_of(net, candidate.batches(outside.images, card, size, bank.recipe.seed))
                tensors |= {f"{name}/mean": found.mean, f"{name}/var": found.var}
            learned = bank.pool.subset(bank.inside(teacher.seed))
            accuracy = {"test": evaluate(net, card, bank.test, CPU), "train": evaluate(net, card, learned, CPU)}
            self.folder.write(f"bank_{teacher.name}", {"accuracy": accuracy, "batches": len(found)}, tensors)

        return Cell(f"bank_{teacher.name}", f"training {teacher.name}", make)

    def _stressed(self, number: int) -> Cell:
        def make() -> None:
            members, others = self.bank.stress_sets(number)
            net, card = self.bank.stressed(members, number), self.bank.card
            self.folder.write(f"stress_{number}", stressed(net, card, members, others, self._reference))

        return Cell(f"stress_{number}", f"a network that learns by heart, {number}", make)

    def network(self, teacher: BankTeacher) -> nn.Module:
        return create_model(f"{self.bank.recipe.model.partition('@')[0]}@{self.folder.weights(teacher.name)}")[0]

    def _next_plain(self, seed: int) -> BankTeacher:
        """The plain arm's network of the next seed: another than any of this seed."""
        plain = self.bank.recipe.plain
        return BankTeacher(plain, (seed + 1) % self.bank.recipe.arm(plain).teachers)

    def moments(self, teacher: BankTeacher, net: nn.Module) -> dict[str, Moments]:
        """Of re-estimated statistics, by candidate."""
        tensors = self.folder.tensors(f"bank_{teacher.name}")
        own = stored(net, running_layers(net, self.bank.card))
        return {n: replace(own, mean=tensors[f"{n}/mean"], var=tensors[f"{n}/var"]) for n in CANDIDATES}

    # --- inversions -------------------------------------------------------------------------------------------

    def _inversions(self, teachers: Sequence[BankTeacher]) -> Iterator[Cell]:
        recipe = self.bank.recipe
        for teacher in teachers:
            yield self._inverted(teacher, "stored")
            if teacher.arm in (recipe.plain, recipe.mixed):
                yield self._inverted(teacher, "plain")
                yield self._inverted(teacher, "cutmix")
                yield self._inverted(teacher, "stored", with_class=True)

    def _inverted(self, teacher: BankTeacher, statistics: str, with_class: bool = False) -> Cell:
        """From the statistics as trained (`stored`), or from re-estimated ones (`plain`, `cutmix`)."""
        name = f"images_{teacher.name}_{'class' if with_class else statistics}"

        def make() -> None:
            net, card = self.network(teacher), self.bank.card
            if statistics != "stored":
                net = with_stored(net, self.moments(teacher, net)[statistics].average())
            accuracy = evaluate(net, card, self.bank.test, CPU)
            self._write(name, [(net, card)], with_class, {"test_accuracy": accuracy, "seed": teacher.seed})

        return Cell(name, f"inverting {teacher.name}, {'with classes' if with_class else statistics}", make)

    def _ensembles(self) -> Iterator[Cell]:
        recipe = self.bank.recipe
        size = recipe.ensembles.size
        for mixed in range(size + 1):
            for i in range(recipe.ensembles.each):
                yield self._together(mixed, i, size)

    def _together(self, mixed: int, i: int, size: int) -> Cell:
        name = f"images_ensemble_{mixed}_{i:02d}"

        def make() -> None:
            chosen = self.together(mixed, i)
            networks = [(self.network(teacher), self.bank.card) for teacher in chosen]
            self._write(name, networks, False, {"mixed": mixed, "networks": [each.name for each in chosen]})

        return Cell(name, f"inverting ensemble {i} with {mixed} of {size} {self.bank.recipe.mixed}", make)

    def together(self, mixed: int, i: int) -> list[BankTeacher]:
        """The networks of an ensemble, `mixed` of them of the mixed arm: for each i the same seeds, whatever `mixed`
        is, and for each other i other ones."""
        recipe = self.bank.recipe
        size = recipe.ensembles.size
        return [BankTeacher(recipe.mixed if j < mixed else recipe.plain, i * size + j) for j in range(size)]

    def _write(self, name: str, networks: Networks, with_class: bool, figures: dict[str, Any]) -> None:
        asked, seed = self.bank.recipe.inversions, self.bank.recipe.seed  # the same start for all: less chance
        tensors = {}
        if with_class:
            images, tensors["targets"] = class_inversions(networks, asked.images, asked.steps, seed)
        else:
            images = bn_inversions(networks, asked.images, asked.steps, seed)
        tensors["images"] = images  # not rounded: a seam of statistics is faint
        self.folder.write(name, figures, tensors)

    # --- what detectors say -----------------------------------------------------------------------------------

    @cached_property
    def mixes(self) -> MixClassifier:
        """Of half of the real images that no network learned; the controls are made of the others."""
        return train_mix_classifier(self.bank.test.images[::2], self.bank.recipe.seed, _MIX_STEPS)

    def _seen(self, images: str) -> Cell:
        name = f"seen_{images.removeprefix('images_')}"

        def make() -> None:
            found = self.folder.tensors(images)
            made = found["images"]
            figures = self.folder.figures(images) | self.looked_at(made)
            if "targets" in found:
                judge = self._next_plain(figures["seed"])
                second = second_class(self.network(judge), self.bank.card, made, found["targets"])
                figures["second_class"] = float(second.mean())
            self.folder.write(name, figures)

        return Cell(name, f"looking at {images.removeprefix('images_')}", make)

    def looked_at(self, images: torch.Tensor) -> dict[str, float]:
        """Scores of images (N, 3, H, W) in [0, 1]: means over them."""
        said = self.mixes.scores(images)
        return {
            "seam": float(seam_scores(images).mean()),
            "turned": float(turned_control(images).mean()),
            "mixes": float(said[:, KINDS.index("cutmix")].mean()),
        }

    def _read(self, teacher: BankTeacher) -> Cell:
        def make() -> None:
            net, card, bank = self.network(teacher), self.bank.card, self.bank
            found, own = self.moments(teacher, net), stored(net, running_layers(net, self.bank.card))
            outside = bank.outside(teacher.seed)
            probed = outside.subset(slice(bank.recipe.probed))
            estimate = share(own, found["plain"], found["cutmix"], bank.recipe.seed)
            said = explain(own, found, bank.recipe.seed)
            figures: dict[str, Any] = {
                "share": estimate.value,
                "share_interval": [*estimate.interval],
                "best": said.best,
                "fit": said.fit[said.best],
                "explained": said.explained,
                "alike": list(said.alike),
                "probes": probe_scores(net, card, probed.images, probed.labels, bank.recipe.seed),
                "synthetic": self._synthetic(net, teacher),
                "tracing": self._tracing(net, teacher, own),
                "recency": self._recency(net, teacher, own),
            }
            features = {
                "statistics": statistics_features(own, found["plain"].average()),
                "weights": weight_features(net),
            }
            self.folder.write(f"read_{teacher.name}", figures, features)

        return Cell(f"read_{teacher.name}", f"reading {teacher.name}", make)

    def _planted(self, teacher: BankTeacher) -> Cell:
        """Whether statistics of exactly so many images tell them, as theory says."""

        def make() -> None:
            images = self.bank.outside(teacher.seed).images[: 2 * _TRACED]
            counts = [n for n in _PLANTED if 2 * n <= len(images)] or [len(images) // 2]
            line = theory_line(
                *(self.network(teacher), self.bank.card, images, self._reference),
                counts=counts,
                seed=self.bank.recipe.seed,
            )
            self.folder.write("planted", {"line": [vars(row) for row in line]})

        return Cell("planted", "planting statistics of few images", make)

    def _synthetic(self, net: nn.Module, teacher: BankTeacher) -> dict[str, float]:
        """Probes on the inversions of another network, the plain one of the next seed: no data is needed."""
        found = self.folder.tensors(f"images_{self._next_plain(teacher.seed).name}_class")
        images = to_eight_bits(found["images"])
        return probe_scores(net, self.bank.card, images, found["targets"], self.bank.recipe.seed)

    def _tracing(self, net: nn.Module, teacher: BankTeacher, own: Moments) -> dict[str, list[float]]:
        """AUC of members against others by the released means, and its interval; and of the next seed's members."""
        bank = self.bank
        usable = ~bank.canaries
        inside = bank.inside(teacher.seed)
        chosen = torch.cat([torch.nonzero(part & usable)[:_TRACED, 0] for part in (inside, ~inside)])
        known = image_moments(net, bank.card, self._reference)
        scores = tracing_scores(image_moments(net, bank.card, bank.pool.images[chosen]), released(own), known)
        found = {}
        for name, members in (("members", inside[chosen]), ("null", bank.inside(teacher.seed + 1)[chosen])):
            value = auc(scores[members], scores[~members])
            found[name] = [*value]
        return found

    @property
    def _reference(self) -> torch.Tensor:
        return self.bank.test.images[:_WHITENED_BY]

    def _recency(self, net: nn.Module, teacher: BankTeacher, own: Moments) -> dict[str, list[float]]:
        """AUC of the last batches' images against earlier ones of the last epoch, of the statistics as trained, and of
        ones that are taken anew from all that the network learned."""
        schedule = self.bank.recipe.schedule
        learned = self.bank.pool.images[self.bank.inside(teacher.seed)]
        batches = schedule.steps_per_epoch(len(learned))
        late, early = last_batches(
            self.bank.training_seed(teacher.seed),
            schedule.epochs - 1,
            len(learned),
            schedule.batch_size,
            min(_RECENT, max(1, batches // 2)),
        )
        late, early = (part[:: max(1, len(part) // _TRACED)] for part in (late, early))
        arm, known = self.bank.recipe.arm(teacher.arm), self._reference
        rng, black = generator(self.bank.recipe.seed, "recency"), black_pixel(self.bank.card)
        inputs = inputs_of(known, self.bank.card, torch.device("cpu"))
        seen = arm.augmentation(inputs, torch.arange(len(known)), rng, black)[0]
        plain = moments_of(net, Candidate().batches(learned, self.bank.card, schedule.batch_size, 0)).average()
        found = {}
        for name, moments in (("stored", own), ("plain", plain)):
            value = recency_auc(
                *(net, self.bank.card, learned, late, early),
                reference=seen,
                moments=moments,
            )
            found[name] = [*value]
        return found
