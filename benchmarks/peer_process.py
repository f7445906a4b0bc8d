"""Peers in their own processes: each in its own virtual environment, asked over JSON lines (peers_llm/protocol.py)."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

ROOT = Path(__file__).parents[1]
OWN = "own"


class PeerError(RuntimeError):
    """A peer's process ended, or refused what it was asked for."""


def interpreter(environment: str) -> Path:
    """Return the Python of a peer's environment, which `make bench` made; OWN is the one that runs now.

    Raises:
        PeerError: when there is no such environment.
    """
    if environment == OWN:
        return Path(sys.executable)
    python = ROOT / f".venv-peers-{environment}" / "bin" / "python"
    if not python.exists():
        raise PeerError(f"the environment of {environment} is missing: make peers PEERS={environment}")
    return python


def _environment() -> dict[str, str]:
    """Variables of this process without those about threads and packages; with this repository's modules."""
    left_out = ("OMP_NUM_THREADS", "PYTHONPATH", "PYTHONSAFEPATH", "VIRTUAL_ENV")
    kept = {name: value for name, value in os.environ.items() if name not in left_out}
    return {**kept, "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}


def run_module(environment: str, module: str, *arguments: str, log: Path, given: str = "") -> str:
    """Run `benchmarks.peers_llm.<module>` to its end and return the last line that it printed.

    Args:
        environment: as for `interpreter`.
        module: name of the module.
        arguments: of its command line.
        log: what it says on standard error goes there.
        given: what it reads on standard input.

    Raises:
        PeerError: when it fails; the message ends with what it said last.
    """
    command = [str(interpreter(environment)), "-m", f"benchmarks.peers_llm.{module}", *arguments]
    with log.open("w", encoding="utf-8") as said:
        done = subprocess.run(
            command,
            cwd=log.parent,  # where some write logs of their own
            env=_environment(),
            input=given,
            stdout=subprocess.PIPE,
            stderr=said,
            text=True,
            check=False,
        )
    if done.returncode != 0:
        raise PeerError(f"{module} {' '.join(arguments)}: {log.read_text(encoding='utf-8')[-2000:]}")
    return (done.stdout.splitlines() or [""])[-1]


@dataclasses.dataclass(frozen=True)
class Runner:
    """Where and how a folder is run.

    Attributes:
        environment: name of benchmarks/peers-<environment>.txt, or OWN.
        module: module of benchmarks.peers_llm that serves.
        arguments: given to it.
    """

    environment: str
    module: str
    arguments: Sequence[str] = ()


class PeerProcess:
    """One language model in a process of its own; a context manager that ends the process."""

    def __init__(self, runner: Runner, folder: Path, threads: int, log: Path) -> None:
        """Start the process and load the model.

        Args:
            runner: what runs the model.
            folder: the model, as the runner's `load` takes it.
            threads: for the runtime.
            log: what the peer says goes there.

        Raises:
            PeerError: when it cannot be loaded.
        """
        self.name, self.log = runner.module, log
        command = [str(interpreter(runner.environment)), "-m", f"benchmarks.peers_llm.{runner.module}", "serve"]
        with log.open("w", encoding="utf-8") as said:
            self.process = subprocess.Popen(
                [*command, *runner.arguments],
                cwd=log.parent,
                env=_environment(),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=said,
                text=True,
            )
        try:
            self.versions: dict[str, str] = self.ask(do="load", folder=str(folder), threads=threads)["versions"]
        except PeerError:
            self.close()
            raise

    def ask(self, **request: Any) -> dict[str, Any]:
        """Send one request and wait for its answer.

        Raises:
            PeerError: when the peer refuses, or has ended.
        """
        stdin, stdout = self.process.stdin, self.process.stdout
        assert stdin is not None
        assert stdout is not None
        try:
            stdin.write(json.dumps(request) + "\n")
            stdin.flush()
            line = stdout.readline()
        except BrokenPipeError:
            line = ""
        if not line:
            raise PeerError(f"{self.name} ended: {self.log.read_text(encoding='utf-8', errors='replace')[-2000:]}")
        answer: dict[str, Any] = json.loads(line)
        if "refused" in answer:
            raise PeerError(f"{self.name}: {answer['refused']}")
        return answer

    def close(self) -> None:
        """End the process."""
        self.process.kill()
        self.process.communicate()

    def __enter__(self) -> PeerProcess:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
