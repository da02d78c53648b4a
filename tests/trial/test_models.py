from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from sft_tune.errors import ModelError
from sft_tune.spec.data import NormalizeSpec
from sft_tune.spec.model import ModelSpec
from sft_tune.trial import models_torchvision
from sft_tune.trial.models import BuiltModel, build_model, parameter_count
from sft_tune.trial.weights import load_backbone

LABELS = ["a", "b", "c"]
IMAGES = "image-classification"
TEXTS = "text-classification"
PIXELS = torch.linspace(-1, 1, 2 * 3 * 32 * 32).view(2, 3, 32, 32)
TOKENS = {
    "input_ids": torch.tensor([[2, 5, 6, 3], [2, 7, 3, 0]]),
    "attention_mask": torch.tensor([[1, 1, 1, 1], [1, 1, 1, 0]]),
}


def build(name: str, weights: str = "none", **rest: Any) -> BuiltModel:
    options = {key: rest.pop(key) for key in ("image_size", "seed", "normalize") if key in rest}
    task = rest.pop("task", TEXTS if name.startswith("transformers:") else IMAGES)
    return build_model(task, ModelSpec(name=name, weights=weights, **rest), LABELS, **options)


def state(model: BuiltModel) -> dict[str, Tensor]:
    return {k: v.clone() for k, v in model.module.state_dict().items()}


def same(one: dict[str, Tensor], two: dict[str, Tensor]) -> set[str]:
    assert one.keys() == two.keys()
    return {k for k in one if torch.equal(one[k], two[k])}


@pytest.fixture
def convnet_file(tmp_path: Path) -> Path:
    """Weights of another convnet, in half precision, as a study ships them."""
    path = tmp_path / "convnet.safetensors"
    weights = state(build("builtin:convnet", seed=7))
    save_file({k: v.half() if v.is_floating_point() else v for k, v in weights.items()}, path)
    return path


def test_the_builtin_network_is_small_and_takes_small_images(convnet_file: Path) -> None:
    model = build("builtin:convnet")
    assert 50_000 < parameter_count(model.module) < 80_000
    assert convnet_file.stat().st_size < 300_000
    for side in (8, 16, 28, 64):
        assert model.logits({"pixel_values": torch.zeros(2, 3, side, side)}).shape == (2, 3)


def test_a_file_of_weights_gives_the_backbone_and_not_the_head(convnet_file: Path) -> None:
    model = build("builtin:convnet", str(convnet_file), seed=1)
    stored, loaded = load_file(convnet_file), state(model)
    assert {t.dtype for t in loaded.values() if t.is_floating_point()} == {torch.float32}
    equal = {k for k in stored if torch.equal(stored[k].float(), loaded[k].float())}
    assert set(stored) - equal == {"head.weight", "head.bias"}


def test_new_parameters_follow_the_seed_and_nothing_else(convnet_file: Path) -> None:
    first = state(build("builtin:convnet", str(convnet_file), seed=1))
    torch.rand(5)
    again = state(build("builtin:convnet", str(convnet_file), seed=1))
    other = state(build("builtin:convnet", str(convnet_file), seed=2))
    assert same(first, again) == set(first)
    assert set(first) - same(first, other) == {"head.weight", "head.bias"}
    scratch = [state(build("builtin:convnet", seed=s)) for s in (1, 1, 2)]
    assert same(scratch[0], scratch[1]) == set(first)
    assert "stem.weight" not in same(scratch[0], scratch[2])


def test_training_one_model_leaves_the_next_untouched(convnet_file: Path) -> None:
    first = build("builtin:convnet", str(convnet_file))
    before = state(first)
    with torch.no_grad():
        for parameter in first.module.parameters():
            parameter.zero_()
    assert same(state(build("builtin:convnet", str(convnet_file))), before) == set(before)


