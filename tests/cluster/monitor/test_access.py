"""Who may read metrics: nobody from elsewhere by accident, and nobody without the secret or certificate."""

from __future__ import annotations

import base64
import ssl
import urllib.error
from pathlib import Path
from urllib.parse import urlsplit

import pytest
import trustme

from cluster.monitor.access import open_access
from cluster.monitor.endpoint import endpoint
from cluster.monitor.prometheus.scrape_config import ScrapeSettings
from cluster.monitor.settings import MonitorSettings, require_protected
from cluster.monitor.targets import Target
from cluster.status import scraping
from cluster.status.pages import parse_page
from pretrain.resilience.progress import Progress
from sharding.base.errors import UserError
from sharding.base.settings import validate
from tests.cluster.conftest import Say
from tests.cluster.monitor.conftest import ask
from tests.support.commands import refused

# The endpoint's thread may not end by an error, wherever a connection is by then.
pytestmark = pytest.mark.filterwarnings("error::pytest.PytestUnhandledThreadExceptionWarning")

SECRET = "5f1c0b7e-of-a-test"
TOKEN = {"access": {"secret_variable": "TEST_TOKEN"}}
CERTIFICATE = {"certificate": "a.pem", "key": "b.pem"}


def settings_of(tree: dict[str, object], folder: Path) -> MonitorSettings:
    return validate(MonitorSettings, {"port": 0, "targets": str(folder / "targets"), **tree}, "a test")


@pytest.mark.parametrize("address", ["10.0.0..5", "a" * 64])
def test_what_is_no_host_is_refused(address: str) -> None:
    with pytest.raises(UserError, match="no address or name of a host"):
        validate(MonitorSettings, {"address": address}, "a test")


def test_a_secret_in_the_home_of_nobody(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="home directory"):
        open_access(settings_of({"access": {"secret_file": "~nosuch/token"}}, tmp_path))


@pytest.mark.parametrize("address", ["127.0.0.1", "127.8.8.8", "::1", "localhost"])
def test_this_machine_is_served_as_it_is(address: str) -> None:
    require_protected(MonitorSettings(address=address))


@pytest.mark.parametrize("address", ["0.0.0.0", "::", "10.0.0.1", "fe80::1%eth0", "node1", "localhost.example"])
@pytest.mark.parametrize(
    ("tree", "is_refused"),
    [
        ({}, True),
        ({"tls": CERTIFICATE}, True),
        ({"tls": {**CERTIFICATE, "clients": "c.pem"}}, False),
        (TOKEN, False),
        ({"insecure": True}, False),
    ],
)
def test_other_machines_are_served_what_they_have_to_show_something_for(
    address: str, tree: dict[str, object], is_refused: bool
) -> None:
    settings = validate(MonitorSettings, {"address": address, **tree}, "a test")
    if not is_refused:
        require_protected(settings)
        return
    with pytest.raises(UserError, match=r"whoever reaches it") as error:
        require_protected(settings)
    assert ("TLS alone" in str(error.value)) == bool(tree) and "monitor.insecure=true" in str(error.value)


def test_commands_refuse_it_before_anything_starts(say: Say, recipe: Path, store: Path) -> None:
    unprotected = "monitor.address=0.0.0.0"
    for command in (
        ("pretrain", recipe, f"data.store={store}", unprotected),
        ("pretrain", recipe, f"data.store={store}", unprotected, "--dry-run"),
        ("shard", "corpus", "new", unprotected),
        ("shards", "retry", str(store), unprotected),
        ("evaluate", recipe.with_name("none.yaml"), "run=nowhere", unprotected),
    ):
        if command[0] == "evaluate":
            Path(command[1]).write_text("split: val\n")
        refused(say(*command), "monitor.insecure=true", "0.0.0.0")
    assert not Path("new").exists() and not Path("run").exists()


