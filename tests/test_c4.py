"""The recipe of C4 on a stand-in, at another size."""

import gzip
import json

import pytest
from test_recipes import recipe, verses  # noqa: F401  a fixture

pytestmark = pytest.mark.slow


def test_c4_runs_from_json_lines_to_scores(tmp_path, verses):  # noqa: F811
    texts = [source for source, _ in verses["train"]]
    for part, lines in enumerate((texts[:1000], texts[1000:])):
        with gzip.open(tmp_path / f"c4-{part}.json.gz", "wt", encoding="utf-8") as out:
            out.writelines(json.dumps({"text": line, "url": "x"}) + "\n" for line in lines)
    work = tmp_path / "work"
    small = ["--tokens-per-sample", 24]
    steps = (
        ("prepare", *tmp_path.glob("c4-*.json.gz"), "--vocabulary", 600, "--workers", 1, "--shards", 2, "--valid",
         "0.05"),
        ("train", "--arch", "ddlm_tiny", "--max-update", 6, "--warmup-updates", 2, "--batch-size", 16, "--update-freq",
         1, "--disable-validation", "--cpu", *small),
        ("generate", "0:8", "--diffusion-steps", 2, "--candidates", 2, "--nbest", 2, "--cpu", *small),
    )
    for script, *arguments in steps:
        done = recipe("c4", script, work, *arguments)
        assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    assert "data" in done.stdout and (work / "scores-0-8.json").exists()
    lines = (work / "generated-0-8.txt").read_text().splitlines()
    texts = {line.split("\t")[0][2:]: line.split("\t")[1] for line in lines if line.startswith("T-")}
    found = [line.split("\t") for line in lines if line.startswith("D-")]
    assert len(found) == 2 * len(texts)
    for number, _, text in found:
        assert text[:6] == texts[number[2:]][:6]  # the last of the given tokens may end within a word
