"""The toolboxes http and web, against a server on this machine."""

from __future__ import annotations

import ssl
import subprocess
import sys
import textwrap
import tracemalloc
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from jobs import FOLDER, NO_KERNEL, Job
from shipped import run
from web_pages import web_pages

from aios.agents.tools import http
from aios.syscalls.errors import ToolFailed


@pytest.fixture(scope="module")
def pages() -> Iterator[tuple[str, list[str]]]:
    with web_pages() as served:
        yield served


@pytest.fixture
def site(pages: tuple[str, list[str]], monkeypatch: pytest.MonkeyPatch) -> str:
    """Its address, and leave to ask it."""
    monkeypatch.setenv(http.PRIVATE, "1")
    return pages[0]


PUBLIC = "8.8.8.8"
TEXT = "Ferries\nLeaves at nine.\nSee the table (https://example.org/a)"


@pytest.mark.parametrize("path", ["html", "moved"])
def test_fetch_gets_the_text_of_a_page(path: str, site: str) -> None:
    found = run(
        "http.fetch", url=f"{site}/{path}?q=a b&c=é#top" if path == "html" else f"{site}/{path}"
    )
    assert found["url"].startswith(f"{site}/html")
    assert (found["status"], found["media"], found["more"]) == (200, "text/html", False)
    assert found["text"] == TEXT


def test_fetch_gets_a_page_as_it_is(site: str) -> None:
    found = run("http.fetch", url=f"{site}/html", raw=True)
    assert "<script>evil()</script>" in found["text"]
    assert run("http.fetch", url=f"{site}/nowhere")["status"] == 404
    assert run("http.fetch", url=f"{site}/charset")["text"] == "text"


@pytest.mark.parametrize(
    ("path", "text"),
    [
        ("sjis", "日本"), ("old", "日本"), ("marked", "日本"), ("wide", "日本"),
        ("undefined", "日本"), ("hinted", "the page"),
    ],
)  # fmt: skip
def test_fetch_reads_what_a_page_says(path: str, text: str, site: str) -> None:
    found = run("http.fetch", url=f"{site}/{path}")
    assert (found["status"], found["text"], found["more"]) == (200, text, False)


def test_fetch_follows_a_place_as_the_server_means_it(
    site: str, pages: tuple[str, list[str]]
) -> None:
    found = run("http.fetch", url=f"{site}/raw")
    assert found["status"] == 404
    assert pages[1][-1] == "/named-%C3%A9%20x?q=%E6%97%A5"


def test_fetch_asks_no_address_of_an_interface_of_this_machine() -> None:
    """Also not one that others reach: here it is a public one, in a network of its own."""
    code = f"ADDRESS = {PUBLIC!r}\n" + textwrap.dedent("""
        import fcntl, http.server, socket, struct, threading
        from aios.agents.tools import http as tool
        from aios.syscalls.errors import ToolFailed

        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as lo:
            named = struct.pack("16sH2x4s8x", b"lo", socket.AF_INET, socket.inet_aton(ADDRESS))
            fcntl.ioctl(lo, 0x8916, named)  # SIOCSIFADDR
            fcntl.ioctl(lo, 0x8914, struct.pack("16sh22x", b"lo", 1))  # SIOCSIFFLAGS: up
        asked = []
        class Page(http.server.BaseHTTPRequestHandler):
            def do_GET(self):
                asked.append(self.path)
        server = http.server.ThreadingHTTPServer(("", 0), Page)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        try:
            tool.get(f"http://{ADDRESS}:{server.server_port}/")
        except ToolFailed as error:
            print(error, asked)
    """)
    alone = ["unshare", "--map-root-user", "--net", sys.executable, "-c", code]
    done = subprocess.run(alone, check=False, capture_output=True, text=True)
    reason = f"{PUBLIC} is {PUBLIC}, an address of this machine or its own network"
    assert reason in done.stdout, done.stderr
    assert done.stdout.endswith(" []\n")


def test_fetch_keeps_pages_small(site: str) -> None:
    for path in ("big", "bomb"):  # one is long, one is short and unpacks to 100 MB
        tracemalloc.start()
        found = run("http.fetch", url=f"{site}/{path}")
        _, most = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert (found["text"], found["more"]) == ("a" * 50_000, True)
        assert most < 30 << 20


@pytest.mark.parametrize(
    ("path", "reason"),
    [
        ("/loop", "more than 5 redirects"),
        ("/file", "'file:///etc/passwd' is not an address of the web"),
        ("/damaged", "cannot be unpacked"),
        ("/coded", "coded as br"),
        ("/short", "ends 988 bytes too early"),
        ("/torn", "ends too early to be unpacked"),
        ("/hints", "answers with 103 again and again"),
        ("/binary", "not a text: application/octet-stream"),
    ],
)
def test_fetch_refuses_what_a_server_may_try(path: str, reason: str, site: str) -> None:
    with pytest.raises(ToolFailed, match=reason):
        run("http.fetch", url=site + path)


