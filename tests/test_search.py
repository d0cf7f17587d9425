"""Searching a folder of images: what is nearest, what changes in the folder, and what is missing, damaged or interrupted."""

import io
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
import tomllib
import unicodedata
import urllib.request
from pathlib import Path

import faiss
import numpy as np
import pytest
from conftest import ROOT, draw_images, tool
from PIL import Image
from test_model_folder import agree, drawn, make_model, make_set, random_weights, spoil

from data_prep.files import locked
from tools import model_folder, search, search_index
from tools.model_folder import Embedder, write_model
from tools.search_index import list_images, read_index, shown, thumbnail, update_index


@pytest.fixture(scope="module")
def model(small_set, tmp_path_factory):
    return make_model(tmp_path_factory.mktemp("search") / "runs" / "small" / "lifted_8" / "seed1", small_set)


@pytest.fixture(scope="module")
def embedder(model):
    return Embedder(model)


@pytest.fixture
def photos(tmp_path):
    """12 images in 3 folders."""
    return draw_images(tmp_path / "photos", 3, 4)


@pytest.fixture
def home(tmp_path):
    return tmp_path / "index"


def call(command, *arguments, **options):
    return tool("tools/search.py", command, *arguments, **options)


def edit(home, **change):
    """Change index.json as somebody does who knows how its own SHA-256 is made."""
    record = {**json.loads((home / "index.json").read_text()), **change}
    record.pop("sha256", None)
    (home / "index.json").write_text(json.dumps(search_index.signed(record)))


def paths_of(index):
    return sorted(file.path for file in index.files.values())


def check(index, embedder):
    """Each id has the embedding of its own file, and what is on disk is what is in memory."""
    again = read_index(index.home)
    assert again.files == index.files and again.next_id == index.next_id and again.complete
    for number in index.files:
        expected = embedder.embed([embedder.load(index.path_of(number))])[0]
        np.testing.assert_array_equal(again.embedding(number), expected)
    assert sorted(path.name.split("-")[0] for path in index.home.iterdir()) == [".lock", "index.json", "vectors"]


# --- what is nearest -------------------------------------------------------------------------------------------------


def test_nearest_are_those_of_a_plain_search(photos, home, embedder):
    index, counts, unreadable = update_index(home, photos, embedder)
    assert counts == {"new": 12, "changed": 0, "gone": 0, "as before": 0} and not unreadable
    check(index, embedder)
    paths = sorted(photos.rglob("*.png"))
    every = embedder.embed([embedder.load(path) for path in paths]).astype(np.float64)
    query = embedder.embed(drawn(1, 16))[0]
    distances = np.sqrt(((every - query) ** 2).sum(axis=1))
    order = np.argsort(distances)
    found = index.nearest(query, 5)
    assert [one.path for one in found] == [str(paths[row].relative_to(photos)) for row in order[:5]]
    np.testing.assert_allclose([one.distance for one in found], distances[order[:5]], rtol=1e-12)
    assert len(index.nearest(query, 1000)) == 12


def test_identical_images_are_both_there_at_distance_zero(photos, home, embedder):
    update_index(home, photos, embedder)
    (photos / "another name.png").write_bytes((photos / "class001" / "2.png").read_bytes())
    index, _, _ = update_index(home, photos, embedder)
    (found,) = search.search(embedder, index, [photos / "class001" / "2.png"], 3)
    assert [(one.path, one.distance) for one in found[1][:2]] == [("another name.png", 0), ("class001/2.png", 0)]
    assert found[1][2].distance > 0
    assert index.files[found[2]].path == "class001/2.png", "the copy is not the query itself"


