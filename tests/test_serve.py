"""The playground: what it generates, and what its server answers."""

import http.client
import json
import re
import threading
import time

import pytest
import torch
from helpers import REPOSITORY, make_sampling, wait_until
from omegaconf import OmegaConf
from serving import ASKED, LIMITS, TEXT, final_texts, page_of, run, running, save_models, tiny_playground

from diffusion_fairseq.errors import UserError
from diffusion_fairseq.generator import DiffusionGenerator
from diffusion_fairseq.text.reranking import mbr

import serve  # isort: skip  from scripts/, which serving has put on the path
from _playground import LiveGenerator  # isort: skip
from _trace_page import CONFIDENCES, GIVEN  # isort: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return save_models(tmp_path_factory.mktemp("models"))


@pytest.fixture(scope="module")
def playground(folder):
    return tiny_playground(folder)


@pytest.fixture(scope="module")
def port(playground):
    with running(playground, page_of(playground)) as port:
        yield port


@pytest.mark.parametrize("name, options, guidance", [
    ("genie.pt", dict(solver="ddpm", clamping=True), 1), ("genie.pt", dict(solver="heun", clamping=False), 1),
    ("ddlm.pt", dict(solver="euler", clamping=False), 1), ("ddlm.pt", dict(solver="ddim", clamping=True), 2),
])
def test_steps_end_in_what_the_generator_writes(playground, monkeypatch, name, options, guidance):
    length = {"length": 12} if name == "ddlm.pt" else {}
    events = run(playground, model=name, guidance=guidance, **options, **length)
    assert [event["event"] for event in events] == ["begin"] + ["step"] * 6 + ["end"]
    model = playground.models[name]
    dictionary = model.task.target_dictionary
    sampling = make_sampling(diffusion_steps=6, candidates=3, seed=4, guidance_scale=guidance, **options)
    generator = DiffusionGenerator(model.model, dictionary, sampling)
    if model.task.prompts:
        monkeypatch.setattr(model.task, "cfg", OmegaConf.merge(model.task.cfg, {"prompt_length": 12}))
    tokens = dictionary.encode_line(TEXT, add_if_not_exist=False).long()
    batch = model.task.build_dataset_for_inference([tokens], [len(tokens)])
    with torch.inference_mode():
        (found,) = generator.generate([model.model], {"net_input": batch.collater([batch[0]])["net_input"]})
    texts, end = final_texts(events), events[-1]
    assert [texts[number] for number in end["scores"]] == [dictionary.string(one["tokens"]) for one in found]
    assert list(end["scores"].values()) == pytest.approx([one["score"] for one in found], abs=1e-3)
    best_first = [*end["scores"]]
    assert end["chosen"] == best_first[mbr([texts[number] for number in best_first])]
    assert end["text"] == texts[end["chosen"]]
    letters = {letter for event in events[1:-1] for one in event["candidates"] for letter in one["confidence"]}
    assert letters <= {*CONFIDENCES, GIVEN} and (GIVEN in letters) == (name == "ddlm.pt")


@pytest.mark.parametrize("name", ["genie.pt", "ddlm.pt"])
def test_every_step_is_told_as_it_is_traced(playground, name):
    served, told = playground.models[name], []
    generator = LiveGenerator(served.model, served.task.target_dictionary, make_sampling(
        diffusion_steps=5, candidates=3))
    generator.told = told.append
    with torch.inference_mode():
        (found,) = generator.generate([], {"net_input": {"src_tokens": served.tokens(TEXT, 12)[None]}})
    assert sorted(one["number"] for one in found) == [0, 1, 2] and len(told) == 5
    for one in found:
        trace, steps = one["trace"], [traces[one["number"]] for traces in told]
        for name in ("tokens", "confidence", "entropy", "norm"):
            assert torch.equal(torch.cat([getattr(step, name) for step in steps]), getattr(trace, name))
        assert [step.text[0] for step in steps] == trace.text and torch.equal(steps[0].given, trace.given)


def test_a_prompt_is_continued_or_filled_or_empty(playground):
    prompts = playground.models["ddlm.pt"]
    mask, eos = prompts.task.mask, prompts.task.source_dictionary.eos()
    assert prompts.tokens("", 5).tolist() == [mask] * 4 + [eos]
    assert (prompts.tokens("w1", 5) == mask).tolist() == [False, True, True, True, False]
    assert (prompts.tokens("w1 <mask> w2", 20) == mask).tolist() == [False, True, False, False]
    with pytest.raises(UserError, match="fills the length of 3 tokens"):
        prompts.tokens("w1 w2", 3)


