#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
# A vm out of a folder that Hyper-V exported: disks at their places, memory, processors, network cards,
# snapshots; and what such a folder may have that is of no use here: saved memory, a configuration that
# nobody can read, an image that is missing, XML that is none. The configurations are tests/data/hyperv's,
# whose values tests/unit/test_hyperv.c asserts; the images are made here, in Hyper-V's layout.
. "$(dirname "$0")/lib.sh"
. "$(dirname "$0")/daemonlib.sh"

need nbdcopy
data=$VHDD_SOURCE/tests/data/hyperv
vm=7B1E6E0C-52A4-4F9B-9D3E-0A1B2C3D4E5F
snapshot=5E000000-0000-4000-8000-00000000000A

hash_of() # VM DISK[@SNAPSHOT]
{
        nbdcopy "$("$vhdctl" disk uri "$1" "$2" --json | jq -r .uri)" - | sha256sum | cut -d' ' -f1
}

nothing_made()
{
        expect 0 "$vhdctl" vm list --json
        json 'map(.name)' '[]'
        [ ! -e "$tmp/made" ] || fail "something was made: $(find "$tmp/made")"
}

# --- a folder as Hyper-V 2008 R2 exports it

folder=$tmp/exported
disks="$folder/Virtual Hard Disks"
avhd="$disks/system_11111111-2222-3333-4444-555555555555.avhd"
mkdir -p "$disks" "$folder/Virtual Machines/$vm" "$folder/Snapshots/$snapshot"
head -c 3M /dev/urandom >"$tmp/system.raw"
head -c 2M /dev/urandom >"$tmp/data.raw"
expect 0 "$vhdctl" convert "$tmp/system.raw" "$disks/system.vhd" --type dynamic
expect 0 "$vhdctl" convert "$tmp/data.raw" "$disks/data & more.vhd" --type fixed
expect 0 "$vhdctl" create "$avhd" --parent "$disks/system.vhd"
cp "$data/$vm.exp" "$folder/Virtual Machines"
cp "$data/$snapshot.exp" "$folder/Snapshots"
printf '<?xml version="1.0"?><x/>' >"$folder/config.xml"
then_hash=$(content "$tmp/system.raw")
data_hash=$(content "$tmp/data.raw")

start_daemon

# The snapshot's configuration names the second disk as it is now, which the vm writes to: no point in time.
expect 3 "$vhdctl" vm import "$folder" --copy --to "$tmp/made" --name web
said 'what a snapshot has'
nothing_made
# In the snapshot it stood on what is under it now.
mv "$disks/data & more.vhd" "$disks/base.vhd"
expect 0 "$vhdctl" create "$disks/data & more.vhd" --parent "$disks/base.vhd"
python3 - "$folder/Snapshots/$snapshot.exp" <<'EOF'
import sys
text = open(sys.argv[1], "rb").read().decode("utf-16")
changed = text.replace("data &amp; more.vhd", "base.vhd")
assert changed != text
open(sys.argv[1], "wb").write(b"\xff\xfe" + changed.encode("utf-16-le"))
EOF

expect 0 "$vhdctl" vm import "$folder" --copy --to "$tmp/made" --name web --dry-run --json
nothing_made
expect 0 "$vhdctl" vm import "$folder" --copy --to "$tmp/made" --json
json .vm.name '"web"'
json '.unknown | map(sub("^[^:]*: "; ""))' \
        '["Msvm_Fibrillator","a resource of the type '"'Microsoft Flux Capacitor'"'"]'
printed 'it is connected to no switch'
expect 0 "$vhdctl" vm show web --json
json .settings.cpus 4
json .settings.memory '{"startup":805306368,"max":2147483648,"buffer":20,"weight":50}'
json .settings.networks '[{"switch":"lan","mac":"00:15:5d:0a:0b:0e","vlan":12}]'
json .current '"before the update"'
expect 0 "$vhdctl" disk list web --json
json '[.[] | [.at, .depth, .state]]' '[["ide0:0",2,"serving"],["scsi1:7",2,"serving"]]'
disk=$(jq -r '.[0].name' <<<"$out")
second=$(jq -r '.[1].name' <<<"$out")
[ "$(hash_of web "$disk@before the update")" = "$then_hash" ] || fail "the snapshot reads otherwise"
[ "$(hash_of web "$second@before the update")" = "$data_hash" ] || fail "the second disk reads otherwise"
[ "$(hash_of web "$second@now")" = "$data_hash" ] || fail "the second disk reads otherwise now"
expect 0 "$vhdctl" doctor --json
json '[.findings[] | select(.id != "low-space")]' '[]'
expect 0 "$vhdctl" snapshot apply web 'before the update' --force
expect 0 "$vhdctl" vm remove web --delete-files
rm -rf "$tmp/made"

# Used where it lies it has the id that Hyper-V gave it; and then a second one of it cannot.
cp -r --preserve=timestamps "$folder" "$tmp/lies"
expect 0 "$vhdctl" vm import "$tmp/lies" --move --json
json .vm.id '"7b1e6e0c-52a4-4f9b-9d3e-0a1b2c3d4e5f"'
expect 3 "$vhdctl" vm import "$folder" --move --name other
said 'with the id'
expect 0 "$vhdctl" vm remove web

