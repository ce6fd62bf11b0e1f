"""Serves pictures over HTTP as images of the IIIF Image API 3 at level 0, and a page that shows them in OpenSeadragon.

Pages of other sites must not be able to read the pictures. A site could make its own name resolve to this machine (DNS
rebinding), but its requests would still carry that name in the Host header. The server therefore answers only requests
whose Host header is an IP address or an expected name.
"""

import errno
import html
import json
import logging
import os
import re
import selectors
import socket
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib.resources import files
from io import BytesIO
from ipaddress import ip_address
from socketserver import TCPServer
from threading import Lock, Thread, current_thread
from typing import Any
from urllib.parse import unquote, urlsplit

from infgen_rt.common.arguments import TEXT, WHOLE, Kind
from infgen_rt.common.callers import raise_callers
from infgen_rt.common.shortages import lacks_threads
from infgen_rt.errors import Cancelled, DecodeError, InfGenError, InputError, one_line
from infgen_rt.geometry.levels import Level, Tile
from infgen_rt.geometry.shapes import Box
from infgen_rt.picture import Picture
from infgen_rt.viewing.frames import Frame
from infgen_rt.viewing.pyramid import PICTURE
from infgen_rt.viewing.reader import CACHE, TileReader
from infgen_rt.writers.whole import Jpeg

_LOG = logging.getLogger(__name__)
_NUMBER, _SIDE = "([0-9]{1,6})", "([0-9]{1,9})"
_INFO = re.compile(f"/{_NUMBER}/info[.]json")
_TILE = re.compile(f"/{_NUMBER}/(?:full|{_SIDE},{_SIDE},{_SIDE},{_SIDE})/(?:max|{_SIDE},{_SIDE})/0/default[.](png|jpg)")
# A reader has threads and a cache of its own. A page shows one picture at a time.
_MOST_READERS = 8
# Seconds between two checks whether the browser still waits for its tile.
_LOOK = 0.25

_LAST_PORT = 65_535
_PICTURES = Kind("a sequence of Pictures", lambda value: isinstance(value, Sequence) and all(map(PICTURE.holds, value)))


class TileServer(ThreadingHTTPServer):
    """An HTTP server for pictures and for the page that shows them.

    It listens as soon as it is constructed. Call `serve_forever` to answer requests. `server_close` ends it, stops
    listening and frees all tiles.

    The page is at `/`. Picture N, counted from 1, is described at `/N/info.json`. A tile is decoded when it is
    requested. Decoding stops if the browser closes the connection. If the decoder is closed, a tile that is not kept
    is answered with the status 500 and the message of the DecodeError. `server_close` may be called more than once.

    Args:
        pictures: the pictures, at least one.
        host: the address or the name to listen at.
        port: the port. 0 for any free port.
        title: the title of the page.
        cache: the size in bytes of the cache of decoded tiles, for all pictures together.

    Attributes:
        address: the address of the page.

    Raises:
        InputError: there is no picture, or nothing can be served at this host and port.
        DecodeError: the system allowed no thread that reads tiles.
    """

    daemon_threads = True
    # On Windows, this option would let two servers share a port.
    allow_reuse_address = os.name == "posix"

    def __init__(
        self, pictures: Sequence[Picture], host: str = "127.0.0.1", port: int = 0, title: str = "", cache: int = CACHE
    ) -> None:
        _PICTURES.check(pictures=pictures)
        TEXT.check(host=host, title=title)
        WHOLE.check(port=port, cache=cache)
        if not 0 <= port <= _LAST_PORT:
            raise InputError(f"port {port} is not possible: expected 1 to {_LAST_PORT}, or 0 for any that is free")
        if not pictures:
            raise InputError("there is no picture to serve: pass one or more")
        try:
            self.address_family, *_, place = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
            super().__init__((str(place[0]), port), _Handler)
        except (OSError, UnicodeError, OverflowError) as error:
            taken = isinstance(error, OverflowError) or (
                isinstance(error, OSError) and error.errno in (errno.EADDRINUSE, errno.EACCES)
            )
            other = "--port, or 0" if taken else "--host, such as 127.0.0.1"
            raise InputError(
                f"cannot serve at {host}, port {port} ({one_line(error)}): pass another {other}"
            ) from error
        self.address = f"http://{f'[{host}]' if ':' in host else host}:{self.server_address[1]}/"
        self.names = {"localhost", host.lower()}
        self._serving: Thread | None = None
        self._changing = Lock()
        self.readers = _Readers(pictures, cache)
        try:
            with self.readers.using(1):
                pass
        except InfGenError:
            self.server_close()
            raise
        sources = json.dumps([f"/{number}/info.json" for number in range(1, len(pictures) + 1)])
        page = files("infgen_rt").joinpath("data/tiles.html").read_text(encoding="utf-8")
        self.page = page.replace("TITLE", html.escape(title)).replace('["SOURCES"]', sources).encode(errors="replace")

    server_bind = TCPServer.server_bind  # HTTPServer's own method looks up the host's name, which can be slow

    def serve_forever(self, poll_interval: float = 0.5) -> None:
        """Answer requests until `shutdown` or `server_close` is called in another thread."""
        with self._changing:
            if self.readers.closed:
                return
            self._serving = current_thread()
        try:
            super().serve_forever(poll_interval)
        finally:
            self._serving = None

    def server_close(self) -> None:
        if hasattr(self, "readers"):  # it is missing if the port was taken
            with self._changing:
                self.readers.close()
            # A thread that serves has seen that the readers were open, and ends when it sees the request to shut down.
            if self._serving not in (None, current_thread()):
                self.shutdown()
        super().server_close()

    def process_request(self, request: Any, client_address: Any) -> None:
        try:
            super().process_request(request, client_address)
        except RuntimeError as error:
            raise_callers(error)
            if not lacks_threads(error):
                raise
            # The system allows no thread for this connection. It gets one answer, for which the others have to wait.
            _SingleAnswer(request, client_address, self)
            self.shutdown_request(request)

    def handle_error(self, request: Any, client_address: Any) -> None:
        if not isinstance(sys.exception(), ConnectionError):  # a browser may close the connection at any time
            super().handle_error(request, client_address)


