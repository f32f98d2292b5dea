"""Write the performance tables and the figure from results/benchmarks/*.json.

    python run.py bench report            # the parts <!-- benchmarks:NAME --> of README.md and docs; the figure
    python run.py bench report --check    # fail if they are not what the committed files give

README.md has the part `steps`, docs/speed.md `graphs`, `start`, `runs` and `passes`, docs/serving.md `exports`;
docs/kernels.md has `one_gpu`, with steps, alternatives and growth of cost, and `targets`; docs/launching.md has
`several_gpus`. Nothing is typed by hand: a number that was not measured says so.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterable
from typing import Any

from dual_lora import shipped
from dual_lora.benchmarks import export_tables, graph_tables, scaling_tables, start_tables
from dual_lora.config import ConfigError, legal_values
from dual_lora.report import documents, drawing
from dual_lora.report.figures import Figure, Panel, Point
from dual_lora.report.grid import grid

ROOT = shipped.checkout()
RESULTS = ROOT / "results" / "benchmarks"
FIGURE = ROOT / "results" / "figures" / "kernels_growth.svg"
LABELS = {
    "dual_lora": "Dual LoRA, fp32 factors",
    "dual_lora_autocast": "Dual LoRA, fp32 factors, autocast",
    "lora_fp32_factors": "PEFT LoRA, fp32 factors, autocast (its default)",
    "lora_bf16_factors": "PEFT LoRA, bf16 factors",
    "dora_fp32_factors": "PEFT DoRA, fp32 factors, autocast (its default)",
    "dora_bf16_factors": "PEFT DoRA, bf16 factors",
    "floor": "three GEMMs (target weights trained, no optimizer)",
}


def load() -> dict[str, Any]:
    """All benchmark files merged; a missing file leaves its rows unmeasured."""
    names = ("kernels", "kernels_cpu", "kernels_tiles", "training", "training_generation", "zero")
    data: dict[str, Any] = {}
    for name in names:
        path = RESULTS / f"{name}.json"
        if path.exists():
            content = json.loads(path.read_text(encoding="utf-8"))
            data[f"environment_{name}"] = content.pop("environment")
            data |= content
    return data


def value(data: dict[str, Any], *path: str) -> float | None:
    """A number deep in the results, or None."""
    for key in path:
        if not isinstance(data, dict) or key not in data:
            return None
        data = data[key]
    return float(data) if isinstance(data, (int, float)) else None


def ratio(data: dict[str, Any], part: str, ours: str, other: str, field: str = "median_ms") -> float | None:
    """Our `field` over another method's in one part of the training results."""
    above, below = value(data, part, ours, field), value(data, part, other, field)
    return above / below if above is not None and below else None


Target = tuple[str, float | None, float]


def _both(
    data: dict[str, Any], part: str, name: str, other: str, target: float, field: str = "median_ms"
) -> Iterable[Target]:
    """A target against a method with factors of either dtype."""
    for dtype in ("fp32", "bf16"):
        measured = ratio(data, part, "dual_lora", f"{other}_{dtype}_factors", field)
        yield f"{name}, {dtype} factors", measured, target


def target_rows(data: dict[str, Any]) -> Iterable[Target]:
    """(quantity, measured, target) for every target, for each baseline that it may be read against."""
    for part, name, targets in (
        ("short", "LLaMA-7B step, 16 × 112 tokens", (1.00, 0.55, 1.08, 0.95)),
        ("steps", "LLaMA-7B step, 16 × 256 tokens", (1.00, 0.55, 1.08, 0.95)),
        ("checkpointing", "LLaMA-7B step, 16 × 256 tokens, checkpointing", (1.00, 0.52, 1.15, 1.00)),
    ):
        if part == "short" and part not in data:
            continue  # the committed files are older and do not have it
        yield from _both(data, part, f"{name} / LoRA", "lora", targets[0])
        yield from _both(data, part, f"{name} / DoRA", "dora", targets[1])
        yield f"{name} / three-GEMM floor", ratio(data, part, "dual_lora", "floor"), targets[2]
        yield from _both(data, part, f"{name}, peak memory / LoRA", "lora", targets[3], "peak_GiB")
    up: dict[str, Any] = next((p for p in data.get("parts", []) if p["shape"] == [11008, 4096]), {})
    yield "building W₀ + ΔW, 11008 × 4096 / copy of W₀", value(up, "build_over_copy"), 1.3
    yield "reducing G, 11008 × 4096 / reading G", value(up, "reduce_over_read"), 3.0
    yield "… or weight-gradient GEMM and reduction / that GEMM", value(up, "gemm_and_reduce_over_gemm"), 1.12
    yield from _both(data, "small", "SmolLM2-135M step / LoRA", "lora", 0.9)
    yield from _both(data, "small_cuda_graph", "… as one CUDA graph / LoRA", "lora", 0.9)
    yield from _both(data, "dropout", "LLaMA-7B step, 16 × 256 tokens, dropout 0.05 / LoRA", "lora", 1.35)
    for batch in (1, 16):
        for kind, name in (("generate", "`generate`"), ("cuda_graph", "CUDA graph")):
            base = value(data, "generation", f"base_batch_{batch}", kind, "median_ms")
            for state, limit in (("not_merged", 1.25), ("merged", 1.00)):
                ours = value(data, "generation", f"{state}_batch_{batch}", kind, "median_ms")
                measured = ours / base if ours is not None and base else None
                yield f"token, batch {batch}, {state.replace('_', ' ')} / base, {name}", measured, limit
    for method, label in (("dual_lora", "Dual LoRA"), ("lora", "LoRA")):
        yield f"1.1B step, {label}: ZeRO-2 on one GPU / plain", value(data, "zero", method, "ratio"), 1.05
    yield "CPU, 2048 × 2048, 512 tokens, fp32: time / naive autograd", value(data, "cpu", "time_ratio"), 1.0
    yield "… peak extra memory / naive autograd", value(data, "cpu", "memory_ratio"), 0.4


