# Sourced by tools/castore and tools/test: makes .venv in the checkout what the sources need.
#
# It prints on standard error only, so that `tools/castore cat` can be piped, and nothing at all
# when there is nothing to do. Needs: $root, the checkout. PYTHON chooses another python3.

python=${PYTHON:-python3}
venv=$root/.venv

say() {
    echo "castore: $*" >&2
}

give_up() {
    say "$*"
    exit 1
}

# install_packages PACKAGE...: from the distribution, which only root may do.
install_packages() {
    if [ "$(id -u)" -ne 0 ] || ! command -v apt-get >/dev/null 2>&1; then
        say "missing on this machine: $*; install them, on Debian as root with: apt-get install $*"
        return 1
    fi
    say "installing with apt-get: $*"
    # The lists are fetched even where some are there: they may name versions that are gone.
    DEBIAN_FRONTEND=noninteractive apt-get -qq update >&2 &&
        DEBIAN_FRONTEND=noninteractive apt-get -qq install -y --no-install-recommends "$@" \
            >&2 </dev/null
}

# What .venv was made of. Its scripts hold its path, so a checkout that moved needs a new one.
base_now() {
    path=$(readlink -f "$(command -v "$python")")
    case $path in
    # pyenv's stand for one Python or another, and for none where .venv is activated.
    */shims/*) path=$("$python" -c 'import os, sys; print(os.path.realpath(sys.executable))') ;;
    esac
    echo "$root $path"
}

sources_now() {
    cat "$root/pyproject.toml" "$root"/castore/kernel/*.[ch] | sha256sum
}

# has_stamp NAME: is .venv, as far as NAME (plain, test) goes, of the present sources?
has_stamp() {
    [ -x "$venv/bin/python" ] && [ -f "$venv/$1.stamp" ] &&
        [ "$(cat "$venv/$1.stamp")" = "$(base_now; sources_now)" ]
}

check_python() {
    command -v "$python" >/dev/null 2>&1 ||
        give_up "there is no $python; install Python 3.11 or newer, on Debian: apt-get install python3"
    "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' ||
        give_up "$python is $("$python" --version 2>&1); castore needs Python 3.11 or newer"
}

# Debian leaves ensurepip, without which a virtual environment has no pip, to python3-venv.
need_venv_and_compiler() {
    needed=
    "$python" -c 'import ensurepip, venv' 2>/dev/null || needed="python3-venv"
    # The kernel includes the C library's headers, which gcc only recommends.
    echo '#include <stdint.h>' | ${CC:-cc} -E - >/dev/null 2>&1 || needed="$needed gcc libc6-dev"
    # shellcheck disable=SC2086 # a list of words
    [ -z "$needed" ] || install_packages $needed || give_up "castore cannot be built without them"
}

make_venv() {
    if [ ! -x "$venv/bin/python" ] || [ "$(cat "$venv/base.stamp" 2>/dev/null)" != "$(base_now)" ]; then
        "$python" -m venv --clear "$venv" >&2 || give_up "cannot make the virtual environment $venv"
        base_now >"$venv/base.stamp"
    fi
}

# ensure_environment NAME REQUIREMENT: one at a time; a set-up that failed leaves no stamp.
ensure_environment() {
    ! has_stamp "$1" || return 0
    exec 9<"$root"
    flock 9
    if ! has_stamp "$1"; then
        say "setting up $venv"
        check_python
        need_venv_and_compiler
        make_venv
        rm -f "$venv"/plain.stamp "$venv"/test.stamp
        # The other editable mode loads a finder into each start of Python, 20 ms of it.
        "$venv/bin/python" -m pip install -qq --disable-pip-version-check \
            --config-settings editable_mode=compat --editable "$2" \
            >&2 </dev/null || give_up "cannot install castore into $venv; the reason stands above"
        (base_now; sources_now) >"$venv/$1.stamp"
        # What suffices for the tests suffices for everything.
        [ "$1" = plain ] || cp "$venv/$1.stamp" "$venv/plain.stamp"
    fi
    exec 9<&-
}
