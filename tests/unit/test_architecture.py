"""The arrows of docs/architecture.md: imports point down only, and light parts stay light."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

from tests import ROOT

PACKAGE = ROOT / "dual_lora"

# What each part may import, all parts named: a file or folder directly below dual_lora/.
BELOW: dict[str, set[str]] = {
    "__init__": {"tuner"},
    "__main__": {"commands"},
    "shipped": set(),
    "config": {"shipped"},
    "records": {"config", "shipped"},
    "kernels": set(),
    "tuner": {"kernels"},
    "integrations": {"tuner"},
    "metrics": set(),
    "tasks": {"config", "metrics", "records"},
    "models": {"config", "distributed", "records", "shipped", "tasks"},  # tasks.base: the head a model ends in
    "methods": {"config", "distributed", "models", "shipped", "tasks", "tuner"},
    "distributed": {"config"},
    "training": {"config", "distributed", "kernels", "methods", "models", "records", "tasks", "tuner"},
    "evaluation": {"config", "distributed", "methods", "models", "records", "tasks", "training"},
    "diagnostics": {"config", "kernels", "records", "tuner"},
    "runs": {
        *("config", "diagnostics", "distributed", "evaluation", "methods", "models", "records"),
        *("shipped", "tasks", "training"),
    },
    "report": {"config", "records", "shipped"},
    "page": {"config", "records", "report", "shipped"},
    "launch": {"config", "distributed", "evaluation", "methods", "records", "report", "runs", "shipped", "tasks"},
    "benchmarks": {
        *("config", "distributed", "evaluation", "kernels", "launch", "methods", "models", "records", "report"),
        *("runs", "shipped", "tasks", "training", "tuner"),
    },
    "commands": {
        *("config", "diagnostics", "evaluation", "launch", "methods", "metrics", "models", "page", "records", "report"),
        *("runs", "shipped", "tasks", "tuner"),
    },
}

# Names that two modules have, each with its reason: whoever hears a name should know the file.
TWINS: dict[str, str] = {
    **dict.fromkeys(
        [
            "evaluation",
            "export_lora",
            "generation",
            "gpu_hours",
            "graphs",
            "kernels",
            "passes",
            "report",
            "runs",
            "tiles",
            "training",
        ],
        "a benchmark is called what it times or writes",
    ),
    "random_checkpoint": "a command's module is called what is typed; it parses arguments",
    **dict.fromkeys(["e2e", "glue"], "a task and its public scorer: tasks.e2e, metrics.e2e"),
    "data_to_text": "evaluate.load wants a scorer's file called as its folder",
    "config": "PEFT's layout of a method: tuner/config.py, layer.py, model.py",
    "data": "a command's module is called what is typed; of commonsense, where its files come from",
    "records": "the room writes records, the report's module reads many for its tables",
    "schema": "of settings, of records",
}

# Names that two public classes have, likewise: a noun has one meaning.
TWIN_CLASSES: dict[str, str] = {
    "Collator": "a pipeline's: both pad a batch, of texts that are written or classified",
    **dict.fromkeys(["DataToText", "Glue"], "evaluate.load wants a scorer's class called as its file"),
}

PARAMETERS = 8
# Functions with more: what they take is fixed elsewhere. Kernels of Triton are exempt: a launch has no other way in.
LONG_LISTS: dict[str, str] = {
    "kernels/operators.py linear": "torch.library's schema has no structures",
    "kernels/operators.py linear_backward": "torch.library's schema has no structures",
    "kernels/linear.py dual_lora_linear": "public: factors and options by their names",
    "kernels/linear.py dual_lora_delta_linear": "public: factors and options by their names",
    "kernels/reference.py dual_lora_linear": "public: the signature of kernels.linear's, which it is compared with",
    "kernels/reference.py delta_weight": "public: factors and options by their names",
}


def imports(path: Path) -> set[str]:
    """Return the parts of this package that a file imports, wherever the import stands in it."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == "dual_lora":
            parts = node.module.split(".")
            found |= {parts[1]} if len(parts) > 1 else {alias.name for alias in node.names}
        elif isinstance(node, ast.Import):
            found |= {a.name.split(".")[1] for a in node.names if a.name.startswith("dual_lora.")}
    return found


def files(part: str) -> list[Path]:
    folder = PACKAGE / part
    return sorted(folder.rglob("*.py")) if folder.is_dir() else [PACKAGE / f"{part}.py"]


@pytest.mark.parametrize("part", sorted(BELOW))
def test_imports_point_down(part: str) -> None:
    paths = files(part)
    assert paths
    for path in paths:
        above = imports(path) - BELOW[part] - {part}
        assert not above, f"{path.relative_to(ROOT)} imports {sorted(above)}, which stand above {part}"


