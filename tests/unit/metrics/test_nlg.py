"""BLEU, METEOR and TER of WebNLG and DART."""

import pytest

from dual_lora.commands import main
from dual_lora.metrics import java, nlg
from dual_lora.metrics.ter import ter
from dual_lora.metrics.texts import ScoreInputError

# From pyter3 0.3, which GenerationEval calls.
FROM_PYTER = [
    ("a b c d", "c d a b", 0.25),
    ("the river is near the pub", "the pub is near the river", 1 / 3),
    ("", "a b", 1.0),
    ("x y", "a", 2.0),
    ("b a c a b d", "a b c d a b", 1 / 3),
    ("saudi arabia denied this week information", "this week the saudis denied information", 0.5),
]


# name: predictions, references, BLEU in percent of the texts as they are and in the release's form, as GenerationEval's
# multi-bleu-detok.perl prints them (two decimals), on files that repeat the first reference where a group is shorter.
FROM_MULTI_BLEU = {
    "unequal_groups": (
        ["The leader of Aarhus is Jacob Bundsgaard.", "It is 1,000.5 metres long - not 3-4."],
        [
            [
                "Jacob Bundsgaard is the leader of Aarhus.",
                "Aarhus is led by Jacob Bundsgaard (its leader).",
                "The leader of Aarhus: Jacob Bundsgaard.",
            ],
            ["It is 1,000.5 metres long, not 3-4 of them."],
        ],
        52.85,
        63.49,
    ),
    "case": (["the Leader of Aarhus IS jacob bundsgaard."], [["The leader of Aarhus is Jacob Bundsgaard."]], 0, 100),
    "longer": (["Aarhus is led by Jacob Bundsgaard, by Jacob"], [["Aarhus is led by Jacob Bundsgaard."]], 58.74, 58.74),
    "an_empty_output": (
        ["", "The leader of Aarhus is Jacob Bundsgaard."],
        [["It is long."], ["The leader of Aarhus is Jacob Bundsgaard, a man."]],
        36.24,
        36.24,
    ),
    "no_four_words_in_common": (
        ["The leader of London is Ann."],
        [["The leader of Aarhus is Jacob Bundsgaard."]],
        0,
        0,
    ),
}


@pytest.mark.parametrize("name", FROM_MULTI_BLEU)
def test_bleu_equals_multi_bleu_detok(name):
    predictions, references, raw, release = FROM_MULTI_BLEU[name]
    for form, expected in (("raw", raw), ("lora", release)):
        score = nlg.score(predictions, references, metrics=["BLEU"], form=form)["BLEU"]
        assert 100 * score == pytest.approx(expected, abs=0.00501), form


@pytest.mark.parametrize(("hypothesis", "reference", "expected"), FROM_PYTER)
def test_ter_equals_pyter(hypothesis, reference, expected):
    assert ter(hypothesis.split(), reference.split()) == pytest.approx(expected)


def test_ter_needs_a_reference():
    with pytest.raises(ValueError, match="no words"):
        ter(["a"], [])


def test_texts_are_split_as_the_release_does():
    assert nlg.release_tokens("Abilene, Texas isn't U.S.-run") == "abilene , texas isn ' t u . s . - run"


def test_only_six_references_count_in_the_release_form():
    references = [["a b c d"] * 6 + ["e f g h"]]
    assert nlg.score(["e f g h"], references, metrics=["TER"])["TER"] == 1.0
    assert nlg.score(["e f g h"], references, metrics=["TER"], form="raw")["TER"] == 0.0


def test_the_lowest_ter_of_the_group_counts():
    scores = nlg.score(["a b c d", "x"], [["a b c e", "a b c d"], ["y"]], metrics=["TER"])
    assert scores["TER"] == pytest.approx(0.5)


@pytest.mark.skipif(not java.available(), reason="needs Java")
def test_all_three_move_the_right_way_under_any_locale(monkeypatch):
    """Turkish and German write 0,5. test_e2e.py has METEOR under the locale of this machine."""
    monkeypatch.setenv("JAVA_TOOL_OPTIONS", "-Duser.language=tr -Duser.country=TR -Dfile.encoding=US-ASCII")
    references = [["The leader of Aarhus is Jacob Bundsgaard.", "Jacob Bundsgaard leads Aarhus."]] * 2
    good = nlg.score(["The leader of Aarhus is Jacob Bundsgaard."] * 2, references, metrics=["BLEU", "TER"])
    worse = nlg.score(["The leader of Aarhus is Jacob Bundsgaard.", ""], references)
    assert good["BLEU"] == pytest.approx(1.0)
    assert good["TER"] == 0.0
    assert worse["BLEU"] < good["BLEU"]
    assert worse["METEOR"] == pytest.approx(20 / 37)  # as under English
    assert worse["TER"] == pytest.approx(0.5)


def test_bad_input_is_refused():
    with pytest.raises(ScoreInputError, match="but 1 groups"):
        nlg.score(["a", "b"], [["a"]])
    with pytest.raises(ValueError, match="'lora' and 'raw'"):
        nlg.score(["a"], [["a"]], form="lower")


def test_the_command_scores_files_and_refuses_bad_ones(tmp_path, capsys):
    predictions, references = tmp_path / "pred.txt", tmp_path / "ref.txt"
    predictions.write_text("a b c d\n\n", encoding="utf-8")
    words = ["score", str(predictions), str(references), "--metrics", "BLEU", "NIST"]
    references.write_text("a b c d\na b c\n\ne f g\n", encoding="utf-8")
    assert main(words) == 0
    assert capsys.readouterr().out.startswith("BLEU: 0.")
    references.write_text("a b c d\n\n\ne f g\n", encoding="utf-8")
    assert main(words) == 2
    assert "ref.txt, line 3: an empty group" in capsys.readouterr().err
