#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
# mkguest.sh - build a small Linux test guest (kernel + initramfs) from Debian
# packages.  Needs apt-get, dpkg-deb, tar and about 600 MB of temporary space;
# no root.  Run `apt-get update` once before it on a fresh machine.
#
#   mkguest.sh [OUTDIR]        writes OUTDIR/vmlinuz and OUTDIR/initramfs
#   mkguest.sh --agent OUTDIR  writes OUTDIR/agent.cpio: Debian's qemu-guest-agent and its libraries,
#                              for `cat initramfs agent.cpio'; in the guest: /bin/qemu-ga
#
# Environment:
#   GUEST_CACHE   where downloaded .deb files are kept (default OUTDIR/debs)
#   GUEST_MODULES extra kernel modules to put in (names, space separated)
#   GUEST_PROGRAMS programs of this machine to put in, with their libraries
#                 (call them by path: the shell prefers those of busybox)
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
agent=
[ "${1:-}" != --agent ] || { agent=1; shift; }
out=${1:-$here/out}
mkdir -p "$out"; out=$(cd "$out" && pwd)
cache=${GUEST_CACHE:-$out/debs}
mkdir -p "$cache"; cache=$(cd "$cache" && pwd)
tmp=$(mktemp -d); trap 'rm -rf "$tmp"' EXIT

# modules loaded at boot, in this order (dependencies are worked out)
boot_mods="virtio_pci virtio_blk virtio_scsi sd_mod sg ata_piix virtio_net
 virtio_balloon virtio_mem 8021q crc32c_generic"
# modules put in but loaded only on request (modprobe in the guest, or
# guest.mods=a,b on the kernel command line)
more_mods="e1000 virtio_console hv_vmbus hv_storvsc hv_netvsc hv_balloon
 hv_utils nbd ext4 pvpanic-pci i6300esb button evdev ${GUEST_MODULES:-}"

fetch() { # package name -> path of its .deb in the cache
        local f
        f=$(find "$cache" -name "$1_*.deb" | head -n1)
        if [ -z "$f" ]; then
                (cd "$cache" && apt-get download -qq "$1" >&2)
                f=$(find "$cache" -name "$1_*.deb" | head -n1)
        fi
        echo "$f"
}

# The agent, out of its own package; libraries out of the packages that it depends on, since this machine need not
# have them. The dynamic linker among them says which are needed.
make_agent() {
        local root=$tmp/a r=$tmp/o package deb lib ld
        mkdir -p "$root" "$r/bin" "$r/etc"
        for package in qemu-guest-agent $(apt-cache depends --recurse --no-recommends --no-suggests \
                --no-conflicts --no-breaks --no-replaces --no-enhances qemu-guest-agent |
                grep -E '^(lib|zlib)' | grep -vE 'perl|gdbm|^libdb' | sort -u); do
                deb=$(fetch "$package")
                [ -n "$deb" ] || { echo "cannot download $package" >&2; return 1; }
                dpkg-deb --fsys-tarfile "$deb" | tar -xf - -C "$root"
        done
        # A library's folder may be one of /lib or of /usr/lib, as the package has it.
        ld=$(find "$root" -name 'ld-linux*.so.*' | head -n1)
        find "$root" -type d -path '*lib/*-linux-gnu' | paste -sd: > "$tmp/path"
        "$ld" --library-path "$(cat "$tmp/path")" --list "$root/usr/sbin/qemu-ga" > "$tmp/libs"
        grep -o "$root/[^ ]*" "$tmp/libs" | grep -v /ld-linux | sort -u | while read -r lib; do
                mkdir -p "$r/lib/agent"
                cp -L "$lib" "$r/lib/agent/$(basename "$lib")"
        done
        cp -L "$ld" "$r/lib/agent/ld.so"
        cp "$root/usr/sbin/qemu-ga" "$r/lib/agent/qemu-ga"
        printf '#!/bin/sh\nexec /lib/agent/ld.so --library-path /lib/agent /lib/agent/qemu-ga "$@"\n' \
                > "$r/bin/qemu-ga"
        printf '#!/bin/sh\numount /mnt 2>/dev/null; sync; poweroff -f\n' > "$r/bin/shutdown"
        printf 'PRETTY_NAME="a guest of mkguest.sh"\nID=mkguest\n' > "$r/etc/os-release"
        chmod 755 "$r/bin/qemu-ga" "$r/bin/shutdown" "$r/lib/agent/qemu-ga" "$r/lib/agent/ld.so"
        deb=$(fetch busybox-static)
        dpkg-deb --fsys-tarfile "$deb" | tar -xf - -C "$tmp" ./bin/busybox
        (cd "$r" && find . -mindepth 1 | "$tmp/bin/busybox" cpio -o -H newc 2>/dev/null) \
                > "$out/agent.cpio.new"
        mv "$out/agent.cpio.new" "$out/agent.cpio"
        echo "qemu-guest-agent: $(du -h "$out/agent.cpio" | cut -f1) in $out"
}
[ -z "$agent" ] || { make_agent; exit; }

