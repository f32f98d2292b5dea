"""Reading an answer out of a reply equals the published regular expressions, on orderly and on broken replies."""

import re

import pytest

from dual_lora.config import DataError
from dual_lora.tasks.commonsense import SUBSETS, read
from dual_lora.tasks.commonsense.items import parse, read_text

CHOICES = r"answer1|answer2|answer3|answer4|answer5"
PUBLISHED = {
    "boolq": r"true|false",
    "piqa": r"solution1|solution2",
    "social_i_qa": CHOICES,
    "ARC-Challenge": CHOICES,
    "ARC-Easy": CHOICES,
    "openbookqa": CHOICES,
    "hellaswag": r"ending1|ending2|ending3|ending4",
    "winogrande": r"option1|option2",
}
FRAMES = [
    "the correct answer is {0}",
    "{0}",
    "  {0}\n",
    "The answer: {0}. Not {1}.",
    "either {1} or {0}",
    "{0}{1}",
    "un{0}, in{1}ly",
    "the correct answer is {0}7",
    "{0}" + " because it is so" * 300,
    "x" * 5000 + "{0}",
    "line one\nline two {0}\nthe correct answer is {1}",
]
PLAIN = [
    "",
    "   ",
    "\n\n",
    "I do not know.",
    "the correct answer is",
    "answer",
    "the correct answer is answer9",
    "TRUE",
]


def published(task, reply):
    found = re.findall(PUBLISHED[task], reply.strip())
    return found[0] if found else None


@pytest.mark.parametrize("task", SUBSETS)
def test_reading_equals_the_published_expression(task):
    labels = PUBLISHED[task].split("|")
    replies = [frame.format(a, b) for frame in FRAMES for a in labels for b in labels]
    replies += [reply.upper() for reply in replies] + PLAIN
    replies += [reply.format(*labels) for other in PUBLISHED.values() for reply in other.split("|")]
    assert [read(task, reply) for reply in replies] == [published(task, reply) for reply in replies]


def test_known_readings():
    assert read("boolq", "the correct answer is untrue") == "true"
    assert read("boolq", "True") is None
    assert read("piqa", "the correct answer is solution3") is None
    assert read("openbookqa", "answer10 or answer4") == "answer1"
    assert read("winogrande", "") is None


def test_a_misspelt_task_is_named_with_the_nearest():
    with pytest.raises(ValueError, match="'social_iqa'; did you mean 'social_i_qa'"):
        read("social_iqa", "answer1")


def test_an_instruction_is_taken_apart():
    item = parse(
        "Please choose the correct answer to the question: Why?\n\n"
        "Answer1: as Answer2: said so Answer2: it rains Answer3: no\n\nAnswer format: answer1/answer2/answer3"
    )
    assert item.question == "Please choose the correct answer to the question: Why?"
    assert item.options == {"answer1": "as", "answer2": "said so Answer2: it rains", "answer3": "no"}


@pytest.mark.parametrize(
    ("instruction", "message"),
    [
        ("What is it?", "does not end in 'Answer format: a/b'"),
        ("What?\n\nAnswer1: a Answer3: c\n\nAnswer format: answer1/answer2/answer3", "no 'Answer2:'"),
    ],
)
def test_an_instruction_in_another_form_is_refused(instruction, message):
    with pytest.raises(DataError, match=message):
        parse(instruction)


def test_an_answer_in_words_is_read_as_its_option():
    item = parse("Q?\n\nOption1: a cat Option2: a cat on a mat Answer format: option1/option2")
    assert read_text("A cat.", item) == "option1"
    assert read_text("It is a cat on a mat, I think", item) == "option2"
    assert read_text("it was a cat", item) == "option1"
    assert read_text("a category", item) is None
    assert read_text("", item) is None
    both = parse("Q?\n\nOption1: Ian Option2: Dennis Answer format: option1/option2")
    assert read_text("Ian or Dennis", both) is None
    assert read_text("dennis", both) == "option2"
