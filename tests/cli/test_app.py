from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest
import typer

from sft_tune import errors
from sft_tune.cli import app
from sft_tune.cli.app import report
from tests.cli.conftest import PROGRAM, Run, Tiny

COMMANDS = (
    *("init", "check", "start", "train"),
    *("submit", "worker", "stop", "pause", "resume", "enqueue", "retry", "prune-checkpoints"),
    *("list", "status", "trials", "show", "best", "confirm", "compare", "advise"),
    *("report", "plot", "export", "import", "dashboard", "delete", "cache", "schema"),
)


def test_help_lists_every_command_in_the_order_of_use(run: Run) -> None:
    listed = run("--help").stdout.split("Commands:\n")[1]
    assert tuple(line.split()[0] for line in listed.splitlines()) == COMMANDS
    assert run().stdout == run("--help").stdout


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help_with_an_example(run: Run, command: str) -> None:
    text = run(command, "--help").stdout
    assert f"Example: sft-tune {command}" in text
    assert run(command, "-h").stdout == text


def test_the_version_is_the_packages(run: Run) -> None:
    from importlib.metadata import version

    assert run("--version").stdout == f"sft-tune {version('sft_tune')}\n"


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (["bset"], "No such command 'bset'. Did you mean 'best'?\n`sft-tune --help` explains"),
        (["best"], "Missing argument 'STUDY'.\n`sft-tune best --help` explains"),
        (["best", "x", "--jsno"], "No such option"),
        (
            ["trials", "x", "--format", "xml"],
            "error: --format: 'xml' is not one of 'table', 'csv', 'json', 'parquet'",
        ),
        (["init", "--task", "x"], "--task: 'x' is not one of 'image-classification', 'text-c"),
        (["show", "x", "abc"], "error: N: must be a whole number (got abc)\n"),
        (["train", "x", "--trial", "-3"], "error: --trial: must be at least 0 (got -3)\n"),
        (["start", "x", "--hours", "two"], "error: --hours: must be a number (got two)\n"),
        (["dashboard", "--port", "99999"], "error: --port: must be at most 65535 (got 99999)\n"),
    ],
)
def test_a_wrong_command_line_is_said_in_two_lines(run: Run, args: list[str], said: str) -> None:
    result = run(*args, code=2)
    assert result.stdout == ""
    assert result.stderr.startswith("error: ")
    assert said in result.stderr
    assert len(result.stderr.splitlines()) == 2


@pytest.mark.parametrize("command", ["best", "trials", "status", "delete"])
def test_a_missing_database_or_study_is_the_users_mistake(
    run: Run, tiny: Tiny, command: str
) -> None:
    missing = run(command, "tiny", code=2)
    assert missing.stderr.startswith("error: no study database at ")
    unknown = run(command, "tony", "--storage", tiny.storage, code=2)
    assert "did you mean 'tiny'?" in unknown.stderr
    assert "Traceback" not in unknown.stderr


def test_a_password_is_never_printed(run: Run) -> None:
    url = "postgresql://tuner:hunter2@127.0.0.1:1/studies"
    for debug in ([], ["--debug"]):
        result = run("list", "--storage", url, *debug, code=2)
        assert "tuner:***@127.0.0.1" in result.stderr
        assert "hunter2" not in result.output


@pytest.mark.parametrize(
    ("error", "code", "text"),
    [
        (errors.UserError("give a name"), 2, "error: give a name\n"),
        (errors.TrialError("it failed"), 1, "error: it failed\n"),
        (typer.Abort(), 1, "error: nothing was done\n"),
        (
            ValueError("two\nlines"),
            1,
            "error: ValueError: two lines\nthis is unexpected; run with --debug for the whole\n",
        ),
        (errors.UserError("[bold]x[/] " + "y" * 200), 2, f"error: [bold]x[/] {'y' * 200}\n"),
    ],
)
def test_an_error_becomes_words_and_a_code(
    capsys: pytest.CaptureFixture[str], error: Exception, code: int, text: str
) -> None:
    assert report(error) == code
    assert capsys.readouterr() == ("", text)


@pytest.mark.parametrize("place", ["before", "after"])
def test_debug_shows_the_traceback_wherever_it_stands(run: Run, place: str) -> None:
    args = ["--debug", "best", "x"] if place == "before" else ["best", "x", "--debug"]
    result = run(*args, code=2)
    assert "Traceback (most recent call last)" in result.stderr
    assert result.stderr.splitlines()[-1].startswith("error: no study database at ")


def test_an_unexpected_error_is_ours(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    from sft_tune.store.database import Database

    def broken(*args: Any, **kwargs: Any) -> None:
        raise ZeroDivisionError("division by zero")

    monkeypatch.setattr(Database, "open", broken)
    result = run("list", code=1)
    assert result.stderr == (
        "error: ZeroDivisionError: division by zero\n"
        "this is unexpected; run with --debug for the whole\n"
    )


def test_ctrl_c_is_130_without_words(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    from sft_tune.store.database import Database

    def interrupted(*args: Any, **kwargs: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Database, "open", interrupted)
    assert run("list", code=130).output == ""


def test_a_reader_that_goes_early_leaves_no_complaint(tiny: Tiny) -> None:
    program = subprocess.Popen(
        [PROGRAM, "schema"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert program.stdout is not None
    assert program.stderr is not None
    program.stdout.close()
    with program.stderr:
        assert program.stderr.read() == ""
    assert program.wait() == 1


def test_quick_commands_load_neither_torch_nor_optuna(tiny: Tiny) -> None:
    heavy = ("torch", "optuna", "pandas", "plotly", "transformers", "numpy", "alembic")
    lines = [["--help"], ["list"], ["status", "tiny"], ["trials", "tiny"], ["best", "tiny"]]
    code = (
        "import sys\n"
        "from sft_tune.cli import app\n"
        f"for args in {lines!r}:\n"
        f"    storage = [] if args == ['--help'] else ['--storage', {tiny.storage!r}]\n"
        "    try:\n        app([*args, *storage])\n"
        "    except SystemExit as ended:\n        print('code', ended.code)\n"
        f"print(*[m for m in {heavy!r} if m in sys.modules], file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr.strip()) == (0, "")
    assert done.stdout.count("code 0") == len(lines)


def test_the_help_loads_no_library_but_typer() -> None:
    code = (
        "import sys; sys.argv = ['sft-tune', '--help']\n"
        "from sft_tune.cli import main\n"
        "try:\n    main()\n"
        "finally:\n    print([m for m in ('sqlalchemy', 'rich', 'yaml') if m in sys.modules],"
        " file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stderr.strip() == "[]"


def test_the_app_is_the_console_script() -> None:
    done = subprocess.run([PROGRAM, "--version"], capture_output=True, text=True, check=False)
    assert done.stdout.startswith("sft-tune ")
    assert app.info.name == "sft-tune"
