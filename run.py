"""`python run.py model=llama2 task=commonsense method=dual_lora`: run one cell, or with -m a sweep of them.

Composes once, checks every cell, then starts the processes. A worker (`--worker FILE`, or
`--group FILE` for the parent of several) reads the resolved settings
that lie in its run folder and never composes.
"""

from __future__ import annotations

import sys


def main(arguments: list[str]) -> int:
    if arguments[:1] == ["--worker"]:
        from dual_lora.launch import work

        return work(arguments[1])
    if arguments[:1] == ["--group"]:
        from dual_lora.launch.group import work as work_group

        return work_group(arguments[1])
    from dual_lora.config import ConfigError
    from dual_lora.config.compose import compose

    try:
        cells = compose(arguments)
        if not cells:
            return 0
        from dual_lora.launch import launch

        return launch(cells)
    except ConfigError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
