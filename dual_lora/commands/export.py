"""Write all records as tables for other programs, or what one run trained as a plain transformers checkpoint.

    python run.py export out=FOLDER             # runs, measurements and curves, each as CSV and Parquet
    python run.py export run=RUN_ID out=FOLDER  # a checkpoint: to share it, or to start another run from it
    python run.py model=small_gpt2 model.path=FOLDER task=webnlg method=lora

The tables have one value a row; scores are as records hold them (fractions, unless unbounded). `experiments` of a run
names the files in experiments/ that it is a run of.

The weights are those of full fine-tuning, or the base with the adapter's update merged in. A GPT-2 whose attention was
split gets its fused layers back. A classification head is written too, but the run that starts from it initializes a
new one.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from dual_lora import shipped
from dual_lora.commands.merge import new_folder
from dual_lora.commands.parser import Parser, one_of
from dual_lora.config import ConfigError
from dual_lora.report import records, terminal, tidy
from dual_lora.report.workspace import Workspace

CHECKPOINTS = ("last", "best_loss", "best_dev", "best_heldout")


def options(parser: Parser) -> None:
    parser.add_argument("--run", metavar="RUN_ID", help="whose record and run folder are in --results")
    parser.add_argument("--out", type=Path, required=True, help="a new folder")
    parser.add_argument(
        "--checkpoint", type=one_of(*CHECKPOINTS), help=f"{', '.join(CHECKPOINTS)}; default: the record's headline's"
    )
    parser.add_argument("--results", type=Path, default=shipped.results(), help="where records and runs are")


def run(options: argparse.Namespace) -> int:
    """Return 0, or 2 if a record is refused. Raises `ConfigError`: `export`; `FileExistsError`: `out` exists."""
    if options.run is None:
        return _records(options)
    with new_folder(options.out) as part:
        export(options.results, options.run, part, options.checkpoint)
    print(options.out)
    return 0


def _records(options: argparse.Namespace) -> int:
    if options.checkpoint:
        raise ConfigError("checkpoint= is of one run: give run=RUN_ID too")
    held, refused = records.read_all(options.results / "records")
    experiments = Workspace(shipped.home()).experiments()
    for path in tidy.write(held, experiments.values(), options.out):
        print(path)
    return terminal.name_refused(refused)


def export(results: Path, run_id: str, out: Path, checkpoint: str | None = None) -> None:
    """Write the trained model of a run and its tokenizer into the folder `out`.

    Raises `ConfigError`: no finished record, weights that are not on this machine, a base that is not the run's.
    """
    from dual_lora import methods, models, tasks
    from dual_lora.records import read, record_path, run_folder, weights_file
    from dual_lora.runs.lifecycle import load_config

    known = read(record_path(str(results), run_id))
    if known is None or known["status"] != "finished":
        raise ConfigError(f"run={run_id}: {results / 'records'} has no finished record of that name")
    folder = run_folder(str(results), run_id)
    checkpoint = checkpoint or known["scores"]["headline"]["checkpoint"]
    weights = weights_file(folder, checkpoint)
    if not weights.is_file():
        raise ConfigError(
            f"run={run_id}: {weights} is not here (run folders are not committed, a run without training has none, and "
            "a protocol keeps only the checkpoints it reports); give another checkpoint=, or repeat the run here"
        )
    config = load_config(folder / "config.json")
    if models.fingerprint(config.model) != known["identity"]["model"]["fingerprint"]:
        where = f"model.path={config.model.path}" if config.model.path else f"model={config.model.name}"
        raise ConfigError(f"run={run_id}: {where} no longer holds the weights that this run started from")
    head = tasks.load(config).head
    held = "float32" if config.method.trains in ("everything", "biases") else known["identity"]["dtype"]
    loaded = models.load(config.model, head, dtype=held, seed=config.seed)
    model = methods.apply(
        loaded.model, config.method, model_config=config.model, head=head, seed=config.seed, kernel=config.kernel
    )
    methods.load_trainable_state(model, methods.stored_state(weights))
    models.fuse_attention(methods.export_merged(model)).save_pretrained(out)
    loaded.tokenizer.save_pretrained(out)
    source = {"run_id": run_id, "checkpoint": checkpoint}
    (out / "exported_from.json").write_text(json.dumps(source) + "\n", encoding="utf-8")
