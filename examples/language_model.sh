# What the recipes of language models share; read with `source` by their scripts, each of which calls a function.
source "$(dirname "${BASH_SOURCE[0]}")/recipe.sh"
task=(--user-dir "$root/diffusion_fairseq" --task diffusion_lm --tokens-per-sample 32)

prepare_lines() { # folder of the texts, options of prepare_lines.py
    local raw=${1:?"usage: bash examples/$set_name/prepare.sh FOLDER [options of scripts/prepare_lines.py]"}
    shift
    python "$root/scripts/prepare_lines.py" "$set_name" "$raw" --out "$work" "$@"
}

train_lm() { # options of fairseq-train
    fairseq-train "$work/data-bin" "${task[@]}" --arch diffusion_lm_base --noise-schedule pw_lin \
        --criterion diffusion_anchor --optimizer adam --lr 1e-4 --weight-decay 8e-4 --dropout 0.1 \
        --batch-size 64 --lr-scheduler polynomial_decay --total-num-update 25000 --max-update 25000 --patience 10 \
        --store-ema --ema-fp32 --ema-decay 0.9999 --validate-interval-updates 1000 --save-interval-updates 1000 \
        --keep-interval-updates 1 --no-epoch-checkpoints --save-dir "$work/checkpoints" "$@"
}

generate_lm() { # options of fairseq-generate; label: what is written, part of the names of the files
    local file=$work/generated${label:+-$label}.txt scores=$work/scores${label:+-$label}.json
    local model=$work/sentencepiece.model bpe=() words=(--words "$work/data-bin/dict.txt")
    [[ ! -e $model ]] || { words=(); bpe=(--bpe sentencepiece --sentencepiece-model "$model"); }
    local best=$work/checkpoints/checkpoint_best.pt averaged=$work/averaged.pt
    python "$root/scripts/export_checkpoint.py" --ema "$best" --output "$averaged"
    written "$file" "$work/data-bin" "${task[@]}" --path "$averaged" --gen-subset test --diffusion-steps 200 \
        --clamping --batch-size 64 ${bpe[@]+"${bpe[@]}"} "$@"
    python "$root/scripts/evaluate_lm.py" "$file" --reference "$work/text/test.txt" \
        --train "$work/text/train.txt" ${words[@]+"${words[@]}"} --max-words 31 --json "$scores"
}
