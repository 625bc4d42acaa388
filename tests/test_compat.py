"""Each mend of the host, tested where the unmended host fails."""

import argparse
import os
import re
import subprocess
import sys
import zipfile
from pathlib import Path
from unittest.mock import MagicMock

import numpy as np
import pytest
import torch
from fairseq import checkpoint_utils, options, utils
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
from fairseq.models.distributed_fairseq_model import DistributedFairseqModel
from fairseq.models.ema.ema import EMA
from fairseq.models.transformer import TransformerModel
from fairseq.trainer import Trainer
from omegaconf import OmegaConf

from diffusion_fairseq import compat
from diffusion_fairseq.compat import batches, literals, patching
from diffusion_fairseq.compat.training import BETTER_TRANSFORMER_PARAMETERS
from diffusion_fairseq.errors import UserError

REPOSITORY = Path(compat.__file__).parents[2]
TORCH = tuple(int(part) for part in torch.__version__.split(".")[:2])


class Call:
    """Pickles as a call of a function."""

    def __init__(self, function, *arguments):
        self.call = (function, arguments)

    def __reduce__(self):
        return self.call


@pytest.fixture
def marker(tmp_path):
    return tmp_path / "marker"


@pytest.fixture
def dictionary():
    words = Dictionary()
    for i in range(20):
        words.add_symbol(f"w{i}")
    return words


@pytest.fixture
def transformer(dictionary):
    args = options.parse_args_and_arch(
        options.get_training_parser(),
        ["data", "--arch", "transformer_tiny", "--encoder-normalize-before", "--decoder-normalize-before"],
    )
    args.encoder_layers = args.decoder_layers = 1
    torch.manual_seed(0)
    return TransformerModel.build_model(
        args, argparse.Namespace(source_dictionary=dictionary, target_dictionary=dictionary)
    )


def checkpoint(path, **parts):
    """Write what the host needs at least to call a file a checkpoint."""
    state = {
        "args": None,
        "cfg": {"model": argparse.Namespace(arch="transformer")},
        "model": {"weight": torch.ones(2)},
        "optimizer_history": [
            {"criterion_name": "C", "optimizer_name": "O", "lr_scheduler_state": {}, "num_updates": 1}
        ],
        "task_state": {},
        "extra_state": {"train_iterator": {"epoch": 1}},
        "last_optimizer_state": {},
    }
    torch.save({**state, **parts}, path)
    return str(path)


# Checkpoints


def test_what_stock_checkpoints_hold_is_loaded(tmp_path):
    metrics = {"_bleu_counts": np.array([1, 2]), "_bleu_score": np.array([0.5])}
    path = checkpoint(tmp_path / "stock.pt", extra_state={"metrics": metrics, "train_iterator": {"epoch": 1}})
    state = checkpoint_utils.load_checkpoint_to_cpu(path)
    assert state["cfg"].model.arch == "transformer"
    assert state["extra_state"]["metrics"]["_bleu_counts"].tolist() == [1, 2]


@pytest.mark.skipif(TORCH < (2, 6), reason="torch's allow-list knows one name a function before 2.6")
def test_arrays_of_another_numpy_are_loaded(tmp_path):
    written, renamed = tmp_path / "written.pt", tmp_path / "renamed.pt"
    torch.save({"counts": np.array([1, 2])}, written)
    ours, other = b"numpy._core.multiarray", b"numpy.core.multiarray"
    if np.__version__.startswith("1."):
        ours, other = other, ours
    with zipfile.ZipFile(written) as source, zipfile.ZipFile(renamed, "w") as target:
        for name in source.namelist():
            content = source.read(name)
            if name.endswith("data.pkl"):
                assert ours in content
                content = content.replace(ours, other)
            target.writestr(name, content)
    assert torch.load(renamed)["counts"].tolist() == [1, 2]


def hostile(marker):
    touch = f"touch {marker}"
    return {
        "a call": {"extra_state": {"payload": Call(os.system, touch)}},
        "a call in the options": {"cfg": {"model": argparse.Namespace(arch=Call(os.system, touch))}},
        "eval": {"extra_state": Call(eval, f"open({str(marker)!r}, 'w')")},
        "exec": {"extra_state": Call(exec, f"open({str(marker)!r}, 'w')")},
        "a program as option": {
            "cfg": {
                "model": argparse.Namespace(adaptive_softmax_cutoff=f"__import__('os').system({touch!r})")
            }
        },
        "a program as old option": {
            "cfg": None,
            "args": argparse.Namespace(
                arch="transformer",
                task="translation",
                criterion="cross_entropy",
                optimizer="adam",
                lr_scheduler="fixed",
                lr=[0.1],
                adaptive_softmax_cutoff=f"os.system({touch!r})",
            ),
        },
    }


@pytest.mark.parametrize("what", list(hostile("")))
def test_hostile_checkpoint_is_refused_and_does_not_run(tmp_path, marker, what):
    path = checkpoint(tmp_path / "hostile.pt", **hostile(marker)[what])
    with pytest.raises(UserError, match=f"^checkpoint {re.escape(path)} refused: it holds ") as caught:
        checkpoint_utils.load_checkpoint_to_cpu(path)
    assert "\n" not in str(caught.value) and "data, never code" in str(caught.value)
    assert not marker.exists()


