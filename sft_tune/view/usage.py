"""The lines of code that use exported files, for their model card."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from sft_tune.spec.tasks import TASKS


class Use(NamedTuple):
    """The lines in which the use of one of transformers' models differs from that of another.

    Attributes:
        model: its class.
        reader: the class that prepares its inputs.
        name: what the reader is called.
        inputs: lines that make ``inputs``.
        imports: lines that import what is used beside transformers.
        run: the line that makes the outputs.
        result: what is done with them; ``{result}`` stands for the line of `RESULTS`.
    """

    model: str
    reader: str
    name: str
    inputs: str
    imports: str = "import torch"
    run: str = "logits = model(**inputs{call}).logits"
    result: str = "{result}"


TEXT = Use(
    "AutoModelForSequenceClassification",
    "AutoTokenizer",
    "tokenizer",
    'inputs = tokenizer(["a text"], truncation=True, padding=True, return_tensors="pt")',
)
WORDS = Use(
    "AutoModelForTokenClassification",
    "AutoTokenizer",
    "tokenizer",
    """\
words = ["a", "list", "of", "words"]
inputs = tokenizer([words], is_split_into_words=True, truncation=True, return_tensors="pt")""",
)
SOUNDS = Use(
    "AutoModelForAudioClassification",
    "AutoFeatureExtractor",
    "extractor",
    """\
sound, rate = soundfile.read("sound.wav")  # [samples] or [samples, channels]
sound = sound if sound.ndim == 1 else sound.mean(axis=1)
# Another rate is refused: resample to extractor.sampling_rate first.
inputs = extractor(sound, sampling_rate=rate, return_tensors="pt")""",
    imports="import soundfile\nimport torch",
)
IMAGES = Use(
    "AutoModelForImageClassification",
    "AutoImageProcessor",
    "processor",
    'inputs = processor(Image.open("photo.jpg"), return_tensors="pt")',
    imports="import torch\nfrom PIL import Image",
)
MASKS = IMAGES._replace(
    model="AutoModelForSemanticSegmentation",
    result="""\
# They may be smaller than the image that was given.
logits = torch.nn.functional.interpolate(logits, inputs["pixel_values"].shape[2:], mode="bilinear")
{result}""",
)
PROMPTED = Use(
    "AutoModelForCausalLM",
    "AutoTokenizer",
    "tokenizer",
    'inputs = tokenizer("a prompt", return_tensors="pt")',
    run="written = model.generate(**inputs, max_new_tokens=100)",
)
CHAT = PROMPTED._replace(
    inputs="""\
chat = [{"role": "user", "content": "a question"}]
inputs = tokenizer.apply_chat_template(
    chat, add_generation_prompt=True, return_dict=True, return_tensors="pt"
)"""
)
REWRITTEN = PROMPTED._replace(
    model="AutoModelForSeq2SeqLM",
    result="print(tokenizer.decode(written[0], skip_special_tokens=True))",
)

SCRIPT = """\
```sh
python load_model.py photo.jpg
```"""

PROGRAM = """\
```python
import torch
from load_model import load_model, preprocess
from PIL import Image

model = load_model()
with torch.inference_mode():
    logits = model(preprocess(Image.open("photo.jpg"), model.settings)[None]){out}
{result}
```"""

BOXES = """\
```python
import torch
from load_model import load_model, preprocess
from PIL import Image

model = load_model()
with torch.inference_mode():
    found = model([preprocess(Image.open("photo.jpg"), model.settings)])[0]
for box, label, score in zip(found["boxes"], found["labels"], found["scores"]):
    print({labels}[label - 1], float(score), box.tolist())  # 0 is the background
```"""

ONNX = """\
```python
import onnxruntime

session = onnxruntime.InferenceSession("model.onnx")
# The inputs as above, as NumPy arrays.
logits = session.run(["logits"], {name: array for name, array in arrays.items()})[0]
```"""


RESULTS = {
    "classes": "print({labels}[int(logits.argmax())])",
    "labels": "print([{labels}[i] for i, logit in enumerate(logits[0]) if logit > 0])",
    # The tag of a word is that of its first token.
    "tags": "places = inputs.word_ids(0)\n"
    "for index, word in enumerate(words):\n"
    "    print(word, {labels}[int(logits[0, places.index(index)].argmax())])",
    "masks": "mask = logits[0].argmax(dim=0)\nprint({{labels}[i] for i in mask.unique().tolist()})",
    "number": "print(float(logits[0, 0]))",
    "text": 'new = written[0, inputs["input_ids"].shape[1] :]\n'
    "print(tokenizer.decode(new, skip_special_tokens=True))",
}
"""What is done with the outputs, by what they are."""


def snippets(exported: Mapping[str, Any], task: str) -> list[str]:
    """Return blocks of Markdown that load the files in the working directory, and use them."""
    if exported["library"] == "transformers":
        found, labels = [_code(_use(exported, task), exported["call"])], "model.config.id2label"
    elif exported["outputs"] == "boxes":
        return [SCRIPT, BOXES.replace("{labels}", "model.labels")]
    else:
        found, labels = [SCRIPT, PROGRAM], "model.labels"
    result = RESULTS[exported["outputs"]].replace("{labels}", labels)
    out = '["out"]' if exported["outputs"] == "masks" else ""
    found = [text.replace("{result}", result).replace("{out}", out) for text in found]
    return [*found, ONNX] if exported["onnx"] else found


def _use(exported: Mapping[str, Any], task: str) -> Use:
    if exported["outputs"] == "masks":
        return MASKS
    if exported["outputs"] == "text":
        return _writer(exported["config"]["data"], task)
    kind = next(facts.input for name, facts in TASKS.items() if name == task)
    return {"text": TEXT, "words": WORDS, "image": IMAGES, "audio": SOUNDS}[kind]


def _writer(data: Mapping[str, Any], task: str) -> Use:
    """Return the use of a model that writes."""
    if task == "seq2seq":
        given = repr(data["source_prefix"] + "a text")
        return REWRITTEN._replace(inputs=f'inputs = tokenizer({given}, return_tensors="pt")')
    return PROMPTED if data["messages_column"] is None else CHAT


def _code(use: Use, call: Mapping[str, Any]) -> str:
    """Return the block of ``use`` that passes the arguments ``call`` to the model."""
    classes = ", ".join(sorted((use.model, use.reader)))
    given = "".join(f", {name}={value}" for name, value in call.items())
    run = use.run.replace("{call}", given)
    return f"""\
```python
{use.imports}
from transformers import {classes}

{use.name} = {use.reader}.from_pretrained(".")
model = {use.model}.from_pretrained(".").eval()
{use.inputs}
with torch.inference_mode():
    {run}
{use.result}
```"""
