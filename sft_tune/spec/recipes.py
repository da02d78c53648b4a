"""Recommended settings and spaces of the families of models, as text of a study file."""

from __future__ import annotations

from dataclasses import dataclass

from sft_tune.errors import UserError
from sft_tune.spec.tasks import TASKS, Task

# The libraries' models of these kinds were trained with AdamW and are fine-tuned with it.
_ADAMW_MODELS = ("vit", "swin", "maxvit", "convnext", "deit", "eva", "beit", "mixer", "coatnet")


@dataclass(frozen=True)
class Recipe:
    """The recommended settings of a family of models, as text of a study file.

    Attributes:
        why: what the settings follow, one line.
        training: lines of the section `training`.
        space: lines of the section `space`.
    """

    why: str
    training: str
    space: str


RECIPES: dict[str, Recipe] = {
    "convnet": Recipe(
        why="A small network learns fast and far: high rates, many short epochs.",
        training="""\
  optimizer: adamw
  learning_rate: 1e-3
  schedule: cosine
  batch_size: 32
  epochs: 20
  {augment}
""",
        space="""\
  # The setting that matters most, searched over two orders of magnitude.
  learning_rate: {low: 1e-4, high: 1e-2, log: true}
  schedule: [cosine, linear, constant]
  # More epochs are only better when the data is many; each trial is judged on its own schedule.
  epochs: [10, 20, 40]
  batch_size: [16, 32, 64]
  weight_decay: {low: 1e-4, high: 0.1, log: true}
  # Softer targets help where labels are few or noisy.
  label_smoothing: [0.0, 0.1]
""",
    ),
    "cnn": Recipe(
        why="Convolutional networks: SGD with momentum, as they were pretrained.",
        training="""\
  optimizer: sgd
  momentum: 0.9
  learning_rate: 0.01
  schedule: cosine
  weight_decay: 1e-4
  batch_size: 64
  epochs: 6
  {augment}
""",
        space="""\
  # The setting that matters most. For adamw search 1e-5 to 1e-3 instead.
  learning_rate: {low: 1e-3, high: 0.1, log: true}
  schedule: [cosine, exponential]
  # The exponential schedule's factor an epoch, searched only where it is used.
  decay_factor: {low: 0.5, high: 0.95, when: {schedule: exponential}}
  # Each trial is judged on its own schedule, so that long ones are not cut unfairly.
  epochs: [3, 6, 12]
  batch_size: [32, 64, 128]
  weight_decay: {low: 1e-5, high: 1e-2, log: true}
  # The new head starts at random, the backbone does not: it may need a higher rate.
  head_multiplier: {low: 1.0, high: 10.0, log: true}
""",
    ),
    "transformer": Recipe(
        why="Vision transformers and their kin: AdamW with low rates and a warm-up.",
        training="""\
  optimizer: adamw
  learning_rate: 5e-5
  schedule: cosine
  warmup: 0.1
  weight_decay: 0.05
  batch_size: 32
  epochs: 5
  {augment}
""",
        space="""\
  # The setting that matters most; above 1e-3 these models forget what they were pretrained on.
  learning_rate: {low: 5e-6, high: 5e-4, log: true}
  # Without a warm-up the first steps of AdamW can undo the pretraining.
  warmup: {low: 0.0, high: 0.3}
  epochs: [3, 5, 10]
  batch_size: [16, 32, 64]
  weight_decay: {low: 1e-3, high: 0.3, log: true}
  label_smoothing: [0.0, 0.1]
  # The new head starts at random, the backbone does not: it may need a higher rate.
  head_multiplier: {low: 1.0, high: 30.0, log: true}
""",
    ),
    "detector": Recipe(
        why="Detectors: small batches of large images, AdamW with low rates and a warm-up.",
        training="""\
  optimizer: adamw
  learning_rate: 1e-4
  schedule: cosine
  warmup: 0.1
  weight_decay: 1e-4
  clip_norm: 1.0
  batch_size: 8
  epochs: 12
  {augment}
""",
        space="""\
  # The setting that matters most.
  learning_rate: {low: 1e-5, high: 1e-3, log: true}
  epochs: [6, 12, 24]
  weight_decay: {low: 1e-5, high: 1e-2, log: true}
  # The new layers start at random, the rest does not: they may need a higher rate.
  head_multiplier: {low: 1.0, high: 10.0, log: true}
""",
    ),
    "sounds": Recipe(
        why="Audio transformers: AdamW with low rates and a warm-up, small batches of long inputs.",
        training="""\
  optimizer: adamw
  learning_rate: 5e-5
  schedule: linear
  warmup: 0.1
  weight_decay: 0.01
  batch_size: 8
  epochs: 5
  clip_norm: 1.0
""",
        space="""\
  # The setting that matters most.
  learning_rate: {low: 5e-6, high: 5e-4, log: true}
  epochs: [3, 5, 10]
  batch_size: [8, 16, 32]
  # Without a warm-up the first steps of AdamW can undo the pretraining.
  warmup: {low: 0.0, high: 0.3}
  weight_decay: {low: 1e-3, high: 0.1, log: true}
  # The new head starts at random, the backbone does not: it may need a higher rate.
  head_multiplier: {low: 1.0, high: 30.0, log: true}
""",
    ),
    "encoder": Recipe(
        why="Text encoders: the recipe of BERT (Devlin et al. 2018, appendix A.3), widened.",
        training="""\
  optimizer: adamw
  learning_rate: 3e-5
  schedule: linear
  warmup: 0.1
  weight_decay: 0.01
  batch_size: 16
  epochs: 3
  clip_norm: 1.0
""",
        space="""\
  # The setting that matters most. 2e-5 to 5e-5 suit base models; small ones take more.
  learning_rate: {low: 5e-6, high: 3e-4, log: true}
  epochs: [2, 3, 4]
  batch_size: [16, 32]
  # Without a warm-up the first steps of AdamW can undo the pretraining.
  warmup: {low: 0.0, high: 0.2}
  weight_decay: {low: 1e-3, high: 0.3, log: true}
  # On few examples dropout is the cheapest regularization.
  model.dropout: {low: 0.0, high: 0.3}
""",
    ),
    "translator": Recipe(
        why="Encoder-decoders: all weights, at the rates of T5's fine-tuning (Raffel et al. 2020).",
        training="""\
  optimizer: adamw
  learning_rate: 3e-4
  schedule: linear
  warmup: 0.1
  weight_decay: 0.01
  batch_size: 32
  epochs: 3
  clip_norm: 1.0
""",
        space="""\
  # The setting that matters most. 1e-4 to 1e-3 suit T5; models of BART's kind take a tenth.
  learning_rate: {low: 1e-5, high: 1e-3, log: true}
  epochs: [2, 3, 5]
  batch_size: [16, 32, 64]
  warmup: {low: 0.0, high: 0.2}
  label_smoothing: [0.0, 0.1]
""",
    ),
    "writer": Recipe(
        why="Language models: LoRA on all linear layers (Hu et al. 2022; Dettmers et al. 2023).",
        training="""\
  optimizer: adamw
  learning_rate: 2e-4
  schedule: cosine
  warmup: 0.05
  weight_decay: 0.0
  batch_size: 16
  micro_batch: 4        # so many examples at once: the gradient is that of the whole batch
  epochs: 2
  clip_norm: 1.0
  gradient_checkpointing: true
""",
        space="""\
  # The setting that matters most. LoRA takes ten times the rate of training all weights.
  learning_rate: {low: 2e-5, high: 1e-3, log: true}
  # More capacity for what is new; low ranks do for most tasks.
  model.lora_rank: [8, 16, 32]
  epochs: [1, 2, 3]
  batch_size: [8, 16, 32]
  warmup: {low: 0.0, high: 0.1}
""",
    ),
}