def test_weights_are_read_once_and_again_when_the_file_changes(
    convnet_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reads: list[Path] = []
    read = models_torchvision.read_state
    monkeypatch.setattr(models_torchvision, "read_state", lambda p: reads.append(p) or read(p))
    models_torchvision._pretrained.cache_clear()
    build("builtin:convnet", str(convnet_file), dropout=0.1)
    build("builtin:convnet", str(convnet_file), dropout=0.3)
    assert len(reads) == 1
    changed = {k: v + 1 for k, v in load_file(convnet_file).items()}
    save_file(changed, convnet_file, metadata={"changed": "1"})
    model = build("builtin:convnet", str(convnet_file))
    assert len(reads) == 2
    assert torch.equal(model.module.state_dict()["norm.bias"], changed["norm.bias"].float())


@pytest.mark.parametrize("nested", [None, "state_dict", "model"])
@pytest.mark.parametrize("prefix", ["", "module.", "_orig_mod."])
def test_checkpoints_of_training_scripts_are_read(
    tmp_path: Path, nested: str | None, prefix: str
) -> None:
    source = state(build("builtin:convnet", seed=7))
    saved: Any = {prefix + k: v for k, v in source.items()}
    path = tmp_path / "weights.pt"
    torch.save({nested: saved, "epoch": 3} if nested else saved, path)
    loaded = state(build("builtin:convnet", str(path)))
    assert set(source) - same(source, loaded) == {"head.weight", "head.bias"}


class Evil:
    """Runs code when it is unpickled."""

    def __reduce__(self) -> Any:
        return (Path("ran").touch, ())


def test_no_code_is_run_from_a_checkpoint(tmp_path: Path) -> None:
    path = tmp_path / "evil.pt"
    torch.save({"stem.weight": Evil()}, path)
    with pytest.raises(ModelError, match="cannot be read as a state dict"):
        build("builtin:convnet", str(path))
    assert not Path("ran").exists()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "cannot be read as a state dict"),
        (b"\x08\0\0\0\0\0\0\0{}", "cannot be read as a state dict"),
    ],
)
@pytest.mark.parametrize("suffix", ["safetensors", "pt"])
def test_a_file_that_is_no_state_dict_is_an_error(
    tmp_path: Path, content: bytes, message: str, suffix: str
) -> None:
    path = tmp_path / f"broken.{suffix}"
    path.write_bytes(content)
    with pytest.raises(ModelError, match=message):
        build("builtin:convnet", str(path))


def test_a_list_is_no_state_dict(tmp_path: Path) -> None:
    torch.save([torch.zeros(1)], tmp_path / "list.pt")
    with pytest.raises(ModelError, match="holds no state dict"):
        build("builtin:convnet", str(tmp_path / "list.pt"))


def test_a_checkpoint_that_does_not_fit_says_which_tensors(convnet_file: Path) -> None:
    stored = load_file(convnet_file)
    stored["extra.weight"] = stored.pop("norm.bias")
    stored["stem.weight"] = torch.zeros(16, 1, 3, 3)
    save_file(stored, convnet_file)
    with pytest.raises(ModelError) as caught:
        build("builtin:convnet", str(convnet_file))
    message = str(caught.value)
    assert "1 missing (norm.bias)" in message
    assert "1 unexpected (extra.weight)" in message
    assert "1 of another shape (stem.weight: file (16, 1, 3, 3), model (16, 3, 3, 3))" in message


def test_a_checkpoint_of_another_architecture_shows_a_few_tensors_of_many(shared: Path) -> None:
    path = shared / "models" / "resnet18-cifar5.safetensors"
    with pytest.raises(ModelError, match=r"165 missing \(layer1.0.conv3.weight.*, \.\.\.\)"):
        build("torchvision:resnet50", str(path))


@pytest.mark.parametrize(
    ("name", "weights", "message"),
    [
        ("torchvision:resnet81", "none", "no classification model 'resnet81' .did you mean resnet"),
        ("torchvision:fcn_resnet50", "none", "no classification model"),
        ("torchvision:resnet18", "IMAGENET1K_V7", "it has IMAGENET1K_V1, DEFAULT"),
        ("torchvision:resnet18", "no/such.safetensors", "no file no/such.safetensors"),
        ("builtin:convnet", "DEFAULT", "give the path of a .safetensors file, or none"),
        ("builtin:mlp", "none", "there is builtin:convnet"),
        ("resnet18", "none", "give torchvision:NAME"),
        ("keras:resnet18", "none", "give torchvision:NAME"),
        ("transformers:/no/such/folder", "DEFAULT", "no folder /no/such/folder"),
    ],
)
def test_a_model_that_cannot_be_had_is_an_error_with_a_remedy(
    name: str, weights: str, message: str
) -> None:
    with pytest.raises(ModelError, match=message):
        build(name, weights)


def test_an_image_model_for_texts_is_an_error() -> None:
    with pytest.raises(ModelError, match="reads images, the task is text-classification"):
        build("builtin:convnet", task=TEXTS)


