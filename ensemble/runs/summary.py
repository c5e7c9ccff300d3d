"""What a run sums up: losses, readings of teachers and verifiers, and what the user should be warned of."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn

from ensemble.engine.acting import acting_teachers
from ensemble.evaluation.classification import accuracy_of, logits_of
from ensemble.machine.hardware import peak_memory
from ensemble.machine.ranks import ProcessContext
from ensemble.objectives.terms import TeacherTerm
from ensemble.runs.build import PlacedEnsemble
from ensemble.runs.history import History
from ensemble.runs.origin import versions
from ensemble.runs.plan import Plan
from ensemble.runs.trial_results import TrialResults
from models import ModelCard, check_reads

_MISSED = 0.05
"""Share of its own targets that a teacher may miss at the end without a word."""

Verifiers = Mapping[str, tuple[nn.Module, ModelCard]]


def summarise(
    plan: Plan, context: ProcessContext, done: Mapping[int, TrialResults], history: History
) -> dict[str, Any]:
    """The summary but for the verifiers. All ranks must call it."""
    losses = _mean_losses(done)
    teachers: dict[str, dict[str, float]] = {}
    for key, value in losses.items():
        name, _, term = key.rpartition("/")
        if name:
            teachers.setdefault(name, {})[term] = value
    return {
        "teachers": teachers,
        "loss": losses.get("loss"),
        "images": sum(len(plan.targets(trial)) for trial in done),
        "class_names": list(plan.class_names),
        "verifier_accuracy": None,
        "steps": [result.steps for result in done.values()],
        "steps_per_second": history.steps / history.steady_seconds if history.steady_seconds else None,
        "startup_seconds": history.startup_seconds or 0.0,
        "command": history.command or None,
        "peak_memory_bytes": max(context.gather(peak_memory(context.device))),
        "ranks": context.world_size,
        "replicas": plan.recipe.runtime.replicas,
        "device": ", ".join(dict.fromkeys(context.gather(str(context.device)))),
        "precision": plan.recipe.runtime.precision,
        "compiled": plan.recipe.runtime.compile == "on",
        "versions": versions(context.device),
        "seed": plan.recipe.seed,
    }


def load_verifiers(plan: Plan) -> Verifiers:
    """Display name -> network and card: loaded and tried before the run, so that it does not end in their errors."""
    models = plan.recipe.verifiers
    found = {name: plan.networks.create(model) for name, model in zip(plan.verifier_names, models, strict=True)}
    for name, (net, card) in found.items():
        check_reads(f"verifier {name}", net, card)
    return found


def verify(
    verifiers: Verifiers, images: torch.Tensor, targets: torch.Tensor, device: torch.device
) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    """Each verifier's accuracy on all images, with its 95 % interval, for the summary; and its logits by name."""
    read, logits = {}, {}
    for name, (net, card) in verifiers.items():
        home = next((p.device for p in net.parameters()), torch.device("cpu"))
        try:
            logits[name] = logits_of(net.to(device), card, images)
        except torch.OutOfMemoryError:
            logits[name] = logits_of(net.cpu(), card, images)
        finally:
            net.to(home)  # it may be the user's own
        result = accuracy_of(logits[name], targets, card)
        read[name] = {"accuracy": result.top1, "interval": list(result.interval), "images": result.n}
    first = next(iter(read.values()))["accuracy"] if read else None
    return {"verifier_accuracy": first, "verifiers": read}, logits


