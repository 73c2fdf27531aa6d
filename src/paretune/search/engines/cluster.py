"""Which Ray cluster runs trials, and what each trial holds of it."""

import os
import socket
from dataclasses import dataclass

from paretune.errors import PareError

ANSWER = 3.0  # seconds for the cluster's head to answer
# gRPC speaks HTTP/2: a client opens with this, and whoever speaks it answers with a frame of settings.
_HELLO = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes((0, 0, 0, 4, 0, 0, 0, 0, 0))
_HEADER, _KIND, _SETTINGS = 9, 3, 4
_START = "start one with `ray start --head --port 6379`, or see `ray status` there"


@dataclass(frozen=True)
class Cluster:
    """A running Ray cluster; none is ever started.

    Args:
        address: ``host:port`` of its head; None takes the variable ``RAY_ADDRESS``.
        cpus: Cores that a trial holds, and its threads.
        gpus: GPUs that a trial holds: a share of one, or whole ones.

    Raises:
        PareError: A value out of range.
    """

    address: str | None = None
    cpus: float = 1.0
    gpus: float = 0.0

    def __post_init__(self) -> None:
        if not self.cpus > 0:
            raise PareError(f"--trial-cpus {self.cpus:g}: must be above 0; 0.5 lets two trials share a core")
        if self.gpus < 0 or (self.gpus > 1 and self.gpus != int(self.gpus)):
            raise PareError(f"--trial-gpus {self.gpus:g}: give a share of one GPU such as 0.5, or whole ones")

    @property
    def threads(self) -> int:
        """Threads of a trial."""
        return max(1, int(self.cpus))

    @property
    def head(self) -> str:
        """``host:port`` of the head.

        Raises:
            PareError: It is neither given nor in ``RAY_ADDRESS``, or has another form.
        """
        address = self.address or os.environ.get("RAY_ADDRESS")
        if not address:
            raise PareError("--engine ray needs --address HOST:PORT, which `ray start --head` printed")
        host, colon, port = address.rpartition(":")
        if not (host and colon and port.isdigit()) or "/" in address:
            raise PareError(
                f"--address {address}: give HOST:PORT of the cluster's head, such as 10.0.0.1:6379, and run "
                "the command on a machine of the cluster"
            )
        return address

    def probe(self) -> None:
        """Knock at the head; Ray itself would wait for minutes.

        Raises:
            PareError: Nobody answers, or it is no Ray cluster that does.
        """
        host, _, port = self.head.rpartition(":")
        try:
            with socket.create_connection((host.strip("[]"), int(port)), ANSWER) as connection:
                connection.settimeout(ANSWER)
                connection.sendall(_HELLO)
                answer = connection.recv(_HEADER)
        except TimeoutError:
            raise PareError(f"--address {self.head}: no answer in {ANSWER:g} seconds; {_START}") from None
        except (OSError, OverflowError) as problem:
            raise PareError(f"--address {self.head}: no Ray cluster there ({problem}); {_START}") from None
        if len(answer) <= _KIND or answer[_KIND] != _SETTINGS:
            raise PareError(
                f"--address {self.head}: what answers there is no Ray cluster's head; give the port that "
                "`ray start --head` printed (6379 unless chosen otherwise)"
            )

    def __str__(self) -> str:
        gpus = f" and {self.gpus:g} GPU" if self.gpus else ""
        return f"{self.cpus:g} CPU{gpus} a trial"
