#!/usr/bin/env bash
# Builds what the guests are made of, from the distribution's packages alone.
#
#   build.sh [kernel|initramfs|rootdisk|stock|lab|all]...    (nothing named: kernel initramfs)
#
#   kernel      vmlinux, bzImage.{lz4,gz,xz,zst}, bzImage, config     the small test kernel: about 4 minutes
#   initramfs   initramfs.cpio.gz                                     busybox, lscpu and ./init
#   rootdisk    root.ext4                                             the same as a disk, 64 MiB
#   stock       stock/{vmlinuz,config,initramfs.cpio.gz}              the Debian cloud kernel
#   lab         lab/{vmlinux,config}                                  the same with KVM: another 3 minutes
#   all         all of these
#
# Everything lands in ${CARGO_TARGET_DIR:-target}/guest. Each output remembers a hash of what it was made
# from and is left alone while that stays the same. Only the installation of missing packages needs root.
# BANTAM_KEEP_BUILD=1 keeps the kernel's build tree, for somebody who is changing kernel.config.
set -euo pipefail
export LC_ALL=C PATH="$PATH:/usr/sbin:/sbin"

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
target=${CARGO_TARGET_DIR:-$here/../../target}
mkdir -p "$target/guest/build"
out=$(cd "$target/guest" && pwd)
build=$out/build

say() { printf 'guest: %s\n' "$*" >&2; }
die() { printf 'guest: error: %s\n' "$*" >&2; exit 1; }

# ---------------------------------------------------------------- packages

installed() { [ "$(dpkg-query -W -f '${db:Status-Status}' "$1" 2>/dev/null)" = installed ]; }

as_root() {
    if [ "$(id -u)" = 0 ]; then "$@"
    elif command -v sudo >/dev/null; then sudo "$@"
    else die "cannot install packages without root; as root, run: $*"
    fi
}

