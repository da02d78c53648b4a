from __future__ import annotations

import json
import re
import shutil

import pytest

from sft_tune.errors import DataError, ModelError


def two_classes(make, path, texts):
    return make.jsonl(path, [{"text": t, "label": "ab"[i % 2]} for i, t in enumerate(texts)])


def test_texts_are_tokenized_with_the_models_own_tokenizer(prepare_texts, make, tmp_path):
    path = two_classes(make, tmp_path / "x.jsonl", ["good film"] * 3 + ["bad unheard"] * 3)
    data = prepare_texts(path, validation_fraction=0.5)
    for split in (data.train, data.validation):
        assert set(map(tuple, make.texts(split))) <= {(2, 5, 7, 3), (2, 6, 1, 3)}
        assert split.pad_id == 0
        assert split.token_types is None
        assert not split.pad_left


def test_long_texts_are_cut_and_the_share_is_said(prepare_texts, make, tmp_path):
    texts = ["film " * n for n in (1, 2, 3, 4)] * 5  # 3 to 6 tokens with the special ones
    path = two_classes(make, tmp_path / "x.jsonl", texts)
    data = prepare_texts(path, max_length=5, validation_fraction=0.5)
    assert max(data.train.lengths) == 5
    facts = [data.facts["tokens"][split] for split in ("train", "validation")]
    assert sum(f["share_cut"] * 10 for f in facts) == pytest.approx(5)  # exactly full is not cut
    assert max(f["max"] for f in facts) == 6
    assert all(f["limit"] == 5 and f["limit_from"] == "data.max_length" for f in facts)
    assert all(row[-1] == 3 for row in make.texts(data.train))


def test_the_models_maximum_wins_over_the_study_files(prepare_texts, make, tmp_path):
    path = two_classes(make, tmp_path / "x.jsonl", ["film " * 100] * 8)
    facts = prepare_texts(path, max_length=500).facts["tokens"]["train"]
    assert (facts["limit"], facts["limit_from"]) == (64, "the model")
    assert facts["share_cut"] == 1.0
    # A tokenizer that states no maximum: the number of positions is one.
    model = make.tokenizer(tmp_path / "other", model_max_length=int(1e30))
    facts = prepare_texts(path, max_length=500, model=f"transformers:{model}").facts
    assert facts["tokens"]["train"]["limit"] == 40
    # RoBERTa counts positions from the padding's id on.
    (model / "config.json").write_text(
        json.dumps({"model_type": "roberta", "max_position_embeddings": 42, "pad_token_id": 1})
    )
    facts = prepare_texts(path, max_length=500, model=f"transformers:{model}").facts
    assert facts["tokens"]["train"]["limit"] == 40


def test_empty_texts_are_refused_with_their_places(prepare_texts, make, tmp_path):
    texts = ["good", "", " \n", "bad", None, float("nan"), "film", "", "plot", "", "a", ""]
    path = two_classes(make, tmp_path / "x.jsonl", texts)
    lines = ", ".join(f"{path}, line {number}" for number in (2, 3, 5, 6, 8))
    message = (
        f"the train split of {path}: 7 of 12 texts are empty, at {lines} and 2 more. "
        "Fill them in, or remove these examples."
    )
    with pytest.raises(DataError, match=f"^{re.escape(message)}$"):
        prepare_texts(path)


def test_missing_labels_are_told_together_with_empty_texts(prepare_texts, tmp_path):
    path = tmp_path / "x.csv"
    path.write_text("text,label\ngood,1\n,0\nbad,\n")
    with pytest.raises(DataError) as caught:
        prepare_texts(path)
    labels, texts = str(caught.value).splitlines()
    assert f"1 of 3 labels are missing, at {path}, line 4" in labels
    assert f"1 of 3 texts are empty, at {path}, line 3" in texts


def test_empty_texts_of_validation_are_refused_and_those_of_test_are_counted(
    prepare_texts, make, tmp_path
):
    two_classes(make, tmp_path / "set" / "train.jsonl", ["good", "bad"] * 4)
    own = two_classes(make, tmp_path / "set" / "validation.jsonl", ["good", "bad", "", "film"])
    with pytest.raises(DataError, match=f"validation split .*: 1 of 4 .*, at {own}, line 3. Fill"):
        prepare_texts(tmp_path / "set")
    two_classes(make, tmp_path / "set" / "validation.jsonl", ["good", "bad"])
    two_classes(make, tmp_path / "set" / "test.jsonl", ["", "film", None, "good"])
    data = prepare_texts(tmp_path / "set", with_test=True)
    assert make.texts(data.test) == [[2, 3], [2, 7, 3], [2, 3], [2, 5, 3]]
    assert data.facts["tokens"]["test"]["missing_texts"] == 1


