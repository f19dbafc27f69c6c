"""Reading, splitting and checking text of every source."""

import hashlib
import io
import re
from http.client import IncompleteRead
from pydoc_data.topics import topics
from urllib.error import URLError

import pytest
import torch
from kedro.io import DataCatalog, MemoryDataset
from kedro.runner import SequentialRunner
from pydantic import ValidationError

from adaptive_opt.errors import StudyError
from adaptive_opt.io.datasets import CSVDataset, JSONDataset, TensorsDataset
from adaptive_opt.parameters.data import TextDataParameters
from adaptive_opt.pipelines.data import create_pipeline
from adaptive_opt.study import Task
from adaptive_opt.tasks import text_sources
from adaptive_opt.tasks.text import (
    TextData,
    check_text_source,
    load_text,
    split_words,
    summarise_text,
)


def load(raw, source, **given):
    return load_text(TextDataParameters(source=source, **given), raw)


def decode(data, split):
    return " ".join(data.vocabulary[i] for i in getattr(data, split).tolist())


@pytest.fixture
def files(tmp_path):
    """Function that writes a folder with three texts."""

    def write(**change):
        texts = {
            "train": "b a b\n\n  \nc <unk> a b\n",
            "valid": "a d\n",
            "test": "c\nb e f",
            **change,
        }
        folder = tmp_path / "texts"
        folder.mkdir(exist_ok=True)
        for split, text in texts.items():
            content = text.encode() if isinstance(text, str) else text
            (folder / f"{split}.txt").write_bytes(content)
        return str(folder)

    return write


def test_vocabulary_comes_from_the_training_text(tmp_path, files):
    data = load(tmp_path, "files", path=files())
    assert data.vocabulary == ["<unk>", "<eos>", "b", "a", "c"]
    assert data.train.tolist() == [2, 3, 2, 1, 4, 0, 3, 2, 1]
    assert decode(data, "valid") == "a <unk> <eos>"
    assert decode(data, "test") == "c <eos> b <unk> <unk> <eos>"
    assert data.train.dtype == torch.int64


@pytest.mark.parametrize(
    ("limits", "words"),
    [
        ({"max_vocabulary": 3}, ["b"]),
        ({"max_vocabulary": 4}, ["b", "a"]),
        ({"max_vocabulary": 99}, ["b", "a", "c"]),
        ({"min_count": 2}, ["b", "a"]),
        ({"min_count": 3}, ["b"]),
    ],
)
def test_vocabulary_limits(tmp_path, files, limits, words):
    data = load(tmp_path, "files", path=files(), **limits)
    assert data.vocabulary == ["<unk>", "<eos>", *words]
    assert data.vocabulary_size == len(data.vocabulary) == int(data.train.max()) + 1


def test_equally_frequent_words_are_in_alphabetical_order(tmp_path, files):
    data = load(tmp_path, "files", path=files(train="z y x y\nw\n"))
    assert data.vocabulary[2:] == ["y", "w", "x", "z"]


# torchtext's patterns, applied one after the other.
PATTERNS = [
    (r"\'", " '  "), (r"\"", ""), (r"\.", " . "), (r"<br \/>", " "), (r",", " , "),
    (r"\(", " ( "), (r"\)", " ) "), (r"\!", " ! "), (r"\?", " ? "), (r"\;", " "), (r"\:", " "),
    (r"\s+", " "),
]  # fmt: skip


@pytest.mark.parametrize(
    "line",
    [
        "Basic English Normalization for a Line of Text",
        'It\'s "not" (so); 3.5, is it?! <unk> a:b<br />c <br/> d',
        "".join(map(chr, range(32, 127))),
        '<b"r />x<br.; />',
    ],
)
def test_basic_english_equals_torchtext(line):
    wanted = line.lower()
    for pattern, replacement in PATTERNS:
        wanted = re.sub(pattern, replacement, wanted)
    assert list(split_words(line, "basic_english")) == [*wanted.split(), "<eos>"]


@pytest.mark.parametrize("tokenizer", ["whitespace", "basic_english"])
def test_line_endings_of_all_systems_are_recognised(tokenizer):
    found = list(split_words("a b\r\nc\rd\n\n;\ne\x0bf\u2028g", tokenizer))
    extra = [";", "<eos>"] if tokenizer == "whitespace" else []
    ends = ["a", "b", "<eos>", "c", "<eos>", "d", "<eos>"]
    assert found == [*ends, *extra, "e", "f", "g", "<eos>"]


