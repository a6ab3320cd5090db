#!/usr/bin/env bash
# All that is to be measured on a GPU, in one call of ten minutes, with torch alone: no packages, weights or data.
#
#     benchmarks/run_gpu.sh OUTPUT [--device cuda|cpu] [--small] [--peers FOLDER] [--commit COMMIT]
#
# OUTPUT is a file of JSON lines, to which every part appends; what it prints goes to OUTPUT.log too. Each part has a limit of
# its own: one that hangs or fails is told at the end, and loses nothing of the others. Exit code 1 if there was one.
#
# --small     hardly any size, to try the script on a CPU
# --peers     a folder with checkouts as `git clone` names them (GANInverter, stylegan2-pytorch, stylegan2-ada-pytorch);
#             those that are there are measured, 256 pixels in W+, and the toolbox at 1024
# --commit    what is measured, where the code lies outside git
#
# PYTHON names the interpreter, python3 by default.
set -uo pipefail

usage() {
    sed -n '2,16s/^# \{0,1\}//p' "$0" >&2
    exit 2
}

device=cuda small= peers= commit= output=
while (($#)); do
    case "$1" in
        --device | --peers | --commit)
            (($# > 1)) || usage
            printf -v "${1#--}" %s "$2"
            shift 2
            ;;
        --small) small=yes && shift ;;
        -*) echo "$1 is no option of this script" >&2 && usage ;;
        *)
            [[ -z $output ]] || usage
            output=$1 && shift
            ;;
    esac
done
[[ -n $output ]] || usage
[[ $device == cuda || $device == cpu ]] || { echo "--device is $device; wanted cuda or cpu" >&2 && exit 2; }
[[ -z $peers || -d $peers ]] || { echo "--peers is $peers, which is no folder" >&2 && exit 2; }

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
export PYTHONPATH="$here/..${PYTHONPATH:+:$PYTHONPATH}" OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}"
mkdir -p "$(dirname "$output")"
log="$output.log"
failed=()

# part NAME SECONDS SCRIPT ARGUMENTS...
part() {
    local name=$1 limit=$2 script=$3 start=$SECONDS
    shift 3
    echo "== $name, at most $limit s" | tee -a "$log"
    timeout --kill-after=5 "$limit" "${PYTHON:-python3}" "$here/$script" --device "$device" --output "$output" \
        ${commit:+--commit "$commit"} "$@" 2>&1 | tee -a "$log"
    local code=${PIPESTATUS[0]}
    echo "== $name: $((SECONDS - start)) s, exit code $code" | tee -a "$log"
    ((code == 0)) || failed+=("$name ($code)")
}

if [[ -n $small ]]; then
    sizes="--tables tiny --resolutions 16"
    part profile 300 bench_profile.py $sizes --batch-sizes 1 --repeats 1 --steps 1
    part steady 300 bench_steady.py $sizes --batch-sizes 1 2 --repeats 1 --steps 1
    part synthesis 300 bench_synthesis.py $sizes --batch-sizes 1 --repeats 1
    part embedding 300 bench_embedding.py $sizes --batch-sizes 1 --repeats 1 --steps 1 --perceptual lpips-vgg
    part refiners 300 bench_refiners_batched.py --tables tiny --resolutions 32 --batch-sizes 2 --repeats 1
else
    part "steady, 1024 px" 100 bench_steady.py --tables config_f --resolutions 1024 --batch-sizes 1 2 4 8 16 32 \
        --repeats 2 --steps 6
    part "steady, 1024 px, compiled" 140 bench_steady.py --tables config_f --resolutions 1024 --batch-sizes 8 \
        --repeats 2 --steps 6 --compile
    part "steady, smaller" 40 bench_steady.py --tables digits config_f --resolutions 32 256 --batch-sizes 1 8 32 128 \
        --repeats 2 --steps 6
    part profile 70 bench_profile.py --tables digits config_f --resolutions 32 256 1024 --batch-sizes 1 8 --repeats 2
    part synthesis 40 bench_synthesis.py --tables config_f --resolutions 256 1024 --batch-sizes 1 8
    part embedding 40 bench_embedding.py --tables config_f --resolutions 256 --batch-sizes 1 8 --spaces w_plus \
        --perceptual lpips-vgg
    part refiners 30 bench_refiners_batched.py --tables config_f --resolutions 256 --batch-sizes 4 --repeats 3
fi

declare -A checkouts=([--ganinverter]=GANInverter [--rosinality]=stylegan2-pytorch [--stylegan2-ada]=stylegan2-ada-pytorch)
named=()
for option in "${!checkouts[@]}"; do
    [[ -n $peers && -d $peers/${checkouts[$option]} ]] && named+=("$option" "$peers/${checkouts[$option]}")
done
if ((${#named[@]})); then
    if [[ -n $small ]]; then
        part peers 300 bench_against_peer.py --tables digits --resolutions 32 --batch-sizes 2 --repeats 1 --steps 2 \
            --equal-steps 2 "${named[@]}"
    else
        part "peers, 256 px" 60 bench_against_peer.py --tables config_f --resolutions 256 --batch-sizes 1 8 32 \
            --repeats 3 --steps 6 "${named[@]}"
        [[ -d $peers/GANInverter ]] && part "peers, 1024 px" 60 bench_against_peer.py --tables config_f \
            --resolutions 1024 --batch-sizes 1 8 --repeats 2 --steps 5 --ganinverter "$peers/GANInverter"
    fi
fi

if ((${#failed[@]})); then
    printf 'not done: %s\n' "${failed[*]}" | tee -a "$log"
    exit 1
fi