def test_one_image_and_none(tmp_path, home, model, embedder):
    (tmp_path / "photos" / ".hidden").mkdir(parents=True)
    Image.new("RGB", (9, 9)).save(tmp_path / "photos" / ".hidden" / "a.png")
    Image.new("RGB", (9, 9)).save(tmp_path / "photos" / ".hidden.png")
    (tmp_path / "photos" / "list.txt").write_text("no image")
    done = call("index", tmp_path / "photos", "--model", model, "--index", home)
    assert done.returncode == 1 and "photos: no images found; expected .bmp, .gif" in done.stderr and not home.exists()
    done = call("index", tmp_path / "none", "--model", model, "--index", home)
    assert done.returncode == 1 and "none: no such folder" in done.stderr and not home.exists()
    Image.fromarray(drawn(1, 20)[0].transpose(1, 2, 0)).save(tmp_path / "photos" / "one.webp", lossless=True)
    update_index(home, tmp_path / "photos", embedder)
    done = call("query", tmp_path / "photos" / "one.webp", "--index", home, "--top", "7")
    assert done.returncode == 0, done.stderr
    assert "nearest of 1 images" in done.stdout and "   1      0.0000  one.webp  (the query itself)\n" in done.stdout


# --- the folder changes ----------------------------------------------------------------------------------------------


def test_what_is_new_changed_and_gone(photos, home, embedder, monkeypatch):
    before, _, _ = update_index(home, photos, embedder)
    ids = {file.path: number for number, file in before.files.items()}
    (photos / "class000" / "0.png").unlink()
    (photos / "class001" / "1.png").write_bytes((photos / "class002" / "1.png").read_bytes())
    draw_images(photos / "more" / "below", 1, 2, seed=9)
    loaded = []
    monkeypatch.setattr(embedder, "load", lambda path, load=embedder.load: loaded.append(path) or load(path))
    index, counts, _ = update_index(home, photos, embedder)
    assert counts == {"new": 2, "changed": 1, "gone": 1, "as before": 10}
    assert sorted(str(path.relative_to(photos)) for path in loaded) == [
        "class001/1.png", "more/below/class000/0.png", "more/below/class000/1.png"]  # fmt: skip
    check(index, embedder)
    assert "class000/0.png" not in paths_of(index)
    kept = {path: number for path, number in ids.items() if path not in ("class000/0.png", "class001/1.png")}
    assert {file.path: number for number, file in index.files.items()}.items() > kept.items()
    fresh = set(index.files) - set(kept.values())
    assert min(fresh) > max(ids.values()), "an id came to mean another image"

    def never(*_):
        raise AssertionError("written again")

    monkeypatch.setattr(search_index.Index, "save", never)
    assert update_index(home, photos, embedder)[1] == {"new": 0, "changed": 0, "gone": 0, "as before": 13}
    for path in photos.rglob("*.png"):
        path.unlink()
    with pytest.raises(ValueError, match="no images found"):  # an unmounted disk does not empty an index
        update_index(home, photos, embedder)
    assert len(read_index(home).files) == 13


def test_a_name_in_another_unicode_form_is_the_same_name(photos, home, embedder, monkeypatch):
    """A Mac writes é as two letters (NFD): an image that only this was done to is not another one."""
    composed, decomposed = (unicodedata.normalize(form, "caf\u00e9") for form in ("NFC", "NFD"))
    (photos / "class000").rename(photos / composed)
    (photos / composed / "0.png").rename(photos / composed / f"{composed}.png")
    before, _, _ = update_index(home, photos, embedder)
    (photos / composed).rename(photos / decomposed)
    (photos / decomposed / f"{composed}.png").rename(photos / decomposed / f"{decomposed}.png")
    with monkeypatch.context() as patched:
        patched.setattr(embedder, "load", None)
        index, counts, _ = update_index(home, photos, embedder)
    assert counts == {"new": 0, "changed": 0, "gone": 0, "as before": 12} and before.files.keys() == index.files.keys()
    assert f"{decomposed}/{decomposed}.png" in paths_of(index) and {*map(index.state_of, index.files)} == {"there"}
    check(index, embedder)


