"""A real worker process whose work is a script; it starts without torch.

The script is the job's display_name: words separated by spaces, run one after the other, for
example ``events=20 sleep=0.5 kill9@1``. A word that ends with ``@N`` runs in attempt N alone. At
the end the worker uploads one artifact and its manifest.
"""

import hashlib
import json
import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path

from google.protobuf import json_format

from lighten import transfer
from lighten import v1 as pb
from lighten_service.jobs.errors import InvalidArgument
from lighten_service.worker.main import main
from lighten_service.worker.reporter import EventReporter
from lighten_service.worker.session import Assignment, Session
from lighten_service.worker.stream import SessionOptions
from lighten_service.worker.transfers import as_lighten_error

STAGE = pb.Stage(kind=pb.Stage.KIND_STEP, step_id="scripted")
ARTIFACT = b"not really a model"
MIB = 1 << 20


class Script:
    """What one attempt does."""

    def __init__(
        self, assignment: Assignment, session: Session, reporter: EventReporter, scratch: Path
    ) -> None:
        self.assignment = assignment
        self.session = session
        self.reporter = reporter
        self.scratch = scratch
        self.said = 0

    def run(self) -> None:
        commands: dict[str, Callable[[str], None]] = {
            "events": self.events,
            "sleep": self.sleep,
            "deaf": lambda seconds: time.sleep(float(seconds)),
            "native": lambda _: self.native(),
            "until": self.until,
            "kill9": lambda _: os.kill(os.getpid(), signal.SIGKILL),
            "exit": lambda code: os._exit(int(code)),
            "eat": self.eat,
            "fill": lambda mib: self.write(int(mib)),
            "oops": self.oops,
            "refuse": self.refuse,
            "pid": lambda path: self.note(path, str(os.getpid())),
            "environment": lambda path: self.note(path, json.dumps(dict(os.environ))),
        }
        for word in self.assignment.resolved_spec.display_name.split():
            command, _, attempt = word.partition("@")
            if attempt and int(attempt) != self.assignment.attempt:
                continue
            name, _, argument = command.partition("=")
            commands[name](argument)

    def events(self, count: str) -> None:
        for _ in range(int(count)):
            self.said += 1
            line = pb.LogLine(level=pb.LOG_LEVEL_INFO, message=f"line {self.said}")
            self.reporter.send(pb.JobEvent(stage=STAGE, log=line))

    def sleep(self, seconds: str) -> None:
        until = time.monotonic() + float(seconds)
        while time.monotonic() < until:
            self.reporter.check()
            time.sleep(0.01)

    def native(self) -> None:
        """Minutes in one call of C code, which no Python handler interrupts."""
        hashlib.pbkdf2_hmac("sha256", b"", b"", 2**31 - 1)

    def until(self, path: str) -> None:
        """Say a line every 20 ms until a file exists."""
        while not Path(path).exists():
            self.reporter.check()
            self.events("1")
            time.sleep(0.02)

    def eat(self, mib: str) -> None:
        eaten = []
        for _ in range(int(mib) // 16):
            eaten.append(os.urandom(4096) * (16 * MIB // 4096))
            time.sleep(0.02)
        self.sleep("30")

    def write(self, mib: int) -> None:
        with (self.scratch / "large").open("wb") as file:
            for _ in range(mib):
                file.write(os.urandom(MIB))
        self.sleep("30")

    def oops(self, _: str) -> None:
        raise RuntimeError("a secret detail")

    def refuse(self, _: str) -> None:
        raise InvalidArgument("INVALID_MODEL", "the model has no weights", field="model.artifact")

    def note(self, path: str, text: str) -> None:
        Path(path).write_text(text)


def run_attempt(
    assignment: Assignment, session: Session, reporter: EventReporter, scratch: Path
) -> str:
    started = pb.StageStarted(title="a script")
    reporter.send(pb.JobEvent(stage=STAGE, stage_started=started))
    Script(assignment, session, reporter, scratch).run()
    artifact = pb.Artifact(
        name="model.bin",
        kind=pb.ARTIFACT_KIND_ANALYSIS,
        sha256=hashlib.sha256(ARTIFACT).hexdigest(),
        bytes=len(ARTIFACT),
    )
    upload(session, scratch, "artifacts/model.bin", ARTIFACT)
    manifest = pb.Manifest(
        format_version=1,
        job=assignment.job,
        attempt=assignment.attempt,
        resolved_spec=assignment.resolved_spec,
        result=pb.JobResult(attempt=assignment.attempt, artifacts=[artifact]),
    )
    fields = json_format.MessageToDict(manifest, preserving_proto_field_name=True)
    text = json.dumps(fields, sort_keys=True).encode()
    upload(session, scratch, "manifest.json", text)
    return hashlib.sha256(text).hexdigest()


def upload(session: Session, scratch: Path, path: str, content: bytes) -> None:
    """Send one small output by a signed URL, as every worker does."""
    file = scratch / "output"
    file.write_bytes(content)
    (signed,) = session.sign_outputs([(path, len(content))])
    with as_lighten_error("", path):
        transfer.upload(signed.url, file, ca=session.ca)


if __name__ == "__main__":
    options = SessionOptions(heartbeat=0.5, longest_pause=0.5, patience=30.0)
    sys.exit(main(work=run_attempt, options=options))
