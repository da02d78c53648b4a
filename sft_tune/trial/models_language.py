"""Language models of transformers: rows of several examples, and what is asked of a model."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from sft_tune.errors import ModelError
from sft_tune.spec.config import TrialConfig
from sft_tune.spec.tasks import WRITTEN
from sft_tune.trial.data import TextSplit, gather
from sft_tune.trial.data.arrays import UNTAGGED
from sft_tune.trial.device import exact
from sft_tune.trial.models import BuiltModel, Writing

# How far logits may differ that must be the same, relative to the largest.
SAME = 1e-3
TRIED = 6


def writing_of(config: TrialConfig) -> Writing | None:
    """Return how a model of ``config`` writes; None where no text is measured."""
    objective = config.objective
    if objective.metric not in WRITTEN:
        return None
    return Writing(objective.beams, objective.max_new_tokens)


def written(model: BuiltModel, inputs: dict[str, Tensor]) -> Tensor:
    """Return the tokens that ``model`` writes for ``inputs``, int64 [b, length].

    By greedy or beam search, never at random, else as the pretrained model's own settings say.
    """
    module: Any = model.module
    how = model.writing or Writing(1, 1)
    given = {name: inputs[name] for name in ("input_ids", "attention_mask")}
    found: Tensor = module.generate(
        **given,
        num_beams=how.beams,
        max_new_tokens=how.max_new_tokens,
        do_sample=False,
        use_cache=True,
    )
    return found


def forward_arguments(
    module: Any, inputs: dict[str, Tensor], dtype: torch.dtype
) -> dict[str, Tensor]:
    """Return what the forward pass of a model is given for ``inputs``.

    Where rows hold several examples (``segments`` [b, length], 0 where nothing is), positions
    begin anew with each, and a token sees those before it in its own example only. Where a text
    is to be written (``labels`` [b, target length]), its tokens are read one place later.

    Args:
        module: the model.
        inputs: of `Batch`.
        dtype: of what is added to the attention's scores.
    """
    if "labels" in inputs:
        given = dict(inputs)
        given["decoder_input_ids"] = _shifted(module, given.pop("labels"))
        return given
    if "segments" not in inputs:
        return inputs
    given = dict(inputs)
    segments = given.pop("segments")
    seen = (segments[:, :, None] == segments[:, None, :]).tril()
    mask = torch.zeros(seen.shape, dtype=dtype, device=seen.device)
    given["attention_mask"] = mask.masked_fill_(~seen, torch.finfo(dtype).min)[:, None]
    given["position_ids"] = seen.sum(dim=2) - 1
    return given


def _shifted(module: Any, labels: Tensor) -> Tensor:
    """Return what the decoder reads where it is to write ``labels``."""
    shift = getattr(module, "prepare_decoder_input_ids_from_labels", None)
    if shift is not None:
        moved: Tensor = shift(labels=labels)
        return moved
    config = module.config
    moved = labels.new_full(labels.shape, config.pad_token_id)
    moved[:, 1:] = labels[:, :-1]
    moved[:, 0] = config.decoder_start_token_id
    return moved.masked_fill_(moved == UNTAGGED, config.pad_token_id)


@torch.inference_mode()
def check_causal(module: Any, name: str) -> None:
    """Check that what a token is answered does not depend on the tokens after it.

    A model that reads what comes after would be given what it is to write. The module is left in
    evaluation.

    Raises:
        ModelError: where it depends on them.
    """
    module.eval()
    device = next(module.parameters()).device
    ids = torch.arange(TRIED, device=device) % module.config.get_text_config().vocab_size
    other = ids.clone()
    other[-1] = 0
    rest = {"attention_mask": torch.ones_like(ids)[None], "use_cache": False}
    logits = [module(input_ids=row[None], **rest).logits[0, :-1] for row in (ids, other)]
    if _differ(*logits):
        raise ModelError(
            f"model.name: {name} reads what comes after a token, so it cannot learn to write; "
            "give a causal language model (of the kind of GPT, Llama, Qwen, ...)"
        )


def generation_settings(source: str, config: Any) -> Any:
    """Return how the pretrained model in ``source`` writes; by its ``config`` where it says not."""
    from transformers import GenerationConfig

    try:
        return GenerationConfig.from_pretrained(source)
    except OSError:
        return GenerationConfig.from_model_config(config)


@torch.inference_mode()
def check_packing(model: Any, split: TextSplit, name: str) -> None:
    """Check that an example in a row with others is answered as it is alone.

    Not every architecture takes positions and masks of one's own. The module is left in
    evaluation.

    Raises:
        ModelError: where others of the row are seen.
    """
    several = _first_with_two(split)
    if several is None:
        return
    model.module.eval()
    device = next(model.module.parameters()).device
    inputs = gather(split, torch.tensor([several]), device).inputs
    second = inputs["segments"][0] == 2
    ids = inputs["input_ids"][:, second]
    with exact(device):
        try:
            together = model.logits(inputs)[0, second]
        except (RuntimeError, ValueError, TypeError, IndexError) as error:
            raise _no_packing(name) from error
        alone = model.logits({"input_ids": ids, "attention_mask": torch.ones_like(ids)})[0]
    if _differ(together, alone):
        raise _no_packing(name)


def _no_packing(name: str) -> ModelError:
    return ModelError(
        f"data.packing: {name} does not keep the examples of a row apart; set packing: false"
    )


def _first_with_two(split: TextSplit) -> int | None:
    """Return the first row that holds two examples; None without one."""
    if split.segments is None:
        return None
    for row, start in enumerate(split.offsets[:-1].tolist()):
        if (split.segments[start : split.offsets[row + 1]] == 2).any():
            return row
    return None


def _differ(one: Tensor, other: Tensor) -> bool:
    one, other = one.float(), other.float()
    return bool((one - other).abs().max() > SAME * one.abs().max())
