#!/usr/bin/env bash
# Tries on a real appliance and in a real cluster what was only simulated: docs/validate-on-hardware.md.
#
# It touches only what it made: everything bears the name rds-csi-validate-RUN, or pvc-… of its own claims. It asks
# before each step that disturbs something, and --dry-run prints every command and runs none.
set -euo pipefail

run_id=$(date +%H%M%S)
prefix=rds-csi-validate-$run_id
# Seconds.
wait_for_pod=300
wait_for_reboot=900
# MiB of random data whose checksum has to survive.
pattern_mib=256

dry_run='' assume_yes='' appliance='' directory='' parts='' class_fs='' class_block='' image=debian:bookworm-slim
ctl='rds-csi ctl' cut='' mend='' vm_disk='' namespace=$prefix
passed=0 failed=0 noted=0 skipped=0

usage() {
    cat <<'HELP'
validate-on-hardware.sh [OPTIONS] [PART...]

Parts, in this order unless some are named:
  appliance    what ROUTEROS says and does: errors, sizes, conditions, the fence, interleaving, copies, access
  life-cycle   a filesystem volume: make, write, grow, move to another node, delete
  migration    an RWX block volume on two nodes, refused on a third; with KubeVirt a live migration with a checksum
  hotplug      eight volumes plugged into a VM and out of it at once (needs KubeVirt and virtctl)
  removal      a claim that is deleted while it is used
  leader       the leading controller is killed while volumes are attached
  path-cut     the storage path is cut for 30 s under writes
  reboot       the appliance is rebooted under writes

Options:
  --appliance 'SSH COMMAND'  how to reach it, such as: 'ssh -i key rds-csi@10.0.0.2'
  --directory PATH           an existing directory on the appliance, for test disks (not the driver's own)
  --class-fs NAME            a StorageClass for filesystem volumes
  --class-block NAME         a StorageClass for RWX block volumes, with sameVmCheck: "false"
  --image IMAGE              a small image with sh, dd, sha256sum [debian:bookworm-slim]
  --vm-disk IMAGE            a containerDisk with a guest, for the parts with KubeVirt
  --ctl 'COMMAND'            how to ask the driver [rds-csi ctl]
  --cut 'COMMAND'            cuts the storage path; without it you are asked to do it
  --mend 'COMMAND'           mends it
  --yes                      do not ask (you have read the commands with --dry-run)
  --dry-run                  print every command, run none
Exit status 1 if a check failed. NOTE lines are facts to write down: they decide nothing.
HELP
}

die() { printf 'validate: %s\n' "$*" >&2; exit 2; }
say() { printf '%s\n' "$*"; }
pass() { passed=$((passed + 1)); say "PASS  $*"; }
fail() { failed=$((failed + 1)); say "FAIL  $*"; }
note() { noted=$((noted + 1)); say "NOTE  $*"; }
skip() { skipped=$((skipped + 1)); say "SKIP  $*"; }

# run COMMAND...: shows it and runs it.
run() {
    printf '  $ %s\n' "$(printf '%q ' "$@")" >&2
    [ -n "$dry_run" ] || "$@"
}

# destructive WHAT: asks before something is disturbed; no is a skip.
destructive() {
    say "DISTURBS  $1"
    { [ -n "$dry_run" ] || [ -n "$assume_yes" ]; } && return 0
    local typed=''
    read -r -p "  type yes to go on: " typed || true
    [ "$typed" = yes ] && return 0
    skip "$1: not confirmed"
    return 1
}

# routeros SCRIPT: what the appliance says to it, on both streams. Its exit status decides nothing.
routeros() {
    printf '  > %s\n' "$1" >&2
    [ -n "$dry_run" ] && return 0
    # The command is words by intention; the script is one argument.
    # shellcheck disable=SC2086
    $appliance "$1" </dev/null 2>&1 | tr -d '\r' || true
}

# says WHAT SCRIPT PATTERN: passes if the appliance's answer has the pattern.
says() {
    local answer
    answer=$(routeros "$2")
    [ -n "$dry_run" ] && return 0
    if grep -Eq -- "$3" <<<"$answer"; then pass "$1"; else fail "$1: said: $(head -c 300 <<<"$answer")"; fi
}

# tells WHAT SCRIPT: notes what the appliance answers.
tells() {
    local answer
    answer=$(routeros "$2")
    [ -n "$dry_run" ] || note "$1: $(tr '\n' ' ' <<<"$answer" | head -c 400)"
}

kube() { run kubectl --namespace "$namespace" "$@"; }

# until_true SECONDS WHAT COMMAND...: tries again until it succeeds.
until_true() {
    local seconds=$1 what=$2 end
    shift 2
    printf '  (until: %s)\n' "$*" >&2
    [ -n "$dry_run" ] && return 0
    end=$((SECONDS + seconds))
    until "$@" >/dev/null 2>&1; do
        [ "$SECONDS" -lt "$end" ] || { fail "$what: not within $seconds s"; return 1; }
        sleep 2
    done
    pass "$what"
}

# ---- the appliance ----------------------------------------------------------------------------------------------

# Named so that the driver's own reconciler takes none of them for a volume.
disk=$prefix file='' appliance_is_used=''

part_appliance() {
    if [ -z "$appliance" ] || [ -z "$directory" ]; then
        skip "appliance: --appliance and --directory are needed"
        return 0
    fi
    file=$directory/$disk.img
    local path=${file#/}
    tells "version" ':put [/system resource get version]'
    says ":serialize is known" ':put [:serialize to=json value="1" options=json.no-string-conversion]' '^"1"$'
    tells "an error's words and streams" ':error "rds-csi-words"'
    note_exit_status
    destructive "makes disks $disk… of 64 MiB in $directory, and script objects $prefix" || return 0
    appliance_is_used=yes
    appliance_disks "$path"
    appliance_fence
    appliance_copies
    appliance_access
    appliance_clear
    appliance_is_used=''
}

note_exit_status() {
    printf '  > %s\n' ':error "x"  (exit status)' >&2
    [ -n "$dry_run" ] && return 0
    local status=0
    # shellcheck disable=SC2086
    $appliance ':error "x"' </dev/null >/dev/null 2>&1 || status=$?
    note "exit status of an error: $status"
}

appliance_disks() {
    local path=$1 both="slot=\"$disk\" and file-path=\"$file\"" nothing='slot="rds-csi-validate-nothing"'
    says "a disk is added" "/disk add type=file file-path=\"$file\" file-size=67108864 slot=\"$disk\" mount-filesystem=no \
compress=no nvme-tcp-export=yes nvme-tcp-server-port=4420 nvme-tcp-server-nqn=\"nqn.2000-02.com.mikrotik:$disk\"; \
:put done" '^done$'
    says "its size is exact" ":put [/disk get [find where slot=\"$disk\"] size]" '^67 ?108 ?864$'
    says "'and' joins conditions" ":put [:len [/disk find where $both]]" '^1$'
    says "'or' joins conditions" ":put [:len [/disk find where $nothing or slot=\"$disk\"]]" '^1$'
    tells "a path without its slash matches" ":put [:len [/disk find where file-path=\"$path\"]]"
    says "a pattern finds files" ":put [:len [/file find where name~\"$path\"]]" '^1$'
    tells "set of nothing" "/disk set [find where $nothing] mount-filesystem=no; :put done"
    tells "remove of nothing" "/disk remove [find where $nothing]; :put done"
    says "an exported disk grows" "/disk set [find where $both] file-size=134217728; :put \
[/disk get [find where slot=\"$disk\"] size]" '^134 ?217 ?728$'
    says "a second disk on the file is refused" "/disk add type=file file-path=\"$file\" file-size=67108864 \
slot=\"$disk-b\"; :put done" 'exists|failure'
    says "removing the disk leaves its file" "/disk remove [find where $both]; :put [:len [/file find where \
name=\"$path\"]]" '^1$'
    says "the file is removed" "/file remove [find where name=\"$path\"]; :put [:len [/file find where \
name=\"$path\"]]" '^0$'
    tells "the default of mount-filesystem" "/disk add type=file file-path=\"$file\" file-size=67108864 \
slot=\"$disk\"; :put [/disk get [find where slot=\"$disk\"] mount-filesystem]"
}

# The driver's own fence, under another name.
fence_change() {
    printf '%s' "{ :local f [:tonum [/system script get [find where name=\"$prefix\"] source]]; \
:if ([:typeof \$f] != \"num\") do={ :error \"fence unreadable\" }; \
:if ($1 <= \$f) do={ :error \"stale fence \$f\" }; \
/system script set [find where name=\"$prefix\"] source=\"$1\"; :put done }"
}

appliance_fence() {
    says "a script object keeps a number" "/system script add name=\"$prefix\" source=\"0\"; :put [:typeof [:tonum \
[/system script get [find where name=\"$prefix\"] source]]]" '^num$'
    says "a greater number is taken" "$(fence_change 30064771073)" '^done$'
    says "the same number is refused" "$(fence_change 30064771073)" 'stale fence 30064771073'
    says "a smaller number is refused" "$(fence_change 30064771072)" 'stale fence 30064771073'
    appliance_interleaving
}

# Twice at once: read, wait, write the number plus one. Two scripts that do not interleave add 2.
appliance_interleaving() {
    local count="$prefix-count" script
    script="{ :local n [:tonum [/system script get [find where name=\"$count\"] source]]; :delay 2s; \
/system script set [find where name=\"$count\"] source=(\$n + 1) }"
    routeros "/system script add name=\"$count\" source=\"0\"" >/dev/null
    routeros "$script" >/dev/null &
    routeros "$script" >/dev/null
    wait
    [ -n "$dry_run" ] && return 0
    case $(routeros ":put [/system script get [find where name=\"$count\"] source]") in
        2) pass "two scripts do not interleave (the fence's assumption)" ;;
        1) fail "two scripts INTERLEAVE: the fence's assumption is wrong here" ;;
        *) skip "whether two scripts interleave: they were refused" ;;
    esac
}

