# Stops the agent as at the end of a workspace, with its stop scripts, and removes it.
set -eu
root=""
who=""
if [ "$WA_USER_UNIT" = true ]; then who="--user"; elif [ "$(id -u)" != 0 ]; then root="sudo -n"; fi
if [ -x "$WA_PROGRAM" ]; then $root "$WA_PROGRAM" uninstall --systemd $who; fi