def targets_table(data: dict[str, Any]) -> str:
    """Every target with its verdict; a merged adapter has no code of its own, so its 1.00 allows 0.02 of noise."""
    rows = []
    for name, measured, target in target_rows(data):
        found = ["not measured", f"≤ {target:.2f}", ""]
        if measured is not None:
            met = measured <= target + (0.02 if " merged" in name and "not merged" not in name else 0.0)
            found = [f"{measured:.3f}", f"≤ {target:.2f}", "met" if met else "**missed**"]
        rows.append([name, *found])
    return grid("lrrl", ["quantity", "measured", "target", ""], rows)


def steps_table(data: dict[str, Any]) -> str:
    """Median, quantiles and memory of every method and setting."""
    rows = []
    parts = {
        "short": "LLaMA-7B, 16 × 112",
        "steps": "LLaMA-7B, 16 × 256",
        "checkpointing": "… gradient checkpointing",
        "dropout": "… input dropout 0.05",
        "small": "SmolLM2-135M, 16 × 128",
        "small_cuda_graph": "… as one CUDA graph",
    }
    for part, title in parts.items():
        for variant, label in LABELS.items():
            row = data.get(part, {}).get(variant)
            if row is None:
                continue
            if "error" in row:
                rows.append([title, label, row["error"].split(":")[0], ""])
                continue
            spread = f"{row['median_ms']:.1f} ({row['p20_ms']:.1f}–{row['p80_ms']:.1f})"
            rows.append([title, label, spread, f"{row['peak_GiB']:.2f}"])
    return grid("llrr", ["step", "method", "ms (20–80 %)", "GiB"], rows)


def alternatives_table(data: dict[str, Any]) -> str:
    """The four best tile sizes that were tried for each kernel."""
    rows = []
    for kernel, tried in data.get("tiles", {}).items():
        for row in [r for r in tried if "median_ms" in r][:4]:
            tile = row["tile"]
            shape = f"{tile['rows']} × {tile['columns']}, {tile['warps']}, {tile['stages']}"
            walk = f"{tile['row_blocks']}, {tile['steps']}, {row['programs_per_multiprocessor'] or '–'}"
            rows.append([kernel, shape, walk, f"{1e3 * row['median_ms']:.0f}"])
    return grid("lllr", ["kernel", "rows × columns, warps, stages", "row blocks, steps, programs", "µs"], rows)


def few_tokens_table(data: dict[str, Any]) -> str:
    """Microseconds of a few tokens by layer."""
    rows = []
    for row in data.get("few_tokens", []):
        times = [f"{1e3 * row[k]['median_ms']:.0f}" for k in ("base", "one_kernel", "build_and_gemm")]
        rows.append([f"{row['layer']} {row['shape'][0]} × {row['shape'][1]}", row["tokens"], *times])
    return grid("lrrrr", ["layer", "tokens", "base µs", "one kernel µs", "build and GEMM µs"], rows)


def profile_table(data: dict[str, Any]) -> str:
    """GPU milliseconds of one Dual LoRA step by kind of kernel."""
    kinds = sorted(data.get("profile", {}).get("ms_by_kind", {}).items(), key=lambda item: -item[1])
    return grid("lr", ["kernels", "ms"], [(kind, f"{ms:.1f}") for kind, ms in kinds])


def growth_rows(data: dict[str, Any]) -> list[dict[str, Any]]:
    """Rows of the growth of cost: GPU time of CUDA graphs where measured, else eager time."""
    return data["growth"]["rows"] if "growth" in data else data.get("growth_eager", [])


def growth_table(data: dict[str, Any]) -> str:
    """Milliseconds of one layer's forward and backward, measured and modelled."""
    headings = ["varies", "layer", "rank", "tokens", "Dual LoRA", "LoRA", "floor", "model: Dual LoRA, LoRA, floor"]
    rows = []
    for row in growth_rows(data):
        times = [f"{row[k]['median_ms']:.2f}" for k in ("dual_lora", "lora", "floor")]
        model = ", ".join(f"{v:.2f}" for v in row.get("model_ms", {}).values()) or "–"
        rows.append([row["axis"], f"{row['out']} × {row['in']}", row["rank"], row["tokens"], *times, model])
    return grid("llrrrrrr", headings, rows)


