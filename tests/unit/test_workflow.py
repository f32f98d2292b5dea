"""The workflow of GitHub: a valid file whose jobs are targets of the Makefile, on Pythons that the project supports."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from typing import Any

import pytest
import yaml

from tests import ROOT

FILE = ROOT / ".github" / "workflows" / "ci.yml"


@pytest.fixture(scope="module")
def jobs() -> dict[str, Any]:
    return yaml.safe_load(FILE.read_text())["jobs"]


def commands(job: dict[str, Any]) -> list[str]:
    """Return what a job runs, once for each entry of its matrix."""
    [(name, values)] = job["strategy"]["matrix"].items()
    runs = [step["run"] for step in job["steps"] if "run" in step]
    return [run.replace(f"${{{{ matrix.{name} }}}}", value) for run in runs for value in values]


def test_every_job_is_a_target_of_the_makefile(jobs):
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    made = [command for job in jobs.values() for command in commands(job)]
    assert made
    for command in made:
        words = command.split()
        assert words[0] == "make"
        assert words[1] in targets, command


def test_both_ends_of_the_ranges_and_the_package_are_tried(jobs):
    made = {command.split()[1] for job in jobs.values() for command in commands(job)}
    assert {"test", "test-oldest", "test-package", "test-deepspeed", "test-slow", "test-clients"} <= made
    assert "schedule" in jobs["long"]["if"]


def test_the_oldest_python_is_the_one_that_the_package_asks_for(jobs):
    pythons = jobs["test"]["strategy"]["matrix"]["python"]
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert project["requires-python"] == f">={pythons[0]}"
    assert len(pythons) >= 2


def test_every_expression_names_what_exists(jobs):
    for job in jobs.values():
        known = {f"matrix.{name}" for name in job["strategy"]["matrix"]}
        for name in re.findall(r"\$\{\{ *(matrix\.\w+)", yaml.safe_dump(job)):
            assert name in known


def test_the_file_fits_githubs_schema():
    pytest.importorskip("check_jsonschema", reason="comes with the extra dev")
    command = [sys.executable, "-m", "check_jsonschema", "--builtin-schema", "vendor.github-workflows", str(FILE)]
    ran = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert ran.returncode == 0, ran.stdout + ran.stderr


def test_the_oldest_libraries_are_the_ends_of_the_ranges():
    pins = dict(line.split("==") for line in (ROOT / "constraints-oldest.txt").read_text().splitlines() if "==" in line)
    for line in tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]:
        name, _, lowest = line.partition(">=")
        if name != "torch":  # a wheel for each platform; the tests run with the pinned one
            assert pins[name].startswith(lowest.split(",")[0]), name
