"""What this machine computes well: every `auto` of the runtime is resolved here, once."""

from __future__ import annotations

import ctypes
import os
import re
import resource
import shlex
import shutil
import sys
import sysconfig
import warnings
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

import torch
from torch import nn

from ensemble.machine.environment import local_rank, local_ranks

PRECISIONS = {
    "fp32": torch.float32,
    "tf32": torch.float32,
    "bf16": torch.bfloat16,
    "fp16": torch.float16,
    "fp64": torch.float64,
}
"""The dtype of activations and convolution weights under each name."""


_NATIVE = {"bf16": ("amx_bf16", "avx512_bf16"), "fp16": ("amx_fp16", "avx512_fp16")}
"""What Linux calls the instructions of an x86 processor that computes in a precision; one of them is enough."""


def onednn_limit() -> str:
    """The instructions that oneDNN is told to stay below, by its own variable, as `AVX2`; `DEFAULT` for no limit."""
    return (os.environ.get("ONEDNN_MAX_CPU_ISA") or os.environ.get("DNNL_MAX_CPU_ISA") or "DEFAULT").upper()


def computes_in_bf16(device: torch.device) -> bool:
    """Whether the device has bf16 arithmetic: CUDA capability >= 8.0, or a CPU with AMX-BF16 or AVX512-BF16."""
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0)
    return bool(_processor_has(*_NATIVE["bf16"]))


def widest_is_avx2() -> bool:
    """Whether this is an x86 processor on which torch and oneDNN compute with vectors of AVX2, and no wider ones."""
    limit, own = onednn_limit(), torch.backends.cpu.get_cpu_capability()
    if limit.startswith("AVX2"):
        return own in ("AVX2", "AVX512")
    return limit not in ("SSE41", "AVX") and own == "AVX2" and not _processor_has("avx512f")


_WITHOUT_HALVES = ("SSE41", "AVX", "AVX2", "AVX2_VNNI", "AVX2_VNNI_2", "AVX512_CORE", "AVX512_CORE_VNNI")
"""oneDNN's limits below which it computes in neither bf16 nor fp16."""


def _processor_has(*flags: str) -> bool | None:
    """Whether Linux says that an x86 processor has one of these, and oneDNN may use it; None where nobody says."""
    try:
        known = Path("/proc/cpuinfo").read_text()
    except OSError:
        return None
    if re.search(r"^flags\s*:", known, re.MULTILINE) is None:
        return None
    return any(flag in known for flag in flags) and onednn_limit() not in _WITHOUT_HALVES


def resolve_precision(precision: str, devices: Sequence[torch.device]) -> str:
    """`auto` is bf16 where all devices compute in it, else fp32. What a processor only emulates warns."""
    if precision == "auto":
        return "bf16" if all(computes_in_bf16(device) for device in devices) else "fp32"
    on_cpu = any(device.type == "cpu" for device in devices)
    if on_cpu and precision in _NATIVE and _processor_has(*_NATIVE[precision]) is False:
        warnings.warn(
            f"this processor only emulates {precision}, which can take twenty times as long as fp32; "
            "set precision to auto, which is what it computes in",
            stacklevel=2,
        )
    return precision


def cpp_compiler() -> str | None:
    """The command of the C++ compiler: what CXX says, or the first that is found; None where there is none."""
    for command in [os.environ["CXX"]] if os.environ.get("CXX") else ["g++", "clang++"]:
        if shutil.which(shlex.split(command)[0]):
            return command
    return None


def can_compile(device: torch.device) -> bool:
    """Whether torch.compile has what it needs here: Python's headers and a C++ compiler, or for a GPU Triton and C."""
    if not Path(sysconfig.get_path("include", "posix_prefix"), "Python.h").exists():
        return False
    if device.type == "cuda":
        from torch.utils._triton import has_triton

        return bool(has_triton()) and any(map(shutil.which, [os.environ.get("CC", "gcc"), "gcc", "clang"]))
    return cpp_compiler() is not None


def resolve_compile(mode: str, devices: Sequence[torch.device], passes: int) -> bool:
    """Whether to compile the teachers: `auto` does on GPUs where `passes` (steps times teachers) repay it.

    On a CPU the C++ kernel leaves the compiler nothing to win: where measured, compiled steps were as fast or slower.
    """
    if mode == "off" or not all(can_compile(device) for device in devices):
        return False
    return mode == "on" or (all(device.type == "cuda" for device in devices) and passes >= 2000)


def channels_last(net: nn.Module) -> nn.Module:
    """`net` itself, its weights of four dimensions stored with the channels last; torch's own `to` fails on five."""
    net._apply(lambda t: t.contiguous(memory_format=torch.channels_last) if t.ndim == 4 else t)
    return net


