"""The E2E task: its two forms, grouping, refusals of bad files, and Java found missing before training."""

import os

import pytest

from dual_lora.config import ConfigError, DataError
from dual_lora.config.compose import compose
from dual_lora.metrics import java
from dual_lora.tasks import downloads, e2e

METRICS = "task.metrics=[BLEU,NIST,ROUGE_L,CIDEr]"
MR = "name[The Mill], eatType[coffee shop], priceRange[£20-25], familyFriendly[yes], near[Café Rouge]"
needs_data = pytest.mark.skipif("DUAL_LORA_DATA" not in os.environ, reason="needs DUAL_LORA_DATA")


def task(*arguments):
    return e2e.build(compose(["task=e2e", METRICS, *arguments])[0])


def local(tmp_path, form, **files):
    folder = tmp_path / "e2e" / form
    folder.mkdir(parents=True)
    for name, text in files.items():
        (folder / name.replace("_dot_", ".")).write_text(text, encoding="utf-8")
    protocol = "paper" if form == "lora_format" else "strict"
    return task("data.source=local", f"data.dir={tmp_path}", f"protocol={protocol}")


def test_a_meaning_representation_is_linearised_as_in_the_release():
    expected = "name : The Mill | Type : coffee shop | price : £ 20 - 25 | family friendly : yes | near : Café Rouge"
    assert e2e.linearise(MR) == expected


def test_references_are_tokenized_as_in_the_release():
    text = "It's a family-friendly pub, isn't it? It costs £20-£25."
    assert e2e.tokenize_reference(text) == "It 's a family - friendly pub , is n't it ? It costs £ 20- £ 25 ."


def test_test_inputs_are_grouped_and_training_pairs_are_not():
    sample = task("data.source=sample", "protocol=strict")
    assert (len(sample.examples("train")), len(sample.examples("test"))) == (400, 40)
    assert all(len(example.references) >= 2 for example in sample.examples("test"))
    pairs = sample.examples("validation")
    grouped = sample.grouped(pairs)
    assert len(grouped) < len(pairs)
    assert sum(len(example.references) for example in grouped) == len(pairs)


@pytest.mark.parametrize(("model", "separator"), [("tiny_gpt2", "<|endoftext|>"), ("smollm2", " ||")])
def test_the_reference_follows_after_the_separator_and_a_blank(model, separator):
    sample = task("data.source=sample", f"model={model}")
    prompt = sample.render(sample.examples("train")[0], training=True)
    assert prompt.prompt.endswith(separator)
    assert prompt.answer.startswith(" ")
    assert not prompt.answer.endswith(" ")


def test_the_paper_form_of_the_sample_is_tokenized_and_says_so():
    paper, strict = task("data.source=sample", "protocol=paper"), task("data.source=sample", "protocol=strict")
    raw = strict.examples("test")[0].references[0]
    assert paper.examples("test")[0].references[0] == e2e.tokenize_reference(raw) != raw
    assert paper.fingerprint()["form"] == "lora"
    assert any("tokenized by rule" in note for note in paper.notes)
    assert not any("tokenized by rule" in note for note in strict.notes)


def test_a_reply_is_read_to_its_first_line_and_an_empty_one_is_scored():
    sample = task("data.source=sample", "protocol=strict")
    examples = sample.examples("test")
    assert sample.read(" The  Mill is a pub.\nAnd more", examples[0]) == "The Mill is a pub."
    assert sample.read("<|endoftext|>", examples[0]) == ""
    (score,) = sample.score([""] + [example.references[0] for example in examples[1:]], examples, "generate")
    assert score.items == len(examples)
    assert score.counts == {"empty": 1}
    assert score.metrics["BLEU"] < 1
    assert "METEOR" not in score.metrics


@needs_data
@pytest.mark.parametrize("protocol", ["paper", "strict"])
def test_the_published_counts_hold_and_both_forms_share_their_inputs(protocol):
    real = task("data.source=local", f"data.dir={os.environ['DUAL_LORA_DATA']}", f"protocol={protocol}")
    sizes = [(row["texts"], row["inputs"]) for row in real.fingerprint()["splits"].values()]
    assert sizes == [(42061, 4862), (4672, 547), (4693, 630)]
    assert not any("published" in note for note in real.notes)
    assert real.examples("test")[0].fields["input"] == "name : Blue Spice | Type : coffee shop | area : city centre"


