"""The command line: which verb is asked for, with which settings, and how it ended.

Exit codes: 0 fine, 2 usage or configuration, 3 input, 4 model or checkpoint, 5 out of disk or
memory, 6 done but some inputs failed, 130 and 143 interrupted and saved.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from spatialembed import __version__
from spatialembed.command import verbs
from spatialembed.command.options import (
    BenchOptions,
    ConvertOptions,
    DemoOptions,
    DoctorOptions,
    EvaluateOptions,
    ExportOptions,
    PredictOptions,
    ScenesOptions,
    StreetsOptions,
    TuneOptions,
)
from spatialembed.command.session import (
    escape_output,
    of_system,
    plain_messages,
    stop_on_sigterm,
    tell,
)
from spatialembed.errors import USAGE, SpatialEmbedError
from spatialembed.serve.options import ServeOptions


class Verb(NamedTuple):
    """A function, the type of its settings, and which of these are given without a flag."""

    run: Callable[[Any], int]
    settings: Callable[[], type]  # called late: those of training import torch
    positional: str = ""

    @property
    def help(self) -> str:
        """The first words of ``--help``."""
        return str(self.run.__doc__)


def _train_options() -> type:
    from spatialembed.training.options import TrainOptions

    return TrainOptions


VERBS = {
    "demo": Verb(verbs.demo, lambda: DemoOptions),
    "doctor": Verb(verbs.doctor, lambda: DoctorOptions, "data"),
    "train": Verb(verbs.train, _train_options),
    "evaluate": Verb(verbs.evaluate, lambda: EvaluateOptions),
    "tune": Verb(verbs.tune, lambda: TuneOptions),
    "predict": Verb(verbs.predict, lambda: PredictOptions, "sources"),
    "serve": Verb(verbs.serve, lambda: ServeOptions),
    "export": Verb(verbs.export, lambda: ExportOptions),
    "bench": Verb(verbs.bench, lambda: BenchOptions),
    "convert": Verb(verbs.convert, lambda: ConvertOptions, "file out"),
    "data scenes": Verb(verbs.scenes, lambda: ScenesOptions),
    "data streets": Verb(verbs.streets, lambda: StreetsOptions),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line ``argv``, by default that of the process; returns its exit code."""
    words = list(sys.argv[1:] if argv is None else argv)
    escape_output()
    with stop_on_sigterm(), plain_messages():
        try:
            code = _dispatch(words)
            sys.stdout.flush()  # a reader that has gone is found here, not at exit
            return code
        except SpatialEmbedError as error:
            return tell(error)
        except BrokenPipeError:  # who read our output has gone, as `| head` does
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return 0
        except (OSError, MemoryError) as error:
            return tell(of_system(error))
        except KeyboardInterrupt:
            print("interrupted", file=sys.stderr)
            return 130
        except SystemExit as stop:
            return int(stop.code or 0)


def _dispatch(words: Sequence[str]) -> int:
    if not words or words[0] in ("-h", "--help"):
        print(_usage())
        return 0 if words else USAGE
    if words[0] == "--version":
        print(f"spatialembed {__version__}")
        return 0
    name = next((n for n in VERBS if words[: n.count(" ") + 1] == n.split()), None)
    from spatialembed.command.arguments import parse
    from spatialembed.errors import nearest

    if name is None:
        given = " ".join(word for word in words[:2] if not word.startswith("-"))
        best = nearest(given, list(VERBS))
        if not best and words[0] != "data":  # the second word may be a path
            given = words[0]
            best = nearest(given, list(VERBS))
        remedy = f"the nearest is spatialembed {best}" if best else "see spatialembed --help"
        raise SpatialEmbedError("unknown_verb", f"{given}: no such verb", remedy, USAGE)
    verb = VERBS[name]
    rest = words[name.count(" ") + 1 :]
    options: Any = parse(
        verb.settings(), rest, verb=name, help=verb.help, positional=verb.positional
    )
    return verb.run(options)


def _usage() -> str:
    lines = "\n".join(f"  {name:<13}{verb.help}" for name, verb in VERBS.items())
    return (
        "usage: spatialembed VERB ...\n\nInstance segmentation by spatial embeddings.\n\n"
        f"{lines}\n\nspatialembed VERB --help shows the settings of a verb. --version"
    )
