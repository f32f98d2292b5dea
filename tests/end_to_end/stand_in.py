"""Stands in for run.py where a benchmark makes runs: it copies a run that was made before, and loads no torch.

    python stand_in.py FOLDER WORD ... results=RESULTS

FOLDER: the results folder of one finished run. A group (launch.num_gpus=2) is two processes that sleep until the copy
is whole; if one of them is killed, the run is interrupted, and the same command then continues it.
"""

import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

made, results = Path(sys.argv[1]), Path(sys.argv[-1].removeprefix("results="))
with (made / "commands.txt").open("a") as commands:
    commands.write(" ".join(sys.argv[2:]) + "\n")
processes = next((int(word[16:]) for word in sys.argv if word.startswith("launch.num_gpus=")), 1)
[record_path], [run] = (made / "records").glob("*.json"), (made / "runs").iterdir()
record, lines = json.loads(record_path.read_text()), (run / "curves.jsonl").read_text().splitlines()
kept, record_path = results / "runs" / run.name, results / "records" / record_path.name
resumed = record_path.exists()
for folder in (kept, record_path.parent):
    folder.mkdir(parents=True, exist_ok=True)
sleeps = [sys.executable, "-c", "import time; time.sleep(600)", "--worker"]
group = [subprocess.Popen(sleeps, env={**os.environ, "RANK": str(rank)}) for rank in range(processes) if processes > 1]
dies = group and results.name == "killed-once" and not resumed
curves = kept / "curves.jsonl"
curves.write_text("".join(f"{line}\n" for line in lines[: len(lines) // 2 + 1 if dies else None]))
if dies:
    while all(process.poll() is None for process in group):
        time.sleep(0.01)
    record |= {"status": "interrupted", "message": "rank 1 was ended by SIGKILL"}
else:
    shutil.copytree(run / "adapter", kept / "adapter", dirs_exist_ok=True)
    record["execution"] |= {"world_size": processes, "resumed_from": [4] if resumed else []}
    record["cost"]["peak_memory_bytes"] *= processes
for process in group:
    process.kill()
    process.wait()
record_path.write_text(json.dumps(record))
sys.exit(130 if dies else 0)
