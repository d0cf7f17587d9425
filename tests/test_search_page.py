"""The page to search with: what a person sees in a browser, and what a hostile client gets."""

import base64
import contextlib
import http.client
import io
import json
import re
import shutil
import signal
import socket
import struct
import sys
import threading
import time
import zlib

import numpy as np
import pytest
from conftest import ROOT, draw_images, start, tool
from PIL import Image
from test_model_folder import drawn, make_model

from tools import check_report, search_picture, search_server
from tools.model_folder import Embedder
from tools.search_index import update_index

BROWSER = next(filter(None, map(shutil.which, check_report.BROWSERS)), None)
TYPE = {"Content-Type": "application/octet-stream"}
SLOW = b"POST /search HTTP/1.0\r\nHost: localhost\r\nContent-Type: application/octet-stream\r\nContent-Length: 500\r\n\r\n"


@pytest.fixture(scope="module")
def model(small_set, tmp_path_factory):
    return make_model(tmp_path_factory.mktemp("page") / "runs" / "small" / "lifted_8" / "seed1", small_set)


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """20 images, one with a name that is long and odd, one a JPEG, one gone and two changed since they were indexed."""
    photos = draw_images(tmp_path_factory.mktemp("served") / "photos", 4, 5)
    Image.open(photos / "class001" / "0.png").save(photos / "class001" / "0.jpg")
    (photos / "class001" / "0.png").unlink()
    (photos / "class000" / "0.png").rename(photos / "class000" / f"{'long' * 30} <b>&amp;\n\udcff.png")
    return photos


@pytest.fixture(scope="module")
def index(photos, model):
    index, _, _ = update_index(model / "index", photos, Embedder(model))
    (photos / "class003" / "3.png").unlink()
    (photos / "class003" / "4.png").write_bytes(b"no image now")
    Image.new("RGB", (64, 64), "red").save(photos / "class003" / "2.png")
    return index


@contextlib.contextmanager
def serving(index, model, host="127.0.0.1", top=6):
    server = search_server.Server(Embedder(model), index, host, 0, top)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@pytest.fixture(scope="module")
def server(index, model):
    with serving(index, model) as server:
        yield server


def ask(server, method, path, body=None, headers=None, host="127.0.0.1"):
    """(status, headers, body) of one request; `headers` with the value None are left out."""
    connection = http.client.HTTPConnection(host, server.server_port, timeout=60)
    headers = {"Host": f"127.0.0.1:{server.server_port}", **(headers or {})}
    connection.putrequest(method, path, skip_host=True, skip_accept_encoding=True)
    for name, value in headers.items():
        if value is not None:
            connection.putheader(name, value)
    if body is not None and "Content-Length" not in headers:
        connection.putheader("Content-Length", str(len(body)))
    connection.endheaders(body)
    answer = connection.getresponse()
    content = answer.read()
    connection.close()
    return answer.status, answer.headers, content


def refused(server, status, words, *arguments, **options):
    found, headers, content = ask(server, *arguments, **options)
    assert (found, headers["Content-Type"]) == (status, "application/json"), (found, content)
    assert re.search(words, json.loads(content)["error"]), content


def raw(server, content, end=True):
    """What comes back for these bytes."""
    with socket.create_connection(("127.0.0.1", server.server_port), timeout=60) as client:
        client.sendall(content)
        if end:
            client.shutdown(socket.SHUT_WR)
        return b"".join(iter(lambda: client.recv(65536), b""))


def png(image):
    stream = io.BytesIO()
    image.save(stream, "PNG")
    return stream.getvalue()


# --- answers ---------------------------------------------------------------------------------------------------------