def test_two_names_that_look_the_same(photos, home, model, embedder):
    """Both are files, so both are searched, and the person is told of them."""
    for form in ("NFC", "NFD"):
        shutil.copy(photos / "class000" / "0.png", photos / unicodedata.normalize(form, "caf\u00e9.png"))
    done = call("index", photos, "--model", model, "--index", home)
    assert done.returncode == 0 and "14 new" in done.stdout and "look the same" in done.stdout, done.stdout + done.stderr
    assert update_index(home, photos, embedder)[1]["as before"] == 14
    (photos / "caf\u00e9.png").unlink()
    done = call("index", photos, "--model", model, "--index", home)
    assert "1 gone, 13 as before" in done.stdout and "look the same" not in done.stdout


def test_unreadable_images_are_named(photos, home, model):
    for number in range(12):
        (photos / "class000" / f"damaged{number:02}.jpg").write_bytes(b"no image")
    (photos / "class001" / "1.png").write_bytes((photos / "class001" / "1.png").read_bytes()[:90])
    (photos / "nowhere.png").symlink_to(photos / "not there")
    done = call("index", photos, "--model", model, "--index", home)
    assert done.returncode == 0, done.stderr
    assert "14 images or folders" in done.stdout
    assert "    nowhere.png: No such file or directory\n    class000/damaged00.jpg: is no image" in done.stdout
    assert "... and 4 more; --all lists them" in done.stdout and "index: 11 images (11 new" in done.stdout
    done = call("index", photos, "--model", model, "--index", home, "--all")
    assert "    class001/1.png: " in done.stdout and "more" not in done.stdout and "(0 new" in done.stdout
    for path in [*photos.rglob("?.png")]:
        path.unlink()
    done = call("index", photos, "--model", model, "--index", home)
    assert done.returncode == 1 and "of its 12 images" in done.stderr and "nowhere.png" in done.stderr


def test_strange_names(tmp_path, home, model):
    photos = os.fsencode(tmp_path) + b"/photos"
    os.mkdir(photos)
    names = [
        b"with space.png",
        b"new\nline.png",
        b"not utf-8 \xff\xe9.png",
        b"-dash.png",
        b"$math_$.png",
        "日本語.png".encode(),
        b"UP.PNG",
    ]
    for name, image in zip(names, drawn(len(names), 20)):
        with open(photos + b"/" + name, "wb") as stream:
            Image.fromarray(image.transpose(1, 2, 0)).save(stream, "PNG")
    done = call("index", tmp_path / "photos", "--model", model, "--index", home)
    assert done.returncode == 0 and "7 images (7 new" in done.stdout, done.stderr
    for name in names:
        place = tmp_path / "sheet.png"
        done = call("query", "--index", home, "--sheet", place, "--", os.fsdecode(name), cwd=photos)
        assert done.returncode == 0 and not done.stderr, done.stderr
        assert f"   1      0.0000  {shown(os.fsdecode(name))}  (the query itself)\n" in done.stdout
        assert "new\\nline.png" in done.stdout and "not utf-8 \\udcff\\udce9.png" in done.stdout and "日本語.png" in done.stdout
        assert Image.open(place).width > 1000
    done = call("query", "--index", home, "--json", "--", *map(os.fsdecode, names), cwd=photos)
    found = json.loads(done.stdout)
    assert [os.fsencode(one["query"]) for one in found] == names
    assert [os.fsencode(one["nearest"][0]["path"]) for one in found] == [photos + b"/" + name for name in names]
    assert all(one["nearest"][0]["query_itself"] and not one["nearest"][1]["query_itself"] for one in found)


def test_links_that_lead_in_circles(photos, tmp_path):
    (photos / "class000" / "up").symlink_to(photos)
    draw_images(tmp_path / "elsewhere", 1, 1)
    (photos / "linked").symlink_to(tmp_path / "elsewhere")
    assert [path for path in list_images(photos, []) if "class000/0.png" in path] == ["class000/0.png", "linked/class000/0.png"]