def test_nobody_can_ask_for_unsafe_loading(tmp_path, marker):
    path = checkpoint(tmp_path / "hostile.pt", extra_state=Call(os.system, f"touch {marker}"))
    with pytest.raises(Exception, match="system"):
        torch.load(path, weights_only=False)
    assert not marker.exists()


def test_unsafe_loading_by_environment_is_taken_back(monkeypatch):
    monkeypatch.setenv("TORCH_FORCE_WEIGHTS_ONLY_LOAD", "0")
    monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")
    compat.force_weights_only()
    assert os.environ["TORCH_FORCE_WEIGHTS_ONLY_LOAD"] == "1"
    assert "TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD" not in os.environ


def damaged(directory, kind):
    path = directory / "checkpoint_last.pt"
    whole = Path(checkpoint(directory / "whole.pt")).read_bytes()
    contents = {"empty": b"", "truncated": whole[: len(whole) // 2], "text": b"hello\n" * 100}
    if kind in contents:
        path.write_bytes(contents[kind])
    elif kind == "weights only":
        torch.save({"weight": torch.ones(2)}, path)
    elif kind == "a list":
        torch.save([1, 2], path)
    elif kind == "a directory":
        path.mkdir()
    return str(path)


@pytest.mark.parametrize(
    "kind", ["empty", "truncated", "text", "weights only", "a list", "a directory", "missing"]
)
def test_unreadable_checkpoint_is_named_in_one_line(tmp_path, kind):
    path = damaged(tmp_path, kind)
    with pytest.raises(UserError, match=f"^checkpoint {re.escape(path)} ") as caught:
        checkpoint_utils.load_checkpoint_to_cpu(path)
    assert "\n" not in str(caught.value)


def test_missing_checkpoint_of_a_model_is_named_in_one_line(tmp_path):
    with pytest.raises(UserError, match=r"missing\.pt"):
        checkpoint_utils.load_model_ensemble([str(tmp_path / "missing.pt")])


def test_checkpoint_of_another_model_is_named_in_one_line(tmp_path):
    class Model(torch.nn.Linear):
        def set_num_updates(self, num_updates):
            """Part of fairseq's models."""

        def load_state_dict(self, state, strict, model_cfg):
            return super().load_state_dict(state, strict)

    trainer = argparse.Namespace(
        cfg=MagicMock(),
        tpu=False,
        is_fsdp=False,
        data_parallel_world_size=1,
        data_parallel_rank=0,
        model=Model(2, 3),
    )
    path = checkpoint(tmp_path / "checkpoint_last.pt")
    with pytest.raises(
        UserError, match=f"checkpoint {re.escape(path)} does not fit .*size mismatch"
    ) as caught:
        Trainer.load_checkpoint(trainer, path)
    assert "\n" not in str(caught.value)


# Literals


@pytest.mark.parametrize(
    "text",
    [
        "0.1",
        "[1, 2]",
        "(0.9, 0.98)",
        "{'a': None}",
        "0.1,0.2",
        " True",
        "[(512, 3)] * 20",
        "[(512, 10, 5)] + [(512, 3, 2)] * 4",
    ],
)
def test_literals_have_the_value_that_eval_gives(text):
    assert literals.literal(text) == eval(text.strip())


@pytest.mark.parametrize("text", ["__import__('os')", "print(1)", "[x for x in (1,)]", "a", "1 - 1", "(", ""])
def test_more_than_a_literal_is_refused(text):
    with pytest.raises(UserError, match="no literal"):
        literals.literal(text)


def test_no_string_is_a_type_error():
    with pytest.raises(TypeError):
        literals.literal(None)
    assert utils.eval_bool(None, default=True) is True


def test_every_module_of_the_host_reads_options_as_literals():
    written_in_python = [
        module
        for module in patching.host_modules()
        if module.__name__.startswith("fairseq.") and str(module.__file__).endswith(".py")
    ]
    evaluating = [
        module
        for module in written_in_python
        if re.search(r"(?<![.\w])eval\(", Path(module.__file__).read_text())
    ]
    assert len(evaluating) > 10
    assert [m.__name__ for m in evaluating if vars(m).get("eval") is not literals.literal] == []


@pytest.mark.parametrize(
    "text, program",
    [
        ("__import__('os').system('true')", True),
        ("os.system('true')", True),
        ("exec('1')", True),
        ("().__class__.__base__.__subclasses__()", True),
        ("[print(i) for i in (1,)]", True),
        ("runs(1)", False),
        ("/data(1)/x", False),
        ("(0.9, 0.98)", False),
        ("{'beam': 2}", False),
        ("a (b", False),
    ],
)
def test_programs_are_told_from_options(text, program):
    assert literals.is_program(text) is program


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


def test_loaded_encoder_evaluates(transformer):
    transformer.load_state_dict(transformer.state_dict(), strict=True)
    transformer.eval()
    post_norm = transformer.encoder.layers[0]
    post_norm.normalize_before = False
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


def test_one_process_stays_alone():
    cfg = distributed_options()
    distributed.infer_init_method(cfg)
    assert cfg.distributed_init_method is None and cfg.distributed_world_size == 1


def test_model_on_the_cpu_is_replicated(tmp_path):
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        cfg = distributed_options(ddp_backend="pytorch_ddp")
        group = torch.distributed.new_group()
        model = DistributedFairseqModel(cfg, torch.nn.Linear(2, 2), group, torch.device("cpu"))
        model(torch.ones(1, 2)).sum().backward()
    finally:
        torch.distributed.destroy_process_group()


# The package


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
