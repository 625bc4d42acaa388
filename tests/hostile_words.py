"""Broken and hostile options, lines, outputs and surroundings: see hostile_cases."""

import os

from hostile_cases import MODEL, Case, checkpoint, files, generate, interactive, model_option, train

ALL_SPLITS = ("train", "valid", "test")
RTL = "\u202b\u05e9\u05dc\u05d5\u05dd\u200f w1\n".encode()

OPTIONS = {
    **{f"generate {options}": Case(generate(options), names) for options, names in {
        "--difusion-steps 3": "unrecognized arguments: --difusion-steps.*did you mean --diffusion-steps",
        "--task seq2seq_difusion": "--task: invalid choice: 'seq2seq_difusion'.*did you mean seq2seq_diffusion",
        "--diffusion-steps three": "--diffusion-steps: invalid int value: 'three'",
        "--diffusion-steps 0": "--diffusion-steps must be at least 1, got 0",
        "--diffusion-steps 99999": "--diffusion-steps 99999 exceeds the",
        "--solver magic": "--solver 'magic' is unknown: choose.*ddpm",
        "--batch-size 0": "--batch-size must be at least 1, got 0",
        "--max-tokens 3": "--max-tokens 3: raise that",
        "--max-tokens -3": "--max-tokens must be at least 1, got -3",
        "--max-len-b -4": "--max-len-b must be at least 0, got -4",
        "--max-source-positions 0": "--max-source-positions must be at least 1, got 0",
        "--nbest 0": "--nbest must be at least 1, got 0",
        "--nbest 7": "--nbest 7 exceeds",
        "--rank-by beam": "--rank-by 'beam' is unknown: choose one of score, mbr",
        "--seed -1": "--seed must be at least 0, got -1",
        "--seed 99999999999": "--seed must be at most 4294967295, got",
        "--num-workers -1": "--num-workers must be at least 0, got -1",
        "--num-shards 0": "--num-shards must be at least 1, got 0",
        "--num-shards 2 --shard-id 5": "--shard-id must be from 0 to 1",
        "--initial-noise-scale inf": "--initial-noise-scale must be .*above 0, got inf",
        "--initial-noise-scale nan": "--initial-noise-scale must be .*above 0, got nan",
        "--ddim-eta 2": "--ddim-eta must be from 0 to 1, got 2",
        "--exit-entropy 1": "--exit-entropy.*give --exit-patience, too",
        "--guidance-scale 3": "--guidance-scale 3 needs a model trained with --condition-dropout",
        "--classifier-label good": "--classifier and --classifier-label belong together",
        "--model-overrides dropout=0": "--model-overrides is no dictionary such as.*'dropout=0'",
        "--post-process magic": "--post-process 'magic' is unknown: choose",
        "--bpe sentencepiece": "--bpe sentencepiece needs --sentencepiece-model",
        "--bpe sentencepiece --sentencepiece-model HERE/none": "--bpe: .*HERE/none",
        "--scoring magic": "--scoring: invalid choice: 'magic'.*rouge",
        "--sampling": "--sampling needs an --nbest as large as --beam",
        "--replace-unk": "--replace-unk needs --dataset-impl raw: leave it out",
        "--prefix-size 2 --score-reference": "--score-reference, --prefix-size: not served.*leave it out",
        "--beam 7": "--beam: not served.*give --candidates",
        "--temperature 0.7": "--temperature: not served.*give --score-temperature",
        "--ddim-eta 0.5": "--ddim-eta acts only with --solver ddim: give both, or leave it out",
        "--ddpm-variance beta --solver euler": "--ddpm-variance acts only with --solver ddpm",
        "--classifier-scale 3": "--classifier-scale acts only with --classifier: give both",
        "--print-alignment": "--print-alignment: not served.*leave it out",
        "--resume-generation HERE/none": "--resume-generation HERE/none: No such file.*name",
        "--truncate-source": "--truncate-source has no use here.*leave it out",
        "--iter-decode-max-iter 20": "--iter-decode-max-iter: not served.*give --diffusion-steps",
        "--iter-decode-eos-penalty 1 --retain-dropout": "--retain-dropout, --iter-decode-eos-penalty: not served.*out",
        "--diversity-rate 0.5 --no-early-stop": "--diversity-rate, --no-early-stop: not served.*leave it out",
        "--eos-token a --lm-weight 2": "--lm-weight, --eos-token: not served.*leave it out",
        "--results-path HERE/r --num-shards 2": "--results-path: all shards would write the same file; leave it out",
        "--results-path HERE/r --resume-generation HERE/f": "--results-path would put the rest .*: leave it out, and",
        "--rank-by mbr": "--rank-by acts only with --candidates above 1: give both, or leave it out",
        "--bpe sentencepiece --sentencepiece-model HERE/f": "HERE/f is no sentencepiece model, or a part.*give",
        "--bpe sentencepiece --sentencepiece-model HERE/f --sentencepiece-enable-sampling":
            "--sentencepiece-enable-sampling draws splits that no --seed fixes: leave it out",
        "--dataset-impl lazy": "WORK/bin/test.src-tgt cannot be read with --dataset-impl lazy: leave it out",
    }.items()},
    "generate without --path": Case(f"generate WORK/bin {MODEL}", "--path is needed: the checkpoint"),
    "generate without data": Case(f"generate {MODEL} --path x", "arguments are required: data"),
    "results in a file": Case(generate("--results-path HERE/f"), "--results-path HERE/f: .*no folder; name another",
                              files({"f": b"x"})),
    "results below a file": Case(generate("--results-path HERE/f/g"), "--results-path HERE/f/g: HERE/f is no folder",
                                 files({"f": b"x"})),
    **{f"train {options}": Case(train(options), names) for options, names in {
        "--arch nonesuch": "--arch.*'nonesuch' .choose one of fairseq's, or ddlm_base, .*, genie_tiny, latent_",
        "--arch genie_tinny": "--arch.*invalid choice: 'genie_tinny'.*did you mean genie_tiny",
        "--arch transformer_tiny": "--arch names a model of architecture 'transformer_tiny'.*it takes .*genie",
        "--arch ddlm_tiny --criterion score_interpolation": "pass --task diffusion_lm",
        "--arch diffuseq_tiny --share-embeddings": "--share-embeddings: an option of --arch genie_base, genie_small",
        "--anchor-weight 1": "--anchor-weight 1: an option of --criterion diffusion_anchor",
        "--criterion cross_entropy": "--criterion cross_entropy.*choose one of .*diffusion_vlb",
        "--criterion score_interpolation": "--criterion score_interpolation.*diffusion_vlb",
        "--task translation": "pass --task seq2seq_diffusion",
        "--eval-bleu --eval-bleu-args {x": "--eval-bleu-args: '{x' is no JSON",
        "--eval-bleu --eval-bleu-args [1]": "--eval-bleu-args: '.1.' is no JSON object",
        "--eval-bleu --eval-bleu-detok-args 3": "--eval-bleu-detok-args: '3' is no JSON object",
        "--eval-bleu --eval-bleu-detok foo": "--eval-bleu-detok 'foo' is unknown: choose one of moses",
        "--eval-bleu --eval-bleu-args {\"diffusion_steps\":3}": "--eval-bleu-args: .*'diffusion_steps'.*stand beside",
        "--eval-rouge --eval-rouge-steps 99999": "--eval-rouge-steps 99999 exceeds the .* timesteps",
        "--eval-rouge --eval-rouge-remove-bpe magic": "--eval-rouge-remove-bpe 'magic' is unknown: choose",
        "--eval-bleu --eval-bleu-remove-bpe magic": "--eval-bleu-remove-bpe 'magic' is unknown: choose sentencepiece",
        "--mse-weight -1": "--mse-weight must be at least 0, got -1",
        "--prior-weight nan": "--prior-weight must be at least 0, got nan",
        "--sentence-avg": "--sentence-avg: the losses of diffusion are means over positions; leave it out",
        "--length-model longest --length-margin -3": "--length-margin must be at least 0, got -3",
        "--lr x": "--lr: invalid .*'x'",
        "--lr -1": "--lr must be at least 0, got -1",
        "--batch-size-valid 0": "--batch-size-valid must be at least 1, got 0",
        "--update-freq 0": "--update-freq must be at least 1, got 0",
        "--clip-norm -1": "--clip-norm must be at least 0, got -1",
        "--warmup-updates -5 --lr-scheduler inverse_sqrt": "--warmup-updates must be at least 0, got -5",
        "--adam-betas magic": "'magic' is no literal",
        "--given-in-loss": "--given-in-loss has no use with this model, whose source is no part",
        "--fp16": "--fp16 needs a GPU: take --bf16",
        "--amp": "--amp needs a GPU: take --bf16",
        "--bf16 --store-ema": "--store-ema in half precision .* hardly moves: add --ema-fp32",
        "--noise-schedule linear --noise-gamma nan": "--noise-gamma: a noise schedule needs betas in .0, 1.",
        "--noise-schedule linear --noise-gamma 0": "--noise-gamma: a noise schedule needs betas .*, some above 0",
        "--dropout 2": "--dropout must be at least 0 and less than 1, got 2",
        "--model-dim 30 --attention-heads 4": "--model-dim 30 must be a multiple of --attention-heads 4",
        "--encoder-layers 0": "--encoder-layers must be at least 1, got 0",
        "--denoiser-layers -1": "--denoiser-layers must be at least 1, got -1",
        "--time-dim 7": "--time-dim must be even, got 7",
        "--latent-dim 7": "--latent-dim must be even and positive, got 7",
        "--condition-dropout 1": "--condition-dropout must be at least 0 and less than 1",
        "--diffusion-timesteps 0": "--noise-schedule.*at least 1, got 0",
        "--noise-schedule magic": "--noise-schedule.*'magic'.*sqrt",
        "--timestep-sampler magic": "--timestep-sampler 'magic'.*uniform",
        "--distributed-world-size 0": "--distributed-world-size must be at least 1, got 0",
        "--train-subset other": "WORK/bin holds no other.src-tgt: binarise",
        "--save-dir HERE/f": "--save-dir HERE/f: Not a directory; name a folder",
        "--save-dir HERE/f/deep": "--save-dir HERE/f/deep: Not a directory; name a folder",
        "--save-dir /proc/none": "--save-dir /proc/none: .*; name a folder",
        "--log-file HERE/f/log": "--log-file HERE/f: HERE/f is no folder; name another",
    }.items()},
    **{f"train without {option}": Case(train().replace(text, " "), names) for option, text, names in (
        ("--arch", " --arch genie_tiny ", "--arch is needed"),
        ("--criterion", " --criterion diffusion_vlb ", "--criterion cross_entropy.*choose one of .*diffusion_vlb"),
        ("--optimizer", " --optimizer adam ", "--optimizer is needed"),
        ("--batch-size", " --batch-size 32 ", "--batch-size or --max-tokens is needed"))},
    "train --best-checkpoint-metric magic": Case(
        train("--best-checkpoint-metric magic").replace("--disable-validation", ""),
        "--best-checkpoint-metric magic is not measured in validation: choose one of .*loss"),
    "interactive with a batch beyond its buffer": Case(
        interactive("--batch-size 8 --buffer-size 2"), "--batch-size 8 exceeds --buffer-size 2: give"),
    "interactive from a missing file": Case(interactive("--input HERE/none"), "--input HERE/none: No such file.*name"),
}
for name, case in OPTIONS.items():
    if "HERE/f" in case.command:
        OPTIONS[name] = case._replace(prepare=files({"f": b"x"}))