def test_a_run_folder_that_has_moved_with_its_index(photos, model, tmp_path):
    copied = Path(shutil.copytree(model, tmp_path / "first"))
    update_index(copied / "index", photos, Embedder(copied))
    moved = copied.rename(tmp_path / "second")
    image = photos / "class000" / "0.png"
    for options in (["--model", moved], ["--index", moved / "index"]):
        done = call("query", image, *options)
        assert done.returncode == 0 and "class000/0.png  (the query itself)" in done.stdout, done.stderr
    (moved / "index").rename(tmp_path / "alone")
    done = call("query", image, "--index", tmp_path / "alone")
    assert done.returncode == 1 and "--model" in done.stderr


def test_images_that_were_removed_after_indexing(photos, home, embedder, tmp_path):
    update_index(home, photos, embedder)
    (photos / "class000" / "1.png").unlink()
    (photos / "class000" / "2.png").write_bytes(b"now something else")
    done = call("query", photos / "class000" / "0.png", "--index", home, "--top", "100", "--sheet", tmp_path / "sheet.png")
    assert done.returncode == 0, done.stderr
    assert "class000/1.png  (no longer there)" in done.stdout and "class000/2.png  (changed since)" in done.stdout
    assert len(done.stdout.splitlines()) == 1 + 12 + 1 and (tmp_path / "sheet.png").stat().st_size > 1000


def test_a_folder_that_has_moved(photos, home, embedder, tmp_path, capsys):
    before, _, _ = update_index(home, photos, embedder)
    other = draw_images(tmp_path / "other", 1, 1)
    with pytest.raises(ValueError, match="is the index of .*photos, not of .*other; name another folder with --index"):
        update_index(home, other, embedder)
    photos.rename(tmp_path / "moved")
    index, counts, _ = update_index(home, tmp_path / "moved", embedder)
    assert "is no longer there; taken to be" in capsys.readouterr().out
    assert counts["as before"] == 12 and index.files == before.files
    check(index, embedder)


# --- interrupted, at the same time -----------------------------------------------------------------------------------


def test_killed_and_called_again(photos, home, model, embedder):
    """SIGKILL while it embeds: what was saved by then is not embedded again."""
    code = ("import sys, time, tools.search_index as s; from tools.model_folder import Embedder; s.BATCH = 2; s.SAVE_SECONDS = 0\n"
            "e = Embedder(sys.argv[1]); embed, calls = e.embed, []\n"
            "e.embed = lambda *a: (calls.append(1), time.sleep(0 if len(calls) < 4 else 100), embed(*a))[2]\n"
            "s.update_index(sys.argv[2], sys.argv[3], e)")  # fmt: skip
    process = subprocess.Popen([sys.executable, "-c", code, str(model), str(home), str(photos)], stderr=subprocess.DEVNULL)
    while not (home / "index.json").exists() or len(read_index(home).files) < 6:
        assert process.poll() is None
        time.sleep(0.02)
    done = call("index", photos, "--model", model, "--index", home)
    assert done.returncode == 1 and "another process" in done.stderr
    process.send_signal(signal.SIGKILL)
    process.wait()
    part = read_index(home)
    assert len(part.files) == 6 and not part.complete
    done = call("query", photos / "class000" / "0.png", "--index", home)
    assert done.returncode == 0 and f"is not complete ({len(part.files)} images); call" in done.stderr
    (home / ".vectors-0000.faiss.partial.faiss").write_bytes(b"left aside")
    (home / "vectors-0000000000000000.faiss").write_bytes(b"of a save that was interrupted before index.json")
    index, counts, _ = update_index(home, photos, embedder)
    assert counts == {"new": 12 - len(part.files), "changed": 0, "gone": 0, "as before": len(part.files)}
    assert index.files.items() > part.files.items()
    check(index, embedder)


