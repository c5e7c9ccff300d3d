"""Build the C++ kernels once per machine, into the user's cache; without a compiler there is none."""

from __future__ import annotations

import ctypes
import functools
import hashlib
import os
import platform
import shlex
import subprocess
import tempfile
import warnings
from pathlib import Path
from typing import Any

import torch

from ensemble.machine.hardware import cpp_compiler, onednn_limit

_FOLDER = Path(__file__).parent
_SOURCES = [_FOLDER / name for name in ("moments.cpp", "depthwise.cpp", "winograd.cpp")]
_FLAGS = ("-O3", "-std=c++17", "-fPIC", "-fopenmp", "-fno-math-errno")


@functools.cache
def library() -> ctypes.CDLL | None:
    """The compiled kernels, or None (with one warning) where it cannot be built."""
    compiler = cpp_compiler()
    if compiler is None:
        warnings.warn("no C++ compiler found: plain torch operations stand in for the kernels, slower", stacklevel=2)
        return None
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "ensemble_inversion"
    try:
        try:
            return _load(_built(compiler, cache))
        except OSError:  # a home that cannot be written, or holds nothing that may run: then for this process alone
            with tempfile.TemporaryDirectory() as folder:
                return _load(_built(compiler, Path(folder)))
    except (OSError, subprocess.SubprocessError) as error:
        detail = getattr(error, "stderr", None) or str(error)
        line = detail.strip().splitlines()[0] if detail.strip() else type(error).__name__
        warnings.warn(f"the C++ kernel could not be built ({line}): plain torch operations, slower", stacklevel=2)
        return None


def takes(x: torch.Tensor) -> bool:
    """Whether the kernels may apply to `x`; that there are any, and layouts, are looked at when they run."""
    return x.device.type == "cpu" and x.dtype in (torch.bfloat16, torch.float32)


def _built(compiler: str, cache: Path) -> Path:
    """The library, built for this processor up to oneDNN's limit; plain where the compiler does not know it."""
    own = {"SSE41": [], "AVX": [], "AVX2": ["-march=x86-64-v3"]}.get(
        onednn_limit().split("_VNNI")[0], ["-march=native"]
    )
    try:
        return _built_with(compiler, (*_FLAGS, *own), cache)
    except subprocess.CalledProcessError:
        return _built_with(compiler, _FLAGS, cache)


def _built_with(compiler: str, flags: tuple[str, ...], cache: Path) -> Path:
    text = b"".join(path.read_bytes() for path in [*_SOURCES, _FOLDER / "vectors.h"])
    key = hashlib.sha256(text + repr((compiler, flags, _processor())).encode()).hexdigest()[:16]
    target = cache / f"kernels-{key}.so"
    if not target.exists():
        cache.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=cache) as folder:
            objects = {path: str(Path(folder) / f"{path.stem}.o") for path in _SOURCES}
            shared = str(Path(folder) / "kernels.so")
            # Linked without -fopenmp: the symbols resolve to the OpenMP runtime that torch has loaded.
            for command in (
                *([*flags, "-c", str(path), "-o", object_] for path, object_ in objects.items()),
                ["-shared", *objects.values(), "-o", shared],
            ):
                words = [*shlex.split(compiler), *command]
                subprocess.run(words, check=True, capture_output=True, text=True, timeout=300)
            os.replace(shared, target)
    return target


def _load(path: Path) -> ctypes.CDLL:
    loaded = ctypes.CDLL(str(path))
    sizes = [ctypes.c_int64, ctypes.c_int64, ctypes.c_int]  # rows, channels, threads
    kind: list[Any] = [ctypes.c_int, ctypes.c_float, ctypes.c_int]  # form, its parameter, whether bf16
    loaded.forward.argtypes = [*kind, *[ctypes.c_void_p] * 7, *sizes]
    loaded.gradient.argtypes = [*kind, *[ctypes.c_void_p] * 9, *sizes]
    loaded.depthwise.argtypes = [ctypes.c_int] * 2 + [ctypes.c_void_p] * 4 + [ctypes.c_int64] * 10 + [ctypes.c_int]
    loaded.winograd.argtypes = [*[ctypes.c_void_p] * 5, *[ctypes.c_int64] * 8, ctypes.c_int]
    loaded.forward.restype = loaded.gradient.restype = loaded.depthwise.restype = loaded.winograd.restype = None
    loaded.winograd_scratch.argtypes = [*[ctypes.c_int64] * 5, ctypes.c_int]
    loaded.winograd_scratch.restype = ctypes.c_int64
    return loaded


def _processor() -> str:
    """What -march=native depends on: a cache shared between machines must not mix their code."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return "".join(line for line in lines[:40] if line.startswith(("model name", "flags", "Features")))