def pairs(source: bytes, target: bytes) -> dict:
    """A folder of texts as distributed for xsum."""
    return {f"raw/{split}.{side}": content for split in ("train", "dev", "test")
            for side, content in (("src", source), ("tgt", target))}


def text(content: bytes) -> dict:
    return {f"text/{split}.{side}": content for split in ALL_SPLITS for side in ("src", "tgt")}


PAIRS = "prepare_pairs.py xsum HERE/raw --out HERE/out"
LINES = "prepare_lines.py cc_news HERE/raw --out HERE/out --workers 1"
CORPUS = "prepare_corpus.py HERE/raw --out HERE/out --workers 1"
BINARISE = "binarise.py HERE --vocabulary 20 --workers 1"
PREPARERS = {
    "pairs: no folder": Case(PAIRS, "no such folder: HERE/raw"),
    "pairs: an empty folder": Case(PAIRS, "HERE/raw has no layout of xsum.*lacks", files({"raw/f": b""})),
    "pairs: not UTF-8": Case(PAIRS, "raw/train.src, line 2: not UTF-8.*0xff.*convert",
                             files(pairs(b"a\nb\xff\n", b"a\nb\n"))),
    "pairs: unequal": Case(PAIRS, "raw/train.src has 2 lines, HERE/raw/train.tgt has 1: fetch",
                           files(pairs(b"a\nb\n", b"a\n"))),
    "pairs: empty": Case(PAIRS, "train has no pair: fetch", files(pairs(b"", b""))),
    "pairs: spaces only": Case(PAIRS, "train has no pair: fetch", files(pairs(b"  \n\t\n", b" \n \n"))),
    "pairs: an unknown set": Case("prepare_pairs.py xsums HERE --out HERE/out", "invalid choice: 'xsums'.*xsum"),
    "pairs: out is a file": Case(f"{PAIRS}.txt", "HERE/out.txt: File exists",
                                 files({**pairs(b"a\n", b"b\n"), "out.txt": b"x"})),
    "lines: no JSON": Case(LINES, "raw/a.jsonl, line 2: no JSON.*mend",
                           files({"raw/a.jsonl": b'{"text": "One two three."}\nx\n'})),
    "lines: no text in JSON": Case(LINES, "raw/a.jsonl, line 1: no object.*text.*mend", files({"raw/a.jsonl": b"{}"})),
    "lines: not UTF-8": Case(LINES, "raw/a.txt, line 1: not UTF-8.*convert", files({"raw/a.txt": b"a \xff\n"})),
    "lines: control characters only": Case(LINES, "no sentence for .*give more text",
                                           files({"raw/a.txt": b"\0\1\2 \x1b[2J\n   \n"})),
    "lines: a damaged archive": Case(LINES, "raw/a.txt.gz cannot be unpacked.*fetch", files({"raw/a.txt.gz": b"no"})),
    "lines: a share beyond": Case(f"{LINES} --share 3", "--share: 3 is not above 0"),
    "lines: no workers": Case(f"{LINES} --workers 0", "argument --workers: must be at least 1, got 0"),
    "corpus: not UTF-8": Case(CORPUS, "raw/a.txt, line 2.*not UTF-8.*convert|--skip-broken",
                              files({"raw/a.txt": b"One two.\nthree \xff\n"})),
    "corpus: missing": Case(CORPUS, "HERE/raw"),
    "corpus: empty": Case(CORPUS, "the input files hold no text; name others", files({"raw/a.txt": b""})),
    "binarise: no text": Case(BINARISE, "HERE/text lacks train.src.*prepare the text"),
    "binarise: empty text": Case(BINARISE, "HERE/text.*empty", files(text(b""))),
    "binarise: too many subwords": Case("binarise.py HERE --vocabulary 3000 --workers 1",
                                        "--vocabulary 3000.*too high.*<= ", files(text(b"a b\n" * 9))),
    "binarise: a model of text": Case(
        f"{BINARISE} --sentencepiece-model HERE/m --dictionary HERE/m", "HERE/m is no sentencepiece model.*another",
        files({**text(b"a\n"), "m": b"text"})),
    "binarise: half of a pre-training": Case(f"{BINARISE} --dictionary HERE/d", "belong together"),
    "glue: no folder": Case("prepare_glue.py HERE/raw --out HERE/out --sentencepiece-model HERE/m --dictionary HERE/d",
                            "HERE/"),
    "translation: no indexes": Case("prepare_translation.py --out HERE/out --indexes HERE/none", "HERE/none"),
    "prose: an unknown set": Case("prepare_prose.py --out HERE/out --sets magic", "magic.*prose"),
    "kjvweb: no pair is short enough": Case(
        "prepare_kjvweb.py --out HERE/out --max-words 0", "--max-words 0 keeps no pair.*larger"),
}

