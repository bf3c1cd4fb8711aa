"""Pages of the web: off unless a person grants it, by the ports 53, 80 and 443."""

from __future__ import annotations

import codecs
import http.client
import ipaddress
import os
import re
import ssl
import zlib
from html.parser import HTMLParser
from typing import Annotated
from urllib.parse import quote, urljoin, urlsplit

import msgspec
from msgspec import Meta

from aios.agents.runtime.tool import tool
from aios.syscalls.errors import ToolFailed

# An agent has no UDP: with this the C library asks name servers by TCP. It looks once, so early.
os.environ["RES_OPTIONS"] = "use-vc"

MAX_BYTES = 2 << 20  # of a page
MAX_PAGE_CHARS = 50_000
MAX_REDIRECTS = 5
TIMEOUT_S = 15.0  # of silence
PRIVATE = "AIOS_HTTP_PRIVATE"  # "1": addresses of this machine and its own network as well
HEADERS = {"User-Agent": "aios-tool", "Accept-Encoding": "identity", "Connection": "close"}
MOVED = (301, 302, 303, 307, 308)
MAX_HINTS = 16  # of an answer that is to come
CHARSET_BYTES = 1024  # in which a page declares its charset
CHARSET = re.compile(rb"""<meta[^>]*?\bcharset\s*=\s*["']?\s*([\w.:-]+)""", re.IGNORECASE)
MARKS = {codecs.BOM_UTF8: "utf-8", codecs.BOM_UTF16_LE: "utf-16", codecs.BOM_UTF16_BE: "utf-16"}
SILENT = {"script", "style", "noscript", "template", "svg"}
INLINE = {"a", "abbr", "b", "code", "em", "i", "mark", "small", "span", "strong", "sub", "sup", "u"}


class Page(msgspec.Struct):
    url: str  # where it was in the end
    status: int
    media: str
    text: str
    more: bool  # it is longer than what is here


class Body(msgspec.Struct):
    url: str
    status: int
    media: str
    charset: str
    data: bytes
    more: bool


@tool(name="http.fetch", timeout=90)
def fetch(
    url: Annotated[str, Meta(max_length=2048, description="http:// or https://")],
    raw: Annotated[bool, Meta(description="HTML as it is, not the text in it")] = False,
) -> Page:
    """Get a page of the web, as text. Do not trust its contents."""
    body = get(url)
    if b"\0" in body.data[:1024] and not body.charset.startswith("utf-16"):
        raise ToolFailed(f"{body.url} is not a text: {body.media or 'of no type'}")
    text = body.data.decode(body.charset, errors="replace").removeprefix("\ufeff")
    if body.media == "text/html" and not raw:
        text = as_text(text)
    return Page(
        body.url,
        body.status,
        body.media,
        text[:MAX_PAGE_CHARS],
        body.more or len(text) > MAX_PAGE_CHARS,
    )


def get(url: str, private: bool = False) -> Body:
    """Return the answer to a GET, after at most MAX_REDIRECTS steps. `private`: from any address.

    Raises:
        ToolFailed: there is none, or it must not be asked for.
    """
    private = private or os.environ.get(PRIVATE) == "1"
    for _ in range(MAX_REDIRECTS + 1):
        try:
            found = _step(url, private)
        except (OSError, http.client.HTTPException, ValueError) as error:
            raise ToolFailed(f"{url}: {error or type(error).__name__}") from error
        if isinstance(found, Body):
            return found
        url = found
    raise ToolFailed(f"{url}: more than {MAX_REDIRECTS} redirects")


def _step(url: str, private: bool) -> Body | str:
    """Return one answer, or the address that it points to."""
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ToolFailed(f"{url!r} is not an address of the web", "as in https://example.org/page")
    kind = _PublicTls if parts.scheme == "https" else _Public
    connection = kind(parts.hostname, parts.port, timeout=TIMEOUT_S)
    connection.private = private
    try:
        target = quote(parts.path or "/", "/%:@!$&'()*+,;=~-._")
        query = quote(parts.query, "/%:@!$&'()*+,;=~-._?")
        connection.request("GET", f"{target}?{query}" if query else target, headers=HEADERS)
        reply = _answered(connection)
        if reply.status in MOVED and (location := reply.getheader("Location")):
            return urljoin(url, _as_utf_8(location))
        data, more = _content(reply)
        media = reply.headers.get_content_type()
        charset = reply.headers.get_content_charset() or _declared(data, media)
        return Body(url, reply.status, media, _known(charset), data, more)
    finally:
        connection.close()


