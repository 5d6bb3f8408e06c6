#!/bin/sh
# Runs a server that takes adapters at its start only (TGI, llama.cpp), and starts it anew when the night wants others.
#
#   serve.sh tgi|llamacpp COMMAND…      in the server's container, with
#   REPLICA                             this replica's name: the first label of its host in GATEWAY_BACKEND__URLS
#   ADAPTERS=/adapters                  the volume it shares with the night (see load.py, the other side)
#
# wanted/REPLICA has the adapters to serve, a name a line; serving/REPLICA says with which of them the server that runs
# now was started. No container runtime has to be asked, so no container gets its socket. A server that ends by itself
# ends this script with its status, and serving/REPLICA ends with "ended": what restarts containers restarts it.
set -eu

kind=$1
shift
folder=${ADAPTERS:-/adapters}
replica=${REPLICA:?the name of this replica}
server=

wanted() { cat "$folder/wanted/$replica" 2>/dev/null || true; }

# What the other side reads, at any time: so the file is replaced, not written.
tell() {
  printf '%s\n' "$@" > "$folder/serving/.$replica"
  mv "$folder/serving/.$replica" "$folder/serving/$replica"
}

# $1 with every adapter of $names that is there: a name that is missing must not keep the others from being served.
start() {
  lora=
  for name in $names; do
    case $name in rft-*) ;; *) echo "serve.sh: $name is no adapter's name" >&2; continue ;; esac
    case $name in *[!a-z0-9-]*) echo "serve.sh: $name is no adapter's name" >&2; continue ;; esac
    path=$folder/$name
    [ "$kind" = llamacpp ] && path=$folder/gguf/$name.gguf
    [ -e "$path" ] || { echo "serve.sh: $path is missing" >&2; continue; }
    case $kind in
      tgi) lora=$lora${lora:+,}$name=$path ;;
      llamacpp) set -- "$@" --lora "$path" ;;
    esac
  done
  case $kind in
    # Set only where there is one: TGI gives up its prefix cache for it.
    tgi) if [ -n "$lora" ]; then export LORA_ADAPTERS="$lora"; else unset LORA_ADAPTERS; fi ;;
    # Each request says which adapter applies; none must apply unasked.
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
  tell "$names"
  while [ "$(wanted)" = "$names" ]; do
    kill -0 "$server" 2>/dev/null || { tell "$names" ended; wait "$server"; exit; }
    sleep "${POLL_S:-1}" &
    wait $!
  done
  echo "serve.sh: other adapters are wanted, the server starts anew" >&2
  stop
done