# --- the same vm by the configuration itself: UTF-16, memory in percent, and saved memory

bare=$tmp/bare
mkdir -p "$bare"
cp -r --preserve=timestamps "$disks" "$bare"
cp "$data/$vm.xml" "$bare"
mkdir "$bare/$vm"
touch "$bare/$vm/$vm.bin" "$bare/$vm/$vm.vsv"
expect 3 "$vhdctl" vm import "$bare" --copy --to "$tmp/made"
said 'memory that Hyper-V saved'
said -- '--force'
nothing_made
expect 0 "$vhdctl" vm import "$bare" --copy --to "$tmp/made" --force --json
json '[.notes[] | select(test("memory that Hyper-V saved"))] | length' 2
json '.vm.name' '"web-01 älter"'
json '.unknown | length' 1
expect 0 "$vhdctl" vm show 'web-01 älter' --json
json .settings.memory '{"startup":1073741824,"max":4294967296,"buffer":35,"weight":75}'
json .settings.cpus 2
json .settings.networks '[{"switch":"büro","mac":"00:15:5d:0a:0b:0c"}]'
expect 0 "$vhdctl" disk list 'web-01 älter' --json
json '[.[].at]' '["ide0:0","scsi0:0"]'
expect 0 "$vhdctl" vm remove 'web-01 älter' --delete-files
rm -rf "$tmp/made" "${bare:?}/$vm"

# --- what cannot be: one sentence each, and nothing made

rm "$bare/Virtual Hard Disks/$(basename "$avhd")"
expect 3 "$vhdctl" vm import "$bare" --copy --to "$tmp/made"
said "no such file lies in the folder"
nothing_made
expect 0 "$vhdctl" create "$tmp/other.vhd" --size 3M
cp "$avhd" "$bare/Virtual Hard Disks"
rm "$bare/Virtual Hard Disks/system.vhd"
expect 3 "$vhdctl" vm import "$bare" --copy --to "$tmp/made"
said 'system'
nothing_made

mkdir "$tmp/new"
printf 'binary' >"$tmp/new/$vm.vmcx"
cp "$tmp/other.vhd" "$tmp/new"
expect 3 "$vhdctl" vm import "$tmp/new" --copy --to "$tmp/made"
said 'Hyper-V 2016 or later'
said -- '--only'
nothing_made

mkdir "$tmp/bad"
cp "$tmp/other.vhd" "$tmp/bad"
for text in 'no xml' '<configuration><properties>' \
        '<!DOCTYPE l [<!ENTITY a "x">]><configuration><properties><name>&a;</name></properties></configuration>' \
        '<html/>'; do
        printf '%s' "$text" >"$tmp/bad/$vm.xml"
        expect 3 "$vhdctl" vm import "$tmp/bad" --copy --to "$tmp/made"
        said "$vm.xml"
        nothing_made
done
head -c 17M /dev/zero | tr '\0' ' ' >"$tmp/bad/$vm.xml"
expect 3 "$vhdctl" vm import "$tmp/bad" --copy --to "$tmp/made"
nothing_made
rm "$tmp/bad/$vm.xml"
ln -s /etc/passwd "$tmp/bad/$vm.xml"
expect 0 "$vhdctl" vm import "$tmp/bad" --copy --to "$tmp/made" --name plain
expect 0 "$vhdctl" vm remove plain --delete-files
rm -rf "$tmp/made"

# Two vms in one folder; a disk where no controller has a place.
mkdir "$tmp/two"
cp "$data/$vm.xml" "$tmp/two"
cp "$data/$vm.xml" "$tmp/two/8B1E6E0C-52A4-4F9B-9D3E-0A1B2C3D4E5F.xml"
expect 2 "$vhdctl" vm import "$tmp/two" --copy --to "$tmp/made"
said 'two vms'
mkdir "$tmp/place"
cp "$tmp/other.vhd" "$tmp/place/x.vhd"
place()
{
        cat >"$tmp/place/$vm.xml" <<EOF
<configuration><_83f8638b-8dca-4152-9eda-2ca8b33039b4_><controller$1><drive$2>
<type>VHD</type><pathname>C:\\x.vhd</pathname></drive$2></controller$1>
</_83f8638b-8dca-4152-9eda-2ca8b33039b4_><properties><name>p</name></properties></configuration>
EOF
}
place 2 0
expect 2 "$vhdctl" vm import "$tmp/place" --copy --to "$tmp/made"
said 'ide2:0'
place 1 1
expect 0 "$vhdctl" vm import "$tmp/place" --copy --to "$tmp/made"
expect 0 "$vhdctl" disk list p --json
json '[.[].at]' '["ide1:1"]'
expect 0 "$vhdctl" vm remove p --delete-files
rm -rf "$tmp/made"

# --- the one that Hyper-V wrote, where it is to be had: its disk is a VHDX

shared=${VHDD_SHARED:-$VHDD_SOURCE/../shared}/images/hyperv-config
if [ -d "$shared" ]; then
        mkdir "$tmp/real"
        cp "$shared"/*.xml "$tmp/real"
        expect 3 "$vhdctl" vm import "$tmp/real" --copy --to "$tmp/made"
        said 'C:\Disks\Default Generation 1.vhdx'
        said 'a VHDX'
        nothing_made
fi
echo "hyperv-import: all right"
