#!/bin/sh
# Run a server that takes adapters only at its start (TGI, llama.cpp), and restart it when the night wants others.
#
#   serve.sh tgi|llamacpp COMMAND…      in the server's container, with
#   REPLICA                             the replica's name: the first label of its host in GATEWAY_BACKEND__URLS
#   ADAPTERS=/adapters                  the volume that it shares with the night (load.py is the night's side)
#
# wanted/REPLICA lists the adapters to serve, one on a line; serving/REPLICA those that the running server was started
# with. No container needs the container runtime's socket. A server that ends by itself ends this script with its
# status, and serving/REPLICA ends with "ended": the container's restart policy restarts it.
set -eu

kind=$1
shift
folder=${ADAPTERS:-/adapters}
replica=${REPLICA:?the name of this replica}
server=

wanted() { cat "$folder/wanted/$replica" 2>/dev/null || true; }

# Replace the file in one step: load.py may read it at any time.
report() {
  printf '%s\n' "$@" > "$folder/serving/.$replica"
  mv "$folder/serving/.$replica" "$folder/serving/$replica"
}

# Run the command with every adapter of $names that exists: a missing one must not keep the others from being served.
start() {
  lora=
  for name in $names; do
    case $name in rft-*) ;; *) echo "serve.sh: $name is not an adapter's name" >&2; continue ;; esac
    case $name in *[!a-z0-9-]*) echo "serve.sh: $name is not an adapter's name" >&2; continue ;; esac
    path=$folder/$name
    [ "$kind" = llamacpp ] && path=$folder/gguf/$name.gguf
    [ -e "$path" ] || { echo "serve.sh: $path is missing" >&2; continue; }
    case $kind in
      tgi) lora=$lora${lora:+,}$name=$path ;;
      llamacpp) set -- "$@" --lora "$path" ;;
    esac
  done
  case $kind in
    # Set only if there is one: TGI then disables its prefix cache.
    tgi) if [ -n "$lora" ]; then export LORA_ADAPTERS="$lora"; else unset LORA_ADAPTERS; fi ;;
    # Each request names its adapter; none must apply by default.
    llamacpp) set -- "$@" --lora-init-without-apply ;;
    *) echo "serve.sh: $kind is neither tgi nor llamacpp" >&2; exit 2 ;;
  esac
  "$@" &
  server=$!
}

stop() {
  kill -TERM "$server" 2>/dev/null || true
  wait "$server" || true
}

trap 'stop; exit 143' TERM INT
mkdir -p "$folder/serving"
while :; do
  names=$(wanted)
  start "$@"
  report "$names"
  while [ "$(wanted)" = "$names" ]; do
    kill -0 "$server" 2>/dev/null || { report "$names" ended; wait "$server"; exit; }
    sleep "${POLL_S:-1}" &
    wait $!
  done
  echo "serve.sh: other adapters are wanted, restarting the server" >&2
  stop
done
