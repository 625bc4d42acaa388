"""Task cpd_pretrain: data, shards, resuming, and the way from pre-training to fine-tuning and generation."""

import json
import logging
import math
import os
import random
import re
import signal
import subprocess
import sys

import pytest
import torch
from fairseq.data import indexed_dataset
from helpers import PACKAGE, make_dictionary, make_genie, run_module
from omegaconf import OmegaConf
from test_study import run_script

from diffusion_fairseq.errors import UserError
from diffusion_fairseq.models.persistence import fingerprint
from diffusion_fairseq.tasks.cpd_pretrain import CPDPretrainConfig, CPDPretrainTask

# Iterators with readers in other processes, kept: torch waits five seconds for each reader of one that is thrown away.
READERS = []
WORDS = [f"word{i}" for i in range(30)]


def write_split(folder, split, lines):
    folder.mkdir(exist_ok=True)
    builder = indexed_dataset.make_builder(f"{folder}/{split}.bin", "mmap", vocab_size=50)
    for line in lines:
        builder.add_item(torch.tensor([*line, 2]))
    builder.finalize(f"{folder}/{split}.idx")


def make_data(folder, lengths=range(20, 60), mask="<mask>"):
    """A shard whose i-th document consists of word i % 30; without mask the dictionary has none."""
    write_split(folder, "train", [[4 + i % 30] * n for i, n in enumerate(lengths)])
    dictionary = make_dictionary(30)
    if mask:
        dictionary.add_symbol(mask)
    dictionary.save(f"{folder}/dict.txt")
    return folder


def make_task(*folders, **options):
    given = {"data": ":".join(map(str, folders)), "seed": 1, "train_subset": "train", "dataset_impl": None,
             "required_seq_len_multiple": 1, "num_shards": 1, "shard_id": 0, "min_document_tokens": 10, **options}
    return CPDPretrainTask.setup_task(OmegaConf.merge(OmegaConf.structured(CPDPretrainConfig), given))


def batches_of(task, epoch=1, **options):
    task.load_dataset("train", epoch=epoch, combine=True)
    READERS.append(task.get_batch_iterator(task.dataset("train"), max_sentences=4, seed=1, epoch=epoch, **options))
    return READERS[-1]


def drawn(iterator, stop=None):
    """(id, source, target) of the next examples, in order; padding left out."""
    found = []
    for _ in range(len(iterator) - iterator.n if stop is None else stop):
        batch = next(iterator)
        for row, index in enumerate(batch["id"].tolist()):
            sides = batch["net_input"]["src_tokens"][row], batch["target"][row]
            found.append((index, *(tuple(side[side != 1].tolist()) for side in sides)))
    return found


@pytest.mark.parametrize("workers", [0, 1, 4])
def test_resuming_in_the_middle_of_an_epoch_gives_exactly_the_remaining_examples(tmp_path, workers):
    data = make_data(tmp_path / "a")
    whole = drawn(batches_of(make_task(data), epoch=3).next_epoch_itr())
    assert sorted(index for index, *_ in whole) == list(range(40))
    stopped = batches_of(make_task(data), epoch=3, num_workers=workers)
    seen = drawn(stopped.next_epoch_itr(), stop=4)
    state = stopped.state_dict()
    resumed = batches_of(make_task(data), epoch=state["epoch"], num_workers=workers)
    resumed.load_state_dict(state)
    assert seen + drawn(resumed.next_epoch_itr()) == whole


def test_examples_are_the_same_on_any_number_of_devices_and_fresh_in_each_epoch(tmp_path):
    data = make_data(tmp_path / "a")
    epochs = [drawn(batches_of(make_task(data), epoch=e).next_epoch_itr()) for e in (1, 2)]
    assert len(set(epochs[0]) & set(epochs[1])) < 10
    parts = [drawn(batches_of(make_task(data), num_shards=2, shard_id=i).next_epoch_itr()) for i in range(2)]
    assert sorted(parts[0] + parts[1]) == sorted(epochs[0]) and not set(parts[0]) & set(parts[1])


