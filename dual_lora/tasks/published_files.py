"""The files of a local data folder, each with its public source and the sha256 that committed records hold.

`run.py data out=FOLDER` makes such a folder. Three files are made from what their source has; all others are it.
"""

from __future__ import annotations

import bz2
import hashlib
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from dual_lora.config import DataError
from dual_lora.records import file_sha256, replacing
from dual_lora.tasks import downloads, files
from dual_lora.tasks.commonsense import data as commonsense

GITHUB = "https://raw.githubusercontent.com"
HUB = "https://huggingface.co"
_ADAPTERS = f"AGI-Edgerunners/LLM-Adapters/{commonsense.REVISION}"
_E2E = "tuetschek/e2e-dataset/ab0d967"
_GLUE = "F0restL1n/BERT/0d0288b/glue_data"  # the files of the GLUE download
_HELLASWAG = "klosax/hellaswag_text_data/60a646bd806bce22dcb2eb6d4fadb12f1472aa4c/hellaswag_val_full.txt.bz2"
_RELEASE = f"microsoft/LoRA/{downloads.RELEASE_REVISION}/examples/NLG"
_ROBERTA = "FacebookAI/roberta-base/resolve/e2da8e2f811d1448a5b465c236feacd80ffbac7b"
_AGAIN = " and give the command again"


@dataclass(frozen=True)
class PublishedFile:
    """One file: its place in the folder, the sha256 of its content, where it is from, and how it is made of that."""

    name: str
    sha256: str
    sources: tuple[str, ...]
    make: Callable[..., bytes] | None = None  # None: the one source is the file

    @property
    def part(self) -> str:
        return self.name.partition("/")[0]


def without_mark(raw: bytes) -> bytes:
    """Return a file without its byte-order mark."""
    return raw.removeprefix(b"\xef\xbb\xbf")


def mrpc_train(raw: bytes, development: bytes) -> bytes:
    """Return MRPC's training pairs less those of the development set, as the GLUE download makes them."""
    held_out = {tuple(line.split("\t")[:2]) for line in without_mark(development).decode().split("\n")}
    header, *rows = without_mark(raw).decode().replace("\r\n", "\n").rstrip("\n").split("\n")
    kept = [row.strip().split("\t") for row in rows]
    lines = [header, *("\t".join(row) for row in kept if (row[1], row[2]) not in held_out)]
    return ("\n".join(lines) + "\n").encode()


def hellaswag_test(raw: bytes) -> bytes:
    """Return HellaSwag's items in the form of LLM-Adapters, from six lines each: context, answer, four endings."""
    lines = bz2.decompress(raw).decode().removesuffix("\n").split("\n")
    items = []
    for place in range(0, len(lines), 6):
        context, answer, *endings = lines[place : place + 6]
        choices = " ".join(f"Ending{number}: {ending}" for number, ending in enumerate(endings, start=1))
        word = f"ending{int(answer) + 1}"
        instruction = (
            f"Please choose the correct ending to complete the given sentence: {context}\n\n{choices}\n\n"
            "Answer format: ending1/ending2/ending3/ending4"
        )
        items.append(
            {"instruction": instruction, "input": "", "output": f"the correct answer is {word}", "answer": word}
        )
    return json.dumps(items, indent=4).encode()


def _github(name: str, path: str, sha256: str) -> PublishedFile:
    return PublishedFile(name, sha256, (f"{GITHUB}/{path}",))


