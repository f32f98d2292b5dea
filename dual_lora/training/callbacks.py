"""What watches a training: curves, checkpoints worth keeping, signals, divergence. None synchronises per step."""

from __future__ import annotations

import json
import math
import sys
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from tqdm.auto import tqdm
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from dual_lora.config import ConfigError
from dual_lora.distributed import processes
from dual_lora.records import read_json, read_steps, replacing, write_json, write_text
from dual_lora.training.checkpoints import step_of

# A loss that has grown to this many times its start (plus one) will not come back.
_EXPLODED = 4.0


class Diverged(RuntimeError):
    """The loss is not finite, or has exploded; the message names the step."""


class Curves(TrainerCallback):
    """Loss of every step, learning rate, gradient norm, validation loss, tokens and seconds, kept in a file.

    Losses stay on the device until the next log, save or end, so a step costs no synchronisation. Each checkpoint has
    a copy of the file as it was then, from which a resume continues: no step counts twice, and none is lost.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.resumed_from: list[int] = []
        self._lines: list[dict[str, Any]] = []
        self._micro: list[torch.Tensor] = []
        self._steps: list[torch.Tensor] = []
        self._tokens: list[torch.Tensor | int] = []
        self._done = 0
        self._begun = time.perf_counter()

    def forget_after(self, checkpoint: Path | None) -> None:
        """Drop what was recorded after the checkpoint that training continues from (all of it without one).

        Raises `ConfigError` if losses before it are missing.
        """
        step = step_of(checkpoint)
        lines = []
        if checkpoint is not None:
            kept = checkpoint / self.path.name  # an older version wrote none
            lines = [line for line in read_steps(kept if kept.exists() else self.path) if line["step"] <= step]
            if sum(len(line.get("losses", ())) for line in lines) != step:
                raise ConfigError(
                    f"{self.path} lacks losses of steps before {step}, where training continues; move "
                    f"{checkpoint.parent} away to train anew"
                )
            self.resumed_from = [*(line["resumed"] for line in lines if "resumed" in line), step]
            lines.append({"step": step, "resumed": step})
        if processes.is_main():
            _write(self.path, lines)
        self._lines, self._done, self._begun = lines, step, time.perf_counter()

    def copy_to(self, checkpoint: Path) -> None:
        _write(checkpoint / self.path.name, self._lines)

    def seconds_before(self, checkpoint: Path | None) -> float:
        """Training seconds spent before the checkpoint that this process continued from."""
        if checkpoint is None:
            return 0.0
        resumed = max(index for index, line in enumerate(self._lines) if "resumed" in line)
        return sum(line.get("seconds", 0.0) for line in self._lines[:resumed])

    def count(self, inputs: dict[str, Any]) -> None:
        """Note the tokens of a micro-batch: all, and those that are no padding."""
        mask = inputs.get("attention_mask")
        if mask is not None:
            self._tokens += [mask.numel(), mask.sum().detach()]

    def add(self, loss: torch.Tensor) -> None:
        """Note the loss of a micro-batch, already scaled so that the micro-batches of a step add up to its loss."""
        self._micro.append(loss)

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        self._steps.append(torch.stack(self._micro).double().sum())  # in float64 the order of a sum shows nowhere
        self._micro = []

    def on_log(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **given: Any) -> None:
        logs = given["logs"]
        if "learning_rate" in logs or "grad_norm" in logs:
            self.flush(state, learning_rate=logs.get("learning_rate"), gradient_norm=logs.get("grad_norm"))

    def on_evaluate(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **given: Any) -> None:
        self.flush(state)
        losses = {key: value for key, value in given["metrics"].items() if key.endswith("loss")}
        values = {key.removeprefix("eval_"): value for key, value in losses.items()}
        if values and state.is_world_process_zero:
            finite = {name: _json(float(value)) for name, value in values.items()}
            self._append({"step": state.global_step, "validation": finite})
        for value in values.values():
            if not math.isfinite(value):
                raise Diverged(
                    f"the validation loss after step {state.global_step} is {value}; try a lower recipe.learning_rate"
                )

    def on_train_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        self.flush(state)

    def flush(self, state: TrainerState, **values: float | None) -> None:
        """Move pending losses to the file. Raises `Diverged` naming the first bad step."""
        if not self._steps and not any(values.values()):
            return
        losses: list[float] = []
        if self._steps:
            pending = torch.stack(self._steps)
            if processes.world_size() > 1:
                torch.distributed.all_reduce(pending)
                pending /= processes.world_size()
            losses = pending.float().tolist()
        first = self._done + 1
        self._steps, self._done = [], self._done + len(losses)
        counted = [int(value) for value in self._tokens]
        tokens, useful = processes.total([sum(counted[::2]), sum(counted[1::2])])
        self._tokens = []
        now = time.perf_counter()
        line: dict[str, Any] = {"step": state.global_step, "first": first, "losses": [_json(loss) for loss in losses]}
        line.update({key: _json(float(value)) for key, value in values.items() if value is not None})
        line.update(tokens=tokens, useful=useful, seconds=now - self._begun)
        self._begun = now
        if state.is_world_process_zero:
            self._append(line)
        else:
            self._lines.append(line)
        for step, loss in enumerate(losses, first):
            if not math.isfinite(loss):
                raise Diverged(f"the loss of step {step} is {loss}; try a lower recipe.learning_rate")
        norm = values.get("gradient_norm")
        if norm is not None and not math.isfinite(float(norm)):
            raise Diverged(f"the gradient norm at step {state.global_step} is {norm}; try a lower recipe.learning_rate")
        start = self._start()
        if losses and start is not None and sum(losses) / len(losses) > _EXPLODED * start + 1.0:
            raise Diverged(
                f"the loss has grown from {start:.3f} to {sum(losses) / len(losses):.3f} at step {state.global_step}; "
                "try a lower recipe.learning_rate"
            )

    def _start(self) -> float | None:
        for line in self._lines:
            if line.get("losses") and line["losses"][0] is not None:
                return float(line["losses"][0])
        return None

    def _append(self, line: dict[str, Any]) -> None:
        self._lines.append(line)
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")

    @property
    def tokens(self) -> int:
        return sum(line.get("tokens", 0) for line in self._lines)

    @property
    def useful_tokens(self) -> int:
        return sum(line.get("useful", 0) for line in self._lines)

    def summary(self, points: int) -> dict[str, list[list[float]]]:
        """Return curves as [step, value] pairs. Train loss longer than `points` is averaged over windows of steps."""
        losses = [
            (step, loss)
            for line in self._lines
            for step, loss in enumerate(line.get("losses", ()), line.get("first", 0))
            if loss is not None
        ]
        width = max(1, math.ceil(len(losses) / points))
        windows = [losses[at : at + width] for at in range(0, len(losses), width)]
        curves: dict[str, list[list[float]]] = {
            "train_loss": [[window[-1][0], _round(sum(loss for _, loss in window) / len(window))] for window in windows]
        }
        norms = [
            [line["step"], _round(line["gradient_norm"])]
            for line in self._lines
            if line.get("gradient_norm") is not None
        ]
        curves["gradient_norm"] = norms[:: max(1, math.ceil(len(norms) / points))]
        for line in self._lines:
            for name, value in line.get("validation", {}).items():
                curve = curves.setdefault("validation_loss" if name == "loss" else f"validation_{name}", [])
                if value is not None and (not curve or curve[-1][0] != line["step"]):
                    curve.append([line["step"], _round(value)])
        return curves


def _write(path: Path, lines: list[dict[str, Any]]) -> None:
    write_text(path, "".join(json.dumps(line) + "\n" for line in lines))


def _json(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _round(value: float) -> float:
    """Eight significant digits: more than float32 has, and records stay readable."""
    return float(f"{value:.8g}")


class Bar(TrainerCallback):
    """One bar with the time left and the last loss, in place of the Trainer's printed dictionaries."""

    def __init__(self) -> None:
        self._bar: Any = None

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        if state.is_local_process_zero:
            # Where nobody watches (a log file), a line every ten seconds is enough.
            every = 0.1 if sys.stderr.isatty() else 10.0
            self._bar = tqdm(
                total=state.max_steps, initial=state.global_step, desc="training", unit="step", mininterval=every
            )

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        if self._bar is not None:
            self._bar.update(state.global_step - self._bar.n)

    def on_log(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **given: Any) -> None:
        values = {name: given["logs"].get(name) for name in ("loss", "eval_loss")}
        if self._bar is not None:
            self._bar.set_postfix(
                {name: f"{float(value):.3f}" for name, value in values.items() if value is not None}, refresh=False
            )

    def on_train_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        if self._bar is not None:
            self._bar.close()


