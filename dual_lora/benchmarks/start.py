"""Time the start of a run: from the command to its first training step, each in a process of its own.

    python run.py bench start data.source=local data.dir=data                     # results/benchmarks/start.json
    python run.py bench start data.source=local data.dir=data --against FOLDER    # alternating with another checkout

The runs are MiniLM on MRPC and SmolLM2-135M on all 42,061 pairs of E2E, as the studies have them; settings are added.
Seconds on the clock, and of the CPU (user and system, which other work on the machine changes less); medians. Weights
are converted and kept in the cache before. `first`: without token ids in the cache; `later`: with them, where there are
enough texts to keep. `against`: the other checkout.
"""

from __future__ import annotations

import argparse
import json
import os
import runpy
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from pathlib import Path
from typing import Any

REACHED = 77  # exit code of a process that came to its first step
RUNS = {
    "MiniLM, MRPC": ["model=minilm", "task=glue/mrpc"],
    "SmolLM2-135M, E2E": ["model=smollm2", "task=e2e", "profile.train_examples=42061", "recipe.epochs=1"],
}
STUDY = ["method=dual_lora", "protocol=strict", "profile=study"]
SMOKE = {"tiny": ["model=tiny_llama", "task=e2e", "data.source=sample", "launch.device=cpu"]}


class _StopsAtFirstStep(MetaPathFinder):
    """Ends the process where the suite's Trainer would compute its first step."""

    def find_spec(self, fullname: str, path: Any = None, target: Any = None) -> ModuleSpec | None:
        if fullname != "dual_lora.training.trainer":
            return None
        others = (finder for finder in sys.meta_path if finder is not self)
        spec = next(found for finder in others if (found := finder.find_spec(fullname, path, target)))
        assert spec.loader is not None
        load = spec.loader.exec_module

        def exec_module(module: Any) -> None:
            load(module)
            module._Trainer.training_step = lambda *_, **__: os._exit(REACHED)

        spec.loader.exec_module = exec_module  # type: ignore[method-assign]
        return spec


def measure(checkout: Path, words: list[str], cache: Path) -> tuple[float, float]:
    """Return the seconds until the first step, on the clock and of the CPU. Raises `RuntimeError` if it never comes."""
    with tempfile.TemporaryDirectory() as results:
        environment = {**os.environ, "PYTHONPATH": str(checkout), "DUAL_LORA_CACHE": str(cache)}
        begun = time.perf_counter()
        command = [sys.executable, __file__, str(checkout / "run.py"), *words, f"results={results}"]
        with tempfile.TemporaryFile() as log:
            process = subprocess.Popen(command, stdout=log, stderr=log, env=environment, cwd=checkout)
            _, status, usage = os.wait4(process.pid, 0)
            seconds = time.perf_counter() - begun
            process.returncode = os.waitstatus_to_exitcode(status)
            if process.returncode != REACHED:
                log.seek(0)
                raise RuntimeError(f"{' '.join(words)} ended with {process.returncode}: {log.read()[-2000:].decode()}")
    return seconds, usage.ru_utime + usage.ru_stime


def run(options: argparse.Namespace) -> None:
    """Measure all runs, and write each as it is done."""
    from dual_lora import shipped
    from dual_lora.benchmarks import timing

    here = shipped.PACKAGE.parent
    rows: list[dict[str, Any]] = []
    repeated = 1 if options.smoke else options.repeat
    results = {
        "environment": timing.environment("cpu", ("transformers", "peft", "tokenizers")),
        "command": timing.command(),
        "settings": [*STUDY, *options.settings],
        "repeated": repeated,
        "rows": rows,
    }
    for name, own in (SMOKE if options.smoke else RUNS).items():
        words = [*own, *STUDY, *options.settings]
        found: dict[str, list[tuple[float, float]]] = {"against": [], "first": [], "later": []}
        with tempfile.TemporaryDirectory() as folder:
            cache = Path(folder)
            for checkout in () if options.smoke else filter(None, (options.against, here)):
                measure(checkout.resolve(), words, cache)  # compiles modules, converts weights
            for _ in range(repeated):
                if options.against:
                    found["against"].append(measure(options.against.resolve(), words, cache))
                shutil.rmtree(cache / "tokens", ignore_errors=True)
                found["first"].append(measure(here, words, cache))
                if (cache / "tokens").exists():
                    found["later"].append(measure(here, words, cache))
        row: dict[str, Any] = {"run": name}
        for way, values in found.items():
            if values:
                seconds, cpu = (round(statistics.median(column), 2) for column in zip(*values, strict=True))
                row[way] = {"seconds": seconds, "cpu_seconds": cpu}
        rows.append(row)
        print(json.dumps(row), flush=True)
        timing.write(options.output, "start", results)


if __name__ == "__main__":  # one process of `measure`
    del sys.path[0]  # the folder of the benchmarks
    sys.meta_path.insert(0, _StopsAtFirstStep())
    del sys.argv[0]
    runpy.run_path(sys.argv[0], run_name="__main__")