class _Readers:
    """The readers of the pictures. Of those that nobody uses, the ones that were used last stay open."""

    def __init__(self, pictures: Sequence[Picture], cache: int) -> None:
        self.pictures = pictures
        self._cache = cache // min(len(pictures), _MOST_READERS)
        self._open: dict[int, TileReader] = {}
        self._users: Counter[int] = Counter()
        self.closed = False
        self._lock = Lock()

    @contextmanager
    def using(self, number: int) -> Iterator[TileReader]:
        """The reader of a picture, counted from 1. It stays open in the block.

        Raises:
            DecodeError: the system allowed no thread that reads tiles, or the server is closed.
        """
        with self._lock:
            if self.closed:
                raise DecodeError("the server is closed")
            reader = self._open.pop(number, None)
            if reader is None:
                reader = TileReader(self.pictures[number - 1], cache=self._cache, order="rgb")
            self._open[number] = reader
            self._users[number] += 1
        try:
            yield reader
        finally:
            with self._lock:
                self._users[number] -= 1
                unused = [each for each in self._open if not self._users[each]]
                left = [self._open.pop(each) for each in unused[: max(0, len(self._open) - _MOST_READERS)]]
            for each in left:
                each.close(wait=False)

    def close(self) -> None:
        """Close all readers, which cancels the requests that are in progress."""
        with self._lock:
            self.closed = True
            left = list(self._open.values())
            self._open.clear()
        for reader in left:
            reader.close()


class _Refusal(Exception):
    """Raised for a request that is refused. Its arguments are the status and the text of the response."""


