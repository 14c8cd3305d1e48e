"""Starts the processes of a training: torchrun's agent with the variables of 0.1.x, or those that Slurm and MPI set."""

import logging
import os
import re
import signal
import socket
import sys
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import FrameType

from xtuner.errors import UserError

OF_TORCHRUN = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "GROUP_RANK")
OF_MPI = (
    "OMPI_COMM_WORLD_RANK",
    "OMPI_COMM_WORLD_SIZE",
    "OMPI_COMM_WORLD_LOCAL_RANK",
    "OMPI_COMM_WORLD_LOCAL_SIZE",
)
PORT = 29500
"""Where the processes of Slurm and MPI meet, when neither PORT nor MASTER_PORT says it."""
HEEDED = ("SIGTERM", "SIGINT", "SIGHUP", "SIGQUIT")
"""Signals that end a run."""
GO_ON = "To go on from the last checkpoint, type the same with --resume."


@dataclass(frozen=True)
class Layout:
    """How many processes run where: NPROC_PER_NODE, NNODES, NODE_RANK, ADDR and PORT of the environment."""

    processes: int
    machines: int
    machine: int
    address: str
    port: int | None

    @property
    def several(self) -> bool:
        """Whether there is anything to start."""
        return self.processes * self.machines > 1


def is_worker(environment: Mapping[str, str] = os.environ) -> bool:
    """Whether this process is one of several already, started by torchrun or by us."""
    return "RANK" in environment and "WORLD_SIZE" in environment


def is_first_here(environment: Mapping[str, str] = os.environ) -> bool:
    """Whether this process may speak on its machine: the first of it, or the only one."""
    return not is_worker(environment) or environment.get("LOCAL_RANK", "0") == "0"


def read_layout(environment: Mapping[str, str] = os.environ) -> Layout:
    """Read the variables.

    Raises:
        UserError: one is no number or out of range, or PORT is missing where several machines need it (exit code 2).
    """
    processes = _number(environment, "NPROC_PER_NODE", 1, 1)
    machines = _number(environment, "NNODES", 1, 1)
    machine = _number(environment, "NODE_RANK", 0, 0)
    port = _number(environment, "PORT", 0, 0)
    if machine >= machines:
        raise UserError(
            f"NODE_RANK is {machine}, and NNODES is {machines}.", "Machines are counted from 0.", exit_code=2
        )
    if machines > 1 and not port:
        raise UserError(
            f"NNODES is {machines}, and PORT is not set.",
            "Set ADDR (of machine 0) and PORT to the same on all machines, and NODE_RANK to 0, 1, ...",
            exit_code=2,
        )
    return Layout(processes, machines, machine, environment.get("ADDR") or "127.0.0.1", port or None)


def _number(environment: Mapping[str, str], name: str, default: int, least: int) -> int:
    text = environment.get(name, "").strip() or str(default)
    if not text.isdecimal() or int(text) < least:
        raise UserError(
            f"{name} is {text}, not a number of {least} or more.", f"Type: export {name}={max(least, 1)}", exit_code=2
        )
    return int(text)


def take_place(launcher: str) -> None:
    """Make this process the one of several that Slurm or MPI says it is.

    Raises:
        UserError: it was not started by that launcher (exit code 2).
    """
    if launcher not in ("slurm", "mpi") or is_worker():
        return
    found = _place_in_slurm(os.environ) if launcher == "slurm" else _place_in_mpi(os.environ)
    address = os.environ.get("ADDR") or os.environ.get("MASTER_ADDR") or found.pop("MASTER_ADDR")
    port = os.environ.get("PORT") or os.environ.get("MASTER_PORT") or str(PORT)
    os.environ.update({**found, "MASTER_ADDR": address, "MASTER_PORT": port})


def _place_in_slurm(environment: Mapping[str, str]) -> dict[str, str]:
    """Read what `srun` gives to each task."""
    if "SLURM_PROCID" not in environment or "SLURM_NTASKS" not in environment:
        raise UserError(
            "--launcher slurm, but srun has not started this.",
            "Type: srun ... xtuner train ... --launcher slurm, or leave --launcher out.",
            exit_code=2,
        )
    here = re.match(r"\d+", environment.get("SLURM_STEP_TASKS_PER_NODE") or environment.get("SLURM_TASKS_PER_NODE", ""))
    return {
        "RANK": environment["SLURM_PROCID"],
        "WORLD_SIZE": environment["SLURM_NTASKS"],
        "LOCAL_RANK": environment.get("SLURM_LOCALID", "0"),
        "LOCAL_WORLD_SIZE": here[0] if here else "1",
        "GROUP_RANK": environment.get("SLURM_NODEID", "0"),
        "MASTER_ADDR": first_host(
            environment.get("SLURM_STEP_NODELIST") or environment.get("SLURM_NODELIST") or "127.0.0.1"
        ),
    }


def _place_in_mpi(environment: Mapping[str, str]) -> dict[str, str]:
    """Read what `mpirun` of Open MPI gives to each process."""
    if OF_MPI[0] not in environment:
        raise UserError(
            "--launcher mpi, but mpirun has not started this.",
            "Type: mpirun -n N xtuner train ... --launcher mpi, or leave --launcher out.",
            exit_code=2,
        )
    found = {ours: environment[theirs] for ours, theirs in zip(OF_TORCHRUN, OF_MPI, strict=False)}
    machine = int(found["RANK"]) // int(found["LOCAL_WORLD_SIZE"])
    return {**found, "GROUP_RANK": str(machine), "MASTER_ADDR": "127.0.0.1"}


