from __future__ import annotations

import base64
import json
import re
import shutil
import signal
import socket
import sqlite3
import subprocess
import time
import urllib.error
import urllib.request
from pathlib import Path

import pandas as pd
import pytest
import yaml

from sft_tune.spec.load import load_study
from tests.cli.conftest import PROGRAM, Run, Tiny, program_environment


def test_init_alone_writes_a_study_that_runs_without_a_network(run: Run) -> None:
    text = run("init").stdout
    assert text.startswith("wrote study.yaml\n")
    assert "sft-tune start study.yaml" in text
    spec = load_study("study.yaml").spec
    assert (spec.data.source, spec.model.name) == ("sklearn:digits", "builtin:convnet")


def test_init_overwrites_nothing(run: Run) -> None:
    Path("mine.yaml").write_text("precious")
    result = run("init", "-o", "mine.yaml", code=2)
    assert (
        result.stderr == "error: --output: mine.yaml is there already; give another name with -o\n"
    )
    assert Path("mine.yaml").read_text() == "precious"


def test_init_takes_the_task_from_the_data_and_the_paths_from_the_file(run: Run) -> None:
    Path("reviews.csv").write_text("text,label\ngood,1\nbad,0\n")
    Path("studies").mkdir()
    run("init", "--data", "reviews.csv", "--name", "mine", "-o", "studies/reviews.yaml")
    written = yaml.safe_load(Path("studies/reviews.yaml").read_text())
    assert written["name"] == "mine"
    assert written["task"] == "text-classification"
    assert written["data"]["source"] == "../reviews.csv"
    assert written["model"]["name"].startswith("transformers:")


TEXT = ["a good film", "not worth the time", "I would see it again", "dull from the start"]
TOKENS, TAGS = [["Ann", "sleeps"], ["no", "one", "else"]], [["B-PER", "O"], ["O", "O", "O"]]


@pytest.mark.parametrize(
    ("columns", "task", "settings"),
    [
        (
            {"review": TEXT, "stars": [5, 1, 5, 1]},
            "text-classification",
            {"text_column": "review", "label_column": "stars"},
        ),
        ({"text": TEXT, "label": [1, 0, 1, 0]}, "text-classification", {"text_column": "text"}),
        (
            {"id": [1, 2, 3, 4], "a b: #": TEXT, "kind": [*"xyxy"]},
            "text-classification",
            {"text_column": "a b: #", "label_column": "kind"},
        ),
        (
            {"text": TEXT, "score": [4.5, 0.5, 3.0, 1.2]},
            "text-regression",
            {"text_column": "text", "label_column": "score"},
        ),
        (
            {"text": TEXT, "tags": [["a"], [], ["a", "b"], ["b"]]},
            "text-classification",
            {"label_column": "tags", "multi_label": True},
        ),
        (
            {"text": TEXT, "rude": [0, 1, 0, 1], "spam, ham": [0, 0, 1, 1]},
            "text-classification",
            {"multi_label": True, "label_columns": ["rude", "spam, ham"]},
        ),
        (
            {"words": TOKENS, "tags": TAGS},
            "token-classification",
            {"tokens_column": "words", "tags_column": "tags"},
        ),
        (
            {"prompt": TEXT, "completion": ["yes", "no", "no", "yes"]},
            "causal-lm",
            {"prompt_column": "prompt", "completion_column": "completion"},
        ),
        (
            {"id": [1], "chat": [[{"role": "user", "content": "a"}]]},
            "causal-lm",
            {"messages_column": "chat"},
        ),
        (
            {"file": ["a/1.png", "b/2.jpg"], "kind": ["x", "y"]},
            "image-classification",
            {"image_column": "file", "label_column": "kind"},
        ),
    ],
)
def test_init_finds_task_and_columns_in_the_rows(
    run: Run, columns: dict[str, list[object]], task: str, settings: dict[str, object]
) -> None:
    frame = pd.DataFrame(columns)
    folder = Path("mail")
    folder.mkdir()
    frame.to_json(folder / "train.jsonl", orient="records", lines=True)
    frame.to_json(folder / "test.jsonl", orient="records", lines=True)
    frame.to_parquet("mail.parquet")
    for source in ("mail", "mail.parquet"):
        file = f"{source}.yaml"
        assert "needs a change" not in run("init", "--data", source, "-o", file).stdout
        written = yaml.safe_load(Path(file).read_text())
        assert written["task"] == task
        assert written["name"].startswith("mail-")
        assert written["data"].items() >= settings.items()
        assert load_study(file).spec.task == task


