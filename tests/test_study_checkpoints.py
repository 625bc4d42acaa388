"""scripts/study_checkpoints.py: what it scores, of generations that are made up."""

import json
import sys

import pytest
from test_evaluate import CANDIDATES, REFERENCES, SOURCES, block, write

import _evaluation  # isort: skip  test_evaluate knows the folder
import study_checkpoints  # isort: skip


@pytest.fixture
def study(tmp_path, monkeypatch, capsys):
    """A function that runs the study with options and returns its row and what it printed."""
    for folder in ("data-bin", "text"):
        (tmp_path / folder).mkdir()
    write(tmp_path / "text/test.src", SOURCES)
    write(tmp_path / "text/test.tgt", REFERENCES)
    checkpoint = write(tmp_path / "checkpoint_1_7.pt", ["weights"])
    output = write(tmp_path / "g.txt", [line for i in range(3) for line in block(i, candidates=CANDIDATES[:1])])
    made = []
    monkeypatch.setattr(study_checkpoints, "generate", lambda *_: made.append(output) or output)
    monkeypatch.setattr(study_checkpoints.checkpoint_utils, "load_checkpoint_to_cpu",
                        lambda _: {"optimizer_history": [{"num_updates": 7}]})

    def run(*options):
        monkeypatch.setattr(sys, "argv", ["study_checkpoints.py", str(tmp_path), "--checkpoints", checkpoint,
                                          "--output", str(tmp_path / "study"), *options])
        study_checkpoints.main()
        row, = json.loads((tmp_path / "study/study.json").read_text(encoding="utf-8")).values()
        return row, capsys.readouterr().out

    run.made = made
    return run


def test_diffuseqs_measures_are_asked_for(study):
    row, out = study()
    assert "sentence_bleu" not in row["scores"]["model"] and "diffuseq_metrics" not in row["settings"]
    assert "nltk" not in out
    row, out = study("--diffuseq-metrics")
    direct = _evaluation.sentence_bleu(CANDIDATES[0], REFERENCES)
    assert row["scores"]["model"]["sentence_bleu"] == pytest.approx(sum(direct) / 3)
    assert "rougeL_unstemmed" in row["scores"]["copy of the source"] and len(study.made) == 2
    assert "BLEU of sentences (nltk)" in out and "smooth:method4|nltk:" in out and "stem:no" in out
    study("--diffuseq-metrics")
    assert len(study.made) == 2


def test_a_missing_nltk_is_said_before_anything_is_generated(study, monkeypatch):
    monkeypatch.setattr(_evaluation, "find_spec", lambda name: None)
    with pytest.raises(study_checkpoints.UserError, match="pip install nltk"):
        study("--diffuseq-metrics")
    assert not study.made