def test_a_run_on_into_the_next_epoch_sees_what_a_resumed_one_sees(tmp_path):
    task = make_task(make_data(tmp_path / "a"))
    first = batches_of(task)
    drawn(first.next_epoch_itr())
    on = task.get_batch_iterator(task.dataset("train"), max_sentences=4, seed=1, epoch=first.next_epoch_idx)
    assert drawn(on.next_epoch_itr()) == drawn(batches_of(make_task(task.cfg.data), epoch=2).next_epoch_itr())


def test_shards_take_turns(tmp_path):
    folders = [make_data(tmp_path / name, lengths) for name, lengths in (("a", [20] * 3), ("b", [30] * 5))]
    task = make_task(*folders)
    for epoch, count in ((1, 3), (2, 5), (3, 3)):
        task.load_dataset("train", epoch=epoch)
        assert len(task.dataset("train")) == count
    write_split(folders[0], "valid", [[5] * 40])
    task.load_dataset("valid", epoch=2)
    assert len(task.dataset("valid")) == 1


def test_what_is_left_out_is_counted_in_one_line(tmp_path, caplog):
    with caplog.at_level(logging.INFO):
        make_task(make_data(tmp_path / "a", [5, 9, 10, 40, 0])).load_dataset("train")
    assert [m for m in caplog.messages if "2 of 4 documents left out: fewer than 10 tokens" in m]


def test_blank_lines_end_documents(tmp_path):
    write_split(make_data(tmp_path / "a"), "train", [[4] * 8, [5] * 8, [], [6] * 8, [7] * 30, [8] * 4])
    task = make_task(tmp_path / "a", document_break="blank", tokens_per_sample=20)
    task.load_dataset("train")
    examples = task.dataset("train")
    documents = [examples.documents[i].tolist() for i in examples.kept]
    assert documents == [[4] * 8 + [5] * 8, [7] * 20, [7] * 10 + [8] * 4]


def test_documents_are_cut_to_what_the_model_takes(tmp_path, caplog):
    task = make_task(make_data(tmp_path / "a", [512, 600]), max_source_positions=256, max_target_positions=31)
    task.load_dataset("train")
    source, target = task.dataset("train").sizes.max(axis=0)
    assert (source, target) == (103 - 30 + 2, 31)
    assert "documents cut to 103 tokens, not 512" in caplog.text
    with pytest.raises(UserError, match="do not fit.*--max-target-positions"):
        make_task(tmp_path / "a", max_target_positions=3).load_dataset("train")


@pytest.mark.parametrize("options, message", [
    ({"document_break": "chapter"}, "--document-break 'chapter' is unknown: choose one of line, blank"),
    ({"paragraph_ratio": 1.0}, "--paragraph-ratio must be between 0 and 1"),
    ({"tokens_per_sample": 0}, "--tokens-per-sample must be at least 1"),
    ({"min_document_tokens": 0}, "--min-document-tokens must be at least 1"),
    ({"seed": -1}, "--seed must not be negative"),
    ({"source_lang": "en"}, "--source-lang has no use here"),
    ({"solver": "magic"}, "--solver"),
])
def test_bad_options_are_refused(tmp_path, options, message):
    with pytest.raises(UserError, match=message):
        make_task(make_data(tmp_path / "a"), **options)


def test_bad_data_is_refused(tmp_path):
    with pytest.raises(UserError, match="lacks the word <mask>: append the line '<mask> 0'"):
        make_task(make_data(tmp_path / "a", mask=None))
    with open(tmp_path / "a" / "dict.txt", "a") as dictionary:
        dictionary.write("<mask> 0\n")
    task = make_task(tmp_path / "a")
    with pytest.raises(UserError, match="holds no holdout.idx"):
        task.load_dataset("holdout")
    write_split(tmp_path / "a", "empty", [[], []])
    with pytest.raises(UserError, match="empty lines only"):
        task.load_dataset("empty")
    write_split(tmp_path / "a", "short", [[5] * 4])
    with pytest.raises(UserError, match="1 of 1 documents left out"):
        task.load_dataset("short")
    with pytest.raises(UserError, match="no dictionary"):
        (tmp_path / "b").mkdir()
        make_task(tmp_path / "b")


