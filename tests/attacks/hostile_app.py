"""A guest app that speaks to the server's daemon over the pipe of the process that it runs in."""

from __future__ import annotations

import json
import socket
import sys

from flwr.app import Context
from flwr.serverapp import Grid, ServerApp

from quorate.identity import RunId
from quorate.rounds.instruction import Instruction, MessageId, Phase
from quorate.wire.messages import instruction_to_bytes
from quorate_server.rounds.pipe import Note, Verb

app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    pipe = socket.socket(fileno=int(sys.argv[1]))
    config = context.run_config
    step = {"progress": "[", "result": None, "evaluated": 0, "obsolete": []}
    other = Instruction(
        MessageId(bytes(32)),
        RunId(str(grid._run_id)),  # type: ignore[attr-defined]
        1,
        Phase.UPLOAD,
        0,
        bytes.fromhex(str(config.get("study", "00" * 32))),
        60.0,
    )
    notes = {
        "progress that nobody can read": Note(Verb.COMMIT, json.dumps(step).encode()),
        "another study's work": Note(Verb.SEND, instruction_to_bytes(other), "east"),
        "a state that is none": Note(Verb.DONE, json.dumps({"state": "victorious", "reason": None}).encode()),
        "no JSON": Note(Verb.STATUS, b"{"),
    }
    pipe.sendall(notes[str(config["attack"])].to_bytes())
    pipe.recv(1)
