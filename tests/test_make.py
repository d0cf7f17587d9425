"""The Makefile: its verbs, what each takes, and that nothing a person types is run."""

import json
import os
import re
import subprocess

import pytest
from conftest import ROOT

from prototxt import generate
from prototxt.records import methods, trunks
from tools import experiment, verbs

HOSTILE = '\'; touch pwned; "$(touch pwned)" `touch pwned` $(shell touch pwned) ${TEST} $$HOME \\\n\ttouch pwned #'
RECORD = """#!/usr/bin/env python3
import json, os, sys
scratch = [os.environ["SCRATCH"]] if "SCRATCH" in os.environ else []
print(json.dumps(sys.argv[1:] + scratch), file=open("calls", "a"))
"""


@pytest.fixture
def home(tmp_path):
    """A folder with the Makefile, whose commands write down what they are called with."""
    (tmp_path / "tools").mkdir()
    (tmp_path / ".venv/bin").mkdir(parents=True)
    (tmp_path / "Makefile").symlink_to(ROOT / "Makefile")
    (tmp_path / "tools/verbs.py").symlink_to(ROOT / "tools/verbs.py")
    for name in ("tools/env.sh", ".venv/bin/python"):
        (tmp_path / name).write_text(RECORD)
        (tmp_path / name).chmod(0o755)
    return tmp_path


def make(home, *arguments, **environment):
    """(status and what make said, the calls of the commands) of `make` with these arguments."""
    (home / "calls").write_text("")
    environment = {**os.environ, **environment}
    done = subprocess.run(["make", *arguments], cwd=home, text=True, capture_output=True, timeout=60, env=environment)
    return done, [json.loads(line) for line in (home / "calls").read_text().splitlines()]


def test_every_verb_is_in_both_places_and_takes_what_its_help_says():
    makefile = (ROOT / "Makefile").read_text()
    helped = dict(re.findall(r"^([a-z0-9-]+):.*?## (.*)$", makefile, re.MULTILINE))
    assert {*helped, "help"} == set(verbs.VERBS)
    for verb, text in helped.items():
        assert set(re.findall(r"\[([A-Z_]+)=", text)) <= set(verbs.VERBS[verb]), verb
    assert {name for names in verbs.VERBS.values() for name in names} == set(verbs.VARIABLES)
    train = set(re.findall(r"\[([A-Z_]+)=", helped["train"]))
    assert train == set(verbs.VERBS["train"]) - {"MIRROR"}
    assert tuple(sorted(methods())) == verbs.METHODS and tuple(trunks()) == verbs.NETS
    assert generate.SETS == verbs.PAPER and tuple(map(str, generate.SIZES)) == verbs.SIZES


def test_help_begins_with_what_most_come_for(home):
    done, calls = make(home, "help")
    assert done.returncode == 0 and calls == []
    assert re.findall(r"^  make (\S+)", done.stdout, re.MULTILINE)[:2] == ["train", "demo"]


@pytest.mark.parametrize("name", sorted(verbs.VARIABLES))
def test_nothing_typed_is_run(home, name):
    """Neither by a shell nor by make, once or twice: the text arrives as it was typed, or is refused."""
    verb = next(verb for verb, names in verbs.VERBS.items() if name in names)
    required = [f"{other}=x" for other in verbs.REQUIRED.get(verb, ()) if other != name]
    done, calls = make(home, verb, f"{name}={HOSTILE}", *required)
    assert not list(home.rglob("pwned")), done.stderr
    if done.returncode:
        assert verbs.VARIABLES[name][0] and f"{name}=" in done.stderr and calls == [], done.stderr
    else:
        words = [word for call in calls for word in call]
        assert HOSTILE in words or f"{name}={HOSTILE}" in words


def test_variables_of_the_environment_are_none_of_ours(home):
    done, calls = make(home, "demo", NAME="someone", TEST="1", SEED="7", GPU="$(shell touch pwned)", METHOD="none")
    assert done.returncode == 0 and calls == [["--quiet"], ["tools/experiment.py", "demo"]], done.stderr


