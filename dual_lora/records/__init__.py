"""Records and their files: what one holds (`schema`), who writes it (`writing`), how files stay whole (`storage`).

`lock` lets one process at a time work on a run, `redaction` keeps secrets out. Nothing here imports torch.
"""

from dual_lora.records.learning_rate import learning_rates
from dual_lora.records.schema import SCHEMA, Status
from dual_lora.records.storage import (
    UNREADABLE,
    digest,
    dumps,
    file_sha256,
    read_json,
    replacing,
    set_aside,
    write_json,
    write_text,
)
from dual_lora.records.writing import build, origin_of_this_process, read, record_path, run_folder, weights_file

__all__ = [
    "SCHEMA",
    "UNREADABLE",
    "Status",
    "build",
    "digest",
    "dumps",
    "file_sha256",
    "learning_rates",
    "origin_of_this_process",
    "read",
    "read_json",
    "record_path",
    "replacing",
    "run_folder",
    "set_aside",
    "weights_file",
    "write_json",
    "write_text",
]
