"""scripts/study_guidance.py: what judges the texts that a classifier leads."""

import sys

import pytest
from helpers import REPOSITORY
from tiny_scorer import make_scorer, save_scorer

from diffusion_fairseq.errors import UserError
from diffusion_fairseq.metrics.model_based import ar_nll

sys.path.insert(0, str(REPOSITORY / "scripts"))
import study_guidance as study  # noqa: E402, I001
from _lm_scorer import load_scorer  # noqa: E402

TRAIN = ["the cat sat", "a dog ran", "the cat ran", "a dog sat"]


def write_labelled(folder):
    (folder / "train.txt").write_text("\n".join(TRAIN) + "\n")
    (folder / "train.label").write_text("cat\ndog\ncat\ndog\n")


def test_the_judges_know_the_label_and_score_with_the_causal_model(tmp_path):
    write_labelled(tmp_path)
    model, tokenizer = make_scorer()
    texts = ["the cat sat on", "a dog sat here", "the dog ran"]
    plain = study.judges(tmp_path, "cat", None).scores(texts)
    scored = study.judges(tmp_path, "cat", load_scorer("--scorer", save_scorer(tmp_path / "scorer"))).scores(texts)
    assert plain.pop("AR-NLL") is None
    assert scored.pop("AR-NLL") == pytest.approx(ar_nll(texts, model, tokenizer).per_token) and scored == plain
    assert plain["label"] == pytest.approx(100 / 3, abs=1) or plain["label"] == pytest.approx(200 / 3, abs=1)


def test_the_plot_leaves_out_what_was_not_measured(tmp_path):
    row = {"label": 50.0, "perplexity": 9.0, "AR-NLL": None, "dist-2": 0.5}
    rows = {f"scale {scale}": {**row, "scale": scale} for scale in (0, 3)}
    study.plot({**rows, study.HELD_OUT: row}, tmp_path / "without.png")
    full = {name: {**held, "AR-NLL": 4.0} for name, held in {**rows, study.HELD_OUT: row}.items()}
    study.plot(full, tmp_path / "with.png")
    assert (tmp_path / "with.png").stat().st_size > (tmp_path / "without.png").stat().st_size > 1000


def test_scales_are_measured_once_for_each_question(tmp_path):
    class Writer:
        def write(self, scale):
            asked.append(scale)
            return TRAIN

    asked = []
    write_labelled(tmp_path)
    judge = study.judges(tmp_path, "cat", None)
    for scales in ([0, 3], [3, 10]):
        rows = study.run(Writer(), judge, TRAIN[:2], scales, tmp_path / "study.json", {"label": "cat"})
    assert asked == [0, 3, 10] and list(rows) == ["scale 3", "scale 10", study.HELD_OUT]
    with pytest.raises(UserError, match="measured with other options .label.: name another --output"):
        study.run(Writer(), judge, TRAIN[:2], [3], tmp_path / "study.json", {"label": "dog"})
