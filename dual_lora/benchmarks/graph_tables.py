"""What `graphs.json` and `whole_run.json` of results/benchmarks say: docs/speed.md, and lines of README.md."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from dual_lora.report.grid import grid

NAMES = {"lora": "LoRA", "dora": "DoRA", "dual_lora": "Dual LoRA", "full": "full fine-tuning"}
JOB = {**NAMES, "dual_lora": "Dual LoRA, dropout 0.05", "dual_lora_no_dropout": "Dual LoRA without dropout"}
TARGET = 1.10  # of Dual LoRA's step over LoRA's
PAPERS = "LLaMA-7B, 16 x 112, dropout 0.05"  # the batch, and what the recipes train with


def summary(found: Mapping[str, Any]) -> str:
    """Return the table of README.md: the paper's batch, then the other sizes."""
    steps = found.get("steps", {})
    if not steps:
        return "Steps as CUDA graphs (`launch.graphs=auto`): not measured."
    rows = []
    for size in sorted(steps, key=lambda size: size != PAPERS):
        measured = {
            method: (row["eager"]["median_ms"], row["graph"]["median_ms"]) for method, row in steps[size].items()
        }
        times = [
            f"{measured[method][0]:.0f} → {measured[method][1]:.0f}" if method in measured else ""
            for method in ("lora", "dora", "dual_lora")
        ]
        name = _size(size) + (" (the paper's batch, as its recipes train it)" if size == PAPERS else "")
        rows.append([name, *times, _ratio(measured)])
    card = found["environment"]["card"]
    headings = ["model, tokens", "LoRA", "DoRA", "Dual LoRA", f"Dual LoRA / LoRA (target ≤ {TARGET:.2f})"]
    return (
        f"A training step of the suite, ms, without → with CUDA graphs (`launch.graphs`, on by default; {card}, "
        f"`graphs.json`, docs/speed.md):\n\n{grid('lrrrr', headings, rows)}"
    )


def _ratio(measured: Mapping[str, tuple[float, float]]) -> str:
    """Return what Dual LoRA's graphed step takes of LoRA's, and whether that is the target."""
    if not {"lora", "dual_lora"} <= measured.keys():
        return ""
    ratio = measured["dual_lora"][1] / measured["lora"][1]
    return f"{ratio:.2f}, {'met' if ratio <= TARGET else '**missed**'}"


def section(found: Mapping[str, Any], whole: Mapping[str, Any]) -> str:
    """Return everything that was measured. found, whole: graphs.json, whole_run.json."""
    if not found:
        return "Not measured."
    environment = found["environment"]
    versions = ", ".join(f"{name} {environment[name]}" for name in ("torch", "transformers", "peft", "triton"))
    parts = [f"{environment['card']}, {versions}. Made by {found['made_by']}"]
    parts += ["### Steps", _steps(found["steps"])]
    parts += _kinds(found["steps"])
    if "job" in found:
        parts += ["### Whole runs: commonsense on LLaMA-2-7B's shape", _job(found["job"])]
    if "job_as_given" in found:
        parts.append(_as_given(found["job_as_given"]))
    if whole:
        parts.append(_whole(whole))
    if "beside" in found:
        parts += ["### Dual LoRA's own kernels beside the rest", _beside(found["beside"])]
    if "runs" in found:
        parts += ["### Other whole trainings", _runs(found["runs"])]
    if "memory_of_many_shapes" in found:
        parts += ["### Memory of a training", _memory(found["memory_of_many_shapes"])]
    if "tried" in found:
        parts += ["### What a recording waits for", _tried(found["tried"])]
    if "bits" in found:
        parts += ["### The same bits", _bits(found["bits"])]
    if "calls" in found:
        parts += [
            "### Calls",
            grid("rlll", ["call", "November 2026, UTC", "code", "made by, and what"], found["calls"]),
        ]
    return "\n\n".join(parts)


def _size(name: str) -> str:
    return name.replace(" x ", " × ")


def _steps(steps: Mapping[str, Any]) -> str:
    headings = ["size, tokens", "method", "without, ms", "with graphs, ms", "ratio", "GPU busy, ms", "step / busy"]
    rows = []
    for size, methods in steps.items():
        for method, row in methods.items():
            eager, graph = row["eager"], row["graph"]
            before, after, busy = eager["median_ms"], graph["median_ms"], row["busy_ms"]
            memory = graph["reserved_GiB"] / eager["reserved_GiB"]
            name = NAMES[method] + "¹" * (row.get("call") == 1)
            times = [f"{before:.1f}", f"{after:.1f}", f"{before / after:.2f}", f"{busy:.1f}", f"{after / busy:.2f}"]
            rows.append([_size(size), name, *times, f"{memory:.3f}"])
    table = grid("llrrrrrr", [*headings, "memory"], rows)
    note = "\n\nMemory: the most that the allocator kept, with graphs over without."
    return f"{table}{note}" + ("\n¹ of call 1" if "¹" in table else "")


