"""What `auto` resolves to."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
import torch
from torch import nn

from ensemble.machine import hardware

CPU, CUDA = [torch.device("cpu")], [torch.device("cuda:0")]


@pytest.mark.parametrize(
    "mode, devices, passes, expected",
    [
        ("off", CUDA, 10**6, False),
        ("on", CPU, 1, True),
        ("auto", CPU, 10**6, False),
        ("auto", CUDA, 1999, False),
        ("auto", CUDA, 2000, True),
        ("auto", CPU + CUDA, 10**6, False),
    ],
)
def test_compile(
    mode: str, devices: list[torch.device], passes: int, expected: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hardware, "can_compile", lambda device: True)
    assert hardware.resolve_compile(mode, devices, passes) is expected


@pytest.mark.parametrize("mode", ["on", "auto"])
def test_nothing_is_compiled_without_a_compiler(mode: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", "/no/such/compiler")
    assert not hardware.resolve_compile(mode, CPU, 10**6)


def test_nothing_is_compiled_without_python_s_headers(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("CXX", "sh")
    monkeypatch.setattr("sysconfig.get_path", lambda *_: str(tmp_path))
    assert not hardware.can_compile(CPU[0])
    (tmp_path / "Python.h").write_text("")
    assert hardware.can_compile(CPU[0])


def test_a_compiler_with_arguments(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", "sh -c")
    assert hardware.cpp_compiler() == "sh -c"


def test_precision_is_what_all_devices_compute_in(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hardware, "computes_in_bf16", lambda device: device.type == "cpu")
    both = [torch.device("cpu"), torch.device("meta")]
    assert hardware.resolve_precision("auto", CPU) == "bf16"
    assert hardware.resolve_precision("auto", both) == "fp32"
    assert hardware.resolve_precision("fp64", both) == "fp64"


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="a setting of glibc")
def test_freed_memory_is_kept() -> None:
    """Steps after the first page nothing in. In a process of its own: the setting lasts."""
    script = """
import resource, torch
from ensemble.machine import hardware
hardware.set_up("fp32", torch.device("cpu"))
for step in range(4):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    maps = [torch.ones(12 << 20) for _ in range(3)]
    del maps
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("MALLOC_")}
    run = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=True)
    assert int(run.stdout) < 1000  # 3 x 48 MiB are 36,864 pages


def test_weights_of_four_dimensions_alone_are_stored_channels_last() -> None:
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Conv3d(1, 2, (1, 3, 3)), nn.Linear(3, 2))
    before = [p.detach().clone() for p in net.parameters()]
    assert hardware.channels_last(net) is net
    assert net[0].weight.is_contiguous(memory_format=torch.channels_last) and net[1].weight.is_contiguous()
    assert all(torch.equal(p, q) for p, q in zip(net.parameters(), before, strict=True))


@pytest.mark.parametrize("restricted", [False, True])
def test_what_a_processor_only_emulates_warns(restricted: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Linux's flags with and without bf16, and oneDNN told to leave it alone."""
    monkeypatch.setattr(Path, "read_text", lambda _: "flags : avx2 avx512_bf16")
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", "avx2" if restricted else "default")
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        assert hardware.resolve_precision("auto", CPU) == ("fp32" if restricted else "bf16")
        assert hardware.resolve_precision("fp64", CPU) == "fp64"
        assert not told
        assert hardware.resolve_precision("bf16", CPU) == "bf16"
        assert hardware.resolve_precision("fp16", CUDA) == "fp16"
        assert len(told) == restricted
        hardware.resolve_precision("fp16", CPU)
    monkeypatch.setattr(Path, "read_text", lambda _: "Features : asimdhp bf16")  # ARM's
    before = len(told)
    hardware.resolve_precision("bf16", CPU)
    assert len(told) == before
    assert "emulates fp16" in str(told[-1].message) and "precision to auto" in str(told[-1].message)


@pytest.mark.skipif(platform.machine() != "x86_64" or shutil.which("g++") is None, reason="x86's flags of g++")
def test_the_kernel_is_built_for_what_onednn_may_use(tmp_path: Path) -> None:
    """A compiler that writes down its arguments, and knows no -march=native."""
    compiler = tmp_path / "compiler"
    compiler.write_text(
        f'#!/bin/sh\necho "$@" >> {tmp_path}/calls\ncase "$*" in *native*) exit 1;; esac\nexec g++ "$@"\n'
    )
    compiler.chmod(0o755)
    code = "from ensemble.teachers.kernels.build import library; assert library() is not None"
    for asked, expected in (("AVX2", ["-march=x86-64-v3"]), ("AVX", [""]), ("", ["-march=native", ""])):
        environment = {**os.environ, "CXX": str(compiler), "XDG_CACHE_HOME": str(tmp_path / f"cache{asked}")}
        environment["ONEDNN_MAX_CPU_ISA"] = asked
        (tmp_path / "calls").write_text("")
        subprocess.run([sys.executable, "-c", code], env=environment, check=True)
        calls = [line for line in (tmp_path / "calls").read_text().splitlines() if "moments.cpp" in line]
        assert [march if "-march" in call else "" for call, march in zip(calls, expected, strict=True)] == expected
        assert all(map(str.__contains__, calls, expected))
