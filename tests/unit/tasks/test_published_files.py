"""`run.py data`: the folder that the experiments name, file by file what the committed records were made with."""

from __future__ import annotations

import bz2
import gzip
import hashlib
import json
import os
import re
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from dual_lora.commands import main
from dual_lora.config import DataError
from dual_lora.config.compose import compose
from dual_lora.tasks import files, published_files
from dual_lora.tasks.published_files import FILES, PublishedFile, fetch, hellaswag_test, mrpc_train
from tests import committed

DATA = os.environ.get("DUAL_LORA_DATA")
needs_data = pytest.mark.skipif(not DATA, reason="DUAL_LORA_DATA is unset")


def recorded() -> dict[str, str]:
    """Return place in the folder -> sha256, of every file that a committed record was made with."""
    held = {}
    for identity in (values["identity"] for values in committed.values()):
        task, print_ = identity["task"]["name"], identity["data"]["fingerprint"]
        if task == "commonsense":
            held |= {f"commonsense/{name}": sha256 for name, sha256 in print_["files"].items()}
        elif task.startswith("glue/"):
            folder = {"cola": "CoLA", "sst2": "SST-2", "stsb": "STS-B"}.get(task[5:], task[5:].upper())
            held |= {f"glue/{folder}/{name}.tsv": facts["sha256"] for name, facts in print_["files"].items()}
        else:
            inside = {"lora": "lora_format", "official": "official"}[print_["form"]] + "/" if task == "e2e" else ""
            place = {"e2e": "e2e", "webnlg": "webnlg_2017"}[task]
            held |= {f"{place}/{inside}{facts['file']}": facts["sha256"] for facts in print_["splits"].values()}
    return held


def test_the_folder_has_every_file_that_a_record_was_made_with() -> None:
    made = {file.name: file.sha256 for file in FILES}
    held = recorded()
    assert len(held) > 30
    assert {name: made.get(name) for name in held} == held


def test_every_source_is_pinned() -> None:
    for file in FILES:
        for address in file.sources:
            commit = address.split("/")[5] if "github" in address else address.split("/")[6]
            assert set(commit) <= set("0123456789abcdef"), address
            assert len(commit) >= 7


@needs_data
@pytest.mark.parametrize("file", FILES, ids=lambda file: file.name)
def test_real_files_have_these_sums(file: PublishedFile) -> None:
    assert hashlib.sha256(files.read_bytes(str(DATA), file.name)).hexdigest() == file.sha256


@needs_data
def test_files_that_are_made_are_made_of_what_their_sources_have() -> None:
    sums = {file.name: file.sha256 for file in FILES}
    header, *train = files.read_bytes(str(DATA), "glue/MRPC/train.tsv").decode().splitlines()
    _, *development = files.read_bytes(str(DATA), "glue/MRPC/dev.tsv").decode().splitlines()
    ids = "\n".join("\t".join(row.split("\t")[1:3]) for row in development)
    rows = [row for pair in zip(train, [*development, *[None] * len(train)], strict=False) for row in pair if row]
    raw = b"\xef\xbb\xbf" + "\r\n".join([header, *rows]).encode()
    assert hashlib.sha256(mrpc_train(raw, ids.encode())).hexdigest() == sums["glue/MRPC/train.tsv"]
    lines = []
    for item in json.loads(files.read_bytes(str(DATA), "commonsense/hellaswag/test_detagged.json")):
        context, choices, _ = item["instruction"].partition("sentence: ")[2].split("\n\n")
        rest = choices.removeprefix("Ending1: ")
        endings = []
        for number in (2, 3, 4):
            ending, _, rest = rest.partition(f" Ending{number}: ")
            endings.append(ending)
        lines += [context, str(int(item["answer"][-1]) - 1), *endings, rest]
    packed = bz2.compress(("\n".join(lines) + "\n").encode())
    assert hashlib.sha256(hellaswag_test(packed)).hexdigest() == sums["commonsense/hellaswag/test_detagged.json"]


class Publisher(BaseHTTPRequestHandler):
    """A server with a few files under their published paths; counts what is asked for."""

    held: dict[str, bytes]
    asked: list[str]

    def do_GET(self) -> None:
        content = self.held.get(self.path)
        if self.command == "GET":
            self.asked.append(self.path)
        self.send_response(200 if content is not None else 404)
        self.send_header("Content-Length", str(len(content or b"")))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(content or b"")

    do_HEAD = do_GET

    def log_message(self, *arguments: object) -> None:
        pass