def test_what_is_told_can_end_a_generation(playground):
    told = []

    def tell(event):
        told.append(event)
        if len(told) == 4:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        playground.job({**ASKED, "steps": 2000})(tell)
    assert len(told) == 4


WRONG = [
    ({"model": "other.pt"}, "unknown model 'other.pt': known are genie.pt, ddlm.pt"),
    ({"model": ["genie.pt"]}, "unknown model ['genie.pt']"),
    ({"text": ""}, "there is no text: type a source"),
    ({"text": 5}, "text must be text, got 5"),
    ({"text": "w1 " * 40}, "the text has 41 tokens, the model takes 32: shorten it"),
    ({"text": "no word of these"}, "most words of the text are unknown to the model"),
    ({"text": "\ud800 x y"}, "most words of the text are unknown to the model"),
    ({"steps": 0}, "steps must be from 1 to 2000, got 0"),
    ({"steps": True}, "steps must be a whole number, got True"),
    ({"steps": None}, "steps must be a whole number, got None"),
    ({"candidates": 9}, "candidates must be from 1 to 8, got 9"),
    ({"seed": 1.5}, "seed must be a whole number, got 1.5"),
    ({"seed": 10**400}, "seed must be from 0 to 2147483647, got 1000"),
    ({"guidance": float("nan")}, "guidance must be from 0 to 20.0, got nan"),
    ({"guidance": 2}, "--guidance-scale 2 needs a model trained with --condition-dropout"),
    ({"solver": "magic"}, "unknown solver 'magic': known are ddpm"),
    ({"clamping": "yes"}, "clamping must be true or false, got 'yes'"),
    ({"path": "/etc/passwd"}, "unknown option 'path': known are model, text"),
    ({"model": "ddlm.pt", "length": 25}, "length must be from 2 to 24, got 25"),
]