def test_without_special_tokens_an_empty_text_is_one_padding(prepare_texts, make, tmp_path):
    model = make.tokenizer(tmp_path / "plain")
    stored = json.loads((model / "tokenizer.json").read_text())
    stored["post_processor"] = None
    (model / "tokenizer.json").write_text(json.dumps(stored))
    two_classes(make, tmp_path / "set" / "train.jsonl", ["film"] * 8)
    two_classes(make, tmp_path / "set" / "test.jsonl", ["", "film"])
    data = prepare_texts(tmp_path / "set", model=f"transformers:{model}", with_test=True)
    assert make.texts(data.test) == [[0], [7]]


def test_numbers_are_texts_too(prepare_texts, make, tmp_path):
    path = two_classes(make, tmp_path / "x.jsonl", [1, 2.5, "film", "film"])
    assert prepare_texts(path, validation_fraction=0.5).facts["examples"]["train"] == 2


def test_padding_is_the_models(prepare_texts, make, tmp_path):
    model = make.tokenizer(
        tmp_path / "left", pad_token=None, eos_token="[SEP]", padding_side="left"
    )
    path = two_classes(make, tmp_path / "x.jsonl", ["film"] * 8)
    train = prepare_texts(path, model=f"transformers:{model}").train
    assert train.pad_left
    assert train.pad_id == 3  # no padding token: the end of text stands in for it


def test_token_types_are_kept_where_they_are_not_zero(prepare_texts, make, tmp_path):
    model = make.tokenizer(
        tmp_path / "typed", model_input_names=["input_ids", "attention_mask", "token_type_ids"]
    )
    stored = json.loads((model / "tokenizer.json").read_text())
    stored["post_processor"]["single"][0]["SpecialToken"]["type_id"] = 2
    (model / "tokenizer.json").write_text(json.dumps(stored))
    path = two_classes(make, tmp_path / "x.jsonl", ["good film"] * 8)
    train = prepare_texts(path, model=f"transformers:{model}").train
    assert train.token_types[:4].tolist() == [2, 0, 0, 0]


def test_another_tokenizer_makes_other_arrays(prepare_texts, make, tokenizer, tmp_path):
    path = two_classes(make, tmp_path / "x.jsonl", ["good film"] * 8)
    before = make.texts(prepare_texts(path).train)
    stored = json.loads((tokenizer / "tokenizer.json").read_text())
    vocabulary = stored["model"]["vocab"]
    vocabulary["good"], vocabulary["bad"] = vocabulary["bad"], vocabulary["good"]
    (tokenizer / "tokenizer.json").write_text(json.dumps(stored))
    after = make.texts(prepare_texts(path).train)
    assert (before[0], after[0]) == ([2, 5, 7, 3], [2, 6, 7, 3])


def test_a_model_without_a_tokenizer_is_explained(prepare_texts, make, tokenizer, tmp_path):
    path = two_classes(make, tmp_path / "x.jsonl", ["film"] * 8)
    with pytest.raises(ModelError, match="texts need a model with a tokenizer"):
        prepare_texts(path, model="torchvision:resnet18")
    with pytest.raises(ModelError, match=r"no folder .*nowhere"):
        prepare_texts(path, model=f"transformers:{tmp_path}/nowhere")
    (tokenizer / "tokenizer.json").unlink()
    with pytest.raises(ModelError, match="the tokenizer in .* cannot be loaded"):
        prepare_texts(path)
    (tokenizer / "config.json").write_text("{")
    with pytest.raises(ModelError, match=r"config\.json is not JSON|cannot be loaded"):
        prepare_texts(path)


def test_a_hub_id_is_found_in_the_local_cache(
    prepare_texts, make, tokenizer, tmp_path, monkeypatch
):
    import huggingface_hub.constants

    hub = tmp_path / "hub"
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(hub))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    path = two_classes(make, tmp_path / "x.jsonl", ["good film"] * 8)
    with pytest.raises(ModelError, match="not in the local Hugging Face cache"):
        prepare_texts(path, model="transformers:someone/words")
    kept = hub / "models--someone--words"
    shutil.copytree(tokenizer, kept / "snapshots" / "abc")
    (kept / "refs").mkdir()
    (kept / "refs" / "main").write_text("abc")
    data = prepare_texts(path, model="transformers:someone/words")
    assert make.texts(data.train)[0] == [2, 5, 7, 3]
