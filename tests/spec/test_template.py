from __future__ import annotations

from pathlib import Path

import pytest

from sft_tune.errors import UserError
from sft_tune.spec.config import default_params, setting
from sft_tune.spec.documents import parse_text
from sft_tune.spec.load import load_study
from sft_tune.spec.recipes import RECIPES
from sft_tune.spec.tasks import Task
from sft_tune.spec.template import study_template

IMAGES: Task = "image-classification"
TEXTS: Task = "text-classification"
KINDS: list[tuple[Task, str, str]] = [
    (IMAGES, "builtin:convnet", "convnet"),
    (IMAGES, "torchvision:resnet18", "cnn"),
    (IMAGES, "torchvision:efficientnet_b0", "cnn"),
    (IMAGES, "torchvision:vit_b_16", "transformer"),
    (IMAGES, "timm:deit_tiny_patch16_224", "transformer"),
    (IMAGES, "torchvision:convnext_tiny", "transformer"),
    (IMAGES, "transformers:google/vit-base-patch16-224", "transformer"),
    (TEXTS, "transformers:google-bert/bert-base-uncased", "encoder"),
    ("image-regression", "torchvision:resnet18", "cnn"),
    ("text-regression", "transformers:google-bert/bert-base-uncased", "encoder"),
    ("semantic-segmentation", "torchvision:deeplabv3_resnet50", "cnn"),
    ("object-detection", "torchvision:fasterrcnn_resnet50_fpn_v2", "detector"),
    ("token-classification", "transformers:google-bert/bert-base-uncased", "encoder"),
    ("audio-classification", "transformers:facebook/wav2vec2-base", "sounds"),
    ("causal-lm", "transformers:Qwen/Qwen3-0.6B", "writer"),
    ("seq2seq", "transformers:google-t5/t5-small", "translator"),
]


def written(text: str, tmp_path: Path) -> Path:
    path = tmp_path / "study.yaml"
    path.write_text(text)
    return path


@pytest.mark.parametrize(("task", "model", "family"), KINDS)
def test_a_template_is_a_valid_study_whose_default_lies_in_its_space(
    tmp_path: Path, task: Task, model: str, family: str
) -> None:
    (tmp_path / "photos").mkdir()
    text = study_template(task, model, "photos")
    spec = load_study(written(text, tmp_path)).spec
    assert (spec.task, spec.model.name) == (task, model)
    assert spec.data.source == str(tmp_path / "photos")
    assert RECIPES[family].space in text
    assert len(spec.space) >= 4
    for name, value in default_params(spec).items():
        if name != "model.dropout":  # the model's own, by default
            assert value == setting(spec, name), name


@pytest.mark.parametrize("family", RECIPES)
def test_every_recipe_is_used(family: str) -> None:
    assert family in {kind[2] for kind in KINDS}


def test_names_and_paths_that_yaml_would_misread_are_quoted(tmp_path: Path) -> None:
    odd = "a: b #1"
    (tmp_path / odd).mkdir()
    text = study_template(IMAGES, "torchvision:resnet18", odd, name="1e5")
    spec = load_study(written(text, tmp_path)).spec
    assert (spec.name, spec.data.source) == ("1e5", str(tmp_path / odd))


@pytest.mark.parametrize(
    ("source", "model", "name"),
    [
        ("../data/My Photos/", "torchvision:resnet18", "my-photos-resnet18"),
        ("hub:stanfordnlp/imdb", "transformers:a/MiniLM", "imdb-minilm"),
        ("reviews.csv", "transformers:./encoder", "reviews-encoder"),
        ("../mail/train.jsonl", "transformers:./encoder", "mail-encoder"),
        ("train.csv", "transformers:a/MiniLM-L6", "train-minilm-l6"),
        ("..", "torchvision:x" + "y" * 200, "x" + "y" * 119),
        ("日本", "builtin:日", "study"),
    ],
)
def test_a_study_is_named_after_its_data_and_model(source: str, model: str, name: str) -> None:
    task = TEXTS if model.startswith("transformers") else IMAGES
    if model == "builtin:日":
        model = "torchvision:日"
    data = parse_text(study_template(task, model, source), ".yaml", "s").data
    assert data["name"] == name


def test_signs_are_not_mirrored(tmp_path: Path) -> None:
    texts = [study_template(IMAGES, "builtin:convnet", s) for s in ("sklearn:digits", "photos")]
    data = [parse_text(text, ".yaml", "s").data for text in texts]
    assert [d["training"]["augment"] for d in data] == ["none", "flip"]


@pytest.mark.parametrize(
    ("task", "model", "message"),
    [
        (TEXTS, "torchvision:resnet18", "a model for text-classification is transformers:"),
        (IMAGES, "resnet18", "not 'resnet18'; for example torchvision:resnet18"),
        (IMAGES, "torchvision:", "a model for image-classification is torchvision:NAME"),
        (TEXTS, "transformers:", "for example transformers:google-bert/bert-base-uncased"),
    ],
)  # fmt: skip
def test_a_model_that_does_not_fit_the_task_is_refused(
    task: Task, model: str, message: str
) -> None:
    with pytest.raises(UserError, match=message):
        study_template(task, model, "data")
