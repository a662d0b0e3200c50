"""The dataset card: its figures against a count document by document, its text escaped."""

import json
import re
from collections import Counter
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
import yaml

from dsm_engine.cli import main
from dsm_engine.data.card import write_card
from dsm_engine.data.card.collect import collect_card
from dsm_engine.data.card.content import Card, Histogram, Table
from dsm_engine.data.card.html import render_html
from dsm_engine.data.card.markdown import render_markdown
from dsm_engine.data.manifest import write_manifest
from dsm_engine.data.pack_index import STRATEGIES, build_pack_index
from dsm_engine.data.preprocess import preprocess
from dsm_engine.data.recipe import PreprocessRecipe
from dsm_engine.data.sidecars import COLUMNS
from dsm_engine.data.tokenized_dataset import TokenizedDataset, TokenizedDatasetWriter
from dsm_engine.data.tokenizers import dataset_tokenizer
from dsm_engine.errors import DsmError
from tests.chat_tokenizers import write_tokenizer

NASTY = "<script>alert('1')</script> & | *a* `b` ${x}$ 中文"


@pytest.fixture(scope="module")
def dataset(sample_data: Path) -> TokenizedDataset:
    return TokenizedDataset(sample_data / "train")


@pytest.fixture(scope="module")
def card(dataset: TokenizedDataset) -> Card:
    tokenizer = dataset_tokenizer(dataset.prefix, dataset.manifest)
    return collect_card(dataset, tokenizer, capacity=256, num_samples=4)


