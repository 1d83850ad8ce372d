"""Loading from the Hub over HTTP, against a loopback server: what is asked, what is refused, what is said."""

from __future__ import annotations

import time
import warnings
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from hub_material import REPO, tiny_files, tiny_network

from neural_expm import hub
from neural_expm.errors import HubError, UnknownModelError

A = 0.1 * torch.ones(2, 3, 3, dtype=torch.float64)


def test_download_gives_the_published_network(server, published):
    network = hub.load(REPO)
    assert torch.equal(network(A), tiny_network()(A))
    assert network.checkpoint.repo == REPO
    assert network.checkpoint.revision == published
    assert server.count("GET", "config.json") == 1
    assert server.count("GET", "model.safetensors") == 1
    assert not any(path.endswith("README.md") for _, path in server.log)


def test_pinned_revision_makes_no_request_the_second_time(server, published):
    hub.load(f"{REPO}@{published}")
    before = len(server.log)
    hub.load(f"{REPO}@{published}")
    hub.load(REPO, revision=published)
    assert len(server.log) == before


def test_main_is_asked_again_and_followed_when_it_moves(server, published, tmp_path):
    first = hub.load(REPO)
    server.log.clear()
    assert hub.load(REPO).checkpoint.revision == published
    assert {verb for verb, _ in server.log} == {"HEAD"}
    moved = server.repository(REPO).commit(tiny_files(tmp_path / "two", seed=1))
    second = hub.load(REPO)
    assert second.checkpoint.revision == moved != published
    assert not torch.equal(second(A), first(A))
    assert torch.equal(hub.load(f"{REPO}@{published}")(A), first(A))


def test_resolve_without_refresh_asks_once_per_process(server, published):
    hub.resolve(REPO, refresh=False)
    before = len(server.log)
    assert hub.resolve(REPO, refresh=False).revision == published
    assert len(server.log) == before


def test_branch_and_tag(server, published, tmp_path):
    other = server.repository(REPO).commit(tiny_files(tmp_path / "two", seed=1), ref="v2.0")
    assert hub.load(f"{REPO}@v2.0").checkpoint.revision == other
    assert hub.load(REPO, revision="main").checkpoint.revision == published


@pytest.mark.parametrize(
    ("spec", "says"),
    [
        ("tester/absent", "no repository 'tester/absent'"),
        (f"{REPO}@absent", "no revision 'absent'"),
        (f"{REPO}@{'0' * 40}", f"no revision '{'0' * 40}'"),
        ("tester/other-library", "not a neural_expm checkpoint"),
    ],
)
def test_not_found_of_each_kind_names_the_address(server, published, spec, says):
    server.repository("tester/other-library").commit({"pytorch_model.bin": b"pickle"})
    with pytest.raises(UnknownModelError, match=says) as caught:
        hub.load(spec)
    assert f"{server.url}/{spec.split('@')[0]}/resolve/" in str(caught.value)
    assert "pickle" not in str(server.log)


def test_repository_without_weights(server, published):
    files = server.repository(REPO).commits[published]
    files.pop("model.safetensors")
    with pytest.raises(UnknownModelError, match=r"no model\.safetensors.*incomplete"):
        hub.load(REPO)


def test_gated_repository_says_where_to_ask(server, published):
    server.repository(REPO).gated = True
    with pytest.raises(HubError, match=f"restricted; ask for it at {server.url}/{REPO}"):
        hub.load(REPO)


@pytest.mark.parametrize("status", [403, 429, 500, 503])
def test_refusals_name_the_status_at_once(server, published, status):
    server.fault = lambda handler, *_: handler.answer(status) is None
    start = time.monotonic()
    with pytest.raises(HubError, match=str(status)):
        hub.load(REPO)
    assert time.monotonic() - start < 3
    assert len(server.log) == 1


def test_private_repository_needs_its_token_and_the_token_is_never_shown(
    server, published, capfd, caplog, monkeypatch
):
    caplog.set_level("DEBUG")
    token = "hf_SecretSecretSecret"
    server.repository(REPO).token = token
    with pytest.raises(UnknownModelError, match="HF_TOKEN"):
        hub.load(REPO)
    with pytest.raises(UnknownModelError) as caught:
        hub.load(REPO, token=token + "wrong")
    assert torch.equal(hub.load(REPO, token=token)(A), tiny_network()(A))
    assert f"Bearer {token}" in server.authorizations
    monkeypatch.setenv("HF_TOKEN", token)
    assert hub.load(REPO, force_download=True).checkpoint.revision == published
    out, err = capfd.readouterr()
    shown = out + err + caplog.text + str(caught.value) + repr(hub.Access(token=token))
    assert "Secret" not in shown


