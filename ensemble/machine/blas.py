"""The threads of SciPy's linear algebra."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache


@contextmanager
def one_blas_thread() -> Iterator[None]:
    """Inside, SciPy's OpenBLAS computes on one thread: the order of its sums, and so their bits, follows the number.

    A SciPy that is linked with another library keeps that one's threads.
    """
    found = _control()
    if found is None:
        yield
        return
    get, set_to = found
    threads = get()
    set_to(1)
    try:
        yield
    finally:
        set_to(threads)


@cache
def _control() -> tuple[Callable[[], int], Callable[[int], object]] | None:
    """What reads and what sets the number of threads. It is found through a module that is linked with the library."""
    from scipy.linalg import cython_blas

    library = ctypes.CDLL(cython_blas.__file__)
    for prefix in ("scipy_openblas", "openblas"):
        for suffix in ("", "64_"):
            get = getattr(library, f"{prefix}_get_num_threads{suffix}", None)
            set_to = getattr(library, f"{prefix}_set_num_threads{suffix}", None)
            if get is not None and set_to is not None:
                return get, set_to
    return None
