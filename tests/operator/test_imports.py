"""The operator's command is light: it runs where neither a server nor a framework is installed."""

from __future__ import annotations

import subprocess
import sys

from tests.patience import PATIENCE_S

HEAVY = ("quorate_server", "quorate_client", "flwr", "numpy", "torch", "sqlalchemy", "structlog", "prometheus_client")
SCRIPT = f"""
import sys
import quorate_operator.cli, quorate_operator.client, quorate_operator.profile
import quorate.study.study, quorate.study.task_digest
print([name for name in {HEAVY!r} if name in sys.modules])
"""


def test_the_command_imports_no_daemon_and_no_framework() -> None:
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT], capture_output=True, text=True, check=True, timeout=PATIENCE_S
    )
    assert done.stdout.strip() == "[]"


def test_the_command_starts_in_half_a_second_of_computing() -> None:
    """In processor time, and the least of some starts: what others do on this machine meanwhile is not our start."""
    script = f"""
import resource, subprocess, sys
command = "from quorate_operator.cli import main; main(['--help'])"
subprocess.run([{sys.executable!r}, "-c", command], check=True, stdout=subprocess.DEVNULL)
used = resource.getrusage(resource.RUSAGE_CHILDREN)
print(used.ru_utime + used.ru_stime)
"""

    def seconds() -> float:
        done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
        return float(done.stdout)

    assert min(seconds() for _ in range(5)) < 0.5
