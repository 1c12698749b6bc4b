#!/usr/bin/env bash
# optuna 5.0.0: over the gRPC storage proxy a finished trial's `distributions` come back in another order than the one in which
# the parameters were suggested, which the storage behind it keeps. What walks over them (a fit, a seeded draw per parameter)
# may then give other numbers on a remote worker than on the machine that holds the storage.
# Seen: the storage gives ['z', 'y', 'x', 'w', 'v', 'u'], the proxy another order.
set -euo pipefail
work=$(mktemp -d); trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet optuna==5.0.0 grpcio==1.76.0 protobuf
cd "$work"
"$work/venv/bin/python" - <<'PY'
import socket
import threading

import optuna
from optuna.storages import GrpcStorageProxy, InMemoryStorage, run_grpc_proxy_server

optuna.logging.set_verbosity(optuna.logging.ERROR)
with socket.socket() as free:
    free.bind(("127.0.0.1", 0))
    port = free.getsockname()[1]
behind = InMemoryStorage()
threading.Thread(target=run_grpc_proxy_server, args=(behind,), kwargs={"host": "127.0.0.1", "port": port}, daemon=True).start()
proxy = GrpcStorageProxy(host="127.0.0.1", port=port)
proxy.wait_server_ready(timeout=30)
study = optuna.create_study(study_name="order", storage=behind)
names = ["z", "y", "x", "w", "v", "u"]
study.optimize(lambda trial: sum(trial.suggest_float(name, 0, 1) for name in names), n_trials=8)
here = [list(trial.distributions) for trial in study.trials]
there = [list(trial.distributions) for trial in optuna.load_study(study_name="order", storage=proxy).trials]
assert all(order == names for order in here), here
print(f"the storage: {here[0]}; the proxy: {there[0]}")
assert any(order != names for order in there), "no longer so"
PY
