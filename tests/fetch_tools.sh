#!/bin/sh
# Fetches prometheus, promtool and prometheus-alertmanager from Debian's packages into .tools/bin, without root and without
# installing anything; axe-core from npm into .tools/axe. A browser needs more of Debian than one package: chromium is
# installed where we are root, and else has to be there.
# Says nothing when all is well, one line when it cannot be had (the tests that want it then skip); exits 0 either way.
set -u

root="$(cd "$(dirname "$0")/.." && pwd)"
bin="$root/.tools/bin"

[ -e "$root/.tools/axe/axe.min.js" ] ||
    (cd "$root" && "$root/.venv/bin/python" -m tests.vendor_page axe "$root/.tools/axe") ||
    echo "fetch_tools: no axe-core: the test of the page's accessibility will skip" >&2

if ! command -v chromium >/dev/null 2>&1 && ! command -v chromium-browser >/dev/null 2>&1 &&
    ! command -v google-chrome >/dev/null 2>&1; then
    [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null 2>&1 &&
        { timeout 300 apt-get -qq install -y --no-install-recommends chromium ||
            { timeout 120 apt-get -qq update && timeout 300 apt-get -qq install -y --no-install-recommends chromium; }; } \
            >/dev/null 2>&1 || echo "fetch_tools: no chromium (apt-get install chromium): the page's tests will skip" >&2
fi

for tool in promtool prometheus prometheus-alertmanager; do
    command -v "$tool" >/dev/null 2>&1 || [ -x "$bin/$tool" ] || missing=1
done
[ -n "${missing:-}" ] || exit 0

give_up() {
    echo "fetch_tools: not all of promtool, prometheus and prometheus-alertmanager ($1): the tests that use them will skip" >&2
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
    limit="$1" && shift
    timeout "$limit" apt-get -qq \
        -o Dir::State::Lists="$scratch/state/lists" -o Dir::Cache="$scratch/cache" \
        -o Acquire::Retries=1 -o Acquire::http::Timeout=15 -o Acquire::https::Timeout=15 \
        -o APT::Update::Error-Mode=any \
        -o APT::Sandbox::User="$(id -un)" -o Debug::NoLocking=1 "$@" >>log 2>&1
}
packages="prometheus prometheus-alertmanager"
# shellcheck disable=SC2086 # two packages
timeout 120 apt-get -qq -o Acquire::Retries=1 -o Acquire::http::Timeout=15 -o APT::Sandbox::User="$(id -un)" \
    download $packages >log 2>&1 || { apt 120 update && apt 120 download $packages; } || give_up "$(tail -n 1 log)"
mkdir -p "$bin"

# Takes tools out of a package.
take() {
    package="$1" && shift
    dpkg-deb --fsys-tarfile "$package"_*.deb >package.tar || give_up "$package cannot be read"
    for tool; do
        tar -xf package.tar "./usr/bin/$tool" || give_up "$package holds no $tool"
        # Renamed within one file system, so that nobody runs half of it.
        cp "usr/bin/$tool" "$bin/$tool.$$" && mv "$bin/$tool.$$" "$bin/$tool" || give_up "$bin cannot be written"
    done
}
take prometheus promtool prometheus
take prometheus-alertmanager prometheus-alertmanager

# Debian's Alertmanager reads its templates from a folder that only root may make: this copy reads them from where it is
# started, .tools/share, by a path of the same length.
mkdir -p "$bin/../share" && tar -xf package.tar --wildcards './usr/share/prometheus/alertmanager/*.tmpl' &&
    cp usr/share/prometheus/alertmanager/*.tmpl "$bin/../share/" || give_up "prometheus-alertmanager holds no templates"
LC_ALL=C sed -b 's#/usr/share/prometheus/alertmanager#./././././././././././././././././#g' \
    "$bin/prometheus-alertmanager" >"$bin/alertmanager.$$" && chmod 755 "$bin/alertmanager.$$" &&
    mv "$bin/alertmanager.$$" "$bin/prometheus-alertmanager" || give_up "prometheus-alertmanager cannot be copied"
