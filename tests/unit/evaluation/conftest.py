"""What the tests of this folder share."""

import pytest

from tests.unit.tiny_text_model import build_tokenizer


@pytest.fixture(scope="module")
def tokenizer():
    return build_tokenizer()
