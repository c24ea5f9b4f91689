#!/bin/sh
# Fetches prometheus and promtool from Debian's prometheus package into .tools/bin, without root and without installing anything.
# Says nothing when all is well, one line when it cannot be had (the tests that want it then skip); exits 0 either way.
set -u

bin="$(cd "$(dirname "$0")/.." && pwd)/.tools/bin"
tools="promtool prometheus"
for tool in $tools; do
    command -v "$tool" >/dev/null 2>&1 || [ -x "$bin/$tool" ] || missing=1
done
[ -n "${missing:-}" ] || exit 0

give_up() {
    echo "fetch_tools: no promtool and prometheus ($1): the tests that use it will skip" >&2
    exit 0
}

command -v apt-get >/dev/null && command -v dpkg-deb >/dev/null || give_up "this is no Debian"
scratch="$(mktemp -d)" || give_up "no temporary folder"
trap 'rm -rf "$scratch"' EXIT
trap 'exit 1' INT TERM
chmod 755 "$scratch" # apt's own user reads it, where we are root
cd "$scratch" || exit 1

# Package lists of our own: a fresh image has none, and refreshing the system's would take root.
mkdir -p state/lists/partial cache/archives/partial
apt() {
    timeout "$1" apt-get -qq \
        -o Dir::State::Lists="$scratch/state/lists" -o Dir::Cache="$scratch/cache" \
        -o Acquire::Retries=1 -o Acquire::http::Timeout=15 -o Acquire::https::Timeout=15 \
        -o APT::Update::Error-Mode=any \
        -o APT::Sandbox::User="$(id -un)" -o Debug::NoLocking=1 "$2" ${3:+"$3"} >log 2>&1
}
timeout 120 apt-get -qq -o Acquire::Retries=1 -o Acquire::http::Timeout=15 -o APT::Sandbox::User="$(id -un)" download prometheus >log 2>&1 ||
    { apt 120 update && apt 120 download prometheus; } ||
    give_up "$(tail -n 1 log)"
dpkg-deb --fsys-tarfile prometheus_*.deb >package.tar || give_up "the package cannot be read"
mkdir -p "$bin"
for tool in $tools; do
    tar -xf package.tar "./usr/bin/$tool" || give_up "the package holds no $tool"
    # Renamed within one file system, so that nobody runs half of it.
    cp "usr/bin/$tool" "$bin/$tool.$$" && mv "$bin/$tool.$$" "$bin/$tool" || give_up "$bin cannot be written"
done
