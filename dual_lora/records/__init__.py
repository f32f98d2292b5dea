"""Records and their files: what one holds (`schema`), who writes and who reads it, how files stay whole (`storage`).

`lock` lets one process at a time work on a run, `redaction` keeps secrets out. Nothing here imports torch.
"""

from dual_lora.records.evidence import file_of, files, read, read_folder, run_id
from dual_lora.records.learning_rate import learning_rates
from dual_lora.records.schema import SCHEMA, Status
from dual_lora.records.storage import (
    UNREADABLE,
    digest,
    dumps,
    file_sha256,
    read_json,
    read_steps,
    replacing,
    set_aside,
    write_json,
    write_text,
)
from dual_lora.records.writing import (
    build,
    command_of_this_process,
    origin_of_this_process,
    pack,
    record_path,
    run_folder,
    weights_file,
    write,
)