@pytest.fixture
def publisher(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[type[Publisher]]:
    """The downloads' own code over http, with a publisher on this machine and an empty cache."""
    handler = type("Handler", (Publisher,), {"held": {}, "asked": []})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()  # asks each 10 ms whether to end
    address = f"http://127.0.0.1:{server.server_port}"
    monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", False)
    monkeypatch.setattr("datasets.config.DOWNLOADED_DATASETS_PATH", tmp_path / "cache")
    texts = {"e2e/official/a.csv": b"mr,ref\n", "glue/CoLA/b.tsv": b"\xef\xbb\xbfx\ty\n"}
    wanted = []
    for number, (name, content) in enumerate(texts.items()):
        handler.held[f"/{name}"] = content
        make = published_files.without_mark if number else None
        made = content if make is None else make(content)
        wanted.append(PublishedFile(name, hashlib.sha256(made).hexdigest(), (f"{address}/{name}",), make))
    monkeypatch.setattr(published_files, "FILES", tuple(wanted))
    yield handler
    server.shutdown()


def test_a_folder_is_made_and_made_once(publisher: type[Publisher], tmp_path: Path, capsys) -> None:
    out = tmp_path / "my data"
    assert main(["data", f"out={out}"]) == 0
    assert (out / "e2e/official/a.csv").read_bytes() == b"mr,ref\n"
    assert (out / "glue/CoLA/b.tsv").read_bytes() == b"x\ty\n"
    shown = capsys.readouterr().out
    assert "[2/2] fetched: glue/CoLA/b.tsv" in shown
    assert f"export DUAL_LORA_DATA='{out}'" in shown
    asked = list(publisher.asked)
    assert main(["data", f"out={out}"]) == 0
    assert publisher.asked == asked
    assert "[1/2] there: e2e/official/a.csv" in capsys.readouterr().out


def test_one_part_is_made_and_a_compressed_file_counts(publisher: type[Publisher], tmp_path: Path, capsys) -> None:
    (tmp_path / "e2e/official").mkdir(parents=True)
    (tmp_path / "e2e/official/a.csv.gz").write_bytes(gzip.compress(b"mr,ref\n"))
    assert main(["data", f"out={tmp_path}", "only=e2e"]) == 0
    assert "[1/1] there: e2e/official/a.csv" in capsys.readouterr().out
    assert publisher.asked == []


def test_a_file_of_mine_with_another_content_is_named_and_left(publisher, tmp_path: Path, capsys) -> None:
    mine = tmp_path / "e2e/official/a.csv"
    mine.parent.mkdir(parents=True)
    mine.write_bytes(b"mine")
    assert main(["data", f"out={tmp_path}"]) == 2
    assert f"{mine}, which was there before, is not the published e2e/official/a.csv: sha256" in capsys.readouterr().err
    assert mine.read_bytes() == b"mine"


def test_another_content_at_the_source_leaves_no_file(publisher: type[Publisher], tmp_path: Path) -> None:
    publisher.held["/e2e/official/a.csv"] = b"changed"
    with pytest.raises(DataError, match="is not the published e2e/official/a.csv: sha256 .* expected") as said:
        list(fetch(tmp_path / "out", published_files.FILES))
    copy = re.search(r"Delete the download \((.+)\) and give the command again", str(said.value))
    assert copy is not None
    assert Path(copy[1]).read_bytes() == b"changed"  # otherwise it would be taken again
    del publisher.held["/e2e/official/a.csv"]
    assert not (tmp_path / "out").exists()


def test_a_file_that_is_gone_is_named(publisher: type[Publisher], tmp_path: Path) -> None:
    publisher.held.clear()
    place = re.escape(str(tmp_path / "out/e2e/official/a.csv"))
    with pytest.raises(DataError, match=f"e2e/official/a.csv cannot be fetched .*It is for {place}: .*by hand"):
        list(fetch(tmp_path / "out", published_files.FILES))


@pytest.mark.parametrize("breaks", ["in the middle", "at once", "with a code"])
def test_a_connection_that_breaks_is_said_in_a_sentence(publisher, breaks, tmp_path: Path, monkeypatch, capsys) -> None:
    def broken(self: Publisher) -> None:
        if breaks == "in the middle":
            self.send_response(200)
            self.send_header("Content-Length", "7")
            self.end_headers()
            self.wfile.write(b"mr," * (self.command == "GET"))
        elif breaks == "with a code":
            self.send_error(503)
        self.close_connection = True

    healthy = publisher.do_GET
    for way in ("do_GET", "do_HEAD"):
        monkeypatch.setattr(publisher, way, broken)
    assert main(["data", f"out={tmp_path / 'out'}"]) == 2
    said = capsys.readouterr().err
    assert "e2e/official/a.csv cannot be fetched" in said
    assert f"It is for {tmp_path / 'out/e2e/official/a.csv'}" in said
    for way in ("do_GET", "do_HEAD"):
        monkeypatch.setattr(publisher, way, healthy)
    assert main(["data", f"out={tmp_path / 'out'}"]) == 0


def test_an_experiment_runs_from_the_hub_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("DUAL_LORA_DATA", raising=False)
    words = ["-m", "experiment=nlg_smollm2", "method=lora,dora", "seed=0"]
    with pytest.raises(ValueError, match="DUAL_LORA_DATA, which is unset: the folder of data. `python run.py data out"):
        compose(words)
    configs = compose([*words, "data.source=hub", "data.dir=null"])
    assert [(c.method.name, c.data.source, c.data.dir) for c in configs] == [(m, "hub", None) for m in ("lora", "dora")]
