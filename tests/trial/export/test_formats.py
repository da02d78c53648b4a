"""Small and real models through their library's format and back."""

from __future__ import annotations

import importlib.util
import json
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from sft_tune.errors import ModelError
from sft_tune.spec.config import TrialConfig
from sft_tune.trial.export.verify import verify
from sft_tune.trial.export.write import export
from sft_tune.trial.models import build_model
from tests.trial.conftest import Configure, Runner

RESNET: dict[str, Any] = {
    "task": "image-classification",
    "training": {"epochs": 1, "batch_size": 40, "optimizer": "sgd", "learning_rate": 0.02},
    "objective": {"rungs": 1},
    "seed": 0,
}
MINILM: dict[str, Any] = {
    "task": "text-classification",
    "training": {"epochs": 1, "batch_size": 16, "learning_rate": 3e-4},
    "objective": {"rungs": 1},
    "seed": 0,
}


class Trip:
    """Exports the best weights of a runner, and loads them again."""

    def __init__(self, runner: Runner, config: TrialConfig) -> None:
        self.outcome = runner.run(config)
        self.config = config
        self.cache = runner.cache
        self.folder = runner.paths.root.with_name("exported")
        scratch = runner.paths.root.with_name("scratch")
        self.reference = scratch / "reference.safetensors"
        scratch.mkdir()
        self.folder.mkdir()

    def export(self, onnx: bool = False) -> dict[str, Any]:
        return export(
            self.config,
            Path(str(self.outcome.checkpoint)),
            self.folder,
            reference=self.reference,
            onnx=onnx,
            device="cpu",
            cache=self.cache,
        )

    def verify(self, call: dict[str, Any], onnx: bool = False) -> dict[str, Any]:
        return verify(
            self.config,
            self.folder,
            reference=self.reference,
            call=call,
            onnx=onnx,
            device="cpu",
            cache=self.cache,
            batch_size=16,
        )


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def resnet(shared: Path, **model: Any) -> TrialConfig:
    source = str(shared / "data" / "cifar10")
    weights = str(shared / "models" / "resnet18-cifar5.safetensors")
    return TrialConfig.model_validate(
        {
            **RESNET,
            "data": {"source": source, "train_limit": 80, "validation_limit": 40},
            "model": {"name": "torchvision:resnet18", "weights": weights, **model},
        }
    )


def minilm(shared: Path) -> TrialConfig:
    data = {"source": str(shared / "data" / "subjectivity"), "max_length": 24}
    return TrialConfig.model_validate(
        {
            **MINILM,
            "data": {**data, "train_limit": 64, "validation_limit": 40},
            "model": {"name": f"transformers:{shared / 'models' / 'minilm-l6'}"},
        }
    )


def test_a_pretrained_resnet_gives_the_same_numbers_from_its_own_script(
    runner: Runner, shared: Path
) -> None:
    trip = Trip(runner, resnet(shared, dropout=0.1))
    facts = trip.export()
    assert names(trip.folder) == ["load_model.py", "model.json", "model.safetensors"]
    assert (facts["library"], facts["image_size"], len(facts["labels"])) == (
        "torchvision",
        [32, 32],
        10,
    )
    found = trip.verify(facts["call"])
    assert found["metrics"] == trip.outcome.metrics
    assert (found["difference"], found["examples"]) == (0.0, 40)
    modes = {stat.S_IMODE(path.stat().st_mode) for path in trip.folder.iterdir()}
    assert len(modes) == 1


def test_a_pretrained_text_encoder_gives_the_same_numbers_from_transformers_alone(
    runner: Runner, shared: Path
) -> None:
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    trip = Trip(runner, minilm(shared))
    facts = trip.export(onnx=True)
    assert {"config.json", "model.safetensors", "tokenizer.json", "model.onnx"} <= set(
        names(trip.folder)
    )
    kept = set((trip.cache / "prepared").rglob("*"))
    found = trip.verify(facts["call"], onnx=True)
    # The export's own tokens are of no use to another.
    assert set((trip.cache / "prepared").rglob("*")) == kept
    assert found["metrics"] == trip.outcome.metrics
    assert found["difference"] == 0.0
    # Batches of several lengths and sizes, in another runtime.
    assert found["onnx_metrics"] == pytest.approx(trip.outcome.metrics, abs=1e-5)
    assert found["onnx_difference"] < 1e-5

    tokenizer = AutoTokenizer.from_pretrained(trip.folder)
    assert (tokenizer.model_max_length, facts["max_length"]) == (24, 24)
    assert len(tokenizer("word " * 100, truncation=True)["input_ids"]) == 24
    module = AutoModelForSequenceClassification.from_pretrained(trip.folder)
    assert module.config.id2label == {0: "objective", 1: "subjective"}