appliance_copies() {
    tells "what copy-from copies" "/disk add type=file copy-from=[find where slot=\"$disk\"] \
file-path=\"$directory/$disk-copy.img\" slot=\"$disk-copy\"; /disk print detail where slot=\"$disk-copy\""
}

appliance_access() {
    local host=nqn.2014-08.org.nvmexpress:uuid:00000000-0000-4000-8000-000000000001
    tells "allow-host-name takes a host NQN" "/disk set [find where slot=\"$disk\"] \
nvme-tcp-server-allow-host-name=\"$host\"; :put [/disk get [find where slot=\"$disk\"] nvme-tcp-server-allow-host-name]"
    tells "allow-host-name takes two" "/disk set [find where slot=\"$disk\"] \
nvme-tcp-server-allow-host-name=\"$host,$host\"; :put [/disk get [find where slot=\"$disk\"] \
nvme-tcp-server-allow-host-name]"
}

# Names are complete, never patterns: nothing else can match.
appliance_clear() {
    local slot name
    for slot in "$disk" "$disk-b" "$disk-copy"; do
        routeros "/disk remove [find where slot=\"$slot\" and type=\"file\"]" >/dev/null
        name=$directory/$slot.img
        routeros "/file remove [find where name=\"${name#/}\"]" >/dev/null
    done
    for name in "$prefix" "$prefix-count"; do
        routeros "/system script remove [find where name=\"$name\"]" >/dev/null
    done
    says "nothing is left" ":put ([:len [/disk find where slot~\"$prefix\"]] + [:len [/file find where \
name~\"$prefix\"]] + [:len [/system script find where name~\"$prefix\"]])" '^0$'
}

