#!/usr/bin/env python3
"""Play with a model: a page on this machine on which a text is typed and every step of its denoising is seen.

    python scripts/serve.py data-bin --path genie.pt
    python scripts/serve.py data-bin lm-bin --path genie.pt ddlm.pt --port 8080

Needs `pip install starlette uvicorn`. Nothing is read or written but what the command line names. One text is generated
at a time: other requests wait, or are refused when too many do. The page is for whoever sits at this machine; --host
opens it to a network, where everybody who can reach the address can use it.
"""

import argparse
import contextlib
import logging
import socket
import sys
from pathlib import Path
from typing import Dict, List, Optional, Sequence

import _environment  # noqa: F401  says what this Python lacks
from _playground import Limits, Playground, Served
from _trace_page import page
from _typed import WHERE

from diffusion_fairseq.errors import UserError

TEMPLATE = "serve.html"
LOOPBACK = ("127.0.0.1", "localhost")


def names(paths: Sequence[str]) -> List[str]:
    """What checkpoints are called: the end of each path, as short as tells them apart."""
    parts = [Path(path).resolve().parts for path in paths]
    for depth in range(1, max(map(len, parts)) + 1):
        found = ["/".join(part[-depth:]) for part in parts]
        if len(set(found)) == len(found):
            return found
    raise UserError("--path names a checkpoint twice")


def each(option: str, given: Sequence, count: int) -> List:
    """A value for each checkpoint: one is for all."""
    if len(given) not in (1, count):
        raise UserError(f"{option}: give one, or one for each of the {count} checkpoints of --path")
    return list(given) * (count // len(given))


def load(arguments: argparse.Namespace) -> Dict[str, Served]:
    count = len(arguments.path)
    data = each("data", arguments.data, count)
    bpe = each("--bpe-model", arguments.bpe_model or [None], count)
    return dict(zip(names(arguments.path), map(Served, arguments.path, data, bpe)))


def listening(host: str, port: int) -> socket.socket:
    """A socket at an address.

    Raises:
        UserError: it is no address of this machine, or taken.
    """
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        made = socket.socket(family, socket.SOCK_STREAM)
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        made.bind((host, port))
    except (OSError, OverflowError) as error:
        raise UserError(f"cannot listen at {host}, port {port}: {getattr(error, 'strerror', None) or error}") from error
    return made


def parse_arguments(arguments: Optional[Sequence[str]] = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", nargs="+", help="folder that fairseq-preprocess made: one, or one for each checkpoint")
    parser.add_argument("--path", required=True, nargs="+", metavar="FILE",
                        help="checkpoints, of any kind that writes text")
    parser.add_argument("--bpe-model", type=Path, nargs="+", metavar="FILE",
                        help=f"sentencepiece model that splits what is typed (default: {WHERE})")
    parser.add_argument("--host", default=LOOPBACK[0],
                        help="address to listen at (default: 127.0.0.1, which only this machine reaches)")
    parser.add_argument("--port", type=int, default=8000, help="default: 8000; 0: any that is free")
    parser.add_argument("--allow-host", action="append", default=[], metavar="NAME",
                        help="name by which browsers may ask for it, beside localhost and --host; may be repeated")
    parser.add_argument("--max-steps", type=int, default=2000, help="of a request (default: 2000)")
    parser.add_argument("--max-candidates", type=int, default=16, help="of a request (default: 16)")
    parser.add_argument("--time-limit", type=float, default=120, metavar="SECONDS", help="of a request (default: 120)")
    parser.add_argument("--waiting", type=int, default=4, metavar="REQUESTS",
                        help="that may wait while one is served (default: 4)")
    found = parser.parse_args(arguments)
    for option, value, least in (("--max-steps", found.max_steps, 1), ("--max-candidates", found.max_candidates, 1),
                                 ("--time-limit", found.time_limit, 0), ("--waiting", found.waiting, 0)):
        if not value >= least:
            parser.error(f"{option} must be at least {least}")
    return found


def main() -> None:
    arguments = parse_arguments()
    from _serving import web_server  # needs what is an extra

    logging.disable(logging.INFO)  # of fairseq; warnings stay
    limits = Limits(arguments.max_steps, arguments.max_candidates, arguments.time_limit, arguments.waiting)
    with listening(arguments.host, arguments.port) as made:
        playground = Playground(load(arguments), limits)
        host, port = made.getsockname()[:2]
        shown = f"[{host}]" if ":" in host else host
        hosts = [*LOOPBACK, shown, arguments.host, *arguments.allow_host]
        server = web_server(playground, page(TEMPLATE, playground.about()), hosts)
        made.listen()  # now, so that who reads the address finds it open
        print(f"{', '.join(playground.models)}: http://{shown}:{port}/ (Ctrl-C ends it)", flush=True)
        with contextlib.suppress(KeyboardInterrupt):
            server.run(sockets=[made])


if __name__ == "__main__":
    try:
        main()
    except (UserError, OSError) as error:
        sys.exit(f"error: {error}")
