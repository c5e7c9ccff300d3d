"""One run from a plan to the results folder: trials, checkpoints, verifiers, summary."""

from __future__ import annotations

import hashlib
import platform
import signal
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from ensemble import hardware
from ensemble.build import Ensemble, Plan, build_ensemble, build_inversion
from ensemble.checkpoint import CheckpointError, load_checkpoint, save_checkpoint
from ensemble.config import differences, dump_yaml, to_plain
from ensemble.distributed import ProcessContext
from ensemble.engine import Inversion, NotFiniteError, Observer, Record
from ensemble.evaluation.classification import accuracy
from ensemble.recording import Metrics, prepare_output, progress_reporter, save_grid, save_images, write_json
from models import create_model

_NOT_THE_IMAGES = ("runtime", "checkpoint", "record_every", "verifiers")
"""Parts of a recipe that do not decide which images come out."""


class Interrupted(Exception):
    """The run was asked to stop; it is saved and can be resumed."""


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
    """Run all trials and write the results; returns the summary (the same on every rank, verifiers on rank 0).

    Raises ValueError for a user's mistake, NotFiniteError where a loss stops being a number, CheckpointError
    where the disk refuses, and Interrupted after a stop that was asked for.
    """
    folder = output / "checkpoints"
    restored = _restore(plan, folder, context) if resume else None
    if restored is not None:
        plan = replace(plan, recipe=replace(plan.recipe, runtime=_saved_runtime(plan, restored)))
    hardware.set_up(plan.recipe.runtime.precision, context.device)
    ensemble = _agreed(context, lambda: build_ensemble(plan, context))
    if context.is_main:
        if restored is None:
            prepare_output(output, overwrite)
        (output / "recipe.yaml").write_text(dump_yaml(to_plain(plan.recipe)))
    context.gather(None)
    progress = progress_reporter(context.rank)
    recipe, clock, done = plan.recipe, _Clock(began), _Finished()
    startup: float | None = None
    for warning in restored.warnings if restored else ():
        progress.message(f"warning: {warning}")
    first_trial = 0
    if restored is not None:
        first_trial = int(restored.meta["trial"])
        for trial in range(first_trial):
            done.images.append(restored.tensors[f"done.{trial}.images"])
            done.targets.append(plan.targets(trial))
        done.values = list(restored.meta["values"])
    micro_batch = _micro_batch(plan, ensemble, context, progress.message)
    metrics = Metrics(output / "metrics.jsonl") if context.is_main else None
    try:
        progress.start(recipe.iterations * recipe.trials, _steps_done(recipe.iterations, restored))
        for trial in range(first_trial, recipe.trials):
            inversion = build_inversion(plan, ensemble, context, trial, micro_batch)
            if restored is not None and trial == first_trial and restored.step_in_trial > 0:
                tensors = {k: v.to(context.device) for k, v in restored.tensors.items()}
                inversion.load_state(tensors, restored.meta["numbers"])
            saver = _Saver(plan, folder, context, trial, inversion, done)
            recorded: dict[str, float] = {}

            def on_record(record: Record, trial: int = trial) -> None:
                recorded.update(record.values())
                if metrics is not None:
                    metrics.write({"trial": trial, "step": record.step, **recorded})

            def on_step(step: int, trial: int = trial) -> None:
                nonlocal startup
                if startup is None:
                    startup = time.perf_counter() - began
                clock.step(warm_up=step < 2)
                progress.step(trial * recipe.iterations + step, recorded or None)

            observer = Observer(
                every=recipe.record_every,
                on_record=on_record,
                on_step=on_step,
                on_save=saver.save,
                wants_save=saver.wants_save,
                wants_stop=saver.wants_stop,
            )
            with _stop_on_signals(saver):
                outcome = inversion.run(observer)
            if outcome == "stopped":
                raise Interrupted(
                    f"stopped at step {inversion.step} of trial {trial + 1}; to go on, run the same command with --resume"
                )
            images = inversion.result()
            done.values.append(inversion.measure(images).values())
            done.images.append(images.float().cpu())
            done.targets.append(plan.targets(trial))
            if context.is_main and recipe.trials > 1:
                _write_images(output, plan, done)
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
        summary |= _verify(plan, done)
        summary["wall_seconds"] = time.perf_counter() - began
        write_json(output / "summary.json", summary)
    return summary


# --- stopping and saving ------------------------------------------------------------------------------------------


@dataclass
class _Restored:
    tensors: dict[str, torch.Tensor]
    meta: dict[str, Any]
    warnings: list[str]

    @property
    def step_in_trial(self) -> int:
        return int(self.meta["numbers"]["step"])


def _steps_done(iterations: int, restored: _Restored | None) -> int:
    return 0 if restored is None else int(restored.meta["trial"]) * iterations + restored.step_in_trial


def _restore(plan: Plan, folder: Path, context: ProcessContext) -> _Restored | None:
    """The newest whole checkpoint of this recipe; None where the folder holds none."""
    checkpoint, warnings = load_checkpoint(folder, "run")
    if checkpoint is None:
        if warnings:
            raise CheckpointError("checkpoint: none can be read: " + "; ".join(warnings))
        return None
    changed = differences(_fingerprint(checkpoint.meta["recipe"]), _fingerprint(to_plain(plan.recipe)))
    if changed:
        raise ValueError(
            f"resume: the checkpoint was made by another recipe; these fields differ: {', '.join(changed)}"
        )
    return _Restored(checkpoint.tensors, checkpoint.meta, warnings)