def growth_figure(data: dict[str, Any]) -> Figure:
    """One panel per axis: measured points, and the model's next to them."""
    panels = []
    for axis, field in {"tokens": "tokens", "rank": "rank", "layer size": "out"}.items():
        rows = sorted((r for r in growth_rows(data) if r["axis"] == axis), key=lambda r: r[field])
        rows = [r for r in rows if axis != "layer size" or r["out"] == r["in"]]
        lines = {}
        for kind, label in (("dual_lora", "Dual LoRA"), ("lora", "LoRA"), ("floor", "three GEMMs")):
            lines[label] = tuple(Point(r[field], r[kind]["median_ms"]) for r in rows)
            modelled = tuple(Point(r[field], r["model_ms"][kind]) for r in rows if "model_ms" in r)
            lines |= {f"{label}, model": modelled} if modelled else {}
        panels.append(Panel(axis, "ms, forward and backward", lines, log_x=True, log_y=True))
    drawn = tuple(panel for panel in panels if any(panel.lines.values()))
    return Figure(FIGURE.stem, "", "speed", "Growth of the cost of one layer", drawn)


def targets_section(data: dict[str, Any]) -> str:
    """The targets and where they were measured."""
    return f"{machines(data)}; medians, one process. Details: `docs/kernels.md`.\n\n{targets_table(data)}"


def machines(data: dict[str, Any]) -> str:
    """Card and versions of the GPU's files; where these differ, each with the files that it was measured for."""
    files: dict[str, list[str]] = {}
    for name in ("training", "kernels", "training_generation"):
        card = data.get(f"environment_{name}", {})
        where = f"{card.get('card', '?')}, PyTorch {card.get('torch', '?')}, Triton {card.get('triton', '?')}"
        files.setdefault(where, []).append(f"`{name}.json`")
    if len(files) == 1:
        return next(iter(files))
    return "; ".join(f"{where} ({', '.join(names)})" for where, names in files.items())


def one_gpu_section(data: dict[str, Any]) -> str:
    """Everything that was measured on one GPU."""
    eager = "" if "growth" in data else " (eager: below about 1.5 ms it is the time of the launches)"
    return "\n\n".join(
        (
            targets_section(data),
            f"### Steps\n\n{steps_table(data)}",
            f"### Where the GPU's time goes in a Dual LoRA step\n\n{profile_table(data)}",
            f"### A few tokens\n\n{few_tokens_table(data)}",
            f"### Tile sizes tried, best first\n\n{alternatives_table(data)}",
            f"### Growth of cost, ms{eager}\n\n{growth_table(data)}",
            f"![Growth of cost](../results/figures/{FIGURE.name})",
        )
    )


def several_gpus_section(_: dict[str, Any]) -> str:
    """What was measured on several GPUs. Its files have parts named as in the others."""
    return "\n\n".join((scaling_tables.fsdp_section(measured("fsdp")), scaling_tables.section(measured("scaling"))))


def measured(name: str) -> dict[str, Any]:
    """Return one result file, for those that `load` would mix up with others; empty where there is none."""
    path = RESULTS / f"{name}.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}


SECTIONS = {
    "steps": lambda _: graph_tables.summary(measured("graphs")),
    "graphs": lambda _: graph_tables.section(measured("graphs"), measured("whole_run")),
    "start": lambda _: start_tables.start_section(measured("start")),
    "runs": lambda _: start_tables.runs_section(measured("runs")),
    "passes": lambda _: start_tables.passes_section(measured("passes")),
    "exports": lambda _: export_tables.section(measured("export_lora")),
    "targets": targets_section,
    "one_gpu": one_gpu_section,
    "several_gpus": several_gpus_section,
}


def run(options: argparse.Namespace) -> None:
    """Write the pages and the figure. Raises `ConfigError` with --check if a page is out of date."""
    data = load()

    def render(name: str, columns: str | None) -> str:
        if name not in SECTIONS:
            raise ValueError(f"benchmarks {name!r} do not exist{legal_values(name, SECTIONS)}")
        return SECTIONS[name](data)

    stale = []
    for path in documents.documents(ROOT):
        text = path.read_text(encoding="utf-8")
        new = documents.fill(text, "benchmarks", render, str(path.relative_to(ROOT)))
        if new != text:
            stale.append(path.name)
            if not options.check:
                path.write_text(new, encoding="utf-8")
    if options.check and stale:
        raise ConfigError(f"out of date: {', '.join(stale)}; run {shipped.program()} bench report")
    if not options.check:
        drawing.draw(growth_figure(data), FIGURE)
        print(f"updated: {', '.join(stale) or 'nothing'}; figure {FIGURE}")