def test_search_near_and_picture(server, index, photos):
    content = (photos / "class002" / "3.png").read_bytes()
    status, headers, body = ask(server, "POST", "/search", content, TYPE)
    answer = json.loads(body)
    assert status == 200 and answer["of"] == 20 and len(answer["nearest"]) == 6
    assert answer["nearest"][0]["name"] == "class002/3.png" and answer["nearest"][0]["distance"] == 0
    assert answer["picture"].startswith("data:image/jpeg;base64,")
    number = answer["nearest"][0]["id"]
    near = json.loads(ask(server, "GET", f"/near/{number}")[2])
    assert near["name"] == "class002/3.png" and near["nearest"][0]["itself"] and not near["nearest"][1]["itself"]
    assert [one["id"] for one in near["nearest"]] == [one["id"] for one in answer["nearest"]]
    status, headers, body = ask(server, "GET", f"/picture/{number}")
    shown = np.asarray(Image.open(io.BytesIO(body)), float)
    assert (status, headers["Content-Type"], Image.open(io.BytesIO(body)).format) == (200, "image/jpeg", "JPEG")
    assert np.abs(shown - np.asarray(Image.open(photos / "class002" / "3.png"), float)).mean() < 12
    (jpeg,) = (number for number, file in index.files.items() if file.path == "class001/0.jpg")
    assert Image.open(io.BytesIO(ask(server, "GET", f"/picture/{jpeg}")[2])).size == (24, 24)
    assert ask(server, "HEAD", f"/picture/{number}")[2] == b""


def test_images_that_are_gone_or_damaged_show_a_placeholder(server, index):
    numbers = {file.path: number for number, file in index.files.items()}
    gone, unreadable, another = (ask(server, "GET", f"/picture/{numbers[f'class003/{name}.png']}") for name in (3, 4, 2))
    pictures = gone, unreadable, another
    assert [status for status, _, _ in pictures] == [200] * 3 and gone[2] != unreadable[2]
    assert another[2] == unreadable[2], "what was not indexed is shown"
    assert all(Image.open(io.BytesIO(content)).size == (320, 320) for _, _, content in pictures)
    near = json.loads(ask(server, "GET", f"/near/{numbers['class003/3.png']}")[2])["nearest"]
    assert {one["name"]: one["state"] for one in near if one["itself"]} == {"class003/3.png": "gone"}
    near = json.loads(ask(server, "GET", f"/near/{numbers['class003/4.png']}")[2])["nearest"]
    assert {one["name"]: one["state"] for one in near if one["itself"]} == {"class003/4.png": "changed"}


def test_every_answer_has_the_headers_that_keep_a_browser_in(server):
    for method, path in (("GET", "/"), ("GET", "/picture/0"), ("GET", "/none"), ("BREW", "/"), ("POST", "/search")):
        _, headers, _ = ask(server, method, path)
        assert headers["X-Content-Type-Options"] == "nosniff" and headers["Cross-Origin-Resource-Policy"] == "same-origin"
        assert headers["Content-Security-Policy"].startswith("default-src 'none'; script-src 'sha256-")
        assert "unsafe" not in headers["Content-Security-Policy"] and "Python" not in headers["Server"]


def test_what_nobody_foresaw_is_an_answer_too(server, monkeypatch, capfd):
    def broken(*_):
        raise ZeroDivisionError("what nobody foresaw")

    monkeypatch.setattr(server.index, "nearest", broken)
    refused(server, 500, "ZeroDivisionError", "GET", "/near/1")
    assert ask(server, "GET", "/picture/1")[0] == 200
    (line,) = capfd.readouterr().err.splitlines()
    assert "/near/1" in line and "ZeroDivisionError: what nobody foresaw" in line and "test_search_page.py" in line


# --- what is refused -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", ["/../../etc/passwd", "/picture/../../etc/passwd", "/picture/%2e%2e%2fetc", "//etc/passwd",
                                  "/picture//etc/passwd", "/picture/0/..", "/picture/0%00.png", "/picture/-1", "/picture/1e3",
                                  "/picture/٣", "/picture/00", "/picture/0?x", "/picture/99", "/near/99", "/near/", "/picture",
                                  "/picture/" + "9" * 18, "/picture/" + "9" * 400, "/search.py", "/index.json",
                                  "http://elsewhere/", "/" + "x" * 9000])  # fmt: skip