def test_normalization_is_the_weights_own_unless_the_study_file_says() -> None:
    spec = ModelSpec(name="torchvision:resnet18", weights="IMAGENET1K_V1")
    mean, std = models_torchvision.normalization(spec)
    assert mean == pytest.approx((0.485, 0.456, 0.406))
    assert std == pytest.approx((0.229, 0.224, 0.225))
    assert build("builtin:convnet").normalize == ((0.5,) * 3, (0.5,) * 3)
    said = NormalizeSpec(mean=(0.1, 0.2, 0.3), std=(0.4,))
    model = build("builtin:convnet", normalize=said)
    assert model.normalize == ((0.1, 0.2, 0.3), (0.4, 0.4, 0.4))
    with pytest.raises(ModelError, match="data.normalize.mean: give 1 or 3 values"):
        build("builtin:convnet", normalize=NormalizeSpec(mean=(0.1, 0.2), std=(0.4,)))


@pytest.fixture
def no_download(monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, Any]]:
    """Let the library's weights be those of a model made here."""
    served: dict[str, Any] = {}
    monkeypatch.setattr(
        "torchvision.models._api.load_state_dict_from_url",
        lambda url, **options: served.setdefault("options", options) and served["state"],
    )
    models_torchvision._pretrained.cache_clear()
    yield served
    models_torchvision._pretrained.cache_clear()


def test_the_librarys_weights_are_loaded_safely_and_whole(no_download: dict[str, Any]) -> None:
    import torchvision

    library = torchvision.models.squeezenet1_1()
    no_download["state"] = library.state_dict()
    model = build("torchvision:squeezenet1_1", "DEFAULT", dropout=0.2)
    assert no_download["options"]["weights_only"] and no_download["options"]["check_hash"]
    loaded, source = state(model), library.state_dict()
    assert all(torch.equal(loaded[k], v) for k, v in source.items() if "classifier" not in k)
    assert model.logits({"pixel_values": PIXELS}).shape == (2, 3)


def test_a_vision_transformer_takes_images_of_another_size() -> None:
    from torchvision.models import VisionTransformer

    shape = {"patch_size": 16, "num_layers": 1, "num_heads": 2, "hidden_dim": 8, "mlp_dim": 8}
    large, small = (VisionTransformer(image_size=side, **shape) for side in (64, 32))
    state = models_torchvision._resized(small, large.state_dict())
    assert not load_backbone(small, state, ("heads.head",))
    assert small(PIXELS).shape == (2, 1000)
    with pytest.raises(ModelError, match="cannot be built for images of 30 pixels"):
        build("torchvision:vit_b_16", image_size=30)


def test_googlenet_has_no_second_outputs_and_ignores_their_weights(
    no_download: dict[str, Any],
) -> None:
    import torchvision

    library = torchvision.models.googlenet(aux_logits=True, init_weights=False)
    no_download["state"] = library.state_dict()
    model = build("torchvision:googlenet", "DEFAULT")
    model.module.train()
    assert model.logits({"pixel_values": PIXELS}).shape == (2, 3)
    assert model.module.transform_input
    assert not build("torchvision:googlenet").module.transform_input


# transformers


def test_a_text_model_gets_labels_and_a_new_head_in_single_precision(tiny_bert: Path) -> None:
    model = build(f"transformers:{tiny_bert}", "DEFAULT", seed=1)
    assert model.logits(TOKENS).shape == (2, 3)
    assert model.head == ("dropout", "classifier")
    assert model.module.config.id2label == {0: "a", 1: "b", 2: "c"}
    loaded = state(model)
    assert {t.dtype for t in loaded.values() if t.is_floating_point()} == {torch.float32}
    stored = load_file(tiny_bert / "model.safetensors")
    assert all(torch.equal(loaded[f"bert.{k}"], v.float()) for k, v in stored.items())


def test_a_text_models_head_follows_the_seed_from_disk_and_from_memory(tiny_bert: Path) -> None:
    name = f"transformers:{tiny_bert}"
    first, again, other = (state(build(name, "DEFAULT", seed=s)) for s in (1, 1, 2))
    assert same(first, again) == set(first)
    # Biases begin at zero with every seed.
    assert set(first) - same(first, other) == {"classifier.weight"}


