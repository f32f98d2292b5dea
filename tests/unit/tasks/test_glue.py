"""GLUE's files, labels, splits and subsets."""

import gzip
import os
from pathlib import Path
from types import SimpleNamespace

import pytest

from dual_lora.config import ConfigError, DataError
from dual_lora.metrics.glue import LABELS
from dual_lora.tasks import glue, splits
from dual_lora.tasks.glue.reading import read_tsv
from dual_lora.tasks.glue.specs import SPECS

NAMES = sorted(SPECS)
DATA = os.environ.get("DUAL_LORA_DATA")
needs_data = pytest.mark.skipif(not DATA, reason="DUAL_LORA_DATA is not set")


def build(name, source="sample", folder=None, protocol="paper", init_from="none"):
    return glue.build(
        SimpleNamespace(
            task=SimpleNamespace(name=f"glue/{name}"),
            data=SimpleNamespace(source=source, dir=folder),
            protocol=SimpleNamespace(name=protocol),
            init_from=init_from,
        )
    )


def write(folder, task, file, text, compressed=False):
    path = Path(folder) / "glue" / SPECS[task].folder / file
    path.parent.mkdir(parents=True, exist_ok=True)
    if compressed:
        path.with_name(file + ".gz").write_bytes(gzip.compress(text.encode()))
    else:
        path.write_bytes(text.encode())
    return path


def dev_of(tmp_path, task, text, **options):
    write(tmp_path, task, "dev.tsv", text, **options)
    return build(task, "local", tmp_path).examples("test")


@pytest.mark.parametrize("name", NAMES)
def test_the_sample_has_every_task_with_all_its_classes(name):
    task = build(name)
    for split in ("train", "test"):
        examples = task.examples(split)
        assert len(examples) >= 20
        assert len({example.identifier for example in examples}) == len(examples)
        assert all(text.strip() for example in examples for text in task.texts(example))
        words = {example.references[0] for example in examples}
        assert words == set(task.labels) if task.labels else len(words) > 5
    assert len(task.examples("train")) >= 40


@pytest.mark.parametrize("name", NAMES)
def test_validation_and_test_are_the_development_set(name):
    task = build(name)
    assert task.examples("validation") == task.examples("test")
    assert not {e.identifier for e in task.examples("train")} & {e.identifier for e in task.examples("test")}


@pytest.mark.parametrize("name", NAMES)
def test_right_answers_score_full_marks(name):
    task = build(name)
    examples = task.examples("test")
    readings = [task.read(example.references[0], example) for example in examples]
    for score in task.score(readings, examples):
        assert all(value == pytest.approx(1.0) for value in score.metrics.values())
        assert score.at_chance is False
        assert score.unreadable == 0


def test_label_order_is_the_hubs():
    assert LABELS["mnli"] == ("entailment", "neutral", "contradiction")
    assert LABELS["rte"] == LABELS["qnli"] == ("entailment", "not_entailment")
    task = build("mnli")
    example = task.examples("test")[0]
    assert task.labels[task.target(example)] == example.references[0]


def test_mnli_reports_matched_mismatched_and_both():
    task = build("mnli")
    examples = task.examples("test")
    readings = [e.references[0] if e.subset == "matched" else "neutral" for e in examples]
    scores = {score.subset: score for score in task.score(readings, examples)}
    assert list(scores) == ["matched", "mismatched", "mnli"]
    assert scores["matched"].metrics == {"accuracy": 1.0}
    assert scores["mismatched"].at_chance
    both = (scores["matched"].items + scores["mismatched"].metrics["accuracy"] * scores["mismatched"].items) / len(
        examples
    )
    assert scores["mnli"].metrics["accuracy"] == pytest.approx(both)


def test_heads_fit_the_tasks():
    assert build("mnli").head.num_labels == 3
    assert build("rte").head.num_labels == 2
    assert build("stsb").head.regression
    assert build("stsb").head.num_labels == 1


def test_a_quotation_mark_does_not_open_a_quoted_field(tmp_path):
    text = (
        'index\tsentence1\tsentence2\tlabel\n0\t"He left.\tHe went.\tentailment\n1\tIt rained."\tDry.\tnot_entailment\n'
    )
    examples = dev_of(tmp_path, "rte", text)
    assert [example.fields["sentence1"] for example in examples] == ['"He left.', 'It rained."']


