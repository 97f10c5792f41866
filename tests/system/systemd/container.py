"""A container that systemd has booted, and commands in it. Nothing of it outlives `close`, nor this process."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

#: A start of systemd, and its end, take a second or two each on an idle machine.
_BOOT_S, _END_S = 60.0, 20.0
PATIENCE_S = 30.0

#: Where this machine is not run by systemd, the container gets control groups of its own, so that two don't share any.
_HIERARCHIES = [Path("/sys/fs/cgroup"), Path("/sys/fs/cgroup/systemd"), Path("/sys/fs/cgroup/unified")]
_ENTER = 'n=$1; shift; for i in $(seq $n); do echo $$ >"$1/cgroup.procs"; shift; done; exec "$@"'


class CannotBootError(Exception):
    """Why no container boots here."""


class Container:
    """A machine on a system folder that stays as it is: what is written is in memory, and gone with the container."""

    def __init__(self, system: Path, log: Path, *, read_only: dict[Path, str]) -> None:
        """Boot it. ``read_only``: more folders, and where they are seen in it. Raises CannotBootError."""
        self._log = log
        self._groups: list[Path] = []
        name = f"glmtts-{os.getpid()}"
        nspawn = [
            "systemd-nspawn", "--quiet", "--register=no", f"--machine={name}", f"--directory={system}",
            "--volatile=overlay", "--private-network", "--console=pipe", "--boot",
            # Without these it could not keep a service from devices, as a machine's own systemd does.
            "--capability=CAP_BPF", "--system-call-filter=bpf",
            *(f"--bind-ro={folder}:{place}" for folder, place in read_only.items()),
        ]  # fmt: skip
        if not Path("/run/systemd/system").is_dir():
            nspawn.append("--keep-unit")
            self._make_groups(name)
        # Should this process be killed, the container is ended in good order.
        command = ["setpriv", "--pdeathsig=TERM", *nspawn]
        if self._groups:
            command = ["sh", "-c", _ENTER, "sh", str(len(self._groups)), *map(str, self._groups), *command]
        with log.open("wb") as output:
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
                # As systems are today, whatever this one has.
                env=os.environ | {"SYSTEMD_NSPAWN_UNIFIED_HIERARCHY": "1"},
            )
        self.leader = 0
        try:
            self._wait_for_systemd()
        except BaseException:
            self.close()
            raise

    def _make_groups(self, name: str) -> None:
        for hierarchy in _HIERARCHIES:
            if (hierarchy / "cgroup.procs").exists():
                group = hierarchy / name
                group.mkdir(exist_ok=True)
                self._groups.append(group)

    def _wait_for_systemd(self) -> None:
        deadline = time.monotonic() + _BOOT_S
        while time.monotonic() < deadline:
            if self._process.poll() is not None:
                raise CannotBootError(f"systemd-nspawn ended with {self._process.returncode}: {self._said()}")
            with contextlib.suppress(OSError):
                children = Path(f"/proc/{self._process.pid}/task/{self._process.pid}/children").read_text().split()
                self.leader = int(children[0]) if children else 0
            if self.leader:
                state = self.run("systemctl", "is-system-running", check=False).stdout.strip()
                if state in ("running", "degraded"):
                    return
            time.sleep(0.1)
        raise CannotBootError(f"systemd is not up after {_BOOT_S:g} s: {self._said()}")

    def _said(self) -> str:
        return self._log.read_text(errors="replace")[-2_000:]

    def close(self) -> None:
        """End it, whatever it does, and take its control groups away."""
        for ask in (signal.SIGTERM, signal.SIGKILL):
            if self._process.poll() is None:
                self._process.send_signal(ask)
                with contextlib.suppress(subprocess.TimeoutExpired):
                    self._process.wait(_END_S)
        for group in self._groups:
            for folder in sorted(group.glob("**/"), key=lambda f: len(f.parts), reverse=True):
                with contextlib.suppress(OSError):
                    folder.rmdir()

    # --- in it

    def run(
        self, *command: str, check: bool = True, input: str | None = None, user: str = "", timeout: float = PATIENCE_S
    ) -> subprocess.CompletedProcess[str]:
        """Run a command in it, as root or as another user."""
        become = ["setpriv", f"--reuid={user}", f"--regid={user}", "--init-groups"] if user else []
        done = subprocess.run(
            [*self._into(), *become, *command],
            capture_output=True,
            text=True,
            input=input,
            timeout=timeout,
            check=False,
        )
        if check and done.returncode:
            raise AssertionError(f"{' '.join(command)}: status {done.returncode}\n{done.stdout}{done.stderr}")
        return done

    @contextlib.contextmanager
    def background(self, *command: str) -> Iterator[subprocess.Popen[str]]:
        """A command in it that runs beside the block, and ends with it at the latest."""
        into = [*self._into(), *command]
        with subprocess.Popen(into, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
            try:
                yield process
            finally:
                process.kill()

    def kill(self, pid: int, signal: str) -> None:
        """Send a signal, by its name without SIG, to a process of it that may be gone."""
        self.run("sh", "-c", f"kill -{signal} {pid}", check=False)

    def _into(self) -> list[str]:
        environment = ["PATH=/opt/glmtts/bin:/usr/bin:/bin:/usr/sbin:/sbin", "HOME=/root", "LANG=C.UTF-8"]
        namespaces = ["-m", "-u", "-i", "-n", "-p", "-r", "-w"]
        return ["nsenter", f"--target={self.leader}", *namespaces, "--", "env", "-i", *environment]

    def show(self, property: str, unit: str = "glmtts.service") -> str:
        """A property of a unit, as systemctl has it."""
        return self.run("systemctl", "show", "-P", property, unit).stdout.strip()

    @property
    def daemon(self) -> int:
        """The daemon's pid in the container; 0 when there is none."""
        return int(self.show("MainPID"))

    def processes(self, unit: str = "glmtts.service") -> dict[int, str]:
        """The processes of a unit with their command lines, by their pids in the container."""
        program = (
            "import json, pathlib, sys\n"
            "found = {}\n"
            "for process in pathlib.Path('/proc').glob('[0-9]*'):\n"
            "    try:\n"
            "        if '/' + sys.argv[1] in (process / 'cgroup').read_text():\n"
            "            found[process.name] = (process / 'cmdline').read_text().replace('\\0', ' ').strip()\n"
            "    except OSError: pass\n"
            "print(json.dumps(found))"
        )
        return {int(pid): line for pid, line in json.loads(self.run("python3", "-c", program, unit).stdout).items()}

    def journal(self, unit: str = "glmtts.service") -> str:
        """What a unit has written to the log since the last `forget`; what the daemon says comes a moment later."""
        self.run("journalctl", "--sync")
        after = [f"--after-cursor={self._cursor}"] if self._cursor else []
        return self.run("journalctl", "--no-pager", "--quiet", "-o", "cat", *after, "-u", unit).stdout

    def until_logged(self, *words: str) -> None:
        """Wait until all of these are in the journal."""

        def logged() -> bool:
            journal = self.journal()
            return all(word in journal for word in words)

        self.until(logged, f"the log says {words}")

    _cursor = ""

    def forget(self) -> None:
        """Later looks at the journal begin here."""
        self.run("journalctl", "--sync")
        last = self.run("journalctl", "--no-pager", "-n", "1", "-o", "json").stdout
        self._cursor = json.loads(last)["__CURSOR"] if last else ""

    def until(self, condition: Callable[[], object], what: str, patience_s: float = PATIENCE_S) -> None:
        """Ask until it is so."""
        deadline = time.monotonic() + patience_s
        while not condition():
            if time.monotonic() > deadline:
                raise AssertionError(f"not within {patience_s} s: {what}\n{self.journal()[-4_000:]}")
            time.sleep(0.05)
