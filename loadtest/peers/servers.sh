#!/usr/bin/env bash
# The worker beside MLServer and Triton with ONNX Runtime (Triton's in its Python backend: the packages
# have no other): the same model, one core each, one thread in the engine, open-loop load in steps until
# an objective is missed. The result is the highest rate of Poisson arrivals at which the p99, measured
# from the intended start, meets it. Rounds alternate; medians.
#
#   loadtest/peers/servers.sh [FILE.md]      the table goes to standard output and to FILE.md
#
# Environment, all optional:
#   ROUNDS=3  SECONDS_EACH=5  MODEL=silero-vad  OBJECTIVE="p99<50ms"
#   FROM=20/s                                where the search begins
#   SERVERS="forebay mlserver triton"  WAYS="json grpc"
#   MLSERVER, TRITON                         virtual environments with mlserver or nvidia-pytriton, and
#                                            onnxruntime; made under target/ if not given
#   FOREBAY, FOREBAY_LOAD                    binaries; built with the profile dist if not given
#   PROXY_CORE=0 LOAD_CORE=1                 where the server, and where the generator runs
set -euo pipefail

name=servers
# shellcheck source=common.sh
. "$(dirname "$0")/common.sh" "$@"
seconds=${SECONDS_EACH:-5} model=${MODEL:-silero-vad}
objective=${OBJECTIVE:-p99<50ms} servers=${SERVERS:-forebay mlserver triton} ways=${WAYS:-json grpc}
onnx=$root/backends/models/$model/1/model.onnx
[ -e "$onnx" ] || die "no bundled model \"$model\""

# Not without the demo: the worker is in it.
[ -n "${FOREBAY:-}" ] || (cd "$root" && cargo build --profile "$profile" --quiet --bin forebay)
build forebay-load
mlserver=${MLSERVER:-$target/mlserver} triton=${TRITON:-$target/triton}
install() { # FOLDER PACKAGE
    # One that was given, or made before.
    [ ! -d "$1" ] || return 0
    say "installing $2 and onnxruntime into $1"
    python3 -m venv "$1"
    "$1/bin/pip" install --quiet --disable-pip-version-check "$2" onnxruntime==1.32.0
}
[[ " $servers " != *" mlserver "* ]] || install "$mlserver" mlserver==1.7.1
[[ " $servers " != *" triton "* ]] || install "$triton" nvidia-pytriton==0.7.0

# Starts a server; sets http, grpc and asked (the model's name there).
serve() { # SERVER
    http=$(free_port)
    if [ "$1" = forebay ]; then
        grpc=$http asked=$model
        mkdir -p "$work/models"
        cp -r "$root/backends/models/$model" "$work/models/"
        launch "$1" "$proxy_core" "$(binary_of forebay)" worker --models "$work/models" \
            --listen "127.0.0.1:$http" --executors 1
    elif [ "$1" = mlserver ]; then
        grpc=$(free_port) asked=model
        mkdir -p "$work/mlserver"
        "$mlserver/bin/python" "$here/servers/settings.py" "$onnx" "$work/mlserver" "$http" "$grpc" "$(free_port)"
        OMP_NUM_THREADS=1 launch "$1" "$proxy_core" "$mlserver/bin/mlserver" start "$work/mlserver"
    else
        grpc=$(free_port) asked=model
        local site python
        site=$(echo "$triton"/lib/python3*/site-packages)
        python=$(basename "$(dirname "$site")")
        "$triton/bin/python" "$here/servers/triton_settings.py" "$onnx" "$work/triton"
        # It finds its libraries from where it lies.
        cp "$site/pytriton/tritonserver/python_backend_stubs/${python#python}/"* \
            "$site/pytriton/tritonserver/backends/python/"
        PYTHONPATH=$site launch "$1" "$proxy_core" "$site/pytriton/tritonserver/bin/tritonserver" \
            --model-repository="$work/triton" --backend-directory="$site/pytriton/tritonserver/backends" --allow-metrics=false \
            --http-address=127.0.0.1 --http-port="$http" --grpc-address=127.0.0.1 --grpc-port="$grpc"
    fi
    server_pid=$pid
    for _ in $(seq 600); do
        curl -sf -m 2 "http://127.0.0.1:$http/v2/models/$asked/ready" > /dev/null && return
        sleep 0.1
    done
    die "$1 did not become ready: $(tail -3 "$work/$1.out")"
}

# The highest rate that keeps the objective, a second.
capacity() { # SERVER WAY
    local url=http://127.0.0.1:$http extra=(--encoding json)
    [ "$2" = json ] || { url=http://127.0.0.1:$grpc extra=(--protocol grpc); }
    rm -f "$work/capacity.json"
    taskset -c "$load_core" "$load" capacity "$url" --model "$asked" --range 0..1 "${extra[@]}" \
        --objective "$objective" --for "${seconds}s" --from "${FROM:-20/s}" --precision 5% --quiet \
        --json="$work/capacity.json" > "$work/capacity.out" 2>&1 || true
    [ -e "$work/capacity.json" ] || die "$1, $2: no capacity: $(tail -3 "$work/capacity.out")"
    python3 - "$work/capacity.json" <<'PY'
import json, sys
found = json.load(open(sys.argv[1]))
print(f'{found["rate"]:.0f} {found["end"]}' if found["rate"] else "- none")
PY
}

for round in $(seq "$rounds"); do
    for server in $servers; do
        serve "$server"
        for way in $ways; do
            found=$(capacity "$server" "$way")
            say "round $round: $server, $way: ${found% *} requests/s, what ended it: ${found#* }"
            echo "$found" >> "$work/$server.$way"
        done
        end "$server_pid"
    done
done

version() { # FOLDER PACKAGE
    "$1/bin/pip" show "$2" 2> /dev/null | sed -n 's/^Version: //p'
}
table() {
    local way server mine other
    echo "Requests/s within $objective, model \`$model\`, medians of $rounds rounds."
    echo
    setting "MODEL=$model OBJECTIVE='$objective' loadtest/peers/servers.sh"
    echo "- forebay $(version_of forebay); mlserver $(version "$mlserver" mlserver); nvidia-pytriton $(version "$triton" nvidia-pytriton); onnxruntime with one thread"
    echo
    echo "| way | server | requests/s | forebay / server |"
    echo "|---|---|---|---|"
    for way in $ways; do
        mine=$(column "forebay.$way" 1 0)
        for server in $servers; do
            other=$(column "$server.$way" 1 0)
            echo "| $way | $server | $other | $(ratio "$mine" "$other") |"
        done
    done
}
publish table