@pytest.mark.parametrize("kill_at", ["vectors", "index.json"])
def test_killed_while_saving(photos, home, embedder, monkeypatch, kill_at):
    """Whichever file it was at, the folder holds the old index or the new one."""
    update_index(home, photos, embedder)
    draw_images(photos / "more", 1, 2, seed=9)
    real = search_index.written_aside

    def killed(path):
        if path.name.startswith(kill_at):
            raise KeyboardInterrupt
        return real(path)

    monkeypatch.setattr(search_index, "written_aside", killed)
    with pytest.raises(KeyboardInterrupt):
        update_index(home, photos, embedder)
    assert len(read_index(home).files) == 12
    monkeypatch.undo()
    index, counts, _ = update_index(home, photos, embedder)
    assert counts["new"] == 2
    check(index, embedder)


def test_interrupted_while_embedding(photos, home, embedder, monkeypatch):
    monkeypatch.setattr(search_index, "BATCH", 4)
    calls = []

    def interrupted(*arguments):
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return Embedder.embed(embedder, *arguments)

    monkeypatch.setattr(embedder, "embed", interrupted)
    with pytest.raises(KeyboardInterrupt):
        update_index(home, photos, embedder)
    assert len(read_index(home).files) == 4 and not read_index(home).complete


def test_a_query_while_the_index_is_replaced(photos, home, embedder, monkeypatch):
    old, _, _ = update_index(home, photos, embedder)
    before = (home / "index.json").read_text()
    draw_images(photos / "more", 1, 2, seed=9)
    update_index(home, photos, embedder)
    real, calls = search_index._read_record, []

    def overtaken(path):
        calls.append(path)
        if len(calls) == 1:
            (home / "old.json").write_text(before)
            return real(home / "old.json")
        return real(path)

    monkeypatch.setattr(search_index, "_read_record", overtaken)
    assert len(read_index(home).files) == len(old.files) + 2


# --- other models, damage --------------------------------------------------------------------------------------------


def test_an_index_of_another_model_is_refused(photos, home, model, embedder, tmp_path):
    update_index(home, photos, embedder)
    other = tmp_path / "runs" / "other" / "lifted_8" / "seed2"
    random_weights(model / "deploy.prototxt", other / "model.caffemodel")
    write_model(other, make_set(tmp_path / "other", 16, images="x"), model / "deploy.prototxt")
    for done in (call("index", photos, "--model", other, "--index", home),
                 call("query", photos / "class000" / "0.png", "--model", other, "--index", home)):  # fmt: skip
        assert done.returncode == 1 and "was made by the model small/lifted_8/seed1 (weights " in done.stderr, done.stderr
        assert "not by other/lifted_8/seed2 (weights " in done.stderr and "other mean." in done.stderr
        assert f"tools/search.py index {photos} --model {other} --index {home}" in done.stderr
    assert len(read_index(home).files) == 12