def layer_rows(ensemble: PlacedEnsemble, done: Mapping[int, TrialResults]) -> list[dict[str, Any]]:
    """A row a BN layer: distances of mean and variance in units of the layer's own spread, averaged over trials.

    `mean_level` and `variance_level` are those of a batch of as many real images, `level` says whether that was
    measured or is a sampling error's.
    """
    rows = []
    for placed in ensemble.teachers:
        profile = placed.profile
        if profile.statistics is None:
            continue
        statistics = profile.statistics.at(next(iter(done.values())).images.shape[2])
        distances = [
            torch.stack(
                statistics.distances(result.moments[profile.name].to(statistics.mean.device), len(result.images))
            )
            for result in done.values()
        ]
        mean, var = torch.stack(distances).mean(0).tolist()
        levels = torch.stack(statistics.level(len(next(iter(done.values())).images))).T.tolist()
        known = "measured" if statistics.levels_measured else "estimated"
        for i, layer in enumerate(statistics.layers):
            row = {"teacher": profile.name, "layer": layer.name, "order": i}
            row |= {"mean_distance": mean[i], "variance_distance": var[i]}
            rows.append(row | {"mean_level": levels[i][0], "variance_level": levels[i][1], "level": known})
    return rows


def warnings_of(
    plan: Plan, done: Mapping[int, TrialResults], first_losses: Mapping[int, Mapping[str, float]]
) -> list[str]:
    """A line for each teacher that misses its targets, and for each loss that did not fall, with what to try."""
    found = []
    aims = any(term.aims for term in plan.formulation.teacher_terms)
    for name in plan.teachers:
        missed = [
            1 - result.values[f"{name}/accuracy"] for trial, result in done.items() if name in _acting(plan, trial)
        ]
        share = sum(missed) / len(missed) if missed else 0.0
        if aims and share > _MISSED:
            model = plan.recipe.teachers[plan.names.index(name)].model
            remedy = f"try more iterations{_levers(plan)}"
            if model.endswith("@random"):
                remedy = "its weights are random, so it has learned none"
            found.append(f"{name} misses {share:.0%} of its own targets; {remedy}")
    fell = [(_comparable(plan, first), done[trial].values) for trial, first in first_losses.items() if trial in done]
    for key in dict.fromkeys(key for first, _ in fell for key in first):
        pairs = [(first[key], last[key]) for first, last in fell if key in first]
        before, after = (sum(values) / len(pairs) for values in zip(*pairs, strict=True))
        if not after < before and before:
            found.append(
                f"{key} did not fall: {before:.4g} at the first step, {after:.4g} at the end; "
                "try a lower learning rate (optimizer.lr), or more iterations"
            )
    return found


def _acting(plan: Plan, trial: int) -> list[str]:
    """The teachers that act at some step of a trial."""
    rule, teachers = plan.recipe.ensemble, plan.teachers
    if rule.per == "step":
        return list(teachers)
    seed = plan.recipe.seed + trial
    drawn = acting_teachers(rule.acting, rule.count, rule.per, teachers=len(teachers), seed=seed, step=0)
    return [teachers[t] for t in drawn]


def _comparable(plan: Plan, first: Mapping[str, float]) -> dict[str, float]:
    """The losses of a first step that can be compared with those at the end, where all teachers are read."""
    terms = zip(plan.formulation.names, plan.formulation.teacher_terms, strict=True)
    rising = {name for name, term in terms if not term.falls}
    left_out = {"accuracy", *rising}
    kept = {key: value for key, value in first.items() if key != "prior" and key.rpartition("/")[2] not in left_out}
    if rising or not {*plan.names} <= {key.rpartition("/")[0] for key in first}:
        kept.pop("loss", None)
    return kept


def _levers(plan: Plan) -> str:
    """What else draws images to their targets, by the fields of this recipe."""
    text = ""
    for i, term in enumerate(plan.recipe.objectives):
        if isinstance(term, TeacherTerm) and term.aims:
            text += f", a larger objectives[{i}].weight"
            if getattr(term, "temperature", 1.0) > 1:
                text += f", objectives[{i}].temperature=1"
    return text


def _mean_losses(done: Mapping[int, TrialResults]) -> dict[str, float]:
    values: Sequence[Mapping[str, float]] = [result.values for result in done.values()]
    return {key: sum(v[key] for v in values) / len(values) for key in (values[0] if values else ())}
