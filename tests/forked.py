"""Commands in forks of one process that has the host and the plugin loaded: each is there at once.

As a program it is that process: it reads requests from standard input, a line of JSON each, and answers with statuses.
The fork runs its command at the top level, so that errors, exit handlers and the exit status are the interpreter's own.
"""

import gc
import importlib
import json
import os
import runpy
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

COMMANDS = ("train", "generate", "interactive", "validate", "preprocess")
SCRIPTS = Path(__file__).resolve().parent.parent / "scripts"
SECONDS = 120


class Forks:
    """Runs fairseq's commands, by their short names, and our scripts, by those of their files."""

    def __init__(self, folder: Path):
        """folder: for what the commands read and print."""
        self.folder = folder
        self.process = subprocess.Popen(
            [sys.executable, __file__], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
            env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONUTF8": "1", "PYTHONWARNINGS": "ignore"})

    def run(self, words, cwd=None, stdin=b"", env=None) -> SimpleNamespace:
        (self.folder / "stdin").write_bytes(stdin)
        request = {"words": [str(word) for word in words], "cwd": str(cwd or self.folder), "env": env or {},
                   "folder": str(self.folder)}
        self.process.stdin.write(json.dumps(request) + "\n")
        self.process.stdin.flush()
        status = int(self.process.stdout.readline())
        said = {name: (self.folder / name).read_bytes().decode("utf-8", "replace") for name in ("stdout", "stderr")}
        return SimpleNamespace(returncode=status, **said)

    def close(self) -> None:
        self.process.stdin.close()
        self.process.wait()


def warm_up():
    """Fill the caches of what reads options, and keep the collector from touching what forks share."""
    from fairseq import options
    from fairseq.dataclass.utils import convert_namespace_to_omegaconf

    parser = options.get_generation_parser()
    words = ["data", "--task", "seq2seq_diffusion", "--path", "x"]
    convert_namespace_to_omegaconf(options.parse_args_and_arch(parser, words))
    gc.collect()
    gc.freeze()


def serve(answers):
    """Answer requests, on that descriptor; in a fork return what it is to call."""
    for line in sys.stdin:
        request = json.loads(line)
        child = os.fork()
        if not child:
            return prepare(**request)
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        os.write(answers, f"{status}\n".encode())
    return None


def prepare(words, cwd, env, folder):
    for number, (name, flags) in enumerate((("stdin", os.O_RDONLY), ("stdout", os.O_WRONLY | os.O_CREAT | os.O_TRUNC),
                                            ("stderr", os.O_WRONLY | os.O_CREAT | os.O_TRUNC))):
        os.dup2(os.open(os.path.join(folder, name), flags, 0o600), number)
    sys.stdin = open(0, encoding="utf-8")
    signal.alarm(SECONDS)
    os.chdir(cwd)
    os.environ.update(env)
    name, *arguments = words
    if name in COMMANDS:
        sys.argv = [f"fairseq-{name}", *arguments]
        return importlib.import_module(f"fairseq_cli.{name}").cli_main
    sys.argv = [str(SCRIPTS / name), *arguments]
    sys.path.insert(0, str(SCRIPTS))
    return lambda: runpy.run_path(sys.argv[0], run_name="__main__")


if __name__ == "__main__":
    # What is said while modules are loaded is no answer.
    own = os.dup(1)
    os.dup2(2, 1)
    # As in a command: the host first, which sets up its log, then the plugin.
    for command in COMMANDS:
        importlib.import_module(f"fairseq_cli.{command}")
    importlib.import_module("diffusion_fairseq")
    warm_up()
    call = serve(own)
    if call is not None:
        call()
