#!/usr/bin/env bash
# The embedded verses as labelled text: each line, and the translation that it is from (see README.md).
source "$(dirname "${BASH_SOURCE[0]}")/../recipe.sh"
python "$root/scripts/prepare_kjvweb.py" --out "$work/pairs" --max-words "${MAX_WORDS:-20}"
mkdir -p "$work/text"
words() { # a text in lower case, a blank on either side of every mark
    tr '[:upper:]' '[:lower:]' <"$1" | sed -E 's/([^[:alnum:][:space:]’-])/ \1 /g; s/ +/ /g; s/^ //'
}
for split in train valid test; do
    { words "$work/pairs/$split.src" && words "$work/pairs/$split.tgt"; } >"$work/text/$split.txt"
    { sed 's/.*/kjv/' "$work/pairs/$split.src" && sed 's/.*/web/' "$work/pairs/$split.tgt"; } >"$work/text/$split.label"
done
binarise() { # kind of line, folder, options: the layout of fairseq's sentence_prediction
    local kind=$1 folder=$work/data-bin/$2
    [[ -d $folder ]] && echo "  already there: $folder" && return
    fairseq-preprocess --only-source --trainpref "$work/text/train.$kind" --validpref "$work/text/valid.$kind" \
        --testpref "$work/text/test.$kind" --destdir "$folder.unfinished" "${@:3}" >"$work/preprocess.$kind.log" 2>&1
    [[ $kind == txt ]] && echo '<mask> 0' >>"$folder.unfinished/dict.txt"
    mv "$folder.unfinished" "$folder"
}
binarise txt input0 --thresholdsrc 2
binarise label label
