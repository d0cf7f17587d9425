"""One cell of a sweep: a command with its log, run here or in a job of a cluster."""

import os
import re
import shlex
import shutil
import signal
import socket
import subprocess
import time
from dataclasses import dataclass, field
from pathlib import Path

DONE, BUSY, STOPPED = "done", "busy", "stopped"
# Slurm's warning before a time limit, SIGUSR2, reaches every process; it is for the job, not for the command. (A preexec_fn
# would run Python between fork and exec, which may hang where there are threads.)
DEAF = ("/bin/sh", "-c", 'trap "" USR2; exec "$@"', "sh")
GRACE = 600  # seconds; Slurm's KillWait is 30 unless a cluster says otherwise
# What a command that was told to end says, or make of it; and its status where no shell stands between.
STOPPED_WORDS = re.compile(r"the same command goes on$|\] (Interrupt|Terminated|Error 1(30|43))$", re.MULTILINE)
STOPPED_STATUS = (-signal.SIGINT, -signal.SIGTERM, 130, 143)
BUSY_WORDS = "another process is "  # what data_prep.files.locked says


@dataclass
class Cell:
    """`command`, whose output goes to the file `log`; `given` are the variables that make it this cell."""

    name: str
    command: list
    log: str
    given: dict
    home: str = field(default_factory=os.getcwd)
    process: subprocess.Popen | None = None
    output: str | None = None  # of the command, while it runs

    def run(self, environment=None):
        """Run the command to its end; DONE, BUSY where another process holds its folder, STOPPED, or what went wrong.

        Its output gets a file of its own, which is added to the log at the end: other sweeps may be at the same cell.
        """
        # What make called the sweep with is none of the cell's; nor is the name of a run, since each cell has its own.
        environment = {name: value for name, value in (environment or os.environ).items()
                       if not name.startswith("MAKE") and name not in ("MFLAGS", "RUN")}  # fmt: skip
        self.output = f"{self.log}.{socket.gethostname()}.{os.getpid()}"
        Path(self.output).parent.mkdir(parents=True, exist_ok=True)
        with open(self.output, "wb") as output:
            output.write(f"$ {shlex.join(self.command)}\n".encode())
            output.flush()
            command = [*DEAF, *self.command]
            self.process = subprocess.Popen(
                command,
                cwd=self.home,
                env=environment,
                stdout=output,
                stderr=subprocess.STDOUT,
                stdin=subprocess.DEVNULL,
                start_new_session=True,
            )
        # Not wait(): it holds a lock that checkpoint(), which is called in a signal's handler, would need.
        while (status := self.process.poll()) is None:
            time.sleep(0.1)
        self.process = None
        said = Path(self.output).read_text(errors="replace")
        if status and BUSY_WORDS in said:
            os.unlink(self.output)  # the log is the other's
            self.output = None
            return BUSY
        self._keep_output()
        if status == 0:
            return DONE
        return STOPPED if status in STOPPED_STATUS or re.search(STOPPED_WORDS, said) else f"failed with status {status}"

    def _keep_output(self):
        """Add the output to the log, below what the cell said before it was stopped and sent again."""
        with open(self.output, "rb") as said, open(self.log, "ab") as log:
            shutil.copyfileobj(said, log)
        os.unlink(self.output)
        self.output = None

    def stop(self, number=signal.SIGTERM):
        """Signal the command and all that it started."""
        process = self.process
        if process is not None and process.poll() is None:
            os.killpg(process.pid, number)

    def __call__(self):
        """What a job of a cluster does: run(), and where it was stopped from outside, wait for the end that is coming.

        Slurm sends SIGTERM to every process of a job that is preempted or requeued, kills it a while later, and starts it
        again; a result that was left would be taken for the job's.
        """
        threads = {"OPENBLAS_NUM_THREADS": os.environ["SLURM_CPUS_PER_TASK"]} if "SLURM_CPUS_PER_TASK" in os.environ else {}
        status = self.run({**threads, **os.environ})
        if status == STOPPED:
            time.sleep(GRACE)
        return status

    def checkpoint(self):
        """submitit calls it when the job's time is nearly over: stop with a snapshot, and have the cell sent again."""
        from submitit.helpers import DelayedSubmission

        process = self.process
        self.stop()
        if process is not None and process.returncode is None:
            os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
            self._keep_output()
        self.process = None
        return DelayedSubmission(self)

    def last_lines(self, count):
        """The last lines of the log, without the progress bars that each of them went through."""
        try:
            text = Path(self.output or self.log).read_bytes().decode(errors="replace")
        except OSError:
            return []
        lines = [line.rsplit("\r", 1)[-1].rstrip() for line in text.replace("\r\n", "\n").split("\n")]
        return [line for line in lines if line][-count:]

    def words(self, status):
        """A status for a person."""
        return {DONE: "done", BUSY: "another process is working on it", STOPPED: "stopped, snapshot saved"}.get(status, status)
