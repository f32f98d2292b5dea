"""What several GPUs gave (results/benchmarks) as tables; `bench report` puts them into docs/launching.md."""

from __future__ import annotations

from typing import Any

from dual_lora.report.grid import grid

METHODS = {"lora": "LoRA", "dora": "DoRA", "dual_lora": "Dual LoRA"}
GROUPS = {
    "whole": "one GPU, batch at once",
    "ddp": "DDP",
    "fsdp": "fsdp",
    "zero2": "ZeRO-2",
    "zero3": "ZeRO-3",
    "again": "fsdp, against a first run of it",
}
TARGETS = {"ddp": 0.95, "fsdp": 0.88, "zero2": 0.95}


def section(data: dict[str, Any]) -> str:
    """Return all that was measured on several GPUs; rows without a measurement say so.

    data: results/benchmarks/scaling.json.
    """
    parts = [_machine(data[gpus]) for gpus in sorted(data, key=int)]
    parts = parts or ["Not measured yet: `python run.py bench scaling`."]
    return "\n\n".join(parts)


def fsdp_section(data: dict[str, Any]) -> str:
    """Return what steps of processes that share the weights took. data: results/benchmarks/fsdp.json."""
    if not data:
        return "Not measured yet: `python run.py bench fsdp`."
    found, size = data["environment"], data["size"]
    headings = ["method", "processes", "ms (20–80 %)", "GiB", "efficiency", "losses of one process"]
    rows = []
    for row in data["rows"]:
        if row["kind"] == "in turn":
            continue
        label = METHODS[row["method"]] + (", checkpointing" if row["checkpointing"] else "")
        processes = row["kind"] if row["kind"] == "one GPU" else f"{data['gpus']}, {row['kind']}"
        spread = f"{row['median_ms']:.0f} ({row['p20_ms']:.0f}–{row['p80_ms']:.0f})"
        memory = f"{row['peak_GiB']:.1f}" if "peak_GiB" in row else ""
        ratio = f"{row['efficiency']:.3f}" if row.get("efficiency") else ""
        same = ""
        if "first_other_loss" in row:
            other = row["first_other_loss"]
            same = "all, to the last bit" if other is None else f"until step {other}"
        rows.append([label, processes, spread, memory, ratio, same])
    title = f"### Shared weights: {data['gpus']} × {found['card']}"
    where = (
        f"PyTorch {found['torch']}, transformers {found['transformers']}. LLaMA-7B's dimensions, "
        f"{size['batch']} × {size['length']} tokens a process (`python run.py bench fsdp`):"
    )
    return "\n\n".join([title, where, grid("llrrrl", headings, rows), *_tried(data), *_drawn(data)])


def _tried(data: dict[str, Any]) -> list[str]:
    """Say what else was timed in the same loop."""
    said = []
    if ways := data.get("tried_lora_ms"):
        listed = "; ".join(f"{what} {ms:.0f} ms" for what, ms in ways.items())
        said.append(f"LoRA's step with one block at a time and other ways to gather: {listed}.")
    if pairs := data.get("tried_two_blocks_ms"):
        listed = "; ".join(f"{what} {as_it_is:.0f} and {aside:.0f} ms" for what, (as_it_is, aside) in pairs.items())
        said.append(f"Two blocks at a time, as it is, and copied out on a second stream: {listed}.")
    if groups := data.get("zero2_lora_ms"):
        one = groups["one GPU"]
        listed = "; ".join(f"{what} {ms:.0f} ms ({one / ms:.3f})" for what, ms in groups.items())
        said.append(f"ZeRO-2, LoRA, in the same loop: {listed}.")
    return said


def _drawn(data: dict[str, Any]) -> list[str]:
    """Say what a model gave that no GPU holds, if it was measured."""
    if "large" not in data:
        return []
    large, found = data["large"], []
    for row in large["rows"]:
        tokens = f"{row['batch']} × {large['size']['length']} tokens"
        found.append(f"{row['tokens_per_second']:,.0f} tokens/s and {row['peak_GiB']:.1f} GiB with {tokens}")
    return [
        f"LLaMA-3-70B's dimensions (80 layers, random weights drawn where they are kept) on {large['gpus']} × "
        f"{large['environment']['card']}, Dual LoRA with its dropout, checkpointing: {'; '.join(found)} a process."
    ]


def _machine(parts: dict[str, Any]) -> str:
    """Return what was measured with one number of GPUs."""
    found = parts["environment"]
    title = f"### {found['gpus']} × {found['card']}"
    versions = f"PyTorch {found['torch']}, DeepSpeed {found['deepspeed']}, transformers {found['transformers']}."
    tables = {"speed": _speed, "large": _large, "same": _same, "killed": _killed}
    return "\n\n".join([title, versions, *(table(parts[part]) for part, table in tables.items() if part in parts)])


def _gib(sizes: list[float]) -> str:
    return " / ".join(f"{size:.1f}" for size in sizes)


