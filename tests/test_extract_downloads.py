"""Fetching weights from a server that cuts, lies, moves and forgets, on this machine."""

import hashlib
import io
import json
import subprocess
import sys
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from extract.catalogue import WeightFile
from extract.downloads import fetch
from extract.file_checks import note_of, state_of
from extract.weights import WeightsError
from tests.helpers import ROOT

CONTENT = bytes(range(256)) * 10_000  # 2.56 MB: more than one chunk


def git_blob(content):
    return hashlib.sha1(b"blob %d\0" % len(content) + content, usedforsecurity=False).hexdigest()


SHA = hashlib.sha256(CONTENT).hexdigest()


@pytest.fixture(autouse=True)
def weights_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("WSVAD_WEIGHTS", str(tmp_path / "weights"))
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("no_proxy", "*")
    return tmp_path / "weights"


class Server:
    """Serves `content`; `cuts[i]` is after how many bytes the i-th answer stops (None: never)."""

    def __init__(self):
        self.content, self.cuts, self.ranges, self.tag = CONTENT, [], True, '"1"'
        self.status, self.location, self.shift, self.length = 200, "", 0, True
        self.asked = []

    def answer(self, handler):
        self.asked.append(dict(handler.headers))
        cut = self.cuts.pop(0) if self.cuts else None
        if callable(cut):
            cut = cut(self)
        if self.status != 200:
            handler.send_response(self.status)
            handler.send_header("Location", self.location)
            handler.send_header("Content-Length", "0")
            handler.end_headers()
            return
        asked, start = handler.headers.get("Range", ""), 0
        matches = handler.headers.get("If-Range") in (None, self.tag)
        if self.ranges and asked and matches:
            start = int(asked.removeprefix("bytes=").rstrip("-"))
            if start >= len(self.content):
                handler.send_response(416)
                handler.send_header("Content-Length", "0")
                handler.end_headers()
                return
            start -= self.shift
            handler.send_response(206)
            handler.send_header("Content-Range", f"bytes {start}-{len(self.content) - 1}/{len(self.content)}")
        else:
            handler.send_response(200)
        body = self.content[start:]
        if self.tag:
            handler.send_header("ETag", self.tag)
        if self.length:
            handler.send_header("Content-Length", str(len(body)))
        handler.end_headers()
        handler.wfile.write(body[:cut])


@contextmanager
def serving():
    server = Server()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            server.answer(self)
            self.close_connection = True

        def log_message(self, *_):
            pass

    http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=http.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    server.url = f"http://127.0.0.1:{http.server_port}/net.pth"
    try:
        yield server
    finally:
        http.shutdown()
        thread.join()
        http.server_close()


@pytest.fixture
def server():
    with serving() as server:
        yield server


def entry(server, **changes):
    return WeightFile("net", **({"url": server.url, "about": "a net", "licence": "MIT", "sha256": SHA} | changes))


def get(entry, **options):
    return fetch(entry, **({"attempts": 3, "pause_s": 0} | options))


def names(folder):
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize(
    "known",
    [
        {"sha256": SHA},
        {"sha256": SHA[:8]},
        {"sha256": "", "git_blob": git_blob(CONTENT)},
    ],
)
def test_a_whole_file_is_verified_and_moved(server, weights_folder, known):
    found = get(entry(server, **known))
    assert (found.state, found.sha256, found.path) == ("verified", SHA, weights_folder / "net.pth")
    assert found.path.read_bytes() == CONTENT
    assert names(weights_folder) == ["net.pth"]
    assert server.asked[0]["User-Agent"].startswith("wsvad")
    assert "Range" not in server.asked[0]


def test_what_is_there_is_not_fetched_again_and_what_is_wrong_is_replaced(server):
    first = get(entry(server))
    assert get(entry(server)).state == "present"
    assert len(server.asked) == 1
    first.path.write_bytes(b"rotten")
    assert state_of(entry(server)) == (
        "WRONG",
        f"wanted sha256 {SHA}, found {hashlib.sha256(b'rotten').hexdigest()}",
    )
    assert get(entry(server)).state == "verified"
    assert first.path.read_bytes() == CONTENT


def test_wrong_content_is_named_and_leaves_nothing(server, weights_folder):
    server.content = CONTENT[:-1] + b"x"
    with pytest.raises(WeightsError) as caught:
        get(entry(server))
    assert f"wanted sha256 {SHA}, found {hashlib.sha256(server.content).hexdigest()}" in str(caught.value)
    assert server.url in str(caught.value)
    assert names(weights_folder) == []
    assert len(server.asked) == 1  # the same again would be the same


def test_a_wrong_file_in_place_survives_a_failed_fetch(server, weights_folder):
    weights_folder.mkdir()
    (weights_folder / "net.pth").write_bytes(b"old")
    server.content = b"new and wrong"
    with pytest.raises(WeightsError, match="wanted sha256"):
        get(entry(server))
    assert (weights_folder / "net.pth").read_bytes() == b"old"


