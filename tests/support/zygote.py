"""A process that has imported the package and forks one for every command, since importing torch takes seconds.

It reads requests as lines of JSON from stdin and answers each by one line: ``{"start": {...}}`` by the id of the new
process, ``{"wait": pid}`` by its exit status, minus the signal's number where one ended it.
"""

import json
import os
import signal
import sys


def command(cwd: str, args: list[str], out: str, env: dict[str, str], code: str = "") -> None:
    """Become ``sslmodules args``, or Python with ``code``, in a folder, with output into a file; does not return."""
    os.setsid()
    signal.signal(signal.SIGINT, signal.default_int_handler)
    os.chdir(cwd)
    os.environ.update(env)
    file = os.open(out, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.dup2(file, 1)
    os.dup2(file, 2)
    sys.argv = ["sslmodules", *args]
    import atexit
    import threading
    import traceback

    from sslmodules.cli import main

    status = 0
    try:
        exec(code, {"__name__": "__main__"}) if code else main()
    except SystemExit as left:
        if isinstance(left.code, str):
            print(left.code, file=sys.stderr)
        status = left.code if isinstance(left.code, int) else 1 if left.code else 0
    except KeyboardInterrupt:
        status = 130
    except BaseException:
        traceback.print_exc()
        status = 1
    threading._shutdown()  # as the interpreter does at its end: loaders' threads, then what was registered
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


def serve() -> None:
    import torch

    import sslmodules.cli
    import sslmodules.datamodules  # noqa: F401

    torch.set_num_threads(1)
    for line in sys.stdin:
        request = json.loads(line)
        if "start" in request:
            pid = os.fork()
            if pid == 0:
                command(**request["start"])
            answer = pid
        else:
            answer = os.waitstatus_to_exitcode(os.waitpid(request["wait"], 0)[1])
        print(answer, flush=True)


if __name__ == "__main__":
    serve()
