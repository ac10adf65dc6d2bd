"""The command line: ``vitrim methods``, ``inspect``, ``bench`` and ``demo``, each loaded when it is used."""

from __future__ import annotations

import difflib
import dis
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from cyclopts import App, CycloptsError

import vitrim

VERBS = {
    "demo": "Compare every method with the dense model on real images, offline: accuracy, GFLOPs, speed.",
    "methods": "List the token reduction methods, or explain one.",
    "inspect": "Show what reductions do to one image: tokens, GFLOPs, predictions, pictures.",
    "bench": "Measure accuracy, FLOPs and time of methods against the dense model.",
    "schedule": "Find the token counts per block that lose least at a share of the dense model's time or FLOPs.",
    "tune": "List the parameter-efficient tuning methods with what they train, or explain one.",
    "data": "List the data sets, check one on disk, split a CSV, write a fake twin.",
    "train": "Train a model by a recipe, or resume a run.",
    "eval": "Evaluate a run or a weights file: accuracy, GFLOPs, throughput; record its reduction patterns.",
    "analyze": "Compare the traces of runs pair by pair; relate similarity to accuracy: tables, figures, a page.",
    "draw": "Draw how tokens are reduced, for print: tokens, soft maps, depth, methods x stages, rates, layers.",
    "features": "Measure features and attention by block: CKA, distance, entropy, rank; draw saliency maps.",
    "runs": "List and filter training runs.",
    "sweep": "Train every combination of options, here, on Slurm or on Ray.",
    "report": "Write a page about runs: table, accuracy against cost, curves, gradient stability.",
    "export": "Write a reduced model to an ONNX file or a PyTorch program, check it and time it.",
}

# Verbs with verbs of their own are applications.
APPS = {"bench": "vitrim.cli.benches:benches", "data": "vitrim.cli.data:data"}


def build_app() -> App:
    """The application; verbs are named by import path, so that ``--help`` and ``--version`` do not load PyTorch."""
    app = App(name="vitrim", help=vitrim.__doc__, version=vitrim.__version__, help_format="plaintext")
    for verb, summary in VERBS.items():
        app.command(APPS.get(verb, f"vitrim.cli.{verb}:{verb}"), name=verb, help=summary)
    return app


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and give the exit code: 0, 2 for wrong input, 130 after Ctrl-C.

    Wrong input is told in one line, without a traceback (``VITRIM_DEBUG=1`` shows it); anything unexpected keeps its own.
    """
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    if arguments and arguments[0] not in {*VERBS, "--help", "-h", "--version"}:
        # Here, because the parser would import every verb to say it.
        near = difflib.get_close_matches(arguments[0], VERBS, n=1)
        hint = f"did you mean '{near[0]}'?" if near else f"there are: {', '.join(VERBS)}"
        print(f"vitrim: unknown command '{arguments[0]}'; {hint}", file=sys.stderr)
        return 2
    app = build_app()
    app.suppress_keyboard_interrupt = False
    try:
        return app(arguments, exit_on_error=False, print_error=False, result_action="return_int_as_exit_code_else_zero")
    except CycloptsError as error:
        verb = f" {arguments[0]}" if arguments[0] in VERBS else ""
        print(f"vitrim: {' '.join(str(error).split())} (vitrim{verb} --help says what there is)", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("\ninterrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:
        # The reader (head, less) has seen enough; closing quietly needs stdout out of the interpreter's way.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except Exception as error:
        if os.environ.get("VITRIM_DEBUG") or not is_ours(error):
            raise
        print(f"vitrim: {' '.join(str(error).split())}", file=sys.stderr)
        return 2


def is_ours(error: BaseException) -> bool:
    """Whether the message was written for the user: by a ``raise`` of this package, or by the file system about a path."""
    if isinstance(error, OSError) and error.filename is not None:
        return True
    trace = error.__traceback__
    if trace is None:
        return False
    while trace.tb_next is not None:
        trace = trace.tb_next
    code = trace.tb_frame.f_code
    here = Path(__file__).resolve().parents[1] in Path(code.co_filename).resolve().parents
    # A TypeError of a wrong call inside the package is a bug, and must show itself; only raise statements are meant.
    return here and code.co_code[trace.tb_lasti] == dis.opmap["RAISE_VARARGS"]


if __name__ == "__main__":
    sys.exit(main())
