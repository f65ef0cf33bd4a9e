#!/bin/busybox sh
# The first process of a guest: file systems, modules and its own network, then the agent, which does the rest.
/bin/busybox mkdir -p /proc /sys /dev /run /tmp /log /var/lib /busybox
/bin/busybox --install -s /busybox
# The real tools come before busybox' imitations of them.
export PATH=/usr/sbin:/usr/bin:/sbin:/bin:/busybox
mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t devtmpfs dev /dev
mkdir -p /dev/pts
mount -t devpts devpts /dev/pts
mount -t tmpfs run /run
mount -t tmpfs tmp /tmp
while read -r module; do
    insmod "/modules/$module.ko" || echo "init: cannot load $module"
done </modules/order
mount -t configfs configfs /sys/kernel/config
ip link set lo up
# The network to the host. The other one, to the other machines, is the test's to bring up.
ip addr add 10.0.2.15/24 dev eth0
ip link set eth0 up
echo "init: $(uname -r), starting the agent"
# In front of it, so that the shell goes on reaping what loses its parent.
/bin/vm-agent
echo "init: the agent ended"
poweroff -f