def test_the_mask_of_bert_s_dictionary_is_taken(tmp_path):
    task = make_task(make_data(tmp_path / "a", mask="[MASK]"))
    task.load_dataset("train")
    assert task.src_dict.index("[MASK]") in task.dataset("train")[0]["source"]


LENGTHS = {"max_source_positions": 32, "max_target_positions": 24, "length_model": "predicted"}
TABLES = {"encoder.positions.weight": (32, 20), "positions.weight": (24, 40),
          "length_predictor.absolute.weight": (25, 41), "length_predictor.absolute.bias": (25, 41)}


def test_weights_of_other_lengths_are_taken_over(caplog):
    dictionary = make_dictionary()
    trained = make_genie(dictionary, seed=1, **LENGTHS).state_dict()
    tuned = make_genie(dictionary, seed=2, **{**LENGTHS, "max_source_positions": 20, "max_target_positions": 40})
    initial = {key: value.clone() for key, value in tuned.state_dict().items()}
    with caplog.at_level(logging.INFO):
        tuned.load_state_dict(dict(trained))
    for key, value in tuned.state_dict().items():
        theirs, ours = TABLES.get(key, (None, None))
        if theirs is None:
            assert value.equal(trained[key]), key
        else:
            rows = min(theirs, ours)
            assert value[:rows].equal(trained[key][:rows]) and value[rows:].equal(initial[key][rows:]), key
    line, = [m for m in caplog.messages if "other lengths" in m]
    assert all(f"{key} {theirs} -> {ours}" in line for key, (theirs, ours) in TABLES.items())


def test_a_resumed_run_keeps_its_lengths():
    """The optimizer's state would not fit; after fine-tuning has begun, nothing is left to refuse."""
    dictionary = make_dictionary()
    trained = make_genie(dictionary, **LENGTHS)
    trained.longest_target.fill_(24)
    trained.met_tokens[:9] = 1
    same, other = (make_genie(dictionary, **{**LENGTHS, "max_target_positions": n}) for n in (24, 40))
    for model in (same, other):
        model.load_state_dict(trained.state_dict())
    with pytest.raises(UserError, match="cannot go on with other lengths .*--finetune-from-model"):
        other.set_num_updates(100)
    same.set_num_updates(100)
    assert same.longest_target == 24 and same.met_tokens.sum() == 9
    other.load_state_dict(trained.state_dict())
    for update in range(3):
        other.set_num_updates(update)
    assert other.longest_target == other.met_tokens.sum() == 0, "pre-training's targets say nothing about this task's"


def test_other_timesteps_forget_the_losses_met_at_the_old_ones():
    dictionary = make_dictionary()
    trained, tuned = (make_genie(dictionary, diffusion_timesteps=n) for n in (40, 50))
    for model in (trained, tuned):
        model.timestep_sampler("loss-second-moment")
    trained.timesteps.counts.fill_(7)
    tuned.load_state_dict(trained.state_dict())
    assert tuned.timesteps.counts.shape == (50,) and not tuned.timesteps.counts.any()


def test_other_widths_and_other_dictionaries_are_refused():
    dictionary = make_dictionary()
    model = make_genie(dictionary)
    with pytest.raises(RuntimeError, match="size mismatch"):
        model.load_state_dict(make_genie(dictionary, model_dim=32).state_dict())
    smaller = make_genie(make_dictionary(39))
    with pytest.raises(UserError, match="of 44 types, .* has 43 .*append '<mask> 0'"):
        smaller.load_state_dict(model.state_dict())
    with pytest.raises(UserError, match="of 43 types, .* has 44 .*use the data it was trained with"):
        model.load_state_dict(smaller.state_dict())


