#!/usr/bin/env bash
# From nothing to generated text: sets up the environment, then runs scripts/quickstart.py (see --help there).
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd -P)
bash "$here/setup.sh"
exec "$(bash "$here/setup.sh" --where)/bin/python" "$here/quickstart.py" "$@"