def set_up(precision: str, device: torch.device) -> None:
    """Process-wide settings: deterministic kernels where they exist, TF32 only where it was asked for."""
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # else cuBLAS may sum in another order each time
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    torch.backends.cudnn.benchmark = False
    torch.set_float32_matmul_precision("high" if precision == "tf32" else "highest")
    torch.backends.cudnn.allow_tf32 = precision == "tf32"
    if device.type == "cpu":
        _keep_freed_memory()


@contextmanager
def settings_kept() -> Iterator[None]:
    """What a run sets in the process is put back at the end; another default dtype or device, and a caller's no_grad or
    autocast, are not the run's: the process may be a notebook.
    """
    dtype = torch.get_default_dtype()
    deterministic = torch.are_deterministic_algorithms_enabled()
    warn_only = torch.is_deterministic_algorithms_warn_only_enabled()
    fill = torch.utils.deterministic.fill_uninitialized_memory  # type: ignore[attr-defined]
    benchmark, tf32 = torch.backends.cudnn.benchmark, torch.backends.cudnn.allow_tf32
    matmul = torch.get_float32_matmul_precision()
    try:
        torch.set_default_dtype(torch.float32)
        with torch.inference_mode(False), torch.enable_grad(), ExitStack() as stack:
            if torch.get_default_device().type != "cpu":  # the context costs each call some time
                stack.enter_context(torch.device("cpu"))
            for kind in ("cpu", "cuda"):
                if torch.is_autocast_enabled(kind):
                    stack.enter_context(torch.autocast(kind, enabled=False))
            yield
    finally:
        torch.set_default_dtype(dtype)
        torch.use_deterministic_algorithms(deterministic, warn_only=warn_only)
        torch.utils.deterministic.fill_uninitialized_memory = fill  # type: ignore[attr-defined]
        torch.backends.cudnn.benchmark, torch.backends.cudnn.allow_tf32 = benchmark, tf32
        torch.set_float32_matmul_precision(matmul)


def _keep_freed_memory() -> None:
    """glibc returns large freed blocks to the system; to page them in again took an eighth of a step.

    Has no effect with another C library, or where the environment sets these thresholds itself.
    """
    if {"MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_"} & os.environ.keys():
        return
    if "glibc.malloc" in os.environ.get("GLIBC_TUNABLES", ""):
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        trim_threshold, mmap_threshold = -1, -3  # parameters' numbers in malloc.h
        mallopt(trim_threshold, -1)
        mallopt(mmap_threshold, 64 << 20)  # what is larger would leave holes that nothing fits


def peak_memory(device: torch.device) -> int:
    """The most this process has used, bytes: on the GPU where there is one, else resident memory."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def choose_device(requested: str) -> torch.device:
    """This process' device: `auto`, `cpu`, `cuda` or `cuda:N`; `auto` and `cuda` take the GPU of its local rank.

    Raises ValueError where CUDA is asked for and absent, or where a machine has more ranks than GPUs.
    """
    return _device(requested, local_rank() or 0, local_ranks())


def choose_devices(requested: str | Sequence[str]) -> tuple[torch.device, list[torch.device]]:
    """(this process' device, all devices that are known to take part): one name, or one for each local rank.

    In a list, each `auto` or `cuda` takes the next GPU. Raises ValueError as `choose_device` does, and where ranks
    and devices differ in number.
    """
    if isinstance(requested, str):
        device = choose_device(requested)
        return device, [device]
    devices: list[torch.device] = []
    for name in requested:
        devices.append(_device(name, sum(device.type == "cuda" for device in devices), 1))
    if (own := local_rank()) is None:
        return devices[0], devices
    if len(devices) != local_ranks():
        raise ValueError(f"device: {len(devices)} devices are named for {local_ranks()} ranks on this machine")
    return devices[own], devices


def _device(requested: str, local_rank: int, local_size: int) -> torch.device:
    available = torch.cuda.is_available()
    if requested == "cpu" or (requested == "auto" and not available):
        return torch.device("cpu")
    try:
        device = torch.device("cuda" if requested == "auto" else requested)
    except RuntimeError:
        raise ValueError(f"device: {requested!r} is none of auto, cpu, cuda, cuda:N") from None
    if device.type != "cuda":
        raise ValueError(f"device: {requested!r} is none of auto, cpu, cuda, cuda:N")
    if not available:
        raise ValueError(
            f"device: {requested} was asked for, but this machine has no CUDA device; use device cpu (--device cpu)"
        )
    count = torch.cuda.device_count()
    if device.index is not None:
        if device.index >= count:
            raise ValueError(f"device: {requested} does not exist; this machine has {count} CUDA device(s)")
        return device
    if max(local_size, local_rank + 1) > count:
        raise ValueError(
            f"device: {max(local_size, local_rank + 1)} ranks on a machine with {count} GPU(s); start fewer, "
            "or name one, as device cuda:0 (--device cuda:0)"
        )
    return torch.device("cuda", local_rank)
