#!/usr/bin/env bash
# The embedded verses as labelled lines: each verse of two translations, and which it is from (see README.md).
source "$(dirname "${BASH_SOURCE[0]}")/../language_model.sh"
export LC_ALL=C.UTF-8 # or sed takes a mark of several bytes apart
python "$root/scripts/prepare_kjvweb.py" --out "$work/pairs" --max-words "${MAX_WORDS:-20}"
mkdir -p "$work/text" "$work/labelled"
words() { # a text in lower case, a blank on either side of every mark
    tr '[:upper:]' '[:lower:]' <"$1" | sed -E 's/([^[:alnum:][:space:]’-])/ \1 /g; s/ +/ /g; s/^ //'
}
for split in train valid test; do
    # A line each, not joined by &&: set -e would not see the first of the two fail.
    words "$work/pairs/$split.src" >"$work/text/$split.txt"
    words "$work/pairs/$split.tgt" >>"$work/text/$split.txt"
    sed 's/.*/kjv/' "$work/pairs/$split.src" >"$work/text/$split.label"
    sed 's/.*/web/' "$work/pairs/$split.tgt" >>"$work/text/$split.label"
done
python "$root/scripts/binarise.py" "$work" --words --vocabulary 8000 "$@"
# The layout of fairseq's sentence_prediction.
ln -sfn ../data-bin "$work/labelled/input0"
label=$work/labelled/label
rm -rf "$label" "$label.unfinished"
fairseq-preprocess --only-source --trainpref "$work/text/train.label" --destdir "$label.unfinished" \
    --validpref "$work/text/valid.label" --testpref "$work/text/test.label" >"$work/preprocess.label.log" 2>&1 ||
    { echo "error: fairseq-preprocess failed: see $work/preprocess.label.log" >&2 && exit 1; }
mv "$label.unfinished" "$label"