GENERATED = "".join(f"S-{i}\ta b\nT-{i}\ta c\nH-{i}\t-1\ta d\nD-{i}\t-1\ta d\n" for i in range(2)).encode()
EVALUATE, MERGE = "evaluate.py HERE/g", "merge_generations.py HERE/g --output HERE/new"
OUTPUTS = {
    **{f"{script}: {name}": Case(command, names, files({"g": content}))
       for script, command in (("evaluate", EVALUATE), ("merge", MERGE))
       for name, names, content in (
           ("empty", "HERE/g: no .*not the output of fairseq-generate", b""),
           ("spaces only", "HERE/g: no .*not the output of fairseq-generate", b"  \n\n \n"),
           ("not UTF-8", "HERE/g:4: not UTF-8.*convert", GENERATED.replace(b"a d\nS-1", b"\xff\nS-1")),
           ("cut short", "HERE/g:8: .*cut short.*generate it again", GENERATED[:-2]))},
    "evaluate: missing": Case(EVALUATE, "HERE/g: No such file"),
    "evaluate: a folder": Case("evaluate.py HERE", "HERE: Is a directory"),
    "evaluate: no score": Case(EVALUATE, "HERE/g:8: D-1 has no score but 'x'",
                               files({"g": GENERATED.replace(b"D-1\t-1", b"D-1\tx")})),
    "evaluate: a gap": Case(EVALUATE, "HERE/g: 2 of 5 ids are missing .2, 3.",
                            files({"g": GENERATED.replace(b"-1\ta", b"-4\ta").replace(b"\t-4\ta", b"\t-1\ta")})),
    "evaluate: other references": Case(f"{EVALUATE} --references HERE/r", "HERE/r: 1 lines.*2 sentences",
                                       files({"g": GENERATED, "r": b"a\n"})),
    "evaluate: misspelt": Case(f"{EVALUATE} --formt json", "unrecognized arguments: --formt", files({"g": GENERATED})),
    "evaluate: written nowhere": Case(f"{EVALUATE} --json HERE/g/x", "--json HERE/g/x: Not a directory",
                                      files({"g": GENERATED})),
    "evaluate: a line of a megabyte": Case(
        "evaluate.py --plain HERE/g --references HERE/g", "HERE/g: sentence 0 .*characters.*split",
        files({"g": b"x " * 500000 + b"\n"})),
    "merge: into a shard": Case("merge_generations.py HERE/g --output HERE/g", "HERE/g is one of the shards",
                                files({"g": GENERATED})),
    "merge: a shard twice": Case("merge_generations.py HERE/g HERE/h --output HERE/new",
                                 "HERE/h:1: sentence 0 is there twice.*once", files({"g": GENERATED, "h": GENERATED})),
    "merge: a sentence lost": Case(f"{MERGE} --sentences 3", "1 of 3 sentences are missing .2.*run the shards",
                                   files({"g": GENERATED})),
    "merge: into a folder": Case("merge_generations.py HERE/g --output HERE/f", "HERE/f is a folder: name",
                                 files({"g": GENERATED, "f/x": b""})),
    "losses of an empty log": Case("plot_losses.py HERE/log --output HERE/x.png", "HERE/log: no loss.*json",
                                   files({"log": b""})),
    "losses of noise": Case("plot_losses.py HERE/log --output HERE/x.png", "HERE/log: no loss.*json",
                            files({"log": os.urandom(999)})),
    "report of nothing": Case("report.py HERE/none", "HERE/none"),
    "export over the original": Case(
        "export_checkpoint.py --average WORK/ck/checkpoint_last.pt --output WORK/ck/checkpoint_last.pt",
        "--output .*checkpoint_last.pt is an input"),
    "convert what is no checkpoint": Case(
        "convert_genie.py HERE/a.pt --output HERE/out --vocab HERE/d", "HERE/(a.pt|d)",
        files({"a.pt": b"x", "d": b"x"})),
    "bound of a missing split": Case(
        "evaluate_bound.py WORK/bin --path WORK/ck/checkpoint_last.pt --subset other", "WORK/bin holds no other"),
    "bound of a missing checkpoint": Case(
        "evaluate_bound.py WORK/bin --path HERE/none.pt", "HERE/none.pt"),
}