def test_init_says_what_it_chose_and_lists_the_columns_where_it_is_not_clear(run: Run) -> None:
    pd.DataFrame({"review": TEXT, "stars": [5, 1, 5, 1]}).to_csv("reviews.csv", index=False)
    run("init", "--data", "reviews.csv", "-o", "a.yaml")
    assert "# text_column: `review` is the one that holds texts" in Path("a.yaml").read_text()
    unclear = {"one": TEXT, "two": TEXT[::-1], "p": [1, 1, 2, 2], "q": [3, 3, 4, 4]}
    pd.DataFrame(unclear).to_csv("unclear.csv", index=False)
    run("init", "--data", "unclear.csv", "-o", "b.yaml")
    text = Path("b.yaml").read_text()
    assert "# Set data.text_column: it is not clear from the columns" in text
    assert "# Set data.label_column: it is not clear" in text
    assert "`one`, `two`, `p`, `q`" in text
    assert yaml.safe_load(text)["data"]["text_column"] == "text"


@pytest.mark.parametrize("text", ["", "{not json\n", "[1]\n", "\xff"])
def test_init_leaves_it_to_check_to_say_what_is_wrong_with_a_file(run: Run, text: str) -> None:
    Path("data.jsonl").write_bytes(text.encode("latin-1"))
    run("init", "--data", "data.jsonl")
    written = yaml.safe_load(Path("study.yaml").read_text())
    assert (written["task"], written["data"]["text_column"]) == ("text-classification", "text")


def test_init_refuses_a_table_that_its_ending_does_not_describe(run: Run) -> None:
    Path("semi.csv").write_text("review;stars\ngood film;1\n")
    refused = run("init", "--data", "semi.csv", code=2).stderr
    assert "semi.csv does not look separated by ',': its header is 'review;stars'" in refused
    assert not Path("study.yaml").exists()


def test_init_refuses_a_model_that_torchvision_does_not_have(run: Run) -> None:
    stderr = run("init", "--model", "torchvision:resnet999", code=2).stderr
    assert "torchvision has no classification model 'resnet999' (did you mean resnet" in stderr
    assert not list(Path().iterdir())


def test_init_says_what_the_file_still_needs(run: Run) -> None:
    text = run("init", "--data", "photos", "--model", "torchvision:resnet18").stdout
    assert "it needs a change before it can run:" in text
    assert "data.source" in text


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (["--task", "text-classification"], "--data"),
        (["--model", "resnet18"], "resnet18"),
        (["-o", "no/such/folder/x.yaml"], "cannot write"),
    ],
)
def test_init_refuses_what_it_cannot_write(run: Run, args: list[str], said: str) -> None:
    assert said in run("init", *args, code=2).stderr
    assert not list(Path().iterdir())


def test_init_tells_of_the_missing_data_beside_the_wrong_model(run: Run) -> None:
    args = ("init", "--model", "torchvision:resnet18", "--data")
    told = run(*args, "nothere.csv", code=2).stderr.splitlines()
    assert told[0].startswith("error: a model for text-classification is transformers:")
    assert told[1] == "--data: no such file or folder: nothere.csv; give one that is there"
    Path("here.csv").touch()
    assert "--data" not in run(*args, "here.csv", code=2).stderr
    args = ("init", "--task", "text-classification", "--model", "x", "--data")
    assert "--data" not in run(*args, "hub:some/thing", code=2).stderr


def test_check_tells_data_model_and_cost(run: Run, tiny: Tiny) -> None:
    told = json.loads(run("check", tiny.file, "--json").stdout)
    assert told["probes"][0]["data"]["examples"] == {"train": 100, "validation": 60, "test": None}
    assert told["estimate"]["trials"] == 3
    assert told["warnings"] == []
    assert told["database"] is None
    assert 0 < told["estimate"]["default"] <= told["estimate"]["whole"]
    assert not Path("sft_tune.db").exists()
    assert not Path("sft_tune_runs").exists()


FROZEN = """\
name: frozen
task: image-classification
data: {{source: "sklearn:digits", image_size: 16, train_limit: 60, validation_limit: 40}}
model: {{name: "builtin:convnet", weights: {weights}}}
training: {{freeze: backbone, epochs: 2, batch_size: 20}}
space: {{learning_rate: {{low: 1.0e-4, high: 0.1, log: true}}}}
budget: {{trials: 2}}
resources: {{devices: cpu, trials_per_device: 1, threads_per_trial: 1, stack: {stack}}}
"""


