"""BLEU and NIST equal those of the E2E scorer's `mteval-v13a-sig.pl`, and of its Python option.

The expected numbers are what the whole official script gives, run with Perl 5.36 on files as the scorer writes them
(docs/protocols_nlg.md says how to run it). Calling its subroutines alone once pinned a wrong value here.
"""

import math
import shutil

import pytest

from dual_lora.metrics.mteval import bleu_and_nist, tokenize
from dual_lora.metrics.texts import check
from tests.unit.metrics import mteval_oracles as oracles

needs_perl = pytest.mark.skipif(shutil.which("perl") is None, reason="needs Perl, which is in every Debian image")
EAGLE = [
    "The Eagle is a cheap pub near the river.",
    "Near the river is The Eagle, a cheap pub.",
    "The Eagle: a pub, cheap, near the river.",
    "The Eagle, near the river, is a pub.",
    "A cheap pub is The Eagle.",
    "The Eagle is a pub.",
    "There is a cheap pub by the river called The Eagle.",
    "Cheap? The Eagle.",
]

# name: predictions, reference groups, BLEU, NIST
FROM_PERL = {
    "plain": (
        ["the cat sat on the mat .", "a dog"],
        [["the cat is on the mat .", "there is a cat on the mat ."], ["a dog barks", "the dog"]],
        0.5019724249,
        3.1510469729,
    ),
    "empty": (
        ["", "a dog barks"],
        [["the cat is on the mat."], ["a dog barks loudly at night"]],
        0.0356739933,
        0.0004277676,
    ),
    "all_empty": (
        ["", ""],
        [["the cat"], ["a dog"]],
        0.0000000000,
        0.0000000000,
    ),
    "garbage": (
        ["zzz yyy xxx www vvv", "@@@ ###"],
        [["The cat is on the mat."], ["A dog barks at night."]],
        0.0192104071,
        0.0000000000,
    ),
    "repeated": (
        ["the the the the the the", "the the the the the the"],
        [["The cat is on the mat.", "The mat is under the cat."], ["The dog barks at the cat.", "A dog."]],
        0.0485827361,
        0.6666666667,
    ),
    "one_reference": (
        ["The Eagle is a pub near the river.", "It costs £20-25."],
        [["The Eagle is a pub by the river."], ["It costs £20-£25 or less."]],
        0.5029689893,
        3.2104388404,
    ),
    "many_references": (
        ["The Eagle is a pub."],
        [["The Eagle is a pub.", "A pub: the Eagle!", "Eagle, pub.", "The pub is called The Eagle."]],
        1.0000000000,
        4.4553163310,
    ),
    "unicode": (
        ["Café Ünïcode “smart” ÉCLAIR naïve", "日本語 €30 \xa0 £1,000.50"],
        [['café ünïcode "smart" éclair naive'], ["日本語 €30 £1,000.50 $5"]],
        0.1937692913,
        0.8962406252,
    ),
    "zero_context": (
        ["0 out of 5", "0 out of 0"],
        [["rated 0 out of 5", "0 stars out of 5"], ["0 out of 5 stars"]],
        0.5631717976,
        2.4324354939,
    ),
    "entities": (
        ["&quot;A&amp;B&quot; &lt;b&gt; <skipped> c", "x-1 2-y 3.5 4,5 a.b"],
        [['"A&B" <b> c'], ["x-1 2 - y 3.5 4,5 a . b"]],
        1.0000000000,
        4.1316626750,
    ),
    "uneven_groups": (
        ["a b c d e", "f g h"],
        [["a b c d e f", "a b", "c d e"], ["f g h i"]],
        0.7788007831,
        3.7402239289,
    ),
    "many_and_few_references": (
        ["The Eagle is a pub by the river.", "The Mill is a pub."],
        [EAGLE, ["The Mill is a cheap coffee shop."]],
        0.5819575769,
        4.4614406336,
    ),
    "short_outputs": (
        ["The Eagle.", "The Mill."],
        [EAGLE, ["The Mill is a cheap coffee shop near the river."]],
        0.1478031468,
        0.0227186324,
    ),
    "long_outputs": (
        [" ".join(EAGLE[:3]), "The Mill is a cheap coffee shop near the river and not a pub."],
        [EAGLE, ["The Mill is a coffee shop."]],
        0.5207209546,
        3.2267986881,
    ),
    "one_empty_output": (
        ["", "The Mill is a cheap coffee shop near the river."],
        [EAGLE, ["The Mill is a cheap coffee shop near the river."]],
        0.6347364189,
        1.7326598843,
    ),
    "repeated_references": (
        ["The Eagle is a pub.", "The Mill is a shop."],
        [[EAGLE[0]] * 3 + [EAGLE[5]], ["The Mill is a coffee shop."] * 2],
        0.7535497353,
        3.3448426899,
    ),
    "empty_references": (
        ["The Eagle is a pub.", "The Mill is a shop."],
        [[EAGLE[0], "", EAGLE[5], ""], ["The Mill is a coffee shop.", "", ""]],
        0.7535497353,
        3.4187226226,
    ),
    "an_empty_first_reference": (
        ["The Eagle", "The Mill is a shop."],
        [["", EAGLE[0], EAGLE[3]], ["The Mill is a coffee shop.", ""]],
        0.6104735836,
        0.1994377269,
    ),
}

