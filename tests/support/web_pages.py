"""A web server on this machine, with the pages that a tool must survive."""

from __future__ import annotations

import contextlib
import json
import ssl
import threading
import zlib
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit

HTML = (
    "<html><head><title>Ferries</title><style>p {}</style></head><body><script>evil()</script>"
    "<p>Leaves at <b>nine</b>.</p><p>See <a href='https://example.org/a'>the\ntable</a></p></body>"
)
FOUND = [
    {"title": "A", "url": "https://a", "content": "about a"},
    {"title": "B", "url": "https://b", "content": None, "engine": "x"},
]


def packed(megabytes: int) -> bytes:
    """So much text, packed by gzip, never whole in memory."""
    packer = zlib.compressobj(9, wbits=31)
    parts = [packer.compress(b"a" * (1 << 20)) for _ in range(megabytes)]
    return b"".join(parts) + packer.flush()


BOMB = packed(100)


class Pages(BaseHTTPRequestHandler):
    asked: list[str]  # the paths that were asked for

    def do_GET(self) -> None:
        self.asked.append(self.path)
        getattr(self, "page_" + urlsplit(self.path).path.strip("/"), self.page_none)()

    def answer(
        self, body: bytes, media: str = "text/plain", status: int = 200, **more: str
    ) -> None:
        self.send_response(status)
        self.send_header("Content-Type", media)
        for name, value in more.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        with contextlib.suppress(ConnectionError):  # who has enough hangs up
            self.wfile.write(body)

    def page_none(self) -> None:
        self.answer(b"nothing here", status=404)

    def page_html(self) -> None:
        self.answer(HTML.encode("latin-1"), "text/html; charset=latin-1")

    def page_moved(self) -> None:
        self.answer(b"", status=302, Location="/html")

    def page_loop(self) -> None:
        self.answer(b"", status=302, Location="/loop")

    def page_file(self) -> None:
        self.answer(b"", status=302, Location="file:///etc/passwd")

    def page_big(self) -> None:
        self.answer(b"a" * (5 << 20))

    def page_bomb(self) -> None:
        self.answer(BOMB, Content_Encoding="gzip")

    def page_damaged(self) -> None:
        self.answer(b"not gzip", Content_Encoding="gzip")

    def page_coded(self) -> None:
        self.answer(b"?", Content_Encoding="br")

    def page_binary(self) -> None:
        self.answer(b"\x7fELF\0\0", "application/octet-stream")

    def page_charset(self) -> None:
        self.answer(b"text", "text/plain; charset=no-such")

    def page_sjis(self) -> None:
        page = "<html><head><meta charset='shift_jis'></head><p>日本</p>"
        self.answer(page.encode("shift_jis"), "text/html")

    def page_old(self) -> None:
        kind = '<META http-equiv="Content-Type" content="text/html; charset=EUC-JP">'
        self.answer(f"{kind}<p>日本</p>".encode("euc-jp"), "text/html")

    def page_marked(self) -> None:
        self.answer("日本".encode("utf-8-sig"))

    def page_wide(self) -> None:
        self.answer("日本".encode("utf-16"))

    def page_undefined(self) -> None:
        self.answer("日本".encode(), "text/plain; charset=undefined")

    def page_hinted(self) -> None:
        self.wfile.write(b"HTTP/1.1 103 Early Hints\r\nLink: </a.css>; rel=preload\r\n\r\n" * 2)
        self.answer(b"the page")

    def page_hints(self) -> None:
        self.wfile.write(b"HTTP/1.1 103 Early Hints\r\n\r\n" * 100)

    def page_short(self) -> None:
        self.answer(b"twelve bytes", Content_Length="1000")

    def page_torn(self) -> None:
        self.answer(packed(1)[:-20], Content_Encoding="gzip")

    def page_raw(self) -> None:
        self.send_response(302)
        self.wfile.write(b"".join(self._headers_buffer))  # type: ignore[attr-defined]
        self.wfile.write("Location: /named-é%20x?q=日\r\n\r\n".encode())

    def page_silent(self) -> None:
        self.server.shutdown_asked.wait(30)  # type: ignore[attr-defined]

    def page_search(self) -> None:
        query = parse_qs(urlsplit(self.path).query)
        assert query["format"] == ["json"]
        texts = {"ferry": json.dumps({"results": FOUND}), "broken": "<html>", "odd": "[]"}
        found = texts.get(query["q"][0])
        self.answer((found or "no").encode(), "application/json", 200 if found else 403)

    def log_message(self, *_: Any) -> None:
        """Tests read what is asserted, not what is served."""


@contextlib.contextmanager
def web_pages(secure: ssl.SSLContext | None = None) -> Iterator[tuple[str, list[str]]]:
    """The server's address, and the paths that it was asked for."""
    asked: list[str] = []
    handler = type("Handler", (Pages,), {"asked": asked})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        if secure:
            server.socket = secure.wrap_socket(server.socket, server_side=True)
        server.shutdown_asked = threading.Event()  # type: ignore[attr-defined]
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        try:
            scheme = "https" if secure else "http"
            yield f"{scheme}://127.0.0.1:{server.server_port}", asked
        finally:
            server.shutdown_asked.set()  # type: ignore[attr-defined]
            server.shutdown()
            thread.join()