def connected(port, body, **headers):
    """A connection that has sent a request to generate."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    body = body if isinstance(body, (bytes, str)) else json.dumps(body)
    connection.request("POST", "/generate", body, {"Content-Type": "application/json", **headers})
    return connection


def answered(port, body, **headers):
    """Status and text of an answer, and its headers."""
    answer = connected(port, body, **headers).getresponse()
    return answer.status, answer.read().decode(), answer.headers


@pytest.mark.parametrize("wrong, message", WRONG, ids=lambda value: str(value)[:40])
def test_what_cannot_be_done_is_said_in_one_line(port, wrong, message):
    status, text, _ = answered(port, {**ASKED, **wrong})
    assert status == 400 and json.loads(text)["error"].startswith(message) and len(text.splitlines()) == 1
    assert len(text) < 300


@pytest.mark.parametrize("body, headers, status, message", [
    ("{", {}, 400, "the request is no JSON"), (b"\xff", {}, 400, "the request is no JSON"),
    ("[" * 60_000, {}, 400, "the request is no JSON"), ("[]", {}, 400, "unknown model None"),
    ("x" * 70_000, {}, 413, "a request may have 64 KiB: shorten the text"),
    (ASKED, {"Content-Type": "text/plain"}, 415, "a request must be application/json"),
])
def test_what_is_no_request_is_refused(port, body, headers, status, message):
    found, text, _ = answered(port, body, **headers)
    assert found == status and json.loads(text)["error"].startswith(message)


@pytest.mark.parametrize("host, status", [
    ("localhost", 200), ("127.0.0.1:80", 200), ("rebound.example", 400), ("localhost.rebound.example:8000", 400)])
def test_the_page_is_for_this_machine_alone(port, host, status):
    connection = http.client.HTTPConnection("127.0.0.1", port)
    connection.request("GET", "/", headers={"Host": host})
    assert connection.getresponse().status == status
    assert answered(port, ASKED, Host=host)[0] == status


@pytest.mark.parametrize("path", ["/serve.py", "/../serve.py", "/%2e%2e/serve.py", "//etc/passwd", "/trace.js"])
def test_no_file_is_read(port, path):
    connection = http.client.HTTPConnection("127.0.0.1", port)
    connection.request("GET", path)
    answer = connection.getresponse()
    assert answer.status == 404 and json.loads(answer.read()) == {"error": "Not Found"}


def test_the_page_may_run_what_it_holds_alone(port):
    connection = http.client.HTTPConnection("127.0.0.1", port)
    connection.request("GET", "/")
    answer = connection.getresponse()
    policy = answer.getheader("Content-Security-Policy")
    assert policy.startswith("default-src 'none'") and "unsafe" not in policy and "frame-ancestors 'none'" in policy
    assert policy.count("'sha256-") == 2
    page = answer.read().decode()
    assert set(re.findall(r"https?://[^\s\"']+", page)) == {"http://www.w3.org/2000/svg"} and "/*include" not in page
    assert str(REPOSITORY) not in page


class Paced:
    """In place of a playground: generations of a hundred steps, of which each takes what `pace` does."""

    def __init__(self, pace=lambda: time.sleep(0.02), seconds=60.0):
        self.limits, self.pace = LIMITS._replace(seconds=seconds), pace
        self.begun, self.ended = [], []

    def job(self, asked):
        def run(tell):
            self.begun.append(asked)
            try:
                for _ in range(100):
                    self.pace()
                    tell({"event": "step"})
                tell({"event": "end"})
            finally:
                self.ended.append(asked)
        return run


def test_one_at_a_time_one_waits_and_more_are_refused():
    gate = threading.Event()
    paced = Paced(lambda: gate.wait(1))
    with running(paced) as port:
        first = connected(port, "1")
        wait_until(lambda: paced.begun == [1])
        second = connected(port, "2")
        assert second.getresponse().status == 200  # and its events are still to come
        status, text, headers = answered(port, "3")
        assert status == 503 and headers["Retry-After"] == "5"
        assert json.loads(text)["error"] == "2 texts are being written or wait for that: try again later"
        assert paced.begun == [1]
        gate.set()
        assert first.getresponse().read().count(b"\n") == 101
        wait_until(lambda: paced.ended == [1, 2])
        assert answered(port, "4")[0] == 200


def test_a_client_that_goes_away_ends_its_generation():
    gate = threading.Event()
    paced = Paced(lambda: gate.wait(0.1))
    with running(paced) as port:
        leaving = connected(port, "1")
        answer = leaving.getresponse()
        answer.readline()
        answer.close()
        leaving.close()
        begun = time.monotonic()
        wait_until(lambda: paced.ended == [1])
        assert time.monotonic() - begun < 5  # of ten seconds
        gate.set()
        assert answered(port, "2")[0] == 200


def test_a_client_that_goes_away_gives_up_its_place_in_the_line():
    gate = threading.Event()
    paced = Paced(lambda: gate.wait(1))
    with running(paced) as port:
        first = connected(port, "1")
        wait_until(lambda: paced.begun == [1])
        leaving = connected(port, "2")
        answer = leaving.getresponse()
        answer.close()
        leaving.close()
        third = []
        wait_until(lambda: third.append(connected(port, "3").getresponse()) or third[-1].status == 200)
        gate.set()
        assert third[-1].read().count(b"\n") == first.getresponse().read().count(b"\n") == 101
        assert paced.begun == [1, 3]


def test_time_is_limited():
    with running(Paced(seconds=0.1)) as port:
        status, text, _ = answered(port, "1")
    *steps, last = map(json.loads, text.splitlines())
    assert status == 200 and 1 <= len(steps) < 20
    assert last == {"event": "error", "error": "stopped after 0.1 seconds, the limit: take fewer steps or candidates"}


def test_a_fault_is_said_in_one_line():
    def fault():
        raise RuntimeError("out of\nmemory")

    with running(Paced(fault)) as port:
        for _ in range(3):
            text = answered(port, "1")[1]
            assert json.loads(text) == {"event": "error", "error": "RuntimeError: out of memory"}


def test_checkpoints_are_named_apart_and_share_what_is_given_once():
    assert serve.names(["a/best.pt"]) == ["best.pt"]
    assert serve.names(["a/best.pt", "b/best.pt"]) == ["a/best.pt", "b/best.pt"]
    with pytest.raises(UserError, match="twice"):
        serve.names(["a/best.pt", "a/../a/best.pt"])
    assert serve.each("data", ["x"], 3) == ["x"] * 3 and serve.each("data", ["x", "y"], 2) == ["x", "y"]
    with pytest.raises(UserError, match="data: give one, or one for each of the 3"):
        serve.each("data", ["x", "y"], 3)


@pytest.mark.parametrize("options", [["--max-steps", "0"], ["--time-limit", "nan"], ["--waiting", "-1"]])
def test_limits_must_be_some(options, capsys):
    with pytest.raises(SystemExit):
        serve.parse_arguments(["data", "--path", "x.pt", *options])
    assert f"{options[0]} must be at least" in capsys.readouterr().err


def test_a_place_that_is_taken_is_said():
    with serve.listening("127.0.0.1", 0) as made, pytest.raises(UserError, match="cannot listen at 127.0.0.1, port"):
        made.listen()
        serve.listening("127.0.0.1", made.getsockname()[1])