@pytest.fixture(scope="module")
def nasty(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A dataset whose texts, topics and ids are markup, of three sources with rows left out."""
    folder = tmp_path_factory.mktemp("nasty")
    row = {"question": NASTY, "answer": "It is 2.", "language": "en", "format": "cot"}
    row |= {"blocks": [{"kind": "text", "text": f"```\n{NASTY}\n```"}], "topic": NASTY}
    rows = [row | {"id": f"{NASTY}{i}", "licence": ("MIT", "mine")[i % 2]} for i in range(5)]
    (folder / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in [*rows, 5, []]))
    plain = {"question": "1 + 1?", "answer": "It is 2."}
    (folder / "b.jsonl").write_text(json.dumps(plain) + "\n" + json.dumps({"question": "q"}))
    write_tokenizer(folder, "byte_level")
    sources = [
        {"reader": "examples", "path": str(folder / "a.jsonl")},
        {"reader": "jsonl", "path": str(folder / "b.jsonl"), "name": "b|c"},
    ]
    recipe = {"output": folder / "out", "tokenizer": folder, "sources": sources}
    return preprocess(PreprocessRecipe.model_validate(recipe | {"on_error": "skip"})).output


def tables(card: Card, section: str) -> dict[str, Table]:
    (found,) = [part for part in card.sections if part.title == section]
    return {part.title: part for part in found.parts if isinstance(part, Table)}


class Page(HTMLParser):
    """The tags of a page, its texts by the tag they stand in, and what it would load."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: Counter[str] = Counter()
        self.attributes: set[str] = set()
        self.texts: dict[str, list[str]] = {}
        self._open: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags[tag] += 1
        self.attributes |= {name for name, _ in attrs}
        self._open.append(tag)
        self.texts.setdefault(tag, []).append("")

    def handle_endtag(self, tag):
        while self._open and self._open.pop() != tag:
            pass

    def handle_data(self, data):
        for tag in self._open:
            self.texts[tag][-1] += data


@pytest.mark.parametrize("column", COLUMNS)
def test_composition_is_what_counting_document_by_document_gives(dataset, card, column):
    expected: dict[str, list[int]] = {}
    for document_idx in range(dataset.num_documents):
        counts = expected.setdefault(getattr(dataset.attributes(document_idx), column), [0, 0, 0])
        spans = dataset.spans(document_idx).tolist()
        counts[0] += 1
        counts[1] += len(dataset.document(document_idx))
        counts[2] += sum(end - max(begin, 1) for begin, end in spans)
    table = tables(card, "Composition")[f"By {column}"]
    found = {row[0]: [row[1], row[2], row[4]] for row in table.rows}
    assert found == {
        name: [documents, tokens, f"{supervised / tokens:.1%}"]
        for name, (documents, tokens, supervised) in expected.items()
    }
    assert [row[2] for row in table.rows] == sorted((c[1] for c in expected.values()), reverse=True)


def test_every_document_stands_in_one_bin(dataset, card):
    (section,) = [section for section in card.sections if section.title == "Lengths"]
    histogram = next(part for part in section.parts if isinstance(part, Histogram))
    expected = Counter()
    for length in dataset.lengths.tolist():
        for label in histogram.labels:
            first, _, last = label.replace(",", "").partition(" to ")
            if int(first.split()[0]) <= length and (not last or length <= int(last)):
                expected[label] += 1
    assert dict(zip(histogram.labels, histogram.counts, strict=True)) == {
        label: expected[label] for label in histogram.labels
    }
    assert sum(histogram.counts) == dataset.num_documents
    assert histogram.labels[-1].endswith("or more") or len(histogram.labels) < 24


def test_percentiles_are_numpys(dataset, card):
    row = tables(card, "Lengths")["Percentiles"].rows[0]
    lengths = np.sort(dataset.lengths)
    assert row[1] == lengths[0] and row[-1] == lengths[-1]
    assert row[4] == lengths[(len(lengths) - 1) // 2]


def test_the_fill_is_that_of_dsm_pack(dataset, card):
    table = tables(card, "Packing")["Fill of packs of 256 tokens"]
    rows = {row[0]: row for row in table.rows}
    for strategy in STRATEGIES:
        packs = build_pack_index(dataset.lengths, capacity=256, strategy=strategy, seed=1234)
        statistics = packs.statistics(dataset.lengths)
        assert rows[strategy][1:3] == (statistics.num_packs, f"{statistics.fill:.2%}")
    before = dataset.num_tokens / (dataset.num_documents * 256)
    assert rows["none: one document a row"][2] == f"{before:.2%}"


def test_documents_longer_than_a_pack_are_said(dataset):
    table = tables(collect_card(dataset, None, capacity=64, num_samples=0), "Packing")
    (part,) = table.values()
    assert part.note.startswith(f"{int((dataset.lengths > 64).sum())} documents are longer")
    short = int((dataset.lengths <= 64).sum())
    assert part.rows[0][1] == short > 0


def test_samples_are_of_every_format_and_language(dataset, card):
    (section,) = [section for section in card.sections if section.title == "Samples"]
    seen = {(s.view.attributes.format, s.view.attributes.language) for s in section.parts}
    assert len(seen) == len(section.parts) == 4
    many = collect_card(
        dataset,
        dataset_tokenizer(dataset.prefix, dataset.manifest),
        capacity=256,
        num_samples=dataset.num_documents + 5,
    )
    (section,) = [section for section in many.sections if section.title == "Samples"]
    shown = sorted(sample.view.document_idx for sample in section.parts)
    assert shown == list(range(dataset.num_documents))


def test_what_is_trained_on_is_marked_in_both_files(dataset, card):
    tokenizer = dataset_tokenizer(dataset.prefix, dataset.manifest)
    page, markdown = Page(render_html(card)), render_markdown(card)
    (section,) = [section for section in card.sections if section.title == "Samples"]
    marked = ""
    for sample in section.parts:
        document_idx = sample.view.document_idx
        ids = dataset.document(document_idx).tolist()
        for begin, end in dataset.spans(document_idx).tolist():
            text = tokenizer.decode(ids[begin:end], continuation=True)
            text += "</s>" if tokenizer.eos_id in ids[begin:end] else ""
            marked += text
            assert f"⟦{text}⟧" in markdown
    assert "".join(page.texts["mark"]) == marked


def test_the_page_loads_nothing_and_runs_nothing(nasty):
    _, html_path = write_card(nasty)
    page = Page(html_path.read_text(encoding="utf-8"))
    allowed = {"html", "head", "meta", "title", "style", "body", "h1", "h2", "h3", "dl", "div"}
    allowed |= {"dt", "dd", "section", "p", "table", "tr", "th", "td", "i", "b", "mark", "pre"}
    allowed |= {"svg", "rect", "line", "text"}
    assert set(page.tags) == allowed
    attributes = {"lang", "charset", "http-equiv", "content", "name", "class", "style", "viewbox"}
    attributes |= {"role", "aria-label", "x", "y", "x1", "x2", "y1", "y2", "width", "height"}
    assert page.attributes == attributes | {"text-anchor"}
    assert "url(" not in page.texts["style"][0] and "@import" not in page.texts["style"][0]
    assert NASTY in page.texts["td"]
    assert any(NASTY in text for text in page.texts["pre"])
    assert any(text.startswith(NASTY) for text in page.texts["h3"])


def test_markdown_shows_markup_as_it_stands(nasty):
    markdown_path, _ = write_card(nasty)
    lines = markdown_path.read_text(encoding="utf-8").split("---\n", 2)[2].splitlines()
    fenced, outside, fence = [], [], ""
    for line in lines:
        opens = re.match("`{3,}", line)
        if fence:
            fenced.append(line)
            fence = "" if line == fence else fence
        elif opens:
            fence = opens[0]
        else:
            outside.append(line)
    assert not fence
    assert any(NASTY in line for line in fenced) and "```" in fenced
    assert not any("<" in line or re.search(r"(?<!\\)`b", line) for line in outside)
    columns = 0
    for line in outside:
        cells = len(re.findall(r"(?<!\\)\|", line))
        if not line.startswith("|"):
            columns = 0
        else:
            assert columns in (0, cells)
            columns = cells


def test_the_front_matter_is_what_the_hub_reads(nasty):
    markdown_path, _ = write_card(nasty)
    _, front_matter, body = markdown_path.read_text(encoding="utf-8").split("---\n", 2)
    assert yaml.safe_load(front_matter) == {
        "pretty_name": "out",
        "language": ["en"],
        "license": ["mit", "other", "unknown"],
        "task_categories": ["text-generation"],
        "size_categories": ["n<1K"],
        "tags": ["mathematics", "instruction-tuning"],
    }
    assert body.startswith("\n# out\n")


def test_the_ledger_the_licences_and_the_provenance_are_the_manifests(nasty):
    dataset = TokenizedDataset(nasty)
    card = collect_card(dataset, None, capacity=4096, num_samples=0)
    manifest = dataset.manifest
    ledger = tables(card, "Ledger")
    by_source = {row[0]: row[1:3] for row in ledger["By source"].rows}
    assert by_source == {"examples": (7, 5), "b|c": (2, 1), "all sources": (9, 6)}
    dropped = ledger["Dropped, by source"]
    causes = dict(zip(dropped.columns[1:], dropped.rows[-1][1:], strict=True))
    assert causes == manifest["ledger"]["dropped"] and sum(causes.values()) == 3
    assert tables(card, "Licences")["By source"].rows == [
        ("examples", "MIT", 3),
        ("examples", "mine", 2),
        ("b|c", "(not known)", 1),
    ]
    provenance = tables(card, "Provenance")
    checksums = {row[2] for row in provenance["Inputs"].rows}
    assert checksums == {entry["xxh3"] for entry in manifest["inputs"]}
    for part in ("tokenizer", "template"):
        rows = dict(provenance[part.capitalize()].rows)
        assert rows["fingerprint"] == manifest[part]["fingerprint"]
    (section,) = [section for section in card.sections if section.title == "How to reproduce"]
    (code,) = section.parts
    assert yaml.safe_load(code.text) == manifest["recipe"]


def test_further_keys_of_a_manifest_are_tables(nasty, tmp_path: Path):
    for file in nasty.parent.glob("out.*"):
        (tmp_path / file.name).write_bytes(file.read_bytes())
    manifest = json.loads((tmp_path / "out.manifest.json").read_text())
    manifest["ledger"]["phases"] = {"read": 1.25, "tokenize": 3}
    manifest["ledger"]["duplicates"] = 7
    manifest["contamination"] = {"gsm8k": {"questions": 4, "hits": 0}, "math": {"hits": 2}}
    manifest["mixture"] = [{"source": "a", "weight": 0.5}, {"source": "b", "weight": None}]
    manifest["nothing"] = {}
    write_manifest(tmp_path / "out.manifest.json", manifest)
    card = collect_card(TokenizedDataset(tmp_path / "out"), None, capacity=99, num_samples=0)
    ledger = tables(card, "Ledger")
    assert ledger["Phases"].rows == [("read", "1.25"), ("tokenize", 3)]
    assert ledger["Further counts"].rows == [("duplicates", 7)]
    (contamination,) = tables(card, "Contamination").values()
    assert contamination.columns == ("", "questions", "hits")
    assert contamination.rows == [("gsm8k", 4, 0), ("math", "", 2)]
    (mixture,) = tables(card, "Mixture").values()
    assert mixture.rows == [("a", "0.5"), ("b", "")]
    assert "Nothing" not in [section.title for section in card.sections]
    assert "Contamination" in render_html(card) and "Contamination" in render_markdown(card)


def test_the_same_dataset_gives_the_same_bytes(nasty):
    first = [path.read_bytes() for path in write_card(nasty)]
    assert [path.read_bytes() for path in write_card(nasty)] == first


def test_topics_past_the_commonest_are_one_row(tmp_path: Path):
    with TokenizedDatasetWriter(tmp_path / "a", vocab_size=9) as writer:
        for i in range(40):
            where = {"source": "s", "language": "en", "format": "cot", "topic": f"t{i:02}"}
            writer.add([1] * (50 - i), [(1, 2)], id=str(i), **where)
        writer.finish()
    card = collect_card(TokenizedDataset(tmp_path / "a"), None, capacity=64, num_samples=0)
    rows = tables(card, "Composition")["By topic"].rows
    assert len(rows) == 31
    assert rows[0][:3] == ("t00", 1, 50)
    assert rows[-1][:3] == ("(10 others)", 10, sum(range(11, 21)))


def test_what_cannot_have_a_card_is_one_line(
    tmp_path: Path, sample_data: Path, capsys: pytest.CaptureFixture[str]
):
    with TokenizedDatasetWriter(tmp_path / "empty", vocab_size=9) as writer:
        writer.finish()
    with pytest.raises(DsmError, match="holds no documents"):
        write_card(tmp_path / "empty", num_samples=0)
    assert main(["card", str(sample_data / "train"), "--capacity", "0"]) == 2
    assert "1 or more, found 0" in capsys.readouterr().err
    assert main(["card", str(tmp_path / "nothing")]) == 2
    assert "no tokenized dataset there" in capsys.readouterr().err


@pytest.mark.parametrize(("suffix", "header_bytes"), [(".spans", 64), (".attributes", 128)])
def test_a_damaged_table_is_one_line_and_leaves_no_card(
    tmp_path: Path, sample_data: Path, capsys: pytest.CaptureFixture[str], suffix, header_bytes
):
    for file in sample_data.glob("validation.*"):
        (tmp_path / file.name).write_bytes(file.read_bytes())
    path = tmp_path / f"validation{suffix}"
    whole = path.read_bytes()
    for position in range(header_bytes, min(len(whole), 500), 4):
        damaged = bytearray(whole)
        damaged[position : position + 4] = b"\xff" * 4
        path.write_bytes(damaged)
        assert main(["card", str(tmp_path / "validation"), "--samples", "0"]) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert f"{path}: is damaged" in line
    assert not list(tmp_path.glob("*.card.*"))


def test_the_command_writes_both_files(
    tmp_path: Path, sample_data: Path, capsys: pytest.CaptureFixture[str]
):
    for file in sample_data.glob("validation.*"):
        (tmp_path / file.name).write_bytes(file.read_bytes())
    prefix = tmp_path / "validation"
    assert main(["card", str(prefix), "--samples", "1", "--capacity", "512"]) == 0
    assert capsys.readouterr().out == f"wrote {prefix}.card.md\nwrote {prefix}.card.html\n"
    page = Page((tmp_path / "validation.card.html").read_text(encoding="utf-8"))
    assert page.tags["pre"] == 2  # the sample and the recipe