def test_blanks_and_rare_line_separators_inside_fields_are_kept(tmp_path):
    examples = dev_of(tmp_path, "sst2", "sentence\tlabel\n a film \u2028of its time\x85 \t1\n")
    assert examples[0].fields["sentence"] == " a film \u2028of its time\x85 "


def test_byte_order_mark_windows_line_ends_and_header_case_do_not_matter(tmp_path):
    text = "\ufeffquality\t#1 ID\t#2 ID\t#1 string\t#2 String \r\n1\t11\t12\tA b .\tB a .\r\n"
    (example,) = dev_of(tmp_path, "mrpc", text)
    assert example.fields == {"sentence1": "A b .", "sentence2": "B a .", "label": "1"}


def test_compressed_and_plain_files_are_the_same_data(tmp_path):
    text = "sentence\tlabel\nfine .\t1\n"
    for name in ("plain", "compressed"):
        write(tmp_path / name, "sst2", "dev.tsv", text, compressed=name == "compressed")
    plain, compressed = (build("sst2", "local", tmp_path / name) for name in ("plain", "compressed"))
    assert plain.examples("test") == compressed.examples("test")
    assert plain.fingerprint() == compressed.fingerprint()


def test_cola_has_no_header_line(tmp_path):
    (example,) = dev_of(tmp_path, "cola", "gj04\t0\t*\tHe left gone.\n")
    assert example.fields["sentence"] == "He left gone."
    assert example.references == ("0",)


@pytest.mark.parametrize(
    ("task", "text", "part"),
    [
        (
            "rte",
            "index\tsentence1\tsentence2\tlabel\n0\ta\tb\tentailment\n1\ta\tb\n",
            r"line 3: 3 tab-separated fields, ex",
        ),
        ("sst2", "sentence\tlabel\nfine\there\t1\n", r"line 2: 3 tab-separated fields, expected 2"),
        ("sst2", "sentence\tlabel\nfine\t1\n\n", r"line 3: 1 tab-separated fields"),
        ("cola", "gj04\t1\tfine\n", r"line 1: 3 tab-separated fields, expected 4"),
        (
            "rte",
            "index\tsentence1\tsentence2\tlabel\n0\ta\tb\tmaybe\n",
            r"line 2, field 'label': unknown label 'maybe'",
        ),
        ("cola", "gj04\t2\t\tfine\n", r"line 1, field 'label': unknown label '2'; legal: 0, 1"),
        ("qqp", "id\tqid1\tqid2\tquestion1\tquestion2\tis_duplicate\n1\t2\t3\ta\n", r"line 2: 4 tab-separated fields"),
        (
            "rte",
            "index\tpremise\tsentence2\tlabel\n0\ta\tb\tentailment\n",
            r"line 1, field 'sentence1': the header has no",
        ),
        ("rte", "index\tsentence1\tsentence2\tlabel\n", r"no rows"),
    ],
)
def test_broken_files_are_refused_with_file_and_line(tmp_path, task, text, part):
    with pytest.raises(DataError, match=rf"dev\.tsv.*{part}"):
        dev_of(tmp_path, task, text)


@pytest.mark.parametrize("word", ["high", "", "nan", "5.5", "-1", "inf"])
def test_a_similarity_that_is_no_number_from_0_to_5_is_refused(tmp_path, word):
    header = "index\tgenre\tfilename\tyear\told_index\tsource1\tsource2\tsentence1\tsentence2\tscore\n"
    with pytest.raises(DataError, match=r"dev\.tsv, line 3, field 'score'"):
        dev_of(tmp_path, "stsb", header + "0\tg\tf\ty\t0\tn\tn\ta\tb\t4.200\n" + f"1\tg\tf\ty\t1\tn\tn\ta\tb\t{word}\n")


def test_qqps_torn_rows_are_left_out_only_if_the_published_number_remains(tmp_path, monkeypatch):
    rows = "id\tqid1\tqid2\tquestion1\tquestion2\tis_duplicate\n1\t2\t3\ta\tb\t1\n4\t5\t6\ta\n\tb\t0\n"
    path = write(tmp_path, "qqp", "train.tsv", rows)
    with pytest.raises(DataError, match="line 3: 4 tab-separated fields"):
        read_tsv(path.parent, SPECS["qqp"], "train", "qqp")
    monkeypatch.setitem(SPECS["qqp"].published, "train", 1)
    examples, facts = read_tsv(path.parent, SPECS["qqp"], "train", "qqp")
    assert len(examples) == 1
    assert facts["left_out"] == 2