def family_of(task: Task, model: str) -> str:
    """Return the key in `RECIPES` of the family that ``model``, as in a study file, belongs to.

    Raises:
        UserError: the model is of no known kind, or does not fit the task.
    """
    scheme, _, rest = model.partition(":")
    if TASKS[task].input != "image":
        sounds = TASKS[task].input == "audio"
        if scheme == "transformers" and rest:
            if TASKS[task].writes:
                return "translator" if task == "seq2seq" else "writer"
            return "sounds" if sounds else "encoder"
        known = "facebook/wav2vec2-base" if sounds else "google-bert/bert-base-uncased"
        raise UserError(
            f"a model for {task} is transformers:ID-or-path, not {model!r}; "
            f"for example transformers:{known}"
        )
    if TASKS[task].boxes:
        if scheme == "torchvision" and rest:
            return "detector"
        raise UserError(
            f"a model for {task} is torchvision:NAME, not {model!r}; for example "
            "torchvision:fasterrcnn_resnet50_fpn_v2"
        )
    if model == "builtin:convnet" and not TASKS[task].masks:
        return "convnet"
    if scheme in ("torchvision", "timm") and rest:
        return "transformer" if rest.lower().startswith(_ADAMW_MODELS) else "cnn"
    if scheme == "transformers" and rest:
        return "transformer"
    raise UserError(
        f"a model for {task} is torchvision:NAME, timm:NAME, transformers:ID-or-path or "
        f"builtin:convnet, not {model!r}; for example torchvision:resnet18"
    )
