"""The lines of code that use exported files, for their model card."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sft_tune.spec.tasks import TASKS

TEXT = """\
```python
import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained(".")
model = AutoModelForSequenceClassification.from_pretrained(".").eval()
inputs = tokenizer(["a text"], truncation=True, padding=True, return_tensors="pt")
with torch.inference_mode():
    logits = model(**inputs{call}).logits
{result}
```"""

WORDS = """\
```python
import torch
from transformers import AutoModelForTokenClassification, AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained(".")
model = AutoModelForTokenClassification.from_pretrained(".").eval()
words = ["a", "list", "of", "words"]
inputs = tokenizer([words], is_split_into_words=True, truncation=True, return_tensors="pt")
with torch.inference_mode():
    logits = model(**inputs{call}).logits
{result}
```"""

SOUNDS = """\
```python
import soundfile
import torch
from transformers import AutoFeatureExtractor, AutoModelForAudioClassification

extractor = AutoFeatureExtractor.from_pretrained(".")
model = AutoModelForAudioClassification.from_pretrained(".").eval()
sound, rate = soundfile.read("sound.wav")  # [samples] or [samples, channels]
sound = sound if sound.ndim == 1 else sound.mean(axis=1)
# Another rate is refused: resample to extractor.sampling_rate first.
inputs = extractor(sound, sampling_rate=rate, return_tensors="pt")
with torch.inference_mode():
    logits = model(**inputs{call}).logits
{result}
```"""

WRITER = """\
```python
import torch
from transformers import {kind}, AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained(".")
model = {kind}.from_pretrained(".").eval()
{inputs}
with torch.inference_mode():
    written = model.generate(**inputs, max_new_tokens=100)
{result}
```"""

PROMPT = 'inputs = tokenizer("a prompt", return_tensors="pt")'
CHAT = """\
chat = [{"role": "user", "content": "a question"}]
inputs = tokenizer.apply_chat_template(
    chat, add_generation_prompt=True, return_dict=True, return_tensors="pt"
)"""

IMAGES = """\
```python
import torch
from PIL import Image
from transformers import AutoImageProcessor, AutoModelForImageClassification

processor = AutoImageProcessor.from_pretrained(".")
model = AutoModelForImageClassification.from_pretrained(".").eval()
inputs = processor(Image.open("photo.jpg"), return_tensors="pt")
with torch.inference_mode():
    logits = model(**inputs{call}).logits
{result}
```"""

MASKS = """\
```python
import torch
from PIL import Image
from transformers import AutoImageProcessor, AutoModelForSemanticSegmentation

processor = AutoImageProcessor.from_pretrained(".")
model = AutoModelForSemanticSegmentation.from_pretrained(".").eval()
inputs = processor(Image.open("photo.jpg"), return_tensors="pt")
with torch.inference_mode():
    logits = model(**inputs{call}).logits
# They may be smaller than the image that was given.
logits = torch.nn.functional.interpolate(logits, inputs["pixel_values"].shape[2:], mode="bilinear")
{result}
```"""

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


def _writer(data: Mapping[str, Any], task: str) -> str:
    """Return the lines that let a model write."""
    if task == "seq2seq":
        given = repr(data["source_prefix"] + "a text")
        text = WRITER.replace("{inputs}", f'inputs = tokenizer({given}, return_tensors="pt")')
        text = text.replace(
            "{result}", "print(tokenizer.decode(written[0], skip_special_tokens=True))"
        )
        return text.replace("{kind}", "AutoModelForSeq2SeqLM")
    text = WRITER.replace("{inputs}", PROMPT if data["messages_column"] is None else CHAT)
    return text.replace("{kind}", "AutoModelForCausalLM")


def snippets(exported: Mapping[str, Any], task: str) -> list[str]:
    """Return blocks of Markdown that load the files in the working directory, and use them."""
    if exported["library"] == "transformers":
        call = "".join(f", {name}={value}" for name, value in exported["call"].items())
        kind = next(facts.input for name, facts in TASKS.items() if name == task)
        texts = {"text": TEXT, "words": WORDS, "image": IMAGES, "audio": SOUNDS}
        text = (MASKS if exported["outputs"] == "masks" else texts[kind]).replace("{call}", call)
        if exported["outputs"] == "text":
            text = _writer(exported["config"]["data"], task)
        found, labels = [text], "model.config.id2label"
    elif exported["outputs"] == "boxes":
        return [SCRIPT, BOXES.replace("{labels}", "model.labels")]
    else:
        found, labels = [SCRIPT, PROGRAM], "model.labels"
    result = RESULTS[exported["outputs"]].replace("{labels}", labels)
    out = '["out"]' if exported["outputs"] == "masks" else ""
    found = [text.replace("{result}", result).replace("{out}", out) for text in found]
    return [*found, ONNX] if exported["onnx"] else found
