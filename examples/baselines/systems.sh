# What fairseq's own systems are called and told; read with `source` by train.sh and generate.sh. Those that refine
# their text have `iterations`.
source "$(dirname "${BASH_SOURCE[0]}")/../recipe.sh"
system=${1:-} work=${2:-}
usage=${usage:-"usage: bash $0 transformer|lstm|nat|inat|cmlm|levenshtein|insertion WORK [more options]; WORK holds data-bin"}
lengths=(--pred-length-offset --length-loss-factor 0.1) criterion=(--criterion nat_loss) iterations=
case $system in
    transformer | lstm) options=(--task translation --arch "$system")
        criterion=(--criterion label_smoothed_cross_entropy) ;;
    nat) options=(--task translation_lev --arch nonautoregressive_transformer --noise full_mask "${lengths[@]}") iterations=0 ;;
    inat) options=(--task translation_lev --arch iterative_nonautoregressive_transformer --noise full_mask "${lengths[@]}"
        --train-step 4 --dae-ratio 0.5 --stochastic-approx) iterations=9 ;;
    cmlm) options=(--task translation_lev --arch cmlm_transformer --noise random_mask "${lengths[@]}") iterations=9 ;;
    levenshtein) options=(--task translation_lev --arch levenshtein_transformer --noise random_delete) iterations=9 ;;
    insertion) options=(--task translation_lev --arch insertion_transformer --noise random_delete) iterations=9 ;;
    *) echo "$usage" >&2 && exit 1 ;;
esac
[[ -d $work/data-bin ]] || { echo "error: no folder $work/data-bin; $usage" >&2 && exit 1; }
# --user-dir mends what is broken in the host; the systems are fairseq's own.
# Long sources are cut as the recipes cut them; otherwise the host would leave their pairs out, or refuse to generate.
common=("$work/data-bin" --user-dir "$root/diffusion_fairseq" --source-lang src --target-lang tgt
    --truncate-source --max-source-positions 512)
shift 2