# The same sets by the scorer's Python option (metrics/pymteval.py); the others end there in a division by zero.
FROM_PYTHON = {
    "plain": (0.5394044744, 3.1510469729),
    "garbage": (0.0, 0.0),
    "repeated": (0.0, 0.6666666667),
    "one_reference": (0.5029689893, 3.2104388404),
    "many_references": (1.0, 4.4553163310),
    "entities": (1.0, 4.1316626750),
    "many_and_few_references": (0.5819575769, 4.8199558519),
    "long_outputs": (0.5207209546, 3.2267986881),
    "one_empty_output": (0.7759091033, 1.8119827383),
    "repeated_references": (0.7535497353, 3.7190679009),
    "empty_references": (0.7535497353, 4.6356894811),
}


@pytest.mark.parametrize("name", FROM_PERL)
def test_scores_equal_the_perl_script(name):
    predictions, references, bleu, nist = FROM_PERL[name]
    assert bleu_and_nist(*check(predictions, references)) == pytest.approx((bleu, nist), abs=1e-9)


@pytest.mark.parametrize("name", FROM_PYTHON)
def test_scores_equal_the_python_option(name):
    predictions, references, *_ = FROM_PERL[name]
    assert bleu_and_nist(*check(predictions, references), "python") == pytest.approx(FROM_PYTHON[name], abs=1e-9)


@needs_perl
def test_the_rebuilt_script_gives_the_official_scores():
    sets = [check(predictions, references) for predictions, references, *_ in FROM_PERL.values()]
    for name, scores in zip(FROM_PERL, oracles.rebuilt(sets), strict=True):
        assert scores == pytest.approx(FROM_PERL[name][2:], abs=1e-9), name


def test_the_length_penalty_takes_the_mean_number_of_references_that_are_not_empty():
    output, long, short = ["a b", "e f"], "a b c d", "e f g h"
    few = bleu_and_nist(output, [[long, long, long], [short]])[1]
    padded = bleu_and_nist(output, [[long, long, long], [short, "", ""]])[1]
    assert few == padded
    # Mean length 4 whatever the groups: ratio 1/2. "a" and "b" are in 3 references of 16 words, "e" and "f" in 1.
    unigrams = 2 * math.log2(16 / 3) + 2 * math.log2(16)
    assert few == pytest.approx(unigrams / 4 * 0.5 ** (math.log(2) / math.log(1.5)) ** 2)


def test_a_group_without_any_token_is_refused():
    with pytest.raises(ValueError, match="item 2: no reference has a token"):
        bleu_and_nist(["a", "b"], [["a"], ["<skipped>", ""]])


def test_only_ascii_letters_are_lower_cased():
    assert tokenize("ÉCLAIR Café") == ["Éclair", "café"]
    assert tokenize("ÉCLAIR Café", "python") == ["éclair", "café"]


def test_numbers_stay_whole_and_other_punctuation_stands_apart():
    assert tokenize('£1,000.50 a-b 3-4, 5. "x"') == ["£1,000.50", "a-b", "3", "-", "4", ",", "5", ".", '"', "x", '"']


def test_the_python_option_differs_for_groups_of_unequal_size_only():
    equal = (["a b c d"], [["a b c d e", "a b c"]])
    unequal = (["a b c d", "e f"], [["a b c d e", "a b c"], ["e f g h i"]])
    assert bleu_and_nist(*equal) == pytest.approx(bleu_and_nist(*equal, "python"))
    assert bleu_and_nist(*unequal)[1] != pytest.approx(bleu_and_nist(*unequal, "python")[1], abs=1e-3)


def test_an_unknown_variant_is_refused():
    with pytest.raises(ValueError, match="mteval"):
        bleu_and_nist(["a"], [["a"]], "v14")