@pytest.mark.parametrize(
    ("access", "words"),
    [
        ({}, "name either secret_file or secret_variable"),
        ({"secret_file": "a", "secret_variable": "B"}, "name either"),
        ({"secret_variable": "not a name"}, "secret_variable"),
        ({"secret_variable": "TEST_NOT_SET"}, "one word"),
        ({"secret_file": "/no/such/file"}, "No such file"),
        ({"secret_file": "EMPTY"}, "one word"),
        ({"secret_file": "LONG"}, "one word"),
        ({"secret_variable": "TEST_WORDS"}, "one word"),
        ({"user": "a:b", "secret_variable": "TEST_TOKEN"}, "user"),
    ],
)
def test_a_secret_that_is_none_is_a_mistake(
    access: dict[str, str], words: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("TEST_TOKEN", SECRET)
    monkeypatch.setenv("TEST_WORDS", "two words")
    monkeypatch.chdir(tmp_path)
    Path("EMPTY").write_text("\n")
    Path("LONG").write_text("x" * 2000)
    with pytest.raises(UserError) as error:
        open_access(settings_of({"access": access}, tmp_path))
    assert words in str(error.value) and SECRET not in str(error.value)


@pytest.mark.parametrize("where", ["file", "variable"])
@pytest.mark.parametrize("user", [None, "prometheus"])
def test_only_who_shows_the_secret_reads(
    where: str, user: str | None, progress: Progress, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    file = tmp_path / "secret"
    file.write_text(f"{SECRET}\n")
    monkeypatch.setenv("TEST_TOKEN", SECRET)
    access = {"secret_file": str(file)} if where == "file" else {"secret_variable": "TEST_TOKEN"}
    settings = settings_of({"access": {**access, "user": user}}, tmp_path)
    basic = base64.b64encode(f"{user}:{SECRET}".encode()).decode()
    right, wrong = (f"Bearer {SECRET}", f"Basic {basic}") if user is None else (f"Basic {basic}", f"Bearer {SECRET}")
    with endpoint(settings, "pretrain", "/runs/a", progress) as served:
        assert served and SECRET not in served.line
        for path in ("/metrics", "/", "/other"):
            refusal = ask(served, path)
            assert refusal.status == 401 and refusal.headers["WWW-Authenticate"].startswith(right.split()[0])
        for shown in (wrong, right[:-1], f"{right}x", right.split()[0], f"{right.split()[0]} ", "", "Bearer é"):
            assert ask(served, Authorization=shown).status == 401, shown
        assert ask(served, Authorization=right).status == 200
        assert ask(served, Authorization=right.replace(right.split()[0], right.split()[0].upper())).status == 200
        assert ask(served, "/healthz").status == ask(served, "/readyz").status == 200
    assert SECRET not in settings.model_dump_json() and SECRET not in repr(open_access(settings))


def test_over_tls_to_those_who_trust_the_certificate(
    progress: Progress, authority: trustme.CA, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("TEST_TOKEN", SECRET)
    tls = _files(authority, tmp_path)
    with endpoint(settings_of({"tls": tls, **TOKEN}, tmp_path), "pretrain", "/runs/a", progress) as served:
        assert served and served.url.startswith("https://127.0.0.1:")
        assert '"__scheme__": "https"' in next((tmp_path / "targets").iterdir()).read_text()
        trusting = ssl.create_default_context()
        authority.configure_trust(trusting)
        assert ask(served, tls=trusting, Authorization=f"Bearer {SECRET}").status == 200
        assert ask(served, tls=trusting).status == 401
        with pytest.raises(urllib.error.URLError, match="CERTIFICATE_VERIFY_FAILED"):
            ask(served, tls=ssl.create_default_context())
        old = ssl.create_default_context()
        authority.configure_trust(old)
        old.maximum_version = ssl.TLSVersion.TLSv1_1
        with pytest.raises(urllib.error.URLError):
            ask(served, tls=old)
        assert ask(served, tls=trusting, Authorization=f"Bearer {SECRET}").status == 200


def test_over_tls_to_those_alone_who_have_a_certificate(
    progress: Progress, authority: trustme.CA, tmp_path: Path
) -> None:
    readers = trustme.CA()
    tls = {**_files(authority, tmp_path), "clients": str(tmp_path / "readers.pem")}
    readers.cert_pem.write_to_path(tls["clients"])
    with endpoint(settings_of({"tls": tls}, tmp_path), "pretrain", "/runs/a", progress) as served:
        assert served
        with_none, with_other, with_own = (ssl.create_default_context() for _ in range(3))
        for context in (with_none, with_other, with_own):
            authority.configure_trust(context)
        trustme.CA().issue_cert("reader").configure_cert(with_other)
        readers.issue_cert("reader").configure_cert(with_own)
        for context in (with_none, with_other):
            with pytest.raises((urllib.error.URLError, ssl.SSLError, ConnectionError)):
                ask(served, tls=context)
        assert ask(served, tls=with_own).status == 200
        own = readers.issue_cert("reader")
        own.private_key_pem.write_to_path(tmp_path / "own.key")
        for number, part in enumerate(own.cert_chain_pems):
            part.write_to_path(tmp_path / "own.pem", append=number > 0)
        authority.cert_pem.write_to_path(tmp_path / "authority.pem")
        trusting = ScrapeSettings(ca_file=str(tmp_path / "authority.pem"))
        shown = {"cert_file": str(tmp_path / "own.pem"), "key_file": str(tmp_path / "own.key")}
        target = Target(urlsplit(served.url).netloc, "https")
        (refused,) = scraping.ask([target], scraping.open_reader(trusting))
        (reply,) = scraping.ask([target], scraping.open_reader(trusting.model_copy(update=shown)))
        assert refused.ready is None and "--cert-file" in refused.line
        assert reply.ready and parse_page(reply.page or "").labels("reelscale_ready")["run"] == "a"


@pytest.mark.parametrize("broken", ["certificate", "key", "clients"])
@pytest.mark.parametrize("how", ["missing", "no PEM"])
def test_certificates_that_cannot_be_used_are_a_mistake(
    broken: str, how: str, authority: trustme.CA, tmp_path: Path
) -> None:
    tls = {**_files(authority, tmp_path), "clients": str(tmp_path / "clients.pem")}
    authority.cert_pem.write_to_path(tls["clients"])
    open_access(settings_of({"tls": tls}, tmp_path))
    Path(tls[broken]).unlink()
    if how == "no PEM":
        Path(tls[broken]).write_text("nothing\n")
    with pytest.raises(UserError, match="certificates for metrics cannot be used") as error:
        open_access(settings_of({"tls": tls}, tmp_path))
    assert tls[broken] in str(error.value)


def _files(authority: trustme.CA, folder: Path) -> dict[str, str]:
    issued = authority.issue_cert("127.0.0.1", "localhost")
    tls = {"certificate": str(folder / "certificate.pem"), "key": str(folder / "key.pem")}
    for number, blob in enumerate(issued.cert_chain_pems):
        blob.write_to_path(tls["certificate"], append=number > 0)
    issued.private_key_pem.write_to_path(tls["key"])
    return tls
