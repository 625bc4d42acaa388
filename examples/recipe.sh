# What the recipes share; each of their scripts reads it with `source` and calls one of the functions.
# WORK names the folder of everything that is made (default: runs/SET); more options go to the command behind.
# ARCHITECTURE holds GENIE's options, for those that no option behind can undo: '--arch genie_base' gives the encoder,
# as published, a table of its own.
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd -P)
set_name=$(basename "$(cd "$(dirname "$0")" && pwd -P)")
work=${WORK:-$root/runs/$set_name}
if ! command -v fairseq-train >/dev/null; then
    PATH=$(bash "$root/scripts/setup.sh" --where)/bin:$PATH
    command -v fairseq-train >/dev/null || {
        echo "error: fairseq is not installed: run bash scripts/setup.sh first" >&2
        exit 1
    }
fi
task=(--user-dir "$root/diffusion_fairseq" --task seq2seq_diffusion)
read -ra architecture <<<"${ARCHITECTURE:---arch genie_base --share-embeddings}"

saved_in() { # options of fairseq-train -> the folder that --save-dir names, or the usual one
    local folder=$work/checkpoints
    while (($#)); do
        case $1 in
            --save-dir) folder=${2:-} ;;
            --save-dir=*) folder=${1#*=} ;;
        esac
        shift
    done
    echo "$folder"
}

export_averaged() { # options of fairseq-train -> work/averaged.pt; of several processes under srun or torchrun, by the first
    [[ ${RANK:-${SLURM_PROCID:-0}} != 0 ]] ||
        python "$root/scripts/export_checkpoint.py" --ema "$(saved_in "$@")/checkpoint_last.pt" --output "$work/averaged.pt"
}

vocabulary() { # size, options of prepare_corpus.py -> --vocabulary SIZE, unless a --model among them has its own
    [[ " ${*:2} " == *" --model"[\ =]* ]] || echo "--vocabulary $1"
}

prepare() { # folder of the distributor's files, options of binarise.py
    local raw=${1:?"usage: bash examples/$set_name/prepare.sh FOLDER [options of scripts/binarise.py]"}
    shift
    python "$root/scripts/prepare_pairs.py" "$set_name" "$raw" --out "$work/text" --lowercase
    python "$root/scripts/binarise.py" "$work" "$@"
}

prepare_descriptions() { # [folder of Debian's indexes], options of binarise.py
    local indexes=()
    if [[ ${1:-} && $1 != -* ]]; then
        indexes=(--indexes "$1")
        shift
    fi
    python "$root/scripts/prepare_$set_name.py" --out "$work/text" ${indexes[@]+"${indexes[@]}"}
    python "$root/scripts/binarise.py" "$work" --vocabulary 8000 "$@"
}

train() { # options of fairseq-train
    fairseq-train "$work/data-bin" "${task[@]}" "${architecture[@]}" --criterion diffusion_vlb \
        --optimizer adam --lr 5e-5 --lr-scheduler polynomial_decay --warmup-updates 7200 --total-num-update 120000 \
        --max-update 120000 --timestep-sampler loss-second-moment --store-ema --ema-fp32 --ema-decay 0.9999 \
        --save-interval-updates 5000 --keep-interval-updates 2 --no-epoch-checkpoints --save-dir "$work/checkpoints" "$@"
}

made_of() { # words of fairseq-generate, the data's folder first -> they, and the sums of the files that are read
    local data=${1%%:*} word part parts files=()
    for word in "$@"; do
        IFS=: read -ra parts <<<"${word#--*=}"
        for part in ${parts[@]+"${parts[@]}"}; do
            [[ ! -f $part ]] || files+=("$part")
        done
    done
    printf '%q ' "$@"
    echo
    ((!${#files[@]})) || sha256sum -- "${files[@]}"
    # The text of train may be large: its index stands for it.
    [[ ! -d $data ]] || find -L "$data" -type f \( -name '*.idx' -o ! -name 'train*' ! -name '*.log' \) \
        -exec sha256sum {} + | LC_ALL=C sort -k 2
}

set_aside() { # file -> it and what it was made of have the next free number behind their names, unless it is empty
    local file=$1 number=1
    [[ -s $file ]] || return 0
    while [[ -e $file.$number || -e $file.$number.command ]]; do
        number=$((number + 1))
    done
    mv "$file" "$file.$number"
    [[ ! -e $file.command ]] || mv "$file.command" "$file.$number.command"
    echo "$file was made with other options or files: it is kept as $file.$number" >&2
}

written() { # file, options of fairseq-generate -> the file; it goes on where the same command was interrupted
    local file=$1 told=$1.command
    shift
    local command
    command=$(made_of "$@")
    if [[ ! -e $told || $(<"$told") != "$command" ]]; then
        set_aside "$file"
        echo "$command" >"$told"
    fi
    touch "$file"
    fairseq-generate "$@" --resume-generation "$file" | tee -a "$file"
}

generate() { # options of fairseq-generate; glge: which of GLGE's evaluations of a set also scores
    python "$root/scripts/export_checkpoint.py" --ema "$work/checkpoints/checkpoint_last.pt" --output "$work/averaged.pt"
    written "$work/generated.txt" "$work/data-bin" "${task[@]}" --path "$work/averaged.pt" --gen-subset test \
        --bpe sentencepiece --sentencepiece-model "$work/sentencepiece.model" --diffusion-steps 50 --clamping \
        --candidates 10 --nbest 10 --batch-size 64 "$@"
    python "$root/scripts/evaluate.py" "$work/generated.txt" --references "$work/text/test.tgt" \
        --sources "$work/text/test.src" --train-target "$work/text/train.tgt" --json "$work/scores.json" \
        ${glge:+--glge "$glge"}
}
