#!/usr/bin/env bash
# Builds what the guests are made of, from the distribution's packages alone.
#
#   build.sh [kernel|initramfs|rootdisk|stock|lab|lab-stock|all]...    (nothing named: kernel initramfs)
#
#   kernel      vmlinux, bzImage.{lz4,gz,xz,zst}, bzImage, config     the small test kernel: about 4 minutes
#   initramfs   initramfs.cpio.gz                                     busybox, lscpu and ./init
#   rootdisk    root.ext4                                             the same as a disk, 64 MiB
#   stock       stock/{vmlinuz,config,initramfs.cpio.gz}              the Debian cloud kernel
#   lab         lab/{vmlinux,config}                                  the same with KVM: another 3 minutes
#   lab-stock   lab-stock/{vmlinux,modules.cpio}                      Debian's big kernel, for a lab without a compiler
#   all         kernel initramfs rootdisk stock lab
#
#   build.sh --fresh STEP...    make nothing; with status 1 if one of them would be made
#
# Everything lands in ${CARGO_TARGET_DIR:-target}/guest. Each output remembers a hash of what it was made
# from and is left alone while that stays the same. Two builds at a time wait for each other only where both would make
# the same thing. Only the installation of missing packages needs root.
# BANTAM_KEEP_BUILD=1 keeps the kernel's build tree, for somebody who is changing kernel.config.
set -euo pipefail
export LC_ALL=C PATH="$PATH:/usr/sbin:/sbin"

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
target=${CARGO_TARGET_DIR:-$here/../../target}
mkdir -p "$target/guest/build"
out=$(cd "$target/guest" && pwd)
build=$out/build

# shellcheck source=resources/progress
. "$here/../progress" guest
die() { say "error: $*"; exit 1; }

# need GROUP... : resources/setup installs what is missing.
need() { [ -n "$only_ask" ] || "$here/../setup" "$@"; }

# Nothing stays behind, whatever ends the script.
trap hide_progress EXIT

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

# made NAME KEY OUTPUT... : the same, and if not, this process makes it from now on and nobody else does. Who holds that
# right already may be about to make just this: it is waited for, and then what it has made is looked at.
made() {
    [ -z "$only_ask" ] || { fresh "$@" && return; exit 1; }
    fresh "$@" && return
    claim "$1"
    fresh "$@"
}

