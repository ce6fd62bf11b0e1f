"""The command `infgen-rt`: its subcommands, and what an error's exit code is."""

import signal
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import NoReturn

import click

from infgen_rt.cli.cache import cache
from infgen_rt.cli.console import BAD_INPUT, FAILED, INTERRUPTED, complain
from infgen_rt.cli.decode import decode
from infgen_rt.cli.devices import devices
from infgen_rt.cli.displays import displays
from infgen_rt.cli.info import info
from infgen_rt.cli.plan import plan
from infgen_rt.errors import InfGenError, InputError
from infgen_rt.version import __version__

_ENDING = "SIGTERM", "SIGHUP"
# Shells add a signal's number to it.
_SIGNALLED = 128


@click.group(invoke_without_command=True, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="infgen-rt")
@click.pass_context
def cli(context: click.Context) -> None:
    """Decode diffusion latents into pictures of any size.

    The exit code is 0 when all is done, 1 when the work failed, 2 for bad input and 130 when interrupted
    (143 by SIGTERM, 129 by SIGHUP). A picture
    file is there whole or not at all.
    """
    if context.invoked_subcommand is None:
        click.echo(context.get_help())


for command in (decode, plan, displays, info, devices, cache):
    cli.add_command(command)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command.

    Args:
        arguments: the command line without the program's name; None for the process's own.

    Returns:
        The exit code.
    """
    try:
        with _terminating():
            return cli.main(arguments, prog_name="infgen-rt", standalone_mode=False) or 0
    except click.Abort:
        return complain("interrupted", INTERRUPTED)
    except click.ClickException as error:
        return complain(error.format_message(), BAD_INPUT)
    except InputError as error:
        return complain(str(error), BAD_INPUT)
    except InfGenError as error:
        return complain(str(error), FAILED)
    except MemoryError:
        return complain("out of memory: pass a smaller --memory", FAILED)


@contextmanager
def _terminating() -> Iterator[None]:
    """End as after Ctrl-C on the other signals that ask for it: nothing half-written is to stay behind.

    An app that stops its helper sends SIGTERM, and a terminal that is closed SIGHUP, unless `nohup` was told to ignore
    it. In a thread of an app that calls `main` it is the app that attends to signals.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {}
    for name in _ENDING:
        number = getattr(signal, name, None)
        if number is not None and (name == "SIGTERM" or signal.getsignal(number) != signal.SIG_IGN):
            before[number] = signal.signal(number, _on_terminate)
    try:
        yield
    finally:
        for number, handler in before.items():
            # None: it was set by other than Python, and cannot be set by Python.
            signal.signal(number, signal.SIG_DFL if handler is None else handler)


def _on_terminate(number: int, frame: object) -> NoReturn:
    sys.exit(_SIGNALLED + number)