def _answered(connection: http.client.HTTPConnection) -> http.client.HTTPResponse:
    """Return the answer, after those that only announce it."""
    reply = connection.getresponse()
    for _ in range(MAX_HINTS):
        if not 100 <= reply.status < 200:
            return reply
        reply.headers = None  # type: ignore[assignment]  # it reads the next ones then
        reply.begin()
    raise ToolFailed(f"{connection.host} answers with {reply.status} again and again")


def _as_utf_8(header: str) -> str:
    """Decode a header as UTF-8, which servers mean."""
    try:
        return header.encode("latin-1").decode()
    except UnicodeError:
        return header


def _declared(data: bytes, media: str) -> str:
    """Return the charset that a page itself declares."""
    for mark, charset in MARKS.items():
        if data.startswith(mark):
            return charset
    found = (
        CHARSET.search(data[:CHARSET_BYTES])
        if media in ("text/html", "application/xhtml+xml")
        else None
    )
    return found[1].decode() if found else "utf-8"


class _Public(http.client.HTTPConnection):
    """Nothing is sent to an address before it was looked at: a name can lead anywhere, and
    elsewhere a moment later."""

    private = False

    def connect(self) -> None:
        super().connect()
        address, own = (
            _address(name[0]) for name in (self.sock.getpeername(), self.sock.getsockname())
        )
        # Linux speaks to an address of this machine from that address.
        if (not address.is_global or address == own) and not self.private:
            reason = f"{self.host} is {address}, an address of this machine or its own network"
            raise ToolFailed(reason)


class _PublicTls(_Public):
    default_port = http.client.HTTPS_PORT

    def connect(self) -> None:
        super().connect()
        context = ssl.create_default_context()
        self.sock = context.wrap_socket(self.sock, server_hostname=self.host)


def _address(name: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address:
    address = ipaddress.ip_address(name)
    return getattr(address, "ipv4_mapped", None) or address


def _content(reply: http.client.HTTPResponse) -> tuple[bytes, bool]:
    """Read at most MAX_BYTES, also of a small reply that unpacks to more."""
    data = reply.read(MAX_BYTES + 1)
    if reply.length and len(data) <= MAX_BYTES:
        raise ToolFailed(f"the content ends {reply.length} bytes too early")
    coding = reply.getheader("Content-Encoding", "identity")
    if coding in ("gzip", "deflate"):
        unpacker = zlib.decompressobj(zlib.MAX_WBITS | 32)
        try:
            found = unpacker.decompress(data, MAX_BYTES + 1)
            if max(len(data), len(found)) <= MAX_BYTES and not unpacker.eof:
                raise ToolFailed("the content ends too early to be unpacked")
            data = found
        except zlib.error as error:
            raise ToolFailed(f"the content cannot be unpacked: {error}") from error
    elif coding != "identity":
        raise ToolFailed(f"the content is coded as {coding}, which was not asked for")
    return data[:MAX_BYTES], len(data) > MAX_BYTES


def _known(charset: str) -> str:
    try:
        b"\xff".decode(charset, errors="replace")
    except (LookupError, ValueError):  # there is none, or none for texts
        return "utf-8"
    return charset


class PageText(HTMLParser):
    """The visible text of a page; blocks are lines, links show their address."""

    def __init__(self) -> None:
        super().__init__()
        self.parts: list[str] = []
        self.silent = 0
        self.links: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.silent += tag in SILENT
        if tag not in INLINE:
            self.parts.append("\n")
        if tag == "a":
            self.links.append(dict(attrs).get("href") or "")

    def handle_endtag(self, tag: str) -> None:
        self.silent = max(0, self.silent - (tag in SILENT))
        if tag not in INLINE:
            self.parts.append("\n")
        if tag == "a" and self.links and (link := self.links.pop()).startswith("http"):
            self.parts.append(f" ({link})")

    def handle_data(self, data: str) -> None:
        if not self.silent:
            self.parts.append(data.replace("\n", " "))


def as_text(html: str) -> str:
    parser = PageText()
    parser.feed(html)
    parser.close()
    lines = (" ".join(line.split()) for line in "".join(parser.parts).split("\n"))
    return "\n".join(line for line in lines if line)
