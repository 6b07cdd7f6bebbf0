#!/usr/bin/env bash
# Mutation testing of wire, event, map and time by their unit tests, on a copy of the crate without
# what has matrix-sdk in it: a mutant is built and tested in seconds.
# `fuzz/mutants.sh [DIR [cargo-mutants' options..]]`
set -euo pipefail

root=$(cd "$(dirname "$0")/.." && pwd)
copy=${1:-${TMPDIR:-/tmp}/mutants-copy}
shift || true

mkdir -p "$copy/.cargo"
rm -rf "$copy/src" "$copy/tests" "$copy/fuzz"
cp -r "$root/src" "$copy/src"
cp "$root/README.md" "$root/rustfmt.toml" "$root/Cargo.lock" "$copy/"
cp "$root/.cargo/mutants.toml" "$copy/.cargo/"
awk '
    /^\[/ { section = $0 }
    section ~ /^\[\[(example|bench|test)\]\]/ { next }
    section == "[dev-dependencies]" && !/^(\[|$|serde_json)/ { next }
    /^members = / { print "members = [\".\"]"; next }
    { print }
' "$root/Cargo.toml" >"$copy/Cargo.toml"

cd "$copy"
exec cargo mutants --in-place --no-shuffle "$@"
