"""``python -m spatialembed``."""

from __future__ import annotations

import sys

from spatialembed.command.main import main

if __name__ == "__main__":
    sys.exit(main())
