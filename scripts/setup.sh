#!/usr/bin/env bash
# Sets up everything that diffusion_fairseq needs; see --help.
set -euo pipefail

usage() {
    cat <<'TEXT'
usage: bash scripts/setup.sh [--host modern|official] [--where]

Makes a virtual environment and installs torch, a fairseq host and this package (editable) into it, in the
versions of constraints/HOST.txt.
Run again it continues an interrupted set-up, and ends at once when there is nothing to do.

  --host modern     ve-fairseq 0.12.3, torch 2.13.0; takes Python 3.11 or 3.12 on Linux x86-64 (default)
  --host official   fairseq 0.12.2 built from source, torch 2.4.1 and the oldest versions that are supported of
                    all else; takes Python 3.10 and a C++ compiler
  --where           print the environment's directory and do nothing else

Disk: 1.5 GB, and 3 GB while it installs; with torch's CUDA build 5.5 GB, and 11 GB while it installs.

environment variables:
  VENV              where to make the environment (default: the active one, else .venv or .venv-official)
  PYTHON            the Python to make it with (default: looked for on PATH, then under pyenv)
  TORCH_INDEX_URL   the index to take torch from, instead of the ones pip is configured with: for instance
                    PyTorch's own CPU-only index (pytorch.org, "Get started"), which saves several GB
                    on a machine without a GPU
TEXT
}

say() { printf '[setup] %s\n' "$*"; }
fail() {
    printf 'error: %s\n' "$*" >&2
    exit 1
}

host=modern
where=
while (($#)); do
    case $1 in
        --host)
            host=${2-}
            shift
            ;;
        --host=*) host=${1#--host=} ;;
        --where) where=1 ;;
        --help | -h)
            usage
            exit 0
            ;;
        *) fail "unknown argument '$1': bash scripts/setup.sh --help lists the known ones" ;;
    esac
    (($#)) && shift
done

case $host in
    modern)
        versions='3.11 3.12' fairseq=ve-fairseq default=.venv
        ;;
    official)
        versions=3.10 fairseq=fairseq default=.venv-official
        ;;
    *) fail "unknown host '$host': --host takes modern or official" ;;
esac

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd -P)
venv=${VENV:-${VIRTUAL_ENV:-$root/$default}}
[[ $venv == /* ]] || venv=$PWD/$venv
if [[ -n $where ]]; then
    printf '%s\n' "$venv"
    exit 0
fi
cd "$root"
python=$venv/bin/python
stamp=$venv/.diffusion-fairseq-setup
constraints=constraints/$host.txt
torch=$(sed -n 's/^torch==//p' "$constraints")
key="$host $root $(cat setup.py scripts/setup.sh "$constraints" | cksum)"

activation() {
    [[ ${VIRTUAL_ENV-} == "$venv" ]] || say "to activate it: source ${venv#"$root"/}/bin/activate"
}

installed() { # names of distributions: are they all in the environment?
    "$python" -c 'import sys; from importlib.metadata import version; [version(n) for n in sys.argv[1:]]' \
        "$@" 2>/dev/null
}

if [[ -f $stamp && $(<"$stamp") == "$key" ]] && installed torch "$fairseq" diffusion-fairseq; then
    say "nothing to do: the $host host is set up in $venv"
    activation
    exit 0
fi

version_of() { # a Python: prints its version, or nothing where it does not run
    "$1" -c 'import sys; print("%d.%d" % sys.version_info[:2])' 2>/dev/null || true
}

find_python() { # sets base to a Python that runs, has one of the versions, and can make environments
    local version candidate without_venv=
    for version in $versions; do
        while IFS= read -r candidate; do
            [[ -n $candidate && $(version_of "$candidate") == "$version" ]] || continue
            if "$candidate" -c 'import ensurepip, venv' 2>/dev/null; then
                base=$candidate
                return
            fi
            without_venv=$version
        done < <(
            if [[ -n ${PYTHON-} ]]; then
                type -P "$PYTHON"
            else
                # pyenv's shims exist for versions that are not switched on, and fail
                type -aP "python$version" python3 python
                compgen -G "${PYENV_ROOT:-$HOME/.pyenv}/versions/$version.*/bin/python"
            fi
        )
    done
    [[ -z $without_venv ]] ||
        fail "Python $without_venv lacks the module venv: apt-get install python$without_venv-venv"
    fail "no Python ${versions// / or } found: install one (or set PYTHON to it) and run this again"
}

check_system() {
    [[ $host == official || "$(uname -s) $(uname -m)" == 'Linux x86_64' ]] ||
        fail "the modern host exists for Linux x86-64 only: try --host official with Python 3.10"
}

