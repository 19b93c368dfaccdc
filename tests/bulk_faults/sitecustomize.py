"""Read by each Python whose PYTHONPATH names this folder: images that kill, and a log of doings.

An image file whose name holds "poison" kills the process that opens it. Sockets, and
imports of ray and torch, are noted in the file that BULK_DOINGS names.
"""

from __future__ import annotations

import os
import signal
import sys
from typing import Any


def _hook(event: str, given: tuple[Any, ...]) -> None:
    if event == "open" and isinstance(given[0], str) and "poison" in os.path.basename(given[0]):
        os.kill(os.getpid(), signal.SIGKILL)
    doings = os.environ.get("BULK_DOINGS")
    noted = event == "import" and given[0] in ("ray", "torch")
    if doings and (noted or event.startswith("socket.")):
        descriptor = os.open(doings, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
        os.write(descriptor, f"{os.getpid()} {event} {given[:2]!r}\n".encode())
        os.close(descriptor)


sys.addaudithook(_hook)