@pytest.mark.parametrize(
    ("url", "reason"),
    [
        ("file:///etc/passwd", "not an address of the web"),
        ("ftp://example.org/a", "not an address of the web"),
        ("/etc/passwd", "not an address of the web"),
        ("http://", "not an address of the web"),
        ("http://a b/", "a b"),
        ("http://127.0.0.1:99999/", "Port out of range"),
        ("http://127.0.0.1:1/", "refused"),
        ("http://[::1", "Invalid IPv6"),
        ("http://" + "a" * 70 + "/", "label"),
        ("data:text/html,x", "not an address of the web"),
    ],
)
def test_fetch_refuses_what_is_no_page(url: str, reason: str) -> None:
    with pytest.raises(ToolFailed, match=reason):
        run("http.fetch", url=url)


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "127.1", "2130706433"])
def test_fetch_asks_nothing_of_this_machine(host: str, pages: tuple[str, list[str]]) -> None:
    address, asked = pages
    before = list(asked)
    with pytest.raises(ToolFailed, match=r"127\.0\.0\.1, an address of this machine"):
        run("http.fetch", url=address.replace("127.0.0.1", host) + "/html")
    assert asked == before


def certificate(path: Path) -> ssl.SSLContext:
    """A server's, of "localhost", signed by itself; key and certificate go to the file."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "localhost")])
    now = datetime.now(UTC)
    signed = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName("localhost")]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    form = serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    private = key.private_bytes(serialization.Encoding.PEM, *form)
    path.write_bytes(private + signed.public_bytes(serialization.Encoding.PEM))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(path)
    return context


def test_fetch_asks_by_tls_whom_it_can_trust(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with web_pages(certificate(tmp_path / "own.pem")) as (address, asked):
        monkeypatch.setenv(http.PRIVATE, "1")
        with pytest.raises(ToolFailed, match="certificate verify failed"):
            run("http.fetch", url=address.replace("127.0.0.1", "localhost") + "/html")
        monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "own.pem"))
        with pytest.raises(ToolFailed, match=r"certificate is not valid for '127\.0\.0\.1'"):
            run("http.fetch", url=f"{address}/html")
        assert asked == []
        found = run("http.fetch", url=address.replace("127.0.0.1", "localhost") + "/html")
        assert (found["status"], found["text"]) == (200, TEXT)
        monkeypatch.delenv(http.PRIVATE)
        with pytest.raises(ToolFailed, match="an address of this machine"):
            run("http.fetch", url=address.replace("127.0.0.1", "localhost") + "/html")
        assert asked == ["/html"]


def test_fetch_does_not_wait_for_ever(site: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http, "TIMEOUT_S", 0.2)
    with pytest.raises(ToolFailed, match="timed out"):
        http.fetch.run({"url": f"{site}/silent"}, NO_KERNEL)


@pytest.mark.parametrize(
    ("html", "text"),
    [
        ("a<br>b<div>c</div>d", "a\nb\nc\nd"),
        ("a <i>b</i>\n  c &amp; &lt;", "a b c & <"),
        ("<style>x</style><noscript>y</noscript>z", "z"),
        ("</script>a<script>b", "a"),
        ("<a>x</a><a href='/local'>y</a></a>", "xy"),
        ("<" * 10_000, "<" * 10_000),
        ("<div>" * 10_000 + "deep", "deep"),
    ],
)
def test_a_page_becomes_text(html: str, text: str) -> None:
    assert http.as_text(html) == text


# --- web.search -----------------------------------------------------------------------------------


def test_web_search_asks_a_searxng_server(
    pages: tuple[str, list[str]], job: Job, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AIOS_SEARXNG", pages[0] + "/")
    assert run("web.search", job, query="ferry") == [
        {"title": "A", "url": "https://a", "text": "about a"},
        {"title": "B", "url": "https://b", "text": ""},
    ]
    assert len(run("web.search", job, query="ferry", count=1)) == 1
    for query, reason in {"none": "answered 403", "broken": "no list", "odd": "no list"}.items():
        with pytest.raises(ToolFailed, match=reason):
            run("web.search", job, query=query)


def test_web_search_has_a_corpus_without_one(job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AIOS_SEARXNG", raising=False)
    monkeypatch.setenv("AIOS_WEB_CORPUS", f"{FOLDER}/pages")
    for name, text in {
        "pages/tram.md": "Trams run until one.",
        "tram.md": "A private tram.",
    }.items():
        job.aios.sto_put(f"{FOLDER}/{name}", text)
    job.aios.sto_search("tram", fresh=True)
    found = run("web.search", job, query="until when is there a tram?")
    path = f"{FOLDER}/pages/tram.md"
    assert found == [{"title": "tram.md", "url": path, "text": "Trams run until one."}]
