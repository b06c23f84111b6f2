# Sourced by tools/castore and tools/test: makes .venv in the checkout what the sources need.
#
# It prints on standard error only, so that `tools/castore cat` can be piped, and nothing at all
# when there is nothing to do. Needs: $root, the checkout. PYTHON chooses the python3 that a new .venv is made
# with; to change it, delete .venv.

python=${PYTHON:-python3}
venv=$root/.venv
# Without a home directory pip would make a cache in a directory named "~".
[ -n "${HOME:-}" ] || export PIP_NO_CACHE_DIR=1

say() {
    echo "castore: $*" >&2
}

give_up() {
    say "$*"
    exit 1
}

# may_install PACKAGE...: whether to install packages of the distribution: in CI, or where the user agrees on a terminal.
may_install() {
    [ "$installs" != test ] || [ -z "${CI:-}" ] || return 0
    [ -t 0 ] && [ -t 2 ] || return 1
    printf 'castore: %s' "missing on this machine: $*. Install them with: $apt $*? [y/N] " >&2
    read -r answer && case $answer in [yY]*) ;; *) return 1 ;; esac
}

# What tools/test does before packages are installed.
before_apt() {
    :
}

# install_packages PACKAGE...: from the distribution, which only root may do, and only after consent.
install_packages() {
    apt="apt-get install -y --no-install-recommends"
    if ! command -v apt-get >/dev/null 2>&1; then
        say "missing on this machine, by their names on Debian: $*; install them"
        return 1
    fi
    if [ "$(id -u)" -ne 0 ]; then
        say "missing on this machine: $*; install them with: sudo $apt $*"
        return 1
    fi
    may_install "$@" || {
        say "missing on this machine: $*; install them with: apt-get update && $apt $*"
        return 1
    }
    before_apt
    say "installing with apt-get: $*"
    # The lists are fetched even where some exist: they may name versions that the archive no longer has.
    DEBIAN_FRONTEND=noninteractive apt-get -qq update >&2 </dev/null &&
        DEBIAN_FRONTEND=noninteractive apt-get -qq install -y --no-install-recommends "$@" \
            >&2 </dev/null
}

# Where .venv is and which Python it has. Its scripts hold its path, so a checkout that moved needs new ones.
# The Python that PATH or $PYTHON has now is not asked: they differ between a shell and cron.
base_now() {
    echo "$root $(readlink -f "$venv/bin/python")"
}