def test_other_words_in_a_dictionary_of_the_same_size_are_refused(tmp_path):
    dictionary, shuffled = make_dictionary(), make_dictionary()
    shuffled.symbols[-2:] = reversed(shuffled.symbols[-2:])
    model, other = make_genie(dictionary), make_genie(dictionary)
    model.dictionaries = {"source": fingerprint(dictionary), "target": fingerprint(dictionary)}
    other.dictionaries = {"source": fingerprint(dictionary), "target": fingerprint(shuffled)}
    torch.save(model.state_dict(), tmp_path / "weights.pt")
    state = torch.load(tmp_path / "weights.pt", weights_only=True)
    model.load_state_dict(state)
    with pytest.raises(UserError, match="another target dictionary, of as many types"):
        other.load_state_dict(state)
    other.load_state_dict(dict(state))


# The road through the host's commands.

CPD = ["--task", "cpd_pretrain", "--max-source-positions", "40", "--max-target-positions", "16", "--tokens-per-sample",
       "40", "--min-document-tokens", "10"]
TUNE = ["--task", "seq2seq_diffusion", "--max-source-positions", "16", "--max-target-positions", "24"]
TRAIN = ["--arch", "genie_tiny", "--criterion", "diffusion_vlb", "--optimizer", "adam", "--lr", "1e-3", "--batch-size",
         "16", "--cpu", "--log-format", "json", "--log-interval", "1", "--seed", "7", "--diffusion-timesteps", "40"]


def write_text(path, count, seed, longest=60):
    rng = random.Random(seed)
    path.write_text("".join(" ".join(rng.choices(WORDS, k=rng.randint(4, longest))) + "\n" for _ in range(count)))


@pytest.fixture(scope="module")
def work(tmp_path_factory):
    """Two shards of documents, pairs with the same dictionary, and a pre-trained checkpoint with EMA."""
    folder = tmp_path_factory.mktemp("cpd")
    for split, count in (("train", 120), ("train2", 100), ("valid", 12), ("test", 9)):
        write_text(folder / f"{split}.txt", count, seed=count)
        for side in ("src", "tgt"):
            write_text(folder / f"{split}.{side}", count, seed=count, longest=10)
    run_module("preprocess", "--only-source", "--trainpref", folder / "train.txt", "--validpref", folder / "valid.txt",
               "--testpref", folder / "test.txt", "--destdir", folder / "bin", plugin=False)
    dictionary = folder / "bin" / "dict.txt"
    dictionary.write_text(dictionary.read_text() + "<mask> 0\n")
    run_module("preprocess", "--only-source", "--trainpref", folder / "train2.txt", "--srcdict", dictionary,
               "--destdir", folder / "bin2", plugin=False)
    run_module("preprocess", "--source-lang", "src", "--target-lang", "tgt", "--trainpref", folder / "train",
               "--validpref", folder / "valid", "--testpref", folder / "test", "--srcdict", dictionary,
               "--joined-dictionary", "--destdir", folder / "pairs", plugin=False)
    run_module("train", folder / "bin", *CPD, *TRAIN, "--save-dir", folder / "ck", "--max-update", "60",
               "--disable-validation", "--num-workers", "0")
    return folder


def losses(log):
    """num_updates -> training loss."""
    found = [line.split(" | train_inner | ") for line in log.splitlines()]
    records = [json.loads(parts[1]) for parts in found if len(parts) == 2]
    return {int(r["num_updates"]): float(r["loss"]) for r in records}


def hypotheses(output):
    return {int(i): text for i, text in re.findall(r"^H-(\d+)\t[^\t]+\t(.*)$", output, re.M)}


