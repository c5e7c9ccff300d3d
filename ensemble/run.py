"""One run from a plan to the results folder: trials, checkpoints, verifiers, summary."""

from __future__ import annotations

import hashlib
import json
import os
import platform
import signal
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import nn

from ensemble import hardware
from ensemble.build import Ensemble, Plan, build_ensemble, build_inversion, unique_names
from ensemble.checkpoint import Checkpoint, CheckpointError, load_checkpoint, save_checkpoint
from ensemble.config import differences, dump_yaml, to_plain
from ensemble.distributed import ProcessContext
from ensemble.engine import Inversion, NotFiniteError, Observer, Record
from ensemble.errors import CollectiveFailure
from ensemble.evaluation.classification import accuracy
from ensemble.kernels.build import library
from ensemble.recording import Metrics, prepare_output, progress_reporter, save_grid, save_images, write_json
from models import ModelCard, create_model

T = TypeVar("T")

_NOT_THE_IMAGES = ("runtime", "checkpoint", "record_every", "verifiers")
"""Parts of a recipe that do not decide which images come out."""
_BEGUN = {"recipe.yaml", "metrics.jsonl", "checkpoints"}
"""All that a run leaves that ends before its first checkpoint."""


class Interrupted(CollectiveFailure):
    """The run was asked to stop; it is saved and can be resumed."""


class ReplicaError(CollectiveFailure):
    """The ranks hold different images."""


@dataclass
class _Clock:
    """Start-up apart from the steady state."""

    began: float
    steady_from: float | None = None
    steps: int = 0
    steady_seconds: float = 0.0

    def step(self, warm_up: bool) -> None:
        now = time.perf_counter()
        if warm_up or self.steady_from is None:
            self.steady_from = now
            return
        self.steps += 1
        self.steady_seconds += now - self.steady_from
        self.steady_from = now


@dataclass
class _Finished:
    """What completed trials left: images, their targets, and each teacher's final losses."""

    images: list[torch.Tensor] = field(default_factory=list)
    targets: list[torch.Tensor] = field(default_factory=list)
    values: list[dict[str, float]] = field(default_factory=list)


def run(
    plan: Plan, output: Path, context: ProcessContext, *, resume: bool, overwrite: bool, began: float
) -> dict[str, Any]:
    """Run all trials and write the results; returns the summary (what the verifiers read: on rank 0 only).

    Everything that can be checked is checked before the output folder is touched. Raises ValueError for a
    user's mistake, NotFiniteError where a loss stops being a number (the last good images are written),
    MachineFailure where the disk or another rank fails, and Interrupted after a stop that was asked for.
    """
    folder = output / "checkpoints"
    restored = _restore(plan, output, context) if resume else None
    if restored is not None:
        plan = replace(plan, recipe=replace(plan.recipe, runtime=_saved_runtime(plan, restored)))
    hardware.set_up(plan.recipe.runtime.precision, context.device)
    progress = progress_reporter(context.rank)
    ensemble = _agreed(context, lambda: build_ensemble(plan, context))
    verifiers = _agreed(context, lambda: _load_verifiers(plan) if context.is_main else {})
    micro_batch = _micro_batch(plan, ensemble, context, progress.message)
    runtime = replace(plan.recipe.runtime, micro_batch=micro_batch)
    plan = replace(plan, recipe=replace(plan.recipe, runtime=runtime))
    first_trial = restored.trial if restored else 0
    inversion = _agreed(context, lambda: build_inversion(plan, ensemble, context, first_trial, micro_batch))
    _agreed(
        context,
        lambda: _open_output(plan, output, restored, resume or overwrite) if context.is_main else None,
    )
    recipe, clock, done = plan.recipe, _Clock(began), _Finished()
    startup: float | None = None
    if restored is not None:
        for text in restored.notes(context.world_size, recipe.runtime.reproducible, versions(context.device)):
            progress.message(f"warning: {text}")
        done = restored.finished(plan)
    metrics = Metrics(output / "metrics.jsonl") if context.is_main else None
    stop = _Stop()
    recorded: dict[str, float] = {}
    try:
        progress.start(recipe.iterations * recipe.trials, _steps_done(recipe.iterations, restored))
        for trial in range(first_trial, recipe.trials):
            if trial > first_trial:
                inversion = build_inversion(plan, ensemble, context, trial, micro_batch)
            elif restored is not None and restored.step > 0:
                tensors = {k: v.to(context.device) for k, v in restored.checkpoint.tensors.items()}
                inversion.load_state(tensors, restored.meta["numbers"])
            saver = _Saver(plan, folder, context, trial, inversion, done, stop)
            recorded.clear()

            def on_record(record: Record, trial: int = trial) -> None:
                recorded.update(record.values())
                if metrics is not None:
                    metrics.write({"trial": trial, "step": record.step, **recorded})

            def on_step(step: int, trial: int = trial) -> None:
                nonlocal startup
                if startup is None:
                    startup = time.perf_counter() - began
                    context.limit(recipe.runtime.timeout)
                clock.step(warm_up=step < 2)
                progress.step(trial * recipe.iterations + step, recorded or None)

            observer = Observer(
                every=recipe.record_every,
                on_record=on_record,
                on_step=on_step,
                on_save=saver.save,
                save_every=recipe.checkpoint.every,
                wants_save=saver.wants_save,
                wants_stop=lambda: stop.asked,
            )
            with _stop_on_signals(stop):
                outcome = inversion.run(observer)
            if outcome == "stopped":
                raise Interrupted(
                    f"stopped at step {inversion.step} of trial {trial + 1}; "
                    "to go on, run the same command with --resume"
                )
            images = inversion.result()
            done.values.append(inversion.measure(images).values())
            done.images.append(images.float().cpu())
            done.targets.append(plan.targets(trial))
            if trial + 1 < recipe.trials:
                if context.is_main:
                    _write_images(output, plan, done)
                saver.save_finished_trial()
    except NotFiniteError:
        if context.is_main:
            done.images.append(inversion.result().float().cpu())
            done.targets.append(plan.targets(len(done.targets)))
            _write_images(output, plan, done)
        raise
    finally:
        progress.close()
        if metrics is not None:
            metrics.close()
    summary = _summary(plan, ensemble, context, done, clock, startup or 0.0)
    if context.is_main:
        _write_images(output, plan, done)
        summary |= _verify(verifiers, done)
        summary["wall_seconds"] = time.perf_counter() - began
        write_json(output / "summary.json", summary)
    return summary