def test_a_missing_split_names_the_file_and_the_way_on(tmp_path):
    write(tmp_path, "qnli", "dev.tsv", "index\tquestion\tsentence\tlabel\n0\ta\tb\tentailment\n")
    task = build("qnli", "local", tmp_path)
    assert "qnli train: not there (104743 published items)" in task.notes
    with pytest.raises(DataError, match=r"QNLI/train\.tsv.*data\.source=sample"):
        task.examples("train")


def test_data_dir_may_be_the_glue_download_itself(tmp_path):
    write(tmp_path, "sst2", "dev.tsv", "sentence\tlabel\nfine\t1\n")
    assert len(build("sst2", "local", tmp_path / "glue").examples("test")) == 1


def test_short_data_is_named_in_the_notes(tmp_path):
    for file in ("train.tsv", "dev.tsv"):
        write(tmp_path, "sst2", file, "sentence\tlabel\nfine\t1\n")
    assert build("sst2", "local", tmp_path).notes == (
        "sst2 train: 1 of 67349 published items",
        "sst2 dev: 1 of 872 published items",
    )


@pytest.mark.parametrize(
    ("name", "protocol", "init_from", "labelled"),
    [
        ("rte", "paper", "none", True),
        ("mrpc", "strict", "none", True),
        ("stsb", "paper", "auto", False),
        ("rte", "restricted", "none", False),  # its published rows had no start either
        ("cola", "paper", "none", False),
    ],
)
def test_a_run_without_the_published_start_is_labelled(name, protocol, init_from, labelled):
    assert ("no MNLI start" in build(name, protocol=protocol, init_from=init_from).notes) is labelled


def test_held_out_items_are_the_same_whatever_is_trained():
    examples = build("rte").examples("train")
    rest, held_out = splits.hold_out(examples, 0.1, seed=42)
    assert len(held_out) == 4
    assert sorted(e.identifier for e in rest + held_out) == sorted(e.identifier for e in examples)
    assert splits.hold_out(examples, 0.1, seed=42) == (rest, held_out)
    assert splits.hold_out(examples, 0.1, seed=43)[1] != held_out
    with pytest.raises(ConfigError, match="leaves one part empty"):
        splits.hold_out(examples, 0.001, seed=42)


def test_an_unknown_task_names_the_legal_ones():
    with pytest.raises(ConfigError, match=r"glue/rte.*did you mean 'stsb'"):
        build("sts-b")


def test_the_hub_is_read_at_a_pinned_commit(monkeypatch):
    asked = []

    def rows(repository, revision, file):
        asked.append((repository, revision, file))
        return [{"premise": "a", "hypothesis": "b", "label": 2}]

    monkeypatch.setattr("dual_lora.tasks.downloads.parquet_rows", rows)
    task = build("mnli", "hub")
    examples = task.examples("test")
    assert [(example.subset, example.references) for example in examples] == [
        ("matched", ("contradiction",)),
        ("mismatched", ("contradiction",)),
    ]
    assert [file for *_, file in asked] == [
        "mnli/validation_matched-00000-of-00001.parquet",
        "mnli/validation_mismatched-00000-of-00001.parquet",
    ]
    assert {revision for _, revision, _ in asked} == {task.fingerprint()["revision"]}
    assert len(task.fingerprint()["revision"]) == 40


def test_a_hidden_label_of_the_hub_is_refused(monkeypatch):
    monkeypatch.setattr("dual_lora.tasks.downloads.parquet_rows", lambda *_: [{"sentence": "a", "label": -1}])
    with pytest.raises(DataError, match="label -1 is hidden or unknown"):
        build("cola", "hub").examples("test")


@needs_data
@pytest.mark.parametrize("name", ["cola", "sst2", "mrpc", "stsb", "rte", "wnli"])
def test_the_published_files_have_the_published_numbers_of_items(name):
    task = build(name, "local", DATA, init_from="auto")
    assert task.notes == ()
    assert len(task.examples("train")) == SPECS[name].published["train"]
    assert len(task.examples("test")) == SPECS[name].published["dev"]


@needs_data
def test_a_downloaded_sentence_keeps_its_quotation_marks():
    texts = [text for e in build("mrpc", "local", DATA).examples("test") for text in build("mrpc").texts(e)]
    assert sum(text.startswith('"') for text in texts) > 50
