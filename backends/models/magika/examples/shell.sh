#!/bin/sh
# Back up a directory into a dated archive and keep the last seven.
set -eu

source_dir=${1:?usage: backup.sh DIRECTORY}
target="$HOME/backups"
mkdir -p "$target"
tar -czf "$target/$(date +%F).tar.gz" "$source_dir"
ls -1t "$target"/*.tar.gz | tail -n +8 | xargs -r rm --
