#!/bin/sh
# Asks the bundled model "magika" for the type of files.
#
#   examples/filetype.sh FILE...             the proxy of the demo answers
#   URL=http://HOST:PORT examples/filetype.sh FILE...
#
# Prints one line for each file: `PROBABILITY:INDEX:LABEL FILE`. Needs curl, od and awk.
#
# The model reads 2,048 numbers: the first 1,024 bytes of the file after leading blanks, padded at the
# end with 256, then the last 1,024 bytes before trailing blanks, padded at the start with 256. Blanks are
# looked for in 4,096 bytes at either end.
set -eu
url=${URL:-http://127.0.0.1:8080}/v2/models/magika/infer
[ $# -gt 0 ] || { sed -n '2,6s/^# \{0,1\}//p' "$0"; exit 2; }

# numbers FILE: the model's input, separated by commas.
numbers() {
    { head -c 4096 "$1" | od -An -v -tu1; echo end; tail -c 4096 "$1" | od -An -v -tu1; } | awk '
        function blank(byte) { return byte == 32 || (byte >= 9 && byte <= 13) }
        $1 == "end" { last = 1; next }
        { for (i = 1; i <= NF; i++) if (last) tail[t++] = $i; else head[h++] = $i }
        END {
            for (from = 0; from < h && blank(head[from]); from++);
            for (to = t; to > 0 && blank(tail[to - 1]); to--);
            for (i = from; i < from + 1024; i++) printf "%s,", i < h ? head[i] : 256
            for (i = to - 1024; i < to; i++) printf "%s%s", i < 0 ? 256 : tail[i], i < to - 1 ? "," : ""
        }'
}

failed=0
for file; do
    [ -r "$file" ] && [ -f "$file" ] || { echo "$file: not a file that can be read" >&2; failed=1; continue; }
    answer=$(printf '{"inputs":[{"name":"bytes","datatype":"INT32","shape":[1,2048],"data":[%s]}],%s}' \
        "$(numbers "$file")" '"outputs":[{"name":"target_label","parameters":{"classification":1}}]' |
        curl -sS --data-binary @- "$url") || { failed=1; continue; }
    label=$(printf '%s' "$answer" | sed -n 's/.*"data":\["\([^"]*\)"\].*/\1/p')
    if [ -n "$label" ]; then
        printf '%s %s\n' "$label" "$file"
    else
        printf '%s: %s\n' "$file" "$answer" >&2
        failed=1
    fi
done
exit $failed
