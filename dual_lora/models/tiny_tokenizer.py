"""A small byte-level BPE tokenizer for the random models: lossless for any text, with the family's special tokens."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

VOCAB_SIZE = 512  # 256 bytes, the special tokens, and merges

# Trained only on this text, so that the ids stay the same if the sample data changes. It has the words and forms of the
# tasks' prompts.
_TEXT = """
Please answer the following question with true or false, question: is the moon made of stone?
Answer format: true/false. the correct answer is true. the correct answer is false.
Please choose the correct solution to the question: How do you keep soup warm? Solution1: Put the lid on the pot.
Solution2: Put the pot in the fridge. Answer format: solution1/solution2. the correct answer is solution1.
Please choose the correct answer to fill in the blank to complete the given sentence: The box did not fit in the bag
because the _ was too small. Option1: box Option2: bag Answer format: option1/option2. the correct answer is option2.
Please choose the correct ending to complete the given sentence. Ending1: Ending2: Ending3: Ending4:
Answer1: Answer2: Answer3: Answer4: Answer5: the correct answer is answer1. the correct answer is ending3.
name : The Green Door | Type : pub | food : Italian | price : cheap | customer rating : 5 out of 5 | area : riverside |
family friendly : yes | near : Market Hall. The Green Door is a cheap Italian pub by the riverside, near Market Hall.
It is family-friendly and customers rate it 5 out of 5. A coffee shop in the city centre with a moderate price range.
There is a restaurant called The Old Mill that serves French food; prices are high and children are not welcome.
name[The Old Mill], eatType[restaurant], food[French], priceRange[more than 20], area[city centre], near[Station Road]
The river : country : Norway | The bridge : length : 1200 | was born in | is located in | was written by | leader name
This sentence is grammatical. The film was a joy to watch. The two sentences mean the same. It does not follow.
Below is an instruction that describes a task. Write a response that appropriately completes the request.
### Instruction: ### Response: 0 1 2 3 4 5 6 7 8 9 10 20 100 2000
"""


def text_sha256() -> str:
    """Return the hash of what the tokenizer is trained on, for the fingerprint of a random model."""
    return hashlib.sha256(f"{VOCAB_SIZE}{_TEXT}".encode()).hexdigest()


@dataclass(frozen=True)
class _Manner:
    """A family's special tokens in the order of their ids, their roles, and the frame around one and two texts."""

    roles: dict[str, str]
    single: str
    pair: str

    @property
    def special(self) -> list[str]:
        return list(dict.fromkeys(self.roles.values()))


_MANNERS = {
    "gpt2": _Manner(
        {"bos_token": "<|endoftext|>", "eos_token": "<|endoftext|>", "unk_token": "<|endoftext|>"}, "$A", "$A $B"
    ),
    "llama": _Manner({"unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>"}, "<s> $A", "<s> $A $B"),
    "roberta": _Manner(
        {
            "bos_token": "<s>",
            "cls_token": "<s>",
            "pad_token": "<pad>",
            "eos_token": "</s>",
            "sep_token": "</s>",
            "unk_token": "<unk>",
            "mask_token": "<mask>",
        },
        "<s> $A </s>",
        "<s> $A </s> </s> $B </s>",
    ),
    "deberta": _Manner(
        {
            "pad_token": "[PAD]",
            "cls_token": "[CLS]",
            "sep_token": "[SEP]",
            "unk_token": "[UNK]",
            "mask_token": "[MASK]",
        },
        "[CLS] $A [SEP]",
        "[CLS] $A [SEP] $B:1 [SEP]:1",
    ),
}


def tiny_tokenizer(family: str, *, max_length: int) -> PreTrainedTokenizerFast:
    """Return the tokenizer of a random model. The same for every seed and on every machine.

    GPT-2: no frame, bos = eos, no padding token of its own. LLaMA: `<s>` in front, no padding token of its own.
    RoBERTa: `<s> a </s></s> b </s>`. DeBERTa: `[CLS] a [SEP] b [SEP]`. `max_length`: the model's positions, in tokens.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    manner = _MANNERS[family]
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB_SIZE,
        special_tokens=manner.special,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator([_TEXT], trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single=manner.single,
        pair=manner.pair,
        special_tokens=[(token, tokenizer.token_to_id(token)) for token in manner.special],
    )
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, model_max_length=max_length, **manner.roles)
