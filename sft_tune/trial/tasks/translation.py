"""From a text to a text: the next token of the target; what is written, by chrF, BLEU, ROUGE."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from importlib import import_module
from typing import Any

from sft_tune.errors import TrialError
from sft_tune.trial.data import Prepared, Split, TextSplit
from sft_tune.trial.data.text import load_tokenizer
from sft_tune.trial.losses import IGNORED
from sft_tune.trial.tasks import language
from sft_tune.trial.tasks.language import keep, share_of_loss, weight
from sft_tune.trial.tasks.protocol import Outputs

__all__ = ["keep", "metrics", "share_of_loss", "weight"]

ALWAYS = ("loss", "token_accuracy")
# What is computed of all that is written; ROUGE, which is slow, only where it is asked for.
WRITTEN = ("chrf", "bleu", "exact_match")

Texts = Sequence[str]


def metrics(names: Iterable[str], kept: Outputs, split: Split, data: Prepared) -> dict[str, float]:
    """Return `ALWAYS`, and where texts were written `WRITTEN` and ``names``.

    ``loss`` and ``token_accuracy`` are of the true tokens before each. chrF (Popović 2015) and
    BLEU (Papineni et al. 2002) of the whole split by sacrebleu, 0 to 100; ROUGE (Lin 2004) by
    rouge-score, the mean F of the texts; ``exact_match`` is the share of texts that are equal but
    for spaces around them.

    Raises:
        TrialError: where a library is not installed.
    """
    found = language.metrics((), kept, split, data)
    values = {name: found[name] for name in ALWAYS}
    references = split.references if isinstance(split, TextSplit) else None
    if "written" not in kept or references is None or data.tokenizer is None:
        return values
    tokenizer = load_tokenizer(data.tokenizer)
    rows = [[token for token in row if token != IGNORED] for row in kept["written"].tolist()]
    texts = [tokenizer.decode(row, skip_special_tokens=True).strip() for row in rows]
    true = [references.text(i).strip() for i in range(len(split))]
    for name in dict.fromkeys((*WRITTEN, *names)):
        if name not in values:
            values[name] = SCORES[name](texts, true)
    return values


def _chrf(texts: Texts, references: Texts) -> float:
    return float(_library("sacrebleu").corpus_chrf(texts, [references]).score)


def _bleu(texts: Texts, references: Texts) -> float:
    return float(_library("sacrebleu").corpus_bleu(texts, [references]).score)


def _exact(texts: Texts, references: Texts) -> float:
    return sum(a == b for a, b in zip(texts, references, strict=True)) / len(texts)


def _rouge(kind: str) -> Callable[[Texts, Texts], float]:
    def score(texts: Texts, references: Texts) -> float:
        scorer = _library("rouge_score.rouge_scorer").RougeScorer([kind])
        pairs = zip(references, texts, strict=True)
        return float(sum(scorer.score(*pair)[kind].fmeasure for pair in pairs)) / len(texts)

    return score


SCORES: dict[str, Callable[[Texts, Texts], float]] = {
    "chrf": _chrf,
    "bleu": _bleu,
    "exact_match": _exact,
    "rouge1": _rouge("rouge1"),
    "rouge2": _rouge("rouge2"),
    "rougeL": _rouge("rougeL"),
}


def _library(name: str) -> Any:
    try:
        return import_module(name)
    except ImportError as error:
        raise TrialError(
            f"seq2seq is measured by {name.partition('.')[0]}, which is not installed; "
            "pip install 'sft_tune[text]'"
        ) from error
