"""The environment: edits that must apply exactly once, and a check that says in words what is wrong."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from conftest import ROOT, stock_caffe, tool, write_solver

from tools import cpu, cuda, env
from tools.caffe_edits import EDITS, Edit, apply_edits, edits_for
from tools.device import loaded
from tools.env import Choice, Failure, choose
from tools.given_caffe import find_binary, find_pycaffe, link_pycaffe


def test_edits_apply_exactly_once(tmp_path):
    (tmp_path / "a.cpp").write_text("one\ntwo\n")
    apply_edits(tmp_path, [Edit("first", "because", "a.cpp", "one", "ONE"), Edit("second", "because", "a.cpp", "two", "TWO")])
    assert (tmp_path / "a.cpp").read_text() == "ONE\nTWO\n"
    for old, times in (("three", 0), ("\n", 2)):
        with pytest.raises(ValueError, match=f"'wrong'.*a.cpp.* {times} times"):
            apply_edits(tmp_path, [Edit("fine", "because", "a.cpp", "ONE", "1"), Edit("wrong", "because", "a.cpp", old, "x")])
        assert (tmp_path / "a.cpp").read_text() == "ONE\nTWO\n"
    with pytest.raises(ValueError, match="does not exist"):
        apply_edits(tmp_path, [Edit("lost", "because", "b.cpp", "x", "y")])


def test_edits_that_others_have_made_already(tmp_path):
    """In a checkout of one's own an edit is passed over whose new text is there, also where that holds the old one."""
    edits = [
        Edit("guard", "because", "a.cpp", "one\n", "#if 1\none\n#endif\n"),
        Edit("other", "because", "a.cpp", "x", "y", mended="z"),
    ]
    (tmp_path / "a.cpp").write_text("one\nz\n")
    for _ in range(2):
        apply_edits(tmp_path, edits, mended_allowed=True)
        assert (tmp_path / "a.cpp").read_text() == "#if 1\none\n#endif\nz\n"
    with pytest.raises(ValueError, match="'other'"):
        apply_edits(tmp_path, edits)


def test_a_checkout_whose_python_files_are_others(tmp_path):
    """It is built as it is, with its own; C++ that an edit does not fit still stops the build."""
    for name in ("python", "src"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "a").write_text("other")
    in_python, in_cpp = (Edit("edit", "because", f"{name}/a", "old", "new") for name in ("python", "src"))
    apply_edits(tmp_path, [in_python], mended_allowed=True)
    for edit, mended_allowed in ((in_python, False), (in_cpp, True)):
        with pytest.raises(ValueError, match="'edit'"):
            apply_edits(tmp_path, [edit], mended_allowed=mended_allowed)


def test_edits_of_a_kind_of_build():
    """A plain build of the package that is fetched needs none of CUDA's, of BVLC's tree or of speed; a record names each."""
    assert len({edit.name for edit in EDITS}) == len(EDITS)
    plain = edits_for()
    assert "protobuf-total-bytes-limit" in {edit.name for edit in plain}
    for kind, name in (("cuda", "cuda-13-timeout"), ("cudnn", "cudnn-8-version"), ("checkout", "boost-python-name"),
                       ("tuned", "max-pooling")):  # fmt: skip
        more = {edit.name for edit in edits_for(kind)} - {edit.name for edit in plain}
        assert name in more and not any(edit.name in more for edit in edits_for(*{"cuda", "cudnn", "checkout", "tuned"} - {kind}))


@pytest.mark.skipif(not (ROOT / ".caffe/downloads").is_dir(), reason="the Caffe source package was not fetched")
def test_every_edit_applies_to_the_source_that_is_fetched(tmp_path):
    (archive,) = (ROOT / ".caffe/downloads").glob("*.orig.tar.gz")
    files = sorted({edit.file for edit in EDITS})
    subprocess.run(["tar", "xzf", archive, "-C", tmp_path, *files], check=True)  # BVLC's tree, without Debian's patches
    apply_edits(tmp_path, EDITS)
    assert all(edit.new in (tmp_path / edit.file).read_text() for edit in EDITS)