def _fingerprint(plain: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in plain.items() if key not in _NOT_THE_IMAGES}


def _saved_runtime(plan: Plan, restored: _Restored) -> Any:
    """The runtime with what the checkpoint resolved for `auto`: a resumed run computes as it began."""
    saved = restored.meta["recipe"]["runtime"]
    keep = ("precision", "compile", "reproducible", "cell_size")
    return replace(plan.recipe.runtime, **{key: saved[key] for key in keep})


@dataclass
class _Saver:
    """Decides when to save, and saves: every N steps, every T seconds (rank 0's clock), and when asked to stop."""

    plan: Plan
    folder: Path
    context: ProcessContext
    trial: int
    inversion: Inversion
    done: _Finished
    stop: bool = False
    saved_at: float = field(default_factory=time.monotonic)

    def wants_stop(self) -> bool:
        return self.stop

    def wants_save(self, step: int) -> bool:
        every, seconds = self.plan.recipe.checkpoint.every, self.plan.recipe.checkpoint.seconds
        due = bool(every) and step % every == 0
        late = self.context.is_main and bool(seconds) and time.monotonic() - self.saved_at >= seconds
        return due or late

    def save(self, step: int) -> None:
        tensors, numbers = self.inversion.state()
        _compare_replicas(self.context, tensors, step)
        self.saved_at = time.monotonic()
        problem = None
        if self.context.is_main:
            finished = {f"done.{i}.images": images for i, images in enumerate(self.done.images)}
            meta = {
                "trial": self.trial,
                "numbers": numbers,
                "values": self.done.values,
                "recipe": to_plain(self.plan.recipe),
                "versions": versions(),
            }
            total = self.trial * self.plan.recipe.iterations + step
            try:
                save_checkpoint(self.folder, "run", total, tensors | finished, meta)
            except CheckpointError as error:
                problem = str(error)
        problems = [text for text in self.context.gather(problem) if text]
        if problems:
            raise CheckpointError(str(problems[0]))


def _compare_replicas(context: ProcessContext, tensors: Mapping[str, torch.Tensor], step: int) -> None:
    """Every rank must hold the same image and optimiser state, to the bit."""
    if context.world_size == 1:
        return
    sums = context.gather(checksum(tensors))
    if len(set(sums)) > 1:
        raise RuntimeError(f"step {step}: the ranks hold different images (checksums {sums}); the run is stopped")


def checksum(tensors: Mapping[str, torch.Tensor]) -> str:
    """A hash of all tensors' names and bytes."""
    digest = hashlib.blake2b(digest_size=8)
    for name in sorted(tensors):
        digest.update(name.encode())
        digest.update(tensors[name].detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


@contextmanager
def _stop_on_signals(saver: _Saver) -> Iterator[None]:
    """SIGTERM and SIGINT ask for a stop at the end of the step; the handlers before are put back."""

    def ask(*_: object) -> None:
        saver.stop = True

    before = {s: signal.signal(s, ask) for s in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


# --- pieces -------------------------------------------------------------------------------------------------------


def _agreed(context: ProcessContext, build: Any) -> Any:
    """`build()`, or on every rank the first error that any rank met: nobody is left waiting."""
    result, problem = None, None
    try:
        result = build()
    except ValueError as error:
        problem = str(error)
    problems = [text for text in context.gather(problem) if text]
    if problems:
        raise ValueError(str(problems[0]))
    return result


def _micro_batch(plan: Plan, ensemble: Ensemble, context: ProcessContext, tell: Any) -> int | None:
    """The recipe's micro-batch; `auto` tries a step's cells alone and halves while the device is out of memory."""
    wanted = plan.recipe.runtime.micro_batch
    if wanted != "auto":
        return wanted
    size: int | None = None
    largest = max((share.images for share in ensemble.placement.shares[context.rank]), default=1)
    alone = ProcessContext(context.rank, context.world_size, context.device)
    while True:
        try:
            inversion = build_inversion(plan, ensemble, alone, 0, size)
            with torch.no_grad():
                view = inversion.parameterization()
            inversion.loss_and_gradient(view, inversion.weights_at(0))
            break
        except torch.OutOfMemoryError:
            size = (size or largest) // 2
            if size == 0:
                raise ValueError("memory: not even one image fits through the teachers on this device") from None
            torch.cuda.empty_cache()
    sizes = [s for s in context.gather(size) if isinstance(s, int)]
    if sizes:
        tell(f"out of memory with the whole batch: micro-batches of {min(sizes)} images")
        return min(sizes)
    return None


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
        "versions": versions(),
        "seed": plan.recipe.seed,
    }


def _verify(plan: Plan, done: _Finished) -> dict[str, Any]:
    """Each verifier's accuracy on all images, with its 95 % interval; `verifier_accuracy` is the first's."""
    images, targets = torch.cat(done.images), torch.cat(done.targets)
    read = {}
    for name in plan.recipe.verifiers:
        net, card = create_model(name)
        result = accuracy(net, card, images, targets)
        read[name.partition("@")[0]] = {"accuracy": result.top1, "interval": list(result.interval), "images": result.n}
    first = next(iter(read.values()))["accuracy"] if read else None
    return {"verifier_accuracy": first, "verifiers": read}


def versions() -> dict[str, str]:
    """Versions of what decides the images."""
    found = {"python": platform.python_version()}
    for package in ("torch", "torchvision", "timm", "numpy", "ensemble-inversion"):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "not installed"
    return found