def _kinds(steps: Mapping[str, Any]) -> list[str]:
    """Return what takes the time of graphed steps, where it was looked at."""
    headings = ["size, tokens", "method", "GEMMs", "build, reduction, packing", "dropout", "attention", "the rest"]
    rows = []
    for size, methods in steps.items():
        for method, row in methods.items():
            for key, note in (("busy_ms_by_kind", ""), ("one_stream_busy_ms_by_kind", ", one stream")):
                ms = dict(row.get(key, {}))
                if ms:
                    own = sum(ms.pop(kind, 0.0) for kind in ("build", "reduce", "finish", "pack"))
                    parts = [ms.pop("GEMM"), own, ms.pop("dropout", 0.0), ms.pop("attention", 0.0)]
                    cells = [f"{part:.1f}" if part else "–" for part in [*parts, sum(ms.values())]]
                    rows.append([_size(size), NAMES[method] + note, *cells])
    return ["### What the GPU does in a step with graphs, ms", grid("llrrrrr", headings, rows)] if rows else []


def _job(job: Mapping[str, Any]) -> str:
    headings = [
        "method",
        "tokens/s, before",
        "now",
        "ratio",
        "a step, ms",
        "GPU busy, ms",
        "step / busy",
        "a later step",
    ]
    rows = []
    for method, ways in job["methods"].items():
        now, before = ways["now"], ways.get("before")
        rates = [f"{way['useful_tokens_s']:,.0f}" if way else "–" for way in (before, now)]
        ratio = f"{now['useful_tokens_s'] / before['useful_tokens_s']:.2f}" if before else "–"
        steps = " → ".join(f"{way['ms_a_step']:.0f}" for way in (before, now) if way)
        busy = [f"{now['busy_ms']:.0f}", f"{now['ms_a_step'] / now['busy_ms']:.2f}"] if "busy_ms" in now else ["–", "–"]
        rows.append([JOB[method], *rates, ratio, steps, *busy, f"{now['median_ms']:.0f}"])
    return f"{job['note']}\n\n{grid('lrrrrrrr', headings, rows)}"


def _as_given(job: Mapping[str, Any]) -> str:
    headings = ["call", "method", "tokens/s", "a step, ms", "GPU busy, ms", "step / busy", "a later step"]
    rows = []
    for row in job["rows"]:
        name = JOB[row["method"]] + (", before" if row.get("before") else "")
        busy = ["–", "–"]
        if "busy_ms" in row:
            other = f" (call {row['busy_call']})" if row["busy_call"] != row["call"] else ""
            busy = [f"{row['busy_ms']:.1f}{other}", f"{row['ms_a_step'] / row['busy_ms']:.3f}"]
        times = [f"{row['useful_tokens_s']:,.0f}", f"{row['ms_a_step']:.1f}", *busy, f"{row['median_ms']:.0f}"]
        rows.append([row["call"], name, *times])
    return f"{job['note']}\n\n{grid('rlrrrrr', headings, rows)}"


def _whole(whole: Mapping[str, Any]) -> str:
    headings = ["commit", "method", "tokens/s", "a step, ms", "GPU busy, ms", "step / busy", "a later step", "GiB kept"]
    rows = []
    for method, row in whole["methods"].items():
        busy = [f"{row['busy_ms']:.1f}", f"{row['step_over_busy']:.3f}"]
        times = [f"{row['useful_tokens_s']:,.0f}", f"{row['ms_a_step']:.1f}", *busy, f"{row['median_ms']:.0f}"]
        commit = (row["commit"] or "unknown")[:7] + (", changed" if row["dirty"] else "")
        rows.append([commit, JOB[method], *times, f"{row['reserved_GiB']:.1f}"])
    environment = whole["environment"]
    note = (
        f"The same by `run.py bench whole-run` (`whole_run.json`, {environment['card']}, torch {environment['torch']}, "
        f"transformers {environment['transformers']}), two runs of each method:"
    )
    return f"{note}\n\n{grid('llrrrrrr', headings, rows)}"


