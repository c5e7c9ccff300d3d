"""Build the C++ kernel once per machine, into the user's cache; without a compiler there is none."""

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

from ensemble.machine.hardware import cpp_compiler, onednn_limit

_SOURCE = Path(__file__).with_name("moments.cpp")
_FLAGS = ("-O3", "-std=c++17", "-fPIC", "-fopenmp", "-fno-math-errno")


@functools.cache
def library() -> ctypes.CDLL | None:
    """The compiled kernel, or None (with one warning) where it cannot be built."""
    compiler = cpp_compiler()
    if compiler is None:
        warnings.warn("no C++ compiler found: moments are computed by plain torch operations, slower", stacklevel=2)
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
    key = hashlib.sha256(_SOURCE.read_bytes() + repr((compiler, flags, _processor())).encode()).hexdigest()[:16]
    target = cache / f"moments-{key}.so"
    if not target.exists():
        cache.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=cache) as folder:
            objects, shared = str(Path(folder) / "moments.o"), str(Path(folder) / "moments.so")
            # Linked without -fopenmp: the symbols resolve to the OpenMP runtime that torch has loaded.
            for command in (
                [*shlex.split(compiler), *flags, "-c", str(_SOURCE), "-o", objects],
                [*shlex.split(compiler), "-shared", objects, "-o", shared],
            ):
                subprocess.run(command, check=True, capture_output=True, text=True, timeout=300)
            os.replace(shared, target)
    return target


def _load(path: Path) -> ctypes.CDLL:
    loaded = ctypes.CDLL(str(path))
    sizes = [ctypes.c_int64, ctypes.c_int64, ctypes.c_int]  # rows, channels, threads
    kind: list[Any] = [ctypes.c_int, ctypes.c_float, ctypes.c_int]  # form, its parameter, whether bf16
    loaded.forward.argtypes = [*kind, *[ctypes.c_void_p] * 7, *sizes]
    loaded.gradient.argtypes = [*kind, *[ctypes.c_void_p] * 9, *sizes]
    loaded.forward.restype = loaded.gradient.restype = None
    return loaded


def _processor() -> str:
    """What -march=native depends on: a cache shared between machines must not mix their code."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return "".join(line for line in lines[:40] if line.startswith(("model name", "flags", "Features")))
