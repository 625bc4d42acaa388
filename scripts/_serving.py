"""The playground as a web application: its page, and generations one at a time, told step by step."""

import asyncio
import base64
import hashlib
import json
import logging
import re
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any, AsyncIterator, Dict, List, Sequence

import uvicorn
from _playground import Job, Playground
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import HTMLResponse, JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from diffusion_fairseq.compat.checkpoints import one_line
from diffusion_fairseq.errors import UserError

LARGEST_REQUEST = 64 * 1024  # bytes
SECONDS_TO_SEND = 10  # a request, at most
MOST_CONNECTIONS = 64
RETRY_SECONDS = 5
logger = logging.getLogger(__name__)


class Stopped(Exception):
    """Nobody waits for what is generated any more."""


class Generation:
    """A job in the worker's thread, whose events are read in the server's.

    Args:
        job: what generates.
        worker: of one thread, so that one job runs at a time.
        seconds: that the job may take, counted from when it begins.
    """

    def __init__(self, job: Job, worker: ThreadPoolExecutor, seconds: float):
        self.job, self.seconds = job, seconds
        self.loop, self.events = asyncio.get_running_loop(), asyncio.Queue()
        self.stopped = threading.Event()
        self.future = worker.submit(self._work)

    def stop(self) -> None:
        """End the job before its next step, or before its first."""
        self.stopped.set()
        self.future.cancel()

    async def lines(self) -> AsyncIterator[str]:
        """The events, a line of JSON each."""
        while (event := await self.events.get()) is not None:
            yield json.dumps(event, ensure_ascii=False, separators=(",", ":")) + "\n"

    def _work(self) -> None:
        end = time.monotonic() + self.seconds

        def tell(event: Dict[str, Any]) -> None:
            if self.stopped.is_set():
                raise Stopped
            if time.monotonic() > end and event["event"] != "end":
                raise UserError(f"stopped after {self.seconds:g} seconds, the limit: take fewer steps or candidates")
            self._put(event)

        try:
            self.job(tell)
        except Stopped:
            pass
        except UserError as error:
            self._put({"event": "error", "error": str(error)})
        except Exception as error:
            logger.exception("a generation failed")
            self._put({"event": "error", "error": one_line(f"{type(error).__name__}: {error}")})
        finally:
            self._put(None)

    def _put(self, event: Any) -> None:
        self.loop.call_soon_threadsafe(self.events.put_nowait, event)


class GenerationResponse(StreamingResponse):
    """Its events, as long as the client listens."""

    def __init__(self, generation: Generation):
        super().__init__(generation.lines(), media_type="application/x-ndjson")
        self.generation = generation

    async def __call__(self, *connection) -> None:
        try:
            await super().__call__(*connection)
        finally:
            self.generation.stop()


class Server:
    """What answers requests.

    Args:
        playground: what is served.
        page: HTML that is shown.
    """

    def __init__(self, playground: Playground, page: str):
        self.playground, self.page = playground, page
        self.worker = ThreadPoolExecutor(max_workers=1, thread_name_prefix="generation")
        self.places = threading.BoundedSemaphore(playground.limits.waiting + 1)

    async def home(self, _: Request) -> Response:
        return HTMLResponse(self.page)

    async def generate(self, request: Request) -> Response:
        """A generation's events, or what is wrong with the request."""
        job = self.playground.job(await asked(request))
        if not self.places.acquire(blocking=False):
            raise HTTPException(503, f"{self.playground.limits.waiting + 1} texts are being written or wait for that: "
                                     "try again later", {"Retry-After": str(RETRY_SECONDS)})
        generation = Generation(job, self.worker, self.playground.limits.seconds)
        generation.future.add_done_callback(lambda _: self.places.release())
        return GenerationResponse(generation)


async def asked(request: Request) -> Any:
    """The JSON that a request holds.

    Raises:
        HTTPException: it holds none, or is too large or too slow.
    """
    # A page of another site can send such a request only if the browser asks first, which is not answered.
    if request.headers.get("content-type", "").partition(";")[0].strip().lower() != "application/json":
        raise HTTPException(415, "a request must be application/json")
    try:
        return json.loads(await asyncio.wait_for(body_of(request), SECONDS_TO_SEND))
    except asyncio.TimeoutError:
        raise HTTPException(408, f"the request did not come within {SECONDS_TO_SEND} seconds") from None
    except (ValueError, RecursionError):
        raise HTTPException(400, "the request is no JSON") from None


async def body_of(request: Request) -> bytes:
    """All that a request sends.

    Raises:
        HTTPException: it is too large.
    """
    body = bytearray()
    async for part in request.stream():
        body += part
        if len(body) > LARGEST_REQUEST:
            raise HTTPException(413, f"a request may have {LARGEST_REQUEST // 1024} KiB: shorten the text")
    return bytes(body)


async def refusal(_: Request, error: Exception) -> Response:
    """What is wrong, in one line."""
    if isinstance(error, HTTPException):
        return JSONResponse({"error": error.detail}, error.status_code, error.headers)
    return JSONResponse({"error": str(error) or "the client went away"}, 400)


def application(playground: Playground, page: str, hosts: Sequence[str]) -> Starlette:
    """The web application.

    Args:
        hosts: names and addresses that a browser may know it by; requests for others are refused, so that no other
            site's name can be pointed at this machine (DNS rebinding).
    """
    server = Server(playground, page)
    routes = [Route("/", server.home), Route("/generate", server.generate, methods=["POST"])]
    known = Middleware(TrustedHostMiddleware, allowed_hosts=list(hosts), www_redirect=False)
    return Starlette(routes=routes, middleware=[known],
                     exception_handlers=dict.fromkeys((HTTPException, UserError, ClientDisconnect), refusal))


def headers(page: str) -> List[tuple]:
    """Of all answers: the page runs its own script, has its own style, and reaches nothing but this server."""
    def hashes(tag: str) -> str:
        found = [hashlib.sha256(text.encode()).digest() for text in re.findall(rf"<{tag}>(.*?)</{tag}>", page, re.S)]
        return " ".join(f"'sha256-{base64.b64encode(digest).decode()}'" for digest in found)

    policy = (f"default-src 'none'; script-src {hashes('script')}; style-src {hashes('style')}; connect-src 'self'; "
              "img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'")
    return [("Content-Security-Policy", policy), ("X-Content-Type-Options", "nosniff"), ("Cache-Control", "no-store"),
            ("Referrer-Policy", "no-referrer"), ("Cross-Origin-Opener-Policy", "same-origin"),
            ("Cross-Origin-Resource-Policy", "same-origin")]


def web_server(playground: Playground, page: str, hosts: Sequence[str]) -> uvicorn.Server:
    """What serves the application; its `run(sockets=[...])` ends with the process's interrupt."""
    return uvicorn.Server(uvicorn.Config(
        application(playground, page, hosts), headers=headers(page), server_header=False, log_level="warning",
        access_log=False, ws="none", lifespan="off", proxy_headers=False, limit_concurrency=MOST_CONNECTIONS,
        timeout_graceful_shutdown=1))
