"""Blocks are found by rule in every classifier of torchvision, and in those of transformers."""

from __future__ import annotations

import contextlib
from typing import Any

import pytest
import torch
import torchvision
from torch import nn

from sft_tune.trial.blocks import Blocks, find_blocks
from sft_tune.trial.convnet import ConvNet
from sft_tune.trial.heads import replace_head
from sft_tune.trial.models_torchvision import WITH_AUXILIARY_HEADS
from sft_tune.trial.models_transformers import find_head

# Built on the real device, since their widths are computed with tensors; one of each is enough.
REGNETS = ("regnet_x_400mf", "regnet_y_400mf")
NAMES = [
    name
    for name in torchvision.models.list_models(module=torchvision.models)
    if not name.startswith("regnet") or name in REGNETS
]
COUNTS = {
    "alexnet": 7,
    "convnext_tiny": 18,
    "densenet121": 4,
    "efficientnet_b0": 16,
    "googlenet": 12,
    "inception_v3": 16,
    "maxvit_t": 4,
    "mnasnet1_0": 16,
    "mobilenet_v2": 17,
    "mobilenet_v3_small": 11,
    "regnet_y_400mf": 16,
    "resnet18": 8,
    "resnet50": 16,
    "resnext50_32x4d": 16,
    "shufflenet_v2_x1_0": 16,
    "squeezenet1_1": 8,
    "swin_t": 15,
    "vgg11": 10,
    "vgg16_bn": 15,
    "vit_b_16": 12,
}


def of_torchvision(name: str) -> tuple[nn.Module, Blocks]:
    arguments: dict[str, Any] = {}
    if name in WITH_AUXILIARY_HEADS:
        arguments = {"aux_logits": False, "init_weights": False}
    weightless = contextlib.nullcontext() if name in REGNETS else torch.device("meta")
    with weightless:
        module = torchvision.models.get_model(name, weights=None, **arguments)
        return module, find_blocks(module, replace_head(module, 3, None))


@pytest.mark.parametrize("name", NAMES)
def test_every_model_of_torchvision_has_blocks_in_order(name: str) -> None:
    module, blocks = of_torchvision(name)
    assert blocks.count == COUNTS.get(name, blocks.count) >= 4
    assert blocks.depths.keys() == {key for key, _ in module.named_parameters()}
    in_blocks = [d for d in blocks.depths.values() if 1 <= d <= blocks.count]
    assert set(in_blocks) == set(range(1, blocks.count + 1))
    assert in_blocks == sorted(in_blocks)
    head = {key for key, depth in blocks.depths.items() if depth == blocks.top}
    assert len(head) in (1, 2) and all(key.startswith(blocks.head) for key in head)
    # Small networks have a wide layer behind their blocks.
    sizes = {key: p.numel() for key, p in module.named_parameters()}
    inside = sum(sizes[key] for key, d in blocks.depths.items() if 1 <= d <= blocks.count)
    assert inside > 0.4 * sum(sizes[key] for key in sizes if key not in head)


SMALL = {"hidden_size": 16, "num_hidden_layers": 3, "num_attention_heads": 2}
TRANSFORMERS: dict[str, tuple[dict[str, Any], int, str, str]] = {
    # configuration: settings, blocks, something at the beginning, something behind the last block
    "BertConfig": (SMALL, 3, "bert.embeddings.LayerNorm.weight", "bert.pooler.dense.weight"),
    "RobertaConfig": (SMALL, 3, "roberta.embeddings.word_embeddings.weight", ""),
    "ElectraConfig": (SMALL, 3, "electra.embeddings.position_embeddings.weight", ""),
    "DebertaV2Config": (SMALL, 3, "deberta.embeddings.word_embeddings.weight", ""),
    "AlbertConfig": (SMALL, 1, "albert.embeddings.word_embeddings.weight", "albert.pooler.weight"),
    "ModernBertConfig": (SMALL, 3, "model.embeddings.norm.weight", "model.final_norm.weight"),
    "MPNetConfig": (SMALL, 3, "mpnet.embeddings.word_embeddings.weight", ""),
    "DistilBertConfig": ({}, 6, "distilbert.embeddings.LayerNorm.weight", ""),
    "LlamaConfig": (SMALL, 3, "model.embed_tokens.weight", "model.norm.weight"),
    "GPT2Config": ({}, 12, "transformer.wpe.weight", "transformer.ln_f.bias"),
    "XLNetConfig": ({}, 24, "transformer.word_embedding.weight", ""),
    "T5Config": (
        {},
        12,
        "transformer.shared.weight",
        "transformer.decoder.final_layer_norm.weight",
    ),
    "ViTConfig": (SMALL, 3, "vit.embeddings.cls_token", "vit.layernorm.weight"),
    "BeitConfig": (SMALL, 3, "beit.embeddings.cls_token", "beit.pooler.layernorm.weight"),
    "ConvNextConfig": ({}, 4, "convnext.embeddings.layernorm.weight", "convnext.layernorm.weight"),
    "SwinConfig": ({}, 4, "swin.embeddings.norm.weight", "swin.layernorm.weight"),
    "ResNetConfig": ({}, 4, "resnet.embedder.embedder.convolution.weight", ""),
}


@pytest.mark.parametrize("name", sorted(TRANSFORMERS))
def test_models_of_transformers_have_blocks_embeddings_and_a_head(name: str) -> None:
    import transformers

    settings, count, first, last = TRANSFORMERS[name]
    config = getattr(transformers, name)(**settings)
    images = ("ViTConfig", "BeitConfig", "ConvNextConfig", "SwinConfig", "ResNetConfig")
    task = "ImageClassification" if name in images else "SequenceClassification"
    with torch.device("meta"):
        module = getattr(transformers, f"AutoModelFor{task}").from_config(config)
    blocks = find_blocks(module, find_head(module))
    assert blocks.count == count
    assert blocks.depths[first] == 0
    behind = [key for key, depth in blocks.depths.items() if depth == blocks.behind]
    assert last in behind if last else not behind
    tables = [key for key in blocks.depths if "word_embedding" in key or "embed_tokens" in key]
    assert all(blocks.depths[key] == 0 for key in tables)


def test_the_convnet_of_this_package_has_its_three() -> None:
    blocks = find_blocks(ConvNet(3), ("head",))
    assert blocks.names == (("blocks.0",), ("blocks.1",), ("blocks.2",))
    assert [blocks.depths[k] for k in ("stem.weight", "norm.bias", "head.bias")] == [0, 0, 5]


def test_layers_of_weights_are_blocks_where_there_are_no_others() -> None:
    module = nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 4, 3), nn.Linear(4, 2)
    )
    blocks = find_blocks(module, ("4",))
    assert blocks.names == (("0", "1"), ("3",))
    assert blocks.depths["1.weight"] == 1 and blocks.depths["4.weight"] == 4
