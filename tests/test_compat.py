"""Each mend of the host, tested where the unmended host fails."""

import argparse
import multiprocessing
import re
import subprocess
import sys
from datetime import timedelta
from pathlib import Path

import numpy as np
import pytest
import torch
from fairseq import options, trainer
from fairseq.data import (
    Dictionary,
    LanguagePairDataset,
    ListDataset,
    TokenBlockDataset,
    data_utils,
    iterators,
)
from fairseq.dataclass.configs import EMAConfig, FairseqConfig
from fairseq.distributed import utils as distributed
from fairseq.logging import progress_bar
from fairseq.models.distributed_fairseq_model import DistributedFairseqModel
from fairseq.models.ema.ema import EMA
from fairseq.models.transformer import TransformerModel
from omegaconf import OmegaConf

from diffusion_fairseq import compat
from diffusion_fairseq.compat import batches, patching
from diffusion_fairseq.compat.training import BETTER_TRANSFORMER_PARAMETERS

REPOSITORY = Path(compat.__file__).parents[2]


@pytest.fixture
def dictionary():
    words = Dictionary()
    for i in range(20):
        words.add_symbol(f"w{i}")
    return words


@pytest.fixture
def transformer(dictionary):
    return stock_transformer(dictionary, "--encoder-normalize-before", "--decoder-normalize-before")


def stock_transformer(dictionary, *flags):
    parser = options.get_training_parser()
    args = options.parse_args_and_arch(parser, ["data", "--arch", "transformer_tiny", *flags])
    torch.manual_seed(0)
    task = argparse.Namespace(source_dictionary=dictionary, target_dictionary=dictionary)
    return TransformerModel.build_model(args, task)


# Batches


@pytest.mark.parametrize("count", [0, 1, 5, 8, 13, 101])
@pytest.mark.parametrize("precomputed", [False, True])
def test_no_sentence_is_lost(count, precomputed):
    sizes = np.sort(np.random.RandomState(0).randint(3, 20, size=count))
    found = data_utils.batch_by_size(
        list(range(count)),
        lambda i: sizes[i],
        num_tokens_vec=sizes if precomputed else None,
        max_tokens=150,
        required_batch_size_multiple=8,
    )
    assert [int(i) for batch in found for i in batch] == list(range(count))
    assert all(len(batch) > 0 and len(batch) * sizes[batch].max() <= 150 for batch in found)


def pairs(dictionary, sizes, **more):
    sentences = ListDataset([torch.full((size,), dictionary.eos()) for size in sizes], sizes)
    return LanguagePairDataset(
        sentences, np.array(sizes), dictionary, sentences, np.array(sizes), dictionary, **more
    )


def test_length_buckets_work_with_this_numpy(dictionary):
    dataset = pairs(dictionary, [2, 3, 5, 9], num_buckets=2)
    assert {len(dataset[i]["source"]) for i in range(4)} == {3, 9}
    assert dataset.num_tokens(0) == 3


def test_blocks_of_one_sentence_work_with_this_numpy(dictionary):
    sentences = [torch.tensor([7, 8, dictionary.eos()]), torch.tensor([9, dictionary.eos()])]
    blocks = TokenBlockDataset(sentences, [3, 2], None, pad=1, eos=2, break_mode="eos")
    assert [block.tolist() for block in blocks] == [[7, 8, 2], [9, 2]]


def test_prefetching_stops(dictionary):
    class Slow:
        """Batches without end."""

        def __len__(self):
            return 10**9

        def __iter__(self):
            return iter(lambda: torch.ones(100, 100).exp().sum(), None)

    buffered = iterators.BufferedIterator(3, Slow())
    next(buffered)
    assert buffered._consumer.is_alive()
    batches.stop_prefetching()
    assert not buffered._consumer.is_alive()


# Models


def test_ema_keeps_every_parameter(transformer):
    ema = EMA(transformer, EMAConfig(store_ema=True, ema_decay=0.5))
    ema.step(transformer)
    assert transformer.encoder.layer_norm is not None and transformer.decoder.layer_norm is not None
    assert ema.get_model().state_dict().keys() == transformer.state_dict().keys()
    averaged = dict(ema.get_model().named_parameters())
    assert all(torch.equal(averaged[name], value) for name, value in transformer.named_parameters())


