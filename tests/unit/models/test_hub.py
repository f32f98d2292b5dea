"""Hub models: found in the local cache, fetched, or refused within 5 s with the ways on. The hub is a local server."""

from __future__ import annotations

import hashlib
import json
import socket
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import huggingface_hub.constants as hub_constants
import pytest
import torch

from dual_lora.config import ModelConfig
from dual_lora.models import ModelError, check_available, fingerprint, load
from dual_lora.tasks.base import Head
from tests.unit.models.shipped import model_config

REPOSITORY = "someone/tiny-llama"
COMMIT = "0123456789abcdef0123456789abcdef01234567"
GENERATE = Head("causal_lm")


def hub_model(revision: str = "main", **changes: object) -> ModelConfig:
    return model_config("tiny_llama", source="hub", repository=REPOSITORY, revision=revision, **changes)


@pytest.fixture(autouse=True)
def empty_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Give each test a hub cache of its own, and the network that this process may have been denied."""
    cache = tmp_path / "hub"
    monkeypatch.setattr(hub_constants, "HF_HUB_CACHE", str(cache))
    monkeypatch.setattr(hub_constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setenv("DUAL_LORA_CACHE", str(tmp_path / "dual_lora"))
    return cache


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder as a repository holds it: a checkpoint, and files that nobody here reads."""
    folder = tmp_path_factory.mktemp("repository")
    loaded = load(model_config("tiny_llama"), GENERATE, dtype="float32", seed=0)
    loaded.model.save_pretrained(folder)
    loaded.tokenizer.save_pretrained(folder)
    (folder / "pytorch_model.bin").write_bytes(b"never read")
    return folder


def fill_cache(cache: Path, checkpoint: Path) -> None:
    """Lay the checkpoint down as huggingface_hub does: refs/main names the commit, snapshots/COMMIT holds the files."""
    repository = cache / f"models--{REPOSITORY.replace('/', '--')}"
    snapshot = repository / "snapshots" / COMMIT
    snapshot.mkdir(parents=True)
    for file in checkpoint.iterdir():
        (snapshot / file.name).write_bytes(file.read_bytes())
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(COMMIT)


