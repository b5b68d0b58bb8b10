"""pretrained="hf-hub:...": the real huggingface_hub against a server of our own, its cache, and what goes wrong."""

import hashlib
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
import torch
from safetensors.torch import save_file

import bitfast
from bitfast.errors import WeightsError
from bitfast.weights import hub, load_weights, resolve

COMMIT = "a" * 40


class Handler(BaseHTTPRequestHandler):
    """The two requests of a download: HEAD tells size, hash and commit, GET gives the bytes."""

    def do_HEAD(self):
        self.respond(with_body=False)

    def do_GET(self):
        self.respond(with_body=True)

    def respond(self, with_body):
        owner, name, _, revision, file = self.path.lstrip("/").split("?")[0].split("/", 4)
        files = self.server.repositories.get(f"{owner}/{name}")
        if files is None or file not in files or revision not in ("main", COMMIT, "v1"):
            code = "RepoNotFound" if files is None else "EntryNotFound"
            self.send_response(404)
            self.send_header("X-Error-Code", code)
            self.send_header("X-Repo-Commit", COMMIT)
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        self.server.asked.append((self.command, file, revision))
        self.send_response(200)
        self.send_header("ETag", f'"{hashlib.sha256(files[file]).hexdigest()}"')
        self.send_header("X-Repo-Commit", COMMIT)
        self.send_header("Content-Length", str(len(files[file])))
        self.end_headers()
        if with_body:
            self.wfile.write(files[file])

    def log_message(self, *args):
        pass


@pytest.fixture
def server(tmp_path, monkeypatch):
    """A server that huggingface_hub takes for the Hub, with `repositories` {name: {file: bytes}} and what was asked."""
    constants = pytest.importorskip("huggingface_hub.constants")
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.repositories, server.asked = {}, []
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{server.server_port}")
    monkeypatch.setattr(
        constants, "HUGGINGFACE_CO_URL_TEMPLATE", constants.ENDPOINT + "/{repo_id}/resolve/{revision}/{filename}"
    )
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    for variable in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "all_proxy"):
        monkeypatch.delenv(variable, raising=False)
    yield server
    server.shutdown()
    server.server_close()


@pytest.fixture
def repository(server, network, tmp_path):
    """The server with somebody/tiny on it, a model folder in timm's layout, and the model of it."""
    model = network(depths=(2, 2, 2, 2), seed=3)
    save_file(model.state_dict(), tmp_path / "w.safetensors")
    config = json.dumps({"architecture": "resnetv2_26x0_5_bit", "num_classes": 5, "bitfast": {"ws_eps": 1e-9}})
    files = {"model.safetensors": (tmp_path / "w.safetensors").read_bytes(), "config.json": config.encode()}
    server.repositories["somebody/tiny"] = files
    return server, model


def test_a_repository_and_then_its_cache(repository):
    server, model = repository
    got = bitfast.create_model("resnet26x0_5", pretrained="hf-hub:somebody/tiny")
    assert got.num_classes == 5 and got.ws_eps == 1e-9
    for name, value in model.state_dict().items():
        assert torch.equal(got.state_dict()[name], value), name
    assert resolve("hf-hub:somebody/tiny@v1").name == COMMIT and ("HEAD", "config.json", "v1") in server.asked
    server.shutdown()
    server.server_close()
    again = bitfast.create_model("resnet26x0_5", pretrained="hf-hub:somebody/tiny")
    assert torch.equal(again.norm.weight, model.norm.weight)


def test_a_repository_with_a_state_dict_alone(server, network, tmp_path):
    model = network(depths=(2, 2, 2, 2), seed=4)
    torch.save(model.state_dict(), tmp_path / "w.bin")
    server.repositories["somebody/old"] = {"pytorch_model.bin": (tmp_path / "w.bin").read_bytes()}
    loaded = network(depths=(2, 2, 2, 2))
    assert load_weights(loaded, resolve("hf-hub:somebody/old")).ws_eps == 1e-8
    assert torch.equal(loaded.norm.bias, model.norm.bias)


def test_what_is_not_there(server):
    server.repositories["somebody/empty"] = {"README.md": b"nothing"}
    with pytest.raises(WeightsError, match="somebody/empty holds no weights: expected model.safetensors or"):
        resolve("hf-hub:somebody/empty")
    with pytest.raises(WeightsError, match="somebody/none cannot be fetched .*check the name"):
        resolve("hf-hub:somebody/none")
    with pytest.raises(WeightsError, match="is no name on the Hub: write hf-hub:OWNER/NAME"):
        resolve("hf-hub:one/two/three")


def test_offline(repository, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(WeightsError, match="is not in huggingface_hub's cache and the Hub cannot be reached"):
        resolve("hf-hub:somebody/tiny")


def test_without_huggingface_hub(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "huggingface_hub", None)
    with pytest.raises(WeightsError, match="pip install huggingface_hub"):
        hub.download("hf-hub:somebody/tiny")
