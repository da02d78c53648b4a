"""Models of sounds: every kind gets a head by rule; a trial goes on exactly, and is exported."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch

from sft_tune.errors import ModelError
from sft_tune.spec.config import TrialConfig
from sft_tune.spec.model import ModelSpec
from sft_tune.trial.check import probe
from sft_tune.trial.export.verify import verify
from sft_tune.trial.export.write import export
from sft_tune.trial.load import load_checkpoint
from sft_tune.trial.models import build_model

STUDIES = Path(__file__).resolve().parents[3] / "studies" / "local"
CONVOLUTIONS: dict[str, Any] = {
    "conv_dim": [8, 8],
    "conv_kernel": [20, 8],
    "conv_stride": [10, 8],
    "num_feat_extract_layers": 2,
    "num_conv_pos_embeddings": 4,
    "num_conv_pos_embedding_groups": 2,
}
SMALL = {
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "classifier_proj_size": 8,
}
WHISPER = {
    "d_model": 16,
    "encoder_layers": 2,
    "encoder_attention_heads": 2,
    "encoder_ffn_dim": 32,
    "decoder_layers": 1,
    "decoder_attention_heads": 2,
    "decoder_ffn_dim": 32,
    "num_mel_bins": 16,
    "max_source_positions": 50,
    "vocab_size": 60,
    "pad_token_id": 0,
}
KINDS: dict[str, tuple[dict[str, Any], tuple[str, ...], tuple[int, ...]]] = {
    "wav2vec2": ({**SMALL, **CONVOLUTIONS}, ("projector", "classifier"), (4000,)),
    "hubert": ({**SMALL, **CONVOLUTIONS}, ("projector", "classifier"), (4000,)),
    "wavlm": ({**SMALL, **CONVOLUTIONS}, ("projector", "classifier"), (4000,)),
    "whisper": (WHISPER, ("projector", "classifier"), (16, 100)),
    "audio-spectrogram-transformer": (
        {**SMALL, "max_length": 32, "num_mel_bins": 32},
        ("classifier",),
        (32, 32),
    ),
}


def made(kind: str, folder: Path) -> Path:
    """Write a tiny model of ``kind`` with random weights, as pretraining leaves it."""
    from transformers import AutoConfig, AutoModel

    config = AutoConfig.for_model(kind, **KINDS[kind][0])
    torch.manual_seed(0)
    AutoModel.from_config(config).save_pretrained(folder)
    return folder


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_gets_a_head_by_rule_on_its_pretrained_backbone(
    kind: str, tmp_path: Path
) -> None:
    _, head, shape = KINDS[kind]
    model = ModelSpec(name=f"transformers:{made(kind, tmp_path)}")
    built = build_model("audio-classification", model, ("a", "b", "c"), seed=1)
    assert built.head == head and built.blocks.count >= 2
    key = "input_features" if kind == "whisper" else "input_values"
    built.module.eval()
    with torch.inference_mode():
        assert built.logits({key: torch.randn(2, *shape)}).shape == (2, 3)


@pytest.fixture
def sounds(tmp_path: Path) -> Callable[..., TrialConfig]:
    """Make configurations over tones and noise of 0.2 to 0.4 seconds, and a tiny wav2vec 2.0."""
    from transformers import Wav2Vec2FeatureExtractor

    generator = np.random.default_rng(0)
    for i in range(16):
        n = int(generator.integers(1600, 3200))
        name, wave = ("tone", np.sin(np.arange(n) * generator.uniform(0.2, 1)))
        if i % 2:
            name, wave = "noise", generator.normal(0, 0.2, n)
        (tmp_path / "sounds" / name).mkdir(parents=True, exist_ok=True)
        soundfile.write(tmp_path / "sounds" / name / f"{i:02}.wav", 0.5 * wave, 8000)
    folder = made("wav2vec2", tmp_path / "tiny")
    Wav2Vec2FeatureExtractor(sampling_rate=8000, return_attention_mask=True).save_pretrained(folder)

    def configure(**model: Any) -> TrialConfig:
        settings: dict[str, Any] = {
            "task": "audio-classification",
            "data": {"source": str(tmp_path / "sounds"), "validation_fraction": 0.25},
            "model": {"name": f"transformers:{folder}", **model},
            "training": {"epochs": 2, "batch_size": 4},
            "objective": {"rungs": 3},
            "seed": 3,
        }
        return TrialConfig.model_validate(settings)

    return configure


@pytest.mark.parametrize("lora", [None, 2])
def test_a_stopped_trial_goes_on_bit_for_bit_and_is_exported(
    lora: int | None,
    sounds: Callable[..., TrialConfig],
    new_runner: Callable[[str], Any],
    tmp_path: Path,
) -> None:
    config = sounds(lora_rank=lora)
    whole, broken = new_runner("whole"), new_runner("broken")
    assert whole.run(config).reason == "completed"
    left = iter(range(3))
    assert broken.run(config, should_stop=lambda: next(left, None) is None).reason == "stopped"
    outcome = broken.run(config)
    assert outcome.reason == "completed" and outcome.resumed_from == 3
    assert broken.numbers() == whole.numbers()
    assert broken.best()[0] == whole.best()[0]
    module: Any = load_checkpoint(broken.paths.best)
    assert module.labels == ("noise", "tone")
    out, reference = tmp_path / "exported", tmp_path / "reference.safetensors"
    out.mkdir()
    options: dict[str, Any] = {"reference": reference, "device": "cpu", "cache": broken.cache}
    facts = export(config, broken.paths.best, out, onnx=False, **options)
    assert facts["outputs"] == "classes"
    found = verify(config, out, call=facts["call"], onnx=False, batch_size=4, **options)
    assert found["difference"] < 1e-5
    assert found["metrics"]["accuracy"] == outcome.metrics["accuracy"]


def test_check_knows_sounds(sounds: Callable[..., TrialConfig], tmp_path: Path) -> None:
    facts = probe(sounds(), [4], device="cpu", cache=tmp_path / "prepared")
    assert facts["labels"] == ["noise", "tone"] and facts["batch_sizes"][0]["ok"]
    silent = sounds().model_copy(update={"model": ModelSpec(name="torchvision:resnet18")})
    with pytest.raises(ModelError, match="sounds need a model with a feature extractor"):
        probe(silent, [4], device="cpu", cache=tmp_path / "prepared")
