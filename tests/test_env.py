"""The environment: edits that must apply exactly once, and a check that says in words what is wrong."""

import json
import os
import re
import subprocess
import sys

import pytest
from conftest import ROOT, stock_caffe

from tools.caffe_edits import EDITS, Edit, apply_edits


def test_edits_apply_exactly_once(tmp_path):
    (tmp_path / "a.cpp").write_text("one\ntwo\n")
    apply_edits(tmp_path, [Edit("first", "because", "a.cpp", "one", "ONE"), Edit("second", "because", "a.cpp", "two", "TWO")])
    assert (tmp_path / "a.cpp").read_text() == "ONE\nTWO\n"
    for old, message in (("three", "found 0 times"), ("\n", "found 2 times")):
        with pytest.raises(ValueError, match=f"'wrong' must apply exactly once in .*a.cpp, but its text was {message}"):
            apply_edits(tmp_path, [Edit("fine", "because", "a.cpp", "ONE", "1"), Edit("wrong", "because", "a.cpp", old, "x")])
        assert (tmp_path / "a.cpp").read_text() == "ONE\nTWO\n"
    with pytest.raises(ValueError, match="does not exist"):
        apply_edits(tmp_path, [Edit("lost", "because", "b.cpp", "x", "y")])


def test_every_edit_has_a_reason():
    assert EDITS and all(edit.name and edit.reason and edit.old != edit.new for edit in EDITS)
    assert len({edit.name for edit in EDITS}) == len(EDITS)


def test_the_build_says_where_it_came_from():
    record = json.loads((ROOT / ".caffe" / "caffe" / "caffe.json").read_text())
    assert record["origin"].startswith("BVLC/caffe 99bd997") and set(record["edits"]) == {edit.name for edit in EDITS}


def test_second_make_env_changes_nothing():
    before = {path: path.stat().st_mtime_ns for path in (ROOT / ".caffe").rglob("*") if path.name != "lock"}
    done = subprocess.run([ROOT / "tools" / "env.sh"], capture_output=True, text=True, stdin=subprocess.DEVNULL)
    assert done.returncode == 0 and "ready" in done.stdout, done.stderr
    assert {path: path.stat().st_mtime_ns for path in before} == before


def test_stock_binary_after_sourcing_env_sh():
    done = stock_caffe("--version")
    assert done.returncode == 0 and "caffe version 1.0.0" in done.stdout + done.stderr


def check(*paths):
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, [*paths, ROOT]))}
    return subprocess.run([sys.executable, ROOT / "tools" / "check.py"], env=environment, capture_output=True, text=True)


def test_check_on_what_make_env_built():
    done = check()
    assert done.returncode == 0, done.stdout + done.stderr
    for word in ("99bd997", "Python layers: yes", "openblas", "threads", "numpy", "faiss-cpu"):
        assert word in done.stdout
    assert "WRONG" not in done.stdout


@pytest.mark.parametrize(
    "module, message",
    [
        ("", "is not BVLC Caffe: PyPI's package `caffe` is an empty placeholder"),
        ("Net = 1\ndef layer_type_list(): return ['Data']", "was built without Python layers"),
        ("raise ImportError('numpy.core.multiarray failed to import')", "compiled for another numpy than the"),
        ("raise ImportError('libcaffe.so.1.0.0: cannot open shared object file')", "cannot be imported .*libcaffe.so"),
    ],
)
def test_check_says_what_is_wrong(tmp_path, module, message):
    (tmp_path / "caffe").mkdir()
    (tmp_path / "caffe" / "__init__.py").write_text(module)
    done = check(tmp_path)
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert re.search(f"WRONG: .*{message}", done.stdout), done.stdout


def test_without_root_or_sudo_it_prints_the_one_line_to_run(tmp_path):
    """On a machine, faked here by commands on the PATH, where nothing is installed and nobody is root."""
    for name in ("bash", "dirname", "sed", "sort", "grep", "env"):
        (tmp_path / name).symlink_to(f"/usr/bin/{name}")
    for name, body in (("dpkg-query", "exit 1"), ("apt-get", "exit 1"), ("id", "echo 1000")):
        (tmp_path / name).write_text(f"#!/bin/bash\n{body}\n")
        (tmp_path / name).chmod(0o755)
    done = subprocess.run([ROOT / "tools" / "env.sh"], env={"PATH": str(tmp_path)}, capture_output=True, text=True,
                          stdin=subprocess.DEVNULL)  # fmt: skip
    assert done.returncode == 1
    assert re.search(r"apt-get update && apt-get install -y --no-install-recommends make python3 .*libsnappy-dev\n", done.stderr)
    (tmp_path / "dpkg-query").unlink()
    done = subprocess.run([ROOT / "tools" / "env.sh"], env={"PATH": str(tmp_path)}, capture_output=True, text=True)
    assert done.returncode == 1 and "no apt" in done.stderr and "Debian 12" in done.stderr


def test_readme_names_every_make_target():
    targets = re.findall(r"^([a-z0-9-]+):.*## ", (ROOT / "Makefile").read_text(), re.MULTILINE)
    readme = (ROOT / "README.md").read_text()
    assert len(targets) > 5 and [target for target in targets if f"| `make {target}" not in readme] == []