# --- stopping and saving ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Restored:
    checkpoint: Checkpoint
    warnings: tuple[str, ...]

    @property
    def meta(self) -> dict[str, Any]:
        return self.checkpoint.meta

    @property
    def trial(self) -> int:
        return int(self.meta["trial"])

    @property
    def step(self) -> int:
        """Within the trial; 0 before its first step, when there is nothing to load."""
        return int(self.meta["numbers"]["step"])

    def notes(self, world_size: int, reproducible: str, here: Mapping[str, str]) -> list[str]:
        found = list(self.warnings)
        saved = self.meta["versions"]
        changed = [f"{key} {saved.get(key)} -> {value}" for key, value in here.items() if saved.get(key) != value]
        if changed:
            found.append(f"the run began with other versions, its images may differ in bits: {', '.join(changed)}")
        if reproducible == "placement" and world_size != self.meta["ranks"]:
            found.append(
                f"the run began on {self.meta['ranks']} ranks and goes on on {world_size}: its images are "
                "those of an uninterrupted run up to rounding (to the bit under --reproducible ranks)"
            )
        return found

    def finished(self, plan: Plan) -> _Finished:
        images = [self.checkpoint.tensors[f"done.{trial}.images"] for trial in range(self.trial)]
        return _Finished(images, [plan.targets(trial) for trial in range(self.trial)], list(self.meta["values"]))


def _steps_done(iterations: int, restored: _Restored | None) -> int:
    return 0 if restored is None else restored.trial * iterations + restored.step


def _restore(plan: Plan, output: Path, context: ProcessContext) -> _Restored | None:
    """The newest whole checkpoint of this recipe, as rank 0 reads it; None where a run can begin."""

    def read() -> _Restored | None:
        checkpoint, warnings = load_checkpoint(output / "checkpoints", "run")
        if checkpoint is None:
            if warnings:
                raise CheckpointError(f"{'; '.join(warnings)}; none is left: begin anew with --overwrite")
            if output.is_dir() and not {file.name for file in output.iterdir()} <= _BEGUN:
                raise ValueError(
                    f"resume: {output} holds no checkpoint but other files; pass --overwrite instead to "
                    "replace its results, or give another folder"
                )
            return None
        changed = differences(_fingerprint(checkpoint.meta["recipe"]), _fingerprint(to_plain(plan.recipe)))
        if changed:
            raise ValueError(
                "resume: the checkpoint was made by another recipe; these fields differ: " + ", ".join(changed)
            )
        return _Restored(checkpoint, tuple(warnings))

    return context.broadcast(_agreed(context, lambda: read() if context.is_main else None))


