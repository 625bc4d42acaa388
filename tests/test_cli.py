"""The whole road through fairseq's own commands: preprocess, train, resume, generate, interactive."""

import json
import math
import os
import random
import re
import signal
import subprocess
import sys

import pytest
import torch
from helpers import PACKAGE, run_module

pytestmark = pytest.mark.slow

WORDS = [f"word{i}" for i in range(30)]
MODEL = ["--task", "seq2seq_diffusion", "--max-source-positions", "16", "--max-target-positions", "12"]
TRAIN = [*MODEL, "--arch", "genie_tiny", "--criterion", "diffusion_vlb", "--optimizer", "adam", "--lr", "3e-3",
         "--batch-size", "32", "--cpu", "--log-format", "json", "--log-interval", "1", "--seed", "7",
         "--num-workers", "0"]


def write_pairs(folder, split, count, seed):
    rng = random.Random(seed)
    lines = [" ".join(rng.choices(WORDS, k=rng.randint(3, 8))) for _ in range(count)]
    for side in ("src", "tgt"):
        (folder / f"{split}.{side}").write_text("".join(line + "\n" for line in lines))
    return lines


def preprocess(folder, destination, test, *more):
    run_module("preprocess", "--source-lang", "src", "--target-lang", "tgt", "--trainpref", folder / "train",
               "--validpref", folder / "valid", "--testpref", folder / test, "--destdir", destination,
               "--joined-dictionary", *more, plugin=False)
    return destination


def preprocess_pairs_and_lines(folder, train, test):
    """So many pairs of each kind, 13 of valid, binarised in bin/, and their sources as lines in lm/, with <mask>."""
    for split, count, seed in (("train", train, 1), ("valid", 13, 2), ("test", test, 3)):
        write_pairs(folder, split, count, seed)
    preprocess(folder, folder / "bin", "test")
    run_module("preprocess", "--only-source", "--trainpref", folder / "train.src", "--validpref", folder / "valid.src",
               "--testpref", folder / "test.src", "--destdir", folder / "lm", plugin=False)
    with open(folder / "lm" / "dict.txt", "a") as dictionary:
        dictionary.write("<mask> 0\n")
    return folder


@pytest.fixture(scope="module")
def work(tmp_path_factory):
    """Text, two data folders (a test set of 101 lines with an empty one, and of 5), and a trained checkpoint."""
    folder = tmp_path_factory.mktemp("cli")
    write_pairs(folder, "train", 200, 1)
    write_pairs(folder, "valid", 13, 2)
    test = write_pairs(folder, "test", 101, 3)
    test[17] = ""
    test[40] = " ".join(WORDS)
    for side in ("src", "tgt"):
        (folder / f"test.{side}").write_text("".join(line + "\n" for line in test))
        (folder / f"five.{side}").write_text("".join(line + "\n" for line in test[:5]))
    preprocess(folder, folder / "bin", "test")
    preprocess(folder, folder / "bin5", "five", "--srcdict", folder / "bin" / "dict.src.txt")
    run_module("train", folder / "bin", *TRAIN, "--save-dir", folder / "ck", "--max-update", "120", "--store-ema",
               "--ema-decay", "0.9", "--ema-fp32")
    return folder


def checkpoint(work):
    return work / "ck" / "checkpoint_last.pt"


def generate(work, *options, data="bin", check=True, path=None):
    return run_module("generate", work / data, *MODEL, "--path", path or checkpoint(work), "--cpu",
                      "--diffusion-steps", "8", *options, check=check)


def hypotheses(output):
    """id -> list of (score, text)."""
    found = {}
    for line in output.splitlines():
        match = re.fullmatch(r"H-(\d+)\t([^\t]+)\t(.*)", line)
        if match:
            found.setdefault(int(match[1]), []).append((float(match[2]), match[3]))
    return found


def assert_same(one, other):
    assert one.keys() == other.keys()
    for key in one:
        for (score_1, text_1), (score_2, text_2) in zip(one[key], other[key], strict=True):
            assert text_1 == text_2 and math.isclose(score_1, score_2, abs_tol=1e-5), (key, text_1, text_2)