def test_byte_order_mark_is_removed(tmp_path, files):
    data = load(tmp_path, "files", path=files(train=b"\xef\xbb\xbfb a"))
    assert data.vocabulary[2:] == ["a", "b"]


def test_tensors_round_trip_and_keep_the_stored_digest(tmp_path, files):
    data = load(tmp_path, "files", path=files())
    tensors = data.to_tensors()
    assert int(tensors["vocabulary_size"]) == 5
    again = TextData.from_tensors(tensors)
    assert (again.digest(), again.sha256) == (data.digest(), data.sha256)
    assert all(torch.equal(t, tensors[name]) for name, t in again.to_tensors().items())
    assert TextData.from_tensors(tensors, data.vocabulary).vocabulary == data.vocabulary
    tensors["digest"] = torch.arange(16, dtype=torch.uint8)
    assert TextData.from_tensors(tensors).digest() == bytes(range(16)).hex()


def test_digest_depends_on_streams_and_words(tmp_path, files):
    found = {
        load(tmp_path, "files", path=files(**change)).digest()
        for change in ({}, {"test": "c\nb e e\nf"}, {"valid": "b d"}, {"train": "b a b\nc x a b\n"})
    }
    renamed = files(train="b a b\nd <unk> a b\n", valid="a x", test="d\nb e f")
    assert len({*found, load(tmp_path, "files", path=renamed).digest()}) == 5


def test_summary_has_lengths_and_unknown_words(tmp_path, files):
    data = load(tmp_path, "files", path=files())
    rows = {(r["split"], r["quantity"]): r["value"] for r in summarise_text(data)}
    assert (rows["train", "words"], rows["train", "lines"]) == (9, 2)
    assert rows["all", "words in the vocabulary"] == 5
    assert rows["valid", "share of unknown words"] == pytest.approx(1 / 3, abs=1e-6)
    assert rows["test", "share of unknown words"] == pytest.approx(1 / 3, abs=1e-6)
    assert rows["all", "sha256 of the source"] == data.sha256


@pytest.mark.parametrize(
    ("change", "limits", "message"),
    [
        ({"train": ""}, {}, "the train split is empty"),
        ({"valid": " \n\n"}, {}, "the valid split is empty"),
        ({"test": ""}, {}, "the test split is empty"),
        ({"test": b"fine\nna\xefve\n"}, {}, r"test\.txt is not UTF-8: line 2"),
        ({"train": "<unk> <eos>"}, {}, "no word of the training text occurs 1 times"),
        ({}, {"min_count": 4}, "no word of the training text occurs 4 times"),
    ],
)
def test_bad_files_are_refused(tmp_path, files, change, limits, message):
    path = files(**change)
    with pytest.raises(StudyError, match=message) as error:
        load(tmp_path, "files", path=path, **limits)
    assert path in str(error.value)


def test_a_missing_file_is_named(tmp_path, files):
    path = files()
    (tmp_path / "texts" / "valid.txt").unlink()
    with pytest.raises(StudyError, match=r"texts/valid\.txt does not exist"):
        load(tmp_path, "files", path=path)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"source": "files"}, "path must name a folder"),
        ({"source": "files", "path": "data/nowhere"}, "data/nowhere does not exist"),
        ({"source": "files", "path": "pyproject.toml"}, "is not a folder"),
        ({"source": "python_docs", "path": "conf"}, "does not use it"),
    ],
)
def test_bad_paths_are_refused_before_reading(tmp_path, given, message):
    with pytest.raises(StudyError, match=message):
        check_text_source(TextDataParameters(**given))
    with pytest.raises(StudyError, match=message):
        load(tmp_path, **given)


@pytest.mark.parametrize(
    "given",
    [{"source": "wikipedia"}, {"tokenizer": "bpe"}, {"max_vocabulary": 2}, {"min_count": 0}],
)
def test_invalid_parameters_are_refused(given):
    with pytest.raises(ValidationError):
        TextDataParameters(**{"source": "python_docs", **given})