# need PACKAGE... installs those that are missing. The package lists are fetched only when the installation
# fails without: they may be empty (a fresh container) or name versions that have left the mirrors.
need() {
    local package missing=()
    for package; do installed "$package" || missing+=("$package"); done
    [ ${#missing[@]} -gt 0 ] || return 0
    command -v apt-get >/dev/null ||
        die "these Debian packages (or your distribution's counterparts) are needed: ${missing[*]}"
    say "installing ${missing[*]}"
    local install=(env DEBIAN_FRONTEND=noninteractive apt-get install -qq -y --no-install-recommends)
    as_root "${install[@]}" "${missing[@]}" >"$build/apt.log" 2>&1 ||
        { update_lists && as_root "${install[@]}" "${missing[@]}" >"$build/apt.log" 2>&1; } ||
        { tail -n 20 "$build/apt.log" >&2; die "could not install ${missing[*]}"; }
}

update_lists() { as_root apt-get update -qq >"$build/apt.log" 2>&1; }

# ---------------------------------------------------------------- what is up to date

# hash FUNCTION... FILE... : of the functions' text and the files' contents.
hash() {
    local thing
    for thing; do
        if declare -F "$thing" >/dev/null; then declare -f "$thing"; else cat "$thing"; fi
    done | sha256sum | cut -c1-16
}

# fresh NAME KEY OUTPUT... : was NAME made from KEY, and are its outputs still there?
fresh() {
    local name=$1 key=$2 file
    shift 2
    [ "$(cat "$build/$name.key" 2>/dev/null)" = "$key" ] || return 1
    for file; do [ -s "$out/$file" ] || return 1; done
}

# logged LOG FUNCTION ARG... : keeps the output in a file, and shows its end upon failure.
logged() {
    local log=$1 status
    shift
    # Not "( ... ) || ...": there, bash ignores set -e.
    set +e
    (set -e; "$@") >"$log" 2>&1
    status=$?
    set -e
    [ "$status" = 0 ] || { tail -n 40 "$log" >&2; die "$1 failed; the whole log is $log"; }
}

done_with() { printf '%s\n' "$2" >"$build/$1.key.new" && mv "$build/$1.key.new" "$build/$1.key"; }

# ---------------------------------------------------------------- kernel

kernel_outputs=(vmlinux bzImage.lz4 bzImage.gz bzImage.xz bzImage.zst bzImage config)

# The package with the kernel's source: 6.12 where there is one, else the newest.
kernel_source() {
    local all
    installed linux-source-6.12 && { echo linux-source-6.12; return; }
    all=$(apt-cache pkgnames linux-source- 2>/dev/null | grep -E '^linux-source-[0-9][0-9.]*$' || true)
    if grep -qx linux-source-6.12 <<<"$all"; then echo linux-source-6.12; else sort -V <<<"$all" | tail -n 1; fi
}

lab_config=$here/../lab/kernel.config

build_kernel() { kernel_variant kernel compile_kernel "$out" "${kernel_outputs[*]}" "$here/kernel.config"; }

build_lab_kernel() {
    kernel_variant lab-kernel compile_lab_kernel "$out/lab" "vmlinux config" "$here/kernel.config" "$lab_config"
}

# kernel_variant NAME COMPILE FOLDER OUTPUTS FRAGMENT... : a kernel in FOLDER, from the fragments, by COMPILE.
kernel_variant() {
    local name=$1 compile=$2 folder=$3 outputs=$4 package version key recipe
    shift 4
    package=$(kernel_source)
    version=$(dpkg-query -W -f '${Version}' "$package" 2>/dev/null || true)
    recipe=$(hash unpack_kernel configure_kernel make_kernel "$compile" "$@")
    key="$recipe $package $version"
    # A cached build on a machine without the source package: the recipe alone has to agree.
    if [ -z "$version" ] && [ -f "$build/$name.key" ] &&
        [ "$recipe" = "$(cut -d' ' -f1 "$build/$name.key")" ]; then
        key=$(cat "$build/$name.key")
    fi
    # shellcheck disable=SC2086 # a list
    (out=$folder; fresh "$name" "$key" $outputs) && return

    if [ -z "$package" ]; then
        update_lists || true
        package=$(kernel_source)
        [ -n "$package" ] || die "no package linux-source-* is known to apt: enable your distribution's main archive"
    fi
    need "$package" make gcc libc6-dev flex bison bc libelf-dev xz-utils bzip2 zstd lz4
    version=$(dpkg-query -W -f '${Version}' "$package")
    key="$recipe $package $version"

    local new=$build/$name.new
    unpack_kernel "$package" "$version"
    cd "$build/linux"
    logged "$build/$name-config.log" configure_kernel "$@"
    check_config
    say "$name: compiling (about 4 minutes on 2 cores; log: $build/$name.log)"
    rm -rf "$new" && mkdir -p "$new" "$folder"
    logged "$build/$name.log" "$compile" "$new"
    cd "$folder"
    rm -f "$build/$name.key"
    mv -f "$new"/* "$folder/"
    rmdir "$new"
    done_with "$name" "$key"
    say "$name: $(grep -aoE -m 1 'Linux version [0-9][^ ]+' vmlinux | head -n 1)," \
        "vmlinux $(($(stat -c %s vmlinux) >> 10)) KiB"
}

# Unpacks what an x86 build without modules reads: a third of the files, and half the time.
unpack_kernel() {
    local package=$1 version=$2 archive arch skip=() origin
    # An interrupted build goes on in its tree, if that came from the same package in the same way.
    origin="$version $(hash unpack_kernel)"
    [ "$(cat "$build/linux/.bantam-origin" 2>/dev/null)" = "$origin" ] && return
    archive=$(dpkg -L "$package" | grep -E '/linux-source-[0-9.]+\.tar\.[a-z0-9]+$' | tail -n 1)
    [ -f "$archive" ] || die "package $package holds no linux-source-*.tar.*"
    say "kernel: unpacking $package $version"
    rm -rf "$build/linux" "$build/linux.new"
    mkdir "$build/linux.new"
    for arch in alpha arc arm arm64 csky hexagon loongarch m68k microblaze mips nios2 openrisc parisc powerpc \
        riscv s390 sh sparc xtensa; do
        skip+=(--exclude="linux-source-*/arch/$arch/*.[chS]" --exclude="linux-source-*/arch/$arch/*.dts*")
    done
    # Kconfig and make files stay everywhere: a menu reads them even where nothing is switched on.
    for arch in drivers/gpu drivers/media drivers/staging drivers/infiniband drivers/accel drivers/iio drivers/usb \
        drivers/net/ethernet drivers/net/wireless sound; do
        skip+=(--exclude="linux-source-*/$arch/*.[ch]")
    done
    tar -C "$build/linux.new" --strip-components=1 --wildcards-match-slash "${skip[@]}" \
        --exclude='*/tools/testing' --exclude='*/tools/perf' --exclude='linux-source-*/Documentation/*/*' \
        -xf "$archive"
    echo "$origin" >"$build/linux.new/.bantam-origin"
    touch -r "$archive" "$build/linux.new/.bantam-origin"
    mv "$build/linux.new" "$build/linux"
}

configure_kernel() {
    # "# comments" go, "# CONFIG_X is not set" stays.
    grep -hE '^CONFIG_|^# CONFIG_[A-Z0-9_]+ is not set$' "$@" >bantam.config
    make -s tinyconfig
    cat bantam.config >>.config
    make -s olddefconfig
}

# Kconfig drops in silence what depends on something else that is off.
check_config() {
    local line option config=$build/linux/.config
    while read -r line; do
        case $line in
            "# "*) option=${line#\# } option=${option%% *}; ! grep -q "^$option=" "$config" ;;
            *) option=${line%%=*}; grep -qxF "$line" "$config" ;;
        esac || die "kernel.config asks for \"$line\", but after make olddefconfig" \
            "$(grep -E "^(# )?${option}[ =]" "$config" || echo "there is no $option"); what does it depend on?"
    done <"$build/linux/bantam.config"
}

# The same source gives the same image: nothing of this machine or hour goes into it.
make_kernel() {
    KBUILD_BUILD_TIMESTAMP=$(date -u -r .bantam-origin)
    export KBUILD_BUILD_TIMESTAMP KBUILD_BUILD_USER=bantam KBUILD_BUILD_HOST=bantam
    nice make -j"$(nproc)" "$1"
}

compile_lab_kernel() {
    make_kernel vmlinux
    cp .config "$1/config"
    strip --strip-debug -o "$1/vmlinux" vmlinux
    # Both kernels are built in this tree, this one last.
    [ -n "${BANTAM_KEEP_BUILD:-}" ] || rm -rf "$build/linux"
}

compile_kernel() {
    local new=$1 format suffix
    make_kernel bzImage
    cp arch/x86/boot/bzImage "$new/bzImage.lz4"
    cp .config "$new/config"
    # Debug sections go, symbols and the ELF notes (PVH's entry point is one) stay.
    strip --strip-debug -o "$new/vmlinux" vmlinux

    # The other compressions differ in arch/x86/boot alone. Told through .config, kbuild would see another
    # configuration and link vmlinux again, with another /proc/config.gz in it: so change the files that
    # kbuild derives from .config, and make the boot code again.
    for format in GZIP:gz XZ:xz ZSTD:zst; do
        suffix=${format#*:} format=${format%:*}
        sed -i "s/^CONFIG_KERNEL_[A-Z0-9]*=y/CONFIG_KERNEL_$format=y/" include/config/auto.conf
        sed -i "s/^#define CONFIG_KERNEL_[A-Z0-9]* 1/#define CONFIG_KERNEL_$format 1/" include/generated/autoconf.h
        find arch/x86/boot -name '*.o' -delete
        make_kernel bzImage
        cp arch/x86/boot/bzImage "$new/bzImage.$suffix"
    done
    ln -s bzImage.lz4 "$new/bzImage"
    # Make a later run in this tree start from .config again.
    touch .config
}

# ---------------------------------------------------------------- user space

# userland DIRECTORY : busybox, lscpu with its libraries, and init.
userland() {
    local root=$1 applet library
    rm -rf "$root"
    mkdir -p "$root"/{bin,sbin,etc,proc,sys,dev,run,tmp,root,newroot,var}
    chmod 1777 "$root/tmp"
    ln -s /run "$root/var/run"
    cp /bin/busybox "$root/bin/busybox"
    for applet in $(/bin/busybox --list); do
        [ "$applet" = busybox ] || ln -s busybox "$root/bin/$applet"
    done
    cp /usr/bin/lscpu "$root/bin/lscpu"
    for library in $(libraries /usr/bin/lscpu); do
        install -D -m 755 "$library" "$root$library"
    done
    printf 'root::0:0:root:/root:/bin/sh\n' >"$root/etc/passwd"
    printf 'root:x:0:\n' >"$root/etc/group"
    printf 'bantam\n' >"$root/etc/hostname"
    install -m 755 "$here/init" "$root/sbin/init"
}

# The files that the dynamic linker will open for PROGRAM.
libraries() { ldd "$1" | grep -oE '/[^ ]+' || true; }

# pack DIRECTORY ARCHIVE : as an initramfs, the same bytes for the same files. There is no need for a node
# /dev/console in it, and so for root: the kernel's built-in archive, unpacked before this one, has that.
pack() {
    local new=$2.new
    # By its name /init the script knows where it is.
    ln -f "$1/sbin/init" "$1/init"
    (cd "$1" && find . -exec touch -h -d @0 {} + && find . -print0 | sort -z |
        cpio --quiet -0 -o -H newc -R 0:0 --reproducible) | gzip -9n >"$new"
    mv "$new" "$2"
}

userland_packages=(busybox-static util-linux cpio gzip)
userland_key() { hash userland libraries pack "$here/init" /bin/busybox /usr/bin/lscpu "$@"; }

build_initramfs() {
    local key
    need "${userland_packages[@]}"
    key=$(userland_key)
    fresh initramfs "$key" initramfs.cpio.gz && return
    userland "$build/initramfs"
    pack "$build/initramfs" "$out/initramfs.cpio.gz"
    rm -rf "$build/initramfs"
    done_with initramfs "$key"
    say "initramfs: $(($(stat -c %s "$out/initramfs.cpio.gz") >> 10)) KiB"
}

build_rootdisk() {
    local key new=$build/root.ext4.new
    need "${userland_packages[@]}" e2fsprogs
    key=$(userland_key build_rootdisk)
    fresh rootdisk "$key" root.ext4 && return
    userland "$build/rootdisk"
    rm -f "$new"
    truncate -s 64M "$new"
    # -d copies a directory into the file system, which needs no root.
    mke2fs -q -F -t ext4 -L bantam-root -E root_owner=0:0 -d "$build/rootdisk" "$new"
    rm -rf "$build/rootdisk"
    mv "$new" "$out/root.ext4"
    done_with rootdisk "$key"
    say "rootdisk: $(($(stat -c %s "$out/root.ext4") >> 20)) MiB, $(du -k "$out/root.ext4" | cut -f1) KiB of them used"
}

# ---------------------------------------------------------------- the distribution's kernel

# Fetched once: a newer kernel in the archive must not change what a series of measurements runs on. To go on to
# it, delete the folder target/guest/stock.
build_stock() {
    local key new=$build/stock
    need "${userland_packages[@]}" kmod xz-utils zstd
    key=$(userland_key build_stock fetch_stock stock_package stock_modules)
    fresh stock "$key" stock/vmlinuz stock/config stock/initramfs.cpio.gz && return
    rm -rf "$new"
    mkdir -p "$new"/{package,out,initramfs}
    [ -d "$out/stock" ] || rm -f "$build"/linux-image-*.deb
    compgen -G "$build/linux-image-*.deb" >/dev/null || fetch_stock
    dpkg -x "$build"/linux-image-*.deb "$new/package"
    cp "$new"/package/boot/vmlinuz-* "$new/out/vmlinuz"
    cp "$new"/package/boot/config-* "$new/out/config"
    userland "$new/initramfs"
    stock_modules "$new/package" "$new/initramfs" disk virtio_mmio virtio_blk ext4
    stock_modules "$new/package" "$new/initramfs" button button evdev
    pack "$new/initramfs" "$new/out/initramfs.cpio.gz"
    rm -rf "$out/stock"
    mv "$new/out" "$out/stock"
    rm -rf "$new"
    done_with stock "$key"
    say "stock: $(basename "$build"/linux-image-*.deb .deb)"
}

# The package behind the metapackage's dependency.
stock_package() {
    apt-cache show --no-all-versions linux-image-cloud-amd64 2>/dev/null |
        sed -n 's/^Depends: \(linux-image-[^ ,]*\).*/\1/p' | head -n 1
}

fetch_stock() {
    local package try
    for try in 1 2; do
        package=$(stock_package)
        if [ -n "$package" ]; then
            say "stock: fetching $package"
            # apt-get wants to write as its own user; it does without, and says so.
            (cd "$build" && apt-get download -qq "$package") >"$build/apt.log" 2>&1 && return
        fi
        [ "$try" = 2 ] || update_lists || true
    done
    [ -n "$package" ] || die "stock: apt knows no linux-image-cloud-amd64, Debian's kernel for virtual machines"
    tail -n 20 "$build/apt.log" >&2
    die "stock: could not download $package"
}

# stock_modules PACKAGE INITRAMFS LIST MODULE... : copies modules and what they depend on, uncompressed, and writes
# down in /lib/modules/LIST.list in which order they load. What is built in needs nothing.
stock_modules() {
    local package=$1 root=$2 list=$3 version module verb file name
    shift 3
    [ -e "$package/lib" ] || ln -s usr/lib "$package/lib"
    version=$(basename "$package"/lib/modules/*)
    # The package has no modules.dep, its installation would make it.
    [ -s "$package/lib/modules/$version/modules.dep" ] || depmod -b "$package" "$version"
    mkdir -p "$root/lib/modules" "$package/no-config"
    for module; do
        modprobe -C "$package/no-config" -d "$package" -S "$version" --show-depends "$module" ||
            die "stock: kernel $version has no module $module"
    done | while read -r verb file _; do
        [ "$verb" = insmod ] || continue
        name=$(basename "$file") name=${name%%.ko*}.ko
        [ -e "$root/lib/modules/$name" ] || case $file in
            *.xz) xz -dc "$file" ;;
            *.zst) zstd -qdc "$file" ;;
            *.gz) gzip -dc "$file" ;;
            *) cat "$file" ;;
        esac >"$root/lib/modules/$name"
        grep -qxsF "/lib/modules/$name" "$root"/lib/modules/*.list || echo "/lib/modules/$name" >>"$root/lib/modules/$list.list"
    done
}

# ---------------------------------------------------------------- the lab

build_lab() {
    need qemu-system-x86 busybox-static util-linux bsdutils coreutils cpio gcc libc6-dev
    build_lab_kernel
}

# ---------------------------------------------------------------- the command line

usage() { sed -n '2,/^set /{/^set /d;s/^# \{0,1\}//;p}' "${BASH_SOURCE[0]}"; }

[ $# -gt 0 ] || set -- kernel initramfs
steps=()
for step; do
    case $step in
        kernel | initramfs | rootdisk | stock | lab) steps+=("$step") ;;
        all) steps+=(kernel lab initramfs rootdisk stock) ;;
        -h | --help) usage; exit ;;
        *) usage >&2; die "\"$step\" is not a thing to build" ;;
    esac
done
[ "$(uname -m)" = x86_64 ] || die "this machine is $(uname -m); the guests are x86_64 and built natively"

exec 9>"$build/lock"
flock -n 9 || { say "another build is running; waiting for it"; flock 9; }
for step in "${steps[@]}"; do "build_$step"; done