def one_line_error(done, pattern):
    """The command failed with one line that matches, and no traceback."""
    assert done.returncode != 0
    lines = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1 and re.search(pattern, lines[0]), done.stderr[-2000:]
    assert "Traceback" not in done.stderr and not any(line.startswith("H-") for line in done.stdout.splitlines())


def test_generate_prints_every_sentence_once(work):
    """The host drops the remainder of a batch that is no multiple of 8."""
    for data, count in (("bin", 101), ("bin5", 5)):
        done = generate(work, data=data)
        found = hypotheses(done.stdout)
        assert sorted(found) == list(range(count)) and all(len(h) == 1 for h in found.values())
    assert re.search(r"^S-17\t$", generate(work).stdout, re.M), "the empty line has lost its place"


def test_long_sources_and_targets_are_cut_and_counted(work):
    done = generate(work)
    for side, length in (("sources", 16), ("targets", 12)):
        assert f"1 of 101 {side} cut to {length} tokens" in done.stdout + done.stderr


@pytest.mark.parametrize("options", [["--solver", "ddpm"], ["--solver", "ddim", "--clamping"]], ids=" ".join)
def test_same_text_whatever_the_batch(work, options):
    batches = hypotheses(generate(work, *options, "--batch-size", "64").stdout)
    assert_same(batches, hypotheses(generate(work, *options, "--batch-size", "1").stdout))
    assert_same(batches, hypotheses(generate(work, *options, "--max-tokens", "90").stdout))
    five = hypotheses(generate(work, *options, data="bin5").stdout)
    assert_same({i: batches[i] for i in range(5)}, five)


def test_interactive_gives_the_text_of_generate_in_any_order(work):
    lines = (work / "five.src").read_text().splitlines()
    expected = hypotheses(generate(work, "--candidates", "3", "--nbest", "2", data="bin5").stdout)
    for order, buffer in ((range(5), "1"), (range(4, -1, -1), "4")):
        done = run_module("interactive", work / "bin", *MODEL, "--path", checkpoint(work), "--cpu",
                          "--diffusion-steps", "8", "--candidates", "3", "--nbest", "2", "--buffer-size", buffer,
                          "--batch-size", buffer, stdin="".join(lines[i] + "\n" for i in order))
        found = hypotheses(done.stdout)
        assert_same({place: expected[i] for place, i in enumerate(order)}, found)


def test_history_and_rouge(work):
    done = generate(work, "--retain-iter-history", "--scoring", "rouge", data="bin5")
    assert len(re.findall(r"^E-0_\d+\t", done.stdout, re.M)) == 8
    assert re.search(r"Generate test .*rouge1 = .*rougeL = ", done.stdout)


def test_early_exit_prints_the_steps_it_used(work):
    done = generate(work, "--exit-patience", "2", "--clamping", "--print-step", "--solver", "dpmpp-2m",
                    "--sampling-grid", "log-snr")
    assert re.search(r"steps used: mean [\d.]+ of 8, 101 hypotheses", done.stdout + done.stderr)
    assert len(re.findall(r"^I-\d+\t\d+$", done.stdout, re.M)) == 101


def test_validate_counts_every_sentence(work):
    def validated(size):
        done = run_module("validate", work / "bin", *MODEL, "--criterion", "diffusion_vlb", "--path", checkpoint(work),
                          "--valid-subset", "test", "--cpu", "--log-format", "json", "--batch-size", size)
        return json.loads(re.findall(r"\| test \| (\{.*\})", done.stdout + done.stderr)[-1])

    record, in_eights = validated(20), validated(8)
    assert math.isfinite(float(record["test_loss"]))
    assert {"test_mse", "test_rounding", "test_prior", "test_length"} <= set(record)
    # No noise is drawn for the lengths: of all 101 sentences they cost the same in any batches.
    assert math.isclose(float(record["test_length"]), float(in_eights["test_length"]), rel_tol=2e-4)


