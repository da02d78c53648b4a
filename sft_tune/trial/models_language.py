"""Language models of transformers: rows of several examples, and what is asked of a model."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from sft_tune.errors import ModelError
from sft_tune.trial.data import TextSplit, gather

# How far logits may differ that must be the same, relative to the largest.
SAME = 1e-3
TRIED = 6


def forward_arguments(inputs: dict[str, Tensor], dtype: torch.dtype) -> dict[str, Tensor]:
    """Return what the forward pass of a model is given for ``inputs``.

    Where rows hold several examples (``segments`` [b, length], 0 where nothing is), positions
    begin anew with each, and a token sees those before it in its own example only.

    Args:
        inputs: of `Batch`.
        dtype: of what is added to the attention's scores.
    """
    if "segments" not in inputs:
        return inputs
    given = dict(inputs)
    segments = given.pop("segments")
    seen = (segments[:, :, None] == segments[:, None, :]).tril()
    mask = torch.zeros(seen.shape, dtype=dtype, device=seen.device)
    given["attention_mask"] = mask.masked_fill_(~seen, torch.finfo(dtype).min)[:, None]
    given["position_ids"] = seen.sum(dim=2) - 1
    return given


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
    try:
        together = model.logits(inputs)[0, second]
    except (RuntimeError, ValueError, TypeError, IndexError) as error:
        raise _no_packing(name) from error
    ids = inputs["input_ids"][:, second]
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
