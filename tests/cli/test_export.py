from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from sklearn.datasets import load_digits

import sft_tune
from sft_tune.errors import UserError
from sft_tune.session import way_of_export
from sft_tune.spec.load import load_study
from sft_tune.trial import checkpoint
from tests.cli.conftest import PROGRAM, Run, Tiny, program_environment


class Once:
    """The tiny study, exported once."""

    def __init__(self, folder: Path, stdout: str) -> None:
        self.folder = folder
        self.stdout = stdout


@pytest.fixture(scope="module")
def exported(tiny: Tiny, tmp_path_factory: pytest.TempPathFactory) -> Once:
    folder = tmp_path_factory.mktemp("exported") / "deep" / "model"
    done = subprocess.run(
        [PROGRAM, "export", "tiny", folder, "--storage", tiny.storage, "--format", "onnx"],
        capture_output=True,
        text=True,
        env=program_environment(folder.parent.parent / "cache"),
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    return Once(folder, done.stdout)


def trial_of(run: Run, tiny: Tiny, number: int) -> dict[str, Any]:
    told = run("show", "tiny", str(number), "--json", "--storage", tiny.storage).stdout
    found: dict[str, Any] = json.loads(told)
    return found


def test_an_export_says_that_its_files_give_the_trials_numbers(
    exported: Once, run: Run, tiny: Tiny
) -> None:
    trial = trial_of(run, tiny, 1)
    assert f"accuracy {trial['value']:.4f} on validation (60 examples), the same" in exported.stdout
    record = json.loads((exported.folder / "export.json").read_text())
    assert (record["study"], record["trial"], record["weights"]) == ("tiny", 1, "trial")
    assert record["validation"] == pytest.approx(trial["metrics"])
    assert record["files"] == sorted(path.name for path in exported.folder.iterdir())
    assert [path.name for path in exported.folder.parent.iterdir()] == ["model"]


def test_the_exported_script_needs_nothing_of_this_package(exported: Once) -> None:
    # What `import sft_tune` and `import safetensors` would raise: neither is to be had there.
    code = """\
import sys
sys.modules["sft_tune"] = sys.modules["safetensors"] = None
import numpy, torch
from PIL import Image
from load_model import load_model, preprocess
model = load_model()
images = [Image.fromarray(image) for image in numpy.load("digits.npy")]
with torch.inference_mode():
    logits = model(torch.stack([preprocess(image, model.settings) for image in images]))
print(*(model.labels[int(index)] for index in logits.argmax(1)))
"""
    copy = Path("copy")
    shutil.copytree(exported.folder, copy)
    digits = load_digits()
    np.save(copy / "digits.npy", (digits.images[:40] * 255 / 16).astype(np.uint8))
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=copy, check=False
    )
    assert done.returncode == 0, done.stderr
    found = done.stdout.split()
    right = [label == str(own) for label, own in zip(found, digits.target, strict=False)]
    assert sum(right) >= 30  # chance: 4


