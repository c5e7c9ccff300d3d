"""What a step costs: the peers' way, ours, and the floor; each case a process, interleaved rounds, medians.

    python -m tests.benchmarks.step [--settings resnet18 cifar] [--json FILE]
    python -m tests.benchmarks.step --profile --settings cifar

A step is the loss and its gradient at the image. Cases:

    hooks      a plain loop of the peers' kind, written from the formulas: a hook per BN layer that copies the feature
               map for its variance, weights that require gradients, fp32, torch's and malloc's defaults
    ours       teachers as invert.py runs them, the whole loss
    no BN      cross-entropy only, frozen weights, channels_last, compiled
    floor      the same with BN folded into the convolutions where the network allows it

Cases in bf16 are left out where the processor only emulates it.

Memory is the process' peak during its steps above what it held after loading (on a GPU: allocated memory); what
loading freed is first given back to the system, lest steps reuse it unseen.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import multiprocessing
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path

import torch
import torch.fx
import torch.nn.functional as F
from rich.console import Console
from rich.table import Table
from torch import nn
from torch.fx.experimental.optimization import fuse

from ensemble import BNMatching, CrossEntropy
from ensemble.engine.gradient import EnsembleLoss, EnsembleMember
from ensemble.engine.placement import Cell
from ensemble.machine import hardware
from ensemble.objectives.terms import Formulation
from ensemble.teachers.teacher import Teacher
from models import create_model

Step = Callable[[], object]


@dataclass(frozen=True)
class Setting:
    """Networks that see one batch of `images` x 3 x `size` x `size`."""

    models: tuple[str, ...]
    images: int
    size: int


QUICKSTART = ("resnet20_cifar", "vgg16_bn_slim_cifar", "wrn16_2_cifar")
SETTINGS = {
    "resnet18": Setting(("resnet18@random",), 16, 224),
    "resnet50": Setting(("resnet50@random",), 8, 224),
    "vgg16_bn": Setting(("vgg16_bn@random",), 2, 224),
    "mobilenet_v2": Setting(("mobilenet_v2:input_size=160@random",), 8, 160),
    "efficientnet_lite0": Setting(("efficientnet_lite0:input_size=160@random",), 8, 160),
    "efficientnet_b0": Setting(("efficientnet_b0:input_size=160@random",), 8, 160),
    "cifar": Setting(QUICKSTART, 100, 32),
}
ON_CUDA = {
    "resnet50": Setting(("resnet50@random",), 84, 224),
    "resnet50+vgg19_bn": Setting(("resnet50@random", "vgg19_bn@random"), 84, 224),
    "cifar": Setting(QUICKSTART, 100, 32),
}
CASES = (
    *(("hooks", "fp32"), ("ours, eager", "fp32"), ("ours, compiled", "fp32"), ("no BN", "fp32"), ("floor", "fp32")),
    *(("ours, eager", "bf16"), ("ours, compiled", "bf16"), ("no BN", "bf16"), ("floor", "bf16")),
)


# --- the cases ------------------------------------------------------------------------------------------------


def batch(setting: Setting, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    view = torch.rand(setting.images, 3, setting.size, setting.size, generator=torch.Generator().manual_seed(0))
    return view.to(device), (torch.arange(setting.images) % 10).to(device)


def hooks(setting: Setting, dtype: torch.dtype, device: torch.device) -> Step:
    """As the peers do: R_feature by a forward hook on every BatchNorm2d, one network after the other."""
    view, targets = batch(setting, device)
    nets = [create_model(name)[0].to(device).requires_grad_(True) for name in setting.models]
    losses: list[torch.Tensor] = []

    def hook(module: nn.Module, inputs: tuple[torch.Tensor, ...], output: torch.Tensor) -> None:
        assert isinstance(module, nn.BatchNorm2d)
        x = inputs[0]
        mean = x.mean((0, 2, 3))
        var = x.permute(1, 0, 2, 3).contiguous().view(x.shape[1], -1).var(1, unbiased=False)
        own = [module.get_buffer(name) for name in ("running_mean", "running_var")]
        losses.append((own[1] - var).norm() + (own[0] - mean).norm())

    for net in nets:
        for module in net.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.register_forward_hook(hook)

    def step() -> object:
        leaf = view.clone().requires_grad_()
        losses.clear()
        total = torch.zeros((), device=device)
        for net in nets:
            total = total + F.cross_entropy(net(leaf), targets)
            net.zero_grad()
        (total + 0.01 * torch.stack(losses).sum()).backward()
        return leaf.grad

    return step


def ours(setting: Setting, dtype: torch.dtype, device: torch.device, compiled: bool) -> Step:
    """`EnsembleLoss.gradient` with all teachers in this process."""
    view, targets = batch(setting, device)
    members = []
    for i, name in enumerate(setting.models):
        net, card = create_model(name)
        teacher = Teacher(f"{i}", net, card, dtype=dtype, device=device)
        teacher.rewrite()
        if compiled:
            teacher.compile()
        members.append(EnsembleMember(teacher.profile(), 1.0, targets, teacher))
    formulation = Formulation(
        (CrossEntropy(weight=1.0, temperature=1.0), BNMatching(weight=1.0, convention="relative"))
    )
    loss = EnsembleLoss(members, formulation, [Cell(t, 0, setting.images) for t in range(len(members))])
    weights = {t: 1 / len(members) for t in range(len(members))}
    return lambda: loss.gradient(view, weights)[1]


def without_norms(net: nn.Module) -> nn.Module:
    """BN folded into the convolutions; where torch.fx cannot trace the network, BN left out, which costs as little."""
    try:
        return fuse(net)
    except torch.fx.proxy.TraceError:
        for name, module in list(net.named_modules()):
            if isinstance(module, nn.BatchNorm2d):
                act = getattr(module, "act", None)
                net.set_submodule(name, act if isinstance(act, nn.Module) else nn.Identity())
        return net


def bare(setting: Setting, dtype: torch.dtype, device: torch.device, folded: bool) -> Step:
    """Forward and the gradient to the input of the frozen, compiled networks alone."""
    view, targets = batch(setting, device)
    nets = []
    for name in setting.models:
        net, card = create_model(name)
        net = without_norms(net) if folded else net
        net = hardware.channels_last(net.to(device=device, dtype=dtype)).eval().requires_grad_(False)
        mean, std = (torch.tensor(v, device=device)[:, None, None] for v in (card.mean, card.std))

        def forward(x: torch.Tensor, net: nn.Module = net, mean: torch.Tensor = mean, std: torch.Tensor = std):
            x = ((x - mean) / std).to(dtype)
            return net(x.contiguous(memory_format=torch.channels_last)).float()

        nets.append(torch.compile(forward, dynamic=False))

    def step() -> object:
        leaves = [view.clone().requires_grad_() for _ in nets]
        total = torch.stack([F.cross_entropy(net(x), targets) for net, x in zip(nets, leaves, strict=True)]).sum()
        return sum(torch.autograd.grad(total, leaves))

    return step


def make(case: str, precision: str, setting: Setting, device: torch.device) -> Step:
    dtype = hardware.PRECISIONS[precision]
    if case == "hooks":
        torch.backends.cudnn.allow_tf32 = False
        return hooks(setting, dtype, device)
    hardware.set_up(precision, device)
    if case.startswith("ours"):
        return ours(setting, dtype, device, compiled="compiled" in case)
    return bare(setting, dtype, device, folded=case == "floor")


# --- processes ------------------------------------------------------------------------------------------------


def _peak(device: torch.device, reset: bool) -> int:
    """Bytes; on a CPU the resident high-water mark (Linux)."""
    if device.type == "cuda":
        if reset:
            torch.cuda.reset_peak_memory_stats(device)
        return torch.cuda.max_memory_allocated(device)
    if reset:
        ctypes.CDLL(None).malloc_trim(0)
        Path("/proc/self/clear_refs").write_text("5")
    status = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in status if line.startswith("VmHWM"))


def _case(wire: Connection, case: str, precision: str, setting: Setting, device_name: str, threads: int) -> None:
    """Builds, warms up, then runs as many steps as it is told and answers with seconds per step."""
    device = torch.device(device_name)
    torch.set_num_threads(threads)
    step = make(case, precision, setting, device)
    loaded = _peak(device, reset=True)
    step()
    step()
    if "eager" not in case and case != "hooks":
        _peak(device, reset=True)  # the compiler's own peak does not count, what it leaves behind does
    step()
    wire.send(_peak(device, reset=False) - loaded)
    _let_others(device)
    while (count := wire.recv()) is not None:
        if device.type == "cuda":
            step()  # its memory was given back
        _wait(device)
        began = time.perf_counter()
        for _ in range(count):
            step()
        _wait(device)
        wire.send((time.perf_counter() - began) / count)
        _let_others(device)


def _let_others(device: torch.device) -> None:
    """All cases share the GPU, so none keeps memory while another one runs."""
    if device.type == "cuda":
        torch.cuda.empty_cache()


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def measure(
    setting: Setting, cases: Sequence[tuple[str, str]], rounds: int, device: str, threads: int
) -> dict[str, dict[str, float]]:
    """Median seconds per step and memory of each case; the rounds visit the cases in turn."""
    context = multiprocessing.get_context("spawn")
    running = []
    found: dict[str, dict[str, float]] = {}
    for case, precision in cases:  # one after the other: compilation wants the machine for itself
        here, there = context.Pipe()
        process = context.Process(target=_case, args=(there, case, precision, setting, device, threads), daemon=True)
        process.start()
        there.close()
        found[f"{case} {precision}"] = {"bytes": here.recv()}
        running.append((f"{case} {precision}", here, process))
    seconds: dict[str, list[float]] = {name: [] for name in found}
    for _ in range(rounds):
        for name, wire, _process in running:
            wire.send(3)
            seconds[name].append(wire.recv())
    for name, wire, process in running:
        wire.send(None)
        process.join()
        found[name]["ms"] = 1000 * statistics.median(seconds[name])
    return found


def print_table(name: str, setting: Setting, found: dict[str, dict[str, float]]) -> None:
    table = Table("case", "ms a step", "hooks / it", "it / floor", "memory, MiB", "of hooks", box=None)
    table.title = f"{name}: {setting.images} x {setting.size} x {setting.size}"
    base = found["hooks fp32"]
    for case, values in found.items():
        floor = found[f"floor {case.rpartition(' ')[2]}"]["ms"]
        table.add_row(
            case,
            f"{values['ms']:.1f}",
            f"{base['ms'] / values['ms']:.2f}",
            f"{values['ms'] / floor:.2f}",
            f"{values['bytes'] / 2**20:.0f}",
            f"{values['bytes'] / base['bytes']:.2f}",
        )
    Console(width=110).print(table)


def print_profile(name: str, setting: Setting, device: torch.device) -> None:
    """Where the time of three steps goes, by operation: the peers' way and ours, eager."""
    for case, precision in (("hooks", "fp32"), ("ours, eager", "fp32"), ("ours, eager", "bf16")):
        if precision == "bf16" and not hardware.computes_in_bf16(device):
            continue
        step = make(case, precision, setting, device)
        step()
        with torch.profiler.profile() as profiler:
            for _ in range(3):
                step()
        own = "self_device_time_total" if device.type == "cuda" else "self_cpu_time_total"
        events = sorted(profiler.key_averages(), key=lambda event: -getattr(event, own))
        total = sum(getattr(event, own) for event in events)
        table = Table("operation", "share of the time", "calls a step", box=None, title=f"{name}: {case} {precision}")
        for event in events[:8]:
            table.add_row(event.key, f"{getattr(event, own) / total:.0%}", f"{event.count / 3:.0f}")
        Console(width=100).print(table)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    settings = ON_CUDA if device == "cuda" else SETTINGS
    parser.add_argument("--settings", nargs="+", choices=sorted(settings), default=list(settings))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--json", type=Path)
    parser.add_argument("--profile", action="store_true", help="print where the time goes instead")
    options = parser.parse_args()
    if options.profile:
        for name in options.settings:
            print_profile(name, settings[name], torch.device(device))
        return
    cases: Sequence[tuple[str, str]] = CASES
    if not hardware.computes_in_bf16(torch.device(device)):
        print("bf16: not measured, this processor only emulates it")
        cases = tuple(case for case in CASES if case[1] != "bf16")
    results = {}
    for name in options.settings:
        results[name] = measure(settings[name], cases, options.rounds, device, options.threads)
        print_table(name, settings[name], results[name])
        if options.json:
            about = {"torch": torch.__version__, "device": device, "threads": options.threads}
            options.json.write_text(json.dumps({**about, "settings": results}, indent=2))


if __name__ == "__main__":
    main()
