#!/bin/sh
# The whole method on generated clips, in minutes on a laptop: sh scripts/quickstart.sh
set -eu
CDPATH='' cd -- "$(dirname "$0")/.."
sh scripts/setup.sh
started=$(date +%s)
PRESET=mini
. scripts/launch.sh

sh scripts/mini.sh quickstart 7 data/mini

printf '\n== the test clips, ordered by each stage\n'
evaluate --table pointwise/quickstart finetune/quickstart reward/quickstart ppo/quickstart
echo
"$PYTHON" -m lr2ppo report ppo/quickstart -o logs/quickstart.html

cat <<END

done in $(($(date +%s) - started)) s. Where to look next:
  logs/quickstart.html             the report, in the browser: results, training curves, clips before and after
  logs/ppo/quickstart/cases.json   every test clip: labels, grades, scores, order
  .venv/bin/tensorboard --logdir logs     all curves, in the browser
  PRESET=mini sh ppo.sh mine policy.kl_weight=0.5 && sh ppo_eval.sh ppo/mine     your own variation
END
