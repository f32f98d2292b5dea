"""What is installed from a wheel runs the suite from any folder, and holds what it needs."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from dual_lora.commands import BENCH_LIBRARIES, main
from tests import ROOT

SOURCES = ("dual_lora", "configs", "experiments", "results/published")
HOURS = "results/benchmarks/gpu_hours.json"
BUILD = "import sys; from setuptools import build_meta; print(getattr(build_meta, sys.argv[1])(sys.argv[2]))"
Run = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Wheel and source distribution, as pip makes them, from a copy of the checkout."""
    folder = tmp_path_factory.mktemp("build")
    for name in SOURCES:
        ignored = shutil.ignore_patterns("__pycache__")
        shutil.copytree(ROOT / name, folder / "copy" / name, symlinks=True, ignore=ignored)
    (folder / "copy" / "results" / "benchmarks").mkdir()
    shutil.copy(ROOT / HOURS, folder / "copy" / HOURS)
    for name in ("pyproject.toml", "setup.py", "MANIFEST.in", "README.md", "LICENSE", "CHANGELOG.md", "run.py"):
        shutil.copy(ROOT / name, folder / "copy")
    for kind in ("build_sdist", "build_wheel"):
        command = [sys.executable, "-c", BUILD, kind, str(folder)]
        subprocess.run(command, cwd=folder / "copy", check=True, capture_output=True, timeout=300)
    return folder


@pytest.fixture(scope="module")
def installed(built: Path) -> Run:
    """Run `python -m dual_lora` of the unpacked wheel in a folder."""
    [wheel] = built.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(built / "site")

    def run(folder: Path, *words: str, **environment: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "dual_lora", *words]
        own = {**os.environ, "PYTHONPATH": str(built / "site"), **environment}
        return subprocess.run(command, cwd=folder, env=own, capture_output=True, text=True, timeout=300)

    return run


def files_below(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def test_the_wheel_holds_the_folders_that_ship(built: Path, installed: Run) -> None:
    site = built / "site" / "dual_lora"
    for name in SOURCES[1:]:
        # `configs/experiment` is a link in a checkout and a folder in the wheel.
        linked = {path for path in files_below(site / "suite" / name) if not path.startswith("experiment/")}
        assert linked == files_below(ROOT / name), name
    assert (site / "suite" / HOURS).read_bytes() == (ROOT / HOURS).read_bytes()
    assert files_below(site / "suite/configs/experiment") == files_below(ROOT / "experiments")
    assert {path.suffix for path in site.rglob("*") if path.is_file()} >= {".py", ".typed", ".yaml", ".csv"}
    shipped = {path for path in files_below(site) if not path.startswith("suite/")}
    assert shipped == {path for path in files_below(ROOT / "dual_lora") if "__pycache__" not in path}
    [entry] = (built / "site").glob("*.dist-info/entry_points.txt")
    assert "dual-lora = dual_lora.commands:main" in entry.read_text()


def test_the_source_distribution_builds_the_same(built: Path) -> None:
    [archive] = built.glob("*.tar.gz")
    with tarfile.open(archive) as tar:
        names = {"/".join(name.split("/")[1:]) for name in tar.getnames()}
    for name in SOURCES:
        kept = {f"{name}/{path}" for path in files_below(ROOT / name) if "__pycache__" not in path}
        assert kept <= names, sorted(kept - names)[:3]
    assert {"setup.py", "pyproject.toml", "LICENSE", "README.md", HOURS} <= names


def test_an_installed_package_runs_in_an_empty_folder(installed: Run, tmp_path: Path) -> None:
    shown = installed(tmp_path, "--help")
    assert f"{sys.executable} -m dual_lora COMMAND --help" in shown.stdout, "as it was started"
    assert "commonsense_smollm2" in shown.stdout, "experiments are choices"
    planned = installed(tmp_path, "model=llama2", "task=commonsense", "method=dual_lora", "plan=true")
    assert planned.returncode == 0, planned.stderr
    assert "trainable" in planned.stdout
    assert not list(tmp_path.iterdir()), "nothing is written by a plan"
    made = installed(tmp_path, "tables", "--only", "table_nlg")
    assert made.returncode == 0, made.stderr
    assert "LoRA" in (tmp_path / "results/tables/table_nlg.md").read_text(), "published rows"
    again = installed(tmp_path, "tables", "--only", "table_nlg", "--check")
    assert again.returncode == 0, again.stdout + again.stderr


def test_a_suite_command_without_its_libraries_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "rich.console", None)
    monkeypatch.delitem(sys.modules, "dual_lora.commands.tables", raising=False)
    assert main(["tables"]) == 2
    assert 'the package rich is missing; the suite\'s libraries come with: pip install "dual-lora[bench]"' in (
        capsys.readouterr().err
    )


def test_the_extra_is_what_the_sentence_promises() -> None:
    """Each library of the extra, as Python names it, is one whose absence is explained."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    python_names = {"hydra-core": "hydra", "scikit-learn": "sklearn", "pyyaml": "yaml", "protobuf": "google"}
    words = {line.split(";")[0].split(">")[0].strip() for line in project["optional-dependencies"]["bench"]}
    core = {line.split(">")[0] for line in project["dependencies"]}
    assert core == {"torch", "transformers", "peft"}
    narrowed = core | {"accelerate", "safetensors"}  # come with PEFT; the suite needs later ones
    assert {python_names.get(word, word) for word in words - narrowed} | {"omegaconf"} == BENCH_LIBRARIES