def _tried(tried: Mapping[str, Any]) -> str:
    waits, record = tried["waits_ms"], tried["record"]
    listed = "; ".join(f"{what} {ms:,.1f}" for what, ms in waits.items() if what != "call")
    before, *after = (f"{seconds:.1f}" for seconds in record["e2e_s"])
    first, second = (f"{ms:.1f}" for ms in record["lora_ms_a_step"])
    return (
        f"Milliseconds of the host while the GPU is at work (call {waits['call']}, one process, in this order): "
        f"{listed}. What is loaded for the first time waits until the GPU has nothing to do, as the GEMMs that a new "
        "shape chooses, so a recording is not made beside the steps before it.\n\n"
        "To record a shape when it first comes, not when it comes again, was tried and left "
        f"(call {record['call']}): E2E on SmolLM2's shape, 250 steps, took "
        f"{before} s, and {' and '.join(after)} so; a step of LoRA's whole run on LLaMA-2-7B's {first} and {second} ms."
    )


def _beside(beside: Mapping[str, Any]) -> str:
    rows = []
    for call in beside["calls"]:
        for size, forms in call["steps"].items():
            lora = forms.get("LoRA")
            for form, row in forms.items():
                ratio = "–" if lora is None else f"{row['median_ms'] / lora['median_ms']:.3f}"
                times = [f"{row[kind]:.1f}" for kind in ("median_ms", "min_ms")]
                rows.append([call["call"], _size(size), form, *times, ratio, f"{row['reserved_GiB']:.1f}"])
    headings = ["call", "size, tokens", "beside the rest", "ms", "least", "/ LoRA", "memory kept, GiB"]
    return f"{beside['note']}\n\n{grid('rllrrrr', headings, rows)}"


def _memory(sizes: Mapping[str, Any]) -> str:
    rows = []
    for size, methods in sizes.items():
        for method, row in methods.items():
            (handed, handed_graph), (kept, kept_graph) = row["peak_GiB"], row["reserved_GiB"]
            pairs = [f"{handed:.2f} → {handed_graph:.2f}", f"{kept:.2f} → {kept_graph:.2f}"]
            rows.append([row["call"], size, NAMES[method], *pairs, f"{kept_graph / kept:.3f}"])
    return grid("rllrrr", ["call", "size", "method", "handed out, GiB", "kept, GiB", "ratio"], rows)


def _runs(runs: Mapping[str, Any]) -> str:
    rows = []
    for name, row in runs.items():
        before, after = row["eager_s"], row["graph_s"]
        later = ["–", "–"]
        if row["step_s"]:
            first, second = row["step_s"]
            later = [f"{1e3 * first:.0f} → {1e3 * second:.0f}", f"{first / second:.2f}"]
        same = {True: "the same bits", False: "**differ**", None: "not compared"}[row["same_losses"]]
        rows.append([row["call"], name, f"{before:.1f} → {after:.1f}", f"{before / after:.2f}", *later, same])
    table = grid("rlrrrrl", ["call", "run", "training, s", "ratio", "a later step, ms", "ratio", "losses"], rows)
    note = (
        "A short training pays for its recordings: a shape is computed once, recorded once, and only then replayed. "
        "In call 11 a process of its own also loaded kernels and scikit-learn in these seconds, and wrote ten "
        "checkpoints, of which a training of ten seconds writes none now. In calls 12 and 13 the first training was a "
        "machine's first process, which loads all from disk, the one without graphs its second, and the one again its "
        "third. Of E2E no losses are compared, as its recipe warms up for fewer steps now. Later steps: the median "
        "from step 13 on, in calls 12 and 13 from step 21."
    )
    return f"{table}\n\n{note}"


def _bits(cases: Mapping[str, Any]) -> str:
    equal = [name for name, row in cases.items() if row["losses_equal"] and row["weights_equal"]]
    lines = [
        f"Trainings of 16 to 30 steps without and with graphs, losses and weights compared: {len(equal)} "
        f"of {len(cases)} have the same bits ({'; '.join(equal)}).",
    ]
    for name, row in cases.items():
        if name not in equal:
            lines.append(
                f"{name}: weights differ by at most {row['weight_difference']:.1e}, and those of two trainings without "
                f"graphs by {row['weight_difference_eager_twice']:.1e}."
            )
        if row["reason"]:
            lines.append(f"{name}: computed without graphs ({row['reason']}).")
    return "\n".join(f"- {line}" for line in lines)
