"""`sft-tune train`: one configuration, without a search."""

from __future__ import annotations

import json
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sft_tune.cli.lookup import one_trial
from sft_tune.cli.options import AsJson, FileStorage, StudyFile
from sft_tune.cli.output import console, print_json
from sft_tune.cli.stopping import EXIT_CODE, Stopping, say_at_once
from sft_tune.errors import UserError
from sft_tune.session import open_database

if TYPE_CHECKING:
    from rich.console import Console

    from sft_tune.run.engine import Worker
    from sft_tune.spec.config import TrialConfig
    from sft_tune.spec.study import StudySpec

RESULT = "result.json"


def train(
    file: StudyFile,
    settings: Annotated[
        list[str] | None,
        typer.Option(
            "--set", metavar="KEY=VALUE", show_default=False, help="A setting to change; repeat."
        ),
    ] = None,
    trial: Annotated[
        int | None,
        typer.Option(
            metavar="N", min=0, show_default=False, help="Configuration of a trial in the database."
        ),
    ] = None,
    seed: Annotated[
        int | None,
        typer.Option(
            metavar="S",
            min=0,
            max=2**31 - 1,
            show_default=False,
            help="Seed of the training. Default: that of the trial (of trial 0).",
        ),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output",
            "-o",
            metavar="DIR",
            show_default=False,
            help="Folder of checkpoints. Default: one for this configuration, beside the trials'.",
        ),
    ] = None,
    as_json: AsJson = False,
    storage: FileStorage = None,
) -> None:
    """Train one configuration, without a search.

    It is the default configuration of the study file, or that of a trial in its database.

    Ctrl-C saves and stops; the same command goes on.

    Example: sft-tune train study.yaml --set learning_rate=3e-5 --set epochs=8
    """
    from sft_tune.spec.load import load_study

    spec = load_study(file).spec
    config = changed(_base(spec, storage or spec.storage.url, trial), settings or [])
    if seed is not None:
        config = config.model_copy(update={"seed": seed})
    folder = output or _folder(spec, config)
    out = console(stderr=as_json)
    result = _finished(folder, config)
    if result is not None:
        out.print(f"already trained in {folder}; another -o trains it again", soft_wrap=True)
    else:
        result = _train(spec, config, folder, out)
    if as_json:
        print_json(result)
    else:
        from sft_tune.view.training import draw_result

        out.print(draw_result(config.objective.metric, result))


def changed(config: TrialConfig, settings: list[str]) -> TrialConfig:
    """Return ``config`` with ``settings``, each ``KEY=VALUE`` with the value as in a study file.

    Raises:
        UserError: for a key that is none, or a value that the setting does not admit.
    """
    from sft_tune.spec import wording
    from sft_tune.spec.checks import setting_rule
    from sft_tune.spec.config import TrialConfig
    from sft_tune.spec.yaml12 import parse

    data = config.model_dump()
    known = wording.settings()
    for text in settings:
        key, equals, written = text.partition("=")
        if key not in known:
            raise UserError(
                f"--set takes KEY=VALUE, a setting of `training` or model.KEY (got {text}); "
                + wording.did_you_mean(key, known)
            )
        if not equals:
            raise UserError(f"--set takes KEY=VALUE (got {text}); write {key}=VALUE")
        value = parse(f"value: {written}", "--set").data["value"]
        if rule := setting_rule(key, value):
            raise UserError(f"--set {key}: {rule} (got {wording.shown(value)})")
        section, _, name = key.rpartition(".")
        data[section or "training"][name] = value
    return TrialConfig.model_validate(data)


def _base(spec: StudySpec, url: str | None, trial: int | None) -> TrialConfig:
    from sft_tune.spec.config import TrialConfig, assemble, default_params

    if trial is None:
        return assemble(spec, default_params(spec), 0)
    with open_database(url) as db:
        row = one_trial(db, spec.name, trial)
    if row.config is None:
        raise UserError(f"trial {trial} of study {spec.name!r} has not begun; take another")
    return TrialConfig.model_validate(row.config)


def _folder(spec: StudySpec, config: TrialConfig) -> Path:
    """Return a folder of this configuration's own, so that the same command goes on in it."""
    from sft_tune.spec.paths import is_url

    artifacts = spec.storage.artifacts
    # What is trained by hand belongs to who sits here: where a URL is shared, it stays local.
    base = Path("sft_tune_runs" if artifacts is None or is_url(artifacts) else artifacts).absolute()
    return base / f"{spec.name}-train-{config.fingerprint()[:8]}-{config.seed}"


def _finished(folder: Path, config: TrialConfig) -> dict[str, Any] | None:
    """Return the result that an earlier run of ``config`` left in ``folder``, if there is one."""
    try:
        result: dict[str, Any] = json.loads((folder / RESULT).read_text("utf8"))
    except (FileNotFoundError, NotADirectoryError, json.JSONDecodeError):
        return None
    return result if result.get("config") == config.model_dump(mode="json") else None


def _train(spec: StudySpec, config: TrialConfig, folder: Path, out: Console) -> dict[str, Any]:
    from sft_tune.errors import WorkerError
    from sft_tune.run import messages
    from sft_tune.run.single import train_one
    from sft_tune.run.slots import unused_gpus
    from sft_tune.view.training import rung_line

    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(
            f"the folder of checkpoints cannot be made (got {folder}: {error.strerror}); "
            "give another with -o"
        ) from None
    rungs: list[dict[str, Any]] = []
    metric = config.objective.metric
    out.print(f"training in {folder}", soft_wrap=True)
    if text := unused_gpus(spec.resources):
        out.print(text, soft_wrap=True)

    def on_rung(evaluation: dict[str, Any]) -> None:
        rungs.append({name: v for name, v in evaluation.items() if name != "event"})
        out.print(rung_line(metric, evaluation), soft_wrap=True)

    with Stopping() as stopping:

        def on_worker(worker: Worker) -> None:
            # From a thread: the signal may come while the main thread holds the worker's lock.
            send = threading.Thread(target=worker.send, args=(messages.STOP,), daemon=True)
            stopping.attach(send.start, worker.kill, say_at_once)

        try:
            outcome = train_one(config, folder, spec.resources, on_rung, on_worker)
        except WorkerError:
            if stopping.count > 1:
                raise typer.Exit(EXIT_CODE) from None
            raise
    if outcome["reason"] == "stopped":
        out.print(f"saved after step {outcome['steps']}; the same command goes on")
        raise typer.Exit(EXIT_CODE)
    result = {
        **{name: value for name, value in outcome.items() if name != "event"},
        "rungs": rungs,
        "config": config.model_dump(mode="json"),
    }
    (folder / RESULT).write_text(json.dumps(result, indent=2), encoding="utf8")
    return result