# claim NAME : of the builds that run at the same time, only one goes on from here. The lock ends with done_with.
lock='' claimed=''
claim() {
    # Both kernels are made in one tree.
    local name=${1/#lab-kernel/kernel} holder
    [ "$claimed" != "$name" ] || return 0
    exec {lock}>>"$build/$name.lock"
    if ! flock -n "$lock"; then
        holder=$(cat "$build/$name.lock" 2>/dev/null || true)
        show_progress "waiting for ${holder:-another build}"
        flock "$lock"
        hide_progress
    fi
    claimed=$name
    echo "process $$, which makes $1" >"$build/$name.lock"
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
    [ "$status" = 0 ] || { hide_progress; tail -n 40 "$log" >&2; die "$1 failed; the whole log is $log"; }
}

# done_with NAME KEY : it is there, made from KEY.
done_with() {
    printf '%s\n' "$2" >"$build/$1.key.new" && mv "$build/$1.key.new" "$build/$1.key"
    exec {lock}>&-
    claimed=''
}

# ---------------------------------------------------------------- kernel

kernel_outputs=(vmlinux bzImage.lz4 bzImage.gz bzImage.xz bzImage.zst bzImage config)

installed() { [ "$(dpkg-query -W -f '${db:Status-Status}' "$1" 2>/dev/null)" = installed ]; }

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
    out=$folder made "$name" "$key" $outputs && return

    if [ -z "$package" ]; then
        need archive
        package=$(kernel_source)
        [ -n "$package" ] || die "no package linux-source-* is known to apt: enable your distribution's main archive"
    fi
    need kernel "+$package"
    version=$(dpkg-query -W -f '${Version}' "$package")
    key="$recipe $package $version"

    local new=$build/$name.new
    show_progress "$name: preparing the source"
    unpack_kernel "$package" "$version"
    cd "$build/linux"
    logged "$build/$name-config.log" configure_kernel "$@"
    check_config
    hide_progress
    rm -rf "$new" && mkdir -p "$new" "$folder"
    say "$name: compiling takes about 4 minutes on 2 cores; its log is $build/$name.log"
    show_progress "$name: compiling" compiled "$build/$name.log"
    logged "$build/$name.log" "$compile" "$new"
    hide_progress
    cd "$folder"
    rm -f "$build/$name.key"
    mv -f "$new"/* "$folder/"
    rmdir "$new"
    done_with "$name" "$key"
    say "$name: $(grep -aoE -m 1 'Linux version [0-9][^ ]+' vmlinux | head -n 1)," \
        "vmlinux $(($(stat -c %s vmlinux) >> 10)) KiB"
}

# How far a compilation has come.
compiled() { echo "$(grep -cE '^  (CC|AS) ' "$1") of about 1500 files"; }

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

userland_key() { hash userland libraries pack "$here/init" /bin/busybox /usr/bin/lscpu "$@"; }

build_initramfs() {
    local key
    need guest
    key=$(userland_key)
    made initramfs "$key" initramfs.cpio.gz && return
    userland "$build/initramfs"
    pack "$build/initramfs" "$out/initramfs.cpio.gz"
    rm -rf "$build/initramfs"
    done_with initramfs "$key"
    say "initramfs: $(($(stat -c %s "$out/initramfs.cpio.gz") >> 10)) KiB"
}

build_rootdisk() {
    local key new=$build/root.ext4.new
    need guest
    key=$(userland_key build_rootdisk)
    made rootdisk "$key" root.ext4 && return
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
    need guest
    key=$(userland_key build_stock fetch_kernel depends unpack_kernel_packages stock_modules)
    made stock "$key" stock/vmlinuz stock/config stock/initramfs.cpio.gz && return
    rm -rf "$new"
    mkdir -p "$new"/{package,out,initramfs}
    [ -d "$out/stock" ] || rm -rf "$build/stock-packages"
    [ -d "$build/stock-packages" ] || fetch_kernel linux-image-cloud-amd64 "$build/stock-packages"
    unpack_kernel_packages "$build/stock-packages" "$new/package"
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
    say "stock: $(basename "$build"/stock-packages/linux-image-*.deb .deb)"
}

# depends PATTERN PACKAGE : the packages that it depends on and whose names begin so.
depends() {
    apt-cache show --no-all-versions "$2" 2>/dev/null | sed -n 's/^Depends: //p' | head -n 1 | tr ',|' '\n\n' |
        sed -n "s/^ *\($1[^ ]*\).*/\1/p"
}

# fetch_kernel METAPACKAGE FOLDER : downloads the kernel behind it: one package, or, in Debian since 2026, its image,
# modules and configuration in one each.
fetch_kernel() {
    local image packages log=$build/fetch-$1.log
    need archive
    image=$(depends linux-image- "$1")
    [ -n "$image" ] || die "apt knows no $1: 'apt-get update' fetches the lists of Debian's main archive"
    mapfile -t packages < <(echo "$image"; depends 'linux-\(base\|binary\|modules\)-[0-9]' "$image")
    show_progress "fetching $image"
    rm -rf "$2.new"
    mkdir "$2.new"
    # apt-get wants to write as its own user; it does without, and says so.
    (cd "$2.new" && apt-get download -qq "${packages[@]}") >"$log" 2>&1 || {
        hide_progress
        tail -n 20 "$log" >&2
        die "could not download $image: if its version has left the archive, 'apt-get update' fetches newer lists"
    }
    mv "$2.new" "$2"
    hide_progress
}

