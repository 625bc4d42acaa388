#!/usr/bin/env bash
# C4's JSON lines -> sharded, binarised text: bash examples/c4/prepare.sh c4/en/*.json.gz [options of prepare_corpus.py].
source "$(dirname "${BASH_SOURCE[0]}")/../recipe.sh"

share() { # words, of which some name .gz -> the share of documents that holds some 6,000 blocks, or 0.1 % of few files
    local word
    for word in "$@"; do
        compgen -G "$word" || true
    done | tr '\n' '\0' | du -Lbsc --files0-from=- | awk 'END { print($1 > 8e8 ? 8e5 / $1 : 0.001) }'
}

shards=(--shard-megabytes 2000)
[[ " $* " != *" --shard"* ]] || shards=()
held_out=$(share "$@")
python "$root/scripts/prepare_corpus.py" --out "$work" --json-field text $(vocabulary 32000 "$@") --no-segment \
    --deduplicate none ${shards[@]+"${shards[@]}"} --valid "$held_out" --test "$held_out" "$@"
[[ " $* " == *" --valid"[\ =]* || -e $work/data-bin/shard0/valid.idx ]] || {
    echo "error: no document came to valid: remove $work/data-bin and corpus.json, and give --valid 0.05" >&2
    exit 1
}