def test_encoder_layers_have_no_duplicate_parameters(transformer):
    names = {name for name, _ in transformer.encoder.layers[0].named_parameters()}
    assert not names & set(BETTER_TRANSFORMER_PARAMETERS)


def test_loaded_encoder_evaluates(dictionary):
    transformer = stock_transformer(dictionary)
    transformer.load_state_dict(transformer.state_dict(), strict=True)
    transformer.eval()
    tokens = torch.tensor([[5, 6, 7, 2], [1, 1, 5, 2]])
    with torch.no_grad():
        states = transformer.encoder(tokens, torch.tensor([4, 2]))["encoder_out"][0]
    assert states.isfinite().all()


def test_weights_of_an_unmended_host_are_loaded(transformer):
    weights = transformer.state_dict()
    extra = {f"encoder.layers.0.{name}": torch.zeros(2) for name in BETTER_TRANSFORMER_PARAMETERS}
    transformer.load_state_dict({**weights, **extra}, strict=True)


# Options


@pytest.mark.parametrize(
    "flags, tpu", [(["--bf16"], False), (["--memory-efficient-bf16"], False), (["--bf16", "--tpu"], True)]
)
def test_bf16_is_not_tpu(flags, tpu):
    args = options.parse_args_and_arch(
        options.get_training_parser(), ["data", "--arch", "transformer", *flags]
    )
    assert args.bf16 is True and args.tpu is tpu


# Processes


@pytest.fixture
def torchrun(monkeypatch):
    """The environment of the second of two processes that torchrun started on a machine without GPUs."""
    started = {
        "MASTER_ADDR": "localhost",
        "MASTER_PORT": "1",
        "WORLD_SIZE": "2",
        "RANK": "1",
        "LOCAL_RANK": "1",
        "TORCHELASTIC_RUN_ID": "none",
    }
    for name, value in started.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)


def distributed_options(**values):
    cfg = OmegaConf.structured(FairseqConfig()).distributed_training
    cfg.distributed_world_size, cfg.device_id = 1, 0
    for name, value in values.items():
        cfg[name] = value
    return cfg


@pytest.mark.parametrize("world_size", [1, 2])
def test_processes_of_torchrun_are_one_training(torchrun, world_size):
    cfg = distributed_options(distributed_world_size=world_size)
    distributed.infer_init_method(cfg)
    assert (cfg.distributed_init_method, cfg.distributed_backend) == ("env://", "gloo")
    assert (cfg.distributed_world_size, cfg.distributed_rank, cfg.device_id) == (2, 1, 0)
    assert cfg.distributed_no_spawn


@pytest.mark.parametrize("asked, launched, processes", [(2, False, 1), (3, False, 3), (2, True, 2)])
def test_no_gpu_is_taken_with_cpu(monkeypatch, asked, launched, processes):
    """On a machine of two GPUs, whose number is the default of --distributed-world-size."""
    began = []
    cfg = OmegaConf.structured(FairseqConfig())
    cfg.optimizer, cfg.dataset.batch_size, cfg.common.cpu = {"_name": "adam"}, 1, True
    cfg.distributed_training.distributed_world_size, cfg.distributed_training.device_id = asked, 0
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.distributed, "is_torchelastic_launched", lambda: launched)
    monkeypatch.setattr(torch.multiprocessing, "spawn", lambda main, arguments, count: began.append(count))
    monkeypatch.setattr(distributed, "distributed_main", lambda *_: began.append("one of several"))
    for name, value in {"WORLD_SIZE": "2", "RANK": "1"}.items() if launched else ():
        monkeypatch.setenv(name, value)
    distributed.call_main(cfg, lambda cfg: began.append(1))
    assert began == ["one of several" if launched else processes]
    assert cfg.distributed_training.distributed_world_size == processes
    assert processes == 1 or cfg.distributed_training.distributed_backend == "gloo"


def test_one_process_stays_alone():
    cfg = distributed_options()
    distributed.infer_init_method(cfg)
    assert cfg.distributed_init_method is None and cfg.distributed_world_size == 1