LINE = {
    "typed: not UTF-8": Case(interactive("--buffer-size 8"), "standard input, line 2: not UTF-8.*0xff.*convert",
                             text=b"w1\nw\xff2\n"),
    "read: not UTF-8": Case(interactive("--input HERE/t"), "--input HERE/t, line 1: not UTF-8.*convert",
                            files({"t": b"\xe9t\xe9\n"})),
}

def without_option(state: dict, name: str) -> None:
    del state["cfg"]["model"][name]


WORKS = {
    **{f"typed: {name}": Case(interactive(), r"(?s)H-0\t.*H-1\t", text=content) for name, content in {
        "NUL": b"w1\0w2 w3\nw4\n",
        "a megabyte": b"w1 " * 350000 + b"\nw2\n",
        "only spaces": b"   \n\t \n",
        "control characters": b"w1 \x1b[2J \x07 w2\nw\x08\n",
        "right to left": RTL + RTL,
        "empty lines": b"\n\n",
    }.items()},
    "typed: nothing": Case(interactive(), "Total time"),
    "pairs from right to left": Case(PAIRS, "out/test.src, .tgt: 1 pairs", files(pairs(RTL, RTL))),
    "pairs with NUL": Case(PAIRS, "out/test.src, .tgt: 1 pairs", files(pairs(b"a\0b\n", b"c\n"))),
    "pairs of a megabyte": Case(PAIRS, "out/test.src, .tgt: 1 pairs", files(pairs(b"ab " * 350000 + b"\n", b"c\n"))),
    "evaluate from right to left": Case(EVALUATE, "2 sentences", files({"g": GENERATED.replace(b"a d\n", RTL)})),
    "evaluate with NUL": Case(EVALUATE, "2 sentences", files({"g": GENERATED.replace(b"a d", b"a\0d")})),
    "merge from right to left": Case(MERGE, "2 sentences of 1 file", files({"g": GENERATED.replace(b"a d\n", RTL)})),
    "checkpoint of an older version, with fewer options": Case(
        generate("--path HERE/ck.pt"), r"H-0\t", checkpoint(lambda state: without_option(state, "noise_points"))),
    "checkpoint of a newer version, with more options": Case(
        generate("--path HERE/ck.pt"), r"H-0\t", checkpoint(lambda state: model_option(state, "unheard_of", 3))),
    "results beside earlier ones": Case(
        generate("--results-path HERE"), "", files({"generate-valid.txt": b"H-0\t-1\tof days\n"})),
}
