"""A real Slurm of this machine alone, for tests that submit jobs. Needs root and Debian's packages slurm-wlm and munge.

    with one_machine_slurm(folder) as environment:
        subprocess.run(["srun", "hostname"], env={**os.environ, **environment}, check=True)

submitit, in this process, needs the same variables in os.environ (monkeypatch.setenv).
"""

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import time
from pathlib import Path

PROGRAMS = ("munged", "slurmctld", "slurmd", "srun", "sbatch", "scontrol", "squeue", "scancel", "sinfo")
SYSTEM_PATH = f"{os.environ.get('PATH', os.defpath)}:/usr/sbin:/usr/bin"  # the daemons are in sbin, which not every PATH has
READY = 60  # seconds until the node must be idle; it takes about two
SOCKET_PATH = 107  # bytes that Linux has for the path of a socket

CONFIGURATION = """\
ClusterName=one_machine
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={ports[0]}
SlurmdPort={ports[1]}
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
# A requeued job waits so many seconds, and one more, before it starts again, that its old credential has expired. 120 by
# default, and instead of any number below 5; a credential must also outlast the start of a job on a busy machine.
AuthInfo=socket={folder}/munge.socket,cred_expire=10
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
MpiDefault=none
MailProg=/bin/true
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
# a node that was taken for lost is used again as soon as it answers
ReturnToService=2
# a limit of this shell (locked memory, open files) is none of the jobs'
PropagateResourceLimits=NONE
JobRequeue=1
# a job is told to end at its limit, and killed this many seconds later
OverTimeLimit=0
KillWait=5
SchedulerParameters=sched_interval=1,batch_sched_delay=1,bf_interval=1
# the numbers below hold, whatever the machine has
SlurmdParameters=config_overrides
NodeName={host} NodeAddr=127.0.0.1 CPUs={cores} RealMemory={megabytes} State=UNKNOWN
PartitionName=debug Nodes=ALL Default=YES MaxTime=INFINITE State=UP
"""


@contextlib.contextmanager
def one_machine_slurm(folder, cores=2):
    """Yield the environment variables under which srun, sbatch and submitit find a Slurm that runs from `folder`.

    Keys, sockets, state and logs are in `folder`, a new one; nothing outside it is written. A requeued job starts again
    after 11 seconds, or at once by `scontrol update JobId=<id> StartTime=now`. Slurm looks at time limits, a minute at
    least, every 30 seconds; there is no accounting, so `sacct` fails and `squeue --states=all` has to tell how a job ended.
    At the end, also after an exception, the jobs and daemons are stopped. Raises RuntimeError saying what to install when
    a program is missing or this is not root, and with the last lines of the logs when the node does not become idle.
    """
    missing = [name for name in PROGRAMS if not shutil.which(name, path=SYSTEM_PATH)]
    if missing or os.geteuid() != 0:
        problem = f"{', '.join(missing)} not found" if missing else "not run as root"
        raise RuntimeError(f"one_machine_slurm: {problem}; as root: apt-get install slurm-wlm munge")
    folder = Path(folder).resolve()
    if len(bytes(folder / "munge.socket")) > SOCKET_PATH:
        raise RuntimeError(f"{folder}: too long a path for a socket in it, {SOCKET_PATH} bytes at most; give a shorter folder")
    for name in ("state", "spool"):
        (folder / name).mkdir(parents=True)
    key = folder / "munge.key"
    key.touch(mode=0o600)
    key.write_bytes(os.urandom(1024))
    host = socket.gethostname().split(".")[0]
    megabytes = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") >> 20
    filled = CONFIGURATION.format(host=host, ports=free_ports(2), folder=folder, cores=cores, megabytes=megabytes)
    (folder / "slurm.conf").write_text(filled)
    environment = {"SLURM_CONF": str(folder / "slurm.conf"), "PATH": SYSTEM_PATH}
    commands = {
        # --force: it would refuse a folder that others cannot enter, as pytest's are
        "munged": [f"--{name}={folder}/munge.{end}" for name, end in
                   (("key-file", "key"), ("socket", "socket"), ("pid-file", "pid"), ("seed-file", "seed"))]
                  + ["--foreground", "--force"],
        "slurmctld": ["-D"],
        "slurmd": ["-D"],
    }  # fmt: skip
    daemons = {}
    try:
        for name, options in commands.items():
            with open(folder / f"{name}.log", "wb") as log:
                # in sessions of their own: a Ctrl+C is the tests', which then stop them in order
                daemons[name] = subprocess.Popen([shutil.which(name, path=SYSTEM_PATH), *options], stdin=subprocess.DEVNULL,
                                                 stdout=log, stderr=log, cwd=folder, env={**os.environ, **environment},
                                                 start_new_session=True)  # fmt: skip
            if name == "munged":
                wait_until(lambda: (folder / "munge.socket").exists(), daemons, folder)
        wait_until(lambda: ask(environment, "sinfo", "--noheader", "--format=%T") == ["idle"], daemons, folder)
        yield environment
    finally:
        stop(daemons, environment)


def free_ports(count):
    """Ports of this machine that nobody listens on."""
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [each.getsockname()[1] for each in sockets]
    for each in sockets:
        each.close()
    return ports


def ask(environment, *command):
    """The lines that one of Slurm's programs prints; None when it fails or does not answer."""
    with contextlib.suppress(subprocess.SubprocessError):
        return subprocess.run(command, env={**os.environ, **environment}, capture_output=True, text=True, timeout=10,
                              check=True).stdout.splitlines()  # fmt: skip
    return None


def wait_until(ready, daemons, folder):
    end = time.monotonic() + READY
    while not ready():
        ended = [name for name, process in daemons.items() if process.poll() is not None]
        if ended or time.monotonic() > end:
            problem = f"{ended[0]} has ended" if ended else f"no idle node after {READY} seconds"
            logs = [f"--- {log}\n" + "\n".join(log.read_text(errors="replace").splitlines()[-15:])
                    for log in sorted(folder.glob("*.log"))]  # fmt: skip
            raise RuntimeError("\n".join([f"one_machine_slurm: {problem}; the ends of its logs:", *logs]))
        time.sleep(0.1)


def stop(daemons, environment):
    """End all jobs, as Slurm does it, then the daemons, the last first; then kill what has stayed of the jobs."""
    try:
        if jobs := ask(environment, "squeue", "--noheader", "--format=%A"):
            ask(environment, "scancel", *set(jobs))
            end = time.monotonic() + 15  # KillWait, and as much again
            while ask(environment, "squeue", "--noheader") and time.monotonic() < end:
                time.sleep(0.2)
    finally:
        for process in reversed(daemons.values()):
            process.terminate()
        for process in daemons.values():
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        for process in of_jobs(environment["SLURM_CONF"]):
            with contextlib.suppress(ProcessLookupError):
                os.kill(process, signal.SIGKILL)


def of_jobs(configuration):
    """Processes of this Slurm's jobs: its slurmstepd, and what has a job's number in its environment."""
    found = []
    for place in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            variables = (place / "environ").read_bytes().split(b"\0")
            job = (place / "comm").read_text().startswith("slurmstepd")
            job = job or any(each.startswith(b"SLURM_JOB_ID=") for each in variables)
            if job and f"SLURM_CONF={configuration}".encode() in variables:
                found.append(int(place.name))
    return found