sources_now() {
    cat "$root/pyproject.toml" "$root"/tools/*.lock "$root"/tools/build_backend.py \
        "$root"/castore/kernel/*.[ch] "$root/castore/kernel/build_ffi.py" | sha256sum
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

# need PACKAGE...: installs them, or ends with 69, EX_UNAVAILABLE of sysexits.h.
need() {
    install_packages "$@" || {
        say "castore cannot be built without them"
        exit 69
    }
}

check_compiler() {
    # The kernel includes the C library's headers, which gcc only recommends.
    echo '#include <stdint.h>' | ${CC:-cc} -E - >/dev/null 2>&1 || need gcc libc6-dev
}

# is_usable: does the .venv that exists run castore, from any sources?
is_usable() {
    [ -x "$venv/bin/python" ] && (run_castore_module --version) >/dev/null 2>&1
}

# run_castore_module ARGUMENTS: in the place of this shell, without bin/castore, whose first line has the path that .venv was made at.
run_castore_module() {
    exec "$venv/bin/python" -E -P -c 'import sys; sys.path.insert(0, sys.argv.pop(1)); import castore.kernel
from castore.__main__ import main; main()' "$root" "$@"
}

# pip_install ARGUMENTS OF PIP...: into .venv.
pip_install() {
    "$venv/bin/python" -m pip install -qq --disable-pip-version-check --retries 1 "$@" </dev/null
}

# install_checkout REQUIREMENT: builds it with what .venv has; fails where .venv lacks something that pyproject.toml requires.
install_checkout() {
    # pip's variables and files may name other places of packages, whose hashes nothing would check.
    (
        PIP_CONFIG_FILE=/dev/null
        export PIP_CONFIG_FILE
        # The other editable mode loads a finder into each start of Python, 20 ms of it.
        pip_install --isolated --no-index --no-build-isolation --config-settings editable_mode=compat --editable "$1"
    )
}

# install_requirements NAME REQUIREMENT: what NAME (plain, test) needs and the build tool, of the versions and hashes in
# tools/NAME.lock. CASTORE_UNLOCKED takes what the package index has, for one that builds its packages itself.
install_requirements() {
    if [ -n "${CASTORE_UNLOCKED:-}" ]; then
        pip_install "setuptools>=77" --editable "$2" >&2
        return
    fi
    pip_install --require-hashes --requirement "$root/tools/$1.lock" >&2 && return
    say "cannot install the packages of tools/$1.lock; the reason is above. For a package index that has other files" \
        "of them, and that you trust, set CASTORE_UNLOCKED=1"
    return 1
}

# can_update NAME: is .venv complete, of the Python that it was made with, and at its place as far as NAME needs?
can_update() {
    [ -x "$venv/bin/python" ] && [ -f "$venv/base.stamp" ] || return 1
    [ "$(cat "$venv/base.stamp")" = "$(base_now)" ] || {
        # Scripts that only tests need would keep the path of a checkout that moved.
        [ "$1" = plain ] && [ "$(cut -d' ' -f2- <"$venv/base.stamp")" = "$(base_now | cut -d' ' -f2-)" ]
    }
}

# update_venv NAME REQUIREMENT: in place, without a network where all that is needed is installed.
update_venv() {
    install_checkout "$2" >/dev/null 2>&1 || { install_requirements "$@" && install_checkout "$2" >&2; }
}

# make_venv NAME REQUIREMENT: a new one, in the place of the old one, which is restored if that fails.
make_venv() {
    check_python
    # Debian leaves ensurepip, without which a virtual environment has no pip, to python3-venv.
    "$python" -c 'import ensurepip, venv' 2>/dev/null || need python3-venv
    [ ! -e "$venv" ] || mv "$venv" "$venv.old" || give_up "cannot rename $venv"
    if "$python" -m venv "$venv" >&2 && install_requirements "$@" && install_checkout "$2" >&2; then
        rm -rf "$venv.old"
        return 0
    fi
    rm -rf "$venv"
    [ ! -e "$venv.old" ] || mv "$venv.old" "$venv"
    give_up "cannot make the virtual environment $venv; the reason is above"
}

set_up() {
    unset PYTHONHOME PYTHONPATH  # they are for another Python
    say "setting up $venv"
    check_compiler
    if ! can_update "$1"; then
        make_venv "$@"
    elif ! update_venv "$@"; then
        # A new one would need the same packages.
        ! is_usable || give_up "cannot install castore into $venv; the reason is above"
        make_venv "$@"
    fi
    # Commands that confine themselves cannot write them.
    "$venv/bin/python" -m compileall -q "$root/castore" || :
    base_now >"$venv/base.stamp"
    rm -f "$venv"/plain.stamp "$venv"/test.stamp
    (base_now; sources_now) >"$venv/$1.stamp"
    # What suffices for the tests suffices for everything.
    [ "$1" = plain ] || cp "$venv/$1.stamp" "$venv/plain.stamp"
}

# ensure_environment NAME REQUIREMENT: one process at a time. A set-up that failed leaves no stamp, and the
# .venv that existed; if that still runs castore, castore is run by it ($outdated is 1 then).
ensure_environment() {
    outdated=0
    installs=$1
    ! has_stamp "$1" || return 0
    exec 9<"$root"
    flock 9
    # A new one was interrupted; the old one is complete.
    [ ! -e "$venv.old" ] || { rm -rf "$venv" && mv "$venv.old" "$venv"; }
    # In a shell of its own: it exits where it fails.
    status=0
    has_stamp "$1" || (set_up "$@") || status=$?
    if [ "$status" != 0 ]; then
        [ "$1" = plain ] && is_usable || {
            say "$venv cannot be set up: what failed is above"
            exit "$status"
        }
        say "$venv could not be brought up to date (what failed is above): castore runs as it was installed"
        outdated=1
    fi
    exec 9<&-
}
