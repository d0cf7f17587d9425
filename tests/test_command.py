"""How commands begin and end: what importing them leaves alone, Ctrl+C while they import, and another Python than ours."""

import os
import signal
import subprocess
import sys

import pytest
from conftest import ROOT

NOTEBOOK = """
import io, os, signal, sys
sys.stdout, sys.argv = io.StringIO(), ["notebook"]  # a stream without `reconfigure`, as a notebook's
def state():
    handlers = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    return sys.excepthook, list(sys.path), os.getcwd(), handlers
before = state()
import data_prep.command, data_prep.build_set, tools.search, tools.search_server, tools.search_picture
import tools.model_folder, tools.check_report, tools.export_onnx
assert state() == before, (before, state())
import matplotlib
assert matplotlib.rcParams._get("backend") is matplotlib.rcsetup._auto_backend_sentinel, "a notebook's figures are drawn nowhere"
assert not sys.stdout.getvalue()
"""


def test_importing_does_nothing():
    done = subprocess.run([sys.executable, "-c", NOTEBOOK], cwd=ROOT, text=True, capture_output=True, timeout=120)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("script", ["tools/search.py", "data_prep/batch_plan.py"])
def test_interrupted_while_large_libraries_are_imported(script, tmp_path):
    """One line and 130, no traceback."""
    (tmp_path / "numpy.py").write_text("import os, signal, time\nos.kill(os.getpid(), signal.SIGINT)\ntime.sleep(60)\n")
    done = subprocess.run(
        [sys.executable, str(ROOT / script), "--help"],
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
        text=True,
        capture_output=True,
        timeout=60,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # it is ignored where tests run in the background
    )
    assert done.returncode == 130 and "interrupted" in done.stderr and "Traceback" not in done.stderr, done.stderr


@pytest.mark.parametrize(
    "script, knows_checkout",
    [
        *((script, False) for script in ("tools/train.py", "data_prep/build_set.py", "prototxt/generate.py")),
        ("tools/train.py", True),
    ],
)
def test_another_python_names_the_command_to_type(script, knows_checkout, tmp_path):
    """A Python without our libraries, and one that knows this folder besides."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT) if knows_checkout else ""}
    command = [sys.executable, "-S", str(ROOT / script), "--help"]
    done = subprocess.run(command, env=environment, cwd=tmp_path, text=True, capture_output=True, timeout=60)
    assert done.returncode == 1 and ".venv/bin/python" in done.stderr and "make env" in done.stderr, done.stderr
    assert not knows_checkout or "Traceback" not in done.stderr