class _Handler(BaseHTTPRequestHandler):
    """Answers the requests of one connection."""

    server: TileServer
    protocol_version = "HTTP/1.1"
    timeout = 60

    def do_HEAD(self) -> None:  # noqa: N802
        self.do_GET()

    def do_GET(self) -> None:  # noqa: N802
        # A body is not read, so the next request on this connection could not be found after it.
        if "Content-Length" in self.headers or "Transfer-Encoding" in self.headers or self.server.readers.closed:
            self.close_connection = True
        status, kind = HTTPStatus.OK, "text/plain; charset=utf-8"
        try:
            kind, content = self._answer(unquote(urlsplit(self.path).path))
        except _Refusal as refusal:
            status, content = refusal.args[0], refusal.args[1].encode()
        except Cancelled:
            self.close_connection = True
            return
        except InfGenError as error:
            _LOG.error("%s: %s", self.path, error)
            status, content = HTTPStatus.INTERNAL_SERVER_ERROR, str(error).encode()
        except (ConnectionError, TimeoutError):
            raise
        except Exception as error:
            _LOG.exception("%s", self.path)
            status, content = HTTPStatus.INTERNAL_SERVER_ERROR, one_line(error).encode()
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(content)))
        self.send_header("Cache-Control", "no-store")  # another picture may later have the same address
        self.send_header("Cross-Origin-Resource-Policy", "same-origin")  # other sites must not embed the pictures
        self.send_header("X-Content-Type-Options", "nosniff")
        if self.close_connection:
            self.send_header("Connection", "close")
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def _answer(self, path: str) -> tuple[str, bytes]:
        """The media type and the content of the response for a path. Raises `_Refusal` if there is none."""
        host = self._host()
        if self.server.readers.closed:
            raise _Refusal(HTTPStatus.SERVICE_UNAVAILABLE, "the server is closed")
        if path == "/":
            return "text/html; charset=utf-8", self.server.page
        match = _INFO.fullmatch(path) or _TILE.fullmatch(path)
        number = int(match[1]) if match else 0
        if match is None or not 1 <= number <= len(self.server.readers.pictures):
            raise _Refusal(HTTPStatus.NOT_FOUND, "not found: expected /, /1/info.json, or a tile that it describes")
        levels = self.server.readers.pictures[number - 1].levels
        if match.re is _INFO:
            return "application/json", json.dumps(_info(levels, f"http://{host}/{number}")).encode()
        *numbers, ending = match.groups()[1:]
        tile = _tile_of(levels, [None if each is None else int(each) for each in numbers])
        if tile is None:
            raise _Refusal(HTTPStatus.BAD_REQUEST, f"no such tile: expected one that /{number}/info.json describes")
        from PIL import Image

        kind, file = ending.replace("jpg", "jpeg"), BytesIO()
        with self.server.readers.using(number) as reader:
            pixels = self._frame(reader, tile).pixels
        Image.fromarray(pixels).save(file, kind, compress_level=1, **Jpeg.options)
        return f"image/{kind}", file.getvalue()

    def _host(self) -> str:
        """The Host header. It has to be an expected name or an IP address, which is never the name of another site."""
        try:
            (host,) = self.headers.get_all("Host", [])
            name = urlsplit(f"//{host}").hostname or ""
            if name not in self.server.names:
                ip_address(name)
        except ValueError:
            text = "not this server's name: use localhost or the address, or pass the name as --host"
            raise _Refusal(HTTPStatus.MISDIRECTED_REQUEST, text) from None
        return str(host)

    def _frame(self, reader: TileReader, tile: Tile) -> Frame:
        request = reader.request(tile)
        try:
            while True:
                try:
                    return request.result(_LOOK)
                except TimeoutError:
                    if self._left():
                        request.cancel()
        finally:
            request.cancel()  # unless it has its result

    def _left(self) -> bool:
        """Whether the browser has closed the connection."""
        with selectors.DefaultSelector() as selector:
            selector.register(self.connection, selectors.EVENT_READ)
            try:
                return bool(selector.select(0)) and not self.connection.recv(1, socket.MSG_PEEK)
            except ConnectionError:
                return True

    def log_message(self, format: str, *arguments: Any) -> None:
        _LOG.debug(format, *arguments)


class _SingleAnswer(_Handler):
    """Answers one request, in the thread that accepts all connections."""

    timeout = 5

    def handle(self) -> None:
        self.handle_one_request()

    def parse_request(self) -> bool:
        understood = super().parse_request()
        self.close_connection = True
        return understood


def _info(levels: Sequence[Level], address: str) -> dict[str, Any]:
    """The description of a picture (`info.json`) according to the IIIF Image API 3."""
    small, large = levels[0], levels[-1]
    return {
        "@context": "http://iiif.io/api/image/3/context.json",
        "id": address,
        "type": "ImageService3",
        "protocol": "http://iiif.io/api/image",
        "profile": "level0",
        **large.size._asdict(),
        "maxWidth": large.tile,
        "maxHeight": large.tile,
        "sizes": [small.size._asdict()],
        "tiles": [{"width": large.tile, "scaleFactors": [2**each for each in range(len(levels))]}],
        "extraFormats": ["png"],
        "preferredFormats": ["png"],
    }


def _tile_of(levels: Sequence[Level], numbers: Sequence[int | None]) -> Tile | None:
    """The tile that an IIIF request names, or None if there is no such tile.

    Args:
        levels: the levels of the picture.
        numbers: the region's x, y, width and height in pixels of the whole picture, then the tile's width and height. A
            missing region is the whole picture. A missing size is the largest that a tile with this region has.
    """
    whole = levels[-1].size.box
    region = whole if numbers[0] is None else Box(*(number or 0 for number in numbers[:4]))
    for level in reversed(levels):
        factor = 2 ** (len(levels) - 1 - level.number)
        tile = Tile(level.number, *(start // (factor * level.tile) for start in (region.x, region.y)))
        box = level.box(tile.column, tile.row)
        covered = Box(*(factor * side for side in box)).intersect(whole)
        if box.width and covered == region and (numbers[4] is None or box.size == tuple(numbers[4:])):
            return tile
    return None
