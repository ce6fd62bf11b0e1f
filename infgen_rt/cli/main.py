"""The command `infgen-rt`: its subcommands and exit codes."""

import signal
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import NoReturn

import click

from infgen_rt.cli.cache import cache
from infgen_rt.cli.console import BAD_INPUT, FAILED, INTERRUPTED, SIGNALLED, complain
from infgen_rt.cli.decode import decode
from infgen_rt.cli.devices import devices
from infgen_rt.cli.displays import displays
from infgen_rt.cli.info import info
from infgen_rt.cli.plan import plan
from infgen_rt.cli.serve import serve
from infgen_rt.cli.spaces import spaces
from infgen_rt.cli.unpack import unpack
from infgen_rt.cli.view import view
from infgen_rt.common.signals import TERMINATING, handled, numbers
from infgen_rt.errors import InfGenError, InputError
from infgen_rt.version import __version__


@click.group(invoke_without_command=True, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="infgen-rt")
@click.pass_context
def cli(context: click.Context) -> None:
    """Decode diffusion latents into pictures of any size.

    The exit code is 0 for success, 1 if the work failed, 2 for wrong input and 130 after an interruption (143 after
    SIGTERM, 129 after SIGHUP). A picture file is complete, or it does not exist.
    """
    if context.invoked_subcommand is None:
        click.echo(context.get_help())


for command in (decode, plan, view, serve, displays, spaces, info, devices, unpack, cache):
    cli.add_command(command)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command.

    Args:
        arguments: the command line without the program's name. None for the process's own.

    Returns:
        The exit code.
    """
    try:
        with _terminating():
            return cli.main(arguments, prog_name="infgen-rt", standalone_mode=False) or 0
    except click.Abort:
        return complain("interrupted", INTERRUPTED)
    except click.ClickException as error:
        if isinstance(error, click.NoSuchOption) and "--help" in (near := error.possibilities or []):
            near.remove("--help")  # it is near to any short name
        return complain(error.format_message(), BAD_INPUT)
    except InputError as error:
        return complain(str(error), BAD_INPUT)
    except InfGenError as error:
        return complain(str(error), FAILED)
    except MemoryError:
        return complain("out of memory: pass a smaller --memory", FAILED)


@contextmanager
def _terminating() -> Iterator[None]:
    """Handle SIGTERM and SIGHUP like Ctrl-C, so that no incomplete files stay behind.

    An app that stops its helper process sends SIGTERM. A terminal that is closed sends SIGHUP. Under `nohup`, SIGHUP
    stays ignored. If an app calls `main` in another thread, signals are left to the app.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    heard = [
        number
        for number in numbers(TERMINATING)
        if number == signal.SIGTERM or signal.getsignal(number) != signal.SIG_IGN
    ]
    with handled(heard, _on_terminate):
        yield


def _on_terminate(number: int, frame: object) -> NoReturn:
    sys.exit(SIGNALLED + number)
