"""BLEU and NIST equal `mteval-v13a.pl` on the texts that tell its rules apart.

The expected numbers come from the subroutines of the script that the E2E scorer ships (mteval-v13a-sig.pl, with its
edits for groups of unequal size), run with Perl 5.36 on files laid out as the scorer lays them out.
"""

import pytest

from dual_lora.metrics.mteval import bleu_and_nist, tokenize
from dual_lora.metrics.texts import check

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
        3.0006506149,
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
}


@pytest.mark.parametrize("name", FROM_PERL)
def test_scores_equal_the_perl_script(name):
    predictions, references, bleu, nist = FROM_PERL[name]
    assert bleu_and_nist(*check(predictions, references)) == pytest.approx((bleu, nist), abs=1e-9)


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
