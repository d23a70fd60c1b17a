"""Who writes a log: a process, and whether it still runs."""

import json
import os
import re
import secrets
import socket
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Self

_TOKEN = re.compile(r"[0-9a-f]{32}")
_MAX_PID = 2**31 - 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Holder:
    """Who writes a log.

    Attributes:
        pid: its process.
        host: name of the machine.
        started: when the process started, in the kernel's ticks since the boot; None where the system doesn't say.
        boot: names the machine's boot; None where the system doesn't say.
        namespace: in which `pid` counts; None where the system doesn't say.
        token: 32 random hexadecimal digits that nobody else's lock has.
        since: when the lock was taken, in UTC.
    """

    pid: int
    host: str
    started: int | None
    boot: str | None
    namespace: str | None
    token: str
    since: str

    def is_alive(self) -> bool | None:
        """Whether the process still runs.

        Returns:
            None if it can't be known: it runs on another machine, or out of sight on this one.
        """
        if self.host != socket.gethostname():
            return None
        if self.boot != _boot():
            return False if self.boot and _boot() else None
        if self.namespace != _namespace():
            return None
        return _runs(self.pid) and (self.started is None or _start_time(self.pid) in {None, self.started})

    @classmethod
    def this_process(cls) -> Self:
        """Describes the process that runs this, with a new token.

        Returns:
            The holder.
        """
        return cls(
            pid=os.getpid(),
            host=socket.gethostname(),
            started=_start_time(os.getpid()),
            boot=_boot(),
            namespace=_namespace(),
            token=secrets.token_hex(16),
            since=datetime.now(UTC).isoformat(timespec="seconds"),
        )

    @classmethod
    def parse(cls, data: bytes) -> Self | None:
        """Reads what `encode` wrote; anybody may have written something else.

        Args:
            data: the bytes.

        Returns:
            None if they don't describe a holder.
        """
        try:
            found = cls(**json.loads(data))
        except (TypeError, ValueError, RecursionError):
            return None
        texts = [found.host, found.token, found.since, found.boot or "", found.namespace or ""]
        sound = (
            type(found.pid) is int
            and 0 < found.pid <= _MAX_PID
            and (found.started is None or type(found.started) is int)
            and all(isinstance(text, str) and text.isprintable() for text in texts)
        )
        return found if sound and _TOKEN.fullmatch(found.token) else None

    def encode(self) -> bytes:
        """As JSON.

        Returns:
            The bytes.
        """
        return json.dumps(asdict(self), indent=1).encode()

    def __str__(self) -> str:
        """For messages."""
        return f"process {self.pid} on host {self.host} since {self.since}"


def _boot() -> str | None:
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    except OSError:
        return None


def _namespace() -> str | None:
    try:
        return os.readlink("/proc/self/ns/pid")
    except OSError:
        return None


def _runs(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    status = _process_status(pid)
    return status is None or status[0] not in {"Z", "X"}  # a zombie writes nothing more


def _start_time(pid: int) -> int | None:
    status = _process_status(pid)
    return None if status is None else int(status[19])


def _process_status(pid: int) -> list[str] | None:
    """Fields 3 and on of the process's line in /proc; those before may hold blanks."""
    try:
        line = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None
    return line.rpartition(")")[2].split()
