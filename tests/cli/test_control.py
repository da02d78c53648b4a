"""`submit`, `worker`, `stop`, `pause`, `resume`, `enqueue`, `retry`, `prune-checkpoints`."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from sqlalchemy import create_engine

from sft_tune.cli import worker as worker_command
from sft_tune.cli.stopping import Stopping
from sft_tune.run import calibrate
from sft_tune.store.database import Database
from sft_tune.store.reads import TrialRow, study_row, trial_rows
from tests.chaos.server import OwnServer
from tests.cli.conftest import PROGRAM, Run, Tiny, program_environment

pytestmark = pytest.mark.timeout(120)

STUDY = """\
name: {name}
task: image-classification
data: {{source: "sklearn:digits", train_limit: 64, validation_limit: 64}}
model: {{name: "builtin:convnet", weights: none}}
training: {{epochs: {epochs}, batch_size: 16, learning_rate: 3e-3}}
space: {{learning_rate: {{low: 1e-3, high: 1e-2}}}}
sampler: {{name: random}}
pruner: {{name: none}}
objective: {{rungs: 4}}
budget: {{trials: 3}}
resources: {{devices: cpu, trials_per_device: 1, threads_per_trial: 1}}
"""


def write(name: str, epochs: int = 1) -> str:
    Path(f"{name}.yaml").write_text(STUDY.format(name=name, epochs=epochs))
    return f"{name}.yaml"


def rows(name: str) -> list[TrialRow]:
    db = Database.open("sft_tune.db", create=False)
    try:
        return trial_rows(db, name)
    finally:
        db.dispose()


def ended(name: str) -> str | None:
    db = Database.open("sft_tune.db", create=False)
    try:
        return study_row(db, name).ended
    finally:
        db.dispose()


def started(path: str, *options: str) -> subprocess.Popen[str]:
    """Return `start` of the study file ``path``, its first trial begun."""
    process = subprocess.Popen(
        [PROGRAM, "start", "--plain", path, *options],
        stdout=subprocess.PIPE,
        text=True,
        env=program_environment(Path("cache").absolute()),
    )
    assert process.stdout is not None
    for line in process.stdout:
        if "trial 0 started" in line:
            break
    return process


class Worker:
    """`sft-tune worker` as a process; its lines are waited for."""

    def __init__(self, *args: str) -> None:
        environment = program_environment(Path("cache").absolute())
        command = [PROGRAM, "worker", "--devices", "cpu", "--threads", "1", *args]
        self.process = subprocess.Popen(
            command, stdout=subprocess.PIPE, text=True, env=environment, stderr=subprocess.STDOUT
        )
        self.seen: list[str] = []

    def until(self, pattern: str) -> str:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.seen.append(line)
            if re.search(pattern, line):
                return line
        raise AssertionError(f"no line like {pattern!r} in:\n{''.join(self.seen)}")

    def end(self, number: int = signal.SIGTERM) -> int:
        if self.process.poll() is None:
            self.process.send_signal(number)
        assert self.process.stdout is not None
        self.seen += self.process.stdout.readlines()
        return self.process.wait(timeout=60)


@pytest.fixture
def worker() -> Iterator[Callable[..., Worker]]:
    started: list[Worker] = []

    def start(*args: str) -> Worker:
        started.append(Worker(*args))
        return started[-1]

    yield start
    for each in started:
        each.process.kill()
        each.process.wait()
        if each.process.stdout is not None:
            each.process.stdout.close()


def test_a_worker_serves_what_was_submitted_by_priority_and_ends_when_idle(
    run: Run, worker: Callable[..., Worker]
) -> None:
    told = run("submit", write("low"), "--no-check").stdout
    assert "study low is registered in sqlite:///" in told
    run("submit", write("high"), "--no-check", "--priority", "5")
    process = worker("--idle-minutes", "0")
    process.until("nothing to do any more")
    assert process.process.wait(timeout=60) == 0
    lines = [line for line in process.seen if "started" in line]
    assert ["high" in line for line in lines] == [True] * 3 + [False] * 3
    for name in ("low", "high"):
        assert [row.reason for row in rows(name)] == ["completed"] * 3
        assert ended(name) == "trials"


def test_studies_of_equal_priority_take_turns(run: Run, worker: Callable[..., Worker]) -> None:
    for name in ("one", "two"):
        run("submit", write(name), "--no-check")
    process = worker("--idle-minutes", "0")
    process.until("nothing to do any more")
    order = [line.split()[1] for line in process.seen if "started" in line]
    assert order == ["one:", "two:"] * 3


def test_sigterm_hands_a_trial_back_and_another_worker_goes_on_with_it(
    run: Run, worker: Callable[..., Worker]
) -> None:
    run("submit", write("long", epochs=600), "--no-check", "--trials", "1")
    first = worker("--study", "long")
    first.until("trial 0 started")
    assert first.end() == 143
    assert any("trial 0 saved at step" in line for line in first.seen)
    (row,) = rows("long")
    assert (row.phase, row.lease_owner) == ("interrupted", None)
    second = worker("--idle-minutes", "0")
    second.until(r"long: trial 0 started: learning_rate=[\d.]+$")
    told = second.until("trial 0 completed")
    how = r"long: trial 0 completed with accuracy 0\.\d{4} in [\dms. ]+, the best so far"
    assert re.search(how, told)
    assert told.endswith("(1 of 1)\n")
    second.until("nothing to do any more")
    assert rows("long")[0].attempts == 1


def test_a_worker_of_one_study_measures_how_many_trials_run_at_once(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = Path(write("open"))
    file.write_text(file.read_text().replace(", trials_per_device: 1, threads_per_trial: 1", ""))
    run("submit", file, "--no-check")
    monkeypatch.setattr(calibrate, "_search", lambda *_: 2)
    command = ("worker", "--devices", "cpu", "--study", "open", "--idle-minutes", "0")
    assert "open: 2 at once on the CPU, as a measurement finds fastest" in run(*command).stdout
    assert {row.device for row in rows("open")} == {"CPU #1", "CPU #2"}


def test_pause_stop_resume_and_enqueue_from_another_shell(
    run: Run, worker: Callable[..., Worker]
) -> None:
    run("submit", write("long", epochs=5000), "--no-check")
    process = worker()
    process.until("trial 0 started")
    assert run("pause", "long").stdout == "study long saves its trials and waits\n"
    process.until("trial 0 saved at step")
    assert "paused; `sft-tune resume long` lets it go on" in run("status", "long").stdout
    asked = run("enqueue", "long", "learning_rate=0.005").stdout
    assert asked.splitlines() == [
        "asked for: learning_rate=0.005",
        "study long is paused: this waits for `sft-tune resume long`",
    ]
    assert run("resume", "long").stdout == "study long goes on when a runner serves it\n"
    process.until("trial 0 started")
    told = run("status", "long").stdout
    assert re.search(r"runners +\S+ \(process \d+\), 1 slot: trial 0 on CPU", told)
    serving = json.loads(run("status", "long", "--json").stdout)["runners"]
    assert [runner["slots"] for runner in serving] == [["CPU"]]
    run("stop", "long", "--trial", "0")
    process.until("trial 0 stopped")
    process.until("trial 1 started")
    assert rows("long")[1].params == {"learning_rate": 0.005}
    run("stop", "long")
    process.until("trial 1 saved at step")
    assert process.end() == 143
    states = [(row.reason, row.phase) for row in rows("long")]
    assert states == [("stopped", "ended"), (None, "interrupted")]


def test_start_that_is_stopped_from_another_shell_says_so(run: Run) -> None:
    path = write("long", epochs=5000)
    process = started(path, "--trials", "4")
    run("stop", "long")
    assert process.stdout is not None
    with process.stdout:
        rest = process.stdout.read()
    assert process.wait() == 130
    assert "stopped after 0 of 4 trials; `sft-tune start long.yaml --trials 4` goes on" in rest


def test_a_finished_study_is_neither_stopped_nor_paused(run: Run) -> None:
    run("start", write("done"))
    for command in ("stop", "pause", "resume"):
        assert (
            run(command, "done").stdout == "study done is finished; nothing of it runs or waits\n"
        )
    db = Database.open("sft_tune.db", create=False)
    assert study_row(db, "done").wanted is None
    db.dispose()
    asked = run("enqueue", "done", "learning_rate=0.005").stdout
    assert "`sft-tune worker --study done`, takes it up" in asked
    run("stop", "done")
    asked = run("enqueue", "done", "learning_rate=0.006").stdout
    assert "study done is stopped: this waits for `sft-tune resume done`" in asked
    assert run("resume", "done").stdout == "study done goes on when a runner serves it\n"


def test_a_study_whose_runner_was_killed_runs_no_more(run: Run) -> None:
    path = write("long", epochs=5000)
    process = started(path)
    assert process.stdout is not None
    assert run("list").stdout.splitlines()[1].split()[:2] == ["long", "running"]
    process.kill()
    process.wait()
    process.stdout.close()
    assert run("list").stdout.splitlines()[1].split()[:2] == ["long", "stopped"]
    (told,) = json.loads(run("list", "--json").stdout)
    assert told["running"] is False
    status = " ".join(run("status", "long").stdout.split())
    assert "state stopped" in status
    # Beside trial 0 others may have begun, in one stack with it.
    assert re.search(r"waiting trial 0 at 0 %.*: interrupted, the next runner goes on", status)


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (["enqueue", "tiny", "learning_rat=1e-2"], "did you mean learning_rate?"),
        (["enqueue", "tiny", "learning_rate=5"], "learning_rate: must be one of"),
        (["enqueue", "tiny", "epochs=2"], "epochs: is not in the space, so it cannot vary"),
        (["enqueue", "tiny", "learning_rate"], "enqueue takes KEY=VALUE"),
        (["retry", "tiny"], "retry takes either --failed or --trial N"),
        (["retry", "tiny", "--trial", "0"], "trial 0 of study 'tiny' has not failed"),
        (["stop", "tiny", "--trial", "0"], "has no running trial 0"),
        (["stop", "nothing"], "nothing"),
        (["worker", "--study", "nothing"], "nothing"),
        (["worker", "--devices", "gpu"], "--devices must be auto, cpu, or GPU numbers"),
        (["prune-checkpoints", "tiny", "--keep", "-1"], "--keep"),
    ],
)
def test_what_cannot_be_is_told_in_words(run: Run, tiny: Tiny, args: list[str], said: str) -> None:
    told = run(*args, "--storage", tiny.storage, code=2).stderr
    assert said in " ".join(told.split())


def test_prune_checkpoints_keeps_the_best(run: Run) -> None:
    run("start", write("three"))
    before = [row for row in rows("three") if row.checkpoint]
    assert len(before) == 3
    told = run("prune-checkpoints", "three", "--keep", "1").stdout
    assert re.match(r"2 checkpoints deleted, [\d.]+ .B freed", told)
    best = max(before, key=lambda row: row.value or 0.0)
    assert [row.number for row in rows("three") if row.checkpoint] == [best.number]
    assert [p.parent.name for p in Path("sft_tune_runs").rglob("*.safetensors")] == [
        f"trial-{best.number:05d}"
    ]
    assert run("prune-checkpoints", "three").stdout.startswith("0 checkpoints deleted")
    assert os.path.isfile(rows("three")[best.number].checkpoint or "")


def test_a_worker_waits_for_a_database_that_is_away(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(worker_command, "AWAY_SECONDS", 0)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        engine = create_engine(f"postgresql+psycopg://me@127.0.0.1:{free.getsockname()[1]}/x")
        asked: list[int] = []

        def serving() -> str:
            asked.append(0)
            if len(asked) < 3:
                engine.connect()  # nobody listens there
            return "idle"

        assert worker_command.whenever_it_answers(serving, Stopping()) == "idle"
        assert len(asked) == 3
        assert capsys.readouterr().out.count("tried again in 0 s, Ctrl-C leaves") == 2
        told_to_stop = Stopping()
        told_to_stop.count = 1
        asked.clear()
        assert worker_command.whenever_it_answers(serving, told_to_stop) == "stopped"

    def broken() -> str:
        raise ValueError("a fault of ours")

    with pytest.raises(ValueError, match="a fault of ours"):
        worker_command.whenever_it_answers(broken, Stopping())


@pytest.mark.slow
def test_a_worker_outlives_a_database_server_that_is_away_for_long(
    run: Run, worker: Callable[..., Worker], tmp_path_factory: pytest.TempPathFactory
) -> None:
    server = OwnServer(tmp_path_factory.mktemp("postgresql"))
    try:
        url = server.new_database()
        process = worker("--storage", url)
        process.until("worker on")
        server.stop()
        try:
            process.until("tried again in")
        finally:
            server.start()
        run("submit", write("later"), "--no-check", "--storage", url)
        process.until("3 of 3")
        assert process.end() == 143
    finally:
        server.remove()
