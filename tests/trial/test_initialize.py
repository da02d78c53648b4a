"""How a model begins: head, blocks drawn anew, branches left out."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from sft_tune.errors import ModelError
from sft_tune.spec.config import TrialConfig
from sft_tune.spec.model import ModelSpec
from sft_tune.trial.data import prepare
from sft_tune.trial.models import build_model
from sft_tune.trial.trainee import Trainee, set_up

Configure = Callable[..., TrialConfig]
LABELS = ["a", "b", "c"]
CPU = torch.device("cpu")


@pytest.fixture
def trainee_of(tmp_path: Path) -> Callable[[TrialConfig], Trainee]:
    def make(config: TrialConfig) -> Trainee:
        data = prepare(config.task, config.data, config.model, cache=tmp_path / "prepared")
        return set_up(config, data, CPU)

    return make


@pytest.mark.parametrize(
    ("kind", "deviation"), [("zero", 0.0), ("normal", 0.02), ("xavier", (2 / 18) ** 0.5)]
)
def test_the_output_layer_begins_as_asked(
    sentences: Configure, trainee_of: Any, kind: str, deviation: float
) -> None:
    plain = trainee_of(sentences()).model.module.state_dict()
    found = trainee_of(sentences(model={"head_init": kind})).model.module.state_dict()
    again = trainee_of(sentences(model={"head_init": kind})).model.module.state_dict()
    changed = {key for key in plain if not torch.equal(plain[key], found[key])}
    assert changed <= {"classifier.weight", "classifier.bias"}
    assert torch.equal(found["classifier.weight"], again["classifier.weight"])
    assert not found["classifier.bias"].any()
    assert found["classifier.weight"].std().item() == pytest.approx(deviation, rel=0.4)


def test_the_last_blocks_forget_their_pretraining(sentences: Configure, trainee_of: Any) -> None:
    plain = trainee_of(sentences()).model.module.state_dict()
    model = trainee_of(sentences(model={"reinit_blocks": 1})).model
    found = model.module.state_dict()
    changed = {key for key in plain if not torch.equal(plain[key], found[key])}
    assert changed and all(key.startswith("bert.encoder.layer.1.") for key in changed)
    weight = found["bert.encoder.layer.1.attention.self.query.weight"]
    assert 0.015 < weight.std().item() < 0.025  # as transformers has it for BERT
    assert not found["bert.encoder.layer.1.output.dense.bias"].any()


def test_more_blocks_than_there_are_are_an_error(sentences: Configure, trainee_of: Any) -> None:
    with pytest.raises(ModelError, match=r"the model has 2 blocks; lower it \(got 3\)"):
        trainee_of(sentences(model={"reinit_blocks": 3}))


def build(name: str, rate: float) -> nn.Module:
    spec = ModelSpec(name=name, weights="none", stochastic_depth=rate)
    return build_model("image-classification", spec, LABELS, image_size=32).module


def test_branches_are_left_out_more_often_the_later_they_stand() -> None:
    from torchvision.ops import StochasticDepth

    module = build("torchvision:efficientnet_b0", 0.3)
    rates = [part.p for part in module.modules() if isinstance(part, StochasticDepth)]
    assert rates == pytest.approx([0.3 * i / 15 for i in range(16)])
    with pytest.raises(ModelError, match="has no stochastic depth to set"):
        build("torchvision:resnet18", 0.3)


def test_models_of_transformers_are_told_in_their_configuration(tmp_path: Path) -> None:
    from transformers import ResNetConfig, SwinConfig

    swin = SwinConfig(image_size=32, embed_dim=8, depths=[2, 2], num_heads=[2, 2], window_size=4)
    swin.save_pretrained(tmp_path / "swin")
    module: Any = build(f"transformers:{tmp_path / 'swin'}", 0.3)
    assert module.config.drop_path_rate == 0.3
    ResNetConfig(embedding_size=8, hidden_sizes=[8], depths=[1]).save_pretrained(tmp_path / "res")
    with pytest.raises(ModelError, match="has no stochastic depth to set"):
        build(f"transformers:{tmp_path / 'res'}", 0.3)


@pytest.mark.parametrize(
    ("task", "sections"),
    [
        (
            "digits",
            {
                "training": {
                    "auto_augment": "trivialaugment",
                    "color_jitter": 0.3,
                    "erasing": 0.5,
                    "averaging": "ema",
                },
                "model": {"head_init": "zero"},
            },
        ),
        (
            "sentences",
            {
                "training": {"token_masking": 0.3, "r_drop": 0.5},
                "model": {"head_init": "normal", "reinit_blocks": 1},
            },
        ),
    ],
)
def test_a_trial_stopped_at_every_step_is_the_same(
    new_runner: Any, request: Any, task: str, sections: dict[str, Any]
) -> None:
    config = request.getfixturevalue(task)(**sections)
    calm, disturbed = new_runner("calm"), new_runner("disturbed")
    ended = calm.run(config)
    for at in range(ended.steps):
        asked = iter([False] * min(at, 1) + [True])
        disturbed.run(config, should_stop=lambda asked=asked: next(asked), checkpoint_seconds=1e9)
    disturbed.run(config)
    assert disturbed.numbers() == calm.numbers()
    assert disturbed.best() == calm.best()


def test_a_tokenizer_without_a_mask_token_is_refused(
    sentences: Configure, tiny_bert: Path, tmp_path: Path, trainee_of: Any
) -> None:
    import json
    import shutil

    folder = tmp_path / "maskless"
    shutil.copytree(tiny_bert, folder)
    path = folder / "tokenizer_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "mask_token": None}))
    config = sentences(model={"name": f"transformers:{folder}"}, training={"token_masking": 0.1})
    with pytest.raises(ModelError, match="has no mask token; leave it out"):
        trainee_of(config)
