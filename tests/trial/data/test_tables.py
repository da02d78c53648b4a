from __future__ import annotations

import csv

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sft_tune.errors import DataError
from sft_tune.spec.data import DataSpec
from sft_tune.trial.data.sources import open_source

CLS, SEP = 2, 3


def rows(make, n, start=0):
    return [(r["text"], r["label"]) for r in make.reviews(n, start)]


@pytest.mark.parametrize("kind", ["csv", "tsv", "jsonl", "parquet"])
def test_every_kind_of_table_gives_the_same_data(prepare_texts, make, tmp_path, kind):
    import pandas as pd

    frame = pd.DataFrame(make.reviews(12))
    path = tmp_path / f"reviews.{kind}"
    if kind == "parquet":
        frame.to_parquet(path)
    elif kind == "jsonl":
        frame.to_json(path, orient="records", lines=True)
    else:
        frame.to_csv(path, index=False, sep="\t" if kind == "tsv" else ",")
    data = prepare_texts(path, validation_fraction=0.25)
    assert data.labels == ("bad", "good")
    assert [len(data.train), len(data.validation)] == [9, 3]
    found = sorted(make.texts(data.train) + make.texts(data.validation))
    # the = 9, film = 7, good = 5, bad = 6, very = 11
    expected = [[CLS, 9, 7, 5 + i % 2] + [11] * (i // 2) + [SEP] for i in range(12)]
    assert found == sorted(expected)


@pytest.mark.parametrize("kind", ["csv", "jsonl"])
def test_a_folder_of_tables_holds_the_splits(prepare_texts, make, tmp_path, kind):
    write = make.csv if kind == "csv" else make.jsonl
    for name, n, start in (("train", 8, 0), ("valid", 4, 8), ("test", 6, 12)):
        examples = make.reviews(n, start)
        given_rows = examples if kind == "jsonl" else [tuple(r.values()) for r in examples]
        write(tmp_path / "set" / f"{name}.{kind}", given_rows)
    data = prepare_texts(tmp_path / "set", with_test=True)
    assert [len(s) for s in (data.train, data.validation, data.test)] == [8, 4, 6]
    assert data.facts["examples"] == {"train": 8, "validation": 4, "test": 6}


def test_a_split_may_be_several_parts(prepare_texts, make, tmp_path):
    for i in range(3):
        make.jsonl(tmp_path / "set" / f"train-0000{i}-of-00003.jsonl", make.reviews(4, 4 * i))
    make.jsonl(tmp_path / "set" / "test" / "x.jsonl", make.reviews(2))
    data = prepare_texts(tmp_path / "set", with_test=True)
    assert len(data.train) + len(data.validation) == 12
    assert len(data.test) == 2


def test_splits_beside_one_file_are_named(prepare_texts, make, tmp_path):
    make.csv(tmp_path / "all.csv", rows(make, 8))
    make.csv(tmp_path / "dev.csv", rows(make, 4, 8))
    data = prepare_texts(tmp_path / "all.csv", validation="dev.csv")
    assert [len(data.train), len(data.validation)] == [8, 4]


def test_the_test_file_is_not_opened_by_the_search(prepare_texts, make, tmp_path):
    make.csv(tmp_path / "train.csv", rows(make, 10))
    (tmp_path / "test.csv").write_bytes(b"\xff\xfe no table at all")
    data = prepare_texts(tmp_path)
    assert data.test is None
    assert data.facts["test_from"] == "source"
    with pytest.raises(DataError, match=r"test\.csv is not UTF-8"):
        prepare_texts(tmp_path, with_test=True)


def test_columns_can_be_named(prepare_texts, make, tmp_path):
    path = make.csv(tmp_path / "x.csv", rows(make, 8), header="review,sentiment")
    data = prepare_texts(path, text_column="review", label_column="sentiment")
    assert data.labels == ("bad", "good")


def test_quoted_fields_hold_commas_quotes_and_line_ends(prepare_texts, tmp_path):
    text = 'text,label\n"good, ""very""\nbad",a\nfilm,b\nplot,a\nfilm,b\n'
    (tmp_path / "x.csv").write_text(text)
    data = prepare_texts(tmp_path / "x.csv", validation_fraction=0.5)
    lengths = sorted([*data.train.lengths.tolist(), *data.validation.lengths.tolist()])
    assert lengths == [3, 3, 3, 5]  # [CLS] ... [SEP]; the long one is three words


def test_a_byte_order_mark_is_no_part_of_the_first_column(prepare_texts, make, tmp_path):
    path = make.csv(tmp_path / "x.csv", rows(make, 8))
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    assert len(prepare_texts(path).train) == 6


BROKEN = {
    "empty file": ("", "x.csv is empty"),
    "header only": ("text,label\n", "no examples"),
    "wrong column": ("txt,label\na,b\n", r"no column 'text'; did you mean 'txt'\? .*txt, label"),
    "wrong label column": ("text,labels\na,b\n", r"did you mean 'labels'\? .*data\.label_column"),
    "semicolons": ("text;label\na;b\n", "does not look separated by ','"),
    "ragged": ("text,label\na,b\nc,d,e\n", "line 3: 3 fields, but the header has 2"),
    "open quote": ('text,label\n"a,b\nc,d\n', "not well-formed CSV"),
    "no label": ("text,label\na,x\nb,\nc,y\nd,nan\n", r"2 of 4 labels .*line 3.*line 5"),
    "no text at all": (
        "text,label\n,x\n,y\n,x\n,y\n",
        r"4 of 4 texts are empty.*right data\.text_column",
    ),
    "one class": ("text,label\na,x\nb,x\n", "one class only, 'x'"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_a_broken_csv_is_explained(prepare_texts, tmp_path, case):
    text, message = BROKEN[case]
    (tmp_path / "x.csv").write_text(text)
    with pytest.raises(DataError, match=message):
        prepare_texts(tmp_path / "x.csv")


BROKEN_LINES = {
    "not JSON": ('{"text": "a", "label": 1}\n{"text": \n', "line 2: not JSON"),
    "no object": ('["a", 1]\n', "line 1: a JSON list, not an object"),
    "null label": ('{"text": "a", "label": 1}\n\n{"text": "b", "label": null}\n', "line 3"),
    "absent label": ('{"text": "a", "label": 1}\n{"text": "b"}\n', "1 of 2 labels .*line 2"),
    "NaN label": ('{"text": "a", "label": NaN}\n', "1 of 1 labels are missing"),
    "fraction": ('{"text": "a", "label": 0.5}\n', "must be a string, an integer or a bool"),
    "list label": ('{"text": "a", "label": [1]}\n', r"not list .*line 1"),
    "wrong key": ('{"txt": "a", "label": 1}\n', r"did you mean 'txt'\? .*keys: txt, label"),
    "list text": (
        '{"text": ["a"], "label": 1}\n{"text": ["b"], "label": 0}\n' * 3,
        "is a list .*data.text_column",
    ),
}


@pytest.mark.parametrize("case", BROKEN_LINES)
def test_broken_json_lines_are_explained(prepare_texts, tmp_path, case):
    text, message = BROKEN_LINES[case]
    (tmp_path / "x.jsonl").write_text(text)
    with pytest.raises(DataError, match=message):
        prepare_texts(tmp_path / "x.jsonl")


def test_other_faults_of_tables_are_explained(prepare_texts, make, tmp_path):
    (tmp_path / "x.parquet").write_bytes(b"no parquet")
    with pytest.raises(DataError, match=r"x\.parquet cannot be read"):
        prepare_texts(tmp_path / "x.parquet")
    make.csv(tmp_path / "two" / "train.csv", [("a", "b")])
    make.jsonl(tmp_path / "two" / "train.jsonl", [{"text": "a", "label": "b"}])
    with pytest.raises(DataError, match="tables of several kinds"):
        prepare_texts(tmp_path / "two")
    make.csv(tmp_path / "odd" / "training.csv", [("a", "b")])
    make.csv(tmp_path / "odd" / "test.csv", [("a", "b")])
    with pytest.raises(DataError, match=r"no `train`\. Name the training split in data\.train"):
        prepare_texts(tmp_path / "odd")
    with pytest.raises(DataError, match=r"did you mean 'training\.csv'\?"):
        prepare_texts(tmp_path / "odd", train="trainin.csv")
    with pytest.raises(DataError, match="has no tables"):
        prepare_texts(make.images(tmp_path / "pictures" / "a", [1]).parent)
    with pytest.raises(DataError, match=r"data\.train is 'train', but .* is one file"):
        prepare_texts(tmp_path / "odd" / "test.csv", train="train")


def test_images_of_a_table_are_paths_beside_it_or_bytes(prepare_images, make, tmp_path):
    import pandas as pd

    make.images(tmp_path / "set" / "images", range(8))
    listed = [(f"images/{i:03d}.png", "ab"[i % 2]) for i in range(8)]
    make.csv(tmp_path / "set" / "train.csv", listed, header="image,label")
    data = prepare_images(tmp_path / "set")
    assert data.train.pixels.shape == (6, 3, 8, 8)
    contents = [(tmp_path / "set" / name).read_bytes() for name, _ in listed]
    frame = pd.DataFrame(
        {
            "image": [{"bytes": content, "path": None} for content in contents],
            "label": [label for _, label in listed],
        }
    )
    frame.to_parquet(tmp_path / "x.parquet")
    same = prepare_images(tmp_path / "x.parquet")
    assert (same.train.pixels == data.train.pixels).all()


def test_an_image_that_a_table_names_but_is_not_there_is_an_error(prepare_images, make, tmp_path):
    make.images(tmp_path / "images", range(4))
    listed = [(f"images/{i:03d}.png", "ab"[i % 2]) for i in range(5)]
    path = make.csv(tmp_path / "train.csv", listed, header="image,label")
    with pytest.raises(DataError, match=r"train\.csv, line 6 cannot be read: .*No such file"):
        prepare_images(path)


cells = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=20)


@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(texts=st.lists(cells, min_size=1, max_size=6), kind=st.sampled_from(["csv", "tsv"]))
def test_what_the_csv_module_writes_is_read_back_whole(texts, kind, tmp_path):
    path = tmp_path / f"x.{kind}"
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, delimiter="\t" if kind == "tsv" else ",")
        writer.writerow(["text", "label"])
        writer.writerows([text, f"c{i}"] for i, text in enumerate(texts))
    source = open_source("text-classification", DataSpec(source=str(path)), tmp_path)
    examples = source.read("train")
    assert examples.inputs == texts
    assert examples.labels == [f"c{i}" for i in range(len(texts))]


@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(content=st.binary(max_size=60), kind=st.sampled_from(["csv", "tsv", "jsonl", "parquet"]))
def test_any_bytes_are_read_or_refused_with_a_message(content, kind, tmp_path):
    path = tmp_path / f"x.{kind}"
    path.write_bytes(content if kind != "csv" else b"text,label\n" + content)
    source = open_source("text-classification", DataSpec(source=str(path)), tmp_path)
    try:
        examples = source.read("train")
    except DataError as error:
        assert str(path) in str(error)
    else:
        assert len(examples.inputs) == len(examples.labels)