def test_python_docs_are_split_by_topic_without_repetition():
    parts = text_sources.read_python_docs(0)
    lines = {split: text.split("\n") for split, text in parts.text.items()}
    everything = [line for split in lines.values() for line in split]
    assert len(everything) == len(set(everything))
    wanted = {" ".join(p.split()) for text in topics.values() for p in text.split("\n\n")}
    assert set(everything) == wanted - {""}
    total = sum(map(len, parts.text.values()))
    for split in ("valid", "test"):
        assert 0.07 * total < len(parts.text[split]) < 0.11 * total
    again, other = text_sources.read_python_docs(0), text_sources.read_python_docs(1)
    assert parts == again
    assert parts.text["test"] != other.text["test"]
    assert parts.sha256 == other.sha256


def test_missing_python_docs_are_reported(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "pydoc_data.topics", None)
    with pytest.raises(StudyError, match="lacks the module pydoc_data"):
        text_sources.read_python_docs(0)


@pytest.fixture
def server(monkeypatch):
    """Fake server of a small Penn Treebank; returns its answers and the requested URLs."""
    answers = {s: f"{s} text of\n <unk> words\n".encode() for s in text_sources.SPLITS}
    known = {s: hashlib.md5(a, usedforsecurity=False).hexdigest() for s, a in answers.items()}
    monkeypatch.setattr(text_sources, "PENN_TREEBANK_MD5", known)
    requested = []

    def answer(url, timeout):
        requested.append(url)
        found = answers[re.search(r"ptb\.(\w+)\.txt$", url)[1]]
        if isinstance(found, Exception):
            raise found
        return io.BytesIO(found)

    monkeypatch.setattr(text_sources, "urlopen", answer)
    return answers, requested


def test_penn_treebank_is_downloaded_once(tmp_path, server):
    _, requested = server
    data = load(tmp_path, "penn_treebank")
    assert decode(data, "train") == "train text of <eos> <unk> words <eos>"
    assert len(requested) == 3
    assert all(url.startswith("https://raw.githubusercontent.com/") for url in requested)
    assert load(tmp_path, "penn_treebank").digest() == data.digest()
    assert len(requested) == 3
    names = sorted(f.name for f in (tmp_path / "penn_treebank").iterdir())
    assert names == ["ptb.test.txt", "ptb.train.txt", "ptb.valid.txt"]


@pytest.mark.parametrize("error", [URLError("no network"), IncompleteRead(b"tr"), TimeoutError()])
def test_failed_download_names_file_url_and_checksum(tmp_path, server, error):
    answers, requested = server
    answers["valid"] = error
    with pytest.raises(StudyError, match="cannot be downloaded") as found:
        load(tmp_path, "penn_treebank")
    place = str(tmp_path / "penn_treebank" / "ptb.valid.txt")
    for part in (place, requested[-1], text_sources.PENN_TREEBANK_MD5["valid"], "source to files"):
        assert part in str(found.value)


def test_a_wrong_download_is_not_kept(tmp_path, server):
    answers, _ = server
    answers["test"] = b"<html>moved</html>"
    with pytest.raises(StudyError, match=r"ptb\.test\.txt has md5 \w{32} instead of \w{32}"):
        load(tmp_path, "penn_treebank")
    assert not (tmp_path / "penn_treebank" / "ptb.test.txt").exists()


def test_unwritable_folder_is_reported(tmp_path, server):
    (tmp_path / "penn_treebank").write_text("a file in the way")
    with pytest.raises(StudyError, match="cannot be written"):
        load(tmp_path, "penn_treebank")


def test_the_pipeline_saves_data_vocabulary_and_summary(tmp_path, monkeypatch, files):
    tasks = [Task("prose", "Prose", "text")]
    monkeypatch.setattr("adaptive_opt.pipelines.data.pipeline.tasks_of", lambda *_: tasks)
    given = {"prose": {"source": "files", "path": files()}}
    catalog = DataCatalog(
        {
            "params:data": MemoryDataset(given),
            "data.prose.tensors": TensorsDataset(filepath=str(tmp_path / "d.safetensors")),
            "data.prose.vocabulary": JSONDataset(filepath=str(tmp_path / "v.json")),
            "data.prose.summary": CSVDataset(
                filepath=str(tmp_path / "s.csv"), save_args={"index": False}
            ),
        }
    )
    SequentialRunner().run(create_pipeline(), catalog)
    wanted = load(tmp_path, **given["prose"])
    assert catalog.load("data.prose.vocabulary") == wanted.vocabulary
    found = TextData.from_tensors(catalog.load("data.prose.tensors"))
    assert torch.equal(found.test, wanted.test)
    assert f"all,sha256 of the source,{wanted.sha256}\n" in (tmp_path / "s.csv").read_text()
