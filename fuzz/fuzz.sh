#!/usr/bin/env bash
# Builds and runs a fuzz target on any stable compiler: `fuzz/fuzz.sh wire|map|rtc [libFuzzer's options..]`.
# New inputs go to fuzz/target/corpus/, findings to fuzz/artifacts/.
# `fuzz/fuzz.sh wire|map|rtc pick` picks a smallest set with the coverage of both corpora, into
# fuzz/target/picked/.
#
# The flags are those of `cargo fuzz -s none`, which cannot pass `--ignore-rust-version` on.
set -euo pipefail

cd "$(dirname "$0")"
target=${1:?"usage: fuzz/fuzz.sh wire|map|rtc [libFuzzer options]"}
shift

host=$(rustc -vV | sed -n 's/^host: //p')
flags="--cfg fuzzing -Cpasses=sancov-module -Ccodegen-units=1"
for option in level=4 inline-8bit-counters pc-table trace-compares; do
    flags+=" -Cllvm-args=-sanitizer-coverage-$option"
done
RUSTFLAGS="$flags" cargo build --quiet --release --ignore-rust-version --target "$host" --bin "$target"

mkdir -p "target/corpus/$target" "artifacts/$target"
options=(-artifact_prefix="artifacts/$target/" -max_len=8192 -timeout=10)
if [ -f "$target.dict" ]; then
    options+=(-dict="$target.dict")
fi
if [ "${1-}" = pick ]; then
    rm -rf "target/picked/$target"
    mkdir -p "target/picked/$target"
    exec "target/$host/release/$target" "${options[@]}" -set_cover_merge=1 \
        "target/picked/$target" "corpus/$target" "target/corpus/$target"
fi
exec "target/$host/release/$target" "${options[@]}" "$@" "target/corpus/$target" "corpus/$target"