def _best(values: Any) -> dict[str, Any]:
    return {"step": int(values["step"]), "loss": float(values["loss"])}


class Selection(TrainerCallback):
    """Keeps the trainable weights of the checkpoint with the lowest validation loss, as safetensors.

    They are written while training goes on, which `wait` ends.
    """

    def __init__(self, folder: Path, state_of: Callable[[torch.nn.Module], dict[str, torch.Tensor]]) -> None:
        self.folder = folder
        self._state_of = state_of
        self._writing: Future[None] | None = None
        self._best: dict[str, Any] = {}
        self.last_step = -1

    def forget_after(self, checkpoint: Path | None) -> None:
        """Forget a choice that was made after the checkpoint that training continues from."""
        step = step_of(checkpoint)
        fix = f"move {self.folder.parent / 'checkpoints'} away to train anew"
        best = read_json(self.folder / "best_loss.json", _best, fix) if step else None
        self._best = best if best is not None and best["step"] <= step else {}

    def on_evaluate(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **given: Any) -> None:
        loss = given["metrics"].get("eval_loss")
        if loss is None:
            return
        self.last_step = state.global_step
        if self._best and not loss < self._best["loss"]:
            return
        self._best = {"step": state.global_step, "loss": loss}
        weights = self._state_of(given["model"])  # every rank takes part: sharded weights are gathered
        if state.is_world_process_zero:
            self.wait()
            thread = ThreadPoolExecutor(1)
            self._writing = thread.submit(self._write, weights, self._best)
            thread.shutdown(wait=False)  # it ends with what it writes

    def _write(self, weights: dict[str, torch.Tensor], best: dict[str, Any]) -> None:
        with replacing(self.folder / "best_loss.safetensors") as part:
            save_file(weights, part)
        write_json(self.folder / "best_loss.json", best)

    def wait(self) -> None:
        """Return once the last choice is in its files. Raises what kept it from them, as `OSError` of a full disk."""
        writing, self._writing = self._writing, None
        if writing is not None:
            writing.result()

    def files(self) -> dict[str, Path]:
        self.wait()
        path = self.folder / "best_loss.safetensors"
        return {"best_loss": path} if self._best and path.exists() else {}
