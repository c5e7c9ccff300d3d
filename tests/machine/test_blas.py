"""SciPy's threads."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from ensemble.machine.blas import _control, one_blas_thread

pytest.importorskip("scipy")


def test_one_thread_inside_and_as_many_as_before_outside() -> None:
    found = _control()
    if found is None:
        pytest.skip("SciPy is linked with no OpenBLAS")
    get, set_to = found
    before = get()
    try:
        set_to(2)
        with pytest.raises(InterruptedError), one_blas_thread():
            assert get() == 1
            raise InterruptedError
        assert get() == 2
    finally:
        set_to(before)


def test_scipys_bits_do_not_depend_on_the_number_of_threads() -> None:
    """L-BFGS-B of more values than OpenBLAS leaves to one thread."""
    code = """
import hashlib, numpy as np
from scipy.optimize import minimize
from ensemble.machine.blas import one_blas_thread
a, b = np.random.default_rng(0).normal(size=(2, 40000))
def f(x): return float(sum(((x - a) ** 2 * abs(b) + np.cos(3 * x)).tolist())), 2 * (x - a) * abs(b) - 3 * np.sin(3 * x)
with one_blas_thread():
    found = minimize(f, 0 * a, jac=True, method="L-BFGS-B", options={"maxiter": 8})
print(hashlib.sha256(found.x.tobytes()).hexdigest())
"""
    found = set()
    for threads in ("1", "2"):
        environment = {**os.environ, "OMP_NUM_THREADS": threads, "OPENBLAS_NUM_THREADS": threads}
        command = [sys.executable, "-c", code]
        found.add(subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout)
    assert len(found) == 1