@pytest.mark.parametrize(
    "call, named",
    [
        ("train-sop RECIPE=authors", "RECIPE="),
        ("train-cub RECIPE=mine", "RECIPE=mine"),
        ("train-cub DIM=65", "DIM=65"),
        ("demo-all DIMS=64,65", "65"),
        ("reproduce-cub SEED=2", "SEED="),
        ("ablation-cub METHODS=lifted", "METHODS="),
        ("train DATA=x NAME=y BATCH=32", "BATCH="),
        ("train DATA=x NAME=y MIRRORED=No", "MIRRORED=No"),
        ("train DATA=x NAME=y METHOD=pool5", "pool5"),
        ("train DATA=x NAME=y TEST=2", "TEST=2"),
        ("train DATA=x NAME=y ITERS=0", "ITERS=0"),
        ("train DATA=x NAME=y RUN=a/b", "RUN=a/b"),
        ("train DATA=x NAME=y ITER=3", "ITERS"),
        ("train DATA=x", "NAME="),
        ("train DATA=x NAME=", "NAME="),
        ("demo METHOD=pool5", "pool5"),
        ("demo-all METHODS=lifted,pool5", "pool5"),
        ("demo PYCAFFE=/x", "PYCAFFE="),
        ("env demo GPU=1", "make env GPU="),
        ("reproduce-cub SEEDS=1,,2", "SEEDS=1,,2"),
        ("reproduce-cub METHODS=lifted,other", "METHODS=lifted,other"),
    ],
)
def test_what_a_verb_does_not_take_is_refused_before_anything_is_built(home, call, named):
    done, calls = make(home, *call.split())
    assert done.returncode and named in done.stderr and calls == [] and "Traceback" not in done.stderr


def test_what_a_verb_takes_arrives(home):
    for call in ("train DATA=x NAME=y DIM=32 SAVE_MINUTES=5 KEEP=3", "train-cub METHOD=pool5 GPU=0", "reproduce-cub SEEDS=1,2"):
        verb, *words = call.split()
        done, calls = make(home, verb, *words)
        assert done.returncode == 0 and calls == [["--quiet"], ["tools/experiment.py", verb, *sorted(words)]], done.stderr
    _, calls = make(home, "train-cub", "report-cub", "SEED=2", "ITERS=5")  # each takes its own of what is for both
    assert [call[1] for call in calls[1:]] == ["train-cub", "report-cub"]
    assert make(home, "env", "GPU=1", "CUDNN=")[1] == [["--gpu", "1", "--cudnn", ""]]
    assert make(home, "train-demo", "GPU=0")[1][0] == ["--quiet"]  # a GPU's number there, not a build with CUDA


def test_options_of_a_step(monkeypatch):
    """0 is a number, not an option that was left out; and own images get all that was typed."""
    called = []

    class Process:
        def __init__(self, command, env):
            called.append(command[1:])

        def wait(self):
            return 0

    monkeypatch.setattr(experiment.subprocess, "Popen", Process)
    experiment.step("x.py", "word", gpu=0, seed=None, skip_unreadable=True, no_mirror=False, baseline=["a=1", "b=2"])
    assert called.pop() == ["x.py", "word", "--gpu=0", "--skip-unreadable", "--baseline=a=1", "--baseline=b=2"]
    given = {name: "1" for name in verbs.VERBS["train"] if name not in ("MIRRORED", "UNREADABLE", "GPU", "MIRROR")}
    experiment.do("train", {**given, "MIRRORED": "no", "UNREADABLE": "skip"})
    options = {word.split("=")[0] for word in called.pop()[1:]}
    assert {"--images", "--iterations", "--no-mirror", "--skip-unreadable", "--keep", "--save-minutes", "--again"} <= options
    assert len(options) == len(given) + 3


@pytest.mark.parametrize("flags, jobs", [("", "1"), ("s", "1"), (" -j4 --jobserver-auth=3,4", "4"), ("-j2", "2")])
def test_jobs_of_a_sweep(monkeypatch, flags, jobs):
    called = {}
    monkeypatch.setattr(experiment, "step", lambda script, **options: called.update(options))
    monkeypatch.setenv("MAKEFLAGS", flags)
    experiment.sweep(experiment.Demo("demo", {"GPU": "0", "ITERS": "5", "MINUTES": "9"}), "lifted", "64", "1,2")
    assert str(called["jobs"]) == jobs and called["with"] == ["ITERS=5", "GPU=0"] and called["minutes"] == "9"
