"""The process of a worker: loads the model, says what it found, then answers until nobody asks.

python -m spatialembed.bulk.worker SETTINGS    JSON, see ``driver._settings``
"""

from __future__ import annotations

import ctypes
import json
import logging
import os
import queue
import signal
import sys
import threading
import traceback
import warnings
from contextlib import suppress
from typing import IO

from spatialembed.bulk.process import Message, receive, send
from spatialembed.bulk.sources import Input
from spatialembed.errors import INPUT, RESOURCE, SpatialEmbedError


def main(text: str) -> None:
    """text: the settings. Ends the process."""
    source, sink = open(0, "rb"), open(os.dup(1), "wb")  # noqa: SIM115  until it ends
    _end_with_parent()
    os.dup2(2, 1)  # what a library prints goes to the log
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for who asks
    questions: queue.SimpleQueue[Message] = queue.SimpleQueue()

    def listen() -> None:
        try:
            while True:
                questions.put(receive(source)[0])
        except (EOFError, OSError, ValueError):
            os._exit(0)  # whoever asked has gone, and what is put is put whole

    threading.Thread(target=listen, daemon=True).start()
    # Of a million images nobody reads the warnings: faults are rows.
    logging.getLogger("spatialembed").setLevel(logging.ERROR)
    warnings.simplefilter("ignore")
    try:
        from spatialembed.bulk.shard import Worker  # torch

        worker = Worker(json.loads(text))
        send(sink, worker.facts())
        while True:
            question = questions.get()
            if "image" in question:
                send(sink, *worker.alone(Input(*question["image"])))
            else:
                send(sink, worker.shard(question["shard"]))
    except SpatialEmbedError as error:
        _tell(sink, error)
    except MemoryError:
        _tell(sink, SpatialEmbedError("out_of_memory", "no memory left", "", RESOURCE))
    except BrokenPipeError:
        pass
    except OSError as error:
        _tell(sink, SpatialEmbedError("system", str(error), "", INPUT))
    except BaseException:
        traceback.print_exc()
    os._exit(1)


def _end_with_parent() -> None:
    """On Linux a killed asker ends this process, even one that is stopped, or stuck in a decoder.

    Elsewhere ``listen`` alone does, as soon as Python runs. If the asker has gone before this, the
    pipe says so.
    """
    if sys.platform == "linux":
        with suppress(OSError, AttributeError):
            ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG


def _tell(sink: IO[bytes], error: SpatialEmbedError) -> None:
    fault = [error.code, error.message, error.remedy, error.exit_code]
    with suppress(BrokenPipeError):
        send(sink, {"error": fault})


if __name__ == "__main__":
    main(sys.argv[1])
