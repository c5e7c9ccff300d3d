"""What `auto` resolves to."""

from __future__ import annotations

import pytest
import torch

from ensemble import hardware

CPU = [torch.device("cpu")]


@pytest.mark.parametrize(
    "mode, precision, passes, expected",
    [
        ("off", "bf16", 10**6, False),
        ("on", "fp32", 1, True),
        ("auto", "bf16", 4999, False),
        ("auto", "bf16", 5000, True),
        ("auto", "fp32", 10**6, False),
    ],
)
def test_compile(mode: str, precision: str, passes: int, expected: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hardware, "can_compile", lambda device: True)
    assert hardware.resolve_compile(mode, CPU, precision, passes) is expected


@pytest.mark.parametrize("mode", ["on", "auto"])
def test_nothing_is_compiled_without_a_compiler(mode: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", "/no/such/compiler")
    assert not hardware.resolve_compile(mode, CPU, "bf16", 10**6)


def test_a_compiler_with_arguments(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", "sh -c")
    assert hardware.cpp_compiler() == "sh -c"


def test_precision_is_what_all_devices_compute_in(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hardware, "computes_in_bf16", lambda device: device.type == "cpu")
    both = [torch.device("cpu"), torch.device("meta")]
    assert hardware.resolve_precision("auto", CPU) == "bf16"
    assert hardware.resolve_precision("auto", both) == "fp32"
    assert hardware.resolve_precision("fp64", both) == "fp64"