def test_own_checkpoints_need_no_allow_list(work):
    unsafe = getattr(torch.serialization, "get_unsafe_globals_in_checkpoint", None)
    if unsafe is None:
        pytest.skip("this torch cannot list the globals of a checkpoint")
    assert unsafe(str(checkpoint(work))) == []


def test_ema_has_the_keys_of_the_model(work):
    state = torch.load(checkpoint(work), weights_only=True)
    ema = state["extra_state"]["ema_fp32_params" if "ema_fp32_params" in state["extra_state"] else "ema"]
    assert ema.keys() == state["model"].keys()


def losses(log):
    """num_updates -> training loss."""
    found = [line.split(" | train_inner | ") for line in log.splitlines()]
    records = [json.loads(parts[1]) for parts in found if len(parts) == 2]
    return {int(r["num_updates"]): float(r["loss"]) for r in records}


@pytest.mark.parametrize("own", [["--timestep-sampler", "low-discrepancy"],
                                 ["--timestep-sampler", "loss-second-moment"], ["--bf16"],
                                 ["--store-ema", "--ema-fp32", "--ema-decay", "0.9"],
                                 ["--bf16", "--store-ema", "--ema-fp32", "--ema-decay", "0.9"]], ids=" ".join)
def test_killed_training_resumes_and_ends_as_if_nothing_had_happened(work, tmp_path, own):
    options = [*TRAIN, "--max-update", "24", *own, "--diffusion-timesteps", "40", "--disable-validation"]
    whole = losses(run_module("train", work / "bin", *options, "--save-dir", tmp_path / "whole").stdout)
    # Saved at update 10, in the middle of an epoch of 7 updates, and not at the epoch's end; killed well before 20.
    command = [sys.executable, "-m", "fairseq_cli.train", str(work / "bin"), *map(str, options), "--user-dir",
               str(PACKAGE), "--save-dir", str(tmp_path / "killed"), "--save-interval-updates", "10",
               "--save-interval", "100"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
                               env={**os.environ, "OMP_NUM_THREADS": "1"})
    for line in process.stdout:
        if '"num_updates": "13"' in line:
            process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    resumed = losses(run_module("train", work / "bin", *options, "--save-dir", tmp_path / "killed").stdout)
    assert min(resumed) == 11 and max(resumed) == 24
    for update, loss in resumed.items():
        assert math.isclose(loss, whole[update], abs_tol=1e-4), update
    ends = [torch.load(tmp_path / name / "checkpoint_last.pt", weights_only=True) for name in ("whole", "killed")]
    parts = [{"model": end["model"], **{name: end["extra_state"][name] for name in ("ema", "ema_fp32_params")
                                        if "--store-ema" in own}} for end in ends]
    for name, whole_part in parts[0].items():
        assert whole_part.keys() == parts[1][name].keys()
        assert all(value.equal(parts[1][name][key]) for key, value in whole_part.items()), name
    if "--store-ema" in own:
        assert not all(value.equal(parts[0]["model"][key]) for key, value in parts[0]["ema"].items())


class Payload:
    """A pickle that leaves a file where it is loaded as code."""

    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return os.system, (f"touch {self.marker}",)


@pytest.mark.parametrize("command", ["generate", "interactive", "train"])
def test_checkpoint_with_code_in_it_is_refused(work, tmp_path, command):
    marker, evil = tmp_path / "marker", tmp_path / "checkpoint_last.pt"
    state = torch.load(checkpoint(work), weights_only=True)
    state["extra_state"]["payload"] = Payload(marker)
    torch.save(state, evil)
    if command == "train":
        done = run_module("train", work / "bin", *TRAIN, "--save-dir", tmp_path, "--max-update", "122", check=False)
    elif command == "generate":
        done = generate(work, path=evil, check=False)
    else:
        done = run_module("interactive", work / "bin", *MODEL, "--path", evil, "--cpu", stdin="word1\n", check=False)
    one_line_error(done, str(evil))
    assert not marker.exists()


