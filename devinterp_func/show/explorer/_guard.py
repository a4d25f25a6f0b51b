"""Runs a command for as long as the standard input is open, and ends it gently when it closes.

    python _guard.py PATIENCE COMMAND ...

Who started it closes the input to cancel, or ends, however that may come about: then the command is interrupted
(SIGINT), after so many seconds terminated (SIGTERM), and after as many more killed. Its exit status is the command's.
Known to no other file but by its path: nothing is imported that takes time or memory.
"""

import os
import signal
import subprocess
import sys
import threading


def main(patience: float, command: list[str]) -> int:
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # which a server in the background ignores, and a command would, too
    try:
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, start_new_session=True)
    except (OSError, ValueError) as error:
        print(f"{command[0]} did not start: {error}", file=sys.stderr)
        return 127
    threading.Thread(target=_end, args=(process, patience), daemon=True).start()
    status = process.wait()
    _signal(process, signal.SIGKILL)  # what the command itself may have started and left
    return status if status >= 0 else 128 - status


def _end(process: "subprocess.Popen[bytes]", patience: float) -> None:
    """Waits until nobody holds the input any more, then ends the command."""
    while os.read(0, 4096):
        pass
    for how in (signal.SIGINT, signal.SIGTERM, signal.SIGKILL):
        _signal(process, how)
        try:
            process.wait(patience)
            return
        except subprocess.TimeoutExpired:
            continue


def _signal(process: "subprocess.Popen[bytes]", how: int) -> None:
    try:
        os.killpg(process.pid, how)
    except (ProcessLookupError, PermissionError):
        pass


if __name__ == "__main__":
    sys.exit(main(float(sys.argv[1]), sys.argv[2:]))
