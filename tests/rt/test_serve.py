"""`infgen-rt serve` and its server, by real requests."""

import errno
import http.client
import json
import os
import re
import shutil
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from http.client import HTTPConnection
from io import BytesIO
from pathlib import Path
from typing import Any
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import numpy as np
import pytest
from PIL import Image

import infgen_rt
from infgen_rt.bundle.graphs import DECODE
from infgen_rt.cli.main import main
from infgen_rt.common.pixels import ByteArray
from infgen_rt.errors import InputError
from infgen_rt.viewing.server import TileServer

from . import tiny
from .watching import on_runs

LATENT = tiny.random_latent(18, 22)
SECONDS = 60


@pytest.fixture
def picture(decoder: infgen_rt.Decoder) -> infgen_rt.Picture:
    return decoder.picture(LATENT, (642, 525), normalisation="model")


@contextmanager
def serving(*pictures: infgen_rt.Picture, **options: Any) -> Iterator[TileServer]:
    with TileServer(pictures, **options) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()


@pytest.fixture
def server(picture: infgen_rt.Picture) -> Iterator[TileServer]:
    with serving(picture, title="<a> & b") as server:
        yield server


def fetch(server: TileServer, path: str) -> bytes:
    with urlopen(server.address + path, timeout=SECONDS) as answer:
        return bytes(answer.read())


def fetch_pixels(server: TileServer, path: str) -> ByteArray:
    return np.asarray(Image.open(BytesIO(fetch(server, path))))


def refused(server: TileServer, path: str, **headers: str) -> tuple[int, str]:
    with pytest.raises(HTTPError) as error:
        urlopen(Request(server.address + path, headers=headers), timeout=SECONDS)
    with error.value as answer:
        return answer.code, answer.read().decode()


