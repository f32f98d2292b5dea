"""`python run.py model=llama2 task=commonsense method=dual_lora`: do one run, or with -m a sweep of runs.

`python run.py COMMAND ...` is everything else: tables, status, tune, evaluate and more (`python run.py --help`).
An installed package has the same commands as `dual-lora` and `python -m dual_lora`.
"""

import sys

from dual_lora.commands import main

if __name__ == "__main__":
    sys.exit(main())