check_disk() { # gigabytes
    local place=$venv free
    while [[ ! -d $place ]]; do place=$(dirname "$place"); done
    free=$(df -Pk "$place" | awk 'NR == 2 { print $4 }')
    ((free >= $1 * 1024 * 1024)) ||
        fail "$1 GB of disk are needed in $place, $((free / 1024 / 1024)) GB are free: make room or set VENV"
}

check_compiler() { # a Python: can its extensions be compiled here?
    local compiler include
    compiler=$("$1" -c 'import os, sysconfig
print(os.environ.get("CXX") or sysconfig.get_config_var("CXX") or "c++")')
    include=$("$1" -c 'import sysconfig; print(sysconfig.get_path("include"))')
    # shellcheck disable=SC2086 # the compiler may come with flags
    printf '#include <Python.h>\n#include <vector>\n' |
        $compiler -I "$include" -fsyntax-only -x c++ - 2>/dev/null ||
        fail "fairseq 0.12.2 is built from source and '$compiler' cannot compile against Python's headers:" \
            "install a C++ compiler and the headers (apt-get install g++ python${versions}-dev)"
}

check_environment() { # an environment that was there before: does it suit?
    local version name
    version=$(version_of "$python")
    [[ " $versions " == *" $version "* ]] ||
        fail "$venv has Python ${version:-that does not run}, the $host host needs ${versions// / or }:" \
            "deactivate it, or set VENV to another directory"
    for name in fairseq ve-fairseq fairseq-fixed fairseq-built fairseq-light; do
        [[ $name == "$fairseq" ]] || ! installed "$name" ||
            fail "$venv holds $name, and only one fairseq fits in an environment:" \
                "pip uninstall $name, or set VENV to another directory"
    done
}

fresh=
abandon() { # leave without half an environment, with a message where none was printed yet
    [[ -z $fresh ]] || rm -rf "$venv"
    (($# == 0)) || fail "$@"
    exit 1
}

pip() { "$python" -m pip --disable-pip-version-check "$@"; }

torch_index=()
[[ -z ${TORCH_INDEX_URL-} ]] || torch_index=(--index-url "$TORCH_INDEX_URL")

check_network() { # finds torch in the index, and thereby whether it is the many-GB CUDA build
    local report
    ! installed torch || return 0
    say "looking up torch $torch"
    if ! pip install --quiet --retries 1 --timeout 20 'pip>=23' >/dev/null 2>&1 ||
        ! report=$(pip install --dry-run --quiet --no-deps --retries 1 --timeout 20 --report - \
            ${torch_index[@]+"${torch_index[@]}"} "torch==$torch" 2>/dev/null); then
        abandon "no package index with torch $torch answers: check the network and 'pip config list'," \
            "then run this again"
    fi
    if [[ $(uname -s) == Linux && $report != *"\"$torch+cpu\""* ]]; then
        nvidia-smi -L >/dev/null 2>&1 || say "no GPU here, but the index has only torch's CUDA build (several" \
            "GB): TORCH_INDEX_URL can name PyTorch's CPU-only index, see --help"
        (check_disk 11) || abandon
    fi
}

install() { # what, pip's arguments
    say "installing $1"
    shift
    pip install "$@" ||
        fail "pip could not install that (its message is above): mend it and run this again, it continues"
}

check_system
if [[ -x $python ]]; then
    check_environment
    base=$python
else
    [[ ! -d $venv || -f $venv/pyvenv.cfg || -z $(ls -A "$venv") ]] ||
        fail "$venv is in the way: it is not empty and no virtual environment"
    find_python
fi
check_disk 3
[[ $host == modern ]] || check_compiler "$base"

if ! "$python" -m pip --version >/dev/null 2>&1; then
    say "making $venv with $("$base" --version) ($base)"
    [[ -d $venv ]] || fresh=1
    "$base" -m venv "$venv" || abandon "$base could not make $venv (its message is above)"
fi
check_network

# An index of torch's own has other versions of what torch needs: those are put right by what follows.
install "torch $torch" ${torch_index[@]+"${torch_index[@]}"} "torch==$torch"
install 'what fairseq runs on' --constraint "$constraints" torch numpy hydra-core omegaconf sacrebleu regex tqdm \
    bitarray scikit-learn packaging setuptools wheel
# Without its dependencies: the official pins cannot be resolved, and torchaudio is never imported here.
install "$fairseq" --constraint "$constraints" --no-deps "$fairseq"
install 'diffusion_fairseq' --constraint "$constraints" --no-build-isolation --editable '.[plots,dev]'
report=$("$python" -c 'import diffusion_fairseq' 2>&1) ||
    fail "the package does not import: $(tail -n 1 <<<"$report")"
printf '%s\n' "$key" >"$stamp"
say "done: the $host host is in $venv ($(du -sh "$venv" | cut -f1))"
activation