# ---- the cluster ------------------------------------------------------------------------------------------------

namespace_is_made=''
make_namespace() {
    [ -n "$namespace_is_made" ] && return 0
    destructive "makes the namespace $namespace and claims, pods and VMs in it; deletes it at the end" || return 1
    # What was there before is not ours to delete.
    run kubectl create namespace "$namespace" || return 1
    run kubectl label namespace "$namespace" pod-security.kubernetes.io/enforce=privileged
    namespace_is_made=yes
}

apply() {
    printf '%s\n' "$1" | sed 's/^/  | /' >&2
    [ -n "$dry_run" ] && return 0
    printf '%s\n' "$1" | kubectl --namespace "$namespace" apply -f - >/dev/null
}

# claim NAME CLASS MODE VOLUME_MODE SIZE
claim() {
    apply "apiVersion: v1
kind: PersistentVolumeClaim
metadata: {name: $1}
spec: {storageClassName: $2, accessModes: [$3], volumeMode: $4, resources: {requests: {storage: $5}}}"
}

# What runs in pods is expanded there.
# shellcheck disable=SC2016
count_and_sync='i=0; while i=$((i+1)); do echo $i >/data/count && sync || exit 1; echo $i; sleep 1; done'
# shellcheck disable=SC2016
check_and_see_growth='cd /data && sha256sum -c sum && [ "$(df -k . | tail -1 | tr -s " " | cut -d" " -f2)" -gt 1500000 ]'