def test_a_short_split_is_named_in_the_notes(tmp_path):
    short = local(tmp_path, "official", testset_w_refs_dot_csv=f'mr,ref\n"{MR}",A pub.\n')
    assert len(short.examples("test")) == 1
    assert any(note.startswith("test: 1 texts of 1 inputs; published are 4693") for note in short.notes)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("mr,text\nx,y\n", r"testset_w_refs.csv, line 1, field 'ref'"),
        (f'mr,ref\n"{MR}",A pub.\nname[The Mill,A pub.\n', r"line 3, field 'mr': malformed MR"),
        ("mr,ref\nnam[The Mill],A pub.\n", r"line 2, field 'mr': .*unknown attribute 'nam'; did you mean 'name'"),
        (f'mr,ref\n"{MR}",\n', r"line 2, field 'ref': the reference is empty"),
        ("mr,ref\n", r"no rows"),
    ],
)
def test_bad_official_files_are_refused_with_their_place(tmp_path, text, message):
    with pytest.raises(DataError, match=message):
        local(tmp_path, "official", testset_w_refs_dot_csv=text).examples("test")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("name : A||A .\nname : A A .\n", r"test.txt, line 2: expected 'context"),
        ("nam : A||A .\n", r"test.txt, line 1: malformed context"),
        ("name : A||\n", r"test.txt, line 1: expected"),
    ],
)
def test_bad_lora_files_are_refused_with_their_line(tmp_path, text, message):
    with pytest.raises(DataError, match=message):
        local(tmp_path, "lora_format", test_dot_txt=text).examples("test")


def test_an_unknown_form_or_metric_is_refused():
    with pytest.raises(ConfigError, match="Legal: lora, official"):
        task("data.source=sample", "protocol.reference_form=loar")
    with pytest.raises(ConfigError, match="did you mean 'BLEU'"):
        e2e.build(compose(["task=e2e", "data.source=sample", "task.metrics=[BLEUU]"])[0])


def test_missing_java_is_found_when_the_task_is_built(monkeypatch):
    monkeypatch.setattr(java, "available", lambda: False)
    choice = r"default-jre-headless.*task.metrics=\[BLEU,NIST,ROUGE_L,CIDEr,NIST_python\]"
    with pytest.raises(ConfigError, match=choice):
        e2e.build(compose(["task=e2e", "data.source=sample"])[0])
    without = e2e.build(compose(["task=e2e", "data.source=sample", METRICS])[0])
    assert any(note.startswith("left out by task.metrics: METEOR") for note in without.notes)
    assert any(note.startswith("no Java") for note in without.notes)


def test_the_hub_is_identified_by_its_pinned_commit_without_reading_it():
    fingerprint = task("data.source=hub", "protocol=strict").fingerprint()
    assert fingerprint["repository"] == "tuetschek/e2e_nlg"
    assert len(fingerprint["revision"]) == 40


def test_the_paper_form_comes_from_the_release_itself(monkeypatch, tmp_path):
    (tmp_path / "cached").write_text("name : The Mill||The Mill is a pub . \n", encoding="utf-8")
    monkeypatch.setattr(downloads, "release_file", lambda name: (tmp_path / "cached", name))
    published = task("data.source=hub", "protocol=paper")
    assert published.examples("test")[0].references == ("The Mill is a pub .",)
    assert published.fingerprint()["repository"] == "github.com/microsoft/LoRA"


def test_a_changed_download_of_the_release_is_refused(monkeypatch, tmp_path):
    import datasets

    (tmp_path / "cached").write_text("name : The Mill||The Mill is a pub . \n", encoding="utf-8")
    monkeypatch.setattr(datasets.DownloadManager, "download", lambda self, place: str(tmp_path / "cached"))
    with pytest.raises(DataError, match=r"expected 81b1bcd4.* for e2e/test.txt"):
        downloads.release_file("e2e/test.txt")


def test_a_trial_writes_no_texts_and_needs_no_java(monkeypatch):
    monkeypatch.setattr(java, "available", lambda: False)
    words = ["task=e2e", "profile=trial", "task.metrics=[BLEU,METEOR]"]
    assert e2e.build(compose(words)[0]).metrics == ("BLEU", "METEOR")
    with pytest.raises(ConfigError, match="METEOR needs Java"):
        e2e.build(compose([*words, "profile.test_items=2"])[0])
