"""The program `sft-tune`: its commands, and the border at which exceptions become exit codes."""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Sequence
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from sft_tune.cli import (
    advise,
    best,
    cache,
    check,
    compare,
    confirm,
    control,
    dashboard,
    delete,
    enqueue,
    export,
    import_,
    init,
    list_,
    plot,
    prune,
    schema,
    show,
    start,
    status,
    submit,
    train,
    trials,
    worker,
)
from sft_tune.cli import report as report_
from sft_tune.errors import SftTuneError

RULES = {
    "int_parsing": "must be a whole number",
    "float_parsing": "must be a number",
    "greater_than_equal": "must be at least {ge}",
    "less_than_equal": "must be at most {le}",
}
"""Our words for pydantic's names of the rules that the options of commands have."""


class Commands(TyperGroup):
    """The group of all commands; whatever a command raises ends here, in words and a code."""

    def main(
        self,
        args: Sequence[str] | None = None,
        prog_name: str | None = None,
        complete_var: str | None = None,
        standalone_mode: bool = True,
        windows_expand_args: bool = True,
        **extra: Any,
    ) -> Any:
        """Run the command of ``args`` and exit: 0, 2 for the user's mistake, 130 for Ctrl-C, 1."""
        given = list(sys.argv[1:] if args is None else args)
        # Taken at any place of the line, as the message that recommends it says nothing of places.
        debug = "--debug" in given
        rest = [arg for arg in given if arg != "--debug"] or ["--help"]
        try:
            code = super().main(
                rest, prog_name or "sft-tune", complete_var, standalone_mode=False, **extra
            )
            sys.stdout.flush()
        except BrokenPipeError:
            # The reader has gone (`| head`). Python would complain once more when it exits.
            os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
            code = 1
        except Exception as error:
            if debug:
                traceback.print_exc()
            code = report(error)
        sys.exit(code if isinstance(code, int) else 0)


def report(error: Exception) -> int:
    """Write ``error`` to standard error, in a line or two, and return the exit code it means."""
    usage = getattr(error, "format_message", None)
    if isinstance(error, SftTuneError):
        text, code = str(error), error.exit_code
    elif usage is not None:  # of typer: an unknown option, a missing argument
        text, code = _refused(error) or usage(), getattr(error, "exit_code", 2)
        context = getattr(error, "ctx", None)
        text += f"\n`{context.command_path} --help` explains" if context else ""
    elif isinstance(error, typer.Abort):
        text, code = "nothing was done", 1
    else:
        what = " ".join(str(error).split())
        text = f"{type(error).__name__}: {what}\nthis is unexpected; run with --debug for the whole"
        code = 1
    _write_error(text)
    return code


def _refused(error: Any) -> str | None:
    """Return why typer refused a value, as place and rule; None for an error of another kind.

    typer has pydantic read the values, and passes on what that says of them.
    """
    details = getattr(error.__cause__, "errors", None)
    if details is None:
        return None
    detail = details()[0]
    name = error.param.opts[0]
    place = name if name.startswith("-") else error.param.metavar
    what, limits = detail["type"], detail.get("ctx", {})
    if what == "value_error":  # of a list of words; it names the value itself
        return f"{place}: {str(limits['error']).rstrip('.')}"
    rule = RULES.get(what, detail["msg"]).format(**limits)
    return f"{place}: {rule} (got {detail['input']})"


def _write_error(text: str) -> None:
    from rich.text import Text

    from sft_tune.cli.output import console

    console(stderr=True).print(Text.assemble(("error: ", "bold red"), text), soft_wrap=True)


app = typer.Typer(
    name="sft-tune",
    cls=Commands,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _print_version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        print(f"sft-tune {version('sft_tune')}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool,
        typer.Option(
            "--version", is_eager=True, callback=_print_version, help="Print the version."
        ),
    ] = False,
    debug: Annotated[
        bool, typer.Option("--debug", help="Show the traceback of an error; at any place.")
    ] = False,
) -> None:
    """Fine-tune a pretrained model on labelled data, with the best settings a budget can find."""


for _command in (
    *(init.init, check.check, start.start, train.train),
    *(submit.submit, worker.worker, control.stop, control.pause, control.resume),
    *(enqueue.enqueue, enqueue.retry, prune.prune_checkpoints),
    *(list_.list_, status.status, trials.trials, show.show, best.best),
    *(confirm.confirm, compare.compare, advise.advise, report_.report, plot.plot, export.export),
    *(import_.import_, dashboard.dashboard, delete.delete, cache.cache, schema.schema),
):
    app.command(_command.__name__.rstrip("_").replace("_", "-"))(_command)


def main() -> None:
    """Run the program; the console script's door."""
    app()
