"""One cell of a sweep: a command with its log, run here or in a job of a cluster."""

import os
import signal
import subprocess
import time
from dataclasses import dataclass, field
from pathlib import Path

DONE, BUSY, STOPPED = "done", "busy", "stopped"
GRACE = 600  # seconds; Slurm's KillWait is 30 unless a cluster says otherwise
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

    def run(self, environment=None):
        """Run the command to its end; DONE, BUSY where another process holds its folder, STOPPED, or what went wrong."""
        Path(self.log).parent.mkdir(parents=True, exist_ok=True)
        environment = {name: value for name, value in (environment or os.environ).items() if not name.startswith("MAKE") and
                       name != "MFLAGS"}  # fmt: skip  # of the make that called the sweep
        with open(self.log, "ab") as log:
            before = log.tell()
            self.process = subprocess.Popen(self.command, cwd=self.home, env=environment, stdout=log, stderr=subprocess.STDOUT,
                                            stdin=subprocess.DEVNULL, start_new_session=True,
                                            preexec_fn=lambda: signal.signal(signal.SIGUSR2, signal.SIG_IGN))  # fmt: skip
        while (
            status := self.process.poll()
        ) is None:  # not wait(): it holds a lock that checkpoint(), a signal's handler, would need
            time.sleep(0.1)
        self.process = None
        with open(self.log, errors="replace") as log:
            log.seek(before)
            said = log.read()
        if status == 0:
            return DONE
        if BUSY_WORDS in said:
            return BUSY
        return STOPPED if "snapshot saved; the same command goes on" in said else f"failed with status {status}"

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
        self.process = None
        return DelayedSubmission(self)

    def last_lines(self, count):
        """The last lines of the log, without the progress bars that each of them went through."""
        try:
            text = Path(self.log).read_bytes().decode(errors="replace")
        except OSError:
            return []
        lines = [line.rsplit("\r", 1)[-1].rstrip() for line in text.replace("\r\n", "\n").split("\n")]
        return [line for line in lines if line][-count:]

    def words(self, status):
        """A status for a person."""
        return {DONE: "done", BUSY: "another process is working on it", STOPPED: "stopped, snapshot saved"}.get(status, status)
