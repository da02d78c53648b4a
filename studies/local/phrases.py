"""Sentences of a small grammar, in English and in Spanish, and models that are made for them.

The functions are called with the name of a split, and return columns, or None for no such split.
`python phrases.py` writes the configurations and tokenizers of the folders gpt2_tiny and t5_tiny.
"""

from random import Random

# English; Spanish, of nouns with their gender.
NOUNS = {
    "dog": ("perro", "m"),
    "house": ("casa", "f"),
    "book": ("libro", "m"),
    "table": ("mesa", "f"),
    "cat": ("gato", "m"),
    "door": ("puerta", "f"),
    "boat": ("barco", "m"),
    "girl": ("chica", "f"),
}
ADJECTIVES = {"red": "rojo", "white": "blanco", "small": "pequeño", "new": "nuevo", "old": "viejo"}
VERBS = {"sees": "ve", "wants": "quiere", "moves": "mueve", "sells": "vende", "has": "tiene"}
ARTICLES = {"the": {"m": "el", "f": "la"}, "a": {"m": "un", "f": "una"}}
COUNTS = {"train": 1500, "validation": 150, "test": 150}


def translations(split):
    """Sentences as ``source`` and ``target``; no sentence of a split is in another."""
    if split not in COUNTS:
        return None
    random, pairs = Random(0), {}
    while len(pairs) < sum(COUNTS.values()):
        (one, uno), (verb, verbo), (two, dos) = _noun(random), _verb(random), _noun(random)
        pairs[f"{one} {verb} {two}"] = f"{uno} {verbo} {dos}"
    chosen = list(pairs.items())
    start = sum(COUNTS[name] for name in list(COUNTS)[: list(COUNTS).index(split)])
    sources, targets = zip(*chosen[start : start + COUNTS[split]], strict=True)
    return {"source": list(sources), "target": list(targets)}


def prompts(split):
    """The same as ``prompt`` and ``completion``."""
    columns = translations(split)
    if columns is None:
        return None
    return {"prompt": [f"{s} =" for s in columns["source"]], "completion": columns["target"]}


def _noun(random):
    noun, (nombre, gender) = random.choice(list(NOUNS.items()))
    article = random.choice(list(ARTICLES))
    articulo = ARTICLES[article][gender]
    if random.random() < 0.3:
        return f"{article} {noun}", f"{articulo} {nombre}"
    adjective, adjetivo = random.choice(list(ADJECTIVES.items()))
    agreeing = adjetivo if gender == "m" else f"{adjetivo[:-1]}a"
    # The adjective stands behind its noun in Spanish.
    return f"{article} {adjective} {noun}", f"{articulo} {nombre} {agreeing}"


def _verb(random):
    return random.choice(list(VERBS.items()))


def write_models(folder):
    """Write a GPT-2 and a T5 of 0.1 and 0.2 million parameters, without weights."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import GPT2Config, PreTrainedTokenizerFast, T5Config

    english = [*ARTICLES, *NOUNS, *ADJECTIVES, *VERBS]
    adjetivos = [a for o in ADJECTIVES.values() for a in (o, f"{o[:-1]}a")]
    articulos = [word for pair in ARTICLES.values() for word in pair.values()]
    spanish = [*articulos, *(n for n, _ in NOUNS.values()), *adjetivos, *VERBS.values()]
    vocabulary = ["<pad>", "</s>", "<unk>", *dict.fromkeys([*english, *spanish, "="])]
    index = {word: i for i, word in enumerate(vocabulary)}
    size = len(vocabulary)
    configurations = {
        "gpt2_tiny": GPT2Config(
            vocab_size=size, n_positions=64, n_embd=64, n_layer=2, n_head=2,
            bos_token_id=1, eos_token_id=1, pad_token_id=0,
            resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0,
        ),
        "t5_tiny": T5Config(
            vocab_size=size, d_model=64, d_kv=16, d_ff=128, num_layers=2, num_decoder_layers=2,
            num_heads=4, eos_token_id=1, pad_token_id=0, decoder_start_token_id=0,
            dropout_rate=0.0,
        ),
    }  # fmt: skip
    for name, configuration in configurations.items():
        words = Tokenizer(models.WordLevel(index, unk_token="<unk>"))
        words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
        if name == "t5_tiny":
            words.post_processor = processors.TemplateProcessing(
                single="$A </s>", special_tokens=[("</s>", 1)]
            )
        tokenizer = PreTrainedTokenizerFast(
            tokenizer_object=words, eos_token="</s>", pad_token="<pad>", unk_token="<unk>"
        )
        tokenizer.model_max_length = 64
        tokenizer.save_pretrained(folder / name)
        configuration.save_pretrained(folder / name)


if __name__ == "__main__":
    from pathlib import Path

    write_models(Path(__file__).parent)