def test_an_image_model_of_transformers_takes_its_processor_along(
    runner: Runner, digits: Configure, tmp_path: Path
) -> None:
    from transformers import AutoImageProcessor, ViTConfig, ViTModel

    size = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    shape = {"intermediate_size": 16, "image_size": 16, "patch_size": 4}
    torch.manual_seed(0)
    ViTModel(ViTConfig(**size, **shape), add_pooling_layer=False).save_pretrained(tmp_path / "vit")
    config = digits(
        model={"name": f"transformers:{tmp_path / 'vit'}", "weights": "DEFAULT", "dropout": None},
        data={"normalize": {"mean": [0.4], "std": [0.25]}},
    )
    trip = Trip(runner, config)
    facts = trip.export()
    # The digits' own 8 pixels are not the model's 16: its positions are interpolated.
    assert facts["call"] == {"interpolate_pos_encoding": True}
    assert trip.verify(facts["call"])["metrics"] == trip.outcome.metrics
    processor = AutoImageProcessor.from_pretrained(trip.folder)
    assert list(processor.image_mean) == [0.4] * 3
    assert (processor.size["height"], processor.size["width"]) == (8, 8)
    settings = json.loads((trip.folder / "preprocessor_config.json").read_text())
    settings["image_mean"] = [0.5] * 3
    (trip.folder / "preprocessor_config.json").write_text(json.dumps(settings))
    assert trip.verify(facts["call"])["metrics"] != trip.outcome.metrics


def test_changed_files_are_found_out(runner: Runner, digits: Configure) -> None:
    trip = Trip(runner, digits())
    facts = trip.export()
    assert names(trip.folder) == ["convnet.py", "load_model.py", "model.json", "model.safetensors"]
    assert trip.verify(facts["call"])["metrics"] == trip.outcome.metrics
    weights = load_file(trip.folder / "model.safetensors")
    weights["head.output.bias"] += torch.linspace(0, 1, 4)
    save_file(weights, trip.folder / "model.safetensors")
    assert trip.verify(facts["call"])["difference"] > 0.1


