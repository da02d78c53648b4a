"""The lines of code that use exported files, for their model card."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

TEXT = """\
```python
import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained(".")
model = AutoModelForSequenceClassification.from_pretrained(".").eval()
inputs = tokenizer(["a text"], truncation=True, padding=True, return_tensors="pt")
with torch.inference_mode():
    logits = model(**inputs{call}).logits
print(model.config.id2label[int(logits.argmax())])
```"""

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
print(model.config.id2label[int(logits.argmax())])
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
    logits = model(preprocess(Image.open("photo.jpg"), model.settings)[None])
print(model.labels[int(logits.argmax())])
```"""

ONNX = """\
```python
import onnxruntime

session = onnxruntime.InferenceSession("model.onnx")
# The inputs as above, as NumPy arrays.
logits = session.run(["logits"], {name: array for name, array in arrays.items()})[0]
```"""


def snippets(exported: Mapping[str, Any], task: str) -> list[str]:
    """Return blocks of Markdown that load the files in the working directory, and use them."""
    if exported["library"] == "transformers":
        call = "".join(f", {name}={value}" for name, value in exported["call"].items())
        found = [(TEXT if task.startswith("text") else IMAGES).replace("{call}", call)]
    else:
        found = [SCRIPT, PROGRAM]
    return [*found, ONNX] if exported["onnx"] else found
