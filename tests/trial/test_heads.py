from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import nn

from sft_tune.errors import ModelError
from sft_tune.spec.training import TrainingSpec
from sft_tune.trial.blocks import find_blocks
from sft_tune.trial.freezing import Freezing
from sft_tune.trial.heads import find_output_layer, in_head, replace_head


class Vgg(nn.Module):
    """Dropout stands two layers before the output layer, so it is not the head's."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))
        self.classifier = nn.Sequential(
            nn.Dropout(0.5), nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 9)
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.classifier(self.features(x).mean(dim=(2, 3)))
        return logits


class MobileNet(Vgg):
    """Dropout stands right before the output layer: it is the head's own."""

    def __init__(self) -> None:
        super().__init__()
        self.classifier = nn.Sequential(nn.Linear(4, 4), nn.Dropout(0.5), nn.Linear(4, 9))


def test_a_head_is_replaced_and_nothing_else() -> None:
    module = Vgg()
    before = {k: v.clone() for k, v in module.state_dict().items()}
    head = replace_head(module, 3, None)
    assert head == ("classifier.3",)
    after = module.state_dict()
    assert after.keys() == before.keys()
    changed = [k for k, v in after.items() if not torch.equal(v, before[k])]
    assert changed == ["classifier.3.weight", "classifier.3.bias"]
    assert module(torch.zeros(2, 3, 8, 8)).shape == (2, 3)


def test_dropout_goes_before_a_head_that_has_none() -> None:
    module = Vgg()
    head = replace_head(module, 3, 0.25)
    assert head == ("classifier.3",)
    assert [m.p for m in module.classifier[3].modules() if isinstance(m, nn.Dropout)] == [0.25]
    assert module.classifier[0].p == 0.5


def test_a_heads_own_dropout_is_set() -> None:
    module = MobileNet()
    head = replace_head(module, 3, 0.25)
    assert head == ("classifier.1", "classifier.2")
    assert module.classifier[1].p == 0.25
    assert isinstance(module.classifier[2], nn.Linear)


def test_dropout_left_out_keeps_the_models_own() -> None:
    module = MobileNet()
    replace_head(module, 3, None)
    assert module.classifier[1].p == 0.5


def test_a_frozen_backbone_keeps_its_statistics_and_the_heads_dropout_works() -> None:
    module = MobileNet()
    head = replace_head(module, 3, 0.25)
    freezing = Freezing(module, find_blocks(module, head), TrainingSpec(freeze="backbone"))
    trained = [name for name, p in module.named_parameters() if p.requires_grad]
    assert trained == ["classifier.2.weight", "classifier.2.bias"]
    freezing.set_training_mode()
    assert [name for name, m in module.named_modules() if m.training] == list(head)
    before = module.features[1].running_mean.clone()
    module(torch.randn(4, 3, 8, 8))
    assert torch.equal(module.features[1].running_mean, before)
    Freezing(module, find_blocks(module, head), TrainingSpec()).set_training_mode()
    module(torch.randn(4, 3, 8, 8))
    assert not torch.equal(module.features[1].running_mean, before)


def test_a_module_without_a_linear_layer_is_an_error() -> None:
    with pytest.raises(ModelError, match="no linear layer"):
        find_output_layer(nn.Sequential(nn.ReLU()))


def every_classifier() -> Iterator[str]:
    import torchvision

    yield from torchvision.models.list_models(module=torchvision.models)


@pytest.fixture
def no_numbers(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Build on the meta device: shapes without numbers."""
    from torchvision.models import regnet

    original = regnet.BlockParams.from_init_params.__func__

    def on_cpu(*args: object, **kwargs: object) -> object:
        # RegNet computes its widths with tensors, which need numbers.
        with torch.device("cpu"):
            return original(regnet.BlockParams, *args, **kwargs)

    monkeypatch.setattr(regnet.BlockParams, "from_init_params", on_cpu)
    for name in ("trunc_normal_", "normal_", "kaiming_normal_", "kaiming_uniform_", "uniform_"):
        monkeypatch.setattr(nn.init, name, lambda tensor, *_, **__: tensor)
    with torch.device("meta"):
        yield


def test_every_classifier_of_torchvision_gets_a_head_for_the_labels(no_numbers: None) -> None:
    from sft_tune.trial.models_torchvision import _skeleton

    names = list(every_classifier())
    assert len(names) >= 80
    for name in names:
        module = _skeleton(f"torchvision:{name}", None, named=False)
        before = dict(module.named_parameters())
        head = replace_head(module, 7, 0.125)
        after = dict(module.named_parameters())
        assert [m.p for p in head for m in module.get_submodule(p).modules()
                if isinstance(m, nn.Dropout)] == [0.125], name  # fmt: skip
        new = [p for k, p in after.items() if k not in before or before[k] is not p]
        old = [k for k, p in before.items() if k not in after or after[k] is not p]
        assert {p.shape[0] for p in new} == {7}, name
        assert {before[k].shape[0] for k in old} == {1000}, name
        assert all(in_head(k, head) for k in after if k not in before or before[k] is not after[k])


@pytest.mark.parametrize(
    ("name", "side"),
    [
        ("alexnet", 64),
        ("densenet121", 32),
        ("efficientnet_b0", 32),
        ("googlenet", 32),
        ("inception_v3", 75),
        ("mobilenet_v3_small", 32),
        ("regnet_y_400mf", 32),
        ("shufflenet_v2_x0_5", 32),
        ("squeezenet1_1", 32),
        ("swin_t", 32),
        ("vgg11", 32),
        ("vit_b_32", 64),
    ],
)
def test_a_family_of_torchvision_answers_with_one_logit_a_label(
    name: str, side: int, no_numbers: None
) -> None:
    from sft_tune.trial.models_torchvision import _skeleton

    module = _skeleton(f"torchvision:{name}", side, named=False)
    replace_head(module, 7, 0.5)
    module.train()
    assert module(torch.empty(2, 3, side, side)).shape == (2, 7)
