"""Dependencies run one way; files, YAML and process groups stay where they belong."""

from __future__ import annotations

import ast
import re
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]

ORDER = (
    *("errors", "config", "rng", "data", "hardware"),
    *("schedules", "kernels", "placement", "reduction", "statistics", "rewriting"),
    *("distributed", "transforms", "targets"),
    *("parameterization", "initial", "teacher"),
    *("objectives", "exchange"),
    *("optimizers", "engine"),
    *("checkpoint", "recording"),
    *("recipe", "build"),
    *("evaluation", "training"),
    *("resuming", "saving", "run", "reports"),
)
"""The modules and packages of `ensemble`; each may import only those before it, and itself."""

FILE_MACHINERY = {
    *("yaml", "json", "csv", "pickle", "safetensors", "PIL", "tarfile", "zipfile"),
    *("os", "io", "pathlib", "shutil", "tempfile", "glob", "open"),
    *("torch.save", "torch.load"),
    *(f"ensemble.{name}" for name in ("config", "data", "checkpoint", "recording", "recipe", "build")),
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
    """The parts of `ensemble` that importing `ensemble.START` brings along, itself included."""
    seen: set[str] = set()
    todo = [start]
    while todo:
        part = todo.pop()
        if part not in seen:
            seen.add(part)
            todo += [other for file in sources() if part_of(file) == part for other in used_parts(file)]
    return seen


def part_of(file: Path) -> str | None:
    parts = module_name(file).split(".")
    return parts[1] if parts[0] == "ensemble" and len(parts) > 1 else None


def used_parts(file: Path) -> set[str]:
    present = {part_of(source) for source in sources()}
    words = {name.split(".")[1] for name in imports(file) if name.startswith("ensemble.")}
    return words & {part for part in present if part is not None}


def test_every_part_of_ensemble_has_its_place() -> None:
    present = {part for file in sources() if (part := part_of(file)) is not None}
    assert present == set(ORDER), f"give these their place in ORDER: {present ^ set(ORDER)}"


@pytest.mark.parametrize("part", ORDER)
def test_dependencies_run_one_way(part: str) -> None:
    allowed = {part, *ORDER[: ORDER.index(part)]}
    for file in sources():
        if part_of(file) == part:
            late = used_parts(file) - allowed
            assert not late, f"{module_name(file)} imports {late}, which come after it"


def test_models_is_a_leaf() -> None:
    for file in sources():
        if module_name(file).split(".")[0] == "models":
            assert not names(file, "ensemble", "invert"), module_name(file)


def test_nothing_imports_the_command_line() -> None:
    for file in sources():
        assert not names(file, "invert"), module_name(file)


def test_config_imports_nothing_of_ours() -> None:
    assert not names(ROOT / "ensemble/config.py", "ensemble", "models")


def test_only_distributed_imports_torch_distributed() -> None:
    users = {module_name(file) for file in sources() if names(file, "torch.distributed")}
    assert users == {"ensemble.distributed"}


def test_engine_touches_no_files() -> None:
    assert not names(ROOT / "ensemble/engine.py", *FILE_MACHINERY)
    assert not reaches("engine") & {"config", "data", "checkpoint", "recording", "recipe", "build"}


def test_evaluation_does_not_reach_engine() -> None:
    assert "engine" not in reaches("evaluation")
    assert {"statistics", "placement"} <= reaches("engine")  # the walk does walk


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
    assert ROOT / "CONTRIBUTING.md" in files and ROOT / "ensemble/config.py" in files
    for file in files:
        hit = MACHINE_PATH.search(file.read_text(encoding="utf-8"))
        assert hit is None, f"{file.relative_to(ROOT)}: {hit and hit[0]}"