# pod NAME CLAIM NODE SCRIPT: a filesystem volume at /data.
pod() { pod_with "$1" "$3" "$4" "volumeMounts: [{name: data, mountPath: /data}]" "$2"; }
# block_pod NAME CLAIM NODE SCRIPT: a block volume at /dev/data.
block_pod() { pod_with "$1" "$3" "$4" "volumeDevices: [{name: data, devicePath: /dev/data}]" "$2"; }

pod_with() {
    apply "apiVersion: v1
kind: Pod
metadata: {name: $1}
spec:
  restartPolicy: Never
  terminationGracePeriodSeconds: 5
  nodeSelector: {kubernetes.io/hostname: $2}
  containers:
    - name: main
      image: $image
      command: [sh, -c, '$3']
      $4
  volumes: [{name: data, persistentVolumeClaim: {claimName: $5}}]"
}

finished() { until_true "$wait_for_pod" "$2" kubectl --namespace "$namespace" wait --for=jsonpath='{.status.phase}'=Succeeded "pod/$1" --timeout=1s; }
running() { until_true "$wait_for_pod" "$2" kubectl --namespace "$namespace" wait --for=jsonpath='{.status.phase}'=Running "pod/$1" --timeout=1s; }
remove() { kube delete --ignore-not-found --wait --timeout=300s "$@"; }

# volume_of CLAIM: its handle, which is the slot.
volume_of() {
    [ -n "$dry_run" ] && { printf 'pvc-OF-%s' "$1"; return 0; }
    local volume
    volume=$(kubectl --namespace "$namespace" get pvc "$1" -o jsonpath='{.spec.volumeName}')
    kubectl get pv "$volume" -o jsonpath='{.spec.csi.volumeHandle}'
}

# gone_from_ledger VOLUME WHAT
gone_from_ledger() {
    until_true 120 "$2" sh -c "! $ctl volume $1"
    if [ -n "$appliance" ]; then
        says "$1 is gone from the appliance" ":put [:len [/disk find where slot=\"$1\"]]" '^0$'
    fi
}

nodes=()
find_nodes() {
    if [ -n "$dry_run" ]; then nodes=(NODE-A NODE-B NODE-C); return 0; fi
    mapfile -t nodes < <(kubectl get csinodes -o json |
        jq -r '.items[] | select(any(.spec.drivers[]?; .name == "rds.csi.srvlab.io")) | .metadata.name')
}

part_life_cycle() {
    [ -n "$class_fs" ] || { skip "life-cycle: --class-fs is needed"; return 0; }
    make_namespace || return 0
    claim life "$class_fs" ReadWriteOnce Filesystem 1Gi
    pod life-write life "${nodes[0]}" "dd if=/dev/urandom of=/data/f bs=1M count=$pattern_mib conv=fsync && cd /data && sha256sum f >sum && sync"
    finished life-write "a filesystem volume is made, mounted and written"
    local volume
    volume=$(volume_of life)
    kube patch pvc life --type=merge -p '{"spec":{"resources":{"requests":{"storage":"2Gi"}}}}'
    remove pod life-write
    pod life-read life "${nodes[1]:-${nodes[0]}}" "$check_and_see_growth"
    finished life-read "the same bytes on another node, and the volume has grown"
    remove pod life-read
    remove pvc life
    gone_from_ledger "$volume" "a deleted claim's volume is gone"
}

