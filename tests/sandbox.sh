#!/bin/sh
# Runs the tests with HOME, TMPDIR and all XDG folders in a fresh sandbox, and compares everything around it before and after:
# whatever a test, or the program that it runs, writes or removes elsewhere is named, and the exit status is 1.
#
#   tests/sandbox.sh [ARGUMENTS OF THE TEST BINARIES]
#
# What is compared: the checkout without target/, the real home, /tmp and /var/tmp, or the folders in WATCH (separated by
# spaces): names, kinds, sizes, links, times of change, those of folders too, so that a file that came and went is seen; and
# the content of small files. Whatever other programs do there meanwhile is seen as well: best on a quiet machine, or in a
# namespace of its own (`unshare --mount`).
set -eu
cd "$(dirname "$0")/.."
repository=$(pwd -P)
watch=${WATCH:-"$repository $HOME /tmp /var/tmp"}
data=${SOFTLM_TEST_DATA:-}

# Everything is built before the first look: cargo keeps its own files in the home.
binaries=$(cargo test --release --no-run --message-format=json | sed -n 's/.*"executable":"\([^"]*\)".*/\1/p' | sort -u)

sandbox=$(mktemp -d)
sandbox=$(cd "$sandbox" && pwd -P)
trap 'rm -rf "$sandbox"' EXIT
for folder in home tmp config cache share state run; do mkdir "$sandbox/$folder"; done

look() {
    for root in $watch; do
        [ -e "$root" ] || continue
        find "$root" \( -path "$sandbox" -o -path "$repository/target" -o -path /proc \) -prune -o -printf '%p %y %s %T@ %l\n'
        find "$root" \( -path "$sandbox" -o -path "$repository/target" -o -path /proc -o -path '*/.cargo/registry' -o -path '*/.rustup' \) \
            -prune -o -type f -size -64k -exec sha256sum {} + 2>/dev/null || true
    done | LC_ALL=C sort -u -T "$sandbox"
}

look > "$sandbox/before"
failed=
for binary in $binaries; do
    case $(basename "$binary") in softlm) continue ;; esac
    env -i PATH="$PATH" HOME="$sandbox/home" TMPDIR="$sandbox/tmp" XDG_CONFIG_HOME="$sandbox/config" \
        XDG_CACHE_HOME="$sandbox/cache" XDG_DATA_HOME="$sandbox/share" XDG_STATE_HOME="$sandbox/state" \
        XDG_RUNTIME_DIR="$sandbox/run" ${data:+SOFTLM_TEST_DATA="$data"} "$binary" "$@" || failed=yes
done
look > "$sandbox/after"

status=0
if ! diff "$sandbox/before" "$sandbox/after" > "$sandbox/changes"; then
    echo "changed outside the sandbox:"
    cat "$sandbox/changes"
    status=1
fi
left=$(find "$sandbox/home" "$sandbox/config" "$sandbox/cache" "$sandbox/share" "$sandbox/state" "$sandbox/run" -mindepth 1)
if [ -n "$left" ]; then
    echo "written to the sandbox's home and settings:"
    echo "$left"
fi
[ -z "$(ls -A "$sandbox/tmp")" ] || { echo "left in the sandbox's TMPDIR:"; ls -A "$sandbox/tmp"; }
echo "compared $(wc -l < "$sandbox/before") entries of $watch"
[ -z "$failed" ] || { echo "tests failed"; status=1; }
exit $status
