"""Small language models, and a tokenizer of a few words, for tests."""

from __future__ import annotations

from pathlib import Path
from typing import Any

WORDS = "user assistant system : one two three four five six a b c d e f g h =".split()
TURN = "{{ message['role'] }} : {{ message['content'] }} </s>\n"
# Each turn in a line of its own; what the assistant says follows `assistant :`.
TEMPLATE = (
    "{% for message in messages %}" + TURN + "{% endfor %}"
    "{% if add_generation_prompt %}assistant :{% endif %}"
)
SIZES: dict[str, dict[str, Any]] = {
    "gpt2": {"n_positions": 64, "n_embd": 16, "n_layer": 2, "n_head": 2},
    "llama": {
        "hidden_size": 16,
        "intermediate_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "max_position_embeddings": 64,
        "tie_word_embeddings": False,
    },
    "mamba": {"hidden_size": 16, "num_hidden_layers": 1, "state_size": 4},
    "bert": {
        "hidden_size": 16,
        "intermediate_size": 32,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
    },
    "t5": {"d_model": 16, "d_kv": 8, "d_ff": 32, "num_layers": 1, "num_heads": 2},
    "bart": {
        "d_model": 16,
        "encoder_layers": 1,
        "decoder_layers": 1,
        "encoder_attention_heads": 2,
        "decoder_attention_heads": 2,
        "encoder_ffn_dim": 32,
        "decoder_ffn_dim": 32,
        "max_position_embeddings": 64,
    },
}
ENCODER_DECODERS = ("t5", "bart")


def write_model(folder: Path, kind: str, *, template: str | None = None, **special: Any) -> Path:
    """Write a model of ``kind`` with random weights and its tokenizer; return ``folder``.

    ``special`` are tokens of the tokenizer; None: it lacks this one.
    """
    import torch
    import transformers
    from tokenizers import Tokenizer, models, pre_tokenizers, processors

    vocabulary = {word: i for i, word in enumerate(["<pad>", "</s>", "<unk>", *WORDS])}
    words = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    if kind in ENCODER_DECODERS:
        words.post_processor = processors.TemplateProcessing(
            single="$A </s>", special_tokens=[("</s>", 1)]
        )
    tokens = {"eos_token": "</s>", "pad_token": "<pad>", "unk_token": "<unk>", **special}
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=words, **{name: token for name, token in tokens.items() if token}
    )
    tokenizer.chat_template = template
    tokenizer.save_pretrained(folder)
    config = transformers.AutoConfig.for_model(
        kind, vocab_size=len(vocabulary), bos_token_id=None, eos_token_id=1, **SIZES[kind]
    )
    if kind in ENCODER_DECODERS:
        config.pad_token_id = config.decoder_start_token_id = 0
    torch.manual_seed(0)
    auto = "AutoModelForSeq2SeqLM" if kind in ENCODER_DECODERS else "AutoModelForCausalLM"
    module = getattr(transformers, auto).from_config(config)
    for parameter in module.parameters():
        # Random weights of the library's size answer nearly the same to everything.
        parameter.data.mul_(4)
    module.save_pretrained(folder)
    return folder