@pytest.mark.parametrize("revision", ["main", COMMIT])
def test_a_cached_model_is_found_and_loaded_without_a_network(
    revision: str, empty_cache: Path, checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill_cache(empty_cache, checkpoint)
    monkeypatch.setattr(hub_constants, "HF_HUB_OFFLINE", True)
    model = hub_model(revision)
    check_available(model)
    loaded = load(model, GENERATE, dtype="float32", seed=0)
    assert loaded.fingerprint == {"source": "hub", "repository": REPOSITORY, "revision": COMMIT}
    expected = load(model_config("tiny_llama"), GENERATE, dtype="float32", seed=0).model.state_dict()
    assert all(torch.equal(loaded.model.state_dict()[key], value) for key, value in expected.items())


@pytest.mark.parametrize("lacking", ["model.safetensors", "tokenizer.json", "config.json"])
def test_a_copy_that_lacks_a_file_is_not_taken_for_whole(
    lacking: str, empty_cache: Path, checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill_cache(empty_cache, checkpoint)
    next(empty_cache.rglob(lacking)).unlink()
    monkeypatch.setattr(hub_constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(ModelError, match="not in the local cache"):
        check_available(hub_model())


def use_endpoint(monkeypatch: pytest.MonkeyPatch, port: int) -> None:
    """Let huggingface_hub talk to a port of this machine, as HF_ENDPOINT would have at its import."""
    endpoint = f"http://127.0.0.1:{port}"
    monkeypatch.setattr(hub_constants, "ENDPOINT", endpoint)
    monkeypatch.setattr(
        hub_constants, "HUGGINGFACE_CO_URL_TEMPLATE", endpoint + "/{repo_id}/resolve/{revision}/{filename}"
    )


def refused(model: ModelConfig) -> str:
    """Return the message that refuses the model, which must come within 5 s."""
    start = time.monotonic()
    with pytest.raises(ModelError) as refusal:
        check_available(model)
    assert time.monotonic() - start < 5
    return str(refusal.value)


def test_offline_the_error_names_the_ways_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub_constants, "HF_HUB_OFFLINE", True)
    message = refused(model_config("llama2"))
    for way in (
        "HF_HUB_OFFLINE is set",
        "model.path=FOLDER",
        "hf download meta-llama/Llama-2-7b-hf --revision 01c7f73d771dfac7d292323805ebc428287df4f9",
        "HF_TOKEN",
        "model=smollm2",
    ):
        assert way in message


def test_without_a_network_the_error_comes_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        port = unused.getsockname()[1]
    use_endpoint(monkeypatch, port)
    assert "cannot be reached" in refused(model_config("llama2"))


def test_a_network_that_swallows_everything_costs_less_than_5_s(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as silent:  # takes connections and never answers
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        use_endpoint(monkeypatch, silent.getsockname()[1])
        message = refused(model_config("llama2"))
    assert "cannot be reached" in message or "did not answer" in message


class FakeHub(BaseHTTPRequestHandler):
    """The few requests of the hub's interface that huggingface_hub makes for one repository."""

    folder: Path
    files: list[str]
    gated = False
    fetched: list[str]

    def log_message(self, *_: object) -> None:
        pass

    def do_HEAD(self) -> None:
        self.answer(with_body=False)

    def do_GET(self) -> None:
        self.answer(with_body=True)

    def answer(self, *, with_body: bool) -> None:
        path = self.path.split("?")[0].removeprefix("/")
        if path.startswith(f"api/models/{REPOSITORY}"):
            siblings = [{"rfilename": name} for name in self.files]
            tree = [
                {"type": "file", "path": name, "size": (self.folder / name).stat().st_size, "oid": "0" * 40}
                for name in self.files
            ]
            listing = tree if "/tree/" in path else {"id": REPOSITORY, "sha": COMMIT, "siblings": siblings}
            self.reply(200, json.dumps(listing).encode(), {"Content-Type": "application/json"})
        elif not path.startswith(f"{REPOSITORY}/resolve/"):
            self.reply(404, b"", {"X-Error-Code": "RepoNotFound"})
        elif path.split("/")[3] not in ("main", COMMIT):
            self.reply(404, b"", {"X-Error-Code": "RevisionNotFound"})
        elif self.gated:
            self.reply(403, b"", {"X-Error-Code": "GatedRepo"})
        else:
            name = path.split("/")[-1]
            content = (self.folder / name).read_bytes()
            headers = {"ETag": f'"{hashlib.sha256(content).hexdigest()}"', "X-Repo-Commit": COMMIT}
            if with_body:
                self.fetched.append(name)
            self.reply(200, content, headers, with_body=with_body)

    def reply(self, status: int, content: bytes, headers: dict[str, str], *, with_body: bool = True) -> None:
        self.send_response(status)
        for key, value in (headers | {"Content-Length": str(len(content))}).items():
            self.send_header(key, value)
        self.end_headers()
        if with_body and self.command != "HEAD":
            self.wfile.write(content)


@pytest.fixture
def fake_hub(checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[type[FakeHub]]:
    names = [file.name for file in checkpoint.iterdir()]
    handler = type("Handler", (FakeHub,), {"folder": checkpoint, "files": names, "fetched": []})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()  # asks each 10 ms whether to end
    use_endpoint(monkeypatch, server.server_port)
    yield handler
    server.shutdown()


def test_a_reachable_model_passes_the_check_without_being_fetched(fake_hub: type[FakeHub]) -> None:
    check_available(hub_model())
    assert fake_hub.fetched == []


def test_a_branch_is_resolved_to_the_commit_that_the_fingerprint_names(fake_hub: type[FakeHub]) -> None:
    assert fingerprint(hub_model("main"))["revision"] == COMMIT


def test_a_fetched_model_is_loaded_and_no_pickle_file_is_fetched(fake_hub: type[FakeHub], empty_cache: Path) -> None:
    loaded = load(hub_model(), GENERATE, dtype="float32", seed=0)
    assert "model.safetensors" in fake_hub.fetched
    assert "pytorch_model.bin" not in fake_hub.fetched
    expected = load(model_config("tiny_llama"), GENERATE, dtype="float32", seed=0).model.state_dict()
    assert all(torch.equal(loaded.model.state_dict()[key], value) for key, value in expected.items())


def test_a_gated_model_asks_for_a_token(fake_hub: type[FakeHub]) -> None:
    fake_hub.gated = True
    message = refused(hub_model())
    assert "gated" in message
    assert "HF_TOKEN" in message


def test_an_unknown_revision_or_repository_is_named(fake_hub: type[FakeHub]) -> None:
    assert "no revision 'v9'" in refused(hub_model("v9"))
    unknown = model_config("tiny_llama", source="hub", repository="someone/else", revision="main")
    assert "someone/else does not exist" in refused(unknown)


def test_a_repository_with_pickle_files_only_is_refused(fake_hub: type[FakeHub]) -> None:
    fake_hub.files = [name for name in fake_hub.files if not name.endswith(".safetensors")]
    message = refused(hub_model())
    assert "no safetensors" in message
    assert "refs/pr/N" in message
