#!/usr/bin/env bash
# From nothing to generated text; see --help.
set -euo pipefail

usage() {
    cat <<'TEXT'
usage: bash scripts/quickstart.sh [--data kjvweb|debsum] [--minutes N] [--out DIR]

Sets up the environment, then trains a small GENIE on real text, generates and scores, with every command shown.
Run twice it reuses what is there; interrupted it continues where it was.

  --data      data set: kjvweb (verses) or debsum (package descriptions); default: kjvweb
  --minutes   training time in all runs together; default: 8
  --out       work folder; default: runs/quickstart-DATA
TEXT
}

for word in "$@"; do
    if [[ $word == -h || $word == --help ]]; then
        usage
        exit 0
    fi
done
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd -P)
bash "$here/setup.sh"
exec "$(bash "$here/setup.sh" --where)/bin/python" "$here/quickstart.py" "$@"
