"""Downloads from a server on this machine: resumed, verified, from the next address when one fails."""

import hashlib
import http.server
import os
import threading
from typing import ClassVar

import pytest

from data_prep.download import Download, fetch, stranger

CONTENT = os.urandom(300_000)
MD5 = "md5:" + hashlib.md5(CONTENT).hexdigest()


class Server(http.server.BaseHTTPRequestHandler):
    """/whole, /moved (to it), /broken (ends half way, once), /noranges (whole files only), /other (other content), /page."""

    asked: ClassVar = []

    def do_GET(self):
        start = int((self.headers.get("Range") or "bytes=0-").removeprefix("bytes=").rstrip("-"))
        self.asked.append((self.path, start))
        if self.path == "/missing":
            return self.send_error(404)
        if self.path == "/moved":
            self.send_response(302)
            self.send_header("Location", "/whole")
            self.send_header("Content-Length", "0")
            return self.end_headers()
        content = {"/other": bytes(len(CONTENT)), "/page": b"<html>virus scan</html>"}.get(self.path, CONTENT)
        if self.path == "/noranges":
            start = 0
        if start >= len(content):
            return self.send_error(416)
        self.send_response(206 if start else 200)
        self.send_header("Content-Length", str(len(content) - start))
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
        self.end_headers()
        first = self.path == "/broken" and self.asked.count((self.path, 0)) == 1 and start == 0
        self.wfile.write(content[start : len(content) // 2 if first else None])
        self.close_connection = True

    def log_message(self, *_):
        pass


@pytest.fixture
def at(monkeypatch):
    for name in ("http_proxy", "https_proxy", "all_proxy", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Server)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    Server.asked.clear()
    yield lambda *names: tuple(f"http://127.0.0.1:{server.server_port}/{name}" for name in names)
    server.shutdown()
    server.server_close()


def test_the_next_address_goes_on_where_one_broke_off(tmp_path, at):
    path = fetch(Download("x.tgz", at("missing", "broken", "whole"), len(CONTENT), MD5), tmp_path)
    assert path.read_bytes() == CONTENT
    assert Server.asked == [("/missing", 0), ("/broken", 0), ("/whole", len(CONTENT) // 2)]
    fetch(Download("x.tgz", at("missing"), len(CONTENT), MD5), tmp_path)  # it is there
    assert len(Server.asked) == 3 and [file.name for file in tmp_path.iterdir() if file.name != ".lock"] == ["x.tgz"]


def test_an_address_that_leads_elsewhere(tmp_path, at):
    assert fetch(Download("x.tgz", at("moved"), len(CONTENT), MD5), tmp_path).read_bytes() == CONTENT


def test_a_later_call_goes_on(tmp_path, at):
    (tmp_path / ".x.tgz.partial").write_bytes(CONTENT[:1000])
    assert fetch(Download("x.tgz", at("whole"), len(CONTENT), MD5), tmp_path).read_bytes() == CONTENT
    assert Server.asked == [("/whole", 1000)]


def test_a_part_that_is_no_part_of_it_is_thrown_away(tmp_path, at):
    (tmp_path / ".x.tgz.partial").write_bytes(b"something else")
    assert fetch(Download("x.tgz", at("whole"), len(CONTENT), MD5), tmp_path).read_bytes() == CONTENT
    (tmp_path / "x.tgz").unlink()
    (tmp_path / ".x.tgz.partial").write_bytes(bytes(len(CONTENT) + 5))
    assert fetch(Download("x.tgz", at("whole"), len(CONTENT), MD5), tmp_path).read_bytes() == CONTENT


def test_a_server_that_cannot_resume(tmp_path, at):
    (tmp_path / ".x.tgz.partial").write_bytes(CONTENT[:1000])
    assert fetch(Download("x.tgz", at("noranges"), len(CONTENT), MD5), tmp_path).read_bytes() == CONTENT


def test_wrong_content_is_not_taken(tmp_path, at):
    assert fetch(Download("x.tgz", at("page", "other", "whole"), len(CONTENT), MD5), tmp_path).read_bytes() == CONTENT


def test_every_address_failing_is_one_message(tmp_path, at):
    with pytest.raises(OSError) as error:
        fetch(Download("x.tgz", at("missing", "page", "other"), len(CONTENT), MD5), tmp_path)
    message = str(error.value)
    assert f"x.tgz (300,000 bytes, {MD5.replace(':', ' ')}) could not be fetched:" in message
    for name, reason in (("missing", "status 22 (the server refused)"), ("page", "the file is a web page"),
                         ("other", f"expected {MD5[4:]}")):  # fmt: skip
        assert f"/{name}\n        " in message and reason in message
    assert message.endswith(f"Fetch it by hand, and put it at {tmp_path}/x.tgz")
    assert [file.name for file in tmp_path.iterdir()] == [".lock"]


def test_a_file_of_another_content_is_named_and_kept(tmp_path):
    (tmp_path / "x.tgz").write_bytes(b"mine")
    with pytest.raises(OSError, match="x.tgz: has 4 bytes, expected 300,000. Remove it"):
        fetch(Download("x.tgz", (), len(CONTENT), MD5), tmp_path)
    assert (tmp_path / "x.tgz").read_bytes() == b"mine"
    (tmp_path / "x.tgz").write_bytes(b"")
    with pytest.raises(OSError, match="x.tgz: is empty.* Remove it"):
        fetch(Download("x.tgz", (), len(CONTENT), MD5), tmp_path)


def test_bytes_that_say_what_they_are(tmp_path):
    for content, words in (
        (b"\xef\xbb\xbf\r\n<!DOCTYPE HTML><title>Sign in", "a web page"),
        (b"<html>", "a web page"),
        (b"<?xml version='1.0'?><Error>AccessDenied", "XML"),
        (b"", "empty"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0", "Git LFS"),
        (b"7z\xbc\xaf\x27\x1c", "7-Zip"),
    ):
        assert words in stranger(content)
    for data in (b"PK\x03\x04", b"\x1f\x8b\x08", b"\n\x09GoogleNet", b"MATLAB 5.0 MAT-file", b"1 001.Black_footed_Albatross/a.jpg"):
        assert stranger(data) is None