def test_credentials_in_the_endpoint_are_not_shown():
    with pytest.raises(HubError) as caught:
        hub.load(REPO, endpoint="http://me:password@127.0.0.1:9")
    assert "127.0.0.1:9" in str(caught.value)
    assert "password" not in str(caught.value)


def test_redirect_of_a_renamed_repository_is_followed(server, published):
    def renamed(handler, method, file, body):
        if "/old-name/" not in handler.path:
            return False
        handler.answer(307, Location=handler.path.replace("old-name", "tiny-expm"))
        return True

    server.repositories["tester/old-name"] = server.repository(REPO)
    server.fault = renamed
    assert hub.load("tester/old-name").checkpoint.revision == published


def test_redirect_to_another_host_carries_no_token(server, published):
    from hub_server import LoopbackHub

    server.repository(REPO).token = "hf_token"
    with LoopbackHub() as mirror:
        mirror.repository(REPO).commits = server.repository(REPO).commits

        def elsewhere(handler, method, file, body):
            if file != "model.safetensors":
                return False
            headers = {"X_Linked_Size": str(len(body)), "X_Linked_Etag": f'"{server.etag(file, body)}"'}
            handler.answer(302, Location=mirror.url + handler.path, X_Repo_Commit=published, **headers)
            return True

        server.fault = elsewhere
        hub.load(REPO, token="hf_token")
        assert mirror.count("GET", "model.safetensors") == 1
        assert set(mirror.authorizations) == {None}


def test_dead_endpoint_fails_within_seconds(published):
    start = time.monotonic()
    with pytest.raises(HubError, match=r"127\.0\.0\.1:9 gave no usable answer.*HF_ENDPOINT"):
        hub.load(REPO, endpoint="http://127.0.0.1:9")
    assert time.monotonic() - start < 3


def test_silent_endpoint_fails_within_its_timeout(server, published, monkeypatch):
    monkeypatch.setenv("HF_HUB_ETAG_TIMEOUT", "0.5")
    server.fault = lambda *_: time.sleep(2) is None
    start = time.monotonic()
    with pytest.raises(HubError, match=r"no usable answer within 0\.5 s"):
        hub.load(REPO)
    assert time.monotonic() - start < 1.9


def test_slow_server_is_waited_for(server, published):
    def slow(*_):
        time.sleep(0.2)
        return False

    server.fault = slow
    assert hub.load(REPO).checkpoint.revision == published


def test_dead_endpoint_with_a_cached_branch_warns_and_uses_it(server, published):
    hub.load(REPO)
    server.fault = lambda handler, *_: handler.answer(503) is None
    with pytest.warns(UserWarning, match=f"503.*Using the copy of {published[:12]}"):
        assert hub.load(REPO).checkpoint.revision == published


@pytest.mark.parametrize("local", [True, False], ids=["argument", "environment"])
def test_offline_makes_no_request(server, published, monkeypatch, local):
    monkeypatch.setenv("HF_HUB_OFFLINE", "0" if local else "1")
    with pytest.raises(HubError, match="not in the cache"):
        hub.load(REPO, local_files_only=local)
    assert server.log == []
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")
    hub.load(REPO)
    server.log.clear()
    monkeypatch.setenv("HF_HUB_OFFLINE", "0" if local else "1")
    assert hub.load(REPO, local_files_only=local).checkpoint.revision == published
    assert hub.load(f"{REPO}@{published}", local_files_only=local).checkpoint.revision == published
    assert server.log == []


def test_force_download_fetches_again(server, published):
    hub.load(REPO)
    hub.load(REPO, force_download=True)
    assert server.count("GET", "model.safetensors") == 2


def test_missing_etag_is_said(server, published):
    server.etag = lambda *_: None
    with pytest.raises(HubError, match="ETag"):
        hub.load(REPO)


def test_no_warning_in_plain_use(server, published):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        hub.load(REPO)


def test_threads_may_load_at_once(server, published):
    with ThreadPoolExecutor(8) as pool:
        values = list(pool.map(lambda _: hub.load(REPO)(A), range(8)))
    assert all(torch.equal(value, tiny_network()(A)) for value in values)