def first_host(names: str) -> str:
    """Return the first of Slurm's list of hosts: `gpu[03-05,9],cpu1` begins with gpu03."""
    found = re.match(r"([^,\[]+)(?:\[(\d+)[^\]]*\]([^,\[]*))?", names)
    return "".join(part or "" for part in found.groups()) if found else names


def launch(layout: Layout, words: Sequence[str]) -> int:
    """Run `xtuner WORDS` in all processes of this machine, and wait; returns the exit code of the first that failed.

    A signal is passed on, and the processes get 30 seconds (TORCH_ELASTIC_SHUTDOWN_TIMEOUT) to save.
    """
    from torch.distributed.elastic.multiprocessing import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.elastic.rendezvous.api import RendezvousConnectionError, RendezvousTimeoutError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    agent = Agent()
    heed_signals(SignalException)
    os.environ.setdefault("OMP_NUM_THREADS", str(max((os.cpu_count() or 1) // layout.processes, 1)))
    alone = layout.machines == 1
    if layout.port and layout.machine == 0:
        _need_free(layout.port, alone=alone)
    if not alone:
        print(f"Meeting {layout.machines} machines at {layout.address}:{layout.port} ...", flush=True)
    place = f"localhost:{layout.port or 0}" if alone else f"{layout.address}:{layout.port}"
    config = LaunchConfig(
        min_nodes=layout.machines,
        max_nodes=layout.machines,
        nproc_per_node=layout.processes,
        run_id=uuid.uuid4().hex if alone else "xtuner",
        rdzv_backend="c10d" if alone else "static",
        rdzv_endpoint=place,
        rdzv_configs={} if alone else {"rank": layout.machine},
        local_addr="localhost" if alone else None,
        max_restarts=0,
        signals_to_handle="",  # ours are heeded
    )
    try:
        elastic_launch(config, sys.executable)("-m", "xtuner", *words)
    except SignalException as stop:
        if agent.lost_patience:
            seconds = os.environ.get("TORCH_ELASTIC_SHUTDOWN_TIMEOUT", "30")
            print(
                f"The processes were not done {seconds} seconds after {stop.sigval.name} and were killed; what they "
                "learned since the last checkpoint is lost.",
                f"{GO_ON} To allow more time: export TORCH_ELASTIC_SHUTDOWN_TIMEOUT=SECONDS",
                sep="\n",
                file=sys.stderr,
            )
        return 128 + stop.sigval.value
    except ChildFailedError as failed:
        rank, failure = failed.get_first_failure()
        if failure.exitcode >= 0:
            return failure.exitcode
        name = signal.Signals(-failure.exitcode).name
        print(f"Rank {rank} was killed ({name}), and the run ended.", file=sys.stderr)
        if name == "SIGKILL":
            print("The system does that when the host's memory runs out.", file=sys.stderr)
        print(GO_ON, file=sys.stderr)
        return 128 - failure.exitcode
    except (RendezvousConnectionError, RendezvousTimeoutError) as error:
        raise UserError(
            f"The {layout.machines} machines did not find one another at {layout.address}:{layout.port}.",
            "ADDR must be the address of the machine with NODE_RANK=0, and PORT free there.",
        ) from error
    return 0


class Agent(logging.Filter):
    """Keeps torch's agent from speaking, since our processes say themselves what failed, and hears what it says.

    Some of its loggers set their own levels, so silencing their parent is not enough.
    """

    def __init__(self) -> None:
        super().__init__()
        self.lost_patience = False
        """Whether it has killed processes that did not end."""
        logging.getLogger("torch.distributed").setLevel(logging.CRITICAL)
        for name in list(logging.root.manager.loggerDict):
            if name.startswith("torch.distributed.elastic."):
                logging.getLogger(name).setLevel(logging.WARNING)
                logging.getLogger(name).addFilter(self)

    def filter(self, record: logging.LogRecord) -> bool:
        """Listen, and pass nothing on."""
        self.lost_patience |= "forcefully exiting" in record.getMessage()
        return False


def heed_signals(stop: Callable[[str, signal.Signals], BaseException]) -> None:
    """Let a signal raise `stop`, upon which torch's agent tells the processes and waits for them; but only the first.

    At a further one the agent would stop waiting and leave its processes alone, which then end for that. Only a person
    who presses Ctrl-C again and again wants this. Under `nohup` the end of the terminal stays ignored.
    """
    told: list[int] = []

    def raise_once(number: int, frame: FrameType | None) -> None:
        if not told or number == signal.SIGINT:
            told.append(number)
            raise stop(f"Process {os.getpid()} got signal {number}", signal.Signals(number))

    for each in signal.Signals:
        if each.name in HEEDED and not (each.name == "SIGHUP" and signal.getsignal(each) is signal.SIG_IGN):
            signal.signal(each, raise_once)


def _need_free(port: int, *, alone: bool) -> None:
    """Raises UserError (exit code 2) when another program listens there."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("", port))
        except OSError as error:
            fix = (
                "Leave PORT out, and a free one is taken."
                if alone
                else "Choose another PORT, the same on all machines."
            )
            raise UserError(f"Port {port} is in use.", fix, exit_code=2) from error