# unpack_kernel_packages FOLDER INTO : without the drivers that no guest here has a use for: three quarters of the big
# kernel.
unpack_kernel_packages() {
    local package big skip=()
    for big in drivers/gpu drivers/media drivers/staging drivers/infiniband drivers/iio drivers/usb drivers/scsi \
        drivers/net/ethernet drivers/net/wireless drivers/hwmon drivers/input/touchscreen sound net/bluetooth; do
        skip+=(--exclude="*/kernel/$big/*")
    done
    for package in "$1"/*.deb; do
        dpkg-deb --fsys-tarfile "$package" | tar -x -C "$2" --wildcards "${skip[@]}"
    done
    # In the newest packages the kernel lies beside its modules.
    [ -d "$2/boot" ] || mkdir "$2/boot"
    compgen -G "$2/boot/vmlinuz-*" >/dev/null || cp "$2"/usr/lib/modules/*/vmlinuz "$2/boot/vmlinuz-0" 2>/dev/null ||
        die "there is no kernel in $(basename "$1"/linux-image-*.deb)"
    compgen -G "$2/boot/config-*" >/dev/null || cp "$2"/usr/lib/modules/*/config "$2/boot/config-0" 2>/dev/null ||
        die "there is no configuration in $(basename "$1"/linux-image-*.deb)"
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
    need lab
    build_lab_kernel
}

# Debian's kernel for all machines has, as modules, KVM and the way to the host's files (9p; the cloud kernel has no 9p):
# a lab that is there in seconds. It starts less quickly than the compiled one, and knows no virtual time.
build_lab_stock() {
    local key new=$build/lab-stock
    need guest lab
    key=$(hash build_lab_stock fetch_kernel depends unpack_kernel_packages stock_modules unpack_vmlinuz archive)
    made lab-stock "$key" lab-stock/vmlinux lab-stock/modules.cpio && return
    rm -rf "$new"
    mkdir -p "$new"/{package,out,initramfs}
    fetch_kernel linux-image-amd64 "$new/packages"
    show_progress "lab-stock: unpacking"
    unpack_kernel_packages "$new/packages" "$new/package"
    unpack_vmlinuz "$new"/package/boot/vmlinuz-* "$new/out/vmlinux"
    # In the order of need: what runs the lab's machine, then what a VMM asks of its host.
    stock_modules "$new/package" "$new/initramfs" lab virtio_mmio virtio_console 9p 9pnet_virtio kvm_amd tun loop
    archive "$new/initramfs" >"$new/out/modules.cpio"
    hide_progress
    rm -rf "$out/lab-stock"
    mv "$new/out" "$out/lab-stock"
    say "lab-stock: $(basename "$new"/packages/linux-image-*.deb .deb)"
    rm -rf "$new"
    done_with lab-stock "$key"
}

# The vmlinux inside of a vmlinuz: an emulated processor would take many seconds to unpack it. The boot protocol's
# header says where it is. What is packed in another way stays as it is, and unpacks itself.
unpack_vmlinuz() {
    local file=$1 to=$2 setup offset length unpack
    number_at() { od -An -v -t "u$2" -j "$(($1))" -N "$2" "$file" | tr -d ' '; }
    setup=$(number_at 0x1f1 1) offset=$(number_at 0x248 4) length=$(number_at 0x24c 4)
    offset=$(((setup + 1) * 512 + offset))
    case $(od -An -v -t x1 -j "$offset" -N 4 "$file" | tr -d ' ') in
        fd377a58) unpack=(xz -dcq --single-stream) ;;
        28b52ffd) unpack=(zstd -dcq) ;;
        1f8b*) unpack=(gzip -dcq) ;;
        *) cp "$file" "$to"; return ;;
    esac
    # After the packed kernel come four bytes with its length, which not every tool passes over in silence.
    { tail -c "+$((offset + 1))" "$file" | head -c "$((length - 4))" | "${unpack[@]}" >"$to"; } 2>/dev/null || true
    [ "$(od -An -v -t x1 -N 4 "$to" | tr -d ' ')" = 7f454c46 ] || cp "$file" "$to"
}

# archive DIRECTORY : as an initramfs, not compressed.
archive() { (cd "$1" && find . -print0 | sort -z | cpio --quiet -0 -o -H newc -R 0:0); }

# ---------------------------------------------------------------- the command line

usage() { sed -n '2,/^set /{/^set /d;s/^# \{0,1\}//;p}' "${BASH_SOURCE[0]}"; }

steps=() only_ask=''
for step; do
    case $step in
        kernel | initramfs | rootdisk | stock | lab) steps+=("$step") ;;
        lab-stock) steps+=(lab_stock) ;;
        all) steps+=(kernel lab initramfs rootdisk stock) ;;
        --fresh) only_ask=1 ;;
        -h | --help) usage; exit ;;
        *) usage >&2; die "\"$step\" is not a thing to build" ;;
    esac
done
[ ${#steps[@]} -gt 0 ] || steps=(kernel initramfs)
[ "$(uname -m)" = x86_64 ] || die "this machine is $(uname -m); the guests are x86_64 and built natively"

# A question is answered by the status alone, also where what would be needed for the work is missing.
[ -z "$only_ask" ] || exec 2>/dev/null
for step in "${steps[@]}"; do "build_$step"; done