@pytest.mark.slow
@pytest.mark.parametrize("workers", ["1", "4"])
def test_killed_pretraining_resumes_and_ends_as_if_nothing_had_happened(work, tmp_path, workers):
    data = f"{work / 'bin'}:{work / 'bin2'}"
    options = [*CPD, *TRAIN, "--max-update", "28", "--disable-validation", "--num-workers", workers]
    log = run_module("train", data, *options[:-1], "0", "--save-dir", tmp_path / "whole").stdout
    whole = losses(log)
    # Saved at update 14, in the middle of the second epoch and shard, and killed well before 28.
    command = [sys.executable, "-m", "fairseq_cli.train", data, *options, "--user-dir", str(PACKAGE), "--save-dir",
               str(tmp_path / "killed"), "--save-interval-updates", "14", "--save-interval", "100"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
                               env={**os.environ, "OMP_NUM_THREADS": "1"}, start_new_session=True)
    for line in process.stdout:
        if '"num_updates": "17"' in line:
            os.killpg(process.pid, signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    resumed = losses(run_module("train", data, *options, "--save-dir", tmp_path / "killed").stdout)
    assert min(resumed) == 15 and max(resumed) == 28
    assert "begin training epoch 3" in log and "bin2/train" in log
    for update, loss in resumed.items():
        assert math.isclose(loss, whole[update], abs_tol=1e-4), update


@pytest.mark.slow
def test_generation_and_validation_fill_in_the_paragraphs(work):
    options = [work / "bin", *CPD, "--path", work / "ck" / "checkpoint_last.pt", "--cpu"]
    done = run_module("generate", *options, "--diffusion-steps", "5")
    lines = [line.split() for line in (work / "test.txt").read_text().splitlines()]
    documents = [line[i : i + 40] for line in lines for i in range(0, len(line), 40)]
    documents = [document for document in documents if len(document) >= 10]
    assert sorted(hypotheses(done.stdout)) == list(range(len(documents)))
    for kind in "ST":
        assert len(re.findall(rf"^{kind}-\d+\t", done.stdout, re.M)) == len(documents)
    for index, source in re.findall(r"^S-(\d+)\t(.*)$", done.stdout, re.M):
        target = re.search(rf"^T-{index}\t(.*)$", done.stdout, re.M)[1]
        assert source.replace("<mask>", target).split() == documents[int(index)]
    run_module("validate", *options, "--criterion", "diffusion_vlb", "--valid-subset", "test", "--batch-size", "4")
    line = "word1 word2 <mask> word3 word4\n"
    done = run_module("interactive", *options, "--diffusion-steps", "5", stdin=line)
    assert list(hypotheses(done.stdout)) == [0]


@pytest.mark.slow
def test_fine_tuning_with_other_lengths_resumes_and_generates(work, tmp_path):
    pretrained = torch.load(work / "ck" / "checkpoint_last.pt", weights_only=True)
    pretrained["extra_state"]["previous_training_time"] = 36000  # which are not this training's hours
    torch.save(pretrained, tmp_path / "pretrained.pt")
    options = [work / "pairs", *TUNE, *TRAIN, "--save-dir", tmp_path, "--finetune-from-model",
               tmp_path / "pretrained.pt", "--num-workers", "0", "--length-margin", "1", "--stop-time-hours", "1"]
    log = run_module("train", *options, "--max-update", "10").stdout
    assert "detected shared parameter" not in log
    assert "encoder.positions.weight 40 -> 16, positions.weight 16 -> 24" in log
    assert sorted(losses(log)) == list(range(1, 11))
    log = run_module("train", *options, "--max-update", "14").stdout
    assert sorted(losses(log)) == [11, 12, 13, 14] and "of other lengths" not in log
    done = run_module("generate", work / "pairs", *TUNE, "--path", tmp_path / "checkpoint_last.pt", "--cpu",
                      "--diffusion-steps", "5")
    assert len(hypotheses(done.stdout)) == 9
    options[options.index("--max-target-positions") + 1] = "30"
    failed = run_module("train", *options, "--max-update", "16", check=False)
    assert failed.returncode and "Traceback" not in failed.stderr
    assert re.search("^error: training cannot go on with other lengths", failed.stderr, re.M)


@pytest.mark.slow
@pytest.mark.parametrize("with_ema", [False, True])
def test_fine_tuning_starts_an_ema_from_weights_with_and_without_one(work, tmp_path, with_ema):
    pretrained, ema = work / "ck" / "checkpoint_last.pt", ["--store-ema", "--ema-fp32", "--ema-decay", "0.5"]
    # The EMA is begun before the law of t that training learns.
    options = [work / "pairs", *TUNE, *TRAIN, *ema, "--num-workers", "0", "--max-update", "2", "--timestep-sampler",
               "loss-second-moment"]
    if with_ema:  # of tables as long as these, while the next model's are longer
        run_module("train", *options, "--save-dir", tmp_path / "first", "--finetune-from-model", pretrained)
        pretrained = tmp_path / "first" / "checkpoint_last.pt"
        options[options.index("--max-target-positions") + 1] = "30"
    run_module("train", *options, "--save-dir", tmp_path / "ck", "--finetune-from-model", pretrained)
    last = torch.load(tmp_path / "ck" / "checkpoint_last.pt", weights_only=True)
    run_script("export_checkpoint.py", "--ema", tmp_path / "ck" / "checkpoint_last.pt", "--output", tmp_path / "ema.pt")
    exported = torch.load(tmp_path / "ema.pt", weights_only=True)["model"]
    assert exported.keys() == last["model"].keys()
    assert all(exported[name].equal(last["model"][name]) for name in ("timesteps.counts", "longest_target",
                                                                      "met_tokens"))
    extra = last["extra_state"]
    assert extra["ema"]["positions.weight"].shape == extra["ema_fp32_params"]["positions.weight"].shape
    assert len(extra["ema"]["positions.weight"]) == (30 if with_ema else 24)


@pytest.mark.slow
@pytest.mark.parametrize("options, message", [
    (["--latent-dim", "16"], "does not fit this model: it was trained with --latent-dim 32: give the same .*mismatch"),
    (["--copy-source", "--encoder-layers", "1"],
     "does not fit this model: it was trained with --encoder-layers 2, no --copy-source: give the same "),
    (["--arch", "genie_small"], "does not fit this model: it was trained with --arch genie_tiny: give the same "),
    ([], "another target dictionary"),
])
def test_what_no_length_explains_ends_in_one_line(work, tmp_path, options, message):
    for file in (work / "pairs").iterdir():
        (tmp_path / file.name).symlink_to(file)
    if not options:
        lines = (work / "pairs" / "dict.tgt.txt").read_text().splitlines(keepends=True)
        (tmp_path / "dict.tgt.txt").unlink()
        (tmp_path / "dict.tgt.txt").write_text("".join(lines[1::-1] + lines[2:]))
    done = run_module("train", tmp_path, *TUNE, *TRAIN, "--save-dir", tmp_path / "ck", "--finetune-from-model",
                      work / "ck" / "checkpoint_last.pt", "--max-update", "2", *options, check=False)
    errors = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert done.returncode and len(errors) == 1 and re.search(message, errors[0]), done.stderr[-2000:]
    assert "Traceback" not in done.stderr


def test_a_space_before_a_typed_mask_is_left_out(tmp_path):
    task = make_task(make_data(tmp_path))
    task.src_dict.symbols[5], task.src_dict.indices["\u2581"] = "\u2581", 5
    line = torch.tensor([4, 5, task.mask, 6, 2])
    found = task.build_dataset_for_inference([line], torch.tensor([5]))
    assert found[0]["source"].tolist() == [4, task.mask, 6, 2] and found.src_sizes.tolist() == [4]
