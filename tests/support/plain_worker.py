"""A worker without a server: it does what its token says, then ends.

``sleep`` (until SIGTERM), ``deaf`` (ignores SIGTERM), ``exit N``, ``kill9``, ``eat MIB``,
``fill MIB`` (of scratch), ``child`` (leaves a child behind that sleeps), ``print KIB``. It writes
who it is to ``instance`` beside its scratch folder, where it can.
"""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from lighten_service.jobs.ticket import Ticket
from lighten_service.worker.vitals import instance_id


def main() -> None:
    # `--ticket FILE` in a pod.
    line = Path(sys.argv[2]).read_bytes() if len(sys.argv) > 1 else sys.stdin.buffer.readline()
    if not line:
        sys.exit(3)
    ticket = Ticket.from_line(line)
    folder = Path(ticket.scratch)
    (folder / "work").write_text("something")
    word, _, argument = ticket.token.partition(" ")
    if word == "deaf":
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    if word == "child":
        child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
        (folder.parent / "child").write_text(str(child.pid))
    if os.access(folder.parent, os.W_OK):
        (folder.parent / "instance").write_text(instance_id())
    print("working", flush=True)
    if word in ("sleep", "deaf"):
        time.sleep(60)
    elif word == "exit":
        sys.exit(int(argument))
    elif word == "kill9":
        os.kill(os.getpid(), signal.SIGKILL)
    elif word == "eat":
        eaten = [os.urandom(4096) * 4096 for _ in range(int(argument) // 16)]
        time.sleep(60 + len(eaten))
    elif word == "fill":
        (folder / "filled").write_bytes(os.urandom(int(argument) << 20))
        time.sleep(60)
    elif word == "print":
        for _ in range(int(argument)):
            sys.stdout.write("x" * 1023 + "\n")
        time.sleep(60)


if __name__ == "__main__":
    main()
