"""A one-node SLURM on loopback, started and stopped by the tests; also the way to try launch=slurm at home.

    python tests/slurm/cluster.py FOLDER      # starts it; prints what to export; Ctrl-C stops it

Needs root and Debian's packages: apt-get install slurm-wlm munge
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

PROGRAMS = ("sbatch", "srun", "slurmctld", "slurmd", "munged")
CONFIGURATION = """\
ClusterName=dual-lora-test
SlurmctldHost={host}(127.0.0.1)
SlurmUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge/munge.socket
SlurmctldPort={port}
SlurmdPort={node_port}
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.log
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SlurmdParameters=config_overrides
MpiDefault=none
ReturnToService=2
KillWait=30
NodeName={host} NodeAddr=127.0.0.1 CPUs={cpus} RealMemory=4000 State=UNKNOWN
PartitionName=debug Nodes={host} Default=YES MaxTime=INFINITE State=UP
"""


class Cluster:
    """Context manager; `environment` is what commands need to find it."""

    def __init__(self, folder: Path, cpus: int = 4) -> None:
        self.folder, self.cpus = folder, cpus
        self.environment = {"SLURM_CONF": str(folder / "slurm.conf")}

    def __enter__(self) -> Cluster:
        for name in ("munge", "state", "spool"):
            (self.folder / name).mkdir(parents=True)
        host = socket.gethostname().partition(".")[0]
        port, node_port = free_port(), free_port()
        (self.folder / "slurm.conf").write_text(
            CONFIGURATION.format(folder=self.folder, host=host, port=port, node_port=node_port, cpus=self.cpus)
        )
        try:
            self._start_munge()
            subprocess.run(["slurmctld", "-f", self.environment["SLURM_CONF"]], check=True)
            subprocess.run(["slurmd", "-f", self.environment["SLURM_CONF"], "-N", host], check=True)
            self._wait_until_idle()
        except BaseException:
            self.__exit__()
            raise
        return self

    def _start_munge(self) -> None:
        """munged refuses keys and sockets that others could reach, and root."""
        munge = self.folder / "munge"
        (munge / "key").write_bytes(os.urandom(128))
        (munge / "key").chmod(0o400)
        for path in (munge, munge / "key"):
            shutil.chown(path, "munge", "munge")
        munge.chmod(0o711)
        for parent in munge.parents:  # every parent has to let the munge user through
            if parent != Path("/tmp") and parent != Path("/") and parent.stat().st_uid == os.getuid():
                parent.chmod(parent.stat().st_mode | 0o011)
        files = {"key-file": "key", "socket": "munge.socket", "pid-file": "munged.pid", "log-file": "munged.log"}
        options = " ".join(f"--{name}={munge / file}" for name, file in files.items())
        command = f"munged --force {options} --seed-file={munge / 'seed'}"
        subprocess.run(["su", "-s", "/bin/sh", "munge", "-c", command], check=True)

    def _wait_until_idle(self) -> None:
        end = time.monotonic() + 120
        while time.monotonic() < end:
            if self.run("sinfo", "--noheader", "--format=%T").strip() == "idle":
                return
            time.sleep(0.3)
        raise RuntimeError(f"the node did not come up: see {self.folder}/slurmd.log")

    def run(self, *command: str) -> str:
        """Run a SLURM command and return its output."""
        done = subprocess.run(command, env=os.environ | self.environment, capture_output=True, text=True)
        return done.stdout

    def __exit__(self, *_: object) -> None:
        """Stop exactly what was started: the processes whose numbers the daemons wrote down."""
        if (self.folder / "slurmctld.pid").exists():
            self.run("scancel", "--state=PENDING", "--user=root")
            self.run("scancel", "--state=RUNNING", "--user=root")
            time.sleep(1)
        for path in (self.folder / "slurmd.pid", self.folder / "slurmctld.pid", self.folder / "munge" / "munged.pid"):
            try:
                number = int(path.read_text())
                os.kill(number, signal.SIGTERM)
            except (OSError, ValueError):
                continue
            end = time.monotonic() + 20
            while _lives(number) and time.monotonic() < end:
                time.sleep(0.1)
            if _lives(number):
                os.kill(number, signal.SIGKILL)


def _lives(number: int) -> bool:
    try:
        os.kill(number, 0)
    except ProcessLookupError:
        return False
    return True


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def missing_programs() -> list[str]:
    return [name for name in PROGRAMS if shutil.which(name) is None]


if __name__ == "__main__":
    if len(sys.argv) != 2 or missing_programs():
        sys.exit(f"{__doc__}\nmissing: {', '.join(missing_programs()) or 'FOLDER'}")
    with Cluster(Path(sys.argv[1]).resolve(), cpus=os.cpu_count() or 1) as cluster:
        print(f"export SLURM_CONF={cluster.environment['SLURM_CONF']}")
        with contextlib.suppress(KeyboardInterrupt):
            signal.pause()
