from __future__ import annotations

import io
import json
from datetime import UTC, datetime
from pathlib import Path

import pytest
import typer

from sft_tune.cli.output import PIPE_WIDTH, confirm, console, print_json


def test_json_is_what_every_reader_accepts(capsys: pytest.CaptureFixture[str]) -> None:
    print_json(
        {
            "nan": float("nan"),
            "values": (1, float("inf"), 2.5, None, True),
            "when": datetime(2026, 3, 1, 12, 0, 0, 5, tzinfo=UTC),
            "where": Path("/a/b"),
            3: "größer",
        }
    )
    text = capsys.readouterr().out
    assert json.loads(text) == {
        "nan": None,
        "values": [1, None, 2.5, None, True],
        "when": "2026-03-01T12:00:00+00:00",
        "where": "/a/b",
        "3": "größer",
    }
    assert "größer" in text


def test_a_pipe_is_wide_and_a_given_width_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("COLUMNS", raising=False)
    assert console().width == PIPE_WIDTH
    monkeypatch.setenv("COLUMNS", "72")
    assert console().width == 72


def test_text_is_printed_as_it_is(capsys: pytest.CaptureFixture[str]) -> None:
    console().print("[bold]no markup[/bold] :smile: 1 of 2")
    assert capsys.readouterr().out == "[bold]no markup[/bold] :smile: 1 of 2\n"


@pytest.mark.parametrize("answer", ["n\n", ""])
def test_a_question_that_is_declined_ends_its_line(
    answer: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO(answer))
    with pytest.raises(typer.Abort):
        confirm("all of it?")
    assert capsys.readouterr().out == "all of it? [y/N]: \n"