def test_check_counts_features_once_until_a_study_has_made_them(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SFT_TUNE_CACHE", str(tmp_path / "cache"))
    weights = Path(__file__).parents[2] / "studies" / "quickstart_backbone.safetensors"
    file = tmp_path / "frozen.yaml"
    file.write_text(FROZEN.format(weights=weights, stack="off"))
    cost = json.loads(run("check", file, "--json").stdout)["estimate"]
    assert cost["features"] > 0 and cost["begin"] > 0
    assert cost["whole"] >= cost["begin"] + cost["features"] + 2 * cost["cheapest"]
    text = run("check", file).stdout
    assert re.search(r"once .* to begin, .* to make the features that heads train on", text)
    assert "assumed" in text
    run("start", file)
    assert json.loads(run("check", file, "--json").stdout)["estimate"]["features"] == 0
    file.write_text(FROZEN.format(weights=weights, stack=2))
    assert "a stack of 2" in run("check", file).stdout


def test_check_tells_what_the_database_has_of_the_study(run: Run, tiny: Tiny) -> None:
    text = run("check", tiny.file, "--storage", tiny.storage).stdout
    assert text.splitlines()[-1] == (
        f"study tiny is in sqlite:///{tiny.storage}, 3 of 3 trials issued; it is finished"
    )
    text = run("check", tiny.file, "--storage", "none.db").stdout
    assert "none.db; `sft-tune start` makes one" in text.splitlines()[-1]


def test_schema_is_json_and_the_reference_markdown(run: Run) -> None:
    printed = run("schema").stdout
    assert json.loads(printed)["type"] == "object"
    told = run("schema", "-o", "study.schema.json").stdout
    assert "# yaml-language-server: $schema=study.schema.json" in told
    assert Path("study.schema.json").read_text() == printed
    assert "learning_rate" in run("schema", "--reference").stdout
    assert "cannot write" in run("schema", "-o", "no/such/x.json", code=2).stderr


@pytest.fixture
def copy_of_tiny(tiny: Tiny, tmp_path: Path) -> Path:
    """Return a database like that of `tiny`, for a test that destroys it."""
    shutil.copy(tiny.storage, tmp_path / "copy.db")
    return tmp_path / "copy.db"


def artifacts(run: Run, storage: Path) -> Path:
    (study,) = json.loads(run("list", "--json", "--storage", storage).stdout)
    return Path(study["artifacts"])


def moved_artifacts(run: Run, storage: Path, folder: Path) -> Path:
    """Let the study of ``storage`` have a copy of its files in ``folder``."""
    shutil.copytree(artifacts(run, storage), folder)
    connection = sqlite3.connect(storage)
    connection.execute("UPDATE sft_studies SET artifacts = ?", (str(folder),))
    connection.commit()
    connection.close()
    return folder


def test_delete_says_what_goes_and_asks(run: Run, copy_of_tiny: Path, tmp_path: Path) -> None:
    folder = moved_artifacts(run, copy_of_tiny, tmp_path / "files")
    args = ("delete", "tiny", "--storage", copy_of_tiny)
    refused = run(*args, text="n\n", code=1)
    assert "study tiny in sqlite:///" in refused.stdout
    assert "3 trials" in refused.stdout
    assert "files (" in refused.stdout
    assert refused.stderr == "error: nothing was done\n"
    assert list(folder.glob("trial-*"))

    run(*args, text="y\n")
    assert not folder.exists()
    assert json.loads(run("list", "--json", "--storage", copy_of_tiny).stdout) == []


def test_delete_leaves_what_is_not_the_studys(run: Run, copy_of_tiny: Path, tmp_path: Path) -> None:
    folder = moved_artifacts(run, copy_of_tiny, tmp_path / "files")
    (folder / "notes.txt").write_text("mine")
    run("delete", "tiny", "--yes", "--storage", copy_of_tiny)
    assert [path.name for path in folder.iterdir()] == ["notes.txt"]


def lend(storage: Path, owner: str) -> None:
    """Let trial 2 of the study in ``storage`` be run by ``owner``, for an hour."""
    connection = sqlite3.connect(storage)
    connection.execute(
        "UPDATE sft_trials SET state = 'running', reason = NULL, final_state = NULL,"
        " lease_owner = ?, lease_expires = ?, last_progress = 50, told = 0 WHERE number = 2",
        (owner, time.time() + 3600),
    )
    connection.execute("UPDATE trials SET state = 'RUNNING' WHERE number = 2")
    connection.execute("UPDATE sft_studies SET ended = NULL")
    connection.commit()
    connection.close()


def test_a_study_that_runs_elsewhere_is_shown_and_not_deleted(run: Run, copy_of_tiny: Path) -> None:
    lend(copy_of_tiny, "far-away:77:1.0")
    assert (
        "running on far-away (process 77)"
        in run("status", "tiny", "--storage", copy_of_tiny).stdout
    )
    refused = run("delete", "tiny", "--yes", "--storage", copy_of_tiny, code=2)
    assert refused.stderr.startswith("error: study 'tiny' is running; stop it first")
    table = run("trials", "tiny", "--storage", copy_of_tiny).stdout.splitlines()
    assert table[3].split()[:2] == ["2", "running"]


def test_a_runner_of_this_machine_that_died_is_known_to_be_dead(
    run: Run, copy_of_tiny: Path
) -> None:
    lend(copy_of_tiny, f"{socket.gethostname()}:{2**22 + 1}:1.0")
    text = run("status", "tiny", "--storage", copy_of_tiny).stdout
    assert "stopped; `sft-tune start` with its file goes on" in text
    table = run("trials", "tiny", "--storage", copy_of_tiny).stdout.splitlines()
    assert table[3].split()[:2] == ["2", "interrupted"]


def test_delete_without_an_answer_does_nothing(run: Run, copy_of_tiny: Path) -> None:
    run("delete", "tiny", "--storage", copy_of_tiny, text="", code=1)
    assert "tiny" in run("list", "--storage", copy_of_tiny).stdout


def test_the_dashboard_answers_over_http_until_ctrl_c(tiny: Tiny, tmp_path: Path) -> None:
    program = subprocess.Popen(
        [PROGRAM, "dashboard", "--port", "0", "--storage", tiny.storage],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=program_environment(tmp_path / "cache"),
    )
    try:
        assert program.stdout is not None
        line = program.stdout.readline()
        address = next(word for word in line.split() if word.startswith("http://127.0.0.1:"))
        with urllib.request.urlopen(f"{address}api/studies") as answer:
            (study,) = json.load(answer)["study_summaries"]
        assert study["study_name"] == "tiny"
        with urllib.request.urlopen(f"{address}api/studies/{study['study_id']}") as answer:
            assert len(json.load(answer)["trials"]) == 3
        with urllib.request.urlopen(f"{address}dashboard/") as answer:
            assert b"<html" in answer.read()
        program.send_signal(signal.SIGINT)
        _, errors = program.communicate(timeout=60)
    finally:
        program.kill()
    assert (program.returncode, errors) == (130, "")


def test_a_dashboard_that_others_reach_asks_for_the_password_it_prints(
    tiny: Tiny, tmp_path: Path
) -> None:
    program = subprocess.Popen(
        [
            *(PROGRAM, "dashboard", "--host", "0.0.0.0", "--port", "0"),
            *("--read-only", "--storage", tiny.storage),
        ],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=program_environment(tmp_path / "cache"),
    )
    try:
        assert program.stdout is not None
        port = program.stdout.readline().rpartition(":")[2].split("/")[0]
        password = program.stdout.readline().split()[-1]
        address = f"http://127.0.0.1:{port}/api/studies"
        with pytest.raises(urllib.error.HTTPError, match="401"):
            urllib.request.urlopen(address)
        account = base64.b64encode(f"me:{password}".encode()).decode()
        request = urllib.request.Request(address, headers={"Authorization": f"Basic {account}"})
        with urllib.request.urlopen(request) as answer:
            (study,) = json.load(answer)["study_summaries"]
        assert study["study_name"] == "tiny"
        delete = urllib.request.Request(
            f"{address}/{study['study_id']}", headers=request.headers, method="DELETE"
        )
        with pytest.raises(urllib.error.HTTPError, match="403"):  # --read-only
            urllib.request.urlopen(delete)
        program.send_signal(signal.SIGINT)
        program.communicate(timeout=60)
    finally:
        program.kill()


def test_a_dashboard_that_others_reach_is_refused_without_a_good_token(
    tiny: Tiny, run: Run
) -> None:
    args = ("dashboard", "--host", "0.0.0.0", "--port", "0", "--storage", tiny.storage)
    refused = run(*args, "--token", "short", code=2).stderr
    assert "the token of the dashboard must have at least 12 characters (got 5)" in refused
    refused = run("dashboard", "--host", "203.0.113.7", "--storage", tiny.storage, code=2).stderr
    assert "cannot listen on 203.0.113.7:8080" in refused
