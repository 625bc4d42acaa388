#!/usr/bin/env bash
# Sets up as scripts/setup.sh does, then runs ruff and the tests; see --help.
set -euo pipefail

usage() {
    cat <<'TEXT'
usage: bash scripts/test.sh [--fast | --slow] [--host modern|official] [pytest arguments]

Runs scripts/setup.sh, ruff, and the tests: those of single functions and those of fairseq's commands.

  --fast    leave out the tests that start fairseq's commands
  --slow    also the tests that take minutes each: many trainings, killed runs, several processes; and a thousand
            examples of each property, where otherwise a few are tried
  --host    the host to test on, see scripts/setup.sh --help
TEXT
}

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd -P)
host=modern
selection=(-m 'not endurance')
arguments=()
while (($#)); do
    case $1 in
        --fast) selection=(-m 'not slow and not endurance') ;;
        --slow) selection=(--hypothesis-profile endurance) ;;
        --host)
            host=${2-}
            shift
            ;;
        --host=*) host=${1#--host=} ;;
        --help | -h)
            usage
            exit 0
            ;;
        *) arguments+=("$1") ;;
    esac
    (($#)) && shift
done

bash "$root/scripts/setup.sh" --host "$host"
python=$(bash "$root/scripts/setup.sh" --host "$host" --where)/bin/python
cd "$root"
export OMP_NUM_THREADS=1

printf '[test] ruff\n'
"$python" -m ruff check .
printf '[test] pytest\n'
# A file's tests share what they have trained, so a file stays in one process.
"$python" -m pytest --numprocesses 2 --dist loadfile --durations 10 \
    ${selection[@]+"${selection[@]}"} ${arguments[@]+"${arguments[@]}"}