@pytest.mark.parametrize("tag", ['"1"', "", 'W/"1"'])
@pytest.mark.parametrize("published", [True, False])
def test_a_cut_connection_goes_on_where_it_stopped(server, tag, published):
    server.cuts, server.tag = [1_000_000, 500_000], tag
    found = get(entry(server) if published else entry(server, sha256=""))
    assert found.path.read_bytes() == CONTENT
    asked = [headers.get("Range") for headers in server.asked]
    if published or tag == '"1"':
        assert asked == [None, "bytes=1000000-", "bytes=1500000-"]
    else:  # nothing would tell whether the parts belong together
        assert asked == [None, None, None]
    assert all(h.get("If-Range") in (None, '"1"') for h in server.asked)
    assert ("If-Range" in server.asked[1]) == (tag == '"1"')


def test_a_file_that_changes_between_two_parts_is_not_glued_together(server):
    other = bytes(reversed(CONTENT))

    def change(server):
        server.content, server.tag = other, '"2"'

    server.cuts = [1_000_000, change]
    found = get(entry(server, sha256=""))
    assert found.path.read_bytes() == other
    assert server.asked[1]["If-Range"] == '"1"'


def test_a_server_without_ranges_starts_anew(server):
    server.cuts, server.ranges = [1_000_000, 10], False
    assert get(entry(server)).path.read_bytes() == CONTENT
    assert server.asked[1]["Range"] == "bytes=1000000-"


def test_another_part_than_the_one_asked_for_is_not_appended(server):
    server.cuts, server.shift = [1_000_000], 5
    assert get(entry(server)).path.read_bytes() == CONTENT
    assert [h.get("Range") for h in server.asked] == [None, "bytes=1000000-", None]


def test_without_a_length_only_the_checksum_can_tell(server, weights_folder):
    server.length, server.cuts = False, [1_000_000]
    with pytest.raises(WeightsError, match="wanted sha256"):
        get(entry(server))
    assert names(weights_folder) == []
    assert get(entry(server)).path.read_bytes() == CONTENT


def test_the_next_run_goes_on_when_a_checksum_tells_whether_it_fits(server, weights_folder):
    server.cuts = [1_000_000, 10]
    with pytest.raises(
        WeightsError, match="2 attempts failed, the last by: the connection closed after 1000010 of 2560000"
    ):
        get(entry(server), attempts=2)
    assert names(weights_folder) == [".net.pth.part"]
    assert get(entry(server)).path.read_bytes() == CONTENT
    assert server.asked[2]["Range"] == "bytes=1000010-"
    assert names(weights_folder) == ["net.pth"]


def test_the_next_run_starts_anew_when_nothing_would_tell(server, weights_folder):
    server.cuts = [1_000_000]
    with pytest.raises(WeightsError, match="1 attempts failed"):
        get(entry(server, sha256=""), attempts=1)
    assert names(weights_folder) == []
    get(entry(server, sha256=""))
    assert "Range" not in server.asked[1]


@pytest.mark.parametrize("part", [CONTENT + b"too much", b"of another file", CONTENT])
def test_a_part_that_does_not_fit_costs_one_run_at_most(server, weights_folder, part):
    weights_folder.mkdir()
    (weights_folder / ".net.pth.part").write_bytes(part)
    if part == b"of another file":
        with pytest.raises(WeightsError, match="wanted sha256"):
            get(entry(server))
    assert get(entry(server)).path.read_bytes() == CONTENT
    assert names(weights_folder) == ["net.pth"]


@pytest.mark.parametrize(("status", "tries"), [(404, 1), (403, 1), (410, 1), (503, 3), (429, 3)])
def test_a_server_that_does_not_give_it(server, weights_folder, status, tries):
    server.status = status
    with pytest.raises(
        WeightsError, match=rf"cannot fetch 'net' from {server.url}: .*{'' if tries > 1 else status}"
    ) as caught:
        get(entry(server))
    assert str(weights_folder / "net.pth") in str(caught.value)
    assert "--weights FILE" in str(caught.value)
    assert len(server.asked) == tries
    assert names(weights_folder) == []


def test_a_server_that_recovers(server):
    server.status = 503
    server.cuts = [None, lambda server: setattr(server, "status", 200)]
    assert get(entry(server)).state == "verified"
    assert len(server.asked) == 2


def test_no_server_at_all(weights_folder):
    with serving() as server:
        pass
    with pytest.raises(WeightsError, match=r"3 attempts failed, the last by: .*refused"):
        get(entry(server))
    assert names(weights_folder) == []


def test_redirects_are_followed_within_the_web_only(server, tmp_path):
    with serving() as front:
        front.status, front.location = 302, server.url
        assert get(entry(front)).path.read_bytes() == CONTENT
        secret = tmp_path / "secret"
        secret.write_bytes(CONTENT)
        for target in (f"file://{secret}", "ftp://127.0.0.1/net.pth"):
            front.location = target
            with pytest.raises(WeightsError, match=r"attempts failed|server says 302"):
                get(entry(front, file=f"other{len(target)}"))


