#!/usr/bin/env bash
# From a bare machine with Python 3.11 or newer to a trained model and pictures of its clusters:
#   bash tools/quickstart.sh            trains three times on 48,000 images, ten minutes in all on two CPU cores
#   bash tools/quickstart.sh --smoke    the same way in 20 steps, to see that everything works
# A small model learns to mark the path that joins two dots; the controls are the same model without the summaries of its
# clusters, and without attention. Every run gets a folder of its own, quickstart/001, 002, …: nothing earlier is touched.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
# shellcheck source=tools/environment.sh
source tools/environment.sh

# ${name[@]+…}: an empty list is unset to the bash of macOS
train_options=() test_options=() images=100
case "${1:-}" in
    "") ;;
    --smoke)
        train_options=(--trainer.max_steps 20 --data.init_args.val_length 64)
        test_options=(--data.init_args.test_length 64)
        images=40
        ;;
    -h | --help)
        sed -n '2,6s/^# \{0,1\}//p' "${BASH_SOURCE[0]}"
        exit 0
        ;;
    *)
        echo "quickstart.sh: expected --smoke or nothing, got $*" >&2
        exit 2
        ;;
esac

castvision_activate
castvision_install

# mkdir without -p fails when the folder is there, so two runs at once cannot take the same number
mkdir -p quickstart
number=1
until mkdir "$(printf 'quickstart/%03d' "$number")" 2>/dev/null; do
    number=$((number + 1))
    ((number < 1000)) || { echo "quickstart.sh: quickstart/ is full; move it away" >&2; exit 1; }
done
run="$(printf 'quickstart/%03d' "$number")"

say() { printf '\n== %s\n' "$*"; }
fit() { castvision train fit --config "$1" --run_dir "$2" ${train_options[@]+"${train_options[@]}"}; }
score() { castvision train test --config "$1" --run_dir "$2" ${test_options[@]+"${test_options[@]}"}; }

say "1 of 6: images that no model is trained on → $run/held_out"
castvision make-pathfinder "$run/held_out" --img-size 32 --contour-length 6 --mode clean --num-images "$images" --seed 1

say "2 of 6: training with windows and clusters → $run/cast"
fit quickstart "$run/cast"

say "3 of 6: training the control without summaries of the clusters → $run/no_summaries"
fit quickstart_no_summaries "$run/no_summaries"

say "4 of 6: training the control without attention → $run/no_attention"
fit quickstart_no_attention "$run/no_attention"

say "5 of 6: all three on held-out images"
score quickstart "$run/cast"
score quickstart_no_summaries "$run/no_summaries"
score quickstart_no_attention "$run/no_attention"

say "6 of 6: pictures of predictions and clusters"
# the task is to mark a path that is there, so the images whose dots are joined are shown: column 4 of the metadata
joined=()
while read -r image; do joined+=("$run/held_out/$image"); done < <(
    awk '$4 == 1 { print $1 "/" $2 }' "$run"/held_out/metadata/*.npy
)
castvision demo "${joined[@]}" --model "$run/cast/best.ckpt" --output "$run/pictures" --limit 12

say "Scores on the held-out images"
python tools/compare_runs.py "$run/cast" "$run/no_summaries" "$run/no_attention"
cat <<END

Pictures:          $run/pictures/contact_sheet.png  (and a folder for each image)
Training reports:  report.png in $run/cast, $run/no_summaries and $run/no_attention
END
