"""The page that tools/search.py serves: drop an image, see the nearest ones. The standard library's HTTP server.

    GET  /              the page, tools/search_page.html
    GET  /near/<id>     the nearest images of an image of the index, JSON
    GET  /picture/<id>  a thumbnail of it, JPEG
    POST /search        the nearest images of the image that is sent, JSON

It is meant for one person on one machine, but any web page that this person visits can send requests here. So: requests for
another host name, or sent by another page, are refused; what is sent is bounded in bytes, pixels, time and number;
no part of a request is ever used as a path; and nothing is written.
"""

import base64
import contextlib
import hashlib
import io
import ipaddress
import json
import re
import socket
import socketserver
import sys
import threading
import traceback
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from data_prep.image import what_it_is
from tools.search_index import shown, thumbnail

PAGE = Path(__file__).with_name("search_page.html")
MOST_BYTES = 20_000_000  # of an image that is sent
SECONDS = 60  # for a connection from its first byte to the last, however slow the client
CONNECTIONS = 64  # at a time; a browser opens six or so
UPLOADS = 4  # of those that are sending an image
SIDE = 320  # pixels of a thumbnail, twice what the page shows it at
LOCAL = ("localhost", "127.0.0.1", "::1")


def policy(page):
    """The Content-Security-Policy of the page: its own script and style, by their SHA-256, and pictures from here."""
    kinds = {kind: re.findall(rf"<{kind}>(.*?)</{kind}>", page, re.DOTALL) for kind in ("script", "style")}
    hashes = {kind: " ".join(f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'" for text in texts)
              for kind, texts in kinds.items()}  # fmt: skip
    return (f"default-src 'none'; script-src {hashes['script']}; style-src {hashes['style']}; img-src 'self' data:; "
            "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'")  # fmt: skip


class Refused(Exception):
    """A request that is not answered: status and why, in words for the page."""


class Server(ThreadingHTTPServer):
    """A Handler for each connection, in a thread of its own. Raises OSError when the port is taken."""

    daemon_threads = True  # Ctrl+C waits for no client
    block_on_close = False

    def __init__(self, embedder, index, host, port, top):
        self.embedder, self.index, self.top, self.host = embedder, index, top, host
        self.page = PAGE.read_text(encoding="utf-8")
        self.policy = policy(self.page)
        self.one_at_a_time = threading.Lock()  # OpenCV's net holds what it computes
        self.uploads, self.connections = threading.Semaphore(UPLOADS), threading.Semaphore(CONNECTIONS)
        self.address_family = socket.AF_INET6 if ":" in host else socket.AF_INET
        super().__init__((host, port), Handler)

    def server_bind(self):
        socketserver.TCPServer.server_bind(self)  # http.server's asks the name service who it is, and may wait for that
        self.server_name, self.server_port = self.server_address[:2]

    def process_request(self, request, client_address):
        if not self.connections.acquire(blocking=False):
            self.shutdown_request(request)
            return
        try:
            super().process_request(request, client_address)
        except RuntimeError:  # no further thread
            self.connections.release()
            self.shutdown_request(request)

    def process_request_thread(self, request, client_address):
        try:
            super().process_request_thread(request, client_address)
        finally:
            self.connections.release()

    def handle_error(self, request, client_address):
        error = sys.exc_info()[1]
        if not isinstance(error, OSError):  # a client that went away is no error
            print(f"search: a request failed: {type(error).__name__}: {error}", file=sys.stderr)

    def knows(self, host):
        """Whether a request's Host header names this server.

        A page elsewhere can have its own name point here (DNS rebinding), but then that name is in the header. A number
        cannot be made to point elsewhere.
        """
        found = re.fullmatch(r"(?:\[([0-9a-f:]+)\]|([a-z0-9._-]+))(?::\d{1,5})?", (host or "").lower(), re.ASCII)
        name = found and (found[1] or found[2])
        if not name:
            return False
        if name in LOCAL or name == self.host.lower():
            return True
        if self.host in LOCAL:
            return False
        try:
            return bool(ipaddress.ip_address(name))
        except ValueError:
            return name == socket.gethostname().lower()

    def results(self, embedding, itself=None):
        """The nearest images of an embedding as the page takes them."""
        near = []
        for one in self.index.nearest(embedding, self.top):
            name, state = shown(one.path), self.index.state_of(one.id)
            near.append({"id": one.id, "distance": one.distance, "name": name, "state": state, "itself": one.id == itself})
        return {"nearest": near, "of": len(self.index.files)}


class Handler(BaseHTTPRequestHandler):
    """One request, then the connection is closed (HTTP/1.0), so that SECONDS bounds all of it."""

    server_version, sys_version = "search", ""

    timeout = SECONDS + 5  # of the socket, for an answer that the client does not take

    def setup(self):
        super().setup()
        # For reading, the socket's own timeout would begin anew with each byte; this one does not.
        self.deadline = threading.Timer(SECONDS, self.cut)
        self.deadline.daemon = True
        self.deadline.start()

    def cut(self):
        with contextlib.suppress(OSError):  # it is closed already
            self.connection.shutdown(socket.SHUT_RD)

    def finish(self):
        self.deadline.cancel()
        super().finish()

    def do_GET(self):
        self.answer({"/": self.get_page, "/near": self.get_near, "/picture": self.get_picture})

    do_HEAD = do_GET

    def do_POST(self):
        self.answer({"/search": self.post_search})

    def answer(self, known):
        try:
            if not self.server.knows(self.headers.get("Host")):
                raise Refused(HTTPStatus.FORBIDDEN, "this address is not the one that the server was started for; "
                              "open the one that it printed")  # fmt: skip
            origin = self.headers.get("Origin")
            if origin is not None and origin != f"http://{self.headers['Host']}":
                raise Refused(HTTPStatus.FORBIDDEN, "sent by another page")
            found = re.fullmatch(r"(/near|/picture)/(0|[1-9][0-9]{0,17})|(/|/search)", self.path, re.ASCII)
            name = found and (found[1] or found[3])
            if name not in ("/", "/near", "/picture", "/search"):
                raise Refused(HTTPStatus.NOT_FOUND, "there is nothing at this address")
            if name not in known:
                raise Refused(HTTPStatus.METHOD_NOT_ALLOWED, "this address takes another kind of request")
            known[name](*([int(found[2])] if found[2] else []))
        except Refused as refused:
            self.send_error(*refused.args)
        except (ConnectionError, TimeoutError):  # nobody is there to answer
            self.close_connection = True
        except Exception as error:
            last = traceback.extract_tb(error.__traceback__)[-1]
            what = f"{type(error).__name__}: {error}"
            print(f"search: {shown(self.requestline)}: {shown(what)} ({last.filename}, line {last.lineno})", file=sys.stderr)
            self.send_error(HTTPStatus.INTERNAL_SERVER_ERROR, f"this failed here ({what}); the server's own output says where")

    def get_page(self):
        self.send(self.server.page.encode(), "text/html; charset=utf-8")

    def get_near(self, number):
        self.send_json({**self.server.results(self.stored(number), number), "name": shown(self.server.index.files[number].path)})

    def get_picture(self, number):
        self.stored(number)
        self.send(as_jpeg(self.server.index.picture(number, SIDE)), "image/jpeg")

    def stored(self, number):
        try:
            return self.server.index.embedding(number)
        except KeyError:
            raise Refused(HTTPStatus.NOT_FOUND, "the index has no such image") from None

    def post_search(self):
        if self.headers.get_content_type() != "application/octet-stream":
            # Another page could send the other kinds without asking first.
            raise Refused(HTTPStatus.UNSUPPORTED_MEDIA_TYPE, "send the image as application/octet-stream")
        length = self.content_length()
        if not self.server.uploads.acquire(blocking=False):
            raise Refused(HTTPStatus.SERVICE_UNAVAILABLE, "other images are being searched; try again in a moment")
        try:
            content = self.rfile.read(length)
            if len(content) < length:
                raise Refused(HTTPStatus.REQUEST_TIMEOUT, f"only {len(content):,} of {length:,} bytes came")
            try:
                picture = thumbnail(io.BytesIO(content), SIDE)  # first: it takes no kinds of file but those of SUFFIXES
                image = self.server.embedder.load(content)
                with self.server.one_at_a_time:
                    embedding = self.server.embedder.embed([image], ["this image"])[0]
            except (OSError, ValueError, MemoryError) as error:
                why = str(error) or type(error).__name__
                why = what_it_is(content) if "cannot identify" in why else why
                raise Refused(
                    HTTPStatus.UNPROCESSABLE_ENTITY, f"{why}; expected a JPEG, PNG, WebP, GIF, BMP, PNM or TIFF"
                ) from None
        finally:
            self.server.uploads.release()
        address = f"data:image/jpeg;base64,{base64.b64encode(as_jpeg(picture)).decode()}"
        self.send_json({**self.server.results(embedding), "picture": address})

    def content_length(self):
        """Bytes that are to come; Refused where that is not said, or they are too many."""
        given = self.headers.get_all("Content-Length", [])
        if "Transfer-Encoding" in self.headers or not given:
            raise Refused(HTTPStatus.LENGTH_REQUIRED, "the request does not say how long it is")
        if len(given) > 1 or not re.fullmatch("[0-9]{1,18}", given[0], re.ASCII) or int(given[0]) == 0:
            raise Refused(HTTPStatus.BAD_REQUEST, "the image has no bytes, or their number makes no sense")
        if int(given[0]) > MOST_BYTES:
            raise Refused(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, f"the image has more than {MOST_BYTES // 10**6} MB; make it smaller")
        return int(given[0])

    def send_json(self, answer):
        self.send(json.dumps(answer).encode(), "application/json")

    def send_error(self, code, message=None, explain=None):
        self.close_connection = True
        status = HTTPStatus(code)
        self.send(json.dumps({"error": str(message or status.phrase)}).encode(), "application/json", status)

    def send(self, content, kind, status=HTTPStatus.OK):
        self.send_response(status)
        for name, value in {
            "Content-Type": kind,
            "Content-Length": str(len(content)),
            "Content-Security-Policy": self.server.policy,
            "Cross-Origin-Resource-Policy": "same-origin",
            "Cross-Origin-Opener-Policy": "same-origin",
            "Referrer-Policy": "no-referrer",
            "X-Content-Type-Options": "nosniff",
            "Cache-Control": "no-store",
        }.items():
            self.send_header(name, value)
        if status == HTTPStatus.METHOD_NOT_ALLOWED:
            self.send_header("Allow", "POST" if self.path == "/search" else "GET, HEAD")
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def log_message(self, *_):
        """Nothing: what a person searches for is theirs."""


def as_jpeg(picture):
    stream = io.BytesIO()
    picture.save(stream, "JPEG", quality=85)
    return stream.getvalue()


def serve(embedder, index, host, port, top):
    """Serve the page until Ctrl+C. Raises OSError in words when the address cannot be used."""
    try:
        server = Server(embedder, index, host, port, top)
    except (OSError, OverflowError) as error:
        raise OSError(f"{host}, port {port}: is in use or not to be had ({error}); choose another with --port or --host") from None
    if host not in LOCAL:
        print(f"search: anyone who can reach {host} can search these {len(index.files):,} images and see them; "
              "there is no password", file=sys.stderr)  # fmt: skip
    name = f"[{host}]" if ":" in host else host
    print(f"http://{name}:{server.server_port}/  {len(index.files):,} images of {shown(index.images)}; Ctrl+C ends it", flush=True)
    with server:
        try:
            server.serve_forever()
        except KeyboardInterrupt:
            print("\nended")