part_migration() {
    [ -n "$class_block" ] || { skip "migration: --class-block is needed"; return 0; }
    [ "${#nodes[@]}" -ge 2 ] || { skip "migration: two nodes with the driver are needed"; return 0; }
    make_namespace || return 0
    claim move "$class_block" ReadWriteMany Block 1Gi
    block_pod move-write move "${nodes[0]}" "dd if=/dev/urandom of=/dev/data bs=1M count=$pattern_mib oflag=direct && dd if=/dev/data bs=1M count=$pattern_mib | sha256sum && sleep 3600"
    running move-write "an RWX block volume is on a first node"
    block_pod move-second move "${nodes[1]}" 'sleep 3600'
    # These pods are no VM's: only a class with sameVmCheck "false" lets them be on two nodes.
    running move-second "and on a second one"
    run sh -c "$ctl migrations"
    if [ "${#nodes[@]}" -ge 3 ]; then
        block_pod move-third move "${nodes[2]}" 'sleep 3600'
        until_true 120 "a third node is refused" sh -c "kubectl --namespace $namespace get events | grep -q FailedAttachVolume"
        remove pod move-third
    fi
    remove pod move-write
    block_pod move-read move "${nodes[1]}" "dd if=/dev/data bs=1M count=$pattern_mib | sha256sum"
    finished move-read "the second node reads after the first one left"
    run sh -c "$ctl migrations"
    remove pod move-second move-read
    with_kubevirt || { remove pvc move; return 0; }
    live_migration
    remove pvc move
}

with_kubevirt() {
    [ -n "$vm_disk" ] || { skip "live migration and hotplug: --vm-disk is needed"; return 1; }
}

# A VM with the claim `move` as its second disk.
vm() {
    apply "apiVersion: kubevirt.io/v1
kind: VirtualMachine
metadata: {name: $1}
spec:
  runStrategy: Always
  template:
    spec:
      domain:
        memory: {guest: 512Mi}
        devices:
          disks: [{name: root, disk: {bus: virtio}}, {name: data, disk: {bus: virtio}}]
          interfaces: [{name: default, masquerade: {}}]
      networks: [{name: default, pod: {}}]
      volumes:
        - {name: root, containerDisk: {image: $vm_disk}}
        - {name: data, persistentVolumeClaim: {claimName: $2}}"
}

live_migration() {
    vm move-vm move
    until_true "$wait_for_pod" "a VM runs on the volume" kubectl --namespace "$namespace" wait --for=condition=Ready vmi/move-vm --timeout=1s
    local before sum
    before=$(checksum_by_pod)
    apply "apiVersion: kubevirt.io/v1
kind: VirtualMachineInstanceMigration
metadata: {name: move-vm-1}
spec: {vmiName: move-vm}"
    until_true 900 "KubeVirt says that it migrated" kubectl --namespace "$namespace" wait --for=jsonpath='{.status.phase}'=Succeeded vmim/move-vm-1 --timeout=1s
    run sh -c "$ctl migrations"
    kube delete vm move-vm --wait
    sum=$(checksum_by_pod)
    [ -n "$dry_run" ] && return 0
    if [ "$before" = "$sum" ] && [ -n "$sum" ]; then pass "the data disk is byte for byte the same"; else fail "checksums differ: $before, $sum"; fi
}

