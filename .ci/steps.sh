# Functions of .ci/run. Expects $work, a temporary folder, and stops at the first failure.

summary=()
current="start"

# step NAME COMMAND...: run it, note how long it took; over $limit seconds is said, not failed.
step() {
    local begin=$SECONDS took note=""
    current=$1
    shift
    echo
    echo "== $current"
    "$@"
    took=$((SECONDS - begin))
    if [ -n "${limit:-}" ] && [ "$took" -gt "$limit" ]; then
        note="  OVER its $limit s"
    fi
    summary+=("$(printf '%5d s  %s%s' "$took" "$current" "$note")")
}

finish() {
    local code=$1
    echo
    echo "== summary"
    [ "${#summary[@]}" -eq 0 ] || printf '%s\n' "${summary[@]}"
    if [ "$code" -eq 0 ]; then
        echo "all steps passed in $SECONDS s"
    else
        echo "FAILED at: $current (exit code $code, after $SECONDS s)"
    fi
    rm -rf "$work"
}

# torch.compile on a CPU needs g++ and Python's headers.
ensure_compiler() {
    if ! command -v g++ >/dev/null; then
        apt-get update -qq
        DEBIAN_FRONTEND=noninteractive apt-get install -y -qq g++ >/dev/null
    fi
    g++ --version | head -n 1
}

# Of the tests of the report, which are skipped without it.
ensure_browser() {
    if ! command -v chromium >/dev/null || ! command -v chromedriver >/dev/null; then
        apt-get update -qq
        DEBIAN_FRONTEND=noninteractive apt-get install -y -qq chromium chromium-driver >/dev/null
    fi
    chromedriver --version
}

# Links to every installed package but ours, so that other environments need no second torch.
share_dependencies() {
    local site entry
    site=$(python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
    mkdir "$work/deps"
    for entry in "$site"/*; do
        case "${entry##*/}" in
            *fastcyclegan* | *.pth) ;;
            *) ln -s "$entry" "$work/deps/" ;;
        esac
    done
}

# install_elsewhere PACKAGE: into an environment of its own, then --help from another folder.
install_elsewhere() {
    local venv="$work/elsewhere/${1##*/}" site command
    # pip works on it from outside: one of its own would bring a setuptools too old for torch.
    python -m venv --without-pip "$venv"
    pip --python "$venv/bin/python" install --quiet --no-deps "$1"
    site=$("$venv/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
    echo "$work/deps" >"$site/dependencies.pth"
    pip --python "$venv/bin/python" check
    (
        cd "$venv"
        bin/python -c "import fastcyclegan as f; assert f.__file__.startswith('$site/'), f.__file__"
        for command in train translate; do
            bin/python -m "fastcyclegan.$command" --help >help.txt
            head -n 1 help.txt
        done
        bin/python -c "from fastcyclegan import kernels, load_generator"
    )
}