_COMMONSENSE = {
    "ARC-Challenge/test": "4a89ce368ae01a71d268d9851686738b2a0a1d84271116bab49a1dd2b48ecad7",
    "ARC-Challenge/train": "a9debff28aafed86a08211dc3584a3b6cb38edca8c56bb34cd5002ed54aeebfb",
    "ARC-Easy/test": "3f32a84716ca6d57d38728bf80cc8117aecd17445c2cf29a68b571b810eb82dc",
    "ARC-Easy/train": "6a06cece3dec32f4fb1c1b0fc29dab14be7cf3053b417290dbc6cd845359f5ff",
    "boolq/test": "89df2397cbca81dc31adcc6f7f5b635821aa0565aafde46725b2b4bd39b4dfa9",
    "boolq/train": "5ccbaceebaddc69765e1c4a363632196b81851d303696672165ab59ec4e48c83",
    "openbookqa/test": "8479930f7b8a26052c78250280b5465a4016ca7fc806af440d0f37e243f3099e",
    "openbookqa/train": "a1e094eeea01f70c0baa880f37497b26700ae99b243927b9c529984de9b1fe90",
    "piqa/test": "3860d11b9b42e590b6b4bbc1643214d373ed0b0d4ac62fcc7bdceb8e044ad141",
    "piqa/train": "d750ea06e70ce6af746f8315d2952a0a1488520794f934fd1f000286575e5702",
    "social_i_qa/test": "71543f41127451945379d106ffedaef502f1c8770dff6d2f543aca85e3080b1d",
    "social_i_qa/train": "1ca995d6055a6be053bb54b4b4c7abe4cd0323940079071932c1f9129d589b17",
    "winogrande/test": "6946f5209e7114c65c6d04f8f644c5a061af20d730b1cfe158fff3dc44076fb9",
    "winogrande/train": "154d4fc3ef6b065aff1b738150f3fbd8d497f8e32d7aaae114991a2ad912ae79",
}
_GLUE_FILES = {
    "CoLA/train": "cb368ebeb9f27d7ad03720d27ddc95687a311bdb100781a2fe59a5f5b1bc0624",
    "CoLA/dev": "8c013e21dc39957cac37378d87bebe225b694a0d5fe13eded66c2856628833fd",
    "SST-2/train": "48eac26399f8456935f81dd9e3a745c1430adb6c62e233ccfe22db4a0d15d1d1",
    "SST-2/dev": "54a9c12c77e402fc14d6a66a506f24d999f596b0176eb777c972cccc2f9cc4b0",
    "STS-B/train": "41c4d978b6162abdcada7e49a982211954cca5459c228db478af333124b257a2",
    "STS-B/dev": "fe7dc0632a5033562f3cadff991f6e8d9b9b6311861660e78c3c82eb7db67f59",
    "RTE/train": "41e3a9b063433392343fad9e962cf2f58b681c78d8f71592f4186f0837246c5c",
    "RTE/dev": "80230dfa1347282e7b532b06a1004a76a710087541189bf874223ddf0e3819fb",
}
FILES: tuple[PublishedFile, ...] = (
    *(
        _github(f"e2e/official/{name}", f"{_E2E}/{name}", sha256)
        for name, sha256 in (
            ("trainset.csv", "f27d48df45815288ab15619d47a79028c300fbb7f42e373668aba0b98c1d57c6"),
            ("devset.csv", "fc26b78cdb849c80545f513b223d1e051138b43882eeb79e3eb153e689c864f9"),
            ("testset_w_refs.csv", "edc8db685e39bb9824d5bd70c18b1c9b0412d14b527aa960e2d1c8251ee15ccd"),
        )
    ),
    *(
        _github(
            name.replace("e2e/", "e2e/lora_format/").replace("webnlg_challenge_2017", "webnlg_2017"),
            f"{_RELEASE}/data/{name}",
            sha256,
        )
        for name, sha256 in downloads.RELEASE_SHA256.items()
    ),
    *(
        _github(f"commonsense/{name}.json", f"{_ADAPTERS}/dataset/{name}.json", sha256)
        for name, sha256 in _COMMONSENSE.items()
    ),
    PublishedFile(
        "commonsense/hellaswag/test_detagged.json",
        "f50fa0f3b243f7f7d2e768e3fd4a96b16af3ea189a1a679d1222727c05a1976d",
        (f"{GITHUB}/{_HELLASWAG}",),
        hellaswag_test,
    ),
    *(_github(f"glue/{name}.tsv", f"{_GLUE}/{name}.tsv", sha256) for name, sha256 in _GLUE_FILES.items()),
    PublishedFile(
        "glue/MRPC/train.tsv",
        "15d9c71e62d662b1cc9237e2015047cad4c1f62552d49858a9bce2b944d79897",
        (f"{GITHUB}/{_GLUE}/MRPC/msr_paraphrase_train.txt", f"{GITHUB}/{_GLUE}/MRPC/dev_ids.tsv"),
        mrpc_train,
    ),
    PublishedFile(
        "glue/MRPC/dev.tsv",
        "320459df9454dbdc8eea69ad1eb294967e7dfe03e7cf791f37d954a316f5253d",
        (f"{GITHUB}/{_GLUE}/MRPC/dev.tsv",),
        without_mark,
    ),
    _github(
        "tokenizers/gpt2/vocab.json",
        f"{_RELEASE}/vocab/vocab.json",
        "196139668be63f3b5d6574427317ae82f612a97c5d1cdaf36ed2256dbf636783",
    ),
    _github(
        "tokenizers/gpt2/merges.txt",
        f"{_RELEASE}/vocab/vocab.bpe",
        "1ce1664773c50f3e0cc8842619a93edc4624525b728b188a9e0be33b7726adc5",
    ),
    PublishedFile(
        "tokenizers/roberta/vocab.json",
        "06b4d46c8e752d410213d9548eb27a54db70fda0319b6271fb8d59dead5e1cab",
        (f"{HUB}/{_ROBERTA}/vocab.json",),
    ),
    _github(
        "tokenizers/llama2/tokenizer.model",
        "karpathy/llama2.c/350e04f/tokenizer.model",
        "9e556afd44213b6bd1be2b850ebbbd98f5481437a8021afaf58ee7fb1818d347",
    ),
)


def fetch(folder: Path, wanted: tuple[PublishedFile, ...] = FILES) -> Iterator[tuple[PublishedFile, str]]:
    """Make each file that `folder` lacks and yield it with "there" or "fetched", as it is done.

    Raises `DataError`, which names the file and what to do: it cannot be fetched, or has another content than the
    published one, in the folder (which is left as it is) or at its source.
    """
    for file in wanted:
        if files.exists(folder, file.name):
            there = files.read_bytes(folder, file.name)
            _check(there, file, f"{folder / file.name}, which was there before,", "Move it away")
            yield file, "there"
            continue
        otherwise = (
            f"It is for {folder / file.name}: give the command again once the address can be reached (what is done "
            f"stays), or put a file with the sha256 {file.sha256} there by hand"
        )
        fetched = [downloads.pinned_file(address, otherwise) for address in file.sources]
        fix = f"Delete the download ({', '.join(map(str, fetched))})"
        try:
            parts = [path.read_bytes() for path in fetched]
            content = parts[0] if file.make is None else file.make(*parts)
        except (ValueError, LookupError, OSError, EOFError) as error:
            raise DataError(f"{' with '.join(file.sources)} is damaged ({error}). {fix}{_AGAIN}") from None
        _check(content, file, " with ".join(file.sources), fix)
        with replacing(folder / file.name) as place:
            place.write_bytes(content)
        assert file_sha256(folder / file.name) == file.sha256
        yield file, "fetched"


def _check(content: bytes, file: PublishedFile, where: str, fix: str) -> None:
    found = hashlib.sha256(content).hexdigest()
    if found != file.sha256:
        raise DataError(
            f"{where} is not the published {file.name}: sha256 {found}, expected {file.sha256}. {fix}{_AGAIN}"
        )