def loader_of(folder: Path) -> Any:
    spec = importlib.util.spec_from_file_location("exported_loader", folder / "load_model.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


# A head with and without dropout of the model's own, convolutional, of a size of image, with
# arguments of its own, as a plain attribute.
NETWORKS = [
    ("squeezenet1_1", None),
    ("mobilenet_v3_small", 0.3),
    ("vit_b_32", 0.3),
    ("densenet121", None),
    ("densenet121", 0.3),
    ("googlenet", None),
]


@pytest.mark.parametrize(("name", "dropout"), NETWORKS)
def test_the_script_rebuilds_every_kind_of_network(
    name: str, dropout: float | None, tmp_path: Path, digits: Configure
) -> None:
    from sft_tune.trial.export.write import _write_image_model

    side = 64
    config = digits(model={"name": f"torchvision:{name}", "dropout": dropout})
    labels = ("a", "b", "c")
    built = build_model(config.task, config.model, labels, image_size=side)
    card = {"labels": labels, "image_size": [side, side], "normalize": built.normalize}
    _write_image_model(built.module, config, card, tmp_path)
    module = loader_of(tmp_path).load_model(tmp_path)
    assert module.labels == labels
    pixels = torch.randn(2, 3, side, side, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        assert torch.equal(module(pixels), built.module.eval()(pixels))


def test_the_script_resizes_and_normalizes_as_the_trial_did(tmp_path: Path) -> None:
    import numpy as np
    from PIL import Image

    from sft_tune.trial.export import loader

    settings = {"image_size": [4, 6], "mean": [0.5, 0.4, 0.3], "std": [0.5, 0.25, 0.2]}
    rng = np.random.default_rng(0)
    image = Image.fromarray(rng.integers(0, 255, (12, 9, 3), dtype=np.uint8))
    small = np.asarray(image.resize((6, 4), Image.Resampling.BICUBIC)) / 255
    wanted = (small - settings["mean"]) / settings["std"]
    made = loader.preprocess(image, settings)
    assert made.shape == (3, 4, 6)
    np.testing.assert_allclose(made.numpy(), wanted.transpose(2, 0, 1), atol=1e-5)


def test_every_type_of_tensor_is_read_without_a_library(tmp_path: Path) -> None:
    from sft_tune.trial.export.loader import DTYPES, read_tensors

    tensors = {name: torch.tensor([[1, 0, 1]]).to(dtype) for name, dtype in DTYPES.items()} | {
        "none": torch.empty(0, 3),
        "scalar": torch.tensor(7),
    }
    save_file(tensors, tmp_path / "t.safetensors", metadata={"format": "pt"})
    read = read_tensors(tmp_path / "t.safetensors")
    assert read.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert read[name].dtype == tensor.dtype
        assert torch.equal(read[name], tensor)


def test_a_checkpoint_that_is_gone_is_an_error(
    runner: Runner, digits: Configure, new_runner: Callable[[str], Runner]
) -> None:
    trip = Trip(runner, digits())
    runner.paths.best.unlink()
    with pytest.raises(ModelError, match="no checkpoint"):
        trip.export()


def small_texts(folder: Path, **fields: list[Any]) -> str:
    """Write a JSON lines file with a text a row and other ``fields``; return its path."""
    source = folder / "own.jsonl"
    words = ("good", "bad", "film", "plot", "dull")
    with source.open("w") as file:
        for i in range(56):
            row = {name: values[i % len(values)] for name, values in fields.items()}
            file.write(json.dumps({"text": f"{words[i % 5]} {words[i % 3]}", **row}) + "\n")
    return str(source)


@pytest.mark.parametrize("onnx", [True, False])
def test_lora_is_merged_into_plain_weights(
    runner: Runner, sentences: Configure, onnx: bool
) -> None:
    from transformers import AutoModelForSequenceClassification

    config = sentences(model={"lora_rank": 4}, training={"learning_rate": 0.02})
    trip = Trip(runner, config)
    facts = trip.export(onnx)
    found = trip.verify(facts["call"], onnx)
    assert found["metrics"] == pytest.approx(trip.outcome.metrics, abs=1e-5)
    assert found["difference"] < 1e-5
    module = AutoModelForSequenceClassification.from_pretrained(trip.folder)
    assert not any("lora" in name for name in module.state_dict())


def test_a_regression_of_texts_answers_in_the_units_of_its_targets(
    runner: Runner, sentences: Configure, tmp_path: Path
) -> None:
    from transformers import AutoModelForSequenceClassification

    source = small_texts(tmp_path, label=[100.0, 140.0, 120.0, 90.0, 160.0])
    config = sentences(
        task="text-regression",
        data={"source": source},
        objective={"metric": "rmse"},
        training={"learning_rate": 0.01},
    )
    trip = Trip(runner, config)
    facts = trip.export(onnx=True)
    assert facts["outputs"] == "number"
    found = trip.verify(facts["call"], onnx=True)
    for metrics in (found["metrics"], found["onnx_metrics"]):
        assert metrics == pytest.approx(trip.outcome.metrics, abs=1e-3)
    assert found["difference"] < 1e-5
    module = AutoModelForSequenceClassification.from_pretrained(trip.folder).eval()
    assert module.config.problem_type == "regression"
    with torch.inference_mode():
        logits = module(input_ids=torch.tensor([[2, 5, 6, 3]])).logits
    assert 80 < logits.item() < 170


def test_several_labels_an_example_are_no_softmax(
    runner: Runner, sentences: Configure, tmp_path: Path
) -> None:
    source = small_texts(tmp_path, label=[["a"], ["a", "b"], ["b"], []])
    config = sentences(data={"source": source, "multi_label": True})
    trip = Trip(runner, config)
    facts = trip.export()
    assert facts["outputs"] == "labels"
    assert trip.verify(facts["call"])["metrics"] == trip.outcome.metrics
    settings = json.loads((trip.folder / "config.json").read_text())
    assert settings["problem_type"] == "multi_label_classification"


def test_tags_of_words_come_from_the_exported_tokenizer_too(
    runner: Runner, sentences: Configure, tmp_path: Path
) -> None:
    source = small_texts(
        tmp_path,
        tokens=[["good", "film"], ["bad", "plot", "dull"], ["the", "end"]],
        label=[["B-X", "O"], ["O", "B-X", "I-X"], ["O", "B-X"]],
    )
    data = {"source": source, "tags_column": "label"}
    config = sentences(task="token-classification", data=data, objective={"metric": "entity_f1"})
    trip = Trip(runner, config)
    facts = trip.export(onnx=True)
    assert facts["outputs"] == "tags"
    found = trip.verify(facts["call"], onnx=True)
    assert found["metrics"] == trip.outcome.metrics
    assert found["onnx_metrics"] == pytest.approx(trip.outcome.metrics, abs=1e-5)
    assert found["onnx_difference"] < 1e-5


def test_a_regression_of_images_answers_in_the_units_of_its_targets(
    runner: Runner, tmp_path: Path
) -> None:
    source = tmp_path / "levels.py"
    source.write_text(
        "import numpy as np\n"
        "def load(split):\n"
        "    if split != 'train': return None\n"
        "    rng = np.random.default_rng(0)\n"
        "    levels = rng.integers(0, 255, 60)\n"
        "    return [(np.full((8, 8, 3), level, np.uint8), float(level)) for level in levels]\n"
    )
    config = TrialConfig.model_validate(
        {
            "task": "image-regression",
            "data": {"source": f"python:{source}:load"},
            "model": {"name": "builtin:convnet", "weights": "none"},
            "training": {"epochs": 8, "batch_size": 8, "learning_rate": 0.01},
            "objective": {"rungs": 1, "metric": "mae"},
            "seed": 0,
        }
    )
    trip = Trip(runner, config)
    facts = trip.export()
    assert trip.verify(facts["call"])["metrics"] == pytest.approx(trip.outcome.metrics, rel=1e-4)
    loader = loader_of(trip.folder)
    module = loader.load_model()
    from PIL import Image

    answers = []
    for level in (40, 220):
        image = Image.new("RGB", (8, 8), (level,) * 3)
        with torch.inference_mode():
            answers.append(module(loader.preprocess(image, module.settings)[None]).item())
    assert answers[1] > answers[0] + 60
