"""The command line: runs a command and tells its failure in one sentence."""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Sequence
from typing import NoReturn

import click

from vqdistill.errors import VqdistillError


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Run the command line and exit: 0 done, 2 bad input (one sentence says what), 70 a defect, 130 interrupted."""
    try:
        from vqdistill.cli.commands import cli  # here, so that what it cannot load is told in a sentence too
    except ImportError as error:
        _fail(str(error), 2)
    try:
        with cli.make_context("vqdistill", list(sys.argv[1:] if arguments is None else arguments)) as context:
            cli.invoke(context)
        sys.stdout.flush()
    except click.exceptions.Exit as done:  # --help and --version
        sys.exit(done.exit_code)
    except KeyboardInterrupt:
        _fail("interrupted", 130)
    except click.ClickException as error:
        _fail(error.format_message(), 2)
    except BrokenPipeError:  # the reader of our output has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(0)
    except MemoryError:
        _fail("there is not enough memory for this", 2)
    except VqdistillError as error:
        _fail(str(error), 2)
    except OSError as error:
        where = f"{error.filename}: " if error.filename is not None else ""
        _fail(f"{where}{error.strerror or error}", 2)
    except Exception as error:
        if os.environ.get("VQDISTILL_DEBUG") == "1":
            traceback.print_exc()
        _fail(
            f"unexpected {type(error).__name__}: {error}; this is a defect, please report it with the output of"
            " VQDISTILL_DEBUG=1",
            70,
        )
    sys.exit(0)


def _fail(message: str, code: int) -> NoReturn:
    print(f"vqdistill: {' '.join(message.split())}", file=sys.stderr)
    sys.exit(code)
