import os
import subprocess
import sys

import pytest

from ensemble.machine.waiting import wait_briefly_beside_others

NAMES = ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")


@pytest.fixture
def unset(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "environ", {key: value for key, value in os.environ.items() if key not in NAMES})


@pytest.mark.usefixtures("unset")
@pytest.mark.parametrize(("busy", "told"), [(0.2, None), (0.9, "3000"), (40.0, "3000")])
def test_threads_wait_briefly_beside_other_work_only(
    busy: float, told: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "getloadavg", lambda: (busy, 0.0, 0.0))
    wait_briefly_beside_others()
    assert os.environ.get("GOMP_SPINCOUNT") == told


@pytest.mark.usefixtures("unset")
@pytest.mark.parametrize("name", NAMES)
def test_what_the_user_set_stays(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "getloadavg", lambda: (9.0, 9.0, 9.0))
    os.environ[name] = "active"
    wait_briefly_beside_others()
    assert {key: os.environ[key] for key in NAMES if key in os.environ} == {name: "active"}


@pytest.mark.usefixtures("unset")
def test_a_system_that_tells_no_load_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(os, "getloadavg")
    wait_briefly_beside_others()
    assert "GOMP_SPINCOUNT" not in os.environ


def test_the_command_line_tells_threads_before_torch_is_loaded() -> None:
    # OpenMP reads its settings once, as torch loads it
    code = """
import os, sys
os.getloadavg = lambda: (9.0, 9.0, 9.0)
sys.argv = ["invert.py", "--help"]
import ensemble.machine.waiting as waiting
told = waiting.wait_briefly_beside_others
waiting.wait_briefly_beside_others = lambda: (told(), print("torch" in sys.modules, os.environ["GOMP_SPINCOUNT"]))
from ensemble.cli import process
process()
"""
    environment = {key: value for key, value in os.environ.items() if key not in NAMES}
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=True)
    assert said.stdout.splitlines()[0] == "False 3000"
