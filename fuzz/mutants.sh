#!/usr/bin/env bash
# Mutation testing by unit tests, on a copy of the crate without what has matrix-sdk in it: a mutant is
# built and tested in seconds.
#
# fuzz/mutants.sh [core|heartbeat|rtc] [DIR [cargo-mutants' options..]]
#
# `core` is wire, event, map and time, and the default. `heartbeat` and `rtc` are the pure halves of
# these modules: the files that are compiled without the feature `client`. They are found by the `cfg`s
# before their `mod` lines, so a new file needs no entry here.
set -euo pipefail

root=$(cd "$(dirname "$0")/.." && pwd)
part=core
case ${1:-} in
    core | heartbeat | rtc) part=$1; shift ;;
esac
copy=${1:-${TMPDIR:-/tmp}/mutants-copy}
shift || true

# Prints the file of a module, and those of its pure modules.
pure_files() {
    local file=$1 folder=${1%.rs} name
    echo "$file"
    for name in $(awk '
        /^#\[cfg\(/ { off = /test\)|feature = "(client|e2e-encryption|media-keys)"/ && !/any\(test/; next }
        /^(pub |pub\(.*\) )?mod [a-z_]+;/ { if (!off) { sub(/;.*/, ""); print $NF } }
        !/^#\[/ { off = 0 }
    ' "$root/$file"); do
        pure_files "$folder/$name.rs"
    done
}

mkdir -p "$copy/.cargo"
rm -rf "$copy/src" "$copy/tests" "$copy/fuzz"
cp -r "$root/src" "$copy/src"
cp "$root/README.md" "$root/rustfmt.toml" "$root/Cargo.lock" "$copy/"
cp "$root/.cargo/mutants.toml" "$copy/.cargo/"
awk '
    /^\[/ { section = $0 }
    section ~ /^\[\[(example|bench|test)\]\]/ { next }
    section == "[dev-dependencies]" && !/^(\[|$|serde_json|proptest|sha2|zeroize)/ { next }
    /^members = / { print "members = [\".\"]"; next }
    { print }
' "$root/Cargo.toml" >"$copy/Cargo.toml"

modules=$part tests=()
if [ "$part" = core ]; then
    modules="wire event map time"
else
    # The tests of the module, and few random cases: each mutant takes all of them. A case that fails
    # kills the mutant, and making it smaller would take minutes.
    tests=(-- "$part::")
    export PROPTEST_CASES=${PROPTEST_CASES:-50} PROPTEST_MAX_SHRINK_ITERS=0
fi
files=()
for module in $modules; do
    for file in $(pure_files "src/$module.rs"); do
        files+=("--file=$file")
    done
done

cd "$copy"
exec cargo mutants --in-place --no-shuffle "${files[@]}" "$@" ${tests[@]+"${tests[@]}"}
