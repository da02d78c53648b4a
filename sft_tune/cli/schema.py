"""`sft-tune schema`: the study file's JSON Schema, and its reference."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from sft_tune.errors import UserError


def schema(
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", metavar="FILE", help="Write there; default: print."),
    ] = None,
    reference: Annotated[
        bool, typer.Option("--reference", help="Every key as a Markdown table, for people.")
    ] = False,
) -> None:
    """Print the JSON Schema of study files.

    Editors complete and check study files with it.

    Example: sft-tune schema -o study.schema.json
    """
    if reference:
        from sft_tune.spec.reference import reference_markdown

        text = reference_markdown()
    else:
        import json

        from sft_tune.spec.schema import json_schema

        text = json.dumps(json_schema(), indent=2, ensure_ascii=False)
    text = text.rstrip("\n") + "\n"
    if output is None:
        print(text, end="")
        return
    try:
        output.write_text(text, encoding="utf8")
    except OSError as error:
        raise UserError(f"--output: cannot write {output}: {error.strerror}") from None
    if not reference:
        print(
            f"wrote {output}; study files name it in their first line:\n"
            f"# yaml-language-server: $schema={output}"
        )