def test_the_build_says_where_it_came_from():
    record = json.loads((ROOT / ".caffe" / "caffe" / "caffe.json").read_text())
    if (ROOT / ".caffe" / "choice.json").exists() and json.loads((ROOT / ".caffe" / "choice.json").read_text())["pycaffe"]:
        assert record["origin"].startswith("pycaffe of /")
    else:
        assert "affe" in record["origin"] and {edit.name for edit in edits_for()} <= set(record["edits"])


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
    origin = json.loads((ROOT / ".caffe/caffe/caffe.json").read_text())["origin"]
    for word in (origin, "Python layers: yes", "openblas", "threads", "numpy", "faiss-cpu"):
        assert word in done.stdout
    assert "WRONG" not in done.stdout


@pytest.mark.parametrize(
    "module, message",
    [
        ("", "placeholder"),
        ("Net = 1\ndef layer_type_list(): return ['Data']", "without Python layers"),
        ("raise ImportError('numpy.core.multiarray failed to import')", "another numpy"),
        ("raise ImportError('libcaffe.so.1.0.0: cannot open shared object file')", "libcaffe.so"),
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
    (tmp_path / "tools").mkdir()
    script = shutil.copy(ROOT / "tools" / "env.sh", tmp_path / "tools")  # in a checkout where no Caffe was chosen
    done = subprocess.run([script], env={"PATH": str(tmp_path)}, capture_output=True, text=True, stdin=subprocess.DEVNULL)
    assert done.returncode == 1
    assert re.search(r"apt-get update && apt-get install -y --no-install-recommends make python3 .*libsnappy-dev\n", done.stderr)
    (tmp_path / "dpkg-query").unlink()
    done = subprocess.run([script], env={"PATH": str(tmp_path)}, capture_output=True, text=True)
    assert done.returncode == 1 and "no apt" in done.stderr and "Debian 12" in done.stderr


# --- a checkout that is moved, copied, changed or stopped ----------------------------------------------------------------


def test_a_copied_checkout_runs_its_own_code(tmp_path, monkeypatch, capsys):
    def make_venv(checkout):
        for name, path in (("ROOT", ""), ("VENV", ".venv"), ("CAFFE_HOME", ""), ("CAFFE", "caffe"), ("REQUIREMENTS", "r.txt")):
            monkeypatch.setattr(env, name, checkout / path)
        env.make_venv()
        return capsys.readouterr().out

    def bash(command):
        return subprocess.check_output(["bash", "-c", command], cwd=copy, text=True)

    first = tmp_path / "first"
    first.mkdir()
    (first / "r.txt").touch()
    (first / "mine.py").write_text("print(__file__)\n")
    assert "again" not in make_venv(first) and make_venv(first) == ""
    copy = shutil.copytree(first, tmp_path / "a copy", symlinks=True)
    (copy / ".venv/kept").touch()
    for start in ("", "source .venv/bin/activate; "):
        for command in (f"{start}.venv/bin/python -c 'import mine'", f"{start}cd /; '{copy}/.venv/bin/python' -c 'import mine'"):
            assert bash(command) == f"{copy}/mine.py\n"
    assert bash("source .venv/bin/activate; cd /; python -c 'import mine'") == f"{copy}/mine.py\n"
    assert f"{copy}/.venv" in bash(".venv/bin/pip --version")

    assert str(first) in make_venv(copy) and make_venv(copy) == ""  # the scripts for other shells, which cannot know their place
    assert str(copy) in (copy / ".venv/bin/activate.fish").read_text() and (copy / ".venv/kept").exists()
    assert bash("source .venv/bin/activate; python -c 'import mine'") == f"{copy}/mine.py\n"
    (copy / "r.txt").write_text("# other\n")
    assert re.search("again.*requirements", make_venv(copy)) and not (copy / ".venv/kept").exists()


def test_caffe_runs_wherever_it_is_moved(tmp_path):
    if not (ROOT / ".caffe/caffe/lib").exists():
        pytest.skip("the pycaffe that was named to make env runs where it was built")
    caffe = shutil.copytree(ROOT / ".caffe/caffe", tmp_path / ".caffe/caffe", symlinks=True)
    shutil.copy(ROOT / ".caffe/env.sh", tmp_path / ".caffe")
    for name in (".venv", "tools"):
        (tmp_path / name).symlink_to(ROOT / name)
    source = f"cd {tmp_path}; source .caffe/env.sh; "
    code = "import caffe; print(*(line.split()[-1] for line in open('/proc/self/maps') if 'caffe' in line))"
    loaded = subprocess.check_output(["bash", "-c", f'{source} cd /; python -c "{code}"'], text=True)
    linked = subprocess.check_output(["bash", "-c", f"{source} ldd $(command -v caffe) | grep libcaffe"], text=True)
    assert {str(caffe / "python/caffe/_caffe.so"), str(caffe / "lib/libcaffe.so.1.0.0")} == set(loaded.split())
    assert str(caffe) in os.path.normpath(linked.split()[2])


def test_why_caffe_is_built_again(tmp_path):
    wanted = {"numpy": "2", "edits": {}, "layout": 2}
    assert env.why_again(tmp_path / "none", {}, wanted) == ""
    assert re.search("numpy, layout changed", env.why_again(tmp_path, {"numpy": "1", "edits": {}}, wanted))
    assert re.search("not finished", env.why_again(tmp_path, {}, wanted))


def test_make_env_that_is_stopped(tmp_path):
    for name in ("Makefile", "requirements.txt", "tools", "data_prep"):
        (shutil.copytree if (ROOT / name).is_dir() else shutil.copy)(ROOT / name, tmp_path / name)
    command = ["make", "--no-print-directory", "env"]  # `make test` is above it
    process = subprocess.Popen(command, cwd=tmp_path, text=True, start_new_session=True, stdout=subprocess.PIPE,
                               stderr=subprocess.STDOUT)  # fmt: skip
    assert "making .venv" in process.stdout.readline()
    os.killpg(process.pid, signal.SIGTERM)
    said = process.communicate(timeout=60)[0]
    assert "goes on" in said and "No child processes" not in said and "Traceback" not in said


def test_what_make_env_started_ends_with_it(tmp_path):
    """A compiler, for one, that cmake has started."""
    code = (f"import pathlib, signal; from tools import env; signal.signal(signal.SIGTERM, env.interrupt)\n"
            f"env.run(['bash', '-c', 'sleep 60 & echo $! > {tmp_path}/made; mv {tmp_path}/made {tmp_path}/pid; wait'], "
            f"pathlib.Path('{tmp_path}/log'))")  # fmt: skip
    process = subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, stderr=subprocess.DEVNULL)
    while not (tmp_path / "pid").exists():
        assert process.poll() is None
        time.sleep(0.02)
    process.terminate()
    assert process.wait(timeout=60)
    stat = Path("/proc", (tmp_path / "pid").read_text().strip(), "stat")
    for _ in range(50):
        if not stat.exists() or stat.read_text().split()[2] == "Z":
            return
        time.sleep(0.1)
    raise AssertionError("it is still running")


# --- which Caffe: a pycaffe or a checkout that is there, a build with CUDA -----------------------------------------------

NOTHING = dict.fromkeys(("pycaffe", "caffe_src", "gpu", "cuda_arch", "cudnn", "march", "plain"))


def test_the_choice_is_remembered_until_another_is_made(tmp_path, monkeypatch):
    monkeypatch.setattr(env, "CAFFE_HOME", tmp_path)
    assert choose(NOTHING) == Choice()
    (tmp_path / "choice.json").write_text(json.dumps({"pycaffe": "/there", "of another version": True}))
    assert choose(NOTHING) == Choice(pycaffe="/there")
    assert choose({**NOTHING, "pycaffe": ""}) == choose({**NOTHING, "gpu": ""}) == choose({**NOTHING, "gpu": "0"}) == Choice()
    assert choose({**NOTHING, "gpu": "1", "cuda_arch": "9.0,80"}) == Choice(gpu=True, cuda_arch="80,90")
    assert choose({**NOTHING, "march": "native"}) == Choice() and choose({**NOTHING, "plain": "1"}) == Choice(plain=True)
    assert choose({**NOTHING, "caffe_src": "there"}) == Choice(caffe_src=os.path.abspath("there"))


@pytest.mark.parametrize(
    "given, message",
    [
        ({"gpu": "2", "cuda_arch": "90"}, "GPU=2"),
        ({"march": "x86-64-v3", "plain": "1"}, "MARCH=.*PLAIN="),
        ({"plain": "yes"}, "PLAIN=yes"),
        ({"cudnn": "1"}, "make env GPU=1"),
        ({"pycaffe": "x", "gpu": "1"}, "PYCAFFE="),
    ],
)
def test_choices_that_contradict_themselves(given, message):
    with pytest.raises(Failure, match=message):
        choose({**NOTHING, **given})


# --- which CPU it is compiled for ------------------------------------------------------------------------------------------


def test_what_a_build_is_compiled_with():
    flags, instructions = env.compiled_for(Choice(march="x86-64-v3"))
    assert flags[0] == "-march=x86-64-v3" and {"avx2", "fma", "bmi1", "abm", "sse42", "pni"} <= set(instructions)
    assert env.compiled_for(Choice())[0][0] == "-march=native" and not cpu.lacking(env.compiled_for(Choice())[1])
    flags, instructions = env.compiled_for(Choice(plain=True))
    assert flags == () and "sse2" in instructions and "avx" not in instructions
    with pytest.raises(Failure, match="MARCH=pentium9"):
        env.compiled_for(Choice(march="pentium9"))


def test_a_build_for_another_cpu_is_named_before_it_ends_the_process(tmp_path, monkeypatch):
    record, cpuinfo = tmp_path / "caffe.json", tmp_path / "cpuinfo"
    record.write_text(json.dumps({"instructions": ["avx512f", "avx512vpopcntdq", "sse41"]}))
    cpuinfo.write_text("flags\t\t: fpu sse4_1 avx512f avx512_vpopcntdq\n")
    assert cpu.problem(record, cpuinfo) is None
    cpuinfo.write_text("flags\t\t: fpu sse4_1 avx2\n")
    said = cpu.problem(record, cpuinfo)
    assert "avx512f, avx512vpopcntdq" in said and "sse41" not in said and "make env MARCH=x86-64-v3" in said
    assert cpu.problem(tmp_path / "none", cpuinfo) is None  # a Caffe from elsewhere
    assert cpu.problem(record, tmp_path / "none") is None  # a system that says nothing of its CPU
    monkeypatch.setattr(cpu, "problem", lambda: said)
    with pytest.raises(SystemExit, match="avx512f"):
        cpu.refuse_another_cpu()


def test_architectures(monkeypatch):
    assert cuda.architectures("90,9.0, 75,120") == ["75", "90", "120"]
    with pytest.raises(ValueError, match="CUDA_ARCH=hopper"):
        cuda.architectures("hopper")
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(ValueError, match="make env GPU=1 CUDA_ARCH=90"):
        cuda.architectures("")


def test_a_toolkit_is_whole_or_says_what_it_lacks(tmp_path):
    assert "nvcc" in cuda.look_at(tmp_path)[1]
    for folder in ("bin", "include", "lib"):
        (tmp_path / folder).mkdir()
    (tmp_path / "bin/nvcc").write_text("#!/bin/sh\necho Cuda compilation tools, release 12.4, V12.4.1\n")
    (tmp_path / "bin/nvcc").chmod(0o755)
    for name in cuda.HEADERS:
        (tmp_path / "include" / name).touch()
    for name in cuda.LIBRARIES[:-1]:
        (tmp_path / "lib" / f"lib{name}.so.12").touch()
    cuda.complete_links(tmp_path)
    assert "libcurand.so" in cuda.look_at(tmp_path)[1]
    (tmp_path / "lib/libcurand.so.10").touch()
    cuda.complete_links(tmp_path)
    toolkit, problem = cuda.look_at(tmp_path)
    assert problem is None and toolkit.major == 12 and cuda.cudnn_of(toolkit) is None
    assert "-DUSE_CUDNN=OFF" in cuda.cmake_options(toolkit, ["80", "90"], None)
    assert "-DCUDA_ARCH_BIN=80 90" in cuda.cmake_options(toolkit, ["80", "90"], None)
    (tmp_path / "bin/nvcc").write_text("#!/bin/sh\necho release 11.8\n")
    assert "11.8" in cuda.look_at(tmp_path)[1]


def test_a_pycaffe_as_its_own_build_leaves_it(tmp_path):
    """BVLC's layout: the messages in caffe/proto alone. Both names are one module, in either order; nothing is changed there."""
    package = tmp_path / "there/python/caffe"
    built = ROOT / ".caffe/caffe/python"
    if not list((built / "caffe").glob("_caffe*.so")):
        pytest.skip("the Caffe here is a link itself")
    (package / "proto").mkdir(parents=True)
    for path in (built / "caffe").iterdir():
        if path.is_file():
            (package / path.name).symlink_to(path)
    (tmp_path / "there/lib").symlink_to(built.parent / "lib")
    (package / "imagenet").symlink_to(built / "caffe/imagenet")
    (package / "proto/__init__.py").touch()
    (package / "proto/caffe_pb2.py").symlink_to(built / "caffe_pb2.py")
    for given in (tmp_path / "there", tmp_path / "there/python", package):
        assert find_pycaffe(given) == package
    assert find_binary(package) is None
    link_pycaffe(package, tmp_path / "linked")
    for first, second in (("caffe", "caffe_pb2"), ("caffe_pb2", "caffe")):
        code = (f"import {first}, {second}; assert caffe.proto.caffe_pb2 is caffe_pb2 and 'Python' in caffe.layer_type_list()\n"
                "import caffe.io, caffe.net_spec; from caffe.proto import caffe_pb2 as again; assert again is caffe_pb2\n"
                "print(caffe.__path__)\n"
                "open(caffe.__file__.replace('__init__.py', 'imagenet/ilsvrc_2012_mean.npy'))")  # fmt: skip
        done = subprocess.run([sys.executable, "-c", code], env={**os.environ, "PYTHONPATH": str(tmp_path / "linked/python")},
                              text=True, capture_output=True)  # fmt: skip
        assert done.returncode == 0 and str(package) in done.stdout, done.stderr


def test_what_is_no_pycaffe(tmp_path):
    with pytest.raises(ValueError, match="no such folder"):
        find_pycaffe(tmp_path / "nowhere")
    (tmp_path / "caffe").mkdir()
    (tmp_path / "caffe/__init__.py").touch()
    with pytest.raises(ValueError, match="placeholder"):
        find_pycaffe(tmp_path)
    (tmp_path / "caffe/pycaffe.py").touch()
    with pytest.raises(ValueError, match="make env CAFFE_SRC="):
        find_pycaffe(tmp_path)


def test_a_gpu_that_caffe_was_not_built_for(caffe, small_set, tmp_path):
    if loaded("libcudart"):
        pytest.skip("a build with CUDA")
    solver = write_solver(tmp_path / "made", small_set)
    done = tool("tools/train.py", "--solver", solver, "--run", tmp_path / "run", "--gpu", 0)
    assert done.returncode == 1 and "GPU=0" in done.stderr and "make env GPU=1" in done.stderr
    assert not (tmp_path / "run/run.json").exists()


def test_the_files_of_a_run_on_a_gpu(small_set, tmp_path):
    """They say so, but not which GPU; those of a run on the CPU are what they were before there was a choice."""
    from tools.train import run_files

    solver = write_solver(tmp_path / "made", small_set)
    on_cpu, on_gpu = (run_files(solver, tmp_path / "run", 1, None, None, None, gpu)[0] for gpu in (None, 1))
    assert on_gpu.solver_mode == on_gpu.GPU and on_cpu.solver_mode == on_cpu.CPU and not on_gpu.HasField("device_id")