@pytest.mark.parametrize("name", ["index.json", "vectors"])
def test_damaged_index_files(photos, home, embedder, name):
    update_index(home, photos, embedder)
    path = next(home.glob(f"{name}*"))
    content = path.read_bytes()
    for damaged in (b"", content[:-5], content[: len(content) // 2], content[:40] + bytes([content[40] ^ 255]) + content[41:]):
        path.write_bytes(damaged)
        with pytest.raises(ValueError, match=f"{name}.*is damaged.*remove .*index and call `.*tools/search.py index"):
            read_index(home)
    path.unlink()
    with pytest.raises(ValueError, match="there is no index; `" if name == "index.json" else "not there, though index.json"):
        read_index(home)


@pytest.mark.parametrize("change", [
    {"layout": 1}, {"files": [["0", "a", 1]]}, {"files": None}, {"files": [[0, "/etc/passwd", 1, 1]]},
    {"files": [[0, "../a.png", 1, 1]]}, {"next_id": 3}, {"vectors": "../" * 22}, {"model": {}}, {"images": 5}, {"files": []},
    {"files": [[-7, "a.png", 1, 1]]}, {"files": [[0, "a\0.png", 1, 1]]}, {"files": [[0, "\ud800.png", 1, 1]]}, {"images": "a\0"},
    {"model": {"name": "a", "dimensions": -8}}, {"model": {"name": "a", "dimensions": 10**9}},
    {"files": [[0, "a.png", float("inf"), 1]]},
])  # fmt: skip
def test_a_record_that_makes_no_sense(photos, home, embedder, change):
    update_index(home, photos, embedder)
    edit(home, **change)
    with pytest.raises(ValueError, match="index.json: is damaged|does not belong to index.json") as error:
        read_index(home)
    assert "edited" not in str(error.value)
    (home / "index.json").write_text("[" * 100_000 if change.get("layout") else "[]")
    with pytest.raises(ValueError, match="index.json: is damaged"):
        read_index(home)


def test_an_index_that_was_edited_is_refused(photos, home, embedder, tmp_path):
    """One that names another folder would show what is there."""
    update_index(home, photos, embedder)
    record = json.loads((home / "index.json").read_text())
    shutil.copytree(photos, tmp_path / "private", copy_function=shutil.copy2)
    for change in ({"images": str(tmp_path / "private")}, {"files": record["files"][1:]}, {"complete": False}):
        (home / "index.json").write_text(json.dumps({**record, **change}))
        with pytest.raises(ValueError, match="index.json: .*edited"):
            read_index(home)


def vectors_of(ids, dimensions, value=0):
    vectors = faiss.IndexIDMap2(faiss.IndexFlatL2(dimensions))
    vectors.add_with_ids(np.full((len(ids), dimensions), value, np.float32), np.array(ids, np.int64))
    return vectors


@pytest.mark.parametrize("vectors", [vectors_of(range(12), 8, np.nan), vectors_of(range(12), 8, -np.inf),
                                     vectors_of(range(11), 8), faiss.IndexFlatL2(8),
                                     vectors_of(range(12), 9), vectors_of(range(1, 13), 8),
                                     vectors_of([*range(12), 3], 8), b"IxM2 and no more", b""])  # fmt: skip
def test_a_vector_file_that_agrees_and_is_none(photos, home, embedder, vectors):
    update_index(home, photos, embedder)
    content = vectors if isinstance(vectors, bytes) else faiss.serialize_index(vectors).tobytes()
    digest = search_index.hashlib.sha256(content).hexdigest()
    edit(home, vectors=digest)
    (home / f"vectors-{digest[:16]}.faiss").write_bytes(content)
    with pytest.raises(ValueError, match="vectors-.*faiss: does not belong to index.json .*call `.*tools/search.py index"):
        read_index(home)


def test_weights_that_are_not_finite(photos, home, model, tmp_path, capsys):
    shutil.copytree(model, tmp_path / "copy")
    spoil(tmp_path / "copy")
    agree(tmp_path / "copy")
    with pytest.raises(ValueError, match="photos/class000/0.png: its embedding is not finite .12 of 12 images.; did the training"):
        update_index(home, photos, Embedder(tmp_path / "copy"))
    assert not (home / "index.json").exists()


def test_queries_that_cannot_be_read_are_all_named(photos, home, embedder, tmp_path):
    update_index(home, photos, embedder)
    (tmp_path / "text.jpg").write_text("no image")
    done = call("query", photos / "class000" / "0.png", tmp_path / "text.jpg", tmp_path / "none.png", "--index", home)
    assert done.returncode == 1 and not done.stdout
    assert "text.jpg: is no image" in done.stderr and "none.png: No such file" in done.stderr
    done = call("query", photos / "class000" / "0.png")
    assert done.returncode == 1 and "--index" in done.stderr
    (tmp_path / "empty").mkdir()
    done = call("query", photos / "class000" / "0.png", "--model", tmp_path / "empty")
    assert done.returncode == 1 and "tools/search.py index" in done.stderr
    for option, value, says in (("--top", "0", "at least 1"), ("--sheet", "sheet.doc", "must end in .png")):
        done = call("query", "a.png", "--index", home, option, value)
        assert done.returncode == 2 and says in done.stderr


def test_locked_while_another_one_is_at_it(photos, home, embedder):
    with locked(home, "indexing"), pytest.raises(BlockingIOError, match="another process is indexing"):
        update_index(home, photos, embedder)


# --- without Caffe, pictures -----------------------------------------------------------------------------------------


def test_without_caffe(photos, model, tmp_path):
    """As on a machine that has a copy of the model, and no Caffe, no lmdb, no messages of Caffe."""
    for name in (*model_folder.FILES.values(), "model.json"):
        (tmp_path / "copied").mkdir(exist_ok=True)
        shutil.copy(model / name, tmp_path / "copied")
    code = ("import sys, runpy\nclass Block:\n    def find_spec(self, name, path=None, target=None):\n"
            "        if name.split('.')[0] in ('caffe', 'caffe_pb2', 'lmdb', 'pair_batch', 'google', 'skimage'):\n"
            "            raise ImportError('blocked: ' + name)\n"
            "sys.meta_path.insert(0, Block())\nsys.argv = sys.argv[1:]\nimport tools.search_server, tools.model_folder\n"
            "runpy.run_path(sys.argv[0], run_name='__main__')")  # fmt: skip
    command = [sys.executable, "-c", code, str(ROOT / "tools" / "search.py")]
    options = {"text": True, "capture_output": True, "cwd": ROOT}
    done = subprocess.run([*command, "index", str(photos), "--model", str(tmp_path / "copied")], **options)
    assert done.returncode == 0 and "copied/index: 12 images" in done.stdout, done.stderr
    image = str(photos / "class001" / "3.png")
    done = subprocess.run([*command, "query", image, "--model", str(tmp_path / "copied"), "--json"], **options)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)[0]["nearest"][0]["path"] == image
    blocked = subprocess.run([sys.executable, "-c", code.replace("runpy.run", "import caffe\nrunpy.run"), "x"], **options)
    assert "blocked: caffe" in blocked.stderr


@pytest.mark.parametrize("top, rows", [(3, 1), (10, 1), (11, 2), (25, 3)])
def test_a_sheet_has_a_row_for_ten(tmp_path, home, embedder, top, rows, monkeypatch):
    photos = draw_images(tmp_path / "photos", 5, 6)
    (photos / "class000" / "0.png").rename(photos / "class000" / f"{'very long name ' * 15}.png")
    Image.open(photos / "class001" / "1.png").save(photos / "class001" / "1.jpg")
    index, _, _ = update_index(home, photos, embedder)
    queries = [photos / "class001" / "1.png", photos / "class002" / "1.png"]
    drawn_pictures = []
    monkeypatch.setattr(search_index, "thumbnail", lambda path, side: drawn_pictures.append(path) or thumbnail(path, side))
    search.draw_sheet(index, list(search.search(embedder, index, queries, top)), tmp_path / "sheet.png")
    assert len(drawn_pictures) == 2 * (top + 1) and drawn_pictures[0] == queries[0]
    sheet = Image.open(tmp_path / "sheet.png")
    assert sheet.height == pytest.approx(1.65 * 2 * rows * 150, abs=2)
    assert sheet.width == pytest.approx(1.25 * (min(top, 10) + 1) * 150, abs=2)


def test_names_are_shortened_in_the_middle():
    assert search.shorten("short.png") == "short.png" and search.shorten("x" * 15) == "x" * 15
    assert search.shorten("beginning and end.png") == "beginni…end.png" and len(search.shorten("y" * 300)) == 15


@pytest.mark.parametrize("kind", ["jpeg", "bmp", "tiff", "ppm", "png", "gif", "webp"])
def test_a_small_picture_outlives_its_file(tmp_path, kind):
    """Pillow reads pixels when they are asked for, and a thumbnail asks for none where the image is small already."""
    image = Image.fromarray(drawn(1, 24)[0].transpose(1, 2, 0))
    image.save(tmp_path / f"a.{kind}")
    for source in (tmp_path / f"a.{kind}", io.BytesIO((tmp_path / f"a.{kind}").read_bytes())):
        for side in (12, 200):
            assert np.asarray(thumbnail(source, side)).std() > 10


def test_thumbnails(tmp_path):
    image = Image.fromarray(drawn(1, 64)[0].transpose(1, 2, 0)).resize((60, 30))
    image.getexif()[0x0112] = 6
    image.save(tmp_path / "turned.jpg", exif=image.getexif())
    assert thumbnail(tmp_path / "turned.jpg", 20).size == (10, 20)
    assert thumbnail(tmp_path / "turned.jpg", 200).size == (30, 60)
    Image.new("1", (8001, 8001)).save(tmp_path / "large.png")
    with pytest.raises(ValueError, match="8001 x 8001 pixels, more than 64,000,000"):
        thumbnail(tmp_path / "large.png", 20)
    image.save(tmp_path / "page.eps")
    with pytest.raises(OSError, match="cannot identify"):  # its decoder starts another program
        thumbnail(tmp_path / "page.eps", 20)


# --- installed -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """The command and the environment of `pip install .`: what pyproject.toml packs, where no checkout is known."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    home = tmp_path_factory.mktemp("site-packages")
    for name in project["tool"]["hatch"]["build"]["targets"]["wheel"]["only-include"]:
        (home / name).parent.mkdir(exist_ok=True)
        shutil.copy(ROOT / name, home / name)
    module, function = project["project"]["scripts"]["embedding-search"].split(":")
    code = f"import sys; sys.argv[0] = '/bin/embedding-search'; from {module} import {function}; sys.exit({function}())"
    return [sys.executable, "-S", "-c", code], home, project["project"]["optional-dependencies"]["search"]


def test_what_pip_installs_searches_without_a_checkout(installed, photos, model, tmp_path):
    command, home, _ = installed
    libraries = Path(faiss.__file__).parent.parent
    environment = {**os.environ, "PYTHONPATH": f"{home}{os.pathsep}{libraries}"}  # whose .pth files are not read there
    options = {"cwd": tmp_path, "env": environment, "text": True, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    image, place = photos / "class001" / "3.png", tmp_path / "index"
    done = subprocess.run([*command, "query", image, "--index", place], **options)
    assert done.returncode == 1 and "`embedding-search index" in done.stderr, done.stderr
    done = subprocess.run([*command, "index", photos, "--model", model, "--index", place], **options)
    assert done.returncode == 0 and "12 images" in done.stdout, done.stderr
    done = subprocess.run([*command, "query", image, "--index", place, "--sheet", "sheet.png"], **options)
    assert done.returncode == 0 and "class001/3.png  (the query itself)" in done.stdout, done.stderr
    server = subprocess.Popen([*command, "serve", "--index", place, "--port", "0"], **options)
    try:
        with urllib.request.urlopen(server.stdout.readline().split()[0], timeout=30) as answer:
            assert b"Search by image" in answer.read()
    finally:
        server.terminate()
        server.communicate(timeout=30)


def test_what_pip_installs_without_its_libraries_says_how(installed, tmp_path):
    command, home, libraries = installed
    done = subprocess.run([*command, "--help"], cwd=tmp_path, env={"PYTHONPATH": str(home)}, text=True, capture_output=True)
    assert done.returncode == 1 and "pip install" in done.stderr and "[search]" in done.stderr and "Traceback" not in done.stderr
    pinned = {line.split("==")[0].lower() for line in (ROOT / "requirements.txt").read_text().splitlines() if "==" in line}
    assert {re.match("[a-z-]+", library)[0] for library in libraries} <= pinned, "a library that nobody here tries"