def _speed(part: dict[str, Any]) -> str:
    headings = ["method", "processes", "tokens/s (20–80 %)", "GiB of each process", "efficiency"]
    rows = []
    for method, label in METHODS.items():
        for name, row in part.get(method, {}).items():
            processes = "one GPU" if name == "one" else f"{row['world_size']}, {GROUPS[name]}"
            spread = f"{row['tokens_per_second']:,.0f} ({row['p20']:,.0f}–{row['p80']:,.0f})"
            if len(row.get("medians", ())) > 1:
                spread += f"; {len(row['medians'])} runs, {min(row['medians']):,.0f} to {max(row['medians']):,.0f}"
            ratio = f"{row['efficiency']:.3f}" if "efficiency" in row else ""
            if "earlier_efficiency" in row:
                ratio += f" ({row['earlier_efficiency']:.3f} in an earlier call)"
            rows.append([label, processes, spread, _gib(row["peak_GiB"]), ratio])
    title = "LLaMA-7B's dimensions, micro-batches of 32 × 128 tokens in every process:"
    return "\n\n".join([title, grid("llrrr", headings, rows), *_verdict(part)])


def _verdict(part: dict[str, Any]) -> list[str]:
    """Say which targets are met: the efficiencies above, and under fsdp Dual LoRA's no lower than LoRA's."""
    rows = {method: part[method] for method in METHODS if method in part}
    said = []
    for name, target in TARGETS.items():
        found = [own[name]["efficiency"] for own in rows.values() if name in own]
        if found:
            met = "met" if min(found) >= target else f"**missed** ({min(found):.3f})"
            said.append(f"{GROUPS[name]} at least {target:.2f}: {met}")
    dual, lora = (rows.get(method, {}).get("fsdp", {}).get("efficiency") for method in ("dual_lora", "lora"))
    if dual and lora:
        met = "met" if dual >= lora else "**missed**"
        said.append(f"Dual LoRA's under fsdp no lower than LoRA's: {met} ({dual:.3f} against {lora:.3f})")
    return [f"Targets: {'; '.join(said)}."] if said else []


def _large(part: dict[str, Any]) -> str:
    losses, adapter, group = part["loss"], part["adapter"], GROUPS[part["group"]]
    return (
        f"{part['layers']} layers of LLaMA-3-70B's dimensions ({part['parameters'] / 1e9:.1f} billion parameters, "
        f"{2 * part['parameters'] / 1e9:.0f} GB, random weights), Dual LoRA under {group} with gradient checkpointing: "
        f"{part['tokens_per_second']:,.0f} tokens/s, {_gib(part['peak_GiB'])} GiB; loss {losses[0][1]:.3f} -> "
        f"{losses[-1][1]:.3f} in {losses[-1][0]} steps; the saved adapter is whole ({adapter['elements']:,} elements "
        f"of {adapter['trained']:,} trained)."
    )


def _same(part: dict[str, Any]) -> str:
    headings = ["SmolLM2, against one GPU", "largest difference of a loss", "of the first ten", "validation loss"]
    rows = []
    for case, groups in part.items():
        for name in [name for name in GROUPS if isinstance(groups, dict) and name in groups]:
            row, (method, dtype) = groups[name], case.split(", ")
            held = "held" if row["within_bound"] else "**not held**"
            # Not a group: it shows the effect of another order of the same sums, and the bound does not apply to it.
            bound, held = ("", "for comparison") if name == "whole" else (f"{row['bound']:.0e}", held)
            identity = "same identity" if row["same_identity"] else "**another identity**"
            numbers = [f"{row[key]:.1e}" for key in ("largest", "largest_of_first_ten", "validation")]
            title = f"{METHODS[method]}, {dtype}, {GROUPS[name]}"
            rows.append([title, *numbers, bound, f"{held}, {identity}"])
    return grid("lrrrrl", [*headings, "bound", ""], rows)


def _killed(part: dict[str, Any]) -> str:
    seconds = part["seconds_until_all_gone"]
    when = f" after step {part['killed_after_step']}" if part["killed_after_step"] else ""
    gone = f" after {seconds:.1f} s (limit {part['bound_seconds']:.0f} s)" if seconds else ", which was not timed"
    ended = (
        f"A process of {GROUPS[part.get('group', 'zero2')]} killed (SIGKILL){when}: all processes were gone"
        f"{gone}, the record says "
        f"`{part['message']}`."
    )
    if "curve" not in part:
        return f"{ended} Its continuation was not measured."
    curve, twins = part["curve"], part["undisturbed"]
    return (
        f"{ended} The same command continued from step {part['resumed_from'][-1]}; the losses of all "
        f"{curve['steps']} steps differ from an undisturbed run's by at most {curve['largest']:.1e}, the validation "
        f"loss by {curve['validation']:.1e} (two undisturbed runs: {twins['largest']:.1e} and "
        f"{twins['validation']:.1e})."
    )