@pytest.mark.parametrize(
    ("args", "said"),
    [
        ([], "usage: python load_model.py PICTURE..."),
        (["nowhere.png"], "error: nowhere.png: No such file or directory"),
        (["model.json"], "error: model.json: no picture"),
    ],
)
def test_the_exported_script_says_what_it_takes(exported: Once, args: list[str], said: str) -> None:
    script = [sys.executable, "load_model.py", *args]
    done = subprocess.run(script, capture_output=True, text=True, cwd=exported.folder, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (2, "", f"{said}\n")


def test_the_exported_study_file_gives_the_trials_numbers_again(
    exported: Once, run: Run, tiny: Tiny
) -> None:
    trial = trial_of(run, tiny, 1)
    file = exported.folder / "study.yaml"
    assert load_study(file).spec.name == "tiny-trial-1"
    assert file.read_text().splitlines()[1] == (
        f"#   sft-tune train study.yaml --seed {trial['seed']}"
    )
    result = json.loads(run("train", file, "--seed", str(trial["seed"]), "--json").stdout)
    assert result["value"] == trial["value"]
    assert result["config"] == trial["config"]
    assert [rung["metrics"] for rung in result["rungs"]] == [
        rung["metrics"] for rung in trial["rungs"]
    ]


LONGER = """\
name: longer
task: image-classification
data: {source: "sklearn:digits", train_limit: 100, validation_limit: 60}
model: {name: "builtin:convnet", weights: backbone.safetensors}
training: {epochs: 50, batch_size: 50}
space: {epochs: [2, 50]}
pruner: {name: none}
budget: {trials: 1}
resources: {devices: cpu, trials_per_device: 1, threads_per_trial: 1}
"""


def test_a_long_trial_of_a_study_with_short_ones_is_trained_and_evaluated_as_it_was(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From anywhere: by its own 50 epochs it would have ten rungs, by those of its study five."""
    study, elsewhere = tmp_path / "study", tmp_path / "elsewhere"
    study.mkdir()
    elsewhere.mkdir()
    backbone = Path(__file__).resolve().parents[2] / "studies" / "quickstart_backbone.safetensors"
    shutil.copy(backbone, study / "backbone.safetensors")
    (study / "longer.yaml").write_text(LONGER)
    storage = str(tmp_path / "longer.db")
    monkeypatch.chdir(study)
    run("start", "longer.yaml", "--storage", storage)
    run("export", "longer", tmp_path / "model", "--storage", storage)
    monkeypatch.chdir(elsewhere)
    told = run("show", "longer", "0", "--json", "--storage", storage).stdout
    trial: dict[str, Any] = json.loads(told)
    file = tmp_path / "model" / "study.yaml"
    assert json.loads(run("check", file, "--json").stdout)["estimate"]["trials"] == 1
    result = json.loads(run("train", file, "--seed", str(trial["seed"]), "--json").stdout)
    assert len(trial["rungs"]) == 5
    assert [rung["progress"] for rung in result["rungs"]] == [20, 40, 60, 80, 100]
    assert [rung["metrics"] for rung in result["rungs"]] == [
        rung["metrics"] for rung in trial["rungs"]
    ]
    assert result["config"]["training"] == trial["config"]["training"]
    assert result["config"]["model"]["weights"] == str(study / "backbone.safetensors")


def test_the_card_names_data_numbers_and_how_it_was_found(exported: Once) -> None:
    card = (exported.folder / "README.md").read_text()
    for text in (
        "# tiny: trial 1",
        "10 labels: 0, 1, 2",
        "| validation | 60 |",
        "| test | – | – |",
        "not evaluated: `sft-tune confirm` does, once",
        "3 trials (2 completed, 1 diverged): sampler grid, pruner none, seed 0; budget 3 trials",
        "| default configuration | 0.",
        "| best of the search (trial 1) | 0.",
        "Confirmed: no; `sft-tune confirm tiny`",
        "| `learning_rate` | 0.01 | 1e-06 |",
        "`sklearn:digits`, validation was taken from train, images of 8x8 pixels.",
        f"torch {torch.__version__.split('+')[0]}",
        "onnxruntime.InferenceSession",
    ):
        assert text in card


def test_onnx_runs_without_torch_and_gives_the_same_labels(exported: Once) -> None:
    code = """\
import sys
sys.modules["torch"] = None
import numpy, onnxruntime
session = onnxruntime.InferenceSession("model.onnx")
for size in (1, 5):
    pixels = numpy.zeros((size, 3, 8, 8), numpy.float32)
    print(session.run(["logits"], {"pixel_values": pixels})[0].shape)
"""
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        cwd=exported.folder,
        check=False,
    )
    assert (done.stdout, done.returncode) == ("(1, 10)\n(5, 10)\n", 0), done.stderr


def test_a_folder_of_other_files_is_never_replaced(
    run: Run, tiny: Tiny, exported: Once, tmp_path: Path
) -> None:
    args = ("export", "tiny", "--storage", tiny.storage)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").touch()
    refused = run(*args, tmp_path / "mine", "--force", code=2).stderr
    assert "must be empty, or hold an earlier export" in refused
    assert (tmp_path / "mine" / "thesis.tex").is_file()
    told = run(*args, exported.folder, code=2).stderr
    assert "holds an earlier export" in told and "--force replaces it" in told
    told = run(*args, tmp_path / "mine" / "thesis.tex", code=2).stderr
    assert "a file is in the way" in told


def test_weights_that_do_not_give_the_recorded_numbers_are_no_export(
    run: Run, tiny: Tiny, tmp_path: Path
) -> None:
    """Whoever changes a checkpoint, or the data, is told; here the head is scaled."""
    for suffix in ("", "-wal"):
        if Path(tiny.storage + suffix).exists():
            shutil.copy(tiny.storage + suffix, f"own.db{suffix}")
    trial = trial_of(run, tiny, 1)
    path = Path(trial["checkpoint"])
    kept = path.read_bytes()
    tensors, header = checkpoint.read(path)
    try:
        tensors["head.weight"] *= 0.9
        checkpoint.write(path, tensors, header)
        failed = run("export", "tiny", "out", "--storage", "own.db", code=1)
    finally:
        path.write_bytes(kept)
    assert "do not give the numbers of the weights that were kept: loss 0." in failed.stderr
    assert f"recorded {trial['metrics']['loss']:.6g}" in failed.stderr
    assert not Path("out").exists()
    assert [p.name for p in Path().iterdir() if "unfinished" in p.name] == []


def test_a_refit_trains_on_validation_too_and_says_that_its_numbers_mean_nothing(
    run: Run, tiny: Tiny
) -> None:
    text = run("export", "tiny", "refit", "--refit", "--storage", tiny.storage).stdout
    assert "training on train and validation" in text
    assert "100 %  train loss " in text
    assert "validation, which was trained on, says nothing any more" in " ".join(text.split())
    card = Path("refit/README.md").read_text()
    assert "| train + validation | 160 | trained on both" in card
    record = json.loads(Path("refit/export.json").read_text())
    assert (record["weights"], record["validation"]) == ("refit", {})
    own = load_file("refit/model.safetensors")
    kept, _ = checkpoint.read(Path(trial_of(run, tiny, 1)["checkpoint"]))
    assert own.keys() == kept.keys()
    assert not torch.equal(own["head.weight"], kept["head.weight"])


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (("--trial", "9"), "has no trial 9"),
        (("--trial", "2"), "trial 2 were not kept: only the best trials keep theirs"),
        (("--soup", "--refit"), "a soup cannot be combined with that"),
        (("--soup", "--trial", "1"), "a soup begins with the best trial"),
        (("--format", "tensorflow"), "'tensorflow'"),
    ],
)
def test_what_cannot_be_exported_is_said(
    run: Run, tiny: Tiny, args: tuple[str, ...], said: str
) -> None:
    result = run("export", "tiny", "out", *args, "--storage", tiny.storage, code=2)
    assert said in result.stderr
    assert not Path("out").exists()


def test_ctrl_c_leaves_nothing(tiny: Tiny, tmp_path: Path) -> None:
    program = subprocess.Popen(
        [PROGRAM, "export", "tiny", "out", "--storage", tiny.storage],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=tmp_path,
        env={**program_environment(tmp_path / "cache"), "PYTHONUNBUFFERED": "1"},
    )
    assert program.stdout is not None
    for line in program.stdout:
        if "writing the weights" in line:
            program.send_signal(signal.SIGINT)
            break
    _, err = program.communicate()
    assert (program.returncode, err) == (130, "interrupted: nothing was exported\n")
    assert [path.name for path in tmp_path.iterdir() if path.name != "cache"] == []


def test_a_program_exports_over_an_earlier_export(tiny: Tiny, exported: Once) -> None:
    """A soup here: of trials from scratch, which are not averaged."""
    shutil.copytree(exported.folder, "earlier")
    Path("earlier/old.txt").touch()
    study = sft_tune.open_study("tiny", tiny.storage)
    with pytest.raises(UserError, match="holds an earlier export"):
        study.best.export("earlier")
    folder = study.export("earlier", soup=True, force=True)
    assert folder == Path("earlier").absolute()
    record = json.loads((folder / "export.json").read_text())
    assert (record["trial"], record["ingredients"]) == (study.best.number, [study.best.number])
    assert record["tried"] == [{"number": 0, "value": None, "why": "trained from scratch"}]
    assert record["validation"] == pytest.approx(dict(study.best.metrics))
    assert not Path("earlier/old.txt").exists()
    assert not Path("earlier/model.onnx").exists()
    assert [path.name for path in Path().iterdir() if path.name.startswith(".")] == []


SOUP = """\
name: soup
task: image-classification
data: {{source: "sklearn:digits", classes: [5, 6, 7, 8, 9], image_size: 16, train_limit: 50}}
model: {{name: "builtin:convnet", weights: "{weights}"}}
training: {{epochs: 6, batch_size: 16, learning_rate: 0.003}}
space: {{learning_rate: [0.003, 0.004]}}
objective: {{rungs: 1}}
sampler: {{name: grid}}
pruner: {{name: none}}
resources: {{devices: cpu, trials_per_device: 1, threads_per_trial: 1}}
"""


@pytest.mark.slow
def test_a_soup_that_gains_is_what_is_exported(run: Run, tmp_path: Path) -> None:
    """Two trials whose weights lie on both sides of good ones."""
    backbone = Path(__file__).resolve().parents[2] / "studies" / "quickstart_backbone.safetensors"
    (tmp_path / "soup.yaml").write_text(SOUP.format(weights=backbone))
    run("start", "soup.yaml")
    paths = [Path(f"sft_tune_runs/soup/trial-0000{number}/best.safetensors") for number in (0, 1)]
    good, header = checkpoint.read(paths[0])
    noise = {
        name: 0.1 * torch.randn(tensor.shape, generator=torch.Generator().manual_seed(1))
        for name, tensor in good.items()
        if tensor.is_floating_point() and "running" not in name
    }
    for path, sign in zip(paths, (1, -1), strict=True):
        moved = {k: v + sign * noise[k] if k in noise else v for k, v in good.items()}
        checkpoint.write(path, moved, header)
    record = json.loads(run("export", "soup", "out", "--soup", "--json").stdout)
    assert sorted(record["ingredients"]) == [0, 1]
    assert record["tried"][0]["why"] is None
    assert record["validation"]["accuracy"] == record["tried"][0]["value"]
    averaged = load_file("out/model.safetensors")
    for name, tensor in good.items():
        torch.testing.assert_close(averaged[name], tensor, atol=1e-5, rtol=1e-4)
    assert "# soup: the average of 2 trials" in Path("out/README.md").read_text()


def test_wishes_that_exclude_each_other_are_refused() -> None:
    assert way_of_export(None, refit=False, soup=True) == "soup"
    assert way_of_export(3, refit=True, soup=False) == "refit"
    with pytest.raises(UserError, match="a refit trains one configuration"):
        way_of_export(None, refit=True, soup=True)