def test_every_part_is_named() -> None:
    found = {path.stem for path in PACKAGE.iterdir() if path.suffix == ".py" or any(path.glob("*.py"))}
    assert found == BELOW.keys()


def test_there_are_no_circles() -> None:
    parts = {part: {below for path in files(part) for below in imports(path)} - {part} for part in BELOW}
    while parts:
        free = {part for part, below in parts.items() if not below & parts.keys()}
        assert free, f"these import each other: {sorted(parts)}"
        parts = {part: below for part, below in parts.items() if part not in free}


def test_tuner_and_kernels_stand_alone() -> None:
    """They need nothing of the suite, so they can be used (or taken) without it."""
    for part in ("tuner", "kernels"):
        for path in files(part):
            assert imports(path) <= {"tuner", "kernels"}, path


def test_only_kernels_import_triton() -> None:
    for path in PACKAGE.rglob("*.py"):
        if path.relative_to(PACKAGE).parts[0] in ("kernels", "benchmarks"):  # these time the kernels
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            assert not any(name.split(".")[0] == "triton" for name in names), path


def loaded_by(code: str) -> set[str]:
    done = subprocess.run(
        [sys.executable, "-c", f"{code}\nimport sys; print(*sorted(sys.modules))"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    return set(done.stdout.split())


def test_reading_records_loads_no_torch() -> None:
    code = "import dual_lora.report.screen, dual_lora.report.table"
    assert "torch" not in loaded_by(code)


@pytest.mark.parametrize("words", [["--help"], ["bench", "zero", "--help"], ["tabels"]])
def test_commands_that_need_no_model_load_no_torch(words: list[str]) -> None:
    """Nor does `tables`: tests/unit/report/test_workspace.py."""
    code = (
        "import contextlib, io; from dual_lora.commands import main\n"
        f"with contextlib.suppress(SystemExit), contextlib.redirect_stdout(io.StringIO()): main({words})"
    )
    assert not loaded_by(code) & {"torch", "peft", "transformers"}


def test_composing_loads_no_torch() -> None:
    assert "torch" not in loaded_by("from dual_lora.config.compose import compose; assert compose(['profile=demo'])")


def test_what_only_scores_need_is_not_loaded_before_the_first() -> None:
    """A run would wait for it before its first step. `launch.forks` loads it once for all workers."""
    code = "from dual_lora.tasks import e2e, glue, webnlg; glue.Glue(glue.SPECS['mrpc'], 'sample', None)"
    assert not loaded_by(code) & {"sklearn", "scipy.stats", "nltk"}


def test_files_stay_readable() -> None:
    long = {str(p.relative_to(ROOT)): n for p in PACKAGE.rglob("*.py") if (n := len(p.read_text().splitlines())) > 320}
    assert not long, f"over 320 lines: {long}; is each still one thing?"


def test_a_module_has_a_name_of_its_own() -> None:
    found: dict[str, set[Path]] = {}
    for path in PACKAGE.rglob("*.py"):
        module = path.parent if path.name == "__init__.py" else path
        found.setdefault(module.stem, set()).add(module.relative_to(PACKAGE))
    twins = {name: sorted(map(str, paths)) for name, paths in found.items() if len(paths) > 1}
    assert twins.keys() == TWINS.keys(), {name: twins.get(name) for name in twins.keys() ^ TWINS.keys()}


def test_a_class_has_a_name_of_its_own() -> None:
    found: dict[str, list[str]] = {}
    for path in PACKAGE.rglob("*.py"):
        for node in ast.parse(path.read_text()).body:
            if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                found.setdefault(node.name, []).append(str(path.relative_to(PACKAGE)))
    twins = {name: paths for name, paths in found.items() if len(paths) > 1}
    assert twins.keys() == TWIN_CLASSES.keys(), {n: twins.get(n) for n in twins.keys() ^ TWIN_CLASSES.keys()}


def parameters(function: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    """Return how many parameters a caller has to know: all but the object itself."""
    names = [a.arg for a in (*function.args.posonlyargs, *function.args.args, *function.args.kwonlyargs)]
    return len(names) - (names[:1] in (["self"], ["cls"]))


def is_kernel(function: ast.FunctionDef | ast.AsyncFunctionDef) -> bool:
    return any(ast.unparse(decorator).startswith("triton.jit") for decorator in function.decorator_list)


def test_parameter_lists_stay_short() -> None:
    long = {
        f"{path.relative_to(PACKAGE)} {node.name}": count
        for path in PACKAGE.rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and not is_kernel(node)
        if (count := parameters(node)) > PARAMETERS
    }
    assert long.keys() == LONG_LISTS.keys(), {name: long.get(name) for name in long.keys() ^ LONG_LISTS.keys()}
