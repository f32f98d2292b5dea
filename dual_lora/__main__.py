"""`python -m dual_lora`: what `python run.py` is in a checkout."""

import sys

from dual_lora.commands import main

if __name__ == "__main__":
    sys.exit(main())