def test_training_a_text_model_leaves_the_next_untouched(tiny_bert: Path) -> None:
    name = f"transformers:{tiny_bert}"
    first = build(name, "DEFAULT")
    before = state(first)
    with torch.no_grad():
        for parameter in first.module.parameters():
            parameter.zero_()
    assert same(state(build(name, "DEFAULT")), before) == set(before)


def test_dropout_of_a_text_model_is_that_of_hidden_layers_and_head(tiny_bert: Path) -> None:
    config = build(f"transformers:{tiny_bert}", "DEFAULT", dropout=0.37).module.config
    assert (config.hidden_dropout_prob, config.classifier_dropout) == (0.37, 0.37)
    assert config.attention_probs_dropout_prob == 0.1


def test_a_text_model_from_scratch_or_from_a_file(tiny_bert: Path, tmp_path: Path) -> None:
    name = f"transformers:{tiny_bert}"
    scratch = [state(build(name, "none", seed=s)) for s in (1, 1, 2)]
    assert same(scratch[0], scratch[1]) == set(scratch[0])
    assert "bert.encoder.layer.0.output.dense.weight" not in same(scratch[0], scratch[2])
    path = tmp_path / "weights.safetensors"
    save_file(scratch[2], path)
    loaded = state(build(name, str(path), seed=1))
    assert all(torch.equal(loaded[k], v) for k, v in scratch[2].items() if "classifier" not in k)
    with pytest.raises(ModelError, match="give DEFAULT, the path"):
        build(name, "IMAGENET1K_V1")


def test_a_missing_pooler_is_new_and_trained_with_the_head(tiny_bert: Path, tmp_path: Path) -> None:
    weights = load_file(tiny_bert / "model.safetensors")
    path = tmp_path / "masked-lm.safetensors"
    save_file({f"bert.{k}": v for k, v in weights.items() if "pooler" not in k}, path)
    one, two = (build(f"transformers:{tiny_bert}", str(path), seed=s) for s in (1, 2))
    assert one.head == ("dropout", "classifier", "bert.pooler")
    assert set(state(one)) - same(state(one), state(two)) == {
        "classifier.weight",
        "bert.pooler.dense.weight",
    }


def test_text_weights_that_do_not_fit_say_which_tensors(tiny_bert: Path, tmp_path: Path) -> None:
    weights = {f"bert.{k}": v for k, v in load_file(tiny_bert / "model.safetensors").items()}
    key = "bert.encoder.layer.1.output.dense.bias"
    path = tmp_path / "weights.safetensors"
    save_file({k: v for k, v in weights.items() if k != key}, path)
    with pytest.raises(ModelError, match=f"1 missing .{key}"):
        build(f"transformers:{tiny_bert}", str(path))
    save_file({**weights, key: torch.zeros(9)}, path)
    with pytest.raises(ModelError, match=f"1 of another shape .{key}: file .9,., model .16,."):
        build(f"transformers:{tiny_bert}", str(path))


def test_a_hub_name_without_a_network_is_an_error_with_a_remedy(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(ModelError, match="'no-such/model' is no folder here.*local folder"):
        build("transformers:no-such/model", "DEFAULT")


def test_a_text_model_for_images_is_an_error(tiny_bert: Path) -> None:
    with pytest.raises(ModelError, match="is no model for image-classification"):
        build(f"transformers:{tiny_bert}", "DEFAULT", task=IMAGES)


def test_an_image_model_of_transformers_takes_any_size_and_its_own_normalization(
    tmp_path: Path,
) -> None:
    from transformers import ViTConfig, ViTForImageClassification

    config = ViTConfig(
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=16,
        image_size=64,
        patch_size=16,
    )
    ViTForImageClassification(config).save_pretrained(tmp_path / "vit")
    name = f"transformers:{tmp_path / 'vit'}"
    model = build(name, "DEFAULT", task=IMAGES, image_size=32, dropout=0.2)
    assert model.logits({"pixel_values": PIXELS}).shape == (2, 3)
    assert model.normalize == ((0.5,) * 3, (0.5,) * 3)
    processor = '{"image_mean": [0.1, 0.2, 0.3], "image_std": [0.4, 0.5, 0.6]}'
    (tmp_path / "vit" / "preprocessor_config.json").write_text(processor)
    model = build(name, "DEFAULT", task=IMAGES)
    assert model.normalize == ((0.1, 0.2, 0.3), (0.4, 0.5, 0.6))