# The pattern's checksum, as the node of the running VM or any node reads it.
checksum_by_pod() {
    local node=${nodes[0]}
    if [ -z "$dry_run" ]; then
        node=$(kubectl --namespace "$namespace" get vmi move-vm -o jsonpath='{.status.nodeName}' 2>/dev/null || true)
        node=${node:-${nodes[0]}}
    fi
    block_pod move-sum move "$node" "dd if=/dev/data bs=1M count=$pattern_mib 2>/dev/null | sha256sum" >&2
    finished move-sum "the pattern is read" >&2
    [ -n "$dry_run" ] || kubectl --namespace "$namespace" logs move-sum | cut -d' ' -f1
    remove pod move-sum >&2
}

part_hotplug() {
    [ -n "$class_block" ] || { skip "hotplug: --class-block is needed"; return 0; }
    with_kubevirt || return 0
    make_namespace || return 0
    local number
    claim plug-root "$class_block" ReadWriteMany Block 1Gi
    vm plug-vm plug-root
    until_true "$wait_for_pod" "a VM runs" kubectl --namespace "$namespace" wait --for=condition=Ready vmi/plug-vm --timeout=1s
    for number in 1 2 3 4 5 6 7 8; do claim "plug-$number" "$class_block" ReadWriteMany Block 1Gi; done
    for number in 1 2 3 4 5 6 7 8; do run virtctl --namespace "$namespace" addvolume plug-vm --volume-name="plug-$number" & done
    wait
    until_true "$wait_for_pod" "eight volumes are Ready" sh -c "[ \$(kubectl --namespace $namespace get vmi plug-vm -o json | jq '[.status.volumeStatus[] | select(.hotplugVolume and .phase == \"Ready\")] | length') = 8 ]"
    for number in 1 2 3 4; do run virtctl --namespace "$namespace" removevolume plug-vm --volume-name="plug-$number" & done
    wait
    until_true "$wait_for_pod" "four are left, and Ready" sh -c "[ \$(kubectl --namespace $namespace get vmi plug-vm -o json | jq '[.status.volumeStatus[] | select(.hotplugVolume and .phase == \"Ready\")] | length') = 4 ]"
    kube get events --field-selector reason=VMPaused
    kube delete vm plug-vm --wait
    remove pvc plug-root plug-1 plug-2 plug-3 plug-4 plug-5 plug-6 plug-7 plug-8
}

part_removal() {
    [ -n "$class_fs" ] || { skip "removal: --class-fs is needed"; return 0; }
    make_namespace || return 0
    claim held "$class_fs" ReadWriteOnce Filesystem 1Gi
    pod held held "${nodes[0]}" 'sleep 3600'
    running held "a pod holds a volume"
    local volume
    volume=$(volume_of held)
    kube delete pvc held --wait=false
    run sleep 20
    until_true 5 "it is there while it is used" sh -c "$ctl volume $volume"
    remove pod held
    gone_from_ledger "$volume" "it is gone once nobody uses it"
}

# writer NAME CLAIM: writes and syncs a counter each second, for as long as nothing fails.
writer() {
    claim "$1" "$class_fs" ReadWriteOnce Filesystem 1Gi
    pod "$1" "$1" "${nodes[0]}" "$count_and_sync"
    running "$1" "a pod writes"
}

# writes_on NAME: it writes more than a moment ago.
writes_on() {
    local before after
    before=$(kubectl --namespace "$namespace" logs --tail=1 "$1")
    sleep 10
    after=$(kubectl --namespace "$namespace" logs --tail=1 "$1")
    [ "${after:-0}" -gt "${before:-0}" ]
}

part_leader() {
    [ -n "$class_fs" ] || { skip "leader: --class-fs is needed"; return 0; }
    make_namespace || return 0
    writer during-leader
    destructive "kills the leading controller's pod" || return 0
    local leader=LEADER
    # shellcheck disable=SC2086
    [ -n "$dry_run" ] || leader=$($ctl status -o json | jq -r '.leader_id as $id | .replicas[] | select(.id == $id) | .name')
    run kubectl delete pod --all-namespaces --field-selector "metadata.name=$leader" --grace-period=0 --force
    claim after-leader "$class_fs" ReadWriteOnce Filesystem 1Gi
    pod after-leader after-leader "${nodes[0]}" 'sync'
    finished after-leader "a volume is made and attached after the leader was killed"
    until_true 60 "the writer never noticed" writes_on during-leader
    run sh -c "$ctl status"
    remove pod during-leader after-leader
    remove pvc during-leader after-leader
}

