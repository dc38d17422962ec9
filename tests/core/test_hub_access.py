"""What is said of a hub that refuses, a proxy, no network and a cache that cannot be written to; on loopback."""

import hashlib
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from huggingface_hub import close_session, constants

from ft_notebooks.core.hub_access import cache_if_unreached, hub_explained, through_proxy
from ft_notebooks.loading.example_models import tiny_model, tiny_tokenizer
from ft_notebooks.loading.model_files import hub_commit, read_config
from ft_notebooks.tokenization.padding import load_tokenizer

NAME, COMMIT = "an-owner/a-gated-model", 40 * "c"


class Hub(BaseHTTPRequestHandler):
    "Gives the files of `server.folder` to the token hf_good, and answers other requests as the hub does."

    def do_HEAD(self):
        self.server.asked.append(self.path)
        token = self.headers.get("authorization", "").removeprefix("Bearer ")
        file = self.server.folder / self.path.rpartition("/")[2]
        if "a-broken-hub" in self.path:
            self.answer(500)
        elif NAME not in self.path:
            self.answer(404, {"X-Error-Code": "RepoNotFound"})
        elif not token:
            self.answer(401, {"X-Error-Code": "GatedRepo", "X-Error-Message": "Access is restricted. Please log in."})
        elif token == "hf_expired":
            self.answer(401, {"X-Error-Message": "Invalid credentials in Authorization header"})
        elif token != "hf_good":
            self.answer(403, {"X-Error-Code": "GatedRepo", "X-Error-Message": "not in the authorized list"})
        elif not file.is_file():
            self.answer(404, {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": COMMIT})
        else:
            body = file.read_bytes()
            self.answer(200, {"ETag": f'"{hashlib.sha1(body).hexdigest()}"', "X-Repo-Commit": COMMIT}, body)

    do_GET = do_HEAD

    def answer(self, code, headers=(), body=b""):
        self.send_response(code)
        for name, value in dict(headers, **{"Content-Length": str(len(body))}).items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    def log_message(self, *args):
        pass


class Proxy(Hub):
    "Answers no request to connect, or refuses it."

    def do_CONNECT(self):
        self.server.asked.append(self.path)
        if self.server.folder is None:
            self.server.ended.wait(20)
        else:
            self.answer(403)


@contextmanager
def served(kind, folder):
    server = ThreadingHTTPServer(("127.0.0.1", 0), kind)
    server.folder, server.asked, server.ended = folder, [], threading.Event()
    server.address = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield server
    finally:
        server.ended.set()
        server.shutdown()
        server.server_close()
        thread.join()


@pytest.fixture(autouse=True)
def online(monkeypatch):
    "The hub may be asked; no proxy, no token."
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    for name in ("HTTPS_PROXY", "HTTP_PROXY", "ALL_PROXY", "HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.lower(), raising=False)
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", "/no/such/token")
    close_session()  # a connection keeps the proxy that it was made with
    yield
    close_session()


@pytest.fixture
def hub(tmp_path, monkeypatch):
    tiny_model().save_pretrained(tmp_path / "files")
    tiny_tokenizer().save_pretrained(tmp_path / "files")
    with served(Hub, tmp_path / "files") as server:
        monkeypatch.setattr(constants, "ENDPOINT", server.address)
        monkeypatch.setattr("transformers.utils.hub._hf_api", None, raising=False)  # it keeps the address, and retries
        template = server.address + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        yield server


def told(call, name=NAME, **kwargs):
    "The one line of the `OSError` that a call raises for the name."
    with pytest.raises(OSError, match=f"^{name}: there is no such folder here, and the hub gave no ") as error:
        call(name, **kwargs)
    assert len(str(error.value).splitlines()) == 1
    return str(error.value)


SAID = {  # name, token -> what is wrong, and the cure
    (NAME, None): (
        "it is gated; accept its licence at ",
        f"/{NAME}, then log in with `hf auth login`, or set HF_TOKEN",
    ),
    (NAME, "hf_other"): ("it is gated, and your token's account has no access; accept its licence at ", "that account"),
    (NAME, "hf_expired"): ("it refuses your token (401); log in with `hf auth login`", "or unset HF_TOKEN"),
    ("an-owner/modle", None): ("it has no such model, or a private one; check the spelling, give a folder",),
    ("an-owner/a-broken-hub", None): ("it answers with error 500; start again later, or give a folder",),
}


@pytest.mark.parametrize("name, token", SAID)
def test_what_the_hub_refuses_is_said_after_one_request_with_the_cure(hub, tmp_path, monkeypatch, name, token):
    if token:
        monkeypatch.setenv("HF_TOKEN", token)
    said = told(read_config, name, cache_dir=tmp_path / "cache")
    assert all(words in said for words in SAID[name, token])
    assert sum("/resolve/" in path for path in hub.asked) == 1
    if token:
        assert token not in said


def test_a_tokenizer_alone_is_explained_as_well(hub, tmp_path):
    assert "the hub gave no tokenizer: it is gated; accept" in told(load_tokenizer, cache_dir=tmp_path / "cache")


def test_a_gated_model_is_read_with_a_token_and_then_from_the_cache(hub, tmp_path, monkeypatch):
    cache = {"cache_dir": tmp_path / "cache"}
    monkeypatch.setenv("HF_TOKEN", "hf_good")
    assert read_config(NAME, **cache).model_type == "llama"
    monkeypatch.delenv("HF_TOKEN")
    assert hub_commit(NAME, **cache) == COMMIT  # which the hub refuses by now
    assert "it is gated" in told(hub_commit, force_download=True, **cache)
    asked = len(hub.asked)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert read_config(NAME, **cache).model_type == "llama"
    assert len(hub.asked) == asked
    assert "HF_HUB_OFFLINE is set, and the cache lacks it" in told(read_config, "an-owner/not-cached", **cache)


def test_a_revision_and_a_file_that_the_hub_does_not_have(hub, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_good")
    (hub.folder / "config.json").unlink()
    assert "it has no such file; give a model" in told(read_config, cache_dir=tmp_path / "cache")
    refuse = Hub.answer
    no_revision = {"X-Error-Code": "RevisionNotFound"}
    monkeypatch.setattr(Hub, "answer", lambda self, *_: refuse(self, 404, no_revision))
    assert "it has no such revision; choose one of" in told(read_config, revision="v9", cache_dir=tmp_path / "cache")


def test_a_proxy_that_refuses_is_named_without_its_password(tmp_path, monkeypatch):
    with served(Proxy, tmp_path) as proxy:
        monkeypatch.setenv("https_proxy", proxy.address.replace("//", "//user:secret@"))
        said = told(read_config, cache_dir=tmp_path / "cache")
        assert f"through the proxy {proxy.address}, which refuses (403" in said and "secret" not in said
        assert "hf download an-owner/a-gated-model" in said
        assert len(proxy.asked) <= 2  # huggingface_hub may ask for something of its own once
        assert through_proxy("https") == f" through the proxy {proxy.address}"


def test_a_proxy_that_does_not_answer_is_given_up_after_one_wait(tmp_path, monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_ETAG_TIMEOUT", 0.2)
    with served(Proxy, None) as proxy:
        monkeypatch.setenv("https_proxy", proxy.address)
        said = told(read_config, cache_dir=tmp_path / "cache")
        assert f"{constants.ENDPOINT} does not answer through the proxy {proxy.address}; check the network" in said
        assert len(proxy.asked) <= 2  # huggingface_hub may ask for something of its own once


def test_a_command_asks_a_hub_that_cannot_be_reached_once_and_reads_the_cache(hub, tmp_path, monkeypatch, capsys):
    cache = {"cache_dir": tmp_path / "cache"}
    monkeypatch.setenv("HF_TOKEN", "hf_good")
    read_config(NAME, **cache)
    load_tokenizer(NAME, **cache)
    monkeypatch.setattr(constants, "HF_HUB_ETAG_TIMEOUT", 0.2)
    with served(Proxy, None) as proxy:
        monkeypatch.setenv("http_proxy", proxy.address)
        monkeypatch.setattr(Hub, "do_HEAD", Proxy.do_CONNECT)  # plain HTTP is not tunnelled
        close_session()
        with cache_if_unreached():
            assert read_config(NAME, **cache).model_type == "llama"
            assert load_tokenizer(NAME, **cache)("a").input_ids
        assert len(proxy.asked) == 1 and not constants.HF_HUB_OFFLINE
    assert "does not answer through the proxy" in (said := capsys.readouterr().err) and "cache alone" in said


def test_a_port_where_nobody_listens(tmp_path, monkeypatch):
    with served(Proxy, None) as proxy:
        pass
    monkeypatch.setenv("https_proxy", proxy.address)
    said = told(read_config, cache_dir=tmp_path / "cache")
    assert f"cannot be reached through the proxy {proxy.address} (" in said and "[Errno" not in said


def test_a_cache_that_cannot_be_made_is_named_with_the_variable(hub, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_good")
    (tmp_path / "cache").write_text("a file")
    said = told(read_config, cache_dir=tmp_path / "cache")
    assert str(tmp_path / "cache") in said and "set HF_HOME to a folder of yours" in said


def test_errors_of_a_folder_and_of_other_code_do_not_change(tmp_path):
    for name, error in ((tmp_path, OSError("damaged")), (NAME, KeyError("a key"))):
        with pytest.raises(type(error)) as raised, hub_explained(name, "tokenizer"):
            raise error
        assert raised.value is error