def _open_output(plan: Plan, output: Path, restored: _Restored | None, replace_files: bool) -> None:
    """Begin the results folder, or wind its metrics back to the checkpoint."""
    try:
        if restored is not None:
            _rewind(output / "metrics.jsonl", (restored.trial, restored.step))
            return
        prepare_output(output, replace_files)
        (output / "recipe.yaml").write_text(dump_yaml(to_plain(plan.recipe)), encoding="utf-8")
    except OSError as error:
        why = error.strerror or error
        raise ValueError(f"output: {output} cannot be written ({why}); give another folder") from None


def _rewind(path: Path, until: tuple[int, int]) -> None:
    """Drop the lines from (trial, step) `until` on: the resumed run writes them again."""
    if not path.exists():
        return
    kept = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            values = json.loads(line)
        except json.JSONDecodeError:  # a crash cut it short, and it was the last
            break
        if (values["trial"], values["step"]) < until:
            kept.append(line + "\n")
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_text("".join(kept), encoding="utf-8")
    os.replace(temporary, path)


def _fingerprint(plain: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in plain.items() if key not in _NOT_THE_IMAGES}


def _saved_runtime(plan: Plan, restored: _Restored) -> Any:
    """The runtime with what the checkpoint resolved for `auto`: a resumed run computes as it began."""
    saved = restored.meta["recipe"]["runtime"]
    keep = ["precision", "compile", "reproducible", "cell_size"]
    if plan.recipe.runtime.micro_batch == "auto":
        keep.append("micro_batch")
    return replace(plan.recipe.runtime, **{key: saved[key] for key in keep})


@dataclass
class _Stop:
    asked: bool = False


@dataclass
class _Saver:
    """Saves; and asks for it every T seconds of rank 0's clock, and to stop."""

    plan: Plan
    folder: Path
    context: ProcessContext
    trial: int
    inversion: Inversion
    done: _Finished
    stop: _Stop
    saved_at: float = field(default_factory=time.monotonic)

    def wants_save(self, step: int) -> bool:
        seconds = self.plan.recipe.checkpoint.seconds
        return self.context.is_main and bool(seconds) and time.monotonic() - self.saved_at >= seconds

    def save(self, step: int) -> None:
        tensors, numbers = self.inversion.state()
        _compare_replicas(self.context, tensors, step)
        self._write(self.trial, step, tensors, numbers)

    def save_finished_trial(self) -> None:
        """The images made so far, before the first step of the next trial."""
        checkpoint = self.plan.recipe.checkpoint
        if checkpoint.every or checkpoint.seconds:
            self._write(self.trial + 1, 0, {}, {"step": 0})

    def _write(self, trial: int, step: int, tensors: Mapping[str, torch.Tensor], numbers: Mapping[str, float]) -> None:
        self.saved_at = time.monotonic()
        problem = None
        if self.context.is_main:
            finished = {f"done.{i}.images": images for i, images in enumerate(self.done.images)}
            meta = {
                "trial": trial,
                "numbers": numbers,
                "values": self.done.values,
                "recipe": to_plain(self.plan.recipe),
                "ranks": self.context.world_size,
                "versions": versions(self.context.device),
            }
            total = trial * self.plan.recipe.iterations + step
            try:
                save_checkpoint(self.folder, "run", total, {**tensors, **finished}, meta)
            except CheckpointError as error:
                problem = error
        problems = [error for error in self.context.gather(problem) if isinstance(error, CheckpointError)]
        if problems:
            raise problems[0]


def _compare_replicas(context: ProcessContext, tensors: Mapping[str, torch.Tensor], step: int) -> None:
    """Every rank must hold the same image and optimiser state, to the bit."""
    if context.world_size == 1:
        return
    sums = context.gather(checksum(tensors))
    if len(set(sums)) > 1:
        raise ReplicaError(
            f"step {step}: the ranks hold different images (checksums {', '.join(map(str, sums))}); "
            "the run is stopped, its last checkpoint is good"
        )


