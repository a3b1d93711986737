#!/usr/bin/env bash
# Fetches kernels that others have built, which the tests boot, reboot, panic and power off.
#
#   kernels.sh [NAME]...      (nothing named: all)
#
#   generic, rt            Debian stable's other kernels, beside the cloud one that build.sh stock fetches
#   later, later-generic   its kernels of the next long-term series
#   backports              the cloud kernel of its backports
#   sid                    the cloud kernel of the unstable release
#
# Each lands in ${CARGO_TARGET_DIR:-target}/guest/kernels/NAME/vmlinuz, with the name of its package beside it.
# Needs no root. What the archive does not have is said and left out: its tests are then reported as ignored.
# To go on to newer kernels, delete the folder.
set -euo pipefail
export LC_ALL=C

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
target=${CARGO_TARGET_DIR:-$here/../../target}
mkdir -p "$target/guest/kernels"
out=$(cd "$target/guest/kernels" && pwd)

# shellcheck source=resources/progress
. "$here/../progress" kernels
trap hide_progress EXIT

# The metapackage of each, and the release it comes from when that is not the machine's own.
declare -A packages=(
    [generic]=linux-image-amd64
    [rt]=linux-image-rt-amd64
    [later]=linux-image-6.12-cloud-amd64
    [later-generic]=linux-image-6.12-amd64
    [backports]="linux-image-cloud-amd64 backports"
    [sid]="linux-image-cloud-amd64 sid"
)
names=(generic rt later later-generic backports sid)

# other_release RELEASE : an apt configuration of its own for another release, so that the machine's is not touched.
# The archive is the one that the machine's own lists come from.
other_release() {
    local release=$1 uri own=$out/apt/$1
    [ -s "$own/ready" ] && return
    read -r uri codename < <(apt-get indextargets --format '$(REPO_URI) $(CODENAME)' 'Created-By: Packages' |
        grep -Ev -- '-(updates|security|backports)$') || return
    [ "$release" != backports ] || release=$codename-backports
    mkdir -p "$own"/{lists/partial,cache/archives/partial}
    echo "deb $uri $release main" >"$own/sources.list"
    apt_of "$1" apt-get update -qq && touch "$own/ready" && echo ok >"$own/ready"
}

# apt_of RELEASE COMMAND... : an apt command in that release; "" is the machine's own.
apt_of() {
    local own=$out/apt/$1 command=$2
    [ -n "$1" ] || { shift; "$@"; return; }
    shift 2
    "$command" -o Dir::Etc::sourcelist="$own/sources.list" -o Dir::Etc::sourceparts=/dev/null \
        -o Dir::State::lists="$own/lists" -o Dir::Cache="$own/cache" "$@"
}

# The package behind a package: an image behind its metapackage, a binary behind its image.
behind() {
    apt_of "$2" apt-cache show --no-all-versions "$1" 2>/dev/null |
        sed -n 's/^Depends: //p' | head -n 1 | tr ',|' '\n\n' |
        sed -n 's/^ *\(linux-\(image\|binary\)-[^ ]*\).*/\1/p' | head -n 1
}

fetch() {
    local name=$1 package release new=$out/$1.new image
    read -r package release <<<"${packages[$name]} "
    if [ -n "$release" ]; then
        other_release "$release" || { say "$name: the archive has no $release"; return 1; }
    fi
    for _ in 1 2; do
        package=$(behind "$package" "$release")
        [ -n "$package" ] || { say "$name: apt knows no package ${packages[$name]}"; return 1; }
        rm -rf "$new" && mkdir -p "$new/package"
        show_progress "$name: fetching $package"
        # apt-get wants to write as its own user; it does without, and says so.
        (cd "$new" && apt_of "$release" apt-get download -qq "$package" 2>apt.log) ||
            { hide_progress; tail -n 5 "$new/apt.log" >&2; say "$name: could not download $package"; return 1; }
        dpkg-deb --fsys-tarfile "$new"/*.deb |
            tar -C "$new/package" -x --wildcards './boot/*' './usr/lib/modules/*/vmlinuz' 2>/dev/null || true
        image=$(find "$new/package" -type f -name 'vmlinuz*' | head -n 1)
        hide_progress
        [ -z "$image" ] || break
    done
    [ -n "$image" ] || { say "$name: no kernel in $package"; return 1; }
    rm -rf "${out:?}/$name" && mkdir "$out/$name"
    echo "$package" >"$out/$name/package"
    mv "$image" "$out/$name/vmlinuz"
    rm -rf "$new"
}

usage() { sed -n '2,/^set /{/^set /d;s/^# \{0,1\}//;p}' "${BASH_SOURCE[0]}"; }

case ${1:-} in -h | --help) usage; exit ;; esac
[ $# -gt 0 ] || set -- "${names[@]}"
for name; do
    [ -n "${packages[$name]:-}" ] || { usage >&2; say "error: no kernel is called \"$name\""; exit 2; }
done
command -v apt-get >/dev/null && command -v dpkg-deb >/dev/null ||
    { say "this is no Debian: no other kernels are fetched"; exit; }
missing=()
for name; do [ -s "$out/$name/vmlinuz" ] || missing+=("$name"); done
[ ${#missing[@]} -gt 0 ] || exit 0
"$here/../setup" archive
for name in "${missing[@]}"; do
    fetch "$name" || { hide_progress; rm -rf "$out/$name.new"; }
done
rm -rf "$out/apt"