@pytest.mark.parametrize("options, message", [
    (["--diffusion-steps", "0"], "--diffusion-steps must be at least 1"),
    (["--diffusion-steps", "2001"], "--diffusion-steps 2001 exceeds the 2000"),
    (["--solver", "magic"], "--solver 'magic'"),
    (["--nbest", "3"], "--nbest 3"),
    (["--path", "{work}/ck/checkpoint_last.pt:{work}/ck/checkpoint_best.pt"], "several models"),
    (["--gen-subset", "holdout"], "holds no holdout"),
    (["--path", "{work}/nowhere.pt"], "nowhere.pt"),
    (["--bpe", "sentencepiece", "--sentencepiece-model", "{work}/nowhere.model"], "nowhere.model"),
])
def test_bad_options_end_in_one_line(work, options, message):
    one_line_error(generate(work, *(o.format(work=work) for o in options), check=False), message)


@pytest.mark.parametrize("options, message", [
    (["--noise-schedule", "magic"], "--noise-schedule.*'magic'.*sqrt"),
    (["--timestep-sampler", "magic"], "--timestep-sampler 'magic'"),
    (["--share-embeddings", "--latent-dim", "5"], "--latent-dim"),
])
def test_bad_training_options_end_in_one_line(work, tmp_path, options, message):
    done = run_module("train", work / "bin", *TRAIN, "--save-dir", tmp_path, "--max-update", "1", *options, check=False)
    one_line_error(done, message)


def test_missing_dictionary_and_foreign_checkpoints(work, tmp_path):
    (tmp_path / "bin").mkdir()
    for file in (work / "bin").iterdir():
        if file.name != "dict.tgt.txt":
            (tmp_path / "bin" / file.name).symlink_to(file)
    done = run_module("generate", tmp_path / "bin", *MODEL, "--path", checkpoint(work), "--cpu", check=False)
    one_line_error(done, "no dictionary .*dict.tgt.txt")
    transformer = tmp_path / "transformer"
    run_module("train", work / "bin", "--arch", "transformer", "--optimizer", "adam", "--lr", "1e-3",
               "--max-update", "1", "--batch-size", "8", "--encoder-layers", "1", "--decoder-layers", "1",
               "--encoder-embed-dim", "16",
               "--decoder-embed-dim", "16", "--encoder-attention-heads", "2", "--decoder-attention-heads", "2",
               "--cpu", "--save-dir", transformer, "--disable-validation")
    done = generate(work, path=transformer / "checkpoint_last.pt", check=False)
    one_line_error(done, "architecture 'transformer'")
    done = run_module("generate", work / "bin", "--path", checkpoint(work), "--cpu", check=False)
    one_line_error(done, "--task seq2seq_diffusion")


def test_weights_that_are_not_finite_end_in_one_line(work, tmp_path):
    state = torch.load(checkpoint(work), weights_only=True)
    state["model"]["norm.bias"][0] = float("nan")
    torch.save(state, tmp_path / "nan.pt")
    one_line_error(generate(work, path=tmp_path / "nan.pt", check=False), "not finite.*norm.bias")


def test_sentencepiece_that_does_not_fit_the_dictionary(work, tmp_path):
    import sentencepiece

    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(["quite another text", "with other letters", "and none of those numbers"] * 20),
        model_prefix=str(tmp_path / "other"), vocab_size=40, hard_vocab_limit=False, minloglevel=2)
    options = ["--bpe", "sentencepiece", "--sentencepiece-model", str(tmp_path / "other.model")]
    one_line_error(generate(work, *options, check=False), "sentencepiece model .*other.model lacks")