def checksum(tensors: Mapping[str, torch.Tensor]) -> str:
    """A hash of all tensors' names and bytes."""
    digest = hashlib.blake2b(digest_size=8)
    for name in sorted(tensors):
        digest.update(name.encode())
        digest.update(tensors[name].detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


@contextmanager
def _stop_on_signals(stop: _Stop) -> Iterator[None]:
    """SIGTERM and SIGINT ask for a stop at the end of the step; the handlers before are put back."""

    def ask(*_: object) -> None:
        stop.asked = True

    before = {s: signal.signal(s, ask) for s in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


# --- pieces -----------------------------------------------------------------------------------------------


def _agreed(context: ProcessContext, build: Callable[[], T]) -> T:
    """`build()`, or on every rank the first error that any rank met: nobody is left waiting."""
    result: T | None = None
    problem: Exception | None = None
    try:
        result = build()
    except (ValueError, CheckpointError, OSError, torch.OutOfMemoryError) as error:
        problem = error
    problems = [error for error in context.gather(problem) if isinstance(error, Exception)]
    if problems:
        problems[0].collective = True  # type: ignore[attr-defined]
        raise problems[0]
    return result  # type: ignore[return-value]


def _load_verifiers(plan: Plan) -> dict[str, tuple[nn.Module, ModelCard]]:
    """Display name -> network and card: loaded before the run, so that it does not end in their errors."""
    names = unique_names(plan.recipe.verifiers)
    return {name: create_model(model) for name, model in zip(names, plan.recipe.verifiers, strict=True)}


def _micro_batch(plan: Plan, ensemble: Ensemble, context: ProcessContext, tell: Callable[[str], None]) -> int | None:
    """The recipe's micro-batch; `auto` takes the smallest of what fits on each rank, None where all does."""
    wanted = plan.recipe.runtime.micro_batch
    if wanted != "auto":
        return wanted
    fits = context.gather(_largest_that_fits(plan, ensemble, context))
    sizes = [size for size in fits if isinstance(size, int)]
    if 0 in sizes:
        problem = ValueError("memory: not even one image fits through the teachers on this device")
        problem.collective = True  # type: ignore[attr-defined]
        raise problem
    if sizes:
        tell(f"out of memory with the whole batch: micro-batches of {min(sizes)} images")
    return min(sizes, default=None)


def _largest_that_fits(plan: Plan, ensemble: Ensemble, context: ProcessContext) -> int | None:
    """Tries a step's cells alone and halves while the device is out of memory; 0: not even one image fits."""
    size: int | None = None
    largest = max((share.images for share in ensemble.placement.shares[context.rank]), default=1)
    alone = ProcessContext(context.rank, context.world_size, context.device)
    while size != 0:
        try:
            inversion = build_inversion(plan, ensemble, alone, 0, size)
            with torch.no_grad():
                view = inversion.parameterization()
            inversion.loss_and_gradient(view, inversion.weights_at(0))
            return size
        except torch.OutOfMemoryError:
            size = (size or largest) // 2
            torch.cuda.empty_cache()
    return 0


def _write_images(output: Path, plan: Plan, done: _Finished) -> None:
    images, targets = torch.cat(done.images), torch.cat(done.targets)
    save_images(output, images, targets, plan.class_names)
    save_grid(output / "grid.png", images, targets, plan.class_names)


def _summary(
    plan: Plan, ensemble: Ensemble, context: ProcessContext, done: _Finished, clock: _Clock, startup: float
) -> dict[str, Any]:
    teachers: dict[str, dict[str, float]] = {}
    for name in plan.names:
        keys = [key for key in done.values[-1] if key.rpartition("/")[0] == name]
        teachers[name] = {
            key.rpartition("/")[2]: sum(values[key] for values in done.values) / len(done.values) for key in keys
        }
    return {
        "teachers": teachers,
        "loss": sum(values["loss"] for values in done.values) / len(done.values),
        "images": sum(len(t) for t in done.targets),
        "verifier_accuracy": None,
        "steps_per_second": clock.steps / clock.steady_seconds if clock.steady_seconds else None,
        "startup_seconds": startup,
        "wall_seconds": time.perf_counter() - clock.began,
        "peak_memory_bytes": max(int(m) for m in context.gather(hardware.peak_memory(context.device))),  # type: ignore[call-overload]
        "ranks": context.world_size,
        "device": str(context.device),
        "precision": plan.recipe.runtime.precision,
        "compiled": plan.recipe.runtime.compile == "on",
        "versions": versions(context.device),
        "seed": plan.recipe.seed,
    }


def _verify(verifiers: Mapping[str, tuple[nn.Module, ModelCard]], done: _Finished) -> dict[str, Any]:
    """Each verifier's accuracy on all images, with its 95 % interval; `verifier_accuracy` is the first's."""
    images, targets = torch.cat(done.images), torch.cat(done.targets)
    read = {}
    for name, (net, card) in verifiers.items():
        result = accuracy(net, card, images, targets)
        read[name] = {"accuracy": result.top1, "interval": list(result.interval), "images": result.n}
    first = next(iter(read.values()))["accuracy"] if read else None
    return {"verifier_accuracy": first, "verifiers": read}


def versions(device: torch.device) -> dict[str, str]:
    """Versions of what decides the images, down to the compiled kernel where the device is a CPU."""
    found = {"python": platform.python_version()}
    for package in ("torch", "torchvision", "timm", "numpy", "ensemble-inversion"):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "not installed"
    if device.type == "cpu":
        kernel = library()
        found["kernel"] = Path(kernel._name).stem if kernel is not None else "none"
    return found
