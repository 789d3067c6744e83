#!/bin/bash
# box.sh ROOT MOUNT...: a real systemd as PID 1 of throw-away namespaces, on an overlay of ROOT. Nothing outside is written.
# Needs root. Each MOUNT is SOURCE:TARGET, visible inside at /TARGET. Ends when its standard input is closed.
# Own: pid, mount, uts, ipc, net and cgroup namespaces, a tmpfs above ROOT, a child of the cgroup2 hierarchy.
# With BOX_TRY=1 it sets up everything, and runs true instead of systemd: to see whether this machine allows it.
set -eu

case ${BOX_STAGE:-} in
'') # The mounts of the next stage are private, and gone when it is.
    BOX_STAGE=cgroup exec unshare --mount --propagation private "$0" "$@" ;;

cgroup) # A cgroup of our own, removed at the end; the namespaces; PID 1 dies with them, or once nobody wants it any more.
    room=$(mktemp -d)
    mount -t tmpfs -o mode=755 tmpfs "$room"
    mkdir "$room"/{cgroup,upper,work,root}
    mount -t cgroup2 none "$room/cgroup"
    group=$room/cgroup/procmgr-box-$$
    mkdir "$group"
    tidy() {
        # PID 1 dies after unshare, and a group goes only once nobody is in it.
        for _ in $(seq 200); do
            grep -q 'populated 0' "$group/cgroup.events" && break
            sleep 0.05
        done
        find "$group" -depth -type d -exec rmdir {} \;
        umount "$room/cgroup" "$room"
        rmdir "$room"
    }
    trap tidy EXIT
    exec 3<&0
    (
        echo "$BASHPID" >"$group/cgroup.procs"
        BOX_ROOM=$room BOX_STAGE=root exec unshare --pid --fork --kill-child --mount --uts --ipc --net --cgroup \
            --propagation private "$0" "$@" </dev/null 3<&-
    ) &
    box=$!
    { read -r _ <&3 || true; kill -KILL "$box" 2>/dev/null || true; } &
    guard=$!
    status=0
    wait "$box" || status=$?
    kill "$guard" 2>/dev/null || true
    exit "$status" ;;
esac

lower=$1
shift
room=$BOX_ROOM
mount -t overlay overlay -o "lowerdir=$lower,upperdir=$room/upper,workdir=$room/work" "$room/root"
root=$room/root
mkdir -p "$root"/{proc,sys,dev,run,tmp,var/tmp,outside}
mount -t proc -o nosuid,nodev,noexec proc "$root/proc"
mount -o bind "$root/proc/sys" "$root/proc/sys"
mount -o remount,bind,ro "$root/proc/sys"
mount -t sysfs -o ro,nosuid,nodev,noexec sysfs "$root/sys"
mount -t cgroup2 none "$root/sys/fs/cgroup"
mount -t tmpfs -o mode=755,size=64k tmpfs "$root/dev"
for name in null zero full random urandom tty; do
    touch "$root/dev/$name"
    mount -o bind "/dev/$name" "$root/dev/$name"
done
mkdir "$root"/dev/{shm,pts}
mount -t tmpfs -o mode=1777 tmpfs "$root/dev/shm"
mount -t devpts -o newinstance,ptmxmode=666,mode=620 devpts "$root/dev/pts"
ln -s pts/ptmx "$root/dev/ptmx"
ln -s /proc/self/fd "$root/dev/fd"
for number in 0:stdin 1:stdout 2:stderr; do ln -s "fd/${number%:*}" "$root/dev/${number#*:}"; done
mount -t tmpfs -o mode=755 tmpfs "$root/run"
mount -t tmpfs -o mode=1777 tmpfs "$root/tmp"
mount -t tmpfs -o mode=1777 tmpfs "$root/var/tmp"
for pair in "$@"; do
    mkdir -p "$root/${pair#*:}"
    mount -o bind,ro "${pair%%:*}" "$root/${pair#*:}"
done
hostname box
ip link set lo up
cd "$root"
pivot_root . outside
umount -l /outside
cd /
mount --make-rshared / # among the namespaces of the box, as systemd expects of a container's manager: credentials need it

# Only what the tests need: nothing may touch what is not the box's own.
rm -rf /etc/systemd/system/* /lib/systemd/system-generators/*
units=/run/systemd/system
mkdir -p "$units" /run/lock
for name in tmpfiles-setup tmpfiles-setup-dev sysctl sysusers modules-load binfmt update-utmp timesyncd random-seed \
    journal-flush networkd resolved; do ln -s /dev/null "$units/systemd-$name.service"; done
for name in modprobe@.service systemd-journald-audit.socket proc-sys-fs-binfmt_misc.automount dev-hugepages.mount \
    dev-mqueue.mount sys-kernel-debug.mount sys-kernel-tracing.mount sys-fs-fuse-connections.mount; do
    ln -s /dev/null "$units/$name"; done
printf '[Unit]\nDefaultDependencies=no\nAllowIsolate=yes\nWants=systemd-journald.service\n' >"$units/box.target"
program=/lib/systemd/systemd
[ -z "${BOX_TRY:-}" ] || exec true
exec env -i PATH=/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin container=procmgr-test \
    "$program" --system --unit=box.target --log-target=journal --show-status=no