@pytest.mark.parametrize("options", [
    ["--bf16"],
    ["--update-freq", "2", "--length-model", "longest", "--parameterization", "noise"],
    ["--eval-bleu", "--best-checkpoint-metric", "bleu", "--maximize-best-checkpoint-metric"],
    ["--eval-rouge", "--eval-rouge-steps", "3", "--eval-rouge-sentences", "5", "--eval-rouge-remove-bpe", "none",
     "--best-checkpoint-metric", "rouge_l", "--maximize-best-checkpoint-metric"],
    ["--num-batch-buckets", "2", "--max-tokens", "400", "--length-model", "fixed", "--padding-in-mean",
     "--noise-schedule", "pw_lin"],
    ["--adaptive-schedule-updates", "2", "--diffusion-timesteps", "60", "--noise-schedule", "points",
     "--noise-points", "0=0.999,0.5=0.3,1=0.001", "--bf16", "--store-ema", "--ema-fp32"],
], ids=lambda o: o[0])
def test_training_modes(work, tmp_path, options):
    done = run_module("train", work / "bin", *TRAIN, *options, "--save-dir", tmp_path, "--max-update", "8")
    found = losses(done.stdout)
    assert max(found) == 8 and all(math.isfinite(loss) for loss in found.values())
    assert '"valid_loss"' in done.stdout
    if "--eval-bleu" in options:
        assert '"valid_bleu"' in done.stdout
        assert torch.load(tmp_path / "checkpoint_last.pt", weights_only=True)["extra_state"]
    if "--eval-rouge" in options:
        assert '"valid_rouge_l"' in done.stdout and (tmp_path / "checkpoint_best.pt").exists()
    if hasattr(torch.serialization, "get_unsafe_globals_in_checkpoint"):
        assert torch.serialization.get_unsafe_globals_in_checkpoint(str(tmp_path / "checkpoint_last.pt")) == []
    assert len(hypotheses(generate(work, path=tmp_path / "checkpoint_last.pt", data="bin5").stdout)) == 5


def test_generation_in_bf16_and_with_compiled_layers(work):
    precise = hypotheses(generate(work, data="bin5").stdout)
    rounded = hypotheses(generate(work, "--bf16", data="bin5").stdout)
    assert len(rounded) == 5 and rounded != precise
    compiled = generate(work, "--compile-layers", data="bin5")
    assert len(hypotheses(compiled.stdout)) == 5


def test_exported_ema_decodes(work, tmp_path):
    script = PACKAGE.parent / "scripts" / "export_checkpoint.py"
    subprocess.run([sys.executable, script, "--ema", checkpoint(work), "--output", tmp_path / "ema.pt"], check=True)
    averaged = hypotheses(generate(work, path=tmp_path / "ema.pt", data="bin5").stdout)
    assert len(averaged) == 5 and averaged != hypotheses(generate(work, data="bin5").stdout)


def test_training_learns_to_copy(work, tmp_path):
    """Half a minute of training on a copying task: the loss falls well below that of the first updates."""
    done = run_module("train", work / "bin", *TRAIN, "--save-dir", tmp_path, "--max-update", "150",
                      "--disable-validation", "--share-embeddings")
    found = losses(done.stdout)
    first, last = (sum(found[u] for u in updates) / 10 for updates in (range(1, 11), range(141, 151)))
    assert last < 0.7 * first, (first, last)


def test_genie_base_trains_on_cpu(work, tmp_path):
    """The published size at batch 8, source 512, target 64, with a dictionary of BERT's size."""
    rng = random.Random(0)
    words = [f"w{i}" for i in range(30522 - 4)]
    (tmp_path / "dict.txt").write_text("".join(f"{word} 1\n" for word in words))
    for side, length in (("src", 511), ("tgt", 63)):
        text = "".join(" ".join(rng.choices(words, k=length)) + "\n" for _ in range(24))
        for split in ("train", "valid", "test"):
            (tmp_path / f"{split}.{side}").write_text(text)
    preprocess(tmp_path, tmp_path / "bin", "test", "--srcdict", tmp_path / "dict.txt", "--padding-factor", "1")
    done = run_module("train", tmp_path / "bin", "--task", "seq2seq_diffusion", "--arch", "genie_base", "--criterion",
                      "diffusion_vlb", "--optimizer", "adam", "--lr", "1e-4", "--batch-size", "8", "--max-update", "3",
                      "--cpu", "--save-dir", tmp_path / "ck", "--disable-validation", "--no-save", "--log-format",
                      "json", "--log-interval", "1", env={"OMP_NUM_THREADS": "2"})
    size = int(re.search(r"num\. trained: ([\d,]+)", done.stdout)[1].replace(",", ""))
    assert 140e6 < size < 150e6
    assert sorted(losses(done.stdout)) == [1, 2, 3]