kpkg=$(find "$cache" -name 'linux-image-[0-9]*-amd64_*.deb' | head -n1)
if [ -n "$kpkg" ]; then
        kpkg=$(basename "$kpkg"); kpkg=${kpkg%%_*}
else
        kpkg=$(apt-cache depends linux-image-amd64 |
               sed -n 's/^ *Depends: \(linux-image-[0-9].*-amd64\)$/\1/p' | head -n1)
fi
[ -n "$kpkg" ] || { echo "no kernel package: run apt-get update" >&2; exit 1; }
kver=${kpkg#linux-image-}
kdeb=$(fetch "$kpkg")
bdeb=$(fetch busybox-static)
if [ -z "$kdeb" ] || [ -z "$bdeb" ]; then
        echo "cannot download the packages" >&2
        exit 1
fi

mkdir "$tmp/k" "$tmp/b" "$tmp/r"
dpkg-deb --fsys-tarfile "$kdeb" | tar -xf - -C "$tmp/k" ./boot ./lib/modules
dpkg-deb --fsys-tarfile "$bdeb" | tar -xf - -C "$tmp/b" ./bin/busybox
bb=$tmp/b/bin/busybox
mods=$tmp/k/lib/modules/$kver
depmod=$(PATH=$PATH:/sbin:/usr/sbin command -v depmod || true)
if [ -n "$depmod" ]; then "$depmod" -b "$tmp/k" "$kver"
else (cd "$mods" && "$bb" depmod -b "$tmp/k" "$kver"); fi

# --- root file system
r=$tmp/r
mkdir -p "$r"/{bin,dev,proc,sys,tmp,mnt,run,etc,lib/modules/"$kver"}
ln -s bin "$r/sbin"
cp "$bb" "$r/bin/busybox"
for a in $("$bb" --list); do
        [ "$a" = busybox ] || ln -sf busybox "$r/bin/$a"
done

# a program of this machine, with the libraries that it names
take() {
        local p lib
        p=$(PATH=$PATH:/sbin:/usr/sbin command -v "$1") || { echo "no $1 here" >&2; exit 1; }
        rm -f "$r/bin/$1"
        cp -L "$p" "$r/bin/$1"
        ldd "$p" | grep -o '/[^ ]*' | while read -r lib; do
                mkdir -p "$r$(dirname "$lib")"
                cp -L "$lib" "$r$lib"
        done
}
for p in ${GUEST_PROGRAMS:-}; do take "$p"; done

# module file (relative to $mods) and, before it, all it depends on
want() {
        local n=${1//-/_} line f d
        line=$(awk -F: -v n="$n" '{ b = $1; sub(/.*\//, "", b); sub(/\.ko.*/, "", b)
                gsub(/-/, "_", b); if (b == n) { print; exit } }' "$mods/modules.dep")
        [ -n "$line" ] || return 0                 # built in, or not there
        f=${line%%:*}; d=${line#*:}
        # modules.dep lists the nearest dependency first
        for x in $d; do echo "$x"; done | tac
        echo "$f"
}
for m in $boot_mods; do want "$m"; done | awk '!s[$0]++' > "$tmp/order"
for m in $boot_mods $more_mods; do want "$m"; done | awk '!s[$0]++' > "$tmp/all"
while read -r f; do
        mkdir -p "$r/lib/modules/$kver/$(dirname "$f")"
        cp "$mods/$f" "$r/lib/modules/$kver/$f"
done < "$tmp/all"
awk -F: 'NR == FNR { k[$1]; next } $1 in k' "$tmp/all" "$mods/modules.dep" \
        > "$r/lib/modules/$kver/modules.dep"
sed "s|^|/lib/modules/$kver/|" "$tmp/order" > "$r/etc/boot-modules"
echo "root::0:0:root:/:/bin/sh" > "$r/etc/passwd"

cat > "$r/init" <<'INIT'
#!/bin/sh
# pid 1 of the test guest
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs dev /dev
mkdir -p /dev/pts /dev/shm
mount -t devpts devpts /dev/pts
mount -t tmpfs tmpfs /tmp
export PATH=/bin HOME=/
opt() { sed -n "s/.*\<$1=\([^ ]*\).*/\1/p" /proc/cmdline; }
while read -r m; do insmod "$m" 2>/dev/null; done < /etc/boot-modules
for m in $(opt guest.mods | tr , ' '); do modprobe "$m"; done
# memory added later (virtio-mem, DIMM) goes on line by itself
echo online_movable > /sys/devices/system/memory/auto_online_blocks 2>/dev/null
ip link set lo up
# guest.mount=DEVICE[,DEVICE]: the first of these that has an ext4 file system, on /mnt
for d in $(opt guest.mount | tr , ' '); do mount -t ext4 "$d" /mnt 2>/dev/null && break; done
# guest.acpi=1: the power button switches it off
if [ -n "$(opt guest.acpi)" ]; then
        modprobe button; modprobe evdev
        mkdir -p /etc/acpi/PWRF
        printf '#!/bin/sh\numount /mnt 2>/dev/null; sync; poweroff -f\n' > /etc/acpi/PWRF/00000080
        chmod 755 /etc/acpi/PWRF/00000080
        acpid -l /dev/null -p /run/acpid.pid
fi
# guest.shell=TTY: a shell for a person
s=$(opt guest.shell)
[ -z "$s" ] || (while :; do setsid -c sh -il <"/dev/$s" >"/dev/$s" 2>&1; sleep 1; done) &
echo "guest: up $(cut -d' ' -f1 /proc/uptime)s"
# control channel: one line "ID COMMAND..." in; on the way back every line of
# output as "ID:text", then "ID=exit status"
while [ "$(opt guest.ctl)" = none ]; do sleep 3600; done
ctl=/dev/$(opt guest.ctl); [ "$ctl" = /dev/ ] && ctl=/dev/ttyS1
stty -F $ctl raw -echo 115200
exec 3<>$ctl
echo "READY" >&3
while :; do
        read -r id cmd <&3 || { sleep 1; continue; }
        [ -n "$cmd" ] || { [ -n "$id" ] && echo "$id=0" >&3; continue; }
        printf '%s\n' "$cmd" > /run/cmd
        # the status of the command, not of the pipe that labels its lines
        { sh /run/cmd </dev/null 2>&1 3>&-; echo $? > /run/rc; } |
                while IFS= read -r l || [ -n "$l" ]; do
                        printf '%s:%s\n' "$id" "$l"; done >&3
        echo "$id=$(cat /run/rc)" >&3
done
INIT
chmod 755 "$r/init"

cp "$tmp/k/boot/vmlinuz-$kver" "$out/vmlinuz.new"
# not compressed: unpacking it would cost an emulated CPU more than loading it
(cd "$r" && find . | "$bb" cpio -o -H newc 2>/dev/null) > "$out/initramfs.new"
mv "$out/vmlinuz.new" "$out/vmlinuz"; mv "$out/initramfs.new" "$out/initramfs"
echo "$kver: $(du -h "$out/vmlinuz" | cut -f1) kernel, $(du -h "$out/initramfs" | cut -f1) initramfs in $out"