def test_https_never_falls_back_to_http():
    from urllib.error import URLError
    from urllib.request import Request

    from extract.downloads import _Redirects

    request = Request("https://example.org/net.pth")
    with pytest.raises(URLError, match="redirects from https to http://"):
        _Redirects().redirect_request(request, io.BytesIO(), 302, "Found", {}, "http://example.org/net.pth")
    after = _Redirects().redirect_request(request, io.BytesIO(), 302, "Found", {}, "https://cdn.example.org/net.pth")
    assert after.full_url == "https://cdn.example.org/net.pth"


def test_only_web_addresses_are_fetched(tmp_path):
    (tmp_path / "net.pth").write_bytes(CONTENT)
    with pytest.raises(WeightsError, match="only http and https"):
        get(WeightFile("net", f"file://{tmp_path}/net.pth", "a net", "MIT"))


# -- nobody publishes a checksum --------------------------------------------------------------------------------------


def test_the_first_download_is_remembered_and_compared(server, weights_folder):
    unknown = entry(server, sha256="")
    found = get(unknown)
    assert (found.state, found.sha256) == ("unpublished", SHA)
    assert names(weights_folder) == ["net.pth", "net.pth.json"]
    note = json.loads(note_of(unknown).read_text())
    assert note == {"sha256": SHA, "size": len(CONTENT), "url": server.url}
    assert state_of(unknown) == ("as first", f"sha256 {SHA}")

    found.path.write_bytes(CONTENT[:-1])
    assert state_of(unknown)[0] == "WRONG"
    assert get(unknown).path.read_bytes() == CONTENT  # the file is mended from the web

    found.path.unlink()
    server.content = CONTENT + b"!"
    with pytest.raises(WeightsError, match=r"wanted sha256 .*to trust the new one delete .*net\.pth\.json"):
        get(unknown)
    note_of(unknown).unlink()
    assert get(unknown).path.read_bytes() == CONTENT + b"!"


def test_a_file_put_there_by_hand_is_taken_as_it_is(server, weights_folder):
    weights_folder.mkdir()
    (weights_folder / "net.pth").write_bytes(b"by hand")
    unknown = entry(server, sha256="")
    assert get(unknown).state == "present"
    assert state_of(unknown) == ("unknown", f"sha256 {hashlib.sha256(b'by hand').hexdigest()}")
    assert state_of(entry(server))[0] == "WRONG"


@pytest.mark.parametrize(
    ("content", "size", "message"),
    [
        (b"<html>Please log in</html>", None, "a web page"),
        (b"", None, "an empty file"),
        (CONTENT, 2_000_000, "wanted about 2000000 bytes, found 2560000"),
    ],
)
def test_what_cannot_be_it_is_refused_even_so(server, weights_folder, content, size, message):
    server.content = content
    with pytest.raises(WeightsError, match=message):
        get(entry(server, sha256="", size=size))
    assert names(weights_folder) == []


def test_a_note_that_cannot_be_read_is_an_error(server, weights_folder):
    unknown = entry(server, sha256="")
    get(unknown)
    note_of(unknown).write_text("{}")
    with pytest.raises(WeightsError, match=r"net\.pth\.json cannot be read.*delete it"):
        state_of(unknown)


# -- interrupted ------------------------------------------------------------------------------------------------------


def test_ctrl_c_keeps_what_was_fetched(server, weights_folder, monkeypatch):
    import extract.downloads as downloads

    read, chunks = downloads._chunk_of, []

    def interrupted(answer):
        if len(chunks) == 2:
            raise KeyboardInterrupt
        chunks.append(read(answer))
        return chunks[-1]

    with monkeypatch.context() as patch:
        patch.setattr(downloads, "_chunk_of", interrupted)
        with pytest.raises(KeyboardInterrupt):
            get(entry(server))
    assert names(weights_folder) == [".net.pth.part"]
    assert get(entry(server)).path.read_bytes() == CONTENT
    assert server.asked[1]["Range"] == f"bytes={sum(map(len, chunks))}-"


def test_what_a_killed_process_left_is_swept(server, weights_folder):
    from data.files import temporary_name

    weights_folder.mkdir()
    left = temporary_name(weights_folder / "net.pth").name.split(".")
    left[-2] = "999999999"  # no such process
    (weights_folder / ".".join(left)).write_bytes(b"half")
    get(entry(server))
    assert names(weights_folder) == ["net.pth"]


def test_two_processes_at_once_leave_one_whole_file(server, weights_folder):
    weights_folder.mkdir()
    (weights_folder / ".net.pth.part").write_bytes(CONTENT[:1000])
    code = (
        "from extract.catalogue import WeightFile; from extract.downloads import fetch;"
        f"print(fetch(WeightFile('net', {server.url!r}, 'a net', 'MIT', sha256={SHA!r})).sha256)"
    )
    running = [subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, stdout=subprocess.PIPE) for _ in range(2)]
    assert [process.communicate()[0].decode().strip() for process in running] == [SHA, SHA]
    assert names(weights_folder) == ["net.pth"]
    assert len([h for h in server.asked if h.get("Range") == "bytes=1000-"]) <= 1