def join(directory, rank, world_size):
    torch.distributed.init_process_group(
        "gloo",
        init_method=f"file://{directory}/store",
        rank=rank,
        world_size=world_size,
        timeout=timedelta(seconds=60),
    )
    return torch.distributed.new_group()


def receive(directory):
    state = distributed.broadcast_object(None, 0, join(directory, 1, 2), torch.device("cpu"))
    sys.exit(0 if state["cfg"].lr == [0.1] and state["model"]["weight"].tolist() == [1, 1] else 1)


def test_checkpoint_reaches_the_other_processes(tmp_path):
    child = multiprocessing.get_context("fork").Process(target=receive, args=(tmp_path,))
    child.start()
    try:
        state = {"cfg": OmegaConf.create({"lr": [0.1]}), "model": {"weight": torch.ones(2)}}
        distributed.broadcast_object(state, 0, join(tmp_path, 0, 2), torch.device("cpu"))
        child.join(60)
        assert child.exitcode == 0
    finally:
        torch.distributed.destroy_process_group()
        child.kill()


def test_model_on_the_cpu_is_replicated(tmp_path):
    group = join(tmp_path, 0, 1)
    try:
        cfg = distributed_options(ddp_backend="pytorch_ddp")
        model = DistributedFairseqModel(cfg, torch.nn.Linear(2, 2), group, torch.device("cpu"))
        model(torch.ones(1, 2)).sum().backward()
    finally:
        torch.distributed.destroy_process_group()


# The package


def test_layers_without_a_bias_do_not_share_one():
    layers = torch.nn.Sequential(*(torch.nn.Linear(3, 3, bias=False) for _ in range(3)))
    assert trainer._catalog_shared_params(layers) == []
    layers[2].weight = layers[0].weight
    assert trainer._catalog_shared_params(layers) == [["0.weight", "2.weight"]]


def test_a_log_file_has_each_line_once(tmp_path, caplog):
    caplog.set_level("INFO", progress_bar.logger.name)
    logs = [tmp_path / "a.log", tmp_path / "b.log"]
    try:
        for epoch, log in enumerate((*logs, *logs), 1):
            bar = progress_bar.progress_bar([1], log_format="simple", log_file=str(log), epoch=epoch)
            bar.print({"loss": "1"}, tag="train")
        first, second = (log.read_text().splitlines() for log in logs)
        assert [len(first), len(second)] == [4, 3] and "epoch 003" in first[2]
    finally:
        progress_bar.logger.handlers.clear()


def test_mending_twice_changes_nothing():
    before = (
        data_utils.batch_by_size,
        EMA.restore,
        options.parse_args_and_arch,
        distributed.infer_init_method,
    )
    compat.apply()
    assert before == (
        data_utils.batch_by_size,
        EMA.restore,
        options.parse_args_and_arch,
        distributed.infer_init_method,
    )


def test_replacing_reaches_modules_that_imported_by_name(monkeypatch):
    def new():
        """Another function."""

    monkeypatch.setattr(data_utils, "get_buckets", data_utils.get_buckets)
    bucket_module = sys.modules["fairseq.data.bucket_pad_length_dataset"]
    monkeypatch.setattr(bucket_module, "get_buckets", data_utils.get_buckets)
    patching.replace(data_utils, "get_buckets", new)
    assert data_utils.get_buckets is bucket_module.get_buckets is new


@pytest.mark.parametrize(
    "broken",
    [
        "sys.modules['fairseq'] = None",
        "sys.path.insert(0, sys.argv[1])",
    ],
)
def test_import_without_a_host_says_in_one_line_what_to_install(tmp_path, broken):
    (tmp_path / "fairseq.py").write_text("raise ValueError('mutable default <class X> is not allowed')")
    done = subprocess.run(
        [sys.executable, "-c", f"import sys; {broken}; import diffusion_fairseq", tmp_path],
        capture_output=True,
        text=True,
        cwd=REPOSITORY,
    )
    assert done.returncode == 1 and done.stdout == ""
    assert re.fullmatch(r"error: .*fairseq.*pip install 'diffusion-fairseq\[host\]'.*\n", done.stderr)
