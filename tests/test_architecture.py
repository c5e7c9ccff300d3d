"""Dependencies run one way; files, YAML and process groups stay where they belong."""

from __future__ import annotations

import ast
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]

ORDER = (
    *("machine", "config", "image", "data", "teachers", "objectives", "engine"),
    *("recipe", "plugins", "evaluation", "training", "runs", "report", "api", "units", "privacy", "search"),
    *("applications", "cli"),
)
"""The rooms of `ensemble`; each may import only those before it, and itself."""

FILE_MACHINERY = {
    *("yaml", "json", "csv", "pickle", "safetensors", "PIL", "tarfile", "zipfile"),
    *("os", "io", "pathlib", "shutil", "tempfile", "glob", "open"),
    *("torch.save", "torch.load"),
    *("ensemble.config.yaml_files", "ensemble.config.parsing", "ensemble.config.overrides"),
    *("ensemble.data", "ensemble.machine.checkpoint", "ensemble.machine.files", "ensemble.recipe", "ensemble.runs"),
}


def sources() -> list[Path]:
    return [
        ROOT / "invert.py",
        *(f for top in ("ensemble", "models") for f in sorted((ROOT / top).rglob("*.py"))),
    ]


def module_name(file: Path) -> str:
    parts = file.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


@cache
def imports(file: Path) -> frozenset[str]:
    """Modules and their members that a file names, also inside functions: `a.b` for `from a import b`.

    `torch.save` and the like count where they are written out, builtins' `open` where it is called.
    """
    found: set[str] = set()
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0 and node.module, f"{file}: relative import"
            found |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
        elif isinstance(node, ast.Attribute) and ast.unparse(node).startswith("torch."):
            found.add(ast.unparse(node))
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "open":
            found.add("open")
    return frozenset(found)


def names(file: Path, *modules: str) -> set[str]:
    """Which of `modules` a file imports, whole or in part."""
    return {m for m in modules for name in imports(file) if name == m or name.startswith(m + ".")}


def reaches(start: str) -> set[str]:
    """What importing `start` (a module or a package) brings along, itself included, also inside functions."""
    known = {module_name(file): file for file in sources()}
    todo = [name for name in known if name == start or name.startswith(start + ".")]
    seen: set[str] = set()
    while todo:
        name = todo.pop()
        if name not in seen:
            seen.add(name)
            todo += used_modules(known[name], known)
    return seen


def used_modules(file: Path, known: Mapping[str, Path]) -> set[str]:
    """Those of our modules that a file names itself."""
    return {name for name in imports(file) if name in known} - {module_name(file)}


def room_of(module: str) -> str | None:
    parts = module.split(".")
    return parts[1] if parts[0] == "ensemble" and len(parts) > 1 else None


def rooms(modules: Iterable[str]) -> set[str]:
    return {room for module in modules if (room := room_of(module)) is not None}


def test_every_room_has_its_place() -> None:
    present = rooms(map(module_name, sources()))
    assert present == set(ORDER), f"give these their place in ORDER: {present ^ set(ORDER)}"


@pytest.mark.parametrize("room", ORDER)
def test_dependencies_run_one_way(room: str) -> None:
    known = {module_name(file): file for file in sources()}
    allowed = {room, *ORDER[: ORDER.index(room)]}
    for name, file in known.items():
        if room_of(name) == room:
            late = rooms(used_modules(file, known)) - allowed
            assert not late, f"{name} imports {late}, which come after it"


def test_no_module_imports_itself_by_a_detour() -> None:
    """Packages' own `__init__` aside, which a member may be imported by."""
    known = {module_name(file): file for file in sources()}
    graph = {name: used_modules(file, known) for name, file in known.items() if file.name != "__init__.py"}
    for name in graph:
        seen: set[str] = set()
        todo = [*graph[name]]
        while todo:
            other = todo.pop()
            assert other != name, f"{name} imports itself by way of {sorted(seen)}"
            if other in graph and other not in seen:
                seen.add(other)
                todo += graph[other]


def test_models_is_a_leaf() -> None:
    for file in sources():
        if module_name(file).split(".")[0] == "models":
            assert not names(file, "ensemble", "invert"), module_name(file)


def test_nothing_imports_the_command_line() -> None:
    for file in sources():
        name = module_name(file)
        assert not names(file, "invert"), name
        if room_of(name) != "applications" and name != "ensemble.cli":
            assert not names(file, "ensemble.applications"), name


def test_config_imports_nothing_of_ours() -> None:
    for file in sorted((ROOT / "ensemble/config").glob("*.py")):
        assert not {name for name in names(file, "ensemble", "models") if not reads_config_alone(file)}, file.name


def reads_config_alone(file: Path) -> bool:
    ours = {name for name in imports(file) if name.split(".")[0] in ("ensemble", "models")}
    return all(name.startswith("ensemble.config") for name in ours)


def test_torch_distributed_has_two_users() -> None:
    users = {module_name(file) for file in sources() if names(file, "torch.distributed")}
    assert users == {"ensemble.machine.ranks", "ensemble.machine.launch"}


@pytest.mark.parametrize("room", ["engine", "objectives", "image.parameterization", "image.transforms"])
def test_mathematics_touches_no_files(room: str) -> None:
    assert not reaches(f"ensemble.{room}") & {"ensemble.config.yaml_files", "ensemble.recipe"}
    assert not rooms(reaches(f"ensemble.{room}")) & {"data", "runs", "applications"}
    path = ROOT / "ensemble" / room.replace(".", "/")
    files = [*path.glob("*.py"), *(file for file in [path.with_suffix(".py")] if file.is_file())]
    assert files
    for file in files:
        assert not names(file, *FILE_MACHINERY), file.name


@pytest.mark.parametrize("room", ["evaluation", "training"])
def test_what_needs_no_inversion_does_not_reach_it(room: str) -> None:
    assert not rooms(reaches(f"ensemble.{room}")) & {"engine", "runs"}
    assert {"ensemble.teachers.statistics", "ensemble.engine.placement"} <= reaches("ensemble.engine")  # it does walk


MACHINE_PATH = re.compile(r"(?<![\w.~-])/(work|home|root|Users|mnt|tmp)/\w")
TEXT = {".py", ".md", ".cfg", ".toml", ".yaml", ".yml", ".json", ".cpp", ".txt", ""}
NOT_OURS = {"build", "dist", "data", "results"}


def project_files() -> list[Path]:
    found = [file for file in ROOT.iterdir() if file.is_file()]
    for top in ROOT.iterdir():
        ours = top.is_dir() and (top.name == ".ci" or not top.name.startswith("."))
        if ours and top.name not in NOT_OURS and top.suffix != ".egg-info":
            found += [file for file in top.rglob("*") if file.is_file() and "__pycache__" not in file.parts]
    return [file for file in found if file.suffix in TEXT and file.name != ".git"]


def test_no_text_names_a_place_on_one_machine() -> None:
    assert MACHINE_PATH.search("see /" + "work/main") and not MACHINE_PATH.search("a/tmp/b, work/main")
    files = project_files()
    assert ROOT / "CONTRIBUTING.md" in files and ROOT / "ensemble/recipe.py" in files
    for file in files:
        hit = MACHINE_PATH.search(file.read_text(encoding="utf-8"))
        assert hit is None, f"{file.relative_to(ROOT)}: {hit and hit[0]}"


def test_no_two_test_files_have_one_name() -> None:
    """pytest imports them by their names alone, and refuses the second."""
    names = Counter(file.name for file in (ROOT / "tests").rglob("test_*.py"))
    assert [name for name, count in names.items() if count > 1] == []