part_path_cut() {
    [ -n "$class_fs" ] || { skip "path-cut: --class-fs is needed"; return 0; }
    make_namespace || return 0
    writer during-cut
    destructive "cuts the storage path for 30 s: every volume of the nodes concerned waits" || return 0
    if [ -n "$cut" ]; then run sh -c "$cut"; else by_hand "cut the storage path of ${nodes[0]} now"; fi
    run sleep 30
    if [ -n "$mend" ]; then run sh -c "$mend"; else by_hand "mend it"; fi
    until_true 120 "the writer goes on after a cut of 30 s" writes_on during-cut
    remove pod during-cut
    remove pvc during-cut
}

part_reboot() {
    if [ -z "$class_fs" ] || [ -z "$appliance" ]; then
        skip "reboot: --class-fs and --appliance are needed"
        return 0
    fi
    make_namespace || return 0
    writer during-reboot
    destructive "REBOOTS THE APPLIANCE: every volume on it waits until it is back" || return 0
    # The connection ends with it.
    routeros '/system reboot' >/dev/null || true
    run sleep 30
    # shellcheck disable=SC2086
    until_true "$wait_for_reboot" "the appliance is back" $appliance ':put ok'
    until_true 300 "the writer goes on after the reboot" writes_on during-reboot
    run sh -c "$ctl status"
    remove pod during-reboot
    remove pvc during-reboot
}

by_hand() {
    say "DO  $1"
    { [ -n "$dry_run" ] || [ -n "$assume_yes" ]; } || read -r -p "  press Enter when it is done: " _ || true
}

clear_up() {
    [ -z "$appliance_is_used" ] || appliance_clear
    [ -n "$namespace_is_made" ] || return 0
    run kubectl delete namespace "$namespace" --wait --timeout=600s
}

# ---- the order --------------------------------------------------------------------------------------------------

value() { [ $# -ge 2 ] || die "$1 needs a value"; printf '%s' "$2"; }

while [ $# -gt 0 ]; do
    case $1 in
        --dry-run) dry_run=yes ;;
        --yes) assume_yes=yes ;;
        --help | -h) usage; exit 0 ;;
        --appliance) appliance=$(value "$@"); shift ;;
        --directory) directory=$(value "$@"); shift ;;
        --class-fs) class_fs=$(value "$@"); shift ;;
        --class-block) class_block=$(value "$@"); shift ;;
        --image) image=$(value "$@"); shift ;;
        --vm-disk) vm_disk=$(value "$@"); shift ;;
        --ctl) ctl=$(value "$@"); shift ;;
        --cut) cut=$(value "$@"); shift ;;
        --mend) mend=$(value "$@"); shift ;;
        appliance | life-cycle | migration | hotplug | removal | leader | path-cut | reboot) parts="$parts $1" ;;
        *) die "unknown: $1 (--help)" ;;
    esac
    shift
done
[[ $directory =~ ^(/[A-Za-z0-9_-][A-Za-z0-9._-]*)*$ ]] || die "--directory: an absolute path of letters, digits, '.', '_' and '-'"
parts=${parts:- appliance life-cycle migration hotplug removal leader path-cut reboot}

case $parts in
    *life-cycle* | *migration* | *hotplug* | *removal* | *leader* | *path-cut* | *reboot*)
        for tool in kubectl jq; do
            [ -n "$dry_run" ] || command -v "$tool" >/dev/null || die "$tool is needed for these parts"
        done
        find_nodes
        [ "${#nodes[@]}" -ge 1 ] || die "no node has the driver: kubectl get csinodes"
        ;;
esac
trap clear_up EXIT
for part in $parts; do
    say ""
    say "== $part"
    # A check that fails does not end the others.
    "part_${part//-/_}" || fail "$part ended early"
done
say ""
say "passed $passed, failed $failed, noted $noted, skipped $skipped (run $run_id)"
[ "$failed" -eq 0 ]