def test_every_tile_that_is_described_has_the_pixels_of_the_picture(
    server: TileServer, picture: infgen_rt.Picture
) -> None:
    info = json.loads(fetch(server, "1/info.json"))
    side = info["tiles"][0]["width"]
    assert (info["width"], info["height"]) == picture.size and info["tiles"][0]["scaleFactors"] == [1, 2, 4]
    for factor in info["tiles"][0]["scaleFactors"]:
        size = tuple(-(-each // factor) for each in picture.size)
        whole = picture.at(size).read()  # type: ignore[arg-type]
        seen = np.zeros_like(whole)
        for y in range(0, picture.size.height, side * factor):
            for x in range(0, picture.size.width, side * factor):
                width = min(side * factor, picture.size.width - x)
                height = min(side * factor, picture.size.height - y)
                shown = f"{-(-width // factor)},{-(-height // factor)}"
                pixels = fetch_pixels(server, f"1/{x},{y},{width},{height}/{shown}/0/default.png")
                if factor == 1:
                    assert np.array_equal(pixels, picture.read((x, y, width, height)))
                top, left = y // factor, x // factor
                seen[top : top + len(pixels), left : left + pixels.shape[1]] = pixels
        assert np.abs(seen.astype(int) - whole).max() <= 1


def test_the_description_is_that_of_iiif_3_level_0(server: TileServer) -> None:
    info = json.loads(fetch(server, "1/info.json"))
    assert info["id"] == server.address + "1"
    assert (info["@context"], info["type"], info["protocol"], info["profile"]) == (
        "http://iiif.io/api/image/3/context.json",
        "ImageService3",
        "http://iiif.io/api/image",
        "level0",
    )
    # What level 0 demands: the full region at the largest size that is served, as JPEG.
    (small,) = info["sizes"]
    jpeg = Image.open(BytesIO(fetch(server, "1/full/max/0/default.jpg")))
    assert jpeg.format == "JPEG" and jpeg.size == (small["width"], small["height"])
    png = fetch_pixels(server, f"1/full/{small['width']},{small['height']}/0/default.png")
    assert np.abs(np.asarray(jpeg).astype(int) - png).mean() < 4
    assert max(jpeg.size) <= info["maxWidth"] == info["maxHeight"]


@pytest.mark.parametrize(
    ("path", "status"),
    [
        ("1/0,0,256,256/255,256/0/default.png", 400),
        ("1/1,0,256,256/256,256/0/default.png", 400),
        ("1/0,0,999999999,1/256,256/0/default.png", 400),
        ("1/0,0,0,0/0,0/0/default.png", 400),
        ("1/full/642,525/0/default.png", 400),
        ("1/0,0,256,256/256,256/90/default.png", 404),
        ("1/0,0,256,256/256,256/0/default.tif", 404),
        ("1/0,0,²,256/256,256/0/default.png".replace("²", "%C2%B2"), 404),
        ("2/info.json", 404),
        ("0/info.json", 404),
        ("../../etc/passwd", 404),
        ("%2e%2e/data/tiles.html", 404),
    ],
)
def test_nothing_but_the_page_and_the_described_tiles_is_served(server: TileServer, path: str, status: int) -> None:
    found, text = refused(server, path)
    assert found == status and "expected" in text


@pytest.mark.parametrize(
    "host", ["evil.example", "evil.example:80", "localhost.evil.example", "[::1", "", "127.0.0.1.nip.io"]
)
def test_another_sites_name_is_refused(server: TileServer, host: str) -> None:
    for path in ("", "1/info.json", "1/full/max/0/default.jpg"):
        found, text = refused(server, path, Host=host)
        assert found == 421 and "use localhost or the address" in text


@pytest.mark.parametrize("hosts", [[], ["localhost", "evil.example"]])
def test_a_request_has_one_host(server: TileServer, hosts: list[str]) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", server.server_address[1], timeout=SECONDS)
    connection.putrequest("GET", "/1/info.json", skip_host=True)
    for host in hosts:
        connection.putheader("Host", host)
    connection.endheaders()
    assert connection.getresponse().status == 421
    connection.close()


def test_addresses_and_the_name_that_was_passed_are_answered(picture: infgen_rt.Picture) -> None:
    with serving(picture, host="localhost") as server:
        for host in ("localhost:1", "127.0.0.1", "[::1]:8322", "192.168.1.2"):
            request = Request(server.address + "1/info.json", headers={"Host": host})
            with urlopen(request, timeout=SECONDS) as answer:
                assert json.load(answer)["id"] == f"http://{host}/1"
                # No page of another origin may read or show it.
                assert answer.headers["Access-Control-Allow-Origin"] is None
                assert answer.headers["Cross-Origin-Resource-Policy"] == "same-origin"


def test_the_page_names_the_pictures_and_escapes_the_title(decoder: infgen_rt.Decoder) -> None:
    pictures = decoder.pictures(np.stack([LATENT, LATENT]), "1x", normalisation="model")
    with serving(*pictures, title="<a> & b") as server:
        page = fetch(server, "").decode()
        assert '["/1/info.json", "/2/info.json"]' in page and "&lt;a&gt; &amp; b" in page
        assert not re.search("TITLE|SOURCES|<a>", page)
        assert json.loads(fetch(server, "2/info.json"))["width"] == 176


def test_tiles_are_remembered_up_to_a_number_of_bytes(
    picture: infgen_rt.Picture, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs: list[None] = []

    def counted(run: Any, *_: Any) -> Any:
        runs.append(None)
        return run()

    on_runs(monkeypatch, DECODE, counted)
    limit = 2 * 256 * 256 * 3
    picture.keep(0)
    with serving(picture, cache=limit) as server:
        one, two, three = (f"1/{x},0,{w},256/{w},256/0/default.png" for x, w in ((0, 256), (256, 256), (512, 130)))
        first = fetch(server, one)
        made = len(runs)
        assert fetch(server, one) == first and len(runs) == made
        fetch(server, two), fetch(server, three)
        with server.readers.using(1) as reader:
            assert 0 < reader.memory <= limit
        made = len(runs)
        assert fetch(server, one) == first and len(runs) > made


def test_a_server_of_many_pictures_has_threads_for_few(
    decoder: infgen_rt.Decoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("infgen_rt.viewing.server._MOST_READERS", 2)
    latents = np.stack([tiny.random_latent(4, 5, seed=seed) for seed in range(7)])
    pictures = decoder.pictures(latents, "1x", normalisation="model")

    def threads() -> int:
        return sum(thread.name.startswith("infgen-view") for thread in threading.enumerate())

    before = threads()
    with serving(*pictures) as server:
        numbers = range(1, 1 + len(pictures))
        # At first all at once, so that more than the most are in use, and then one after another.
        with ThreadPoolExecutor(len(pictures)) as pool:
            found = list(pool.map(lambda number: fetch_pixels(server, f"{number}/full/max/0/default.png"), numbers))
        found += [fetch_pixels(server, f"{number}/full/max/0/default.png") for number in numbers]
        for pixels, picture in zip(found, pictures * 2, strict=True):
            assert np.array_equal(pixels, picture.read())
        until = time.monotonic() + SECONDS
        while threads() > before + 4 and time.monotonic() < until:
            time.sleep(0.01)
        assert threads() <= before + 4
    assert threads() == before


@pytest.mark.skipif(sys.platform == "win32", reason="needs the module resource")
def test_a_process_with_many_open_files_still_waits_for_slow_tiles(
    server: TileServer, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = 4096 if hard == resource.RLIM_INFINITY else min(hard, 4096)
    if most < 2000:
        pytest.skip("this system allows too few open files")
    if soft != resource.RLIM_INFINITY and soft < most:
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))
    monkeypatch.setattr("infgen_rt.viewing.server._LOOK", 0.01)

    def slow(run: Any, *_: Any) -> Any:
        time.sleep(0.2)
        return run()

    on_runs(monkeypatch, DECODE, slow)
    files = [os.open(os.devnull, os.O_RDONLY) for _ in range(1100)]
    try:
        assert fetch_pixels(server, "1/0,0,256,256/256,256/0/default.png").shape == (256, 256, 3)
    finally:
        for file in files:
            os.close(file)
    assert "Traceback" not in capfd.readouterr().err


@pytest.mark.parametrize("reset", [False, True], ids=["closed", "reset"])
def test_a_tile_that_the_browser_gives_up_is_dropped_and_the_next_one_is_served(
    server: TileServer, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], reset: bool
) -> None:
    begun, go = threading.Event(), threading.Event()

    def held(run: Any, *_: Any) -> Any:
        begun.set()
        assert go.wait(SECONDS)
        return run()

    on_runs(monkeypatch, DECODE, held)
    try:
        with socket.create_connection(("127.0.0.1", server.server_address[1])) as connection:
            if reset:
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            path = "/1/0,0,256,256/256,256/0/default.png"
            connection.sendall(f"GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
            assert begun.wait(SECONDS)
            with server.readers.using(1) as reader:
                assert reader.open_requests == 1
        until = time.monotonic() + SECONDS
        while reader.open_requests and time.monotonic() < until:
            time.sleep(0.01)
        assert reader.open_requests == 0
    finally:
        go.set()
    assert fetch_pixels(server, "1/256,0,256,256/256,256/0/default.png").shape == (256, 256, 3)
    assert "Traceback" not in capfd.readouterr().err


@pytest.mark.parametrize(
    ("error", "advice"),
    [
        (socket.gaierror(socket.EAI_NONAME, "Name or service not known"), "--host, such as 127.0.0.1"),
        (OSError(errno.EADDRNOTAVAIL, "Cannot assign requested address"), "--host, such as 127.0.0.1"),
        (OSError(errno.EINVAL, "Invalid argument"), "--host, such as 127.0.0.1"),
        (OSError(errno.EADDRINUSE, "Address already in use"), "--port, or 0"),
        (PermissionError(errno.EACCES, "Permission denied"), "--port, or 0"),
    ],
)
def test_what_is_wrong_with_a_place_is_blamed(
    picture: infgen_rt.Picture, monkeypatch: pytest.MonkeyPatch, error: OSError, advice: str
) -> None:
    def refuse(self: TileServer) -> None:
        raise error

    monkeypatch.setattr(TileServer, "server_bind", refuse)
    with pytest.raises(InputError, match=f"pass another {advice}$"):
        TileServer([picture])


def test_a_failure_is_told_to_the_browser_and_the_server_goes_on(
    server: TileServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:

        def failing(run: Any, *_: Any) -> Any:
            raise infgen_rt.DecodeError("the device is gone")

        on_runs(patch, DECODE, failing)
        assert refused(server, "1/0,0,256,256/256,256/0/default.png") == (
            500,
            "the tile 0,0,256,256 could not be decoded: the device is gone",
        )
    assert fetch_pixels(server, "1/0,0,256,256/256,256/0/default.png").shape == (256, 256, 3)


def test_an_error_of_any_kind_is_answered(server: TileServer, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: Any) -> bytes:
        raise RuntimeError("not expected")

    monkeypatch.setattr("infgen_rt.viewing.server._info", broken)
    assert refused(server, "1/info.json") == (500, "not expected")


def test_a_server_is_closed_without_being_shut_down_first(picture: infgen_rt.Picture) -> None:
    with TileServer([picture]) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        connection = HTTPConnection(*server.server_address[:2], timeout=SECONDS)
        connection.request("GET", "/1/info.json")
        assert connection.getresponse().read()
    thread.join(SECONDS)
    assert not thread.is_alive()
    connection.request("GET", "/")  # on the same connection, which its thread still has
    answer = connection.getresponse()
    assert (answer.status, answer.read()) == (503, b"the server is closed")
    connection.close()
    server.serve_forever()  # nothing is left to do


def test_connections_that_stay_open_get_the_answers_of_their_requests(server: TileServer) -> None:
    connection = HTTPConnection(*server.server_address[:2], timeout=SECONDS)
    for path in ("/", "/1/info.json", "/1/0,0,256,256/256,256/0/default.png", "/none"):
        connection.request("GET", path)
        answer = connection.getresponse()
        content = answer.read()
        connection.request("HEAD", path)
        head = connection.getresponse()
        assert (head.status, head.headers["Content-Length"]) == (answer.status, str(len(content)))
        assert head.read() == b""
    connection.request("GET", server.address + "1/info.json", body="not read")
    answer = connection.getresponse()
    assert answer.status == 200 and answer.read()
    connection.request("GET", "/1/info.json")
    assert connection.getresponse().status == 200
    connection.close()


@pytest.fixture
def command(bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    np.save(tmp_path / "latent.npy", LATENT)
    monkeypatch.chdir(tmp_path)
    return ["serve", "latent.npy", "--model", str(bundle), "--normalisation", "model", "--port", "0"]


@pytest.mark.skipif(os.name == "nt", reason="signals are POSIX")
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 0), (signal.SIGTERM, 143)])
def test_the_command_prints_the_address_and_ends_quietly(command: list[str], number: int, code: int) -> None:
    process = subprocess.Popen(
        [sys.executable, "-m", "infgen_rt", *command, "--size", "2x"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(
            number, signal.SIG_DFL if number != signal.SIGINT else signal.default_int_handler
        ),
    )
    assert process.stdout is not None
    line = process.stdout.readline()
    found = re.fullmatch(r"(http://127\.0\.0\.1:\d+/) shows latent\.npy, 352x288\. Ctrl-C ends this\.\n", line)
    assert found
    with urlopen(found[1] + "1/full/max/0/default.png", timeout=SECONDS) as answer:
        assert Image.open(BytesIO(answer.read())).size == (176, 144)
    process.send_signal(number)
    assert process.communicate(timeout=SECONDS) == ("", "")
    assert process.returncode == code


@pytest.mark.skipif(os.name != "posix", reason="ends the command by a signal")
def test_a_folder_of_latents_is_served_on_one_page(command: list[str]) -> None:
    Path("latents").mkdir()
    for name in ("a", "b"):
        shutil.copy("latent.npy", f"latents/{name}.npy")
    command[command.index("latent.npy")] = "latents"
    with subprocess.Popen(
        [sys.executable, "-m", "infgen_rt", *command, "--size", "2x"], stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        found = re.fullmatch(r"(http\S+) shows latents, 2 pictures\. Ctrl-C ends this\.\n", process.stdout.readline())
        assert found
        with urlopen(found[1] + "2/info.json", timeout=SECONDS) as answer:
            assert json.load(answer)["width"] == 352
        process.send_signal(signal.SIGINT)


def test_what_cannot_be_served_is_one_line(command: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        cases = {
            f"cannot serve at 127.0.0.1, port {port} (": [*command, "--port", port],
            "cannot serve at no.such.host.invalid, port 0 (": [*command, "--host", "no.such.host.invalid"],
            "70000": [*command, "--port", "70000"],
            "-1": [*command, "--port", "-1"],
            "none.npy does not exist": ["serve", "none.npy"],
            "expected either a LATENT file or --sample NAME": ["serve"],
        }
        for text, arguments in cases.items():
            assert main(arguments) == 2
            printed = capsys.readouterr()
            (line,) = printed.err.splitlines()
            assert line.startswith("Error: ") and text in line and printed.out == ""
