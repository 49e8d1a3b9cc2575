# Run by the module with WA_… in the environment; the token is in WA_TOKEN or in the file WA_TOKEN_FILE.
set -eu
if [ "$WA_USER_UNIT" = true ]; then
    root=""
    who="--user"
    state="$HOME/.local/state/workspace-agent"
else
    root=""
    [ "$(id -u)" = 0 ] || root="sudo -n"
    who="--run-as=$WA_RUN_AS"
    state=/var/lib/workspace-agent
fi
if [ ! -x "$WA_PROGRAM" ]; then
    echo "$WA_PROGRAM is not on this machine: install the package first" >&2
    exit 1
fi
if [ -n "${WA_TOKEN_FILE:-}" ]; then
    $root "$WA_PROGRAM" install --systemd "$who" --url "$WA_URL" --token-file - < "$WA_TOKEN_FILE"
else
    printf '%s' "$WA_TOKEN" | $root "$WA_PROGRAM" install --systemd "$who" --url "$WA_URL" --token-file -
fi
if [ -n "$WA_WAIT" ]; then
    $root "$WA_PROGRAM" status --socket "$state/status.sock" --wait "$WA_WAIT" --timeout "$WA_TIMEOUT"
fi