def test_no_path_of_a_request_is_a_path(server, path):
    answer = raw(server, f"GET {path} HTTP/1.0\r\nHost: localhost\r\n\r\n".encode())
    assert answer.startswith(b"HTTP/1.0 404 "), answer[:200]
    assert b"there is nothing at this address" in answer or b"the index has no such image" in answer


def test_requests_of_another_kind(server):
    for method, path in (("GET", "/search"), ("POST", "/"), ("POST", "/near/0"), ("POST", "/picture/0")):
        status, headers, _ = ask(server, method, path, b"x" if method == "POST" else None, TYPE)
        assert status == 405 and headers["Allow"] == ("POST" if path == "/search" else "GET, HEAD")
    for method in ("PUT", "DELETE", "OPTIONS", "TRACE", "CONNECT", "get", "<b>"):
        assert ask(server, method, "/search", b"x", TYPE)[0] in (400, 501)
    assert b" 414 " in raw(server, b"GET /" + b"x" * 70000 + b" HTTP/1.0\r\n\r\n", end=False)[:40]
    assert b" 431 " in raw(server, b"GET / HTTP/1.0\r\n" + b"a: b\r\n" * 200 + b"\r\n")[:40]
    for nonsense in (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\r\n\r\n", b"\r\n", b"GET /\r\n\r\n", b"GET\r\n\r\n", b""):
        assert b"Search by image" not in raw(server, nonsense)


@pytest.mark.parametrize("host, status", [
    ("127.0.0.1:{}", 200), ("localhost:{}", 200), ("LOCALHOST", 200), ("[::1]:{}", 200),
    (None, 403), ("", 403), ("evil.example", 403), ("evil.example:{}", 403), ("127.0.0.1.evil.example", 403), ("192.0.2.1:{}", 403),
    ("localhost@evil.example", 403), ("evil.example/localhost", 403), ("[localhost]", 403), ("localhost:x", 403),
])  # fmt: skip
def test_only_its_own_name_is_answered(server, host, status):
    """A page elsewhere whose name is made to point here (DNS rebinding) reads nothing."""
    assert ask(server, "GET", "/", headers={"Host": host and host.format(server.server_port)})[0] == status


def test_names_of_a_server_that_others_reach(index, model, monkeypatch):
    monkeypatch.setattr(socket, "gethostname", lambda: "Desk")
    with serving(index, model, host="0.0.0.0") as server:
        asked = {
            host: ask(server, "GET", "/", headers={"Host": host})[0]
            for host in ("192.0.2.1:8000", "desk:80", "[fe80::1]", "evil.example")
        }
    assert asked == {"192.0.2.1:8000": 200, "desk:80": 200, "[fe80::1]": 200, "evil.example": 403}


def test_other_pages_cannot_send_here(server, photos):
    content = (photos / "class001" / "1.png").read_bytes()
    for origin in ("http://evil.example", "null", "https://127.0.0.1", f"http://localhost:{server.server_port}"):
        refused(server, 403, "sent by another page", "POST", "/search", content, {**TYPE, "Origin": origin})
    for kind in ("text/plain", "multipart/form-data; boundary=x", "application/x-www-form-urlencoded", None):
        refused(server, 415, "application/octet-stream", "POST", "/search", content, {"Content-Type": kind})
    assert ask(server, "POST", "/search", content, {**TYPE, "Origin": f"http://127.0.0.1:{server.server_port}"})[0] == 200


def test_lengths(server):
    refused(server, 413, "more than 20 MB; make it smaller", "POST", "/search", b"", {**TYPE, "Content-Length": "20000001"})
    refused(server, 413, "more than 20 MB", "POST", "/search", b"", {**TYPE, "Content-Length": "9" * 18})
    for length in ("-1", "+5", "0", "1e3", "0x10", "5, 5", "9" * 4000, "٣".encode()):
        refused(server, 400, "number makes no sense", "POST", "/search", b"", {**TYPE, "Content-Length": length})
    refused(server, 411, "does not say how long it is", "POST", "/search", None, TYPE)
    chunked = {**TYPE, "Transfer-Encoding": "chunked"}
    refused(server, 411, "does not say", "POST", "/search", b"5\r\nhello\r\n0\r\n\r\n", {**chunked, "Content-Length": "15"})
    assert raw(server, SLOW.replace(b"500", b"5\r\nContent-Length: 6") + b"hello").startswith(b"HTTP/1.0 400 ")
    assert b"only 5 of 500 bytes came" in raw(server, SLOW + b"hello")


def bomb(width, height):
    """A PNG of a few kilobytes that is said to hold width x height grey pixels."""

    def chunk(kind, content):
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    rows = zlib.compress(b"\0" * (width // 8 + 1) * min(height, 2000), 9)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0))
        + chunk(b"IDAT", rows)
        + chunk(b"IEND", b"")
    )


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_what_is_no_image(server, photos):
    whole = (photos / "class001" / "1.png").read_bytes()
    postscript = io.BytesIO()
    Image.new("RGB", (9, 9)).save(postscript, "EPS")
    for content, words in ((b"this is text, named .jpg", "is no image, or is damaged at its beginning; expected a JPEG, PNG"),
                           (b"\0", "is no image"), (whole[:100], "truncated|damaged|broken"),
                           (postscript.getvalue(), "is no image"), (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "SVG"),
                           (b"\0\0\0\x18ftypheic" + bytes(40), "iPhone"),
                           (bomb(9000, 9000), "9000 x 9000 pixels, more than"), (bomb(60000, 60000), "decompression bomb"),
                           (b"GIF89a" + b"\xff" * 20, "no image|Error|truncated"),
                           (whole[:40] + b"\xff" * 30 + whole[70:], "broken|no image|Error|truncated|checksum")):  # fmt: skip
        refused(server, 422, words, "POST", "/search", content, TYPE)
    assert ask(server, "POST", "/search", whole, TYPE)[0] == 200


def test_slow_clients_are_cut_off_and_others_served(index, model, monkeypatch, photos):
    monkeypatch.setattr(search_server, "SECONDS", 1)
    with serving(index, model) as server:
        for beginning, answer in ((SLOW, b" 408 "), (b"GET / HTTP/1.0\r\nHost: loc", b"")):
            with socket.create_connection(("127.0.0.1", server.server_port), timeout=30) as client:
                client.sendall(beginning)
                for _ in range(4):  # a byte now and then: no single wait is long
                    time.sleep(0.1)
                    client.sendall(b"x")
                content = (photos / "class001" / "1.png").read_bytes()
                assert ask(server, "POST", "/search", content, TYPE)[0] == 200
                came = b"".join(iter(lambda: client.recv(65536), b""))
                assert answer in came and b"nearest" not in came


def test_searches_and_connections_are_bounded(index, model, monkeypatch, photos):
    content = (photos / "class001" / "1.png").read_bytes()
    monkeypatch.setattr(search_server, "UPLOADS", 2)
    monkeypatch.setattr(search_server, "CONNECTIONS", 5)
    with serving(index, model) as server, contextlib.ExitStack() as stack:
        clients = [stack.enter_context(socket.create_connection(("127.0.0.1", server.server_port))) for _ in range(2)]
        for client in clients:
            client.sendall(SLOW)
        until(lambda: server.uploads._value == 0)
        refused(server, 503, "other images are being searched; try again", "POST", "/search", content, TYPE)
        assert ask(server, "GET", "/near/1")[0] == 200
        until(lambda: server.connections._value == 3)
        idle = [stack.enter_context(socket.create_connection(("127.0.0.1", server.server_port))) for _ in range(3)]
        until(lambda: server.connections._value == 0)
        with pytest.raises(OSError):
            ask(server, "GET", "/")
        for client in (*clients, *idle):
            client.close()
        until(lambda: server.connections._value == 5)
        assert ask(server, "POST", "/search", content, TYPE)[0] == 200


def until(is_it):
    end = time.monotonic() + 30
    while not is_it():
        assert time.monotonic() < end
        time.sleep(0.01)


def test_many_at_once_get_their_own_answer(server, photos, monkeypatch):
    """The net is shared, and not made for two at a time."""
    real, inside, together = server.embedder.embed, [], []

    def slow(*arguments):
        inside.append(1)
        together.append(len(inside))
        time.sleep(0.05)
        inside.pop()
        return real(*arguments)

    monkeypatch.setattr(server.embedder, "embed", slow)
    paths = sorted(photos.glob("class00[012]/[1-4].png"))
    answers = {}

    def one(path):
        status, body = 503, b""
        while status == 503:
            status, _, body = ask(server, "POST", "/search", path.read_bytes(), TYPE)
        answers[path] = json.loads(body)["nearest"][0]

    threads = [threading.Thread(target=one, args=[path]) for path in paths]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert {path: (found["name"], found["distance"]) for path, found in answers.items()} == {
        path: (str(path.relative_to(photos)), 0) for path in paths}  # fmt: skip
    assert max(together) == 1


# --- the command -----------------------------------------------------------------------------------------------------


def test_ctrl_c_ends_it(index, model):
    command = [sys.executable, str(ROOT / "tools" / "search.py"), "serve", "--model", str(model), "--port", "0"]
    process = start(command)
    said = process.stdout.readline()
    port = int(re.match(r"http://127.0.0.1:(\d+)/  20 images of /.*photos; Ctrl\+C ends it\n", said)[1])
    with pytest.raises(OSError), socket.create_connection(("127.0.0.2", port), timeout=5):
        pass
    before = {path: path.stat().st_mtime_ns for path in model.rglob("*")}
    with socket.create_connection(("127.0.0.1", port)):  # somebody who says nothing does not keep it
        second = start([*command[:-1], str(port)])
        assert f"127.0.0.1, port {port}: is in use" in second.communicate(timeout=60)[0] and second.returncode == 1
        process.send_signal(signal.SIGINT)
        assert process.communicate(timeout=30)[0] == "\nended\n" and process.returncode == 0
    assert before == {path: path.stat().st_mtime_ns for path in model.rglob("*")}


def test_another_host_is_warned_about(index, model):
    process = start(
        [sys.executable, str(ROOT / "tools" / "search.py"), "serve", "--model", str(model), "--port", "0", "--host", "0.0.0.0"]
    )
    lines = process.stdout.readline() + process.stdout.readline()
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=60)
    assert "no password" in lines


# --- in a browser ----------------------------------------------------------------------------------------------------


class Tab:
    """The page in a browser's tab."""

    def __init__(self, browser, server):
        self.browser, self.address = browser, f"http://127.0.0.1:{server.server_port}/"

    def open(self, width, after=""):
        for address in ("about:blank", self.address + after):  # another # alone would not load the page again
            self.browser.open(address, width)

    def do(self, expression):
        return self.browser.evaluate(expression)

    def until(self, expression):
        end = time.monotonic() + 30
        while not self.do(expression):
            assert time.monotonic() < end, (expression, self.do("document.body.innerText"))
            time.sleep(0.02)

    def choose(self, path):
        self.browser.choose_file("#file", path)

    def send(self, event, content, name, kind="image/png"):
        """Drop or paste a file, as the browser would tell the page."""
        self.do(f"""(() => {{
            const letters = [...atob("{base64.b64encode(content).decode()}")], data = new DataTransfer();
            const bytes = Uint8Array.from(letters, letter => letter.charCodeAt(0)), how = {{bubbles: true, cancelable: true}};
            data.items.add(new File([bytes], {json.dumps(name)}, {{type: "{kind}"}}));
            const event = "{event}" === "paste" ? new ClipboardEvent("paste", {{clipboardData: data, ...how}})
                                                : new DragEvent("drop", {{dataTransfer: data, ...how}});
            document.body.dispatchEvent(event); }})()""")

    def found(self):
        return self.do("[...document.querySelectorAll('#found li')].map(item => item.innerText)")

    def complaints(self):
        """What the console says, what is fetched from elsewhere, and what a reader would see broken."""
        wrong = []
        for event in self.browser.events:
            method, of = event["method"], event["params"]
            if method in ("Runtime.exceptionThrown", "Runtime.consoleAPICalled", "Log.entryAdded"):
                wrong.append(str(of))
            elif method == "Network.requestWillBeSent" and not of["request"]["url"].startswith((self.address, "data:")):
                wrong.append(f"fetches {of['request']['url']}")
        return wrong + self.do("""(async () => {
            const images = [...document.images].filter(image => image.offsetParent);
            for (const image of images) { image.loading = "eager"; await image.decode().catch(() => 0); }
            const page = document.documentElement;
            return [page.scrollWidth > page.clientWidth && "scrolls sideways",
                    images.some(image => !image.naturalWidth) && "a broken picture",
                    images.some(image => !image.alt) && "no alternative text",
                    [...document.querySelectorAll("main *")].some(part => part.getBoundingClientRect().right >
                      page.clientWidth + 1) && "too wide",
                   ].filter(Boolean); })()""")


@pytest.fixture(scope="module")
def tab(server, tmp_path_factory):
    if not BROWSER:
        pytest.skip("no browser here")
    browser = check_report.Browser(BROWSER, tmp_path_factory.mktemp("browser"))
    yield Tab(browser, server)
    browser.close()


@pytest.mark.parametrize("width", check_report.WIDTHS)
@pytest.mark.parametrize("way", ["drop", "paste", "choose"])
def test_an_image_that_is_given_shows_the_nearest(tab, photos, way, width):
    path = photos / "class002" / "3.png"
    tab.open(width)
    assert tab.complaints() == [] and tab.found() == []
    if way == "choose":
        tab.choose(path)
    else:
        tab.send(way, path.read_bytes(), path.name)
    tab.until("document.querySelectorAll('#found li').length === 6")
    assert tab.found()[0].split("\n")[:2] == ["1: 0.000", "class002/3.png"]
    assert tab.do("says.innerText") == "The 6 nearest of 20 images, with their distance. Choose one to search with it."
    assert tab.do("query.alt") == "The image searched with: 3.png" and tab.do("query.naturalWidth") == 24
    assert tab.complaints() == []


def test_a_result_is_searched_with_and_back_goes_back(tab, photos, index):
    tab.open(400)
    tab.choose(photos / "class002" / "3.png")
    tab.until("document.querySelectorAll('#found li').length === 6")
    second = tab.found()[1].split("\n")[1]
    tab.do("document.querySelectorAll('#found button')[1].focus(); document.activeElement.getAttribute('aria-label')")
    for kind in ("keyDown", "keyUp"):  # by the keyboard
        tab.browser.call("Input.dispatchKeyEvent", type=kind, key="Enter", code="Enter", text="\r", windowsVirtualKeyCode=13)
    tab.until(f"document.getElementById('name').innerText === {json.dumps(second)}")
    assert tab.found()[0].split("\n")[1:] == [second, "the image searched with"]
    third = tab.found()[2].split("\n")[1]
    tab.do("document.querySelectorAll('#found button')[2].click()")
    tab.until(f"document.getElementById('name').innerText === {json.dumps(third)}")
    tab.do("history.back()")
    tab.until(f"document.getElementById('name').innerText === {json.dumps(second)}")
    assert tab.complaints() == []


@pytest.mark.parametrize("width", check_report.WIDTHS)
def test_gone_changed_and_oddly_named_images(tab, index, width):
    numbers = {file.path: number for number, file in index.files.items()}
    odd = next(path for path in numbers if "<b>" in path)
    for path, note in (("class003/3.png", "no longer there"), ("class003/4.png", "has changed since it was indexed"), (odd, None)):
        tab.open(width, f"#{numbers[path]}")
        tab.until("document.querySelectorAll('#found li').length === 6")
        lines = tab.found()[0].split("\n")
        assert note is None or note in lines
        assert tab.complaints() == []
    assert lines[1].endswith(r" <b>&amp;\n\udcff.png"), "shown as it is, not as HTML"


def test_errors_are_shown_in_words(tab, photos, server):
    tab.open(400)
    tab.choose(photos / "class002" / "3.png")
    tab.until("document.querySelectorAll('#found li').length === 6")
    tab.send("drop", b"this is text", "text.jpg", "image/jpeg")
    tab.until("says.className === 'wrong'")
    assert tab.do("says.innerText").startswith("text.jpg: is no image, or is damaged at its beginning; expected a JPEG, PNG")
    assert tab.found() == [], "what an earlier image found stays there as if it were this one's"
    tab.send("drop", b"a list", "list.txt", "text/plain")
    assert tab.do("says.innerText") == "That is not an image file. Drop, paste or choose one from your disk."
    tab.do("""send(new File([new Uint8Array(20000001)], "large.png"))""")
    assert tab.do("says.innerText") == "large.png: has more than 20 MB; make it smaller."
    tab.open(400, "#99")
    tab.until("says.className === 'wrong'")
    assert tab.do("says.innerText") == "image 99: the index has no such image"
    tab.browser.call("Network.emulateNetworkConditions", offline=True, latency=0, downloadThroughput=-1, uploadThroughput=-1)
    try:
        tab.send("drop", png(Image.fromarray(drawn(1, 20)[0].transpose(1, 2, 0))), "a.png")
        tab.until("says.innerText.includes('does not answer')")
    finally:
        tab.browser.call("Network.emulateNetworkConditions", offline=False, latency=0, downloadThroughput=-1, uploadThroughput=-1)


def test_an_answer_that_was_overtaken_is_not_shown(tab, photos):
    tab.open(400)
    tab.do("""{const real = fetch, hold = new Promise(go => { window.go = go; });
              window.fetch = async (...given) => { if (given[0] === "near/1") await hold; return real(...given); };}""")
    tab.do("location.hash = 1")
    tab.choose(photos / "class002" / "3.png")
    tab.until("document.querySelectorAll('#found li').length === 6")
    tab.do("go(); new Promise(done => setTimeout(done, 300))")
    assert tab.do("document.getElementById('name').innerText") == "3.png" and tab.found()[0].split("\n")[1] == "class002/3.png"


def test_its_text_can_be_read_light_and_dark():
    """Contrast of at least 4.5 (WCAG 2, level AA) of all colours of text against what they stand on."""
    page = search_server.PAGE.read_text()
    themes = re.findall(r":root \{(.*?)\}", page)
    assert len(themes) == 2
    for theme in themes:
        colours = dict(re.findall(r"--(\w+): #([0-9a-f]{3,6})", theme))
        light = {}
        for name, text in colours.items():
            text = text if len(text) == 6 else "".join(2 * letter for letter in text)
            parts = np.array([int(text[i : i + 2], 16) / 255 for i in (0, 2, 4)])
            light[name] = np.where(parts <= 0.04045, parts / 12.92, ((parts + 0.055) / 1.055) ** 2.4) @ [0.2126, 0.7152, 0.0722]
        for text in ("ink", "soft", "strong", "wrong"):
            for ground in ("paper", "pale"):
                dark, bright = sorted((light[text], light[ground]))
                assert (bright + 0.05) / (dark + 0.05) >= 4.5, (text, ground)


def test_its_picture_is_made_by_a_command(tab, model, index, photos, tmp_path):
    out = tmp_path / "figures" / "search.png"
    done = tool("tools/search_picture.py", "--model", model, "--out", out)
    assert done.returncode == 0, done.stderr
    assert len(np.unique(np.asarray(Image.open(out).convert("RGB")).reshape(-1, 3), axis=0)) > 1000, "no picture is drawn on it"
    first = out.read_bytes()
    search_picture.take_picture(tab.browser, tab.address, index, photos / "class002" / "3.png", out)
    assert Image.open(out).width == search_picture.WIDTH and out.read_bytes() != first
    out.unlink()
    (tmp_path / "text.png").write_text("no image")
    with pytest.raises(ValueError, match="text.png: .*no image"):
        search_picture.take_picture(tab.browser, tab.address, index, tmp_path / "text.png", out)
    assert not out.exists()
